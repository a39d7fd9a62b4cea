"""The kernels against plain Python: `re`, `str.lower`, `str.split`, `unicodedata` and integers."""

import itertools
import re
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from etl import text
from etl.text import (
    char_ngram_hashes,
    char_shingles,
    is_laid_out,
    ngram_hashes,
    normalise,
    normalise_layout,
    shingles,
)

START, MULTIPLIER, BASE = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xA0761D6478BD642D
TRICKY = "aA1_ \t\n.'ΣσςİiIıßẞǅÉée\u0301\u0307\u00ad\u200d\u00a0\u2003中𝐀𐐀𞤀\x00\x1c\x85"

tricky_text = st.text(st.sampled_from(TRICKY))
any_text = st.text(st.characters(exclude_categories=["Cs"]))
assigned_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]))
texts_with_nulls = st.lists(st.none() | tricky_text | any_text, max_size=8)


def word_hash(word: str) -> int:
    state = START
    for character in word:
        state = (state ^ ord(character)) * MULTIPLIER % 2**64
        state ^= state >> 32
    return state


def expected_ngrams(value: str | None, n: int) -> list[int]:
    if value is None:
        return []
    words = [word_hash(word) for word in re.findall(r"\w+", value.lower())]
    words += [0] * (n - len(words))
    sums = [sum(w * BASE ** (n - 1 - i) for i, w in enumerate(words[k : k + n])) for k in range(len(words) - n + 1)]
    return [xxhash.xxh64_intdigest((total % 2**64).to_bytes(8, "little")) for total in sums]


def rows_of(offsets: np.ndarray, hashes: np.ndarray) -> list[list[int]]:
    return [hashes[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def assigned_characters() -> list[str]:
    every = map(chr, range(sys.maxunicode + 1))
    return [c for c in every if unicodedata.category(c) not in ("Cs", "Cn")]


@given(texts_with_nulls, st.integers(1, 7))
@example(["ΑΣ ΑΣΑ Σ AΣ\u00ad. \u0307Σ", "İSTANBUL Iİ", "", "...", None, "one", "a b c d e f a b c d e"], 5)
def test_ngrams_are_those_of_python(values: list[str | None], n: int) -> None:
    offsets, hashes = ngram_hashes(pa.array(values, pa.string()), n)
    assert offsets.dtype == np.int64
    assert hashes.dtype == np.uint64
    assert rows_of(offsets, hashes) == [expected_ngrams(value, n) for value in values]


def expected_char_ngrams(value: str | None, n: int) -> list[int]:
    if value is None:
        return []
    codes = [ord(c) for c in " ".join(re.findall(r"\w+", value.lower()))]
    codes += [0] * (n - len(codes))
    sums = [sum(c * BASE ** (n - 1 - i) for i, c in enumerate(codes[k : k + n])) for k in range(len(codes) - n + 1)]
    return [xxhash.xxh64_intdigest((total % 2**64).to_bytes(8, "little"), 1) for total in sums]


@given(texts_with_nulls, st.integers(1, 7))
@example(["ΑΣ ΑΣΑ Σ AΣ\u00ad. \u0307Σ", "İSTANBUL Iİ", "", "...", None, " a  b ", "a b c d e f a b c d e"], 5)
def test_character_ngrams_are_those_of_python(values: list[str | None], n: int) -> None:
    offsets, hashes = char_ngram_hashes(pa.array(values, pa.string()), n)
    assert rows_of(offsets, hashes) == [expected_char_ngrams(value, n) for value in values]
    expected = [sorted(set(row)) for row in rows_of(offsets, hashes)]
    assert rows_of(*char_shingles(pa.array(values, pa.string()), n)) == expected


@given(texts_with_nulls, st.integers(1, 7))
def test_shingles_are_the_sorted_set_of_ngrams(values: list[str | None], n: int) -> None:
    texts = pa.array(values, pa.string())
    expected = [sorted(set(row)) for row in rows_of(*ngram_hashes(texts, n))]
    assert rows_of(*shingles(texts, n)) == expected


def test_shingles_of_a_long_repetitive_text_are_few() -> None:
    words = ["alpha", "beta", "gamma"] * 5000
    offsets, hashes = shingles(pa.array([" ".join(words), "x"]), 2)
    pairs = {("alpha", "beta"), ("beta", "gamma"), ("gamma", "alpha")}
    assert hashes[: offsets[1]].tolist() == sorted(expected_ngrams(" ".join(pair), 2)[0] for pair in pairs)
    assert offsets.tolist() == [0, 3, 4]


def test_every_code_point_alone_is_the_word_that_python_sees() -> None:
    characters = [c for c in map(chr, range(sys.maxunicode + 1)) if not "\ud800" <= c <= "\udfff"]
    plain = " ".join(c for c in characters if c not in "İΣ")  # the two need the row to go through Python
    words = re.findall(r"\w+", plain.lower())
    assert set(map(len, words)) == {1}
    expected = [word_hash(word) for word in words]
    _, hashes = ngram_hashes(pa.array([plain]), 1)
    assert len(hashes) == len(expected)
    sample = [*range(0, len(words), 97), *range(2000)]
    assert [hashes[i] for i in sample] == [xxhash.xxh64_intdigest(expected[i].to_bytes(8, "little")) for i in sample]
    assert len(np.unique(hashes)) == len(set(words))
    assert rows_of(*ngram_hashes(pa.array(["İ", "Σ"]), 1)) == [
        expected_ngrams("İ", 1),
        expected_ngrams("Σ", 1),
    ]


def test_python_table_names_the_only_characters_that_need_python() -> None:
    table, exceptions = text.word_table()
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    assert set(exceptions) == {c for c in every if len(c.lower()) != 1} | {"Σ"}
    for c in every:
        if c not in exceptions:
            assert table[ord(c)] == (ord(c.lower()) if re.match(r"\w", c.lower()) else 0)
    assert not table[sys.maxunicode + 1 :].any()


@pytest.mark.parametrize(
    "invalid", [b"a \xff\xff", b"a \xf0\x9f", b"a \xe4\xb8", b"a \xc3", b"\x80\x80a", b"\xf7\xbf\xbf\xbf"]
)
def test_invalid_utf8_reads_nothing_out_of_bounds(invalid: bytes) -> None:
    array = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, len(invalid)], np.int32)), pa.py_buffer(invalid)]
    )
    offsets, hashes = ngram_hashes(array, 1)
    assert offsets[-1] == len(hashes) <= len(invalid)


@given(texts_with_nulls, st.integers(0, 4), st.integers(0, 4))
def test_slices_chunks_and_wide_offsets_change_nothing(values: list[str | None], skip: int, cut: int) -> None:
    plain = pa.array(values, pa.string())
    padded = pa.array(["before Σ"] * skip + values + [None, "after"], pa.string()).slice(skip, len(values))
    chunked = pa.chunked_array([plain.slice(0, cut), plain.slice(cut)], pa.string())
    for other in (padded, chunked, plain.cast(pa.large_string())):
        assert rows_of(*shingles(other, 3)) == rows_of(*shingles(plain, 3))
        assert normalise(other).to_pylist() == normalise(plain).to_pylist()
        assert normalise(other).type == other.type


@given(st.lists(st.none() | tricky_text | assigned_text, max_size=8))
@example(["  a\t\tb\r\n", "", " \u3000 ", None, "e\u0301 \u2003x²", "中\u0301"])
def test_normalise_is_nfd_and_single_spaces(values: list[str | None]) -> None:
    array = normalise(pa.array(values, pa.string()))
    array.validate(full=True)
    expected = [None if v is None else " ".join(unicodedata.normalize("NFD", v).split()) for v in values]
    assert array.to_pylist() == expected
    assert normalise(array).to_pylist() == expected


def test_normalise_agrees_with_python_on_every_assigned_character() -> None:
    values = [f"x{c}y" for c in assigned_characters()]
    expected = [" ".join(unicodedata.normalize("NFD", value).split()) for value in values]
    assert normalise(pa.array(values)).to_pylist() == expected


def test_null_row_with_bytes_under_it_has_no_ngrams() -> None:
    mask = pa.py_buffer(b"\x02")  # the first row is null although its offsets enclose three letters
    offsets = pa.py_buffer(np.array([0, 3, 6], np.int32))
    array = pa.Array.from_buffers(pa.string(), 2, [mask, offsets, pa.py_buffer(b"abcdef")])
    assert rows_of(*ngram_hashes(array, 1)) == [[], expected_ngrams("def", 1)]
    assert normalise(array).to_pylist() == [None, "def"]


spaced_text = st.text(st.sampled_from("ab é\u0301\t\r\n\x0b\x1c\x85\xa0\u2028\u3000"), max_size=12)
lines = st.lists(st.none() | spaced_text, max_size=6)


@given(lines, st.sampled_from([pa.string(), pa.large_string()]))
@example([" a\n b", "a\n\n \n", "a\r\u3000b", None, ""], pa.string())
def test_a_text_is_laid_out_if_a_later_line_is_indented(values, kind):
    array = pa.array([None, *values], kind).slice(1)
    expected = [bool(re.search(r"[\r\n][^\S\r\n]+\S", value or "")) for value in values]
    assert is_laid_out(array).tolist() == expected


@given(lines, st.sampled_from([pa.string(), pa.large_string()]))
@example(["a \t\r\n  b\r\rc \n", "cafe\u0301\n é ", None], pa.string())
def test_layout_is_kept_but_for_line_ends_and_the_space_before_them(values, kind):
    found = normalise_layout(pa.array([None, *values], kind).slice(1))
    assert found.type == kind
    for value, form in zip(values, found.to_pylist(), strict=True):
        if value is None:
            assert form is None
        else:
            ends = re.sub(r"\r\n?", "\n", unicodedata.normalize("NFD", value))
            assert form == re.sub(r"[ \t]+\n", "\n", ends).rstrip()


def test_the_tables_of_characters_are_pythons():
    characters = list(map(chr, range(sys.maxunicode + 1)))
    assert text.categories().tolist() == [unicodedata.category(char).encode() for char in characters]
    spaces = np.flatnonzero(text._space_table()).tolist()
    assert spaces == [code for code, char in enumerate(characters) if char.isspace()]
