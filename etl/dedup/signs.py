"""Which texts differ only in visible signs (C++ and C#): digests of a text as it is compared and with its signs.

Two texts whose first digests are equal and whose second ones are not have the same words in the same order, and near
dedup has not compared the signs in which they differ. A text that is cut with its signs has the same digest twice, so
it is never in such a pair. Both cost as much as cutting the text once more.
"""

from typing import Final

import numpy as np
import pyarrow as pa

from etl.arrays import I64, Bools
from etl.dedup.shingles import token_digests

SIGNS_VERSION: Final = 1
"""Increased when a text would get other digests; part of the fingerprint of near dedup."""


def sign_digests(texts: pa.Array, signed: Bools) -> tuple[I64, I64]:
    """Digests of the tokens of each text, cut as it is compared and cut with its signs: int64 [rows] twice.

    Args:
        texts: string or large_string [rows].
        signed: bool [rows], which texts are compared with their signs.
    """
    compared, with_signs = token_digests(texts, signed)
    return compared.view(np.int64), with_signs.view(np.int64)
