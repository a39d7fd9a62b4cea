"""Imports Beam for a process that runs its jobs itself, without cloud clients: two thirds of what Beam imports.

Beam also loads the clients of Google's, Amazon's and Azure's object stores, of Hadoop and of Dataflow if they are
installed, which takes 0.9 CPU-seconds. Our stages read and write through fsspec, and only a runner elsewhere needs
Beam's own clients.
"""

import importlib
import sys
from typing import Final

_CLIENTS: Final = ("apitools", "google.api_core", "google.cloud.dataflow")
CLOUDS: Final = (
    "apache_beam.io.aws.s3filesystem",
    "apache_beam.io.azure.blobstoragefilesystem",
    "apache_beam.io.gcp",
    "apache_beam.io.gcp.gcsfilesystem",
    "apache_beam.io.hadoopfilesystem",
    *_CLIENTS,
)
"""Modules that Beam does not need. They can be imported afterwards."""
_KEEP_CLIENTS: Final = ("apache_beam.utils.retry", "apache_beam.runners.dataflow.dataflow_runner")
"""Modules of Beam that remember which clients they found when imported; file systems are picked up later."""


def import_beam_without_clouds() -> None:
    """Import `apache_beam`; modules that are already imported are left as they are."""
    absent = [name for name in CLOUDS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: such an import fails at once
    try:
        import apache_beam  # noqa: F401  # for what it does
    finally:
        for name in absent:
            del sys.modules[name]


def import_clouds() -> None:
    """Let Beam find the cloud clients, in a process that may have imported it without them."""
    if sys.modules.keys() >= set(_CLIENTS):
        return
    for name in _KEEP_CLIENTS:
        if name in sys.modules:
            importlib.reload(sys.modules[name])
