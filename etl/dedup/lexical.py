"""A cheap embedding of a text without any model: tf-idf of its words and word pairs, projected to a few dimensions.

The weight of a word or pair is (1 + ln times) · (1 + ln((1 + rows) / (1 + rows that have it))), in fixed point. Rows
that have it are counted by hash in 2^20 slots, so the counts are one table of fixed size, and the tables of splits add
up exactly. In a corpus of many millions of words and pairs the rare ones share slots, and all of them count as less
rare. Each word or pair adds its weight, with a sign, to one component in each quarter of `dim`, which its hash selects
(a sparse random projection; Kane and Nelson 2014). All of it is in whole numbers, so a row's vector does not depend on
what else is in a batch. The cosine of two such vectors has a standard deviation of about (1 − c²) / √dim around the
tf-idf cosine c.

One core counts 55 MB and projects 37 MB of text a second; memory is 40 bytes a word of the batch.
"""

from typing import Final

import numpy as np
import pyarrow as pa

from etl.arrays import I8, I64, U64
from etl.dedup.vectors import quantise
from etl.hashing import xxh64_u64
from etl.jit import njit
from etl.text import ngram_hashes, shingles

LEXICAL_VERSION: Final = 1
"""Increased when the same text and counts would give another vector; part of the fingerprint."""
SLOT_BITS: Final = 20
NUM_SLOTS: Final = 1 << SLOT_BITS
_SHIFT: Final = np.uint64(64 - SLOT_BITS)
_ONE: Final = 1 << 16
_TIMES: Final = np.rint((1.0 + np.log(np.arange(1, 257))) * 256).astype(np.int64)
"""1 + ln n in units of 1/256, for 1 to 256 times; more count as 256."""


@njit
def _row_terms(words: U64, pairs: U64, held: U64) -> U64:
    """Hashes of both kinds in ascending order, at the front of `held`."""
    held[: len(words)] = words
    held[len(words) : len(words) + len(pairs)] = pairs
    row = held[: len(words) + len(pairs)]
    row.sort()
    return row


@njit
def _longest(words_at: I64, pairs_at: I64) -> int:
    longest = 0
    for i in range(len(words_at) - 1):
        longest = max(longest, words_at[i + 1] - words_at[i] + pairs_at[i + 1] - pairs_at[i])
    return longest


@njit
def _project(
    words_at: I64, words: U64, pairs_at: I64, pairs: U64, rarity: I64, times: I64, seed: np.uint64, out: I64
) -> None:
    held = np.empty(_longest(words_at, pairs_at), np.uint64)
    quarter = np.uint64(out.shape[1] // 4)
    for i in range(len(words_at) - 1):
        row = _row_terms(words[words_at[i] : words_at[i + 1]], pairs[pairs_at[i] : pairs_at[i + 1]], held)
        at = 0
        while at < len(row):
            end = at + 1
            while end < len(row) and row[end] == row[at]:
                end += 1
            weight = rarity[np.int64(row[at] >> _SHIFT)] * times[min(end - at, len(times)) - 1]
            bits = xxh64_u64(row[at], seed)
            for block in range(4):
                place = np.int64(np.uint64(block) * quarter + (((bits & np.uint64(0x7FFF)) * quarter) >> np.uint64(15)))
                if bits & np.uint64(0x8000):
                    out[i, place] += weight
                else:
                    out[i, place] -= weight
                bits >>= np.uint64(16)
            at = end


def count_terms(texts: pa.Array, counts: I64) -> None:
    """Count in each slot the occurrences of its words and pairs in the texts; repeats within a text do not count.

    Args:
        texts: string [rows], no nulls.
        counts: int64 [NUM_SLOTS], changed in place.
    """
    for n in (1, 2):
        _, terms = shingles(texts, n)
        counts += np.bincount((terms >> _SHIFT).astype(np.int64), minlength=NUM_SLOTS)


def rarity(counts: I64, num_rows: int) -> I64:
    """1 + ln((1 + rows) / (1 + rows in the slot)) in units of 2^-16: int64 [NUM_SLOTS]."""
    logarithm = np.log((1.0 + num_rows) / (1.0 + np.minimum(counts, num_rows)))
    return np.rint((1.0 + logarithm) * _ONE).astype(np.int64)


def embed(texts: pa.Array, rare: I64, dim: int, seed: int) -> I8:
    """The projected tf-idf vectors of some texts: int8 [rows, dim].

    Args:
        texts: string [rows], no nulls.
        rare: the result of `rarity`.
        dim: components, a multiple of 4, at most 32,768.
        seed: of the projection.
    """
    sums = np.zeros((len(texts), dim), np.int64)
    _project(*ngram_hashes(texts, 1), *ngram_hashes(texts, 2), rare, _TIMES, np.uint64(seed), sums)
    return quantise(sums)
