"""Texts in form NFKC: any text has the words of its form, and a hit's place is the one in the original text."""

import sys
import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.filters.ngram_fold import fold, places_before, rows_to_fold
from etl.filters.ngram_index import QUESTION, Rule
from etl.filters.ngram_words import Words, split_texts
from tests.etl.filters.toys import as_items, index_of

WORDS = Words(latex=True, mask_numbers=False)
TYPED = "aé１２３，．x²ﾊﾟがポ한글각ㄱㅏ㎏½ﬁ…①Åกำ\u0301\u0308\u3099\u1161\u11a8 中，。_＿＼"


def words_of(texts):
    """The words of each text, hashed."""
    split = split_texts(pa.array(texts, pa.string()), WORDS)
    return [split.tokens[a:b].tolist() for a, b in zip(split.bounds, split.bounds[1:], strict=False)]


def nfd(text):
    return unicodedata.normalize("NFD", text)


@given(st.lists(st.text(TYPED, max_size=8).flatmap(lambda text: st.sampled_from([text, nfd(text)])), max_size=4))
def test_words_are_those_of_the_form(texts):
    forms = [unicodedata.normalize("NFKC", text) for text in texts]
    assert words_of(texts) == words_of(forms)


def test_every_character_alone_and_behind_a_letter():
    chars = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    chars = [char for char in chars if unicodedata.normalize("NFKC", char) != char or unicodedata.combining(char)]
    assert max(map(ord, chars)) < 0x30000
    texts = [text for char in chars for text in (char, f"a{char}b", f"1{char}2")]
    forms = [unicodedata.normalize("NFKC", text) for text in texts]
    as_typed, as_formed = (words_of(each) for each in (texts, forms))
    assert [text for text, a, b in zip(texts, as_typed, as_formed, strict=True) if a != b] == []


def test_few_rows_are_normalised_as_strings():
    texts = pa.array(["plain", "１２，がpure漢字é…", nfd("が"), "5㎏", "ﾊﾟ", "กา", "กำ"])
    assert rows_to_fold(texts).tolist() == [2, 3, 4, 6]
    assert fold(texts, rows_to_fold(texts)).to_pylist()[2:5] == ["が", "5kg", "パ"]
    assert fold(texts, rows_to_fold(texts)).to_pylist()[:2] == texts.to_pylist()[:2]


@pytest.mark.parametrize("write", [str, nfd], ids=["as it is", "NFD"])
def test_a_hit_has_the_place_in_the_text_as_it_was(tmp_path, write):
    item = "がぎぐ１２個のゲームで5㎏の菓子"
    index = index_of(tmp_path / "i.arrow", as_items([item]), [Rule("ngram_5", 5, 1.0, near=False)], words=WORDS)
    row = write(f"ﾊﾟﾊﾟ㎏…：{item}です")
    hits = index.scan(pa.array(["other", row]), QUESTION)
    assert hits.row.tolist() == [1]
    assert row.encode()[int(hits.start[0]) : int(hits.end[0])].decode() == write(item)


def test_a_place_within_what_composes_is_widened_to_the_whole():
    start, end = places_before("x㎏y", [2], [2])
    assert (start.tolist(), end.tolist()) == ([1], [4])
