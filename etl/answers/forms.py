"""The forms that an answer may have, as data."""

from dataclasses import dataclass
from typing import Literal

from etl.answers.units import Unit

Kind = Literal["list", "set", "round", "interval", "matrix", "range", "ratio"]


@dataclass(frozen=True)
class Value:
    """A number or an expression."""

    latex: str
    name: str = ""
    """The name of the value: x in x = 5."""
    unit: Unit | None = None
    scale: int = 1
    """Factor given by a word: 1,000,000 for `1.5 million`."""
    percent: bool = False
    is_relation: bool = False
    """Whether it is an equation or inequality that does more than name a value."""


@dataclass(frozen=True)
class Words:
    """Text, in lower case."""

    text: str


@dataclass(frozen=True)
class Option:
    """A letter of a multiple choice, with the text after it."""

    letter: str
    rest: "Reading | None" = None


@dataclass(frozen=True)
class Group:
    """Several readings."""

    kind: Kind
    items: "tuple[Reading, ...]"
    ends: str = ""
    """The brackets of an interval."""


@dataclass(frozen=True)
class Unreadable:
    """An answer in none of the forms above."""

    reason: str


Reading = Value | Words | Option | Group | Unreadable
