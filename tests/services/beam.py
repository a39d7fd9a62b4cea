"""A Beam job service for tests: local_job_service on a free port of 127.0.0.1, in a process of its own.

Ready after 3 to 5 s, nearly all of it the import of Beam.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.services.process import free_ports, is_listening, running


@contextlib.contextmanager
def beam_job_service(folder: Path) -> Iterator[str]:
    """host:port for --job_endpoint; staged files and the log are in `folder`, which must be the test's own."""
    (port,) = free_ports(1)
    command = [
        sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main",
        f"--job_port={port}", f"--staging_dir={folder / 'staging'}",
    ]  # fmt: skip
    with running(command, folder / "beam.log", lambda: is_listening(port)):
        yield f"127.0.0.1:{port}"
