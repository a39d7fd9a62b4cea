"""The words of texts for the n-gram index, hashed by kernels on Arrow's buffers.

Words are those of `etl.text` (`\\w+` of the lower-cased text) in the form NFKC, except that a number is one word and
each character of a script without spaces is one. `Words` has the options. A word is its hash, uint64. Costs one pass
over the bytes, 18 MB of tables and half a second a process.
"""

import functools
import sys
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from etl.arrays import I64, U8, U32, U64
from etl.filters.ngram_fold import fold, rows_to_fold, single_forms
from etl.hashing import binary_buffers
from etl.jit import njit
from etl.text import ALONE_RANGES, decode, word_table

Int = int | np.signedinteger[Any]

_TOKEN_START: Final = np.uint64(0x2545F4914F6CDD1D)
_TOKEN_MULTIPLIER: Final = np.uint64(0xD6E8FEB86659FD93)  # odd, with well spread bits
ROOM: Final = 1024
"""Initial room of a buffer, in entries; it doubles when it is full."""
_CODE: Final = 0x1FFFFF
_IDEOGRAPHS: Final = (0x3005, 0x3400, 0x4E00, 0xF900, 0x20000)
"""Where the ranges of ideographs begin, among those of scripts without spaces."""
_IDEOGRAPH: Final = 1 << 29
_ALONE: Final = 1 << 30
_DIGIT: Final = 1 << 31
_POINT: Final = 0x2E
WORD: Final = 0
NUMBER: Final = 1
IDEOGRAPH: Final = 2
LETTER: Final = 3
"""Classes of words: of letters, a number, one ideograph, one letter of a script without spaces."""
CONTENT: Final = np.array([1.0, 1.0, 0.7, 0.25])
"""The worth of a word of each class in words of English, by the lengths of the Universal Declaration of Human Rights:
1,687 words in English, 2,430 ideographs in Mandarin (0.69), 3,600 in Japanese (kana 0.28), 6,000 to 7,300 letters in
Thai, Lao, Khmer and Burmese (0.23 to 0.28)."""
_BACKSLASH: Final = 0x5C
_ZERO: Final = np.uint64(0x30)
_MASKED: Final = np.uint64(0xD1B54A32D192ED03)
"""The token of every number if numbers are read as the same."""
_LAYOUT: Final = """
left right middle big bigl bigr bigm bigg biggl biggr biggm quad qquad displaystyle textstyle scriptstyle limits
nolimits text textrm textbf textit mathrm mathbf mathit mbox hbox operatorname
"""
"""LaTeX commands that change how a formula looks, not what it says; names are compared in lower case."""
_FRACTIONS: Final = ("frac", "dfrac", "tfrac", "cfrac")


class Splitter(NamedTuple):
    """The tables by which the kernels find words."""

    table: U32
    """Lower-case code point of a word character, with the bit 2^31 for a digit, 2^30 for a character that is a word of
    its own and 2^29 if that is an ideograph; 0 for all else: [2^21]."""
    layout: U64
    """Hashes of the commands that are skipped."""
    fractions: U64
    """Hashes of `frac` and its other sizes."""
    latex: bool
    mask_numbers: bool


@dataclass(frozen=True)
class Words:
    """How a text becomes words.

    Without options they are `re.findall(r"\\w+", text.lower())`, except that `2.5` is one word, `1,600` is `1600`, a
    character of a script without spaces is a word, `İ` is read as `i` and both forms of the small sigma as one.
    """

    latex: bool
    """LaTeX is read for its meaning: `_` and a change between letters and digits end a word, `\\name` is a word of
    its own, commands of layout (`\\left`, `\\text`, `\\quad` …) and `\\\\` are skipped, `\\dfrac` is `\\frac`."""
    mask_numbers: bool
    """Every number, `\\d+([.,]\\d+)*`, is read as `0`."""


@functools.cache
def splitter_of(words: Words) -> Splitter:
    """The tables of the kernels; 0.2 s once a process."""
    table = word_table()[0].copy()
    table[ord("İ")] = ord("i")
    table[[ord("Σ"), ord("ς")]] = ord("σ")
    if words.latex:
        table[ord("_")] = 0
    table[[code for code in range(sys.maxunicode + 1) if chr(code).isdecimal()]] |= np.uint32(_DIGIT)
    for first, last in ALONE_RANGES:
        letters = table[first : last + 1]
        flags = _ALONE | (_IDEOGRAPH if first in _IDEOGRAPHS else 0)
        letters[(letters != 0) & (letters & _DIGIT == 0)] |= np.uint32(flags)
    table = table[single_forms()]
    layout = np.array([word_hash(name) for name in _LAYOUT.split()], np.uint64)
    fractions = np.array([word_hash(name) for name in _FRACTIONS], np.uint64)
    return Splitter(table, layout, fractions, words.latex, words.mask_numbers)


@njit
def _mix(token: np.uint64, code: np.uint64) -> np.uint64:
    token = (token ^ code) * _TOKEN_MULTIPLIER
    return token ^ (token >> np.uint64(32))


@njit
def _hash_codes(codes: U64) -> np.uint64:
    token = _TOKEN_START
    for code in codes:
        token = _mix(token, code)
    return token


def word_hash(word: str) -> np.uint64:
    """The hash of one word in lower case."""
    return _hash_codes(np.array([ord(letter) for letter in word], np.uint64))


@njit
def _is_ascii_letter(code: Int) -> bool:
    return bool(65 <= code <= 90 or 97 <= code <= 122)


@njit
def _number_end(data: U8, at: int, end: int, table: U32) -> int:
    """The end of the number whose first digit is just before `at`."""
    while at < end:
        code, after = decode(data, at, end)
        if table[code] & _DIGIT:
            at = after
            continue
        if not (_is_point(code) or _is_comma(code)) or after >= end:
            return at
        code, after = decode(data, after, end)
        if not table[code] & _DIGIT:
            return at
        at = after
    return at


@njit
def _is_point(code: Int) -> bool:
    """`.` and its full-width and other forms."""
    return bool(code in (0x2E, 0xFF0E, 0x2024, 0xFE52))


@njit
def _is_comma(code: Int) -> bool:
    return bool(code in (0x2C, 0xFF0C, 0xFE10, 0xFE50))


@njit
def _goes_on(code: Int, data: U8, at: int, end: int, table: U32) -> bool:
    """Whether a number continues after the sign `code`, as in `2.5` and `1,600`."""
    if not (_is_point(code) or _is_comma(code)):
        return False
    num_digits = 0
    while at < end and num_digits < 4:
        code_here, at = decode(data, at, end)
        if not table[code_here] & _DIGIT:
            break
        num_digits += 1
    return num_digits == 3 if _is_comma(code) else num_digits > 0


@njit
def _class_of(first: Int, number: Int) -> int:
    if number:
        return NUMBER
    if not first & _ALONE:
        return WORD
    return IDEOGRAPH if first & _IDEOGRAPH else LETTER


class Row(NamedTuple):
    """The words of one text, with room for more: uint64, int64, int64 [room]."""

    tokens: U64
    """Hashes of the words."""
    starts: I64
    ends: I64
    """Bytes [start, end) of each word."""
    classes: U8
    """WORD, NUMBER, IDEOGRAPH or LETTER."""


@njit
def empty_row(room: int) -> Row:
    return Row(np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.uint8))


@njit
def _write_words(data: U8, at: int, end: int, splitter: Splitter, row: Row) -> int:
    """Write the words of data[at:end] into `row`, as far as there is room; returns how many there are."""
    table, latex, mask = splitter.table, splitter.latex, splitter.mask_numbers
    tokens, starts, ends = row.tokens, row.starts, row.ends
    parting = _ALONE | _DIGIT if latex else _ALONE  # a change of these ends a word
    num_words = 0
    while at < end:
        start = at
        code, at = decode(data, at, end)
        command = False
        if latex and code == _BACKSLASH and at < end:
            if data[at] == _BACKSLASH:
                at += 1
                continue
            if _is_ascii_letter(data[at]):
                command = True
                code, at = decode(data, at, end)
        letter = np.int64(table[code])
        if letter == 0:
            continue
        first = letter
        number = letter & _DIGIT  # as long as the word is only digits
        token = _TOKEN_START
        while True:
            if mask and letter & _DIGIT:
                token = _mix(token, _ZERO)
                at = _number_end(data, at, end, table)
            else:
                token = _mix(token, np.uint64(letter & _CODE))
            if first & _ALONE or at >= end:
                break
            code, after = decode(data, at, end)
            letter = np.int64(table[code])
            if letter == 0:
                if not (number and _goes_on(code, data, after, end, table)):
                    break
                if _is_point(code):
                    token = _mix(token, np.uint64(_POINT))
                code, after = decode(data, after, end)
                letter = np.int64(table[code])
            elif (letter ^ first) & parting or (command and not _is_ascii_letter(code)):
                break
            number &= letter
            at = after
        if command:
            if _is_one_of(token, splitter.layout):
                continue
            if _is_one_of(token, splitter.fractions):
                token = splitter.fractions[0]
        if num_words < len(tokens):
            tokens[num_words], starts[num_words], ends[num_words] = token, start, at
            row.classes[num_words] = _class_of(first, number)
        num_words += 1
    return num_words


@njit
def split_text(data: U8, at: int, end: int, splitter: Splitter, row: Row) -> tuple[Row, int]:
    """The words of data[at:end] in `row`, or in a larger one if they need it, and how many there are.

    The loop over words merely counts those for which there is no room: with an array that can grow it would run at a
    quarter of the speed.
    """
    num_words = _write_words(data, at, end, splitter, row)
    if num_words > len(row.tokens):
        row = empty_row(2 * num_words)
        _write_words(data, at, end, splitter, row)
    return row, num_words


@njit
def _is_one_of(token: np.uint64, tokens: U64) -> bool:
    for each in tokens:  # noqa: SIM110  # a generator would not compile
        if token == each:
            return True
    return False


class Split(NamedTuple):
    """The words of some texts, one text after another."""

    tokens: U64
    """Hashes of the words: [words]."""
    classes: U8
    """The class of each, as in `Row`: [words]."""
    bounds: I64
    """Where the words of each text begin: [texts + 1]."""


@njit
def _split_all(data: U8, offsets: I64, splitter: Splitter) -> Split:
    tokens = np.empty((offsets[-1] - offsets[0]) + 1, np.uint64)  # a word takes a byte at least
    classes = np.empty(len(tokens), np.uint8)
    bounds = np.zeros(len(offsets), np.int64)
    row = empty_row(ROOM)
    for text in range(len(offsets) - 1):
        row, num_words = split_text(data, offsets[text], offsets[text + 1], splitter, row)
        bounds[text + 1] = bounds[text] + num_words
        tokens[bounds[text] : bounds[text + 1]] = row.tokens[:num_words]
        classes[bounds[text] : bounds[text + 1]] = row.classes[:num_words]
    return Split(tokens[: bounds[-1]].copy(), classes[: bounds[-1]].copy(), bounds)


def split_texts(texts: pa.StringArray, words: Words) -> Split:
    """The words of each text."""
    data, offsets = read_only(fold(texts, rows_to_fold(texts)))
    return _split_all(data, offsets, splitter_of(words))


@njit
def masked_token(token: np.uint64, kind: Int) -> np.uint64:
    """The token of a word with every number read as the same."""
    return _MASKED if kind == NUMBER else token


def masked(tokens: U64, classes: U8) -> U64:
    """The tokens with every number read as the same."""
    return np.where(classes == NUMBER, _MASKED, tokens)


def read_only(texts: pa.StringArray) -> tuple[U8, I64]:
    """Bytes and offsets. numba compiles once for read-only bytes and once for others."""
    data, offsets = binary_buffers(texts)
    view = data.view()
    view.flags.writeable = False
    return view, offsets
