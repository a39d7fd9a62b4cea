from typing import Annotated, ClassVar, Literal

from pydantic import Field

from etl.config import Config
from etl.keys import Key, keys_of, models_of, purpose_of


class Inner(Config):
    depth: int = 1
    """How deep."""


class Toy(Config):
    """The first sentence,
    over two lines.

    More.
    """

    kind: Literal["toy"] = "toy"
    share: float = Field(ge=0, lt=1)
    """A share
    of rows."""
    keep: tuple[str, ...] | None = None
    sizes: dict[str, int] = {}
    inner: Inner = Inner()
    mode: Literal["a", "b"] = "a"
    word: Annotated[str, Field(pattern="^x")] = "x"
    many: tuple[int | str, ...] = (1, "no")
    on: bool = True


def test_keys_have_types_bounds_defaults_and_docstrings():
    assert keys_of(Toy) == [
        Key("kind", "toy", "toy", ""),
        Key("share", "number, at least 0, below 1", None, "A share of rows."),
        Key("keep", "list of text or null", "null", ""),
        Key("sizes", "mapping of whole number", "{}", ""),
        Key("inner", "Inner", "the defaults of Inner", ""),
        Key("mode", "one of a, b", "a", ""),
        Key("word", "text, matching ^x", "x", ""),
        Key("many", "list, each whole number or text", "[1, 'no']", ""),
        Key("on", "true or false", "true", ""),
    ]


def test_models_below_a_model_have_their_keys():
    toy, inner = models_of(Toy)
    assert (toy.name, toy.keys) == ("Toy", keys_of(Toy))
    assert (inner.name, inner.keys) == ("Inner", [Key("depth", "whole number", "1", "How deep.")])


def test_a_purpose_is_the_beginning_of_the_docstring_unless_one_is_written():
    assert purpose_of(Toy) == "The first sentence, over two lines."

    class Told(Toy):
        purpose: ClassVar[str] = "Told."

    assert purpose_of(Told) == "Told."
