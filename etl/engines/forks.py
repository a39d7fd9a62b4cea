"""Prepares a process for forking workers, so that they share what all of them need.

A first kernel makes numba load its registries: 0.4 CPU-seconds and 80,000 objects. Once they are frozen, a garbage
collection in a fork ignores them; otherwise it would touch and thereby copy them, 40 ms each time.
"""

import gc

import pyarrow as pa

from etl.hashing import hash128


def freeze_for_forks() -> None:
    """Run a first kernel, and exclude all existing objects from garbage collection."""
    hash128([pa.array([""])])
    gc.freeze()
