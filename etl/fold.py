"""One form for texts that Unicode can write in several: NFKC, by a table of code points.

Composed and decomposed letters, full-width and half-width forms, ligatures and presentation forms become one text, so
that the same words typed on two systems have the same n-grams. A key to compare, not a text to keep: `x²` becomes `x2`.
Arrow 25 has no NFKC (its form of that name gives NFKD).

A kernel skips rows that do not change (all of ASCII, most text of most languages) and writes the others character by
character. Only rows in which a mark may join the letter before it, or marks are out of order (decomposed text, some
Indic and Myanmar vowel signs), go through `unicodedata.normalize` one by one. Measured on one core: ASCII at 3 GB/s,
other unchanged text at 290 MB/s, Chinese at 90 MB/s, decomposed text at 20 MB/s. The tables take 0.1 s once per
process. Memory: one copy of the array, or none if nothing changes.
"""

import functools
import itertools
import unicodedata
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64, U8, U32, Bools
from etl.hashing import binary_buffers
from etl.jit import njit
from etl.text import TABLE_SIZE, decode, word_table

FOLD_VERSION: Final = 1
"""Increased when the form of any text changes; part of the fingerprint of every step that folds."""

_LAST_CHANGED: Final = 0x30000
"""No character from here on has another form or a combining class (but the tags, which have neither)."""
_JOINS: Final = 255
"""In place of a combining class: the character may join the one before it."""
_AT_ONCE: Final = 32
"""ASCII characters read together."""
FOLDS: Final = np.uint32(1 << 31)
"""In a table of letters: the character has another form or a combining class."""


@functools.cache
def _tables() -> tuple[U32, I64, U8, U8, U8]:
    """How each code point folds.

    Returns:
        uint32 [2^21], the number of a character's form, 0 for itself; the forms' offsets and UTF-8 bytes; uint8 [2^21]
        twice, the combining classes of the form's first and last character, with _JOINS for a first that may join.
    """
    number = np.zeros(TABLE_SIZE, np.uint32)
    first, last = np.zeros(TABLE_SIZE, np.uint8), np.zeros(TABLE_SIZE, np.uint8)
    forms, joining = [b""], set(map(chr, (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))))
    for code in (code for code in range(0x80, _LAST_CHANGED) if not 0xD800 <= code < 0xE000):
        char = chr(code)
        form = unicodedata.normalize("NFKC", char)
        first[code], last[code] = unicodedata.combining(form[0]), unicodedata.combining(form[-1])
        if form != char:
            number[code] = len(forms)
            forms.append(form.encode())
        parts = unicodedata.decomposition(char)
        if parts and parts[0] != "<" and " " in parts:
            joining.add(chr(int(parts.split()[1], 16)))
    for code in np.flatnonzero(number).tolist():
        if forms[number[code]].decode()[0] in joining:
            first[code] = _JOINS
    first[[ord(char) for char in joining]] = _JOINS
    offsets = np.cumsum([0, *map(len, forms)])
    return number, offsets.astype(np.int64), np.frombuffer(b"".join(forms), np.uint8), first, last


@njit
def _scan(data: U8, offsets: I64, plain: Bools, number: U32, forms: I64, first: U8, last: U8, kinds: U8) -> int:
    """Set the kind of each row: unchanged (0), written by the table (1) or Python (2); returns the bytes afterwards."""
    size = 0
    for row in range(len(kinds)):
        at, end = offsets[row], offsets[row + 1]
        size += end - at
        if plain[row]:
            continue
        before = 0
        kind = 0
        while at < end:
            if data[at] < 0x80:
                at += 1
                before = 0
                continue
            code, after = decode(data, at, end)
            form = number[code]
            if form:
                kind = max(kind, 1)
                size += forms[form + 1] - forms[form] - (after - at)
            combining = first[code]
            if combining == 255 or 0 < combining < before:
                kind = 2
            before = last[code]
            at = after
        kinds[row] = kind
    return size


@njit
def _write(data: U8, offsets: I64, kinds: U8, number: U32, forms: I64, letters: U8, out: U8, out_offsets: I64) -> None:
    """Write each row by the table; rows of kind 0 and 2 are copied."""
    size = 0
    for row in range(len(kinds)):
        out_offsets[row] = size
        at, end = offsets[row], offsets[row + 1]
        while at < end:
            code, after = decode(data, at, end) if data[at] >= 0x80 else (np.int64(0), at + 1)
            form = number[code] if kinds[row] == 1 else 0
            if form:
                for i in range(forms[form], forms[form + 1]):
                    out[size] = letters[i]
                    size += 1
            else:
                for i in range(at, after):
                    out[size] = data[i]
                    size += 1
            at = after
    out_offsets[len(kinds)] = size


@functools.cache
def letter_forms() -> tuple[U32, I64, U32, U8, U8]:
    """The tables for `read_folded`: `_tables`, with forms in code points and _JOINS also if lower case needs Python."""
    number, offsets, forms, first, last = _tables()
    first = first.copy()
    texts = [bytes(forms[start:end]).decode() for start, end in itertools.pairwise(offsets.tolist())]
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    for char in word_table()[1]:
        first[ord(char)] = _JOINS
        holds = np.array([char in text for text in texts])
        first[holds[number]] = _JOINS
    return number, np.cumsum([0, *map(len, texts)]), codes, first, last


def marked(letters: U32) -> U32:
    """A table of letters, uint32 [2^21] below 2^31, with FOLDS set for those that `read_folded` looks at again."""
    number, _, _, first, last = letter_forms()
    return letters | ((number != 0) | (first != 0) | (last != 0)) * FOLDS


@njit
def _read_ascii(data: U8, letters: U32, out: U32) -> tuple[int, np.uint32]:
    """Write the letters of the ASCII characters at the start of a text; returns their number and the bits they have.

    Works on slices of a fixed length, so that the compiler sees that no index is out of bounds.
    """
    num, kinds = 0, np.uint32(0)
    while num + _AT_ONCE <= len(data):
        some, to = data[num : num + _AT_ONCE], out[num : num + _AT_ONCE]
        seen = np.uint8(0)
        for i in range(_AT_ONCE):
            seen |= some[i]
        if seen >= 0x80:
            break
        for i in range(_AT_ONCE):
            to[i] = letters[some[i]]
            kinds |= to[i]
        num += _AT_ONCE
    while num < len(data) and data[num] < 0x80:
        out[num] = letters[data[num]]
        kinds |= out[num]
        num += 1
    return num, kinds


@njit
def read_folded(
    data: U8, at: int, end: int, letters: U32, number: U32, forms: I64, codes: U32, first: U8, last: U8, out: U32
) -> tuple[int, np.uint32]:
    """Write the letter of each character of the folded text; returns their number and the bits that any of them has.

    Args:
        data: UTF-8.
        at: where the text begins.
        end: where it ends.
        letters: from `marked`, uint32 [2^21].
        number: this and the next four are from `letter_forms`.
        forms: offsets into `codes`.
        codes: code points of the forms.
        first: combining classes, or _JOINS.
        last: combining classes.
        out: longer than the text by as much as its forms may be longer.

    Returns:
        The number of letters and the bits; -1 if the text needs `fold` and `etl.text.lowered`: a mark may join, marks
        are out of order, a character has no lower case of its own, or `out` is too short.
    """
    count = 0
    kinds = np.uint32(0)
    before = np.uint8(0)
    while at < end:
        if data[at] < 0x80:
            num, seen = _read_ascii(data[at:end], letters, out[count:])
            at, count, kinds = at + num, count + num, kinds | seen
            before = np.uint8(0)
            continue
        code, at = decode(data, at, end)
        letter = letters[code]
        if letter & FOLDS == 0:
            out[count] = letter
            count, kinds = count + 1, kinds | letter
            before = np.uint8(0)
            continue
        combining = first[code]
        if combining == 255 or 0 < combining < before:
            return -1, kinds
        before = last[code]
        form = number[code]
        if form == 0:
            out[count] = letter & ~FOLDS
            count, kinds = count + 1, kinds | out[count]
            continue
        if count + forms[form + 1] - forms[form] + end - at > len(out):
            return -1, kinds
        for i in range(forms[form], forms[form + 1]):
            out[count] = letters[codes[i]] & ~FOLDS
            count, kinds = count + 1, kinds | out[count]
    return count, kinds


def fold(texts: pa.Array) -> pa.Array:
    """Equal to `unicodedata.normalize("NFKC", text)` of each text; nulls remain null.

    Args:
        texts: string or large_string [rows], valid UTF-8.

    Returns:
        The same type and length; the array itself if nothing changes.
    """
    plain = pc.fill_null(pc.string_is_ascii(texts), True).to_numpy(zero_copy_only=False)
    if plain.all():
        return texts
    data, offsets = binary_buffers(texts)
    number, forms, letters, first, last = _tables()
    kinds = np.zeros(len(texts), np.uint8)
    size = _scan(data, offsets, plain, number, forms, first, last, kinds)
    folded = texts
    if (kinds == 1).any():
        width = np.int32 if pa.types.is_string(texts.type) else np.int64
        most = max(size, 0) + int(offsets[-1] - offsets[0])
        out, out_offsets = np.empty(most, np.uint8), np.zeros(len(texts) + 1, np.int64)
        _write(data, offsets, kinds, number, forms, letters, out, out_offsets)
        valid = np.packbits(texts.is_valid().to_numpy(zero_copy_only=False), bitorder="little")
        mask = pa.py_buffer(valid) if texts.null_count else None
        buffers = [mask, pa.py_buffer(out_offsets.astype(width)), pa.py_buffer(out[: out_offsets[-1]].copy())]
        folded = pa.Array.from_buffers(texts.type, len(texts), buffers)
    joined = pc.and_(pa.array(kinds == 2), texts.is_valid())
    if (kinds == 2).any():
        forms_of = [unicodedata.normalize("NFKC", text) for text in texts.filter(joined).to_pylist()]
        folded = pc.replace_with_mask(folded, joined, pa.array(forms_of, texts.type))
    return folded
