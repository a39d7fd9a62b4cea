"""Hits of the index against plain Python: sets and all stretches of a text."""

import math
import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.filters.ngram_index import (
    ANSWER,
    QUESTION,
    Rule,
    build,
)
from tests.etl.filters.toys import PLAIN, as_items, grams, index_of


def found(index, rows, parts=QUESTION | ANSWER):
    hits = index.scan(pa.array(rows, pa.string()), parts)
    ratio = [round(value, 9) for value in hits.ratio.tolist()]
    return sorted(zip(hits.row.tolist(), hits.text.tolist(), hits.rule.tolist(), ratio, strict=True))


WORTH = {"中": 0.7, "か": 0.25}


def split_words(text):
    return re.findall(r"[中か]|[^\W中か]+", text.lower())


def as_masked(words):
    return ["#" if word.isdecimal() else word for word in words]


def places(words):
    """Each number between its neighbours."""
    around = [None, *as_masked(words), None]
    return {(around[i], word, around[i + 2]) for i, word in enumerate(words) if word.isdecimal()}


def shows_places(words):
    """The places that a part of a text may have: it begins or ends with the number, or does not."""
    return {(a, word, b) for left, word, right in places(words) for a in (left, None) for b in (right, None)}


def oracle_ratio(rule, words, held):
    """What a rule measures of an item in a row."""
    if rule.near:
        wanted, shown = grams(words, rule.n), grams(held, rule.n)
        return len(wanted & shown) / len(wanted | shown)
    if rule.masked:
        if len(places(words) - shows_places(held)) > 1:
            return 0.0
        words, held = as_masked(words), as_masked(held)
    n = min(rule.n, len(words))
    wanted = {gram for gram in grams(words, n) if not rule.masked or 2 * gram.count("#") <= n}
    if not wanted:
        return 0.0
    return len(wanted & grams(held, n)) / len(wanted) if len(held) >= n else 0.0


def oracle_is_sought(rule, words, asked, min_words):
    worth = round(sum(WORTH.get(word, 1) for word in words), 9)
    if rule.masked:
        return asked and any(word.isdecimal() for word in words) and round(worth - 1, 9) >= min_words
    return bool(words) and (worth >= min_words or (rule.near and asked))


def oracle_hits(items, rules, rows, min_words):
    hits = []
    for number, row in enumerate(rows):
        held = split_words(row)
        for text, item in enumerate(items.text.to_pylist()):
            words = split_words(item)
            for r, rule in enumerate(rules):
                if not oracle_is_sought(rule, words, items.part[text] == QUESTION, min_words):
                    continue
                ratio = oracle_ratio(rule, words, held)
                if ratio >= rule.threshold - 1e-12:
                    hits.append((number, text, r, round(ratio, 9)))
    return sorted(hits)


TOY_RULES = [
    Rule("ngram_4", 4, 0.5, near=False),
    Rule("ngram_2", 2, 0.75, near=False),
    Rule("numbers", 3, 0.8, near=False, masked=True),
    Rule("near", 3, 0.6, near=True),
]
toy_text = st.lists(st.sampled_from(["a ", "B ", "c ", "é ", "1 ", "2 ", "中", "か"]), max_size=12).map("".join)


@given(
    questions=st.lists(toy_text, min_size=1, max_size=5),
    answers=st.lists(toy_text, max_size=3),
    rows=st.lists(toy_text, max_size=6),
    min_words=st.integers(1, 5),
)
def test_hits_are_those_of_brute_force(tmp_path_factory, questions, answers, rows, min_words):
    items = as_items(questions, answers)
    index = index_of(tmp_path_factory.getbasetemp() / "toy.arrow", items, TOY_RULES, min_words)
    assert found(index, rows) == oracle_hits(items, TOY_RULES, rows, min_words)


def test_what_every_item_says_names_none_of_them(tmp_path):
    items = [f"write a python function that will find the {n} of a {n} and a {n + 1}" for n in range(50)]
    rules = [Rule("ngram_8", 8, 0.7, near=False)]
    tables = build(as_items(items), rules, PLAIN, 5)
    common = int(np.bincount(tables.set_ngrams).argmax())
    assert tables.anchor_offsets[common] == tables.anchor_offsets[common + 1]
    index = index_of(tmp_path / "i.arrow", as_items(items), rules)
    assert found(index, ["Write a python function that will find the best of all worlds", items[7]]) == [(1, 7, 0, 1.0)]


def test_a_part_that_is_not_sought_is_not_found(tmp_path):
    text = "one two three four"
    index = index_of(tmp_path / "i.arrow", as_items([text], [text]), [Rule("ngram_2", 2, 1.0, near=False)])
    assert [hit[1] for hit in found(index, [text], QUESTION)] == [0]
    assert [hit[1] for hit in found(index, [text], ANSWER)] == [1]
    assert [hit[1] for hit in found(index, [text])] == [0, 1]


def test_a_slice_of_an_array_and_no_rows(tmp_path):
    index = index_of(tmp_path / "i.arrow", as_items(["one two three four"]), [Rule("ngram_2", 2, 1.0, near=False)])
    rows = pa.array(["nothing here", "one two three four", "or here"]).slice(1)
    assert index.scan(rows, QUESTION).row.tolist() == [0]
    assert len(index.scan(pa.array([], pa.string()), QUESTION).row) == 0


def test_the_threshold_is_reached_or_not(tmp_path):
    item = " ".join(f"w{n}" for n in range(14))  # 10 5-grams
    index = index_of(tmp_path / "i.arrow", as_items([item]), [Rule("ngram_5", 5, 0.7, near=False)])
    words = item.split()
    for held in range(11):
        row = " ".join(words[: held + 4]) + " x y z"
        assert bool(found(index, [row])) == (held >= 7), held
    assert math.ceil(0.7 * 10 - 1e-9) == 7  # not 8, as 0.7 · 10 = 7.000000000000001 would have it in floats


def test_a_similarity_that_equals_the_threshold_is_enough(tmp_path):
    items = as_items(["a b c d"])
    for threshold, number in ((0.6, 1), (0.61, 0)):
        index = index_of(tmp_path / f"{threshold}.arrow", items, [Rule("near", 1, threshold, near=True)])
        assert len(found(index, ["a b c e"])) == number


def test_the_same_items_make_the_same_file(tmp_path):
    for name in ("a", "b"):
        index_of(tmp_path / name, as_items(["one two three", "two three four five"], ["six seven"]), TOY_RULES)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "is_hit"),
    [
        ("a 1 b c 3 d e f", True),
        ("x a 1 b c 3 d e f y", True),
        ("a 9 b c 2 d e f", True),
        ("a 1 b c 2 d e f", True),
        ("a 9 b c 8 d e f", False),
        ("a 2 b c 1 d e f", False),
        ("a 1 b c d e f", False),
    ],
)
def test_one_number_may_be_another_and_no_number_stands_elsewhere(tmp_path, row, is_hit):
    rules = [Rule("numbers", 4, 1.0, near=False, masked=True)]
    index = index_of(tmp_path / "i.arrow", as_items(["a 1 b c 2 d e f"]), rules)
    assert bool(found(index, [row])) == is_hit
    assert found(index, [row], ANSWER) == []


def test_a_hit_with_another_number_has_its_place(tmp_path):
    rules = [Rule("numbers", 3, 1.0, near=False, masked=True)]
    index = index_of(tmp_path / "i.arrow", as_items(["甲有2个球，乙有5只"]), rules)
    row = "问：甲有2个球，乙有71只？"
    hits = index.scan(pa.array([row]), QUESTION)
    assert row.encode()[int(hits.start[0]) : int(hits.end[0])].decode() == "甲有2个球，乙有71只"


def test_arithmetic_alone_is_not_sought_with_another_number(tmp_path):
    rules = [Rule("numbers", 3, 0.5, near=False, masked=True), Rule("ngram_3", 3, 1.0, near=False)]
    index = index_of(tmp_path / "i.arrow", as_items(["1 + 2 + 3 + 4 + 5 + 6"]), rules)
    assert found(index, ["1 + 2 + 3 + 4 + 5 + 7", "1 + 2 + 3 + 4 + 5 + 6"]) == [(1, 0, 1, 1.0)]
