"""The hashed n-grams of a text that near dedup compares; the script and the kind of text decide the tokens.

Texts are folded first (etl.fold). With `auto` and `token` a token is

- each letter or digit of a script without spaces (etl.text.ALONE_RANGES) by itself, with the marks that follow it;
- each other run of word characters (`\\w` of the lower-cased text) and their marks;
- in text that is cut with its signs (code, maths, `unit: token`), each other visible character by itself.

Invisible format characters are skipped. A text without any token is cut with its signs, whatever the unit; one
without a visible character has the empty set and resembles nothing.

The n-gram follows the length. In a text of up to 48 tokens it has 2, so that one changed slot in twenty leaves a
Jaccard similarity of 17/21; in one of 16n tokens and more it has n. In between, the n-gram that begins at a token has n
tokens if a hash of that token is below a bound that grows with the length, so texts of about the same length make the
same choice. Above 48 tokens a slot is in at most 5 of at least 45 5-grams: if it changes, at least 40 of 50 agree.

Prose without marks and without scripts that have no spaces takes the fast kernel of etl.text; memory is 8 bytes a byte
of text.
"""

import functools
from collections.abc import Callable
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64, U8, U32, U64, Bools
from etl.fold import FOLDS, fold, letter_forms, marked, read_folded
from etl.hashing import binary_buffers, xxh64_u64
from etl.jit import njit
from etl.text import (
    ALONE_RANGES,
    NGRAM_BASE,
    TOKEN_START,
    categories,
    char_ngram_hashes,
    lowered,
    step,
    token_hashes,
    word_table,
    write_ngrams,
)  # fmt: skip

SHINGLES_VERSION: Final = 2
"""Increased when a text would give another set; part of the fingerprint of near dedup."""

SHORT: Final = 48
"""Tokens up to which all n-grams are pairs: above, one changed slot leaves a similarity of 0.8 with 5-grams too."""
_LONG_FACTOR: Final = 16
_LONGER_FORMS: Final = 64
"""The number of letters by which the forms of a text may exceed its bytes; a text beyond that is folded first."""
_ALONE: Final = np.uint32(1 << 24)
_MARK: Final = np.uint32(1 << 25)
_SIGN: Final = np.uint32(1 << 26)
_PASSED: Final = np.uint32(1 << 27)
_APART: Final = np.uint32(_ALONE | _MARK | _PASSED)


@functools.cache
def _token_tables() -> tuple[U32, U32]:
    """uint32 [2^21] twice: the letter of a character, with its class in the high bits; without signs and with them."""
    table = word_table()[0].copy()
    for first, last in ALONE_RANGES:
        table[first : last + 1] |= (table[first : last + 1] != 0) * _ALONE
    signs = table.copy()
    kinds = categories()
    major, codes = kinds.astype("S1"), np.arange(len(kinds), dtype=np.uint32)
    is_open = table[: len(kinds)] == 0
    marks = codes[is_open & (major == b"M")]
    table[marks] = signs[marks] = marks | _MARK
    passed = codes[is_open & (kinds == b"Cf")]
    table[passed] = signs[passed] = _PASSED
    visible = codes[is_open & (np.isin(major, [b"P", b"S"]) | np.isin(kinds, [b"Co", b"Cn"]))]
    signs[visible] = visible | _SIGN
    return marked(table), marked(signs)


@functools.cache
def _word_tables() -> tuple[U32, U32]:
    """Like `_token_tables`, with runs of word characters as tokens: the first lacks marks and single characters."""
    return marked(word_table()[0]), _token_tables()[1]


_Tables = Callable[[], tuple[U32, U32]]
"""`_token_tables` or `_word_tables`."""


@functools.cache
def _of_folded(tables: _Tables) -> tuple[U32, U32]:
    """The tables for texts that have already been folded."""
    plain, signs = tables()
    return plain & ~FOLDS, signs & ~FOLDS


@njit
def _tokens_apart(letters: U32, out: U64) -> int:
    """Write the hash of every token of a text; returns how many. A mark belongs to the character before it."""
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
def _cut(letters: U32, kinds: np.uint32, tokens: U64) -> int:
    """Write the hash of every token of a text whose letters have some bits; returns how many there are."""
    if kinds & (_APART | _SIGN):
        return _tokens_apart(letters, tokens)
    return token_hashes(letters, tokens)


@njit
def _ngram(tokens: U64, at: int, n: int) -> np.uint64:
    total = np.uint64(0)
    for k in range(n):
        total = total * NGRAM_BASE + (tokens[at + k] if at + k < len(tokens) else np.uint64(0))
    return xxh64_u64(total, np.uint64(0))


@njit
def _hash(
    data: U8, offsets: I64, valid: U8, signed: Bools, plain: U32, signs: U32, number: U32, forms: I64, codes: U32,
    first: U8, last: U8, n: int, follows: bool, out: U64, out_offsets: I64, left: Bools,
) -> None:  # fmt: skip
    longest = 0
    for row in range(len(valid)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    letters = np.empty(longest + _LONGER_FORMS, np.uint32)
    buffer = np.empty(4 * (len(letters) // 2 + 2), np.uint64)
    short, size = min(n, 2), 0
    for row in range(len(valid)):
        out_offsets[row] = size
        if valid[row] == 0:
            continue
        at, end = offsets[row], offsets[row + 1]
        num = 0
        if not signed[row]:
            num, kinds = read_folded(data, at, end, plain, number, forms, codes, first, last, letters)
            num = _cut(letters[:num], kinds, buffer) if num >= 0 else num
        if num == 0:
            num, kinds = read_folded(data, at, end, signs, number, forms, codes, first, last, letters)
            num = _cut(letters[:num], kinds, buffer) if num >= 0 else num
        left[row] = num < 0
        if num <= 0:
            continue
        tokens = buffer[:num]
        if not follows or num >= _LONG_FACTOR * n or n <= 2:
            size = write_ngrams(tokens, n, out, size)
            continue
        share = max(0.0, (num - SHORT) / max(1, _LONG_FACTOR * n - SHORT))
        bound = np.uint64(share * 4294967296.0)
        for at in range(max(1, num - short + 1)):
            length = n if xxh64_u64(tokens[at], np.uint64(2)) >> np.uint64(32) < bound else short
            if at + length <= num or num < short:
                out[size] = _ngram(tokens, at, length)
                size += 1
    out_offsets[len(valid)] = size


def _run(texts: pa.Array, signed: Bools, tables: _Tables, n: int, follows: bool) -> tuple[I64, U64]:
    """The n-grams of each folded text in text order."""
    sets, left = _run_once(texts, signed, tables(), letter_forms(), n, follows)
    if not len(left):
        return sets
    some = lowered(fold(texts.take(pa.array(left))))
    return _replaced(sets, left, _run_once(some, signed[left], _of_folded(tables), letter_forms(), n, follows)[0])


def _run_once(
    texts: pa.Array,
    signed: Bools,
    tables: tuple[U32, U32],
    forms: tuple[U32, I64, U32, U8, U8],
    n: int,
    follows: bool,
) -> tuple[tuple[I64, U64], I64]:
    """The n-grams of the texts that the kernel folds, and the places of the others."""
    data, offsets = binary_buffers(texts)
    valid = texts.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)
    out = np.empty(int(offsets[-1] - offsets[0]) + len(texts) * (1 + _LONGER_FORMS), np.uint64)
    out_offsets, left = np.zeros(len(texts) + 1, np.int64), np.zeros(len(texts), np.bool_)
    plain, signs = tables
    number, at, codes, first, last = forms
    _hash(
        data, offsets, valid, signed, plain, signs, number, at, codes, first, last, n, follows, out, out_offsets, left
    )  # fmt: skip
    return (out_offsets, out[: out_offsets[-1]]), np.flatnonzero(left)


def token_ngrams(texts: pa.Array, n: int, signed: Bools) -> tuple[I64, U64]:
    """The n-grams of tokens of each text, in text order and with repeats; the n-gram follows the length (see above).

    Args:
        texts: string or large_string [rows]; a null has none.
        n: tokens of an n-gram of a long text, at least 1.
        signed: bool [rows], which texts are cut with their signs.

    Returns:
        offsets int64 [rows + 1] and hashes uint64 [offsets[-1]], which a caller may overwrite.
    """
    return _run(texts, signed, _token_tables, n, True)


def plain_ngrams(texts: pa.Array, n: int, of_characters: bool) -> tuple[I64, U64]:
    """As `token_ngrams`, of the words `\\w+` of each folded text, or of their characters, whatever its length.

    A text without a word is compared by n-grams of its visible signs.
    """
    no_signs = np.zeros(len(texts), np.bool_)
    if not of_characters:
        return _run(texts, no_signs, _word_tables, n, False)
    hashes = char_ngram_hashes(fold(texts), n)
    blank = _without_words(*hashes, char_ngram_hashes(pa.array([""]), n)[1][0])
    if not len(blank):
        return hashes
    signs = _run(texts.take(pa.array(blank)), ~no_signs[blank], _token_tables, n, False)
    return _replaced(hashes, blank, signs)


def _without_words(offsets: I64, hashes: U64, padding: np.uint64) -> I64:
    """The rows whose one n-gram is that of the empty text."""
    lone = np.flatnonzero(np.diff(offsets) == 1)
    return lone[hashes[offsets[lone]] == padding]


def _replaced(sets: tuple[I64, U64], rows: I64, others: tuple[I64, U64]) -> tuple[I64, U64]:
    """The lists of `sets`, with those of some rows (ascending) taken from `others`; costs one copy of all."""
    (offsets, hashes), (starts, values) = sets, others
    pieces, at = [], 0
    for place, row in enumerate(rows.tolist()):
        pieces += [hashes[at : offsets[row]], values[starts[place] : starts[place + 1]]]
        at = offsets[row + 1]
    lengths = np.diff(offsets)
    lengths[rows] = np.diff(starts)
    return np.append(0, np.cumsum(lengths)), np.concatenate([*pieces, hashes[at : offsets[-1]]])


@njit
def _chained(letters: U32) -> tuple[np.uint64, np.uint64, int]:
    """Digests of the tokens of a text cut with its signs: of all, and of those that are no signs; how many those are.

    The tokens are those of `_tokens_apart`, in its order; leaving out the signs does not change the others.
    """
    every, others, num_others = np.uint64(0), np.uint64(0), 0
    token = TOKEN_START
    is_open, in_word, is_sign = False, False, False
    for letter in letters:
        if letter & (_PASSED | _MARK):
            if letter & _MARK and is_open:
                token, _ = step(token, letter)
            continue
        joins = letter != 0 and letter & (_ALONE | _SIGN) == 0
        if is_open and not (joins and in_word):
            mixed = xxh64_u64(token, np.uint64(0))
            every = xxh64_u64(mixed, every)
            if not is_sign:
                others, num_others = xxh64_u64(mixed, others), num_others + 1
            is_open = False
        if letter:
            token, _ = step(token if is_open else TOKEN_START, letter & np.uint32(0x1FFFFF))
            is_open, in_word, is_sign = True, joins, letter & _SIGN != 0
    if is_open:
        mixed = xxh64_u64(token, np.uint64(0))
        every = xxh64_u64(mixed, every)
        if not is_sign:
            others, num_others = xxh64_u64(mixed, others), num_others + 1
    return every, others, num_others


@njit
def _signed_step(token: np.uint64, was_sign: bool, letter: np.uint32) -> tuple[np.uint64, bool, bool]:
    """`step` where a sign is a token by itself: the hash, whether a token ended, whether the open one is a sign."""
    is_sign = (letter & _SIGN) != 0
    apart = was_sign | is_sign | (letter == 0)
    following, _ = step(TOKEN_START if apart else token, letter & np.uint32(0x1FFFFF))
    return following, apart & (token != TOKEN_START), is_sign


@njit
def _cut_rest(letters: U32, token: np.uint64, is_sign: bool, tokens: U64, signs: Bools, count: int) -> int:
    """Continue a half from a hash that has begun; returns how many tokens it has."""
    for i in range(len(letters)):
        tokens[count], signs[count] = token, is_sign
        token, ended, is_sign = _signed_step(token, is_sign, letters[i])
        count += ended
    if token != TOKEN_START:
        tokens[count], signs[count] = token, is_sign
        count += 1
    return count


@njit
def _cut_with_signs(letters: U32, tokens: U64, signs: Bools) -> int:
    """Write the tokens of `_tokens_apart`, and which are signs, of a text of only words and signs; returns how many.

    Without branches and in two halves, as `token_hashes`. `tokens` and `signs` are twice as long as the text, and 4.
    """
    room = len(tokens) // 2
    half = len(letters) // 2
    while half < len(letters) and letters[half] != 0:
        half += 1
    a, b = letters[:half], letters[half:]
    tokens_b, signs_b = tokens[room:], signs[room:]
    token_a = token_b = TOKEN_START
    sign_a = sign_b = False
    num_a = num_b = 0
    together = min(len(a), len(b))
    for i in range(together):
        tokens[num_a], signs[num_a] = token_a, sign_a
        tokens_b[num_b], signs_b[num_b] = token_b, sign_b
        token_a, ended_a, sign_a = _signed_step(token_a, sign_a, a[i])
        token_b, ended_b, sign_b = _signed_step(token_b, sign_b, b[i])
        num_a, num_b = num_a + ended_a, num_b + ended_b
    num_a = _cut_rest(a[together:], token_a, sign_a, tokens, signs, num_a)
    num_b = _cut_rest(b[together:], token_b, sign_b, tokens_b, signs_b, num_b)
    for i in range(num_b):
        tokens[num_a + i], signs[num_a + i] = tokens_b[i], signs_b[i]
    return num_a + num_b


@njit
def _chained_tokens(tokens: U64, signs: Bools) -> tuple[np.uint64, np.uint64, int]:
    """As `_chained`, for tokens that are cut."""
    every, others, num_others = np.uint64(0), np.uint64(0), 0
    for i in range(len(tokens)):
        mixed = xxh64_u64(tokens[i], np.uint64(0))
        every, longer = xxh64_u64(mixed, every), xxh64_u64(mixed, others)
        others = others if signs[i] else longer
        num_others += not signs[i]
    return every, others, num_others


@njit
def _digest(
    data: U8, offsets: I64, signed: Bools, signs: U32, number: U32, forms: I64, codes: U32, first: U8, last: U8,
    out: U64, left: Bools,
) -> None:  # fmt: skip
    longest = 0
    for row in range(len(signed)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    letters = np.empty(longest + _LONGER_FORMS, np.uint32)
    tokens, are_signs = np.empty(2 * len(letters) + 4, np.uint64), np.empty(2 * len(letters) + 4, np.bool_)
    for row in range(len(signed)):
        num, kinds = read_folded(
            data, offsets[row], offsets[row + 1], signs, number, forms, codes, first, last, letters
        )
        left[row] = num < 0
        text = letters[: max(0, num)]
        if kinds & _APART:
            every, others, num_others = _chained(text)
        else:
            num_tokens = _cut_with_signs(text, tokens, are_signs)
            every, others, num_others = _chained_tokens(tokens[:num_tokens], are_signs[:num_tokens])
        out[0, row] = every if signed[row] or num_others == 0 else others
        out[1, row] = every


def token_digests(texts: pa.Array, signed: Bools) -> tuple[U64, U64]:
    """Digests of the tokens that `token_ngrams` makes n-grams of, in text order and with repeats.

    With h_0 = 0 and the XXH64 t_i of the hash of token i (seed 0), that of k tokens is h_k, h_i = XXH64(t_i, seed
    h_(i-1)).

    Args:
        texts: string or large_string [rows]; a null has no tokens.
        signed: bool [rows], which texts are cut with their signs.

    Returns:
        uint64 [rows] twice: for each text as it is cut, and for the text cut with its signs.
    """
    digests, left = _digest_once(texts, signed, _token_tables()[1])
    if len(left):
        some = lowered(fold(texts.take(pa.array(left))))
        digests[:, left] = _digest_once(some, signed[left], _of_folded(_token_tables)[1])[0]
    return digests[0], digests[1]


def _digest_once(texts: pa.Array, signed: Bools, signs: U32) -> tuple[U64, I64]:
    """uint64 [2, rows] for the texts that the kernel folds, and the places of the others."""
    data, offsets = binary_buffers(pc.fill_null(texts, ""))
    out, left = np.zeros((2, len(texts)), np.uint64), np.zeros(len(texts), np.bool_)
    _digest(data, offsets, signed, signs, *letter_forms(), out, left)
    return out, np.flatnonzero(left)


def mean_ngram(num_tokens: int, n: int) -> float:
    """Tokens of an n-gram, on average, in a text of this many: between 2 and n (see the top of this file)."""
    if n <= 2:
        return n
    share = (num_tokens - SHORT) / (_LONG_FACTOR * n - SHORT) if _LONG_FACTOR * n > SHORT else 1.0
    return 2 + min(1.0, max(0.0, share)) * (n - 2)
