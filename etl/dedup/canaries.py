"""Canaries: edited copies of sampled rows, which show what near dedup finds and what it misses.

Every run sends them through the real stage beside the rows that they copy. How similar a canary is to its row is
computed exactly when it is made, so the share that is reported at each level of similarity is the recall of this run on
this data, and what is reported below the threshold tells the precision. A canary is paired with its own row alone and
pairs up no other rows, so it changes nothing for them and never leaves the stage.

A canary has the row key of its row with the highest bits set: 2^62 and, from bit 57 on, its level. One costs about
0.3 ms, for each of the two times that it is made.
"""

import re
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.arrays import I64, U64
from etl.dedup.verify import jaccard_pairs
from etl.hashing import hash_array
from etl.jit import njit
from etl.text import ALONE_RANGES

CANARY_BIT: Final = np.int64(62)
LEVEL_BIT: Final = np.int64(57)
_ROW_MASK: Final = np.int64((1 << 57) - 1)
_SEED: Final = 0x63616E617279
_TOLERANCE: Final = 1e-12
_LEAST_WORDS: Final = 24
"""A shorter text has too few n-grams to be edited to a level."""


CANARIES_VERSION: Final = 2
"""Raised when a row would get another copy; part of the fingerprint."""


@cache
def _token_pattern() -> re.Pattern[str]:
    """Words as near dedup cuts them: each character of a script without spaces is one."""
    alone = "".join(f"{chr(first)}-{chr(last)}" for first, last in ALONE_RANGES)
    return re.compile(rf"(?=\w)[{alone}]|[^\W{alone}]+")


@njit
def is_canary(row: int) -> bool:
    """Whether a row key is that of a canary."""
    return row >> np.int64(62) != 0


@njit
def base_row(row: int) -> int:
    """The key of the row that a canary copies; a row's own key for a row."""
    return int(row & np.int64((1 << 57) - 1))


@njit
def level_of(row: int) -> int:
    """Number of a canary's level."""
    return int((row >> np.int64(57)) & np.int64(31))


def canary_rows(rows: I64, levels: I64) -> I64:
    """Keys of canaries: int64 [rows]."""
    assert not len(rows) or int(rows.max()) <= _ROW_MASK, "more splits than row keys leave room for"
    return rows | levels << LEVEL_BIT | np.int64(1) << CANARY_BIT


def bases(rows: I64) -> I64:
    """`base_row` of row keys, int64 [rows]."""
    return rows & _ROW_MASK


def which_canaries(rows: I64) -> npt.NDArray[np.bool_]:
    """`is_canary` of row keys, bool [rows]."""
    return rows >> CANARY_BIT != 0


@dataclass(frozen=True)
class Levels:
    """Ranges of Jaccard similarity in which canaries are counted: two below a threshold, and all above it."""

    threshold: float

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """Where each level begins, ascending; the last one is 1 alone."""
        width = 0.05 if self.threshold >= 0.4 else 0.1
        above = int(np.ceil((1 - self.threshold) / width - _TOLERANCE))
        edges = [self.threshold + width * step for step in range(-2, above)]
        return (*(round(edge, 9) for edge in edges if edge > 0), 1.0)

    def of(self, jaccard: npt.NDArray[np.float64]) -> I64:
        """Number of the level of each similarity, int64; -1 below the lowest."""
        return np.searchsorted(self.edges, jaccard + _TOLERANCE, "right") - 1

    def target(self, level: int) -> float:
        """The middle of a level."""
        ends = (*self.edges, 1.0)
        return (ends[level] + ends[level + 1]) / 2

    def name(self, level: int) -> str:
        """The range of a level as text."""
        ends = (*self.edges, 1.0)
        return "1" if ends[level] == 1 else f"{ends[level]:.4g}-{ends[level + 1]:.4g}"

    def is_duplicate(self, level: int) -> bool:
        """Whether rows that similar are to be found."""
        return self.edges[level] >= self.threshold - _TOLERANCE


def edited(text: str, damage: float, seed: int) -> str | None:
    """A copy in which some words, evenly spread, became words that stand nowhere else; None for a short text.

    Args:
        text: of a row.
        damage: share of the words to replace; 0 changes only case and white space.
        seed: decides which ones.
    """
    words = [match.span() for match in _token_pattern().finditer(text)]
    if len(words) < _LEAST_WORDS:
        return None
    if damage == 0:
        return "\n" + text.replace(" ", "  ") + " "
    random = Random(seed)  # noqa: S311  # edits, no secrets
    count = max(1, round(damage * len(words)))
    pieces, at = [], 0
    for number in range(count):
        start, end = words[int((number + random.random()) * len(words) / count)]
        pieces += [text[at:start], f" x{random.getrandbits(48):012x} "]
        at = end
    return "".join([*pieces, text[at:]])


def word_damage(target: float, ngram_words: float) -> float:
    """Share of words to replace so that about the target similarity is left.

    Each of k lone edits of m n-grams takes `ngram_words` away and brings as many, so J = (m - nk) / (m + nk).
    """
    return (1 - target) / ((1 + target) * ngram_words)


def drawn_levels(ids: pa.Array, levels: Levels) -> I64:
    """The level that each row's canary aims at, by a hash of the id: int64 [rows]."""
    return (hash_array(ids, _SEED) % np.uint64(len(levels.edges))).astype(np.int64)


def edit_all(ids: pa.Array, texts: pa.Array, levels: Levels, ngram_words: float) -> pa.Array:
    """The edited copy of each text, null where it is too short: string [rows].

    Args:
        ids: binary(16) [rows]; with the text they decide the edits.
        texts: string [rows].
        levels: among which each canary draws one to aim at.
        ngram_words: words that an n-gram covers, about.
    """
    seeds = hash_array(ids, _SEED + 1)
    made = []
    for text, level, seed in zip(texts.to_pylist(), drawn_levels(ids, levels), seeds, strict=True):
        target = levels.target(int(level))
        made.append(edited(text, word_damage(target, ngram_words), int(seed)))
    return pa.array(made, pa.string())


def similarities(one: tuple[I64, U64], other: tuple[I64, U64]) -> npt.NDArray[np.float64]:
    """Jaccard of the sets of equal rows of two lists of sets (offsets, hashes): float64 [rows]."""
    offsets = np.concatenate([one[0], one[0][-1] + other[0][1:]])
    rows = np.arange(len(one[0]) - 1, dtype=np.int64)
    return jaccard_pairs(offsets, np.concatenate([one[1][: one[0][-1]], other[1]]), rows, rows + len(rows))
