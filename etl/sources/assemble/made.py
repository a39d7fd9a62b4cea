"""What an assembly is given and what it makes: raw rows of one group, and rows made of them.

An assembly sees each raw row as a JSON object of the columns that are read. What it makes are such objects again, which
the shape of the source reads as if they had stood in a file.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Record = dict[str, Any]


class RawRow(NamedTuple):
    """A row of a file."""

    file: str
    position: int
    data: bytes
    """Its columns as JSON; equal for equal rows, so what is chosen by it follows no file."""
    record: Record


class MadeRow(NamedTuple):
    """A row that was made, with the place of the raw row that it is named after."""

    record: Record
    file: str
    position: int
    conversation: str | None = None
    """The same for rows cut from one conversation, of which the last is the whole."""


class BadRow(NamedTuple):
    """A raw row of which nothing can be made."""

    row: RawRow
    reason: str
    detail: str


@dataclass
class Made:
    """What becomes of the rows of one group."""

    rows: list[MadeRow] = field(default_factory=list)
    num_assembled: int = 0
    """Raw rows that went into one of these."""
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason the raw rows that went into none."""
    bad: list[BadRow] = field(default_factory=list)
