"""Prepares a process for forking workers, so that they share what all of them need.

A first kernel makes numba load its registries: 0.4 CPU-seconds and 80,000 objects. Frozen, they are none of a
collection's business in a fork, which would touch and so copy them, 40 ms each time.
"""

import gc

import pyarrow as pa

from etl.hashing import hash128


def freeze_for_forks() -> None:
    """Run a first kernel, and keep the collector from all that is there."""
    hash128([pa.array([""])])
    gc.freeze()
