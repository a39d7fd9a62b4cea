"""One Beam job service for the tests of a process."""

from collections.abc import Iterator

import pytest

from tests.services.beam import beam_job_service


@pytest.fixture(scope="session")
def portable_flags(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Beam's flags for the job service, with the workers in this process."""
    with beam_job_service(tmp_path_factory.mktemp("service")) as endpoint:
        yield ["--runner=PortableRunner", f"--job_endpoint={endpoint}", "--environment_type=LOOPBACK"]
