"""Word splitting of the n-gram index against regular expressions."""

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.filters.ngram_words import Words, hash_words, word_hash

LAYOUT = {"left", "right", "quad", "text", "big"}
TRICKY = r"""abKxZ 019_\$^{},.-'’éßΣσς²½٣中İ🙂""" + "\n\t\u0301"
PIECES = [
    r"\left(",
    r"\right)",
    r"\frac",
    r"\dfrac12",
    r"\\",
    r"\,",
    "1,600.5",
    "x_1",
    "2x",
    r"\text{if}",
    "Ab",
    " ",
    "$",
]


def oracle_words(text, latex, mask):
    """What a text is made of, by regular expressions."""

    def fold(word):
        return word.replace("İ", "i").lower().replace("ς", "σ")

    if mask:
        text = re.sub(r"\d+(?:[.,]\d+)*", "0", text)
    if not latex:
        return re.findall(r"\w+", fold(text))
    found = []
    for piece in re.findall(r"\\\\|\\[A-Za-z]+|\d+|[^\W\d_]+", text):
        word = fold(piece)
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
    hashes, bounds = hash_words(pa.array([text]), Words(latex, mask))
    assert hashes.tolist() == [word_hash(word) for word in oracle_words(text, latex, mask)]
    assert bounds.tolist() == [0, len(hashes)]


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
    split = [hash_words(pa.array([text]), words)[0].tolist() for text in (one, other)]
    assert split[0] == split[1]
