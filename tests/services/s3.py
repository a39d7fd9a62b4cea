"""A real S3 server for tests: SeaweedFS (`weed server -s3`), one process with all its parts, data in a given folder.

It checks signatures and honours If-None-Match. Ready after 2 to 3 s; a small PUT or GET takes about 5 ms.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3fs
from botocore.exceptions import BotoCoreError

from tests.services.process import free_ports, running

KEY, SECRET = "stillhouse", "only-for-tests"
_STOP_S = 1.0
"""weed waits for its own subscriptions when it is asked to stop, which never ends."""


@dataclass(frozen=True)
class S3:
    """Where the server is and who may use it."""

    endpoint_url: str
    key: str = KEY
    secret: str = SECRET

    @property
    def options(self) -> dict[str, Any]:
        """Options for fsspec's s3://."""
        return {"key": self.key, "secret": self.secret, "endpoint_url": self.endpoint_url}

    def at(self, endpoint_url: str) -> "S3":
        """The same store through another address, such as a proxy's."""
        return S3(endpoint_url, self.key, self.secret)

    def file_system(self) -> Any:
        """A file system of its own, without the listings that another one has cached."""
        return s3fs.S3FileSystem(**self.options, use_listings_cache=False, skip_instance_cache=True)

    def bucket(self, name: str) -> str:
        """Make a bucket (3 to 63 characters) unless it is there; returns s3://name."""
        store = self.file_system()
        if not store.exists(name):
            store.mkdir(name)
        return f"s3://{name}"


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """SeaweedFS with its data in `folder`, which must be the test's own."""
    data = folder / "weed"
    data.mkdir(parents=True)
    users = folder / "users.json"
    users.write_text(json.dumps({"identities": [_identity()]}))
    ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
    server = S3(f"http://127.0.0.1:{ports['s3.port']}")
    # weed takes its flags from the environment too, and a Spark session of this process leaves MASTER there.
    command = [
        "env", "-u", "MASTER", str(Path(sys.prefix) / "bin" / "weed"), "-logtostderr", "server",
        f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={users}", "-s3.iam=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false", "-master.peers=none",
        "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms", "-master.volumeSizeLimitMB=64",
        "-volume.max=0", "-volume.preStopSeconds=0", *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    try:
        with running(command, folder / "weed.log", lambda: _takes_objects(server), grace_s=_STOP_S):
            yield server
    finally:
        shutil.rmtree(data, ignore_errors=True)
        for port in ports.values():
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink(missing_ok=True)


_PORTS = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc", "s3.port",
    "s3.port.grpc",
)  # fmt: skip


def _identity() -> dict[str, Any]:
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": actions}


def _takes_objects(server: S3) -> bool:
    """The port is open before volumes are there, so only a write proves it; a closed port is botocore's own error."""
    try:
        store = server.file_system()
        store.pipe_file(f"{server.bucket('ready')}/object", b"x")
    except (OSError, BotoCoreError):
        return False
    return True
