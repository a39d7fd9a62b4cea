"""MinHash signatures of shingle sets, and the bands under which similar sets meet.

The estimate of the Jaccard similarity from 128 permutations has standard error sqrt(J (1 - J) / 128), at most
0.044. Broder 1997, "On the resemblance and containment of documents"; banding as in Leskovec, Rajaraman and
Ullman, "Mining of Massive Datasets", §3.4. One core permutes about 370 million shingles a second 128 ways
(AVX-512).
"""

import functools
import math
from typing import Final

import numpy as np

from etl.arrays import F64, I64, U32, U64
from etl.errors import ConfigError
from etl.hashing import xxh64, xxh64_u64
from etl.jit import njit

MINHASH_VERSION: Final = 2
"""Increased when equal shingles would give another signature, band or sketch; part of the fingerprint."""

THINNING_LOSS: Final = 1e-4
"""Largest share of the pairs at the threshold that `least_agreement` may lose."""

_EMPTY: Final = np.uint32(0xFFFFFFFF)


@functools.cache
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


def band_hashes(signature: U32, bands: int, rows: int) -> I64:
    """One hash for each band of each signature: int64 [len(signature), bands].

    Band j covers entries j · rows to (j + 1) · rows; its hash is an XXH64 chain over (rows, j, the entries),
    so that hashes of different bands can share one stream.

    Raises:
        ConfigError: the signature has fewer than bands · rows entries.
    """
    if bands < 1 or rows < 1 or bands * rows > signature.shape[1]:
        raise ConfigError(
            f"{bands} bands of {rows} rows need {bands * rows} permutations, but there are {signature.shape[1]}; "
            "lower bands or rows, or raise num_perm"
        )
    out = np.empty((len(signature), bands), np.int64)
    _band_hashes(signature, rows, out)
    return out


def candidate_probability(jaccard: float, bands: int, rows: int) -> float:
    """The chance that two sets of Jaccard J share a band, 1 - (1 - J^rows)^bands: the expected recall at J."""
    return float(1.0 - (1.0 - jaccard**rows) ** bands)


def choose_bands(threshold: float, num_perm: int, recall: float) -> tuple[int, int]:
    """Bands and rows a band for a threshold, by the S-curve: the longest bands with which such pairs still meet.

    Longer bands let fewer dissimilar pairs meet. There are as many bands as the permutations allow.

    Args:
        threshold: Jaccard similarity of the pairs that are wanted.
        num_perm: entries of a signature.
        recall: smallest chance at the threshold.

    Raises:
        ConfigError: not even bands of one row reach that chance.
    """
    for rows in range(num_perm, 0, -1):
        if candidate_probability(threshold, num_perm // rows, rows) >= recall:
            return num_perm // rows, rows
    raise ConfigError(
        f"{num_perm} permutations cannot find pairs at {threshold} with probability {recall}; raise num_perm or "
        "lower recall"
    )


@njit
def _sketches(signature: U32, bits: int, out: U64) -> None:
    for row in range(len(signature)):
        for k in range(signature.shape[1]):
            # The minimum itself is small for a large set; the top bits of its product depend on all of it.
            mixed = np.uint64(np.uint32(signature[row, k] * np.uint32(0x9E3779B1)) >> np.uint32(32 - bits))
            place = k * bits
            out[row, place >> 6] |= mixed << np.uint64(place & 63)


def sketches(signature: U32, bits: int) -> U64:
    """The signatures at `bits` bits an entry: uint64 [rows, num_perm · bits / 64, rounded up].

    b-bit minwise hashing (Li and König 2010): equal entries stay equal, others agree with chance 2^-bits.

    Args:
        signature: uint32 [rows, num_perm].
        bits: 1, 2, 4 or 8.
    """
    assert bits in (1, 2, 4, 8), bits
    out = np.zeros((len(signature), -(-signature.shape[1] * bits // 64)), np.uint64)
    _sketches(signature, bits, out)
    return out


@njit
def disagreement(one: U64, other: U64, bits: int) -> int:
    """Entries in which two sketches differ."""
    lanes = np.uint64(0xFFFFFFFFFFFFFFFF) // np.uint64((1 << bits) - 1)
    count = np.uint64(0)
    for k in range(len(one)):
        x = one[k] ^ other[k]
        fold = bits >> 1
        while fold:
            x |= x >> np.uint64(fold)
            fold >>= 1
        x &= lanes
        x = (x & np.uint64(0x5555555555555555)) + ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
        x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
        x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
        count += (x * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return int(count)


def most_disagreement(threshold: float, num_perm: int, loss: float = THINNING_LOSS) -> int:
    """Largest number of differing entries in one-bit sketches of pairs at the threshold, but for a chance of `loss`.

    An entry of such a pair differs with chance (1 - threshold) / 2. A pair that shares a band agrees in more.
    """
    chance = (1 - threshold) / 2
    if chance == 0:
        return 0
    least, odds = math.lgamma(num_perm + 1), math.log(chance / (1 - chance))
    share = [
        math.exp(least - math.lgamma(k + 1) - math.lgamma(num_perm - k + 1) + k * odds + num_perm * math.log1p(-chance))
        for k in range(num_perm + 1)
    ]
    more = np.cumsum(share[::-1])[::-1] - share
    return int(np.argmax(more <= loss))


@njit
def _estimate_pairs(words: U64, num_perm: int, bits: int, left: I64, right: I64, out: F64) -> None:
    chance = 0.5**bits
    for pair in range(len(left)):
        agree = 1.0 - disagreement(words[left[pair]], words[right[pair]], bits) / num_perm
        out[pair] = max(0.0, (agree - chance) / (1.0 - chance))


def estimate_pairs(words: U64, num_perm: int, bits: int, left: I64, right: I64) -> F64:
    """The Jaccard similarity of pairs, estimated from their sketches: float64 [pairs].

    Unbiased, with a standard error of about sqrt(J (1 - J) / num_perm) at 8 bits; 1 for equal sets.

    Args:
        words: uint64 [rows, words], of `sketches`.
        num_perm: entries of a signature.
        bits: of an entry.
        left: row numbers, int64 [pairs].
        right: row numbers, int64 [pairs].
    """
    out = np.empty(len(left), np.float64)
    _estimate_pairs(words, num_perm, bits, left, right, out)
    return out
