"""Rows of one prompt as one row: a list of their answers, and of whatever else is gathered, such as rewards.

Rows whose `by` columns are equal are one group, which is held in memory. Its rows come in the order of their JSON, so
neither files nor engines decide what comes first.
"""

from collections.abc import Collection
from typing import Literal

import orjson
from pydantic import Field

from etl.config import Config
from etl.sources.assemble.made import Made, MadeRow, RawRow, Record
from etl.sources.shapes.turns import Unfit


class Gather(Config):
    """One row out of those with the same prompt: some of their columns become lists."""

    kind: Literal["gather"]
    by: tuple[str, ...] = Field(min_length=1)
    """Columns that rows of one group have in common."""
    lists: dict[str, str] = Field(min_length=1)
    """By the name of a column that is made, the column whose values it lists."""
    at_least: int = Field(default=2, ge=1)
    """Rows that a group needs; a smaller one is dropped."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read of a row."""
        return (*self.by, *self.lists.values())

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns without which nothing can be made."""
        return self.columns

    @property
    def makes(self) -> tuple[str, ...]:
        """The columns of the rows that are made, beside those of the raw rows."""
        return tuple(self.lists)

    def key(self, record: Record) -> str:
        """What the rows of a group have in common.

        Raises:
            Unfit: the row lacks one of its columns.
        """
        for column in self.columns:
            if record.get(column) is None:
                raise Unfit(f"missing_{column}", "null or absent")
        return orjson.dumps([record[column] for column in self.by], option=orjson.OPT_SORT_KEYS).decode()

    def make(self, rows: list[RawRow], columns: Collection[str]) -> Made:
        """The one row of a group.

        Args:
            rows: of the group.
            columns: that are read of the row which is made; values are those of the first.
        """
        made = Made()
        if len(rows) < self.at_least:
            made.dropped["too_few_in_group"] += len(rows)
            return made
        rows = sorted(rows, key=lambda row: row.data)
        first = rows[0]
        record = {name: value for name, value in first.record.items() if name in columns}
        record |= {name: [row.record[column] for row in rows] for name, column in self.lists.items()}
        made.rows.append(MadeRow(record, first.file, first.position))
        made.num_assembled = len(rows)
        return made
