"""Which texts differ in visible signs alone (C++ and C#): digests of a text as it is compared and with its signs.

Two texts of which the first digests are equal and the second are not have the same words in the same order, and near
dedup has not compared the signs in which they differ. A text that is cut with its signs has the same digest twice, so
such a pair is never one of those. Both cost as much as cutting the text twice more.
"""

from typing import Final

import numpy as np
import pyarrow as pa

from etl.arrays import I64, U64, Bools
from etl.dedup.shingles import ordered_tokens
from etl.hashing import xxh64_u64
from etl.jit import njit

SIGNS_VERSION: Final = 1
"""Raised when a text would get other digests; part of the fingerprint of near dedup."""


@njit
def _chained(offsets: I64, hashes: U64, out: U64) -> None:
    for row in range(len(out)):
        digest = np.uint64(0)
        for at in range(offsets[row], offsets[row + 1]):
            digest = xxh64_u64(hashes[at], digest)
        out[row] = digest


def sign_digests(texts: pa.Array, signed: Bools) -> tuple[I64, I64]:
    """Digests of the tokens of each text, cut as it is compared and cut with its signs: int64 [rows] twice.

    Args:
        texts: string or large_string [rows].
        signed: bool [rows], which texts are compared with their signs.
    """
    with_signs = _digests(texts, np.ones(len(texts), np.bool_))
    return with_signs if signed.all() else _digests(texts, signed), with_signs


def _digests(texts: pa.Array, signed: Bools) -> I64:
    out = np.empty(len(texts), np.uint64)
    _chained(*ordered_tokens(texts, signed), out)
    return out.view(np.int64)
