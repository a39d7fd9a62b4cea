"""PROMPT rows and the side tables that stages have added, read together without a join.

A side table has its parent's parts, row counts and row-group boundaries, so row n of a row group belongs to row n of
the same row group of the other tables; the `id` column of each is compared to make sure. The `verdict` of a side table
is cumulative: it includes the verdicts of earlier stages. So only the newest one is read, or ingest's own if there is
no side table. Cost: the requested columns plus 16 bytes per row and table.

Side tables with a column `removed` remove bytes from `messages`, the oldest table first: a table's ranges refer to the
text that its stage has read. Cost: one copy of a batch's texts for each table that removes something from the batch.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from etl.errors import DataError, SchemaError
from etl.messages import remove_ranges
from etl.schema import PROMPT, PROMPT_CONTENT, REMOVED, REST_OF_ID, VERDICT
from etl.storage.dataset import DatasetLike, DatasetRef
from etl.storage.manifest import Accounting, sum_counts

_UNSEEN = ("verdict", REMOVED.name)
"""Columns of a side table that are not columns of the rows."""
NO_COLUMNS: Final = pa.schema([])
ROW_BITS = 32
"""A row key is split << 32 | row: int64, unique within a run, never stored in a table that outlives it."""


@dataclass(frozen=True)
class Side:
    """A side table and the schema that its stage declares (as a dataset without rows has no file to read it from)."""

    table: DatasetRef
    schema: pa.Schema


@dataclass(frozen=True)
class RowsRef:
    """The base table and its side tables, oldest first, as a worker reads them; pickles small."""

    base: DatasetRef
    sides: tuple[Side, ...] = ()
    fields: pa.Schema = NO_COLUMNS
    """Columns of the base after those of PROMPT: the fields of the sources' descriptions."""

    @property
    def content(self) -> tuple[str, ...]:
        """The columns of the base with the content of a row: all but its places and its verdict."""
        return (*PROMPT_CONTENT, *self.fields.names)

    @property
    def rest_of_id(self) -> tuple[str, ...]:
        """The columns of the base, other than places, in which rows of one id can differ."""
        return (*REST_OF_ID, *self.fields.names)

    @property
    def schema(self) -> pa.Schema:
        """All columns that can be read, each once, `verdict` last."""
        fields = {field.name: field for field in (*PROMPT, *self.fields) if field.name != "verdict"}
        for side in self.sides:
            fields |= {field.name: field for field in side.schema if field.name not in _UNSEEN}
        return pa.schema([*fields.values(), pa.field("verdict", VERDICT)])

    def read(self, split: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The named columns of a split, in that order, one batch per row group; texts as changed by the stages.

        Raises:
            SchemaError: no table has a column.
            DataError: the tables are not aligned.
        """
        known = self.schema.names
        unknown = [name for name in columns if name not in known]
        if unknown:
            raise SchemaError(f"no table has {unknown}; the columns are {known}")
        tables = (self.base, *(side.table for side in self.sides))
        readers = [tables[place].read_split(split, names) for place, names in self.columns_by_table(columns).items()]
        for batches in itertools.zip_longest(*readers):
            yield _zip(batches, columns, f"split {split} of {self.base.folder}")

    def columns_by_table(self, columns: list[str]) -> dict[int, list[str]]:
        """The columns to read from each table, by its index (0: the base, which is always read for its ids)."""
        of_sides = {"id", "verdict"} if self.sides else {"id"}
        of_base = {*PROMPT.names, *self.fields.names} - of_sides
        wanted = {0: ["id", *(name for name in columns if name in of_base)]}
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
                wanted[index + 1] = ["id", *names]
        return wanted


@dataclass(frozen=True)
class Rows:
    """The same tables on the driver, passed from stage to stage with their datasets, committed or pending."""

    ref: RowsRef
    """The part that a worker gets."""
    datasets: tuple[DatasetLike, ...]
    """The base and every side table."""

    @classmethod
    def of(cls, base: DatasetLike, fields: pa.Schema = NO_COLUMNS) -> "Rows":
        """The rows of a base table, with some columns after those of PROMPT, without side tables."""
        return cls(RowsRef(base.ref, fields=fields), (base,))

    def with_side(self, dataset: DatasetLike, schema: pa.Schema) -> "Rows":
        sides = (*self.ref.sides, Side(dataset.ref, schema))
        return Rows(replace(self.ref, sides=sides), (*self.datasets, dataset))

    @property
    def base(self) -> DatasetLike:
        return self.datasets[0]

    @property
    def schema(self) -> pa.Schema:
        """All columns that can be read, each once, `verdict` last."""
        return self.ref.schema

    @property
    def splits(self) -> range:
        return range(self.ref.base.num_splits)

    @property
    def num_rows(self) -> int:
        """A barrier if the base is pending."""
        return self.base.result().manifest.rows_out

    @property
    def accounting(self) -> Accounting:
        """Every step that has seen these rows; a barrier if one of the tables is pending."""
        return sum_counts(dataset.result().manifest.accounting for dataset in self.datasets)

    def tables(self, columns: list[str]) -> tuple[DatasetLike, ...]:
        """Each table that a read of these columns touches: the inputs of a job."""
        return tuple(self.datasets[place] for place in self.ref.columns_by_table(columns))


def _zip(batches: tuple[pa.RecordBatch | None, ...], columns: list[str], where: str) -> pa.RecordBatch:
    """One row group of every table side by side; None for a table at its end."""
    found: dict[str, pa.Array] = {}
    for batch in batches:
        if batch is None or not batch.column("id").equals(found.setdefault("id", batch.column("id"))):
            raise DataError(
                f"the side tables of {where} are not aligned; run `stillhouse verify`, then run the recipe again"
            )
        if REMOVED.name in batch.schema.names:
            found["messages"] = remove_ranges(found["messages"], batch.column(REMOVED.name))
        found |= {name: batch.column(name) for name in batch.schema.names if name not in ("id", REMOVED.name)}
    return pa.RecordBatch.from_arrays([found[name] for name in columns], names=columns)
