"""The exact Jaccard similarity of candidate pairs, from their sorted shingle sets.

It merges the two sets and allocates only the result. Each step of a merge waits for the previous one, so four quarters
of two sets are merged side by side: about 900 million elements a second a core.
"""

import numpy as np

from etl.arrays import F64, I64, U64
from etl.jit import njit

_QUARTERED = 32
"""A set of at least this many elements is cut in quarters."""
_FEW = 4
"""A number of steps that is not worth another round of quarters."""


@njit
def _merged(hashes: U64, i: np.int64, i_end: np.int64, j: np.int64, j_end: np.int64) -> np.int64:
    """How many elements two ranges share."""
    shared = np.int64(0)
    while i < i_end and j < j_end:
        a, b = hashes[i], hashes[j]
        shared += np.int64(a == b)
        i += np.int64(a <= b)
        j += np.int64(b <= a)
    return shared


@njit
def _not_below(hashes: U64, at: np.int64, end: np.int64, wanted: np.uint64) -> np.int64:
    """The first place in a range whose element is not below `wanted`; its end if there is none."""
    while at < end:
        middle = (at + end) >> 1
        if hashes[middle] < wanted:
            at = middle + 1
        else:
            end = middle
    return at


@njit
def _merged_by_quarters(hashes: U64, i: np.int64, i_end: np.int64, j: np.int64, j_end: np.int64) -> np.int64:
    """As `_merged`: the first range in quarters, each with the elements of the second that may be in it.

    A step advances by at most one element in each range, so as long as both have enough left, no end is checked.
    """
    size = i_end - i
    i0, i1, i2, i3 = i, i + size // 4, i + size // 2, i + size // 4 * 3
    j0 = j
    j1 = _not_below(hashes, j0, j_end, hashes[i1])
    j2 = _not_below(hashes, j1, j_end, hashes[i2])
    j3 = _not_below(hashes, j2, j_end, hashes[i3])
    i_end0, i_end1, i_end2, i_end3 = i1, i2, i3, i_end
    j_end0, j_end1, j_end2, j_end3 = j1, j2, j3, j_end
    shared0 = shared1 = shared2 = shared3 = np.int64(0)
    while True:
        first = min(min(i_end0 - i0, j_end0 - j0), min(i_end1 - i1, j_end1 - j1))
        second = min(min(i_end2 - i2, j_end2 - j2), min(i_end3 - i3, j_end3 - j3))
        steps = min(first, second)
        if steps < _FEW:
            break
        for _ in range(steps):
            a, b = hashes[i0], hashes[j0]
            shared0, i0, j0 = shared0 + np.int64(a == b), i0 + np.int64(a <= b), j0 + np.int64(b <= a)
            a, b = hashes[i1], hashes[j1]
            shared1, i1, j1 = shared1 + np.int64(a == b), i1 + np.int64(a <= b), j1 + np.int64(b <= a)
            a, b = hashes[i2], hashes[j2]
            shared2, i2, j2 = shared2 + np.int64(a == b), i2 + np.int64(a <= b), j2 + np.int64(b <= a)
            a, b = hashes[i3], hashes[j3]
            shared3, i3, j3 = shared3 + np.int64(a == b), i3 + np.int64(a <= b), j3 + np.int64(b <= a)
    one = _merged(hashes, i0, i_end0, j0, j_end0) + _merged(hashes, i1, i_end1, j1, j_end1)
    other = _merged(hashes, i2, i_end2, j2, j_end2) + _merged(hashes, i3, i_end3, j3, j_end3)
    return shared0 + shared1 + shared2 + shared3 + one + other


@njit
def _jaccard_pairs(offsets: I64, hashes: U64, left: I64, right: I64, out: F64) -> None:
    for pair in range(len(left)):
        i, i_end = offsets[left[pair]], offsets[left[pair] + 1]
        j, j_end = offsets[right[pair]], offsets[right[pair] + 1]
        total = (i_end - i) + (j_end - j)
        if i_end - i < _QUARTERED:
            shared = _merged(hashes, i, i_end, j, j_end)
        else:
            shared = _merged_by_quarters(hashes, i, i_end, j, j_end)
        out[pair] = shared / (total - shared) if total else 0.0


def jaccard_pairs(offsets: I64, hashes: U64, left: I64, right: I64) -> F64:
    """Size of the intersection over size of the union of each pair of rows: float64 [pairs].

    Two empty sets have similarity 0: a null text duplicates nothing.

    Args:
        offsets: int64 [rows + 1]; row r has hashes[offsets[r] : offsets[r + 1]].
        hashes: uint64, strictly ascending within a row (`etl.text.shingles`).
        left: row numbers, int64 [pairs].
        right: row numbers, int64 [pairs].
    """
    out = np.empty(len(left), np.float64)
    _jaccard_pairs(offsets, hashes, left, right, out)
    return out
