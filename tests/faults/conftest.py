"""The two stores that every fault is tried on, a local folder and a real S3 server; and the seed of a session."""

import itertools
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from etl.storage.location import Location
from tests.faults.recipes import write_sources
from tests.services.s3 import S3

Folders = Callable[[], Location]


@pytest.fixture(scope="session")
def bucket(s3: S3) -> str:
    """A bucket whose volumes are there: the first write into a new one takes seconds."""
    url = s3.bucket("faults")
    s3.file_system().pipe_file(f"{url}/first", b"x")
    return url


@pytest.fixture
def local_folders(tmp_path: Path) -> Folders:
    """A new folder on the local disk at each call."""
    names = itertools.count()
    return lambda: Location.of(tmp_path / f"folder-{next(names)}")


@pytest.fixture
def s3_folders(s3: S3, bucket: str, request: pytest.FixtureRequest) -> Folders:
    """A new folder in the bucket at each call."""
    names = itertools.count()
    prefix = f"{bucket}/{abs(hash(request.node.nodeid)):x}"
    return lambda: Location.of(f"{prefix}-{next(names)}", s3.options)


@pytest.fixture(params=["local", "s3"])
def folders(request: pytest.FixtureRequest) -> Folders:
    """New folders on either store."""
    return request.getfixturevalue(f"{request.param}_folders")


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of the sources of the recipe that is killed."""
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="session")
def say(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Prints a line although output is captured."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            pytestconfig.get_terminal_writer().line(f"\n{text}")

    return line


@pytest.fixture(scope="session")
def seed(say: Callable[[str], None]) -> int:
    """Another one in each session, printed; STILLHOUSE_FAULT_SEED repeats one."""
    chosen = int(os.environ.get("STILLHOUSE_FAULT_SEED", secrets.randbelow(1 << 32)))
    say(f"STILLHOUSE_FAULT_SEED={chosen}")
    return chosen
