"""Which rows are in a seeded sample: a pure function of id, seed and fraction, the same for every engine and split.

A sample of a smaller fraction is a subset of one of a larger fraction with the same seed. Samples for different
purposes must not coincide, so each purpose takes its own seed from `purpose_seed`. About 100 million ids a
CPU-second.
"""

from typing import Final

import numpy as np
import pyarrow as pa

from etl.hashing import hash_array, xxh64

_BITS_OF_A_DOUBLE: Final = 53


def in_sample(ids: pa.Array, seed: int, fraction: float) -> pa.BooleanArray:
    """True where u(id, seed) < fraction, with u = (xxh64(id, seed) >> 11) / 2^53, uniform in [0, 1).

    Args:
        ids: binary(16) [rows], no nulls.
        seed: 0 … 2^64 - 1.
        fraction: 0 takes no row, 1 takes every row.
    """
    top = hash_array(ids, seed) >> np.uint64(64 - _BITS_OF_A_DOUBLE)
    return pa.array(top.astype(np.float64) * 2.0**-_BITS_OF_A_DOUBLE < fraction)


def purpose_seed(purpose: str, seed: int) -> int:
    """The seed of one purpose ("kenlm", "ifd" …) under a user's seed, so that its sample is independent of others."""
    return xxh64(purpose.encode(), seed)
