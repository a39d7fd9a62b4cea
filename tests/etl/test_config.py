"""The base of every configuration: unknown keys, fields that never change, and what a fingerprint is made of."""

from typing import ClassVar

import pytest
from pydantic import ValidationError

from etl.config import Config, nearest


class Inner(Config):
    rate: float = 0.5
    """Of pay."""
    day: str = "never"


class Toy(Config):
    name: str
    size: int = 3
    inner: Inner = Inner()
    words: tuple[str, ...] = ()


class Placed(Toy):
    located: ClassVar[frozenset[str]] = frozenset({"size"})


class Empty(Config):
    pass


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("sise", ["name", "size", "inner"], "did you mean 'size'? "),
        ("size", ["name", "size"], "did you mean 'size'? "),
        ("xyz", ["name"], "did you mean 'name'? "),
        ("xyz", [], ""),
    ],
)
def test_the_known_name_that_is_most_like_one(name, known, said):
    assert nearest(name, known) == said


@pytest.mark.parametrize(
    ("model", "values", "told"),
    [
        (
            Toy,
            {"name": "a", "sise": 1},
            "unknown key 'sise'; did you mean 'size'? valid keys: name, size, inner, words",
        ),
        (Toy, {"name": "a", "inner": {"rte": 1}}, "unknown key 'rte'; did you mean 'rate'? valid keys: rate, day"),
        (Empty, {1: "x"}, "unknown key '1'; valid keys: "),
    ],
)
def test_an_unknown_key_is_told_with_those_that_are_valid(model, values, told):
    with pytest.raises(ValidationError) as raised:
        model.model_validate(values)
    assert [error["msg"] for error in raised.value.errors()] == [f"Value error, {told}"]


def test_numbers_are_good_text_and_no_numbers_are_made_of_words():
    assert Toy(name=12, words=(1.5, "x")) == Toy(name="12", words=("1.5", "x"))
    with pytest.raises(ValidationError, match="size"):
        Toy(name="a", size="big")


def test_the_docstring_of_a_field_is_its_description():
    assert Inner.model_fields["rate"].description == "Of pay."


def test_values_never_change():
    with pytest.raises(ValueError, match="frozen"):
        Toy(name="a").size = 4


def test_semantic_fields_leave_defaults_out():
    assert Placed(name="a", size=9, words=("x",)).fingerprinted() == {"name": "a", "words": ["x"]}
    assert Toy(name="a", size=3).fingerprinted() == {"name": "a"}
    assert Toy(name="a", inner=Inner(rate=2)).fingerprinted() == {"name": "a", "inner": {"rate": 2.0}}
