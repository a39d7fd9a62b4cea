"""PROMPT rows with the side tables that stages have added to them, read together without a join.

A side table has its parent's parts, row counts and row-group boundaries, so row n of a row group of one belongs to row
n of the same row group of the other; the `id` column, repeated in each, is compared to prove it. The `verdict` of a
side table is cumulative: it repeats what earlier stages decided, so only the newest one is read. Cost: the columns
asked for plus 16 bytes a row and table.

`messages` come without the bytes that side tables with a column `removed` take out, oldest table first: the ranges of
a table are those of the text that its stage has read. Cost: one copy of a batch's texts for each such table that takes
something out of the batch, none otherwise.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from etl.errors import DataError, SchemaError
from etl.messages import remove_ranges
from etl.schema import PROMPT, REMOVED, VERDICT
from etl.storage.dataset import Dataset, read_part
from etl.storage.manifest import Accounting, sum_counts

_UNSEEN = ("verdict", REMOVED.name)
"""Columns of a side table that are no columns of the rows as they stand."""
ROW_BITS = 32
"""A row key is split << 32 | row: int64, unique within a run, never stored in a table that outlives it."""


@dataclass(frozen=True)
class Side:
    """A committed dataset and the schema that its stage declares (a dataset without rows has no file to ask)."""

    dataset: Dataset
    schema: pa.Schema


@dataclass(frozen=True)
class Rows:
    """The base table and its side tables, oldest first."""

    base: Dataset
    sides: tuple[Side, ...] = ()

    def with_side(self, dataset: Dataset, schema: pa.Schema) -> "Rows":
        return Rows(self.base, (*self.sides, Side(dataset, schema)))

    @property
    def schema(self) -> pa.Schema:
        """All columns that can be read, each once, `verdict` last."""
        fields = {field.name: field for field in PROMPT}
        for side in self.sides:
            fields |= {field.name: field for field in side.schema if field.name not in _UNSEEN}
        return pa.schema([*fields.values(), pa.field("verdict", VERDICT)])

    @property
    def splits(self) -> range:
        return range(self.base.num_splits)

    @property
    def num_rows(self) -> int:
        return self.base.manifest.rows_out

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """The base and every side table."""
        return (self.base, *(side.dataset for side in self.sides))

    @property
    def accounting(self) -> Accounting:
        """Every step that has seen these rows."""
        return sum_counts(dataset.manifest.accounting for dataset in self.datasets)

    def tables(self, columns: list[str]) -> tuple[Dataset, ...]:
        """Each table that a read of these columns touches: the inputs of a job."""
        return tuple(dataset for dataset, _ in self._columns_by_table(columns))

    def read(self, split: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The named columns of a split, in that order, one batch a row group; texts as stages have left them.

        Raises:
            SchemaError: no table has a column.
            DataError: the tables are not aligned.
        """
        known = self.schema.names
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise SchemaError(f"no table has {unknown}; there are {known}")
        wanted = self._columns_by_table(columns)
        readers = [self._read_table(dataset, split, names) for dataset, names in wanted]
        for batches in itertools.zip_longest(*readers):
            yield _zip(batches, columns, f"split {split} of {self.base.folder}")

    def _columns_by_table(self, columns: list[str]) -> list[tuple[Dataset, list[str]]]:
        """For each table that is needed, which columns are read from it; the base always, for its ids."""
        wanted: list[tuple[Dataset, list[str]]] = [
            (self.base, ["id", *(name for name in columns if name in PROMPT.names and name != "id")])
        ]
        newest = len(self.sides) - 1
        for index, side in enumerate(self.sides):
            names = [
                name
                for name in columns
                if name in side.schema.names and name != "id" and (name != "verdict" or index == newest)
            ]
            if "messages" in columns and REMOVED.name in side.schema.names:
                names.append(REMOVED.name)
            if names:
                wanted.append((side.dataset, ["id", *names]))
        return wanted

    @staticmethod
    def _read_table(dataset: Dataset, split: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        for part in dataset.parts_of(split):
            yield from read_part(dataset.part_location(part), names)


def _zip(batches: tuple[pa.RecordBatch | None, ...], columns: list[str], where: str) -> pa.RecordBatch:
    """One row group of every table side by side; None stands for a table that has no more."""
    found: dict[str, pa.Array] = {}
    for batch in batches:
        if batch is None or not batch.column("id").equals(found.setdefault("id", batch.column("id"))):
            raise DataError(f"the side tables of {where} are not aligned; run `stillhouse verify` and run again")
        if REMOVED.name in batch.schema.names:
            found["messages"] = remove_ranges(found["messages"], batch.column(REMOVED.name))
        found |= {name: batch.column(name) for name in batch.schema.names if name not in ("id", REMOVED.name)}
    if "verdict" in columns and "verdict" not in found:
        found["verdict"] = pa.nulls(len(found["id"]), VERDICT)
    return pa.RecordBatch.from_arrays([found[name] for name in columns], names=columns)
