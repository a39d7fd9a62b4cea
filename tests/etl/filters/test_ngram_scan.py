"""The kernels of the index: keys against their formula, the table of keys, and where a scan finds what."""

import re

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from etl.filters.ngram_index import QUESTION, Rule, build, characters_before
from etl.filters.ngram_scan import fill_slots, keys_of_texts
from etl.filters.ngram_words import ROOM, word_hash
from tests.etl.filters.toys import PLAIN, as_items, grams, index_of

BASE = 0xA0761D6478BD642D
toy_text = st.lists(st.sampled_from(["a", "B", "c", "d", "é", "1"]), max_size=12).map(" ".join)


def key_of(words):
    """XXH64 of a polynomial in the words modulo 2^64, seeded with their number."""
    value = 0
    for word in words:
        value = (value * BASE + word) % 2**64
    return xxhash.xxh64_intdigest(value.to_bytes(8, "little"), len(words))


@given(st.lists(st.tuples(st.lists(st.integers(0, 2**64 - 1), max_size=6), st.integers(0, 7)), max_size=4))
def test_keys_are_those_of_the_formula_for_each_text_and_its_own_length(texts):
    words = np.array([word for text, _ in texts for word in text], np.uint64)
    bounds = np.cumsum([0, *(len(text) for text, _ in texts)]).astype(np.int64)
    keys, owner = keys_of_texts(words, bounds, np.array([n for _, n in texts], np.int64))
    expected = [
        (key_of(text[start : start + n]), number)
        for number, (text, n) in enumerate(texts)
        if n > 0
        for start in range(len(text) - n + 1)
    ]
    assert list(zip(keys.tolist(), owner.tolist(), strict=True)) == expected


def test_a_key_whose_slot_is_taken_gets_the_next_free_one_around_the_end():
    """Of eight slots 7, 15 and 23 belong in the last one, and 0 in the one that 15 has taken by then."""
    keys = np.array([7, 15, 23, 0, 3], np.uint64)
    assert fill_slots(keys, 8).tolist() == [1, 2, 3, 4, -1, -1, -1, 0]


def test_the_ngrams_of_an_item_are_hashes_of_its_words():
    tables = build(as_items(["one two three"]), [Rule("ngram_2", 2, 1.0, near=False)], PLAIN, 1)
    one, two, three = (int(word_hash(word)) for word in ("one", "two", "three"))
    assert tables.keys.tolist() == sorted([key_of([one, two]), key_of([two, three])])


@pytest.mark.parametrize(
    ("row", "span", "ratio"),
    [
        ("a b c d", "a b c d", 1.0),
        ("x a b c d", "a b c d", 1.0),
        ("a b c x c d", "a b c x c d", 1.0),
        ("a b x a b c", "a b c", 2 / 3),
        ("b c, c d; b c d", "b c d", 2 / 3),
        ("a b", None, 0.0),
        ("a c b d", None, 0.0),
    ],
)
def test_a_hit_has_its_share_of_ngrams_and_its_shortest_place(tmp_path, row, span, ratio):
    index = index_of(tmp_path / "i.arrow", as_items(["a b c d"]), [Rule("ngram_2", 2, 0.6, near=False)])
    hits = index.scan(pa.array([row]), QUESTION)
    found = [row[start:end] for start, end in zip(hits.start.tolist(), hits.end.tolist(), strict=True)]
    assert found == ([] if span is None else [span])
    assert hits.ratio.tolist() == pytest.approx([] if span is None else [ratio])


@given(question=toy_text, row=toy_text)
def test_the_span_is_the_shortest_stretch_that_holds_what_counted(tmp_path_factory, question, row):
    rules = [Rule("ngram_2", 2, 0.01, near=False)]
    index = index_of(tmp_path_factory.getbasetemp() / "span.arrow", as_items([question]), rules)
    wanted = grams(question.lower().split(), 2)
    text = f"… {row}!"
    hits = index.scan(pa.array([text]), QUESTION)
    words = [(match.group().lower(), match.start(), match.end()) for match in re.finditer(r"\w+", text)]
    shared = wanted & grams([word for word, _, _ in words], 2)
    if len(question.split()) < 2 or not shared:
        assert len(hits.row) == 0
        return
    spans = [
        (words[j][2] - words[i][1], words[i][1], words[j][2])
        for i in range(len(words))
        for j in range(i + 1, len(words))
        if shared <= grams([word for word, _, _ in words[i : j + 1]], 2)
    ]
    start, end = characters_before(
        pa.array([text]), np.repeat(hits.row, 2), np.array([*hits.start, *hits.end])
    ).tolist()
    assert shared <= grams(text[start:end].lower().split(), 2)
    data = text.encode()
    fewest_bytes = min(len(text[start:end].encode()) for _, start, end in spans)
    assert len(data[hits.start[0] : hits.end[0]]) == fewest_bytes


def test_a_text_longer_than_every_buffer(tmp_path):
    item = " ".join(f"w{n}" for n in range(40))
    index = index_of(tmp_path / "i.arrow", as_items([item]), [Rule("ngram_8", 8, 1.0, near=False)])
    filler = " ".join(f"v{n}" for n in range(3 * ROOM))
    row = f"{filler} " + f"{item} " * 200 + filler
    hits = index.scan(pa.array(["", row, "w1 w2"]), QUESTION)
    assert hits.row.tolist() == [1]
    assert row[int(hits.start[0]) : int(hits.end[0])] == item


def test_many_hits_of_one_row(tmp_path):
    items = [" ".join(f"w{n}" for n in range(first, first + 9)) for first in range(2000)]
    index = index_of(tmp_path / "i.arrow", as_items(items), [Rule("ngram_8", 8, 1.0, near=False)])
    hits = index.scan(pa.array([" ".join(f"w{n}" for n in range(2008))]), QUESTION)
    assert sorted(hits.text.tolist()) == list(range(2000))
