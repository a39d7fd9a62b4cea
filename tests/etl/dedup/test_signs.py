"""Digests that distinguish texts which differ only in signs."""

import numpy as np
import pyarrow as pa
import pytest

from etl.dedup.signs import sign_digests


@pytest.mark.parametrize(
    ("one", "other", "words", "signs"),
    [
        ("C++ is old", "C# is old", True, False),
        ("1 + 2", "1 - 2", True, False),
        ("日本+語", "日本-語", True, False),
        ("a  b\n", "A b", True, True),
        ("a b", "b a", False, False),
        ("a a b", "a b", False, False),
        ("+ +", "- -", False, False),
    ],
)
def test_words_and_signs_are_told_apart(one: str, other: str, words: bool, signs: bool) -> None:
    """Texts without a word are compared by their signs, so those differ in what is compared."""
    tokens, with_signs = sign_digests(pa.array([one, other, None]), np.zeros(3, np.bool_))
    assert (tokens[0] == tokens[1], with_signs[0] == with_signs[1]) == (words, signs)


def test_a_text_that_is_cut_with_its_signs_has_one_digest() -> None:
    texts = pa.array(["C++ is old", "C# is old"])
    for signed in ([True, True], [True, False]):
        tokens, with_signs = sign_digests(texts, np.array(signed))
        assert (tokens == with_signs).tolist() == signed
