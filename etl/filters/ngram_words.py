"""Words of texts as the n-gram index sees them, hashed by kernels on Arrow's buffers.

Words are those of `etl.text` (`\\w+` of the lower-cased text), with the options of `Words`. A word is its hash, uint64.
Costs one pass over the bytes, and 8 MB of tables a process.
"""

import functools
import sys
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from etl.arrays import I64, U8, U32, U64
from etl.hashing import binary_buffers
from etl.jit import njit
from etl.text import decode, word_table

Int = int | np.signedinteger[Any]

_TOKEN_START: Final = np.uint64(0x2545F4914F6CDD1D)
_TOKEN_MULTIPLIER: Final = np.uint64(0xD6E8FEB86659FD93)  # odd, with well spread bits
ROOM: Final = 1024
"""Entries for which a buffer has room at first; it doubles when it is full."""
_CODE: Final = 0x1FFFFF
_DIGIT: Final = 1 << 31
_BACKSLASH: Final = 0x5C
_ZERO: Final = np.uint64(0x30)
_LAYOUT: Final = """
left right middle big bigl bigr bigm bigg biggl biggr biggm quad qquad displaystyle textstyle scriptstyle limits
nolimits text textrm textbf textit mathrm mathbf mathit mbox hbox operatorname
"""
"""LaTeX commands that change how a formula looks, not what it says; names are compared in lower case."""
_FRACTIONS: Final = ("frac", "dfrac", "tfrac", "cfrac")


class Splitter(NamedTuple):
    """What the kernels need to find words."""

    table: U32
    """Lower-case code point of a word character, with the bit 2^31 for a digit; 0 for all else: [2^21]."""
    layout: U64
    """Hashes of the commands that are passed over."""
    fractions: U64
    """Hashes of `frac` and its other sizes."""
    latex: bool
    mask_numbers: bool


@dataclass(frozen=True)
class Words:
    """How a text becomes words.

    Without options they are `re.findall(r"\\w+", text.lower())`, except that `İ` is read as `i` and both forms of the
    small sigma as one.
    """

    latex: bool
    """LaTeX is read for what it says: `_` and a change between letters and digits end a word, `\\name` is a word of
    its own, commands of layout (`\\left`, `\\text`, `\\quad` …) and `\\\\` are passed over, `\\dfrac` is `\\frac`."""
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
    """Where the number ends whose first digit stands before `at`."""
    while at < end:
        code, after = decode(data, at, end)
        if table[code] & _DIGIT:
            at = after
            continue
        if (code != 46 and code != 44) or after >= end:
            return at
        code, after = decode(data, after, end)
        if not table[code] & _DIGIT:
            return at
        at = after
    return at


class Row(NamedTuple):
    """The words of one text, with room for more: uint64, int64, int64 [room]."""

    tokens: U64
    """Hashes of the words."""
    starts: I64
    ends: I64
    """Bytes [start, end) of each word."""


@njit
def empty_row(room: int) -> Row:
    return Row(np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64))


@njit
def _write_words(data: U8, at: int, end: int, splitter: Splitter, row: Row) -> int:
    """Write the words of data[at:end] into `row`, as many as there is room for; how many there are."""
    table, latex, mask = splitter.table, splitter.latex, splitter.mask_numbers
    tokens, starts, ends = row.tokens, row.starts, row.ends
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
        numeric = letter & _DIGIT
        token = _TOKEN_START
        while True:
            if mask and letter & _DIGIT:
                token = _mix(token, _ZERO)
                at = _number_end(data, at, end, table)
            else:
                token = _mix(token, np.uint64(letter & _CODE))
            if at >= end:
                break
            code, after = decode(data, at, end)
            letter = np.int64(table[code])
            if letter == 0 or (latex and letter & _DIGIT != numeric) or (command and not _is_ascii_letter(code)):
                break
            at = after
        if command:
            if _is_one_of(token, splitter.layout):
                continue
            if _is_one_of(token, splitter.fractions):
                token = splitter.fractions[0]
        if num_words < len(tokens):
            tokens[num_words], starts[num_words], ends[num_words] = token, start, at
        num_words += 1
    return num_words


@njit
def split_text(data: U8, at: int, end: int, splitter: Splitter, row: Row) -> tuple[Row, int]:
    """The words of data[at:end] in `row`, or in a larger one where they need it, and how many there are.

    The loop over words only counts those that have no room: with an array that can grow it runs at a fourth of the
    speed.
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


@njit
def _split_all(data: U8, offsets: I64, splitter: Splitter) -> tuple[U64, I64]:
    """Hashes of the words of each text, and where those of each begin: [words], [texts + 1]."""
    tokens = np.empty((offsets[-1] - offsets[0]) + 1, np.uint64)  # a word takes a byte at least
    bounds = np.zeros(len(offsets), np.int64)
    row = empty_row(ROOM)
    for text in range(len(offsets) - 1):
        row, num_words = split_text(data, offsets[text], offsets[text + 1], splitter, row)
        bounds[text + 1] = bounds[text] + num_words
        tokens[bounds[text] : bounds[text + 1]] = row.tokens[:num_words]
    return tokens[: bounds[-1]].copy(), bounds


def hash_words(texts: pa.StringArray, words: Words) -> tuple[U64, I64]:
    """Hashes of the words of each text, and where those of each begin: uint64 [words], int64 [texts + 1]."""
    data, offsets = read_only(texts)
    return _split_all(data, offsets, splitter_of(words))


def read_only(texts: pa.StringArray) -> tuple[U8, I64]:
    """Bytes and offsets; numba compiles once for bytes that cannot be written and once for others."""
    data, offsets = binary_buffers(texts)
    view = data.view()
    view.flags.writeable = False
    return view, offsets
