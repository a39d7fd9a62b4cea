"""Paragraphs, lines and sentences of raw text: where they are, how they are compared, which bytes go with one.

A text is cut into units by a kernel over Arrow's UTF-8 buffers; no Python string is made. Units and the separators
between them cover the whole text, so a text that loses no unit keeps every byte.

    paragraph   ends before a blank line (or U+2029)
    line        ends at a line break: those of `str.splitlines`, where \\r\\n is one
    sentence    ends at a line break (as in Unicode's UAX #29), after . ! ? … and their like of other scripts where
                white space follows, and after 。 ！ ？ ｡ whatever follows; closing quotes and brackets belong to it

A unit begins with the indentation of its first line and ends before the white space that follows it. Of the separators
between two units that are kept, one is kept: the one with the most line breaks, the first of equals. Anything before
the first and after the last unit of a text is kept, unless no unit is: then nothing is left.

Words are runs without white space that hold a letter or digit; a letter of a script that is written without spaces
(Han, kana, Thai, Lao, Myanmar, Khmer) counts as a word. One core cuts about 100 MB of mixed text a second. Memory: 64
bytes a unit, and three times the bytes of the units that are hashed.
"""

import functools
import sys
import unicodedata
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from etl.arrays import I64, U8, U16, Bools
from etl.config import Config
from etl.hashing import binary_buffers, hash128
from etl.jit import njit
from etl.schema import RANGE
from etl.text import ALONE_RANGES, decode, normalise

UNITS_VERSION: Final = 1
"""Increased when a text would be cut in another way or a unit would get another hash; part of the fingerprint."""

UnitKind = Literal["paragraph", "line", "sentence"]
_KINDS: Final = ("paragraph", "line", "sentence")
_PARAGRAPH, _LINE, _SENTENCE = 0, 1, 2


class UnitDedup(Config):
    """Remove units of raw documents that also occur in another document, or earlier in the same one.

    One copy is kept: that of the preferred row, then of the smallest id, then the first of its row.
    """

    unit: UnitKind
    """What to compare and remove."""
    min_words: int = Field(default=8, ge=1)
    """Shorter units are kept, as they repeat by chance. Of English sentences of 1, 3 and 5 words, 80 %, 23 % and 14 %
    occur twice in 46,000 documents; from 8 words on it is 10 %, mostly copies."""
    min_left_words: int | None = Field(default=None, ge=1)
    """A document that lost a unit is dropped if it has fewer words left than this; null: min_words. It may not exceed
    min_words, so that the document with the kept copy is never dropped."""

    @property
    def fewest_left(self) -> int:
        """Words that a document which lost a unit must have left."""
        return self.min_words if self.min_left_words is None else self.min_left_words

    @model_validator(mode="after")
    def _keeps_a_copy(self) -> "UnitDedup":
        if self.fewest_left > self.min_words:
            raise ValueError(
                f"min_left_words={self.min_left_words} is more than min_words={self.min_words}: a document could be "
                "dropped with the only copy of a unit; lower min_left_words or raise min_words"
            )
        return self


_SPACE: Final = 1
_BREAK: Final = 2  # a line break
_PARAGRAPH_BREAK: Final = 4  # as good as two
_WORD: Final = 8  # a letter or digit
_ALONE: Final = 16  # one that is a word of its own
_END: Final = 32  # ends a sentence where white space follows
_WIDE_END: Final = 64  # ends a sentence
_CLOSING: Final = 128  # belongs to the sentence that has ended
_QUOTE: Final = 256  # the same, but if the sentence ended without white space, it opens the next one

_ENDS: Final = ".!?…։؝؞؟۔܀܁܂߹।॥၊။።፧፨᙮។៕᠃᠉‼‽⁇⁈⁉⸮．﹒﹖﹗"
_WIDE_ENDS: Final = "。！？｡"


@functools.cache
def _classes() -> U16:
    """uint16 [2^21]: the class of each code point, built from Python's own tables in about 0.3 s."""
    table = np.zeros(1 << 21, np.uint16)
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        if char.isalnum():
            table[code] = _WORD
        elif char.isspace():
            table[code] = _SPACE
        else:
            kind = unicodedata.category(char)
            if kind in ("Pe", "Pf", "Mn", "Me", "Mc", "Cf"):
                table[code] = _CLOSING
            elif kind == "Pi":
                table[code] = _QUOTE
    for first, last in ALONE_RANGES:
        table[first : last + 1] |= (table[first : last + 1] == _WORD) * np.uint16(_ALONE)
    for char in "\n\v\f\r\x1c\x1d\x1e\x85\u2028":
        table[ord(char)] |= _BREAK
    table[0x2029] |= _PARAGRAPH_BREAK
    for chars, flag in (("\"'", _CLOSING), (_ENDS, _END), (_WIDE_ENDS, _WIDE_END)):
        table[[ord(char) for char in chars]] = flag
    return table


@dataclass(frozen=True)
class Units:
    """The units of some texts, flattened: text t has the units offsets[t]:offsets[t + 1], in order."""

    offsets: I64
    """[texts + 1]"""
    start: I64
    """[units]: first byte in the text."""
    end: I64
    """[units]: after the last byte."""
    num_words: I64
    """[units]"""
    num_breaks: I64
    """[units]: line breaks in the separator that follows."""

    def __len__(self) -> int:
        return len(self.start)

    @property
    def text(self) -> I64:
        """[units]: number of the text."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def words_left(self, lost: Bools) -> I64:
        """[texts]: words of the units that are not lost."""
        sums = np.concatenate([[0], np.cumsum(np.where(lost, 0, self.num_words))])
        return sums[self.offsets[1:]] - sums[self.offsets[:-1]]


@njit
def _ends_here(kind: int, gap: bool, breaks: int, ended: int, flags: np.int64) -> bool:
    """Whether a unit ends before a character that is not white space.

    Args:
        kind: of unit.
        gap: there is white space before the character.
        breaks: line breaks in that white space.
        ended: 1 after the end of a sentence that needs white space after it, 2 after one that does not.
        flags: of the character.
    """
    if kind == _PARAGRAPH:
        return breaks >= 2
    if kind == _LINE or breaks >= 1:
        return breaks >= 1
    if gap:
        return ended > 0
    return ended == 2 and flags & (_END | _WIDE_END | _CLOSING) == 0


@njit
def _cut(data: U8, offsets: I64, valid: U8, classes: U16, kind: int, unit_offsets: I64) -> I64:
    """int64 [units, 4]: start and end in the buffer, words, breaks after it."""
    out = np.empty((max(64, (offsets[-1] - offsets[0]) // 64), 4), np.int64)
    size = 0
    for row in range(len(valid)):
        unit_offsets[row] = size
        at, end = offsets[row], offsets[row + 1]
        if valid[row] == 0:
            at = end
        start, unit_end, words, breaks, ended = np.int64(-1), at, 0, 1, 0
        line = at  # where the line began
        in_word = False
        after_return = False
        while at < end:
            code, after = decode(data, at, end)
            flags = np.int64(classes[code])
            if flags == _WORD and breaks | ended == 0:  # most characters: no unit can end here
                words += not in_word
                in_word = True
                while after < end and data[after] < 0x80 and classes[data[after]] == _WORD:
                    after += 1
                unit_end = after
                at = after
                continue
            if flags == _SPACE:
                in_word = False
                after_return = False
                at = after
                continue
            if flags & _SPACE:
                if flags & _PARAGRAPH_BREAK:
                    breaks += 2
                    line = after
                elif flags & _BREAK:
                    if code != 10 or not after_return:
                        breaks += 1
                    line = after
                in_word = False
                after_return = code == 13
                at = after
                continue
            if start < 0:
                start = line
            elif _ends_here(kind, at > unit_end, breaks, ended, flags):
                if size == len(out):
                    out = np.concatenate((out, np.empty_like(out)))
                out[size, 0], out[size, 1], out[size, 2], out[size, 3] = start, unit_end, words, breaks
                size += 1
                start = line if breaks > 0 else at
                words, ended, in_word = 0, 0, False
            if flags & _ALONE:
                words += 1
                in_word = False
            elif flags & _WORD and not in_word:
                words += 1
                in_word = True
            if flags & _WIDE_END:
                ended = 2
            elif flags & _END:
                ended = max(ended, 1)
            elif flags & (_CLOSING | _QUOTE) == 0:
                ended = 0
            breaks = 0
            after_return = False
            unit_end = after
            at = after
        if start >= 0:
            if size == len(out):
                out = np.concatenate((out, np.empty_like(out)))
            out[size, 0], out[size, 1], out[size, 2], out[size, 3] = start, unit_end, words, breaks
            size += 1
    unit_offsets[len(valid)] = size
    return out[:size]


def cut(texts: pa.Array, kind: UnitKind) -> Units:
    """The units of each text.

    Args:
        texts: string or large_string [texts]; a null has no unit.
        kind: of unit.
    """
    data, offsets = binary_buffers(texts)
    valid = texts.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
    unit_offsets = np.zeros(len(texts) + 1, np.int64)
    found = _cut(data, offsets, valid, _classes(), _KINDS.index(kind), unit_offsets)
    first = np.repeat(offsets[:-1], np.diff(unit_offsets))
    return Units(unit_offsets, found[:, 0] - first, found[:, 1] - first, found[:, 2].copy(), found[:, 3].copy())


@njit
def _gather(data: U8, starts: I64, ends: I64, out: U8, out_offsets: I64) -> None:
    size = 0
    for i in range(len(starts)):
        out_offsets[i] = size
        for at in range(starts[i], ends[i]):
            out[size] = data[at]
            size += 1
    out_offsets[len(starts)] = size


def hash_units(texts: pa.Array, units: Units, chosen: I64) -> pa.Array:
    """The hash of some units in the normal form of exact duplicates (`etl.text.normalise`).

    Args:
        texts: those that `units` was cut from.
        units: of the texts.
        chosen: numbers of units, ascending.

    Returns:
        binary(16) [chosen].
    """
    data, offsets = binary_buffers(texts)
    first = offsets[units.text[chosen]]
    starts, ends = first + units.start[chosen], first + units.end[chosen]
    out = np.empty(int((ends - starts).sum()), np.uint8)
    out_offsets = np.empty(len(chosen) + 1, np.int64)
    _gather(data, starts, ends, out, out_offsets)
    buffers = [None, pa.py_buffer(out_offsets), pa.py_buffer(out)]
    return hash128([normalise(pa.Array.from_buffers(pa.large_string(), len(chosen), buffers))])


@njit
def _strongest(breaks: I64, first: int, last: int) -> int:
    """The first of the separators first … last - 1 that have the most line breaks."""
    best = first
    for i in range(first + 1, last):
        if breaks[i] > breaks[best]:
            best = i
    return best


@njit
def _lost_ranges(
    offsets: I64, start: I64, end: I64, breaks: I64, lost: Bools, sizes: I64, out_offsets: I64, out: I64
) -> None:
    """Write the ranges of each text to `out` [ranges, 2]: at most two per lost unit, and one more per text."""
    size = 0
    for text in range(len(sizes)):
        out_offsets[text] = size
        first, last = offsets[text], offsets[text + 1]
        kept = -1
        for i in range(first, last):
            if lost[i]:
                continue
            if kept < 0 and i > first:
                out[size, 0], out[size, 1] = start[first], start[i]
                size += 1
            elif kept >= 0 and i > kept + 1:
                stays = _strongest(breaks, kept, i)
                if stays > kept:
                    out[size, 0], out[size, 1] = end[kept], end[stays]
                    size += 1
                if stays < i - 1:
                    out[size, 0], out[size, 1] = start[stays + 1], start[i]
                    size += 1
            kept = i
        if first < last and kept < 0:
            out[size, 0], out[size, 1] = 0, sizes[text]
            size += 1
        elif kept >= 0 and kept < last - 1:
            out[size, 0], out[size, 1] = end[kept], end[last - 1]
            size += 1
    out_offsets[len(sizes)] = size


def lost_ranges(texts: pa.Array, units: Units, lost: Bools) -> pa.ListArray:
    """The ranges to remove from each text to drop some units: list<struct<start, end>> [texts], bytes, ascending.

    Args:
        texts: those that `units` was cut from.
        units: of the texts.
        lost: bool [units].
    """
    _, text_offsets = binary_buffers(texts)
    sizes = np.diff(text_offsets)
    out_offsets = np.zeros(len(texts) + 1, np.int64)
    out = np.empty((2 * int(lost.sum()) + len(texts), 2), np.int64)
    _lost_ranges(units.offsets, units.start, units.end, units.num_breaks, lost, sizes, out_offsets, out)
    bounds = [pa.array(out[: out_offsets[-1], i], pa.int32()) for i in (0, 1)]
    ranges = pa.StructArray.from_arrays(bounds, fields=list(RANGE))
    return pa.ListArray.from_arrays(pa.array(out_offsets, pa.int32()), ranges)
