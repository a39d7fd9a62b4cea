"""Text for deduplication: the normal form for exact duplicates, the hashed word n-grams for near duplicates.

Both are kernels over Arrow's UTF-8 buffers; no Python string is made for a row, except for the few rows that
`_lower_contextual` handles. Python's own tables (`str.lower`, `\\w` of `re`, `str.isspace`) define letters, lower case
and spaces. They are read once per process in about 0.1 s, so that the kernels agree with
`re.findall(r"\\w+", text.lower())` and `text.split()` on every string. One core hashes about 250 MB of mixed text a
second into n-grams, makes sets of them at 210 MB and normalises 130 MB. The other things that near dedup does to a text
are in etl.fold and etl.dedup.shingles. Working memory is twice the bytes of the array for usual text, at most 5 times.

A text must be valid UTF-8, which ingest checks. The kernels never read out of bounds, even for invalid bytes.
The file is long because numba compiles these kernels into one another and into those of other files (see etl/jit.py).
"""

import functools
import re
import sys
import unicodedata
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64, U8, U32, U64, Bools
from etl.hashing import binary_buffers, xxh64_u64
from etl.jit import njit

TEXT_VERSION: Final = 2
"""Increased when `normalise` or `shingles` would give another result; part of the fingerprint."""

UNICODE_VERSION: Final = unicodedata.unidata_version
"""Version of Python's Unicode tables; another one can tokenise newly assigned characters differently."""

ALONE_RANGES: Final = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Thai and Lao, Myanmar, Khmer, ideographic marks, kana, Han: scripts without spaces, so that a letter there is a word
of its own."""

TABLE_SIZE: Final = 1 << 21  # what four UTF-8 bytes can address, so that no byte sequence leaves the table
_FINAL_SIGMA: Final = "Σ"  # the one letter whose lower case depends on its neighbours
TOKEN_START: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio
_TOKEN_MULTIPLIER: Final = np.uint64(0xD6E8FEB86659FD93)  # odd, with well spread bits
NGRAM_BASE: Final = np.uint64(0xA0761D6478BD642D)  # odd, 5 modulo 8: its powers are distinct modulo 2^62


@functools.cache
def word_table() -> tuple[U32, str]:
    """uint32 [2^21]: the lower-case code point of a word character, 0 for all others; and the exceptions.

    The exceptions are the characters whose lower case is not a single code point of their own: `İ` and `Σ` in
    Unicode 14.
    """
    every = every_character()
    blocks = [every[start : start + 256] for start in range(0, len(every), 256)]
    longer = [c for block in blocks if len(block.lower()) != 256 for c in block if len(c.lower()) != 1]
    exceptions = "".join(longer) + _FINAL_SIGMA
    lower = re.sub(f"[{exceptions}]", "\0", every).lower()
    codes = np.frombuffer(lower.encode("utf-32-le", "surrogatepass"), "<u4")
    table = np.zeros(TABLE_SIZE, np.uint32)
    for run in re.finditer(r"\w+", lower):
        table[run.start() : run.end()] = codes[run.start() : run.end()]
    return table, exceptions


@functools.cache
def _space_table() -> U8:
    """uint8 [2^21]: 1 for the characters at which `str.split()` splits."""
    table = np.zeros(TABLE_SIZE, np.uint8)
    table[[space.start() for space in re.finditer(r"\s", every_character())]] = 1
    return table


@functools.cache
def categories() -> npt.NDArray[np.bytes_]:
    """bytes [0x110000]: the general category of each code point, two letters (0.1 CPU-seconds, once per process)."""
    return np.frombuffer("".join(map(unicodedata.category, every_character())).encode(), "S2")


def every_character() -> str:
    """All code points in order, including surrogates."""
    return np.arange(sys.maxunicode + 1, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _one_array(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    return texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts


def _valid(texts: pa.Array) -> U8:
    return texts.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)


@njit
def decode(data: U8, at: int, end: int) -> tuple[np.int64, int]:
    """The code point at `at` and the start of the next one; 0 for a character that `end` cuts."""
    lead = np.int64(data[at])
    if lead < 0x80:
        return lead, at + 1
    if lead < 0xE0:
        if at + 2 > end:
            return np.int64(0), end
        return (lead & 0x1F) << 6 | np.int64(data[at + 1] & 0x3F), at + 2
    if lead < 0xF0:
        if at + 3 > end:
            return np.int64(0), end
        high = (lead & 0x0F) << 12 | np.int64(data[at + 1] & 0x3F) << 6
        return high | np.int64(data[at + 2] & 0x3F), at + 3
    if at + 4 > end:
        return np.int64(0), end
    high = (lead & 0x07) << 18 | np.int64(data[at + 1] & 0x3F) << 12
    return high | np.int64(data[at + 2] & 0x3F) << 6 | np.int64(data[at + 3] & 0x3F), at + 4


@njit
def _collapse(data: U8, offsets: I64, valid: U8, space: U8, out: U8, out_offsets: I64) -> None:
    """Write each text without outer white space and with one U+0020 for each inner run of white space."""
    size = 0
    for row in range(len(valid)):
        out_offsets[row] = size
        start = size
        pending = False
        at, end = offsets[row], offsets[row + 1]
        if valid[row] == 0:
            at = end
        while at < end:
            code, after = decode(data, at, end)
            if space[code]:
                pending = size > start
            else:
                if pending:
                    out[size] = 32
                    size += 1
                    pending = False
                for i in range(at, after):
                    out[size] = data[i]
                    size += 1
            at = after
    out_offsets[len(valid)] = size


def _decompose(texts: pa.Array) -> pa.Array:
    """The texts in NFD; ASCII rows, which have no other form, are skipped."""
    other = pc.fill_null(pc.invert(pc.string_is_ascii(texts)), False)
    return pc.replace_with_mask(texts, other, pc.utf8_normalize(texts.filter(other), "NFD"))


def normalise(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Texts equal in this form are exact duplicates: NFD, single spaces, ends stripped.

    Equal to `" ".join(unicodedata.normalize("NFD", text).split())`; a key to compare, not a text to keep. The same text
    typed on two systems differs in composition. Texts are equal in NFD exactly if they are equal in NFC, which Arrow 25
    does not have (its form "NFC" gives NFD). NFKC and NFKD would turn `x²` into `x2`. White space is normalised because
    extraction changes it most. Case is kept, since it separates identifiers in code and names in prose; near dedup
    ignores it and finds those rows. Unicode never changes the decomposition of an assigned character, so this key is
    stable.

    Args:
        texts: string or large_string [rows]; nulls remain null.

    Returns:
        The same type and length.
    """
    array = _decompose(_one_array(texts))
    data, offsets = binary_buffers(array)
    valid = _valid(array)
    out = np.empty(int(offsets[-1] - offsets[0]), np.uint8)
    out_offsets = np.zeros(len(array) + 1, np.int64)
    _collapse(data, offsets, valid, _space_table(), out, out_offsets)
    width = np.int32 if pa.types.is_string(array.type) else np.int64
    mask = pa.py_buffer(np.packbits(valid, bitorder="little")) if array.null_count else None
    buffers = [mask, pa.py_buffer(out_offsets.astype(width)), pa.py_buffer(out[: out_offsets[-1]].copy())]
    return pa.Array.from_buffers(array.type, len(array), buffers)


def normalise_layout(texts: pa.Array) -> pa.Array:
    """Code equal in this form is an exact duplicate: NFD, `\\n` line ends, no space at the end of a line or text.

    Equal to `re.sub(r"[ \\t]+\\n", "\\n", re.sub(r"\\r\\n?", "\\n", nfd)).rstrip()`. Indentation, inner space and blank
    lines are kept, as they distinguish programs.

    Args:
        texts: string or large_string [rows]; nulls remain null.

    Returns:
        The same type and length.
    """
    ends = pc.replace_substring(pc.replace_substring(_decompose(texts), "\r\n", "\n"), "\r", "\n")
    return pc.utf8_rtrim_whitespace(pc.replace_substring_regex(ends, r"[ \t]+\n", "\n"))


@njit
def _mark_laid_out(data: U8, offsets: I64, space: U8, out: Bools) -> None:
    for row in range(len(out)):
        at, end = offsets[row], offsets[row + 1]
        while at < end and not out[row]:
            is_line_end = data[at] == 10 or data[at] == 13
            at += 1
            start = at
            while is_line_end and at < end and data[at] != 10 and data[at] != 13:
                code, after = decode(data, at, end)
                if not space[code]:
                    out[row] = at > start
                    break
                at = after


def is_laid_out(texts: pa.Array) -> Bools:
    """Which texts have a line after the first that is indented and not blank.

    Equal to `re.search(r"[\\r\\n][^\\S\\r\\n]+\\S", text) is not None`, with white space as in `str.isspace`. In such
    texts (code, lists, verse), indentation shows what belongs together.

    Args:
        texts: string or large_string [rows]; a null is not laid out.

    Returns:
        bool [rows].
    """
    data, offsets = binary_buffers(texts)
    found = np.zeros(len(texts), np.bool_)
    _mark_laid_out(data, offsets, _space_table(), found)
    return found & _valid(texts).astype(np.bool_)


@njit
def read_letters(data: U8, at: int, end: int, word: U32, out: U32) -> int:
    """Write the entry of `word` for each character of a text; returns their number."""
    count = 0
    while at < end:
        code, at = decode(data, at, end)
        out[count] = word[code]
        count += 1
    return count


@njit
def _next_space(letters: U32, at: int) -> int:
    while at < len(letters) and letters[at] != 0:
        at += 1
    return at


@njit
def token_hashes(letters: U32, out: U64) -> int:
    """Write the hash of every word of a text; returns their number.

    Each step of a hash waits for the one before, so four quarters of the text are hashed side by side, and without
    branches, since the end of a word cannot be predicted. `out` has a quarter for each, half as long as the text and 2.
    """
    size, room = len(letters), len(out) // 4
    second = _next_space(letters, size // 4)
    third = _next_space(letters, max(second, size // 2))
    fourth = _next_space(letters, max(third, size // 4 * 3))
    a, b, c, d = letters[:second], letters[second:third], letters[third:fourth], letters[fourth:]
    out_a, out_b, out_c, out_d = out[:room], out[room : 2 * room], out[2 * room : 3 * room], out[3 * room :]
    token_a = token_b = token_c = token_d = TOKEN_START
    num_a = num_b = num_c = num_d = 0
    together = min(min(len(a), len(b)), min(len(c), len(d)))
    for i in range(together):
        out_a[num_a], out_b[num_b], out_c[num_c], out_d[num_d] = token_a, token_b, token_c, token_d
        token_a, ended_a = step(token_a, a[i])
        token_b, ended_b = step(token_b, b[i])
        token_c, ended_c = step(token_c, c[i])
        token_d, ended_d = step(token_d, d[i])
        num_a, num_b, num_c, num_d = num_a + ended_a, num_b + ended_b, num_c + ended_c, num_d + ended_d
    count = _tokens_of_rest(a[together:], token_a, out_a, num_a)
    count = _moved(out_b, _tokens_of_rest(b[together:], token_b, out_b, num_b), out, count)
    count = _moved(out_c, _tokens_of_rest(c[together:], token_c, out_c, num_c), out, count)
    return _moved(out_d, _tokens_of_rest(d[together:], token_d, out_d, num_d), out, count)


@njit
def step(token: np.uint64, letter: np.uint32) -> tuple[np.uint64, bool]:
    """The hash with one more letter, or a new one after a word; and whether a word ended here.

    One word in 2^64 has the hash that a new one starts with, and is ignored.
    """
    mixed = (token ^ np.uint64(letter)) * _TOKEN_MULTIPLIER
    ended = (letter == 0) & (token != TOKEN_START)
    return TOKEN_START if letter == 0 else mixed ^ (mixed >> np.uint64(32)), ended


@njit
def _tokens_of_rest(letters: U32, token: np.uint64, out: U64, count: int) -> int:
    """Continue with one quarter from a hash that has begun; returns its number of words."""
    for i in range(len(letters)):
        out[count] = token
        token, ended = step(token, letters[i])
        count += ended
    if token != TOKEN_START:
        out[count] = token
        count += 1
    return count


@njit
def _moved(quarter: U64, num: int, out: U64, count: int) -> int:
    for i in range(num):
        out[count + i] = quarter[i]
    return count + num


@njit
def write_ngrams(tokens: U64, n: int, out: U64, size: int) -> int:
    """Write the hashes of all n-grams of a text into `out` from `size` on; returns its new size.

    A text of fewer tokens has one n-gram, padded with zeros; see `ngram_hashes` for the formulas.
    """
    oldest_weight = np.uint64(1)
    for _ in range(n - 1):
        oldest_weight *= NGRAM_BASE
    ngram = np.uint64(0)
    for k in range(n):
        ngram = ngram * NGRAM_BASE + (tokens[k] if k < len(tokens) else np.uint64(0))
    out[size] = xxh64_u64(ngram, np.uint64(0))
    size += 1
    for k in range(n, len(tokens)):
        ngram = (ngram - tokens[k - n] * oldest_weight) * NGRAM_BASE + tokens[k]
        out[size] = xxh64_u64(ngram, np.uint64(0))
        size += 1
    return size


@njit
def _hash_ngrams(data: U8, offsets: I64, valid: U8, word: U32, n: int, out: U64, out_offsets: I64) -> None:
    """Write the hash of every n-gram of each text, in text order."""
    longest = 0
    for row in range(len(valid)):
        longest = max(longest, offsets[row + 1] - offsets[row])
    letters = np.empty(longest, np.uint32)
    tokens = np.empty(4 * (longest // 2 + 2), np.uint64)
    size = 0
    for row in range(len(valid)):
        out_offsets[row] = size
        if valid[row] == 0:
            continue
        num_letters = read_letters(data, offsets[row], offsets[row + 1], word, letters)
        num_tokens = token_hashes(letters[:num_letters], tokens)
        size = write_ngrams(tokens[:num_tokens], n, out, size)
    out_offsets[len(valid)] = size


@njit
def _hash_char_ngrams(data: U8, offsets: I64, valid: U8, word: U32, n: int, out: U64, out_offsets: I64) -> None:
    """Write the hash of every n consecutive characters of the words of each text, joined by single spaces."""
    oldest_weight = np.uint64(1)
    for _ in range(n - 1):
        oldest_weight *= NGRAM_BASE
    recent = np.empty(n, np.uint64)
    size = 0
    for row in range(len(valid)):
        out_offsets[row] = size
        if valid[row] == 0:
            continue
        recent[:] = 0
        slot = 0
        num_chars = 0
        ngram = np.uint64(0)
        pending = False
        at, end = offsets[row], offsets[row + 1]
        while at < end:
            code, at = decode(data, at, end)
            letter = np.uint64(word[code])
            if letter == 0:
                pending = num_chars > 0
                continue
            for value in (np.uint64(32), letter):
                if value == 32 and not pending:
                    continue
                ngram = (ngram - recent[slot] * oldest_weight) * NGRAM_BASE + value
                recent[slot] = value
                slot = slot + 1 if slot + 1 < n else 0
                num_chars += 1
                if num_chars >= n:
                    out[size] = xxh64_u64(ngram, np.uint64(1))
                    size += 1
            pending = False
        if num_chars < n:
            for _ in range(n - num_chars):
                ngram *= NGRAM_BASE
            out[size] = xxh64_u64(ngram, np.uint64(1))
            size += 1
    out_offsets[len(valid)] = size


@njit
def _rows_with(data: U8, offsets: I64, wanted: U8, out: U8) -> None:
    """Mark the rows that contain one of some two-byte characters; `wanted` is uint8 [characters, 2]."""
    for row in range(len(out)):
        text = data[offsets[row] : offsets[row + 1]]
        for k in range(len(wanted)):
            # Without branches and on single bytes, this compares 64 bytes per instruction.
            found = np.uint8(0)
            for at in range(len(text) - 1):
                found = np.uint8(found | np.uint8((text[at] == wanted[k, 0]) & (text[at + 1] == wanted[k, 1])))
            if found:
                out[row] = 1


def _lower_contextual(texts: pa.Array, exceptions: str) -> pa.Array:
    """Lower-case in Python the rows with a character whose lower case is not one code point of its own."""
    encoded = [c.encode() for c in exceptions]
    assert all(len(c) == 2 for c in encoded), "a character with a lower case of its own beyond U+07FF"
    data, offsets = binary_buffers(texts)
    found = np.zeros(len(texts), np.uint8)
    _rows_with(data, offsets, np.frombuffer(b"".join(encoded), np.uint8).reshape(-1, 2), found)
    if not found.any():
        return texts
    special = pc.and_(pa.array(found.astype(np.bool_)), texts.is_valid())
    lowered = [text.lower() for text in texts.filter(special).to_pylist()]
    return pc.replace_with_mask(texts, special, pa.array(lowered, texts.type))


def ngram_hashes(texts: pa.Array | pa.ChunkedArray, n: int) -> tuple[I64, U64]:
    """The 64-bit hash of every word n-gram of each text, in text order and with repeats.

    Words are the matches of `\\w+` in `text.lower()`. A text of fewer than n words is padded at its end with
    0 and has one n-gram; a null has none. The hash of a word w with lower-case code points c_1 … c_k is h_k:

        h_0 = 2^64 / φ;  g = (h_{i-1} xor c_i) · M mod 2^64;  h_i = g xor (g >> 32)

    and that of an n-gram is XXH64(Σ_i w_i · B^(n-i) mod 2^64), which depends on the order of the words and
    costs the same for every n. This is all that MinHash needs; for a set use `shingles`.

    Args:
        texts: string or large_string [rows].
        n: words in an n-gram, at least 1.

    Returns:
        offsets int64 [rows + 1] and hashes uint64 [offsets[-1]].
    """
    array = lowered(texts)
    most = _num_bytes(array) // 2 + 2 * len(array)  # a word and its separator take at least two bytes
    return _run_hashing(_hash_ngrams, array, n, most)


def char_ngram_hashes(texts: pa.Array | pa.ChunkedArray, n: int) -> tuple[I64, U64]:
    """The 64-bit hash of every n consecutive characters of each text's words, in text order and with repeats.

    Words are those of `ngram_hashes`, lower case, joined by one space. A text of fewer than n characters is padded at
    its end with 0 and has one n-gram; a null has none. The hash of characters c_1 … c_n is XXH64(Σ_i c_i · B^(n-i) mod
    2^64, seed 1).

    Args:
        texts: string or large_string [rows].
        n: characters in an n-gram, at least 1.

    Returns:
        offsets int64 [rows + 1] and hashes uint64 [offsets[-1]].
    """
    array = lowered(texts)
    # Each byte of a word gives at most one character, each separator one space.
    return _run_hashing(_hash_char_ngrams, array, n, _num_bytes(array) + len(array))


def lowered(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Texts for kernels that read letters from `word_table`, in lower case if that table cannot lower them."""
    return _lower_contextual(_one_array(texts), word_table()[1])


def _num_bytes(array: pa.Array) -> int:
    _, offsets = binary_buffers(array)
    return int(offsets[-1] - offsets[0])


def _run_hashing(kernel: Callable[..., None], array: pa.Array, n: int, most: int) -> tuple[I64, U64]:
    data, offsets = binary_buffers(array)
    out = np.empty(most, np.uint64)
    out_offsets = np.zeros(len(array) + 1, np.int64)
    kernel(data, offsets, _valid(array), word_table()[0], n, out, out_offsets)
    return out_offsets, out[: out_offsets[-1]]


@njit
def _sort_row(hashes: U64, heads: I64, out: U64) -> None:
    """Sort evenly spread hashes in linear expected time: scatter by leading bits, repair by insertion."""
    bits = 1
    while (1 << bits) < len(hashes):
        bits += 1
    shift = np.uint64(64 - bits)
    heads[: (1 << bits) + 1] = 0
    for value in hashes:
        heads[np.int64(value >> shift) + 1] += 1
    for i in range(1 << bits):
        heads[i + 1] += heads[i]
    for value in hashes:
        bucket = np.int64(value >> shift)
        out[heads[bucket]] = value
        heads[bucket] += 1
    for i in range(1, len(hashes)):
        value = out[i]
        j = i
        while j > 0 and out[j - 1] > value:
            out[j] = out[j - 1]
            j -= 1
        out[j] = value


@njit
def _sort_distinct(offsets: I64, hashes: U64, set_offsets: I64) -> None:
    """Sort each row and remove repeats, in place: the sets move to the front of `hashes`."""
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    sorted_row = np.empty(longest, np.uint64)
    heads = np.empty(2 * longest + 3, np.int64)
    size = 0
    for row in range(len(offsets) - 1):
        set_offsets[row] = size
        length = offsets[row + 1] - offsets[row]
        if length == 0:
            continue
        _sort_row(hashes[offsets[row] : offsets[row + 1]], heads, sorted_row)
        hashes[size] = sorted_row[0]
        size += 1
        for i in range(1, length):
            if sorted_row[i] != sorted_row[i - 1]:
                hashes[size] = sorted_row[i]
                size += 1
    set_offsets[len(offsets) - 1] = size


def distinct_hashes(offsets: I64, hashes: U64) -> tuple[I64, U64]:
    """The hashes of each row sorted and without repeats; overwrites `hashes`.

    Args:
        offsets: int64 [rows + 1]; row r has hashes[offsets[r] : offsets[r + 1]].
        hashes: uint64, evenly spread.

    Returns:
        offsets int64 [rows + 1] and hashes uint64 [offsets[-1]], strictly ascending within a row.
    """
    set_offsets = np.zeros(len(offsets), np.int64)
    _sort_distinct(offsets, hashes, set_offsets)
    return set_offsets, hashes[: set_offsets[-1]]


def shingles(texts: pa.Array | pa.ChunkedArray, n: int) -> tuple[I64, U64]:
    """The set of hashed word n-grams of each text: the result of `ngram_hashes`, sorted and without repeats.

    Returns:
        offsets int64 [rows + 1] and hashes uint64 [offsets[-1]], strictly ascending within a row.
    """
    return distinct_hashes(*ngram_hashes(texts, n))


def char_shingles(texts: pa.Array | pa.ChunkedArray, n: int) -> tuple[I64, U64]:
    """As `shingles`, for the character n-grams of `char_ngram_hashes`."""
    return distinct_hashes(*char_ngram_hashes(texts, n))
