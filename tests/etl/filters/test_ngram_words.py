"""Word splitting of the n-gram index against regular expressions."""

import gzip
import json
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.filters.ngram_words import (
    CONTENT,
    IDEOGRAPH,
    LETTER,
    NUMBER,
    WORD,
    Words,
    masked,
    split_texts,
    word_hash,
)

LAYOUT = {"left", "right", "quad", "text", "big"}
TRICKY = r"""abKxZ 019_\$^{},.-'’éßΣσς²½٣中İ🙂题ひแ๑""" + "\n\t\u0301"
ALONE = "中题ひแ"
NUMBER_PATTERN = r"\d+(?:\.\d+|,\d{3}(?!\d))*"
PIECES = [
    r"\left(",
    r"\right)",
    r"\frac",
    r"\dfrac12",
    r"\\",
    r"\,",
    "1,600.5",
    "3.14",
    "25,000,1",
    "x_1",
    "2x",
    r"\text{if}",
    "Ab",
    " ",
    "$",
]


def oracle_words(text, latex, mask):
    """What a text in form NFKC is made of, by regular expressions."""
    text = unicodedata.normalize("NFKC", text)

    def fold(word):
        return word.replace("İ", "i").lower().replace("ς", "σ")

    if mask:
        text = re.sub(r"\d+(?:[.,]\d+)*", "0", text)
    if not latex:
        words = re.findall(rf"[{ALONE}]|{NUMBER_PATTERN}[^\W{ALONE}]*|[^\W{ALONE}]+", text)
        return [fold(word).replace(",", "") for word in words]
    found = []
    for piece in re.findall(rf"\\\\|\\[A-Za-z]+|[{ALONE}]|{NUMBER_PATTERN}|[^\W\d_{ALONE}]+", text):
        word = fold(piece).replace(",", "")
        if word.startswith("\\"):
            word = word[1:]
            if word == "\\" or word in LAYOUT:
                continue
            word = {"dfrac": "frac", "tfrac": "frac"}.get(word, word)
        found.append(word)
    return found


@pytest.mark.parametrize("latex", [False, True])
@pytest.mark.parametrize("mask", [False, True])
@given(text=st.lists(st.one_of(st.sampled_from(PIECES), st.text(TRICKY, max_size=6)), max_size=8).map("".join))
def test_words_are_those_of_regular_expressions(text, latex, mask):
    split = split_texts(pa.array([text]), Words(latex, mask))
    assert split.tokens.tolist() == [word_hash(word) for word in oracle_words(text, latex, mask)]
    assert split.bounds.tolist() == [0, len(split.tokens)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("$x ^ 2$", "x^{2}"),
        (r"\left( 2x \right)", "(2 x)"),
        (r"$a \, b\ c$", "a b c"),
        (r"\dfrac{1}{2}", r"\frac 1 2"),
        (r"x_{1}", "x_1"),
        (r"\text{if } n", "if n"),
    ],
)
def test_the_dress_of_latex_makes_no_difference(one, other):
    words = Words(latex=True, mask_numbers=False)
    split = [split_texts(pa.array([text]), words).tokens.tolist() for text in (one, other)]
    assert split[0] == split[1]


def test_each_character_of_a_script_without_spaces_is_a_word_and_has_a_class():
    texts = ["小明有15个x。", "りんごはabc3.5円ー", "ราคา๑๒บาท", "사과 2개", ""]
    split = split_texts(pa.array(texts), Words(latex=True, mask_numbers=False))
    classes = [split.classes[a:b].tolist() for a, b in zip(split.bounds, split.bounds[1:], strict=False)]
    kana, thai = [LETTER] * 4, [LETTER] * 4
    assert classes == [
        [IDEOGRAPH, IDEOGRAPH, IDEOGRAPH, NUMBER, IDEOGRAPH, WORD],
        [*kana, WORD, NUMBER, IDEOGRAPH, LETTER],
        [*thai, NUMBER, LETTER, LETTER, LETTER],
        [WORD, NUMBER, WORD],
        [],
    ]


def test_numbers_read_as_the_same_are_no_number_that_a_text_may_hold():
    split = split_texts(pa.array(["x 0 7 1,600 2.5"]), Words(latex=True, mask_numbers=False))
    tokens = masked(split.tokens, split.classes)
    assert len(set(tokens.tolist())) == 2
    assert tokens[0] == split.tokens[0]
    assert tokens[1] not in split.tokens


def test_what_a_word_is_worth_is_what_translations_of_one_text_need(shared_data):
    """The Universal Declaration of Human Rights has 1,687 words in English."""
    with gzip.open(shared_data / "langid_udhr" / "udhr.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = {row["code"]: "\n".join(row["paragraphs"]) for row in map(json.loads, file)}
    wanted = ["eng", "cmn_hans", "cmn_hant", "jpn", "tha", "lao", "khm", "mya"]
    split = split_texts(pa.array([texts[code] for code in wanted]), Words(latex=True, mask_numbers=False))
    worth = np.add.reduceat(CONTENT[split.classes], split.bounds[:-1])
    assert dict(zip(wanted, worth / worth[0], strict=True)) == pytest.approx(dict.fromkeys(wanted, 1), abs=0.12)
