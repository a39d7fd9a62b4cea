"""MinHash signatures of shingle sets, and the bands under which similar sets meet.

The estimate of the Jaccard similarity from 128 permutations has standard error sqrt(J (1 - J) / 128), at most
0.044. Broder 1997, "On the resemblance and containment of documents"; banding as in Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", §3.4. One core permutes about 370 million shingles a second 128 ways
(AVX-512).
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from etl.errors import ConfigError
from etl.hashing import xxh64, xxh64_u64
from etl.jit import njit

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

MINHASH_VERSION: Final = 1
"""Raised when equal shingles would give another signature or band; part of the fingerprint."""

_EMPTY: Final = np.uint32(0xFFFFFFFF)


def permutations(num_perm: int, seed: int) -> tuple[U32, U32]:
    """Odd multipliers and increments of the permutations, uint32 [num_perm]: halves of XXH64(i, seed)."""
    hashes = np.array([xxh64(i.to_bytes(8, "little"), seed) for i in range(num_perm)], np.uint64)
    return (hashes >> np.uint64(32)).astype(np.uint32) | np.uint32(1), hashes.astype(np.uint32)


@njit
def _signatures(offsets: I64, hashes: U64, multipliers: U32, increments: U32, out: U32) -> None:
    half = np.uint64(32)
    for row in range(len(offsets) - 1):
        minima = out[row]
        minima[:] = _EMPTY
        i, end = offsets[row], offsets[row + 1]
        # Four hashes a pass, since reading and writing the minima is what limits the speed.
        while i + 4 <= end:
            x0, x1 = np.uint32(hashes[i] >> half), np.uint32(hashes[i + 1] >> half)
            x2, x3 = np.uint32(hashes[i + 2] >> half), np.uint32(hashes[i + 3] >> half)
            for k in range(len(multipliers)):
                a, b = multipliers[k], increments[k]
                first = min(np.uint32(a * x0 + b), np.uint32(a * x1 + b))
                second = min(np.uint32(a * x2 + b), np.uint32(a * x3 + b))
                minima[k] = min(minima[k], min(first, second))
            i += 4
        while i < end:
            x = np.uint32(hashes[i] >> half)
            for k in range(len(multipliers)):
                minima[k] = min(minima[k], np.uint32(multipliers[k] * x + increments[k]))
            i += 1


def signatures(offsets: I64, hashes: U64, num_perm: int = 128, seed: int = 1) -> U32:
    """The MinHash signature of each row: uint32 [rows, num_perm].

    Entry i is the minimum over the row's hashes h of (a_i · (h >> 32) + b_i) mod 2^32 with odd a_i, which
    permutes the 32-bit numbers. Repeated hashes change nothing, so the n-grams of `etl.text.ngram_hashes` do
    as well as a set. A row without hashes (a null text) has 2^32 - 1 throughout and must not enter the bands.

    Args:
        offsets: int64 [rows + 1]; row r has hashes[offsets[r] : offsets[r + 1]].
        hashes: uint64, evenly spread.
        num_perm: entries of a signature.
        seed: chooses the permutations; signatures of different seeds cannot be compared.
    """
    multipliers, increments = permutations(num_perm, seed)
    out = np.empty((len(offsets) - 1, num_perm), np.uint32)
    _signatures(offsets, hashes, multipliers, increments, out)
    return out


@njit
def _band_hashes(signature: U32, rows: int, out: I64) -> None:
    for i in range(len(out)):
        for band in range(out.shape[1]):
            h = xxh64_u64(np.uint64(band), np.uint64(rows))
            for k in range(band * rows, (band + 1) * rows):
                h = xxh64_u64(np.uint64(signature[i, k]), h)
            out[i, band] = np.int64(h)


def band_hashes(signature: U32, bands: int = 14, rows: int = 8) -> I64:
    """One hash for each band of each signature: int64 [len(signature), bands].

    Band j covers entries j · rows to (j + 1) · rows; its hash is an XXH64 chain over (rows, j, the entries),
    so that hashes of different bands can share one stream.

    Raises:
        ConfigError: the signature has fewer than bands · rows entries.
    """
    if bands < 1 or rows < 1 or bands * rows > signature.shape[1]:
        raise ConfigError(
            f"{bands} bands of {rows} rows need {bands * rows} permutations, but there are "
            f"{signature.shape[1]}; lower bands or rows, or raise num_perm"
        )
    out = np.empty((len(signature), bands), np.int64)
    _band_hashes(signature, rows, out)
    return out


def candidate_probability(jaccard: float, bands: int, rows: int) -> float:
    """Chance that two sets of Jaccard J share a band, 1 - (1 - J^rows)^bands: the expected recall at J."""
    return float(1.0 - (1.0 - jaccard**rows) ** bands)
