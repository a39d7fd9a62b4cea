"""Folds the words of texts to Unicode's form NFKC, and maps positions in that form back to the original text.

A text typed with full-width signs, or composed in another way, has the same words. Most of the work is a table: a
character whose form is one character is read as that character (`single_forms`). Rows that hold any other (marks that
compose with the character before them, ligatures, `㎏`) are normalised one by one as Python strings. They are few in
usual text, and many in Thai and in the scripts of India. Finding them costs a pass over the rows that are not ASCII.
"""

import functools
import itertools
import unicodedata
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64, U8, U32
from etl.hashing import binary_buffers
from etl.jit import njit
from etl.text import decode

_FORM: Final[Literal["NFKC"]] = "NFKC"
_LAST: Final = 0x30000
"""No character from here on has another form."""
_JAMO: Final = (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))
"""Vowels and final consonants of Hangul, which compose by rule with the character before them."""


@functools.cache
def _composing() -> frozenset[str]:
    """The characters that merge with the one before them."""
    decomposed = _changed("NFD").values()
    return frozenset([*map(chr, _JAMO), *(letter for form in decomposed for letter in form[1:])])


def _changed(form: Literal["NFD", "NFKC"]) -> dict[str, str]:
    """The characters that a normal form replaces, and their replacements."""
    chars = list(map(chr, range(1, _LAST)))
    forms = unicodedata.normalize(form, "\0".join(chars)).split("\0")
    return {char: other for char, other in zip(chars, forms, strict=True) if other != char}


@functools.cache
def _tables() -> tuple[U32, U8]:
    """See `single_forms` and `rows_to_fold`: uint32 [2^21], uint8 [2^21]; made in about 0.2 s."""
    composing = _composing()
    singles = np.arange(1 << 21, dtype=np.uint32)
    others = np.zeros(1 << 21, np.uint8)
    others[list(map(ord, composing))] = 1
    for char, form in _changed(_FORM).items():
        is_sign = len(form) > 1 and not any(letter == "_" or letter.isalnum() for letter in form)
        if form == "\\" or any(letter in composing for letter in form) or (len(form) > 1 and not is_sign):
            others[ord(char)] = 1
        singles[ord(char)] = ord(" " if is_sign else form[0])
    return singles, others


def single_forms() -> U32:
    """The code point that each character is read as: [2^21].

    It is that of its form if the form is one character, and a space if the form is only signs. The entries of
    characters that `rows_to_fold` looks for mean nothing.
    """
    return _tables()[0]


@njit
def _hold(data: U8, offsets: I64, rows: I64, wanted: U8, out: U8) -> None:
    """Mark the rows that hold a wanted character."""
    for row in rows:
        at, end = offsets[row], offsets[row + 1]
        while at < end:
            if data[at] < 0x80:
                at += 1
                continue
            code, at = decode(data, at, end)
            if wanted[code]:
                out[row] = 1
                break


def rows_to_fold(texts: pa.StringArray) -> I64:
    """Numbers of the rows whose form differs from that of their characters one by one, ascending."""
    data, offsets = binary_buffers(texts)
    other = np.flatnonzero(~pc.string_is_ascii(texts).to_numpy(zero_copy_only=False))
    out = np.zeros(len(texts), np.uint8)
    _hold(data, offsets, other, _tables()[1], out)
    return np.flatnonzero(out)


def fold(texts: pa.StringArray, rows: I64) -> pa.StringArray:
    """The texts, with those of some rows in form NFKC."""
    if len(rows) == 0:
        return texts
    forms = [unicodedata.normalize(_FORM, text) for text in texts.take(pa.array(rows)).to_pylist()]
    mask = np.zeros(len(texts), bool)
    mask[rows] = True
    return pc.replace_with_mask(texts, pa.array(mask), pa.array(forms, texts.type))


def places_before(text: str, starts: Sequence[int], ends: Sequence[int]) -> tuple[I64, I64]:
    """The bytes of a text to which bytes of its form correspond: whole characters with their composing marks.

    Args:
        text: as it was before `fold`.
        starts: bytes of its form at which something begins.
        ends: bytes of its form before which something ends.
    """
    bounds = [i for i, char in enumerate(text) if i == 0 or not _joins(char)] + [len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    before = np.cumsum([0, *(len(piece.encode()) for piece in pieces)])
    after = np.cumsum([0, *(len(unicodedata.normalize(_FORM, piece).encode()) for piece in pieces)])
    return before[np.searchsorted(after, starts, "right") - 1], before[np.searchsorted(after, ends, "left")]


def _joins(char: str) -> bool:
    """Whether a character may merge with the one before it, or change places with it."""
    return unicodedata.combining(char) > 0 or unicodedata.normalize(_FORM, char)[0] in _composing()
