"""Canaries: keys, levels, edits and the similarity that is told of them."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.canaries import (
    Levels,
    base_row,
    bases,
    canary_rows,
    edit_all,
    edited,
    is_canary,
    level_of,
    similarities,
    which_canaries,
)
from etl.text import shingles

TEXT = " ".join(f"word{n} is Followed by number {n * n}." for n in range(120))


@given(st.integers(0, (1 << 25) - 1), st.integers(0, (1 << 32) - 1), st.integers(0, 31))
def test_a_key_tells_its_row_and_level(split: int, row: int, level: int) -> None:
    key = split << 32 | row
    made = canary_rows(np.array([key], np.int64), np.array([level], np.int64))
    assert (is_canary(made[0]), base_row(made[0]), level_of(made[0])) == (True, key, level)
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


@pytest.mark.parametrize("damage", [0.0, 0.004, 0.02, 0.05])
def test_an_edit_replaces_so_many_words_and_no_more(damage: float) -> None:
    copy = edited(TEXT, damage, seed=3)
    assert copy is not None
    assert copy != TEXT
    old, new = re.findall(r"\w+", TEXT), re.findall(r"\w+", copy)
    assert len(old) == len(new)
    assert sum(a != b for a, b in zip(old, new, strict=True)) == round(damage * len(old))
    assert edited(TEXT, damage, seed=3) == copy


def test_a_short_text_has_no_canary() -> None:
    assert edited("too few words to edit", 0.1, seed=1) is None


def test_canaries_come_near_their_levels_and_their_similarity_is_exact() -> None:
    levels = Levels(0.8)
    ids = pa.array([n.to_bytes(16, "little") for n in range(400)], pa.binary(16))
    texts = pa.array([f"{TEXT} and row {n} itself" for n in range(400)])
    copies = edit_all(ids, texts, levels, 5.0)
    found = similarities(shingles(texts, 5), shingles(copies, 5))
    for text, copy, jaccard in zip(texts.to_pylist()[:40], copies.to_pylist()[:40], found[:40], strict=True):
        one, other = word_set(text), word_set(copy)
        assert jaccard == pytest.approx(len(one & other) / len(one | other), abs=1e-12)
    counts = np.bincount(levels.of(found), minlength=7)
    assert (counts > 20).all()
