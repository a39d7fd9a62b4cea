"""Canaries: edited copies of sampled rows, which show what near dedup finds and what it misses.

Every run sends them through the real stage with the rows that they copy. The similarity of a canary to its row is
computed exactly when it is made. So the share of canaries that is found at each level of similarity is the recall of
this run on this data, and those found below the threshold show the precision. A canary is paired only with its own row
and makes no pairs of other rows, so it changes nothing for them and never leaves the stage.

A canary has the row key of its row with the highest bits set: 2^62, from bit 57 on its level, and from bit 52 on
the script of the row's letters. One costs about 0.1 ms each time it is made, which is twice.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.arrays import I64, U8, U32, U64, Bools
from etl.dedup.verify import jaccard_pairs
from etl.hashing import hash_array
from etl.jit import njit
from etl.text import ALONE_RANGES, TABLE_SIZE, categories, every_character

CANARY_BIT: Final = np.int64(62)
LEVEL_BIT: Final = np.int64(57)
SCRIPT_BIT: Final = np.int64(52)
_ROW_MASK: Final = np.int64((1 << 52) - 1)
_SEED: Final = 0x63616E617279
_TOLERANCE: Final = 1e-12
_LEAST_TOKENS: Final = 24
"""A text with fewer tokens has too few n-grams to be edited to a level."""


CANARIES_VERSION: Final = 3
"""Increased when a row would get another copy; part of the fingerprint."""


SCRIPTS: Final = (
    "other", "latin", "cyrillic", "greek", "armenian", "georgian", "hebrew", "arabic", "syriac", "thaana", "devanagari",
    "bengali", "gurmukhi", "gujarati", "oriya", "tamil", "telugu", "kannada", "malayalam", "sinhala", "thai", "lao",
    "tibetan", "myanmar", "khmer", "ethiopic", "mongolian", "cherokee", "tifinagh", "han", "kana", "hangul",
)  # fmt: skip
"""The scripts by which recall is broken down; 32 fit into a row key."""
_NAMED: Final = {"CJK": "han", "HIRAGANA": "kana", "KATAKANA": "kana"}
_JUDGED_CHARACTERS: Final = 2000
_LATIN: Final = SCRIPTS.index("latin")
_ASCII_LETTER: Final = re.compile("[A-Za-z]")


@cache
def _script(char: str) -> int | None:
    """Place of a letter's script among SCRIPTS, by its name in Unicode; None for any other character."""
    if not char.isalpha():
        return None
    first = unicodedata.name(char, "OTHER").split()[0]
    name = _NAMED.get(first, first.lower())
    return SCRIPTS.index(name) if name in SCRIPTS else 0


def main_scripts(texts: pa.Array) -> I64:
    """The script of most letters at the beginning of each text, as a place among SCRIPTS: int64 [rows]."""
    return np.array([_main_script(text[:_JUDGED_CHARACTERS]) for text in texts.to_pylist()], np.int64)


def _main_script(text: str) -> int:
    if text.isascii():
        return _LATIN if _ASCII_LETTER.search(text) else 0
    counts: Counter[int] = Counter()
    for char, count in Counter(unicodedata.normalize("NFKC", text)).items():
        script = _script(char)
        if script is not None:
            counts[script] += count
    return max(counts, key=lambda script: (counts[script], -script)) if counts else 0


_WORD: Final = np.uint8(1)
_ALONE: Final = np.uint8(2)
_MARK: Final = np.uint8(4)
_SIGN: Final = np.uint8(8)


@cache
def _kinds() -> U8:
    """uint8 [2^21]: the role of a character in tokens; _ALONE only together with _WORD, and 0 for white space."""
    every = every_character()
    kinds = np.zeros(TABLE_SIZE, np.uint8)
    for run in re.finditer(r"\w+", every):
        kinds[run.start() : run.end()] = _WORD
    for first, last in ALONE_RANGES:
        kinds[first : last + 1] |= (kinds[first : last + 1] != 0) * _ALONE
    kinds[: len(every)][categories().astype("S1") == b"M"] |= _MARK
    for run in re.finditer(r"[^\w\s]+", every):
        kinds[run.start() : run.end()] |= (kinds[run.start() : run.end()] == 0) * _SIGN
    return kinds


@njit
def _spans(codes: U32, kinds: U8, signed: bool, out: I64) -> int:
    """Write where each token begins and ends; returns how many there are."""
    count, at = 0, 0
    while at < len(codes):
        kind = kinds[codes[at]]
        if kind & 1 == 0 and not (signed and kind & 8):
            at += 1
            continue
        out[count, 0] = at
        at += 1
        while kind & 1 and at < len(codes):
            after = kinds[codes[at]]
            if after & 4 == 0 and (kind & 2 or after & 3 != 1):
                break
            at += 1
        out[count, 1] = at
        count += 1
    return count


def token_spans(text: str, signed: bool) -> I64:
    """Where the tokens of a text, cut as near dedup cuts it, begin and end, in characters: int64 [tokens, 2].

    A token is a character of a script without spaces with its marks, a run of other word characters and marks that does
    not begin with a mark, or, if signs count, a visible sign.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    out = np.empty((len(codes), 2), np.int64)
    return out[: _spans(codes, _kinds(), signed, out)]


@njit
def is_canary(row: int) -> bool:
    """Whether a row key is that of a canary."""
    return row >> np.int64(62) != 0


@njit
def base_row(row: int) -> int:
    """The key of the row that a canary copies; for a row, its own key."""
    return int(row & np.int64((1 << 52) - 1))


@njit
def kind_of(row: int) -> int:
    """32 · level + script of a canary."""
    return int((row >> np.int64(52)) & np.int64(1023))


def canary_rows(rows: I64, levels: I64, scripts: I64 | int = 0) -> I64:
    """Keys of canaries, with scripts as places among SCRIPTS: int64 [rows]."""
    assert not len(rows) or int(rows.max()) <= _ROW_MASK, "more splits than row keys leave room for"
    return rows | levels << LEVEL_BIT | np.int64(scripts) << SCRIPT_BIT | np.int64(1) << CANARY_BIT


def by_kind(counts: I64) -> dict[str, dict[str, int]]:
    """Level -> script -> canaries, from counts by `kind_of`: int64 [1024]."""
    found: dict[str, dict[str, int]] = {}
    for kind in np.flatnonzero(counts).tolist():
        found.setdefault(str(kind // 32), {})[SCRIPTS[kind % 32]] = int(counts[kind])
    return found


def bases(rows: I64) -> I64:
    """`base_row` of row keys, int64 [rows]."""
    return rows & _ROW_MASK


def which_canaries(rows: I64) -> npt.NDArray[np.bool_]:
    """`is_canary` of row keys, bool [rows]."""
    return rows >> CANARY_BIT != 0


@dataclass(frozen=True)
class Levels:
    """The ranges of Jaccard similarity in which canaries are counted: two below a threshold, and those above it."""

    threshold: float

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """Where each level begins, ascending; the last one is exactly 1."""
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
        """Whether rows of this similarity are to be found."""
        return self.edges[level] >= self.threshold - _TOLERANCE


def edited(text: str, target: float, span: Callable[[int], float], signed: bool, seed: int) -> str | None:
    """A copy in which some tokens are replaced by words that occur nowhere else; None for a short text.

    If r of m n-grams are replaced by as many new ones, J = (m - r) / (m + r). A single edit inside the text replaces as
    many n-grams as an n-gram has tokens. One that is fewer tokens from the end replaces only that many, which makes up
    the rest.

    Args:
        text: of a row.
        target: similarity to aim at; 1 changes only case and white space.
        span: tokens of an n-gram, on average, in a text of this many tokens.
        signed: whether visible signs are tokens.
        seed: decides which tokens.
    """
    tokens = token_spans(text, signed)
    if len(tokens) < _LEAST_TOKENS:
        return None
    if target == 1:
        return "\n" + text.replace(" ", "  ") + " "
    random = Random(seed)  # noqa: S311  # edits, no secrets
    length = span(len(tokens))
    ngrams = len(tokens) - length + 1
    gone = max(1, int(ngrams * (1 - target) / (1 + target) + random.random()))
    count, rest = int(gone / length), round(gone % length)
    inside = len(tokens) - rest - round(length)
    places = [int((number + random.random()) * inside / count) for number in range(count)]
    pieces, at = [], 0
    for place in [*places, len(tokens) - rest] if rest else places:
        start, end = tokens[place].tolist()
        pieces += [text[at:start], f" x{random.getrandbits(48):012x} "]
        at = end
    return "".join([*pieces, text[at:]])


def drawn_levels(ids: pa.Array, levels: Levels) -> I64:
    """The level that each row's canary aims at, by a hash of the id: int64 [rows]."""
    return (hash_array(ids, _SEED) % np.uint64(len(levels.edges))).astype(np.int64)


def edit_all(ids: pa.Array, texts: pa.Array, levels: Levels, span: Callable[[int], float], signed: Bools) -> pa.Array:
    """The edited copy of each text, null where it is too short: string [rows].

    Args:
        ids: binary(16) [rows]; with the text they decide the edits.
        texts: string [rows].
        levels: from which each canary draws one to aim at.
        span: as in `edited`.
        signed: bool [rows], in which texts visible signs are tokens.
    """
    seeds = hash_array(ids, _SEED + 1)
    made = []
    rows = zip(texts.to_pylist(), drawn_levels(ids, levels), seeds, signed.tolist(), strict=True)
    for text, level, seed, with_signs in rows:
        made.append(edited(text, levels.target(int(level)), span, with_signs, int(seed)))
    return pa.array(made, pa.string())


def similarities(one: tuple[I64, U64], other: tuple[I64, U64]) -> npt.NDArray[np.float64]:
    """Jaccard of the sets of equal rows of two lists of sets (offsets, hashes): float64 [rows]."""
    offsets = np.concatenate([one[0], one[0][-1] + other[0][1:]])
    rows = np.arange(len(one[0]) - 1, dtype=np.int64)
    return jaccard_pairs(offsets, np.concatenate([one[1][: one[0][-1]], other[1]]), rows, rows + len(rows))
