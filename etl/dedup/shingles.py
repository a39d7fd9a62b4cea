"""What near dedup compares of a text: its set of hashed n-grams, of tokens that follow the script and the kind of text.

Texts are folded first (etl.fold). With `auto` and `token` a token is

- each letter or digit of a script without spaces (etl.text.ALONE_RANGES) by itself, with the marks that follow it;
- each other run of word characters (`\\w` of the lower-cased text) and their marks;
- in text that is cut with its signs (code, maths, `unit: token`), each other visible character by itself.

Invisible format characters are passed over. A text without any token is cut with its signs, whatever the unit; one
without a visible character has the empty set and resembles nothing.

The n-gram follows the length. In a text of up to 48 tokens it has 2, so that one changed slot in twenty leaves a
Jaccard similarity of 17/21; in one of 16n tokens and more it has n. Between, the n-gram that begins at a token has n
tokens if a hash of that token is below a bound that grows with the length, so texts of about the same length make the
same choice. Above 48 tokens a slot stands in at most 5 of at least 45 5-grams: if it changes, at least 40 of 50 agree.

Prose without marks and scripts of its own goes through the fast kernel of etl.text; memory is 8 bytes a byte of text.
"""

import functools
import sys
import unicodedata
from typing import Final

import numpy as np
import pyarrow as pa

from etl.arrays import I64, U8, U32, U64, Bools
from etl.fold import fold
from etl.hashing import binary_buffers, xxh64_u64
from etl.jit import njit
from etl.text import (
    ALONE_RANGES,
    NGRAM_BASE,
    TOKEN_START,
    char_ngram_hashes,
    distinct_hashes,
    lowered,
    ngram_hashes,
    read_letters,
    step,
    token_hashes,
    word_table,
    write_ngrams,
)  # fmt: skip

SHINGLES_VERSION: Final = 2
"""Raised when a text would give another set; part of the fingerprint of near dedup."""

SHORT: Final = 48
"""Tokens up to which all n-grams are pairs: above, one changed slot leaves a similarity of 0.8 with 5-grams too."""
_LONG_FACTOR: Final = 16
_ALONE: Final = np.uint32(1 << 24)
_MARK: Final = np.uint32(1 << 25)
_SIGN: Final = np.uint32(1 << 26)
_PASSED: Final = np.uint32(1 << 27)
_APART: Final = np.uint32(_ALONE | _MARK | _PASSED)


@functools.cache
def _token_tables() -> tuple[U32, U32]:
    """uint32 [2^21] twice: the letter of a character with what it is in the high bits; without signs and with them."""
    table = word_table()[0].copy()
    for first, last in ALONE_RANGES:
        table[first : last + 1] |= (table[first : last + 1] != 0) * _ALONE
    signs = table.copy()
    for code in (code for code in range(sys.maxunicode + 1) if table[code] == 0):
        kind = unicodedata.category(chr(code))
        if kind[0] == "M":
            table[code] = signs[code] = code | _MARK
        elif kind == "Cf":
            table[code] = signs[code] = _PASSED
        elif kind[0] in "PS" or kind in ("Co", "Cn"):
            signs[code] = code | _SIGN
    return table, signs


@njit
def _tokens_apart(letters: U32, out: U64) -> int:
    """Write the hash of every token of a text; how many there are. A mark belongs to the character before it."""
    count = 0
    token = TOKEN_START
    is_open, in_word = False, False
    for letter in letters:
        if letter & _PASSED:
            continue
        if letter & _MARK:
            if is_open:
                token, _ = step(token, letter)
            continue
        joins = letter != 0 and letter & (_ALONE | _SIGN) == 0
        if is_open and not (joins and in_word):
            out[count] = token
            count += 1
            is_open = False
        if letter:
            token, _ = step(token if is_open else TOKEN_START, letter & np.uint32(0x1FFFFF))
            is_open, in_word = True, joins
    if is_open:
        out[count] = token
        count += 1
    return count


@njit
def _of_kind(letters: U32) -> np.uint32:
    seen = np.uint32(0)
    for letter in letters:
        seen |= letter
    return seen


@njit
def _cut(data: U8, at: int, end: int, plain: U32, signs: U32, signed: bool, letters: U32, tokens: U64) -> int:
    """The tokens of one text."""
    num = read_letters(data, at, end, signs if signed else plain, letters)
    if signed or _of_kind(letters[:num]) & _APART:
        count = _tokens_apart(letters[:num], tokens)
    else:
        count = token_hashes(letters[:num], tokens)
    if count or signed:
        return count
    num = read_letters(data, at, end, signs, letters)
    return _tokens_apart(letters[:num], tokens)


@njit
def _ngram(tokens: U64, at: int, n: int) -> np.uint64:
    total = np.uint64(0)
    for k in range(n):
        total = total * NGRAM_BASE + (tokens[at + k] if at + k < len(tokens) else np.uint64(0))
    return xxh64_u64(total, np.uint64(0))


@njit
def _hash(
    data: U8, offsets: I64, valid: U8, signed: Bools, plain: U32, signs: U32, n: int, follows: bool, out: U64,
    out_offsets: I64,
) -> None:  # fmt: skip
    longest = 0
    for row in range(len(valid)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    letters, buffer = np.empty(longest, np.uint32), np.empty(4 * (longest // 2 + 2), np.uint64)
    short, size = min(n, 2), 0
    for row in range(len(valid)):
        out_offsets[row] = size
        if valid[row] == 0:
            continue
        num = _cut(data, offsets[row], offsets[row + 1], plain, signs, signed[row], letters, buffer)
        tokens = buffer[:num]
        if num == 0:
            continue
        if not follows or num >= _LONG_FACTOR * n or n <= 2:
            size = write_ngrams(tokens, n, out, size)
            continue
        share = max(0.0, (num - SHORT) / (_LONG_FACTOR * n - SHORT))
        bound = np.uint64(share * 4294967296.0)
        for at in range(max(1, num - short + 1)):
            length = n if xxh64_u64(tokens[at], np.uint64(2)) >> np.uint64(32) < bound else short
            if at + length <= num or num < short:
                out[size] = _ngram(tokens, at, length)
                size += 1
    out_offsets[len(valid)] = size


def _run(texts: pa.Array, signed: Bools, n: int, follows: bool) -> tuple[I64, U64]:
    array = lowered(texts)
    data, offsets = binary_buffers(array)
    valid = array.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
    out = np.empty(int(offsets[-1] - offsets[0]) + len(array), np.uint64)
    out_offsets = np.zeros(len(array) + 1, np.int64)
    _hash(data, offsets, valid, signed, *_token_tables(), n, follows, out, out_offsets)
    return out_offsets, out[: out_offsets[-1]]


def token_shingles(texts: pa.Array, n: int, signed: Bools) -> tuple[I64, U64]:
    """The set of n-grams of tokens of each text; the n-gram follows the length (see the top of this file).

    Args:
        texts: string or large_string [rows]; a null has the empty set.
        n: tokens of an n-gram of a long text, at least 1.
        signed: bool [rows], which texts are cut with their signs.

    Returns:
        offsets int64 [rows + 1] and hashes uint64 [offsets[-1]], strictly ascending within a row.
    """
    return distinct_hashes(*_run(fold(texts), signed, n, True))


def plain_shingles(texts: pa.Array, n: int, of_characters: bool) -> tuple[I64, U64]:
    """The set of n-grams of the words `\\w+` of each folded text, or of their characters.

    A text without a word is compared by n-grams of its visible signs.
    """
    folded = fold(texts)
    cut = char_ngram_hashes if of_characters else ngram_hashes
    hashes = cut(folded, n)
    blank = _without_words(*hashes, cut(pa.array([""]), n)[1][0])
    if not len(blank):
        return distinct_hashes(*hashes)
    signs = _run(folded.take(pa.array(blank)), np.ones(len(blank), np.bool_), n, False)
    return distinct_hashes(*_replaced(hashes, blank, signs))


def _without_words(offsets: I64, hashes: U64, padding: np.uint64) -> I64:
    """The rows whose one n-gram is that of the empty text."""
    lone = np.flatnonzero(np.diff(offsets) == 1)
    return lone[hashes[offsets[lone]] == padding]


def _replaced(sets: tuple[I64, U64], rows: I64, others: tuple[I64, U64]) -> tuple[I64, U64]:
    """The lists of `sets`, those of some rows taken from `others`."""
    both = pa.chunked_array(
        [pa.LargeListArray.from_arrays(pa.array(at), pa.array(values[: at[-1]])) for at, values in (sets, others)]
    ).combine_chunks()
    place = np.arange(len(sets[0]) - 1, dtype=np.int64)
    place[rows] = len(place) + np.arange(len(rows))
    taken = both.take(pa.array(place))
    return taken.offsets.to_numpy() - taken.offsets[0].as_py(), taken.flatten().to_numpy().copy()


def ordered_tokens(texts: pa.Array, signed: Bools) -> tuple[I64, U64]:
    """The hash of every token of each text, in text order and with repeats: what `token_shingles` makes n-grams of.

    Args:
        texts: string or large_string [rows]; a null has none.
        signed: bool [rows], which texts are cut with their signs.

    Returns:
        offsets int64 [rows + 1] and hashes uint64 [offsets[-1]].
    """
    return _run(fold(texts), signed, 1, False)


def mean_ngram(num_tokens: int, n: int) -> float:
    """Tokens of an n-gram, on average, in a text of so many: between 2 and n (see the top of this file)."""
    if n <= 2:
        return n
    share = (num_tokens - SHORT) / (_LONG_FACTOR * n - SHORT) if _LONG_FACTOR * n > SHORT else 1.0
    return 2 + min(1.0, max(0.0, share)) * (n - 2)
