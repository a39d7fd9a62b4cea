"""Canaries: keys, levels, edits and the similarity that is reported for them."""

import re
import sys
import unicodedata
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.canaries import (
    SCRIPTS,
    Levels,
    base_row,
    bases,
    canary_rows,
    edit_all,
    edited,
    is_canary,
    kind_of,
    main_scripts,
    similarities,
    token_spans,
    which_canaries,
)
from etl.dedup.near import NearDedup
from etl.text import ALONE_RANGES, shingles

TEXT = " ".join(f"word{n} is Followed by number {n * n}." for n in range(120))


@given(st.integers(0, (1 << 20) - 1), st.integers(0, (1 << 32) - 1), st.integers(0, 31))
def test_a_key_tells_its_row_and_level(split: int, row: int, level: int) -> None:
    key = split << 32 | row
    made = canary_rows(np.array([key], np.int64), np.array([level], np.int64))
    assert (is_canary(made[0]), base_row(made[0]), kind_of(made[0]) // 32) == (True, key, level)
    assert (is_canary(key), base_row(key)) == (False, key)
    assert made[0] > key
    assert bases(made).tolist() == [key]
    assert which_canaries(np.array([key, made[0]])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("threshold", "edges"),
    [
        (0.8, (0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)),
        (0.9, (0.8, 0.85, 0.9, 0.95, 1.0)),
        (0.1, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
        (1.0, (0.9, 0.95, 1.0)),
        (0.77, (0.67, 0.72, 0.77, 0.82, 0.87, 0.92, 0.97, 1.0)),
    ],
)
def test_levels_lie_on_both_sides_of_the_threshold(threshold: float, edges: tuple[float, ...]) -> None:
    levels = Levels(threshold)
    assert levels.edges == edges
    assert [levels.is_duplicate(n) for n in range(len(edges))] == [edge >= threshold for edge in edges]


def test_a_similarity_falls_into_its_level() -> None:
    levels = Levels(0.8)
    assert levels.of(np.array([0.69, 0.7, 0.749, 0.8, 0.8 - 1e-13, 0.97, 1.0])).tolist() == [-1, 0, 0, 2, 2, 5, 6]
    assert [levels.name(n) for n in (0, 5, 6)] == ["0.7-0.75", "0.95-1", "1"]
    assert levels.target(2) == pytest.approx(0.825)
    assert levels.target(6) == 1.0


def word_set(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[n : n + 5]) for n in range(len(words) - 4)}


@pytest.mark.parametrize(("target", "changed"), [(1.0, {0}), (0.98, {2}), (0.8, {15, 16, 17})])
def test_an_edit_replaces_words_and_no_more(target: float, changed: set[int]) -> None:
    """As many (k) of the 720 words as make (716 - 5k) / (716 + 5k) the target."""
    copy = edited(TEXT, target, lambda _: 5.0, False, seed=3)
    assert copy is not None
    assert copy != TEXT
    old, new = re.findall(r"\w+", TEXT), re.findall(r"\w+", copy)
    assert len(old) == len(new)
    assert sum(a != b for a, b in zip(old, new, strict=True)) in changed
    assert edited(TEXT, target, lambda _: 5.0, False, seed=3) == copy


def test_a_short_text_has_no_canary() -> None:
    assert edited("too few words to edit", 0.8, lambda _: 2.0, False, seed=1) is None


def test_canaries_come_near_their_levels_and_their_similarity_is_exact() -> None:
    levels = Levels(0.8)
    ids = pa.array([n.to_bytes(16, "little") for n in range(400)], pa.binary(16))
    texts = pa.array([f"{TEXT} and row {n} itself" for n in range(400)])
    copies = edit_all(ids, texts, levels, lambda _: 5.0, np.zeros(400, np.bool_))
    found = similarities(shingles(texts, 5), shingles(copies, 5))
    for text, copy, jaccard in zip(texts.to_pylist()[:40], copies.to_pylist()[:40], found[:40], strict=True):
        one, other = word_set(text), word_set(copy)
        assert jaccard == pytest.approx(len(one & other) / len(one | other), abs=1e-12)
    counts = np.bincount(levels.of(found), minlength=7)
    assert (counts > 20).all()


def made_of(kind: str, number: int) -> str:
    rng = np.random.default_rng(number)
    length = int(rng.integers(24, 81))
    if kind == "chinese":
        return "".join(chr(code) for code in rng.integers(0x4E00, 0x9FA5, length))
    if kind == "code":
        return " ".join("+-*/=()[]"[code] if code < 9 else f"name{code}" for code in rng.integers(0, 300, length))
    return " ".join(f"word{code}" for code in rng.integers(0, 3000, length))


@pytest.mark.parametrize("kind", ["words", "chinese", "code"])
def test_short_texts_have_canaries_at_every_level(kind: str) -> None:
    near, levels = NearDedup(), Levels(0.8)
    ids = pa.array([n.to_bytes(16, "little") for n in range(400)], pa.binary(16))
    texts = pa.array([made_of(kind, n) for n in range(400)])
    signed = np.full(400, kind == "code")
    copies = edit_all(ids, texts, levels, near.tokens_of_ngram, signed)
    assert copies.null_count == 0
    found = levels.of(similarities(near.shingles(texts, signed), near.shingles(copies, signed)))
    assert (np.bincount(found[found >= 0], minlength=7) >= 20).all()
    assert (found < 0).mean() < 0.1


def test_an_edit_of_code_replaces_signs_too() -> None:
    text = "a + b - c * d / " * 10
    copies = [edited(text, 0.8, NearDedup().tokens_of_ngram, True, seed) for seed in range(9)]
    assert any(copy is not None and sum(map(copy.count, "+-*/")) < 40 for copy in copies)


def test_the_main_script_is_that_of_most_letters() -> None:
    texts = ["a word and 漢字", "漢字の中にかながある", "漢字", "слово a", "คำ", "शब्द", "12 + 3", "", "ｗｉｄｅ"]
    found = [SCRIPTS[place] for place in main_scripts(pa.array(texts))]
    assert found == ["latin", "kana", "han", "cyrillic", "thai", "devanagari", "other", "other", "latin"]
    assert len(SCRIPTS) == 32


@cache
def token_pattern(signed: bool) -> re.Pattern[str]:
    """Tokens as an expression of Python's own module."""
    alone = "".join(f"{chr(first)}-{chr(last)}" for first, last in ALONE_RANGES)
    marks = "".join(char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char)[0] == "M")
    sign = rf"|[^\w\s{marks}]" if signed else ""
    return re.compile(rf"(?=\w)[{alone}][{marks}]*|[^\W{alone}](?:[^\W{alone}]|[{marks}])*{sign}")


@given(
    st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("ab_1 ,+\nกิ์日本ก็é\u0301\u0e3f\u200d"))),
    st.booleans(),
)
def test_tokens_are_those_of_the_expression(text: str, signed: bool) -> None:
    expected = [list(match.span()) for match in token_pattern(signed).finditer(text)]
    assert token_spans(text, signed).tolist() == expected
