"""Placeholders filled from other data sets: rows that hold "-" where the question of another table belongs.

A row names the table by data set and split, and the row of it by its number. The tables are given in the recipe
(`sources.NAME.tables`), each under `DATASET/SPLIT`. Only the text that is filled in travels, once for each question.
"""

from typing import Any, Literal

from pydantic import Field

from etl.config import Config
from etl.sources.assemble.made import Record
from etl.sources.shapes.turns import Unfit


class Section(Config):
    """A part of the text that is filled in."""

    column: str
    """Column of the other table: a text, or a list of objects with `input` and `output`."""
    heading: str | None = None
    """A line before it, apart by blank lines; a part that is empty has none."""

    def written(self, value: Any) -> str:
        """The part, or "" where there is nothing to say."""
        if isinstance(value, list):
            said = [
                f"\n\n{key.capitalize()}\n\n{item[key]}"
                for item in value if isinstance(item, dict)
                for key in ("input", "output") if item.get(key) is not None
            ]  # fmt: skip
            return f"\n\n{self.heading or ''}".rstrip() + "".join(said) if said else ""
        if not isinstance(value, str) or not value:
            return ""
        return value if self.heading is None else f"\n\n{self.heading}\n\n{value}"


class Join(Config):
    """Placeholders filled with the question of another data set, by data set, split and row number."""

    kind: Literal["join"]
    dataset: str = "dataset"
    """Column that names the data set."""
    split: str = "split"
    """Column that names its split."""
    index: str = "index"
    """Column of the row's number in it, from 0."""
    into: str = "question"
    """Column that is filled in: a text, or messages of which one has the placeholder as its content."""
    placeholder: str = "-"
    """What stands there; rows with anything else stay as they are."""
    tables: dict[str, tuple[Section, ...]] = Field(min_length=1)
    """By data set the columns that make its question, the first of which a row needs."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of a row."""
        return self.dataset, self.split, self.index, self.into

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns without which nothing can be made."""
        return (self.into,)

    @property
    def makes(self) -> tuple[str, ...]:
        """The columns of the rows that are made, beside those of the raw rows."""
        return ()

    def key(self, record: Record) -> str:
        """The row of the other table that a row needs; "" where it has no placeholder.

        Raises:
            Unfit: the row has a placeholder and does not say what belongs there.
        """
        if not self._is_open(record.get(self.into)):
            return ""
        parts = [_whole(record.get(column)) for column in (self.dataset, self.split, self.index)]
        for column, part in zip((self.dataset, self.split, self.index), parts, strict=True):
            if not isinstance(part, str | int) or part in ("", "-"):
                raise Unfit("no_partner", f"the row has {self.placeholder!r} in '{self.into}', and no '{column}'")
        return "/".join(map(str, parts))

    def _is_open(self, value: Any) -> bool:
        if isinstance(value, list):
            return any(isinstance(item, dict) and item.get("content") == self.placeholder for item in value)
        return bool(value == self.placeholder)

    def filled(self, record: Record, text: str) -> Record:
        """The row with the text in the place of its placeholder."""
        value = record[self.into]
        if isinstance(value, list):
            value = [{**item, "content": text} if item.get("content") == self.placeholder else item for item in value]
        else:
            value = text
        return {**record, self.into: value}

    def question(self, dataset: str, record: Record) -> str:
        """What a row of another table asks, "" where it asks nothing."""
        first, *rest = self.tables[dataset]
        said = first.written(record.get(first.column))
        return said and said + "".join(section.written(record.get(section.column)) for section in rest)


def _whole(value: Any) -> Any:
    """A number that a file holds as a fraction, as a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
