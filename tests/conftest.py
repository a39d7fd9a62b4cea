"""Fixtures of all tests: an environment that does not depend on the user, the shared test data, one Spark session.

HOME is an empty folder, so that nothing of the user's is read or written. The cache folder is `build/test-cache` in
the project (unless STILLHOUSE_CACHE names one): what is in it is named by digests, so a second session saves the
compilation of kernels and the conversion of models, and `make clean` removes it. The Spark session is made by the first
test that asks for it (5 to 10 s) and is shared by the rest of the process.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests.environment import PROJECT, set_environment

if TYPE_CHECKING:
    from tests.services.s3 import S3

SHARED_DATA = PROJECT.parent / "shared" / "data"
MARKING_FIXTURES = {"shared_data": "shared", "spark": "spark"}
HOME = pytest.StashKey[str]()
SPARK = "tests/engines/"
"""The folder of all tests that use the fixture `spark`: one process runs them, in one JVM."""
LONGEST = (
    "tests/faults/test_real_kills.py",
    SPARK,
    "tests/faults/test_recipe.py",
    "tests/jobs/test_spark_",
    "tests/training/losses/test_chunked_head.py",
    "tests/faults/test_network.py",
    "tests/faults/test_commit_points.py",
    "tests/training/test_",
    "tests/training/checkpoint/",
)
"""Begin with these, so that no process waits for another at the end: beginnings of paths, half a minute or more."""

hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any module of the project is imported."""
    hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")
    config.stash[HOME] = tempfile.mkdtemp(prefix="stillhouse-home-")
    set_environment(Path(config.stash[HOME]))
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Two processes with two threads each would wait for one another on two cores.
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the empty home and what third parties have left in it."""
    shutil.rmtree(config.stash[HOME], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the shared data or Spark, so that `-m "not spark"` needs no JVM; longest files first."""
    for item in items:
        for fixture, marker in MARKING_FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    """Where the tests of its file come; an equal place keeps the order of collection."""
    return next((place for place, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadfile`: each file in one process, those with the Spark session all in the same, in their order."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    scheduling = LoadFileScheduling(config, log)
    file_of = scheduling._split_scope
    scheduling._split_scope = lambda nodeid: SPARK if nodeid.startswith(SPARK) else file_of(nodeid)
    config.option.loadscopereorder = False
    return scheduling


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data beside the checkout; the test is skipped where there is none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no test data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator["S3"]:
    """One SeaweedFS for all tests of a process, each of which takes a bucket or a folder of its own."""
    from tests.services.s3 import s3_server

    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A SparkSession on two local cores, without its web page, in folders that go away."""
    from pyspark.sql import SparkSession

    from etl.artefacts import cache_dir
    from etl.engines.class_archive import archive_folder, find_archive, sharing
    from etl.engines.java import find_java
    from etl.engines.spark_session import DAEMON, LIGHT_JVM, spark_home

    java = find_java()
    os.environ["JAVA_HOME"] = str(java.home)
    archive = find_archive(archive_folder(cache_dir(), java, spark_home()))
    options = LIGHT_JVM if archive is None else f"{LIGHT_JVM} {sharing(archive)}"
    folder = tmp_path_factory.mktemp("spark")
    settings = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": f"-Dderby.system.home={folder} {options}",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.memory": "1g",
        "spark.local.dir": str(folder),
        "spark.python.daemon.module": DAEMON,
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    builder = SparkSession.builder.master("local[2]").appName("stillhouse-tests")
    for key, value in settings.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()
