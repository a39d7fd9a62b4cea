"""Imports Beam for a process that runs its jobs itself: without the clients of clouds, two thirds of what it imports.

Beam loads the clients of Google's, Amazon's and Azure's object stores, of Hadoop and of Dataflow with itself wherever
they are installed, 0.9 CPU-seconds. Our stages read and write through fsspec, and only a runner elsewhere wants Beam's
own.
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
"""Modules that Beam can do without. They can be imported afterwards."""
_KEEP_CLIENTS: Final = ("apache_beam.utils.retry", "apache_beam.runners.dataflow.dataflow_runner")
"""Modules of Beam that keep what they found of the clients when they were imported; file systems it takes up later."""


def import_beam_without_clouds() -> None:
    """Import `apache_beam`; whatever is imported already stays as it is."""
    absent = [name for name in CLOUDS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: such an import fails at once
    try:
        import apache_beam  # noqa: F401  # for what it does
    finally:
        for name in absent:
            del sys.modules[name]


def import_clouds() -> None:
    """Let Beam find the clients of clouds, in a process that may have imported it without them."""
    if sys.modules.keys() >= set(_CLIENTS):
        return
    for name in _KEEP_CLIENTS:
        if name in sys.modules:
            importlib.reload(sys.modules[name])
