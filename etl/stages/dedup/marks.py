"""Rows that a search found, by row key, become an aligned table of verdicts.

A search writes a table of hits: LOSER or HIT, which are defined here, or those of semantic.py and units.py. `mark_hits`
sends them to the split that holds their row, and writes DIR/<step>, aligned with the base. A `Mark` defines the meaning
of a row's hits. Costs one shuffle, of 32 bytes (LOSER) to 48 (HIT) a hit, or none if the hits are one row group: then
the task of each split reads them all and takes its own. A worker holds a row group of its split and the hits of that
row group.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.accounting import judged
from etl.arrays import I64, Bools
from etl.engine import Exchange
from etl.laws import Growth, Law, SameAs
from etl.rows import Rows, RowsRef
from etl.schema import CLUSTER_COLUMNS, ID, PROMPT, ROW_KEY, aligned
from etl.stages.context import Context
from etl.stages.keyed import OUT_ROWS, routed, rows_with_found, splits_of, uuid_texts
from etl.step import append, drop, live
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset, DatasetRef

HIT = pa.schema(
    [
        ROW_KEY,
        PROMPT.field("id"),
        pa.field("cluster_id", ID, nullable=False),
        pa.field("cluster_size", pa.int32(), nullable=False),
        pa.field("cluster_rank", pa.int32(), nullable=False),
        pa.field("cluster_jaccard", pa.float64(), nullable=False),
    ]
)
"""A row that has duplicates; rank 0 survives."""
HIT_VERSION = 2
"""1 had no `id`, and a content digest that covered the row keys."""

FINDINGS_VERSION = 2
"""Increased when the `findings` of a search change: the manifest of an old output is then written anew."""

LOSER = pa.schema([ROW_KEY, PROMPT.field("id"), pa.field("survivor", ID, nullable=False)])
"""A row that is dropped because another one is kept."""
LOSER_VERSION = 2
"""Of every job that writes LOSER; 1 had no `id`, and a digest that covered the row keys."""


def sent(hits: pa.Schema) -> pa.Schema:
    """A schema of hits without `id`, which identifies the row in their content digest: the receiving split has it."""
    return pa.schema([field for field in hits if field.name != "id"])


def losers(table: pa.Table, first: I64, lost: Bools) -> pa.RecordBatch:
    """LOSER of the rows where `lost` is true: the first row of their group survives.

    Args:
        table: with `row` and `id`.
        first: place of the first row of each row's group, int64 [rows].
        lost: bool [rows].
    """
    ids = table["id"].combine_chunks()
    row, own = (column.filter(pa.array(lost)) for column in (table["row"].combine_chunks(), ids))
    survivor = ids.take(pa.array(first[lost]))
    return pa.RecordBatch.from_arrays([row, own.cast(ID), survivor.cast(ID)], schema=LOSER)


@dataclass(frozen=True)
class EmitHits:
    """Hits to the split that holds their row."""

    hits: DatasetRef
    schema: pa.Schema

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        schema = routed(self.schema)
        for batch in self.hits.read_split(split, self.schema.names):
            bucket = splits_of(batch.column("row").to_numpy())
            yield pa.RecordBatch.from_arrays([bucket, *batch.columns], names=schema.names).cast(schema)


@dataclass(frozen=True)
class Mark(ABC):
    """The consequences for the rows that a search found: the columns and the verdicts of an aligned table."""

    step: str
    """The step of the verdicts, and the folder of the table."""
    table: ClassVar[str]
    hits: ClassVar[pa.Schema]
    """Schema of the sent part of the search's hits; `row` comes first and is a row key."""
    reads: ClassVar[tuple[str, ...]] = ()
    """Columns of the rows, besides id, source_dataset and verdict."""

    @property
    def columns(self) -> pa.Schema:
        """Columns of the aligned table, besides id and verdict."""
        return pa.schema([])

    @property
    def semantic(self) -> dict[str, Any]:
        """Everything that decides the table besides the rows and the hits, for its fingerprint."""
        return {"mark": asdict(self)}

    @abstractmethod
    def judge(self, batch: pa.RecordBatch, found: pa.Table) -> pa.RecordBatch:
        """The rows with `columns` added, and a verdict for the dropped ones.

        Args:
            batch: rows with id, source_dataset, verdict and the columns that the mark reads.
            found: their hits, of the schema `hits`, sorted by `row`, which is a row's place in the batch.
        """


def one_a_row(found: pa.Table, num_rows: int) -> list[pa.Array]:
    """The columns of `found` after `row`, if no row has two hits: one entry for each row, null without a hit."""
    hit_of = np.full(num_rows, -1, np.int64)
    hit_of[found["row"].to_numpy()] = np.arange(len(found))
    hits = pa.array(hit_of, mask=hit_of < 0)
    return [column.combine_chunks().take(hits) for column in found.columns[1:]]


@dataclass(frozen=True)
class LoserMark(Mark):
    """The rows of LOSER are dropped."""

    reason: str
    table: ClassVar[str] = "VERDICT"
    hits: ClassVar[pa.Schema] = sent(LOSER)

    def judge(self, batch: pa.RecordBatch, found: pa.Table) -> pa.RecordBatch:
        """As `Mark.judge`; the verdict names the survivor."""
        (survivor,) = one_a_row(found, batch.num_rows)
        return drop(batch, self.step, survivor.is_valid(), self.reason, uuid_texts(survivor))


@dataclass(frozen=True)
class ClusterMark(Mark):
    """Drops the rows of HIT that are not survivors and are similar to theirs."""

    reason: str
    drop_below: float
    """A row that is less similar to the survivor is kept, whatever its rank."""
    table: ClassVar[str] = "CLUSTER"
    hits: ClassVar[pa.Schema] = sent(HIT)

    @property
    def semantic(self) -> dict[str, Any]:
        return {"mark": asdict(self), "findings": FINDINGS_VERSION}

    @property
    def columns(self) -> pa.Schema:
        return CLUSTER_COLUMNS

    def judge(self, batch: pa.RecordBatch, found: pa.Table) -> pa.RecordBatch:
        """As `Mark.judge`; a live row that was not found is a cluster of its own."""
        is_live = live(batch)
        columns = one_a_row(found, batch.num_rows)
        _, _, rank, jaccard = columns
        lost = pc.and_(pc.greater(rank, 0), pc.greater_equal(jaccard, self.drop_below - 1e-12))
        alone = (batch.column("id"), *(pa.scalar(value, kind) for value, kind in _ALONE))
        columns = [
            pc.coalesce(column, pc.if_else(is_live, own, pa.scalar(None, column.type)))
            for column, own in zip(columns, alone, strict=True)
        ]
        done = drop(batch, self.step, lost, self.reason, uuid_texts(columns[0]))
        return append(done, CLUSTER_COLUMNS, columns)


_ALONE = ((1, pa.int32()), (0, pa.int32()), (1.0, pa.float64()))
"""Size, rank and similarity to itself of a row without a duplicate."""


@dataclass(frozen=True)
class MarkSplit:
    """One split's rows with the hits sent to it, sorted by row; holds a row group and its hits."""

    rows: RowsRef
    mark: Mark
    schema: pa.Schema
    """Schema of the aligned table: the mark's columns, under their names in it."""

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        mark = self.mark
        columns = ["id", "source_dataset", *mark.reads, "verdict"]
        for batch, found in rows_with_found(self.rows, split, columns, batches, routed(mark.hits)):
            hits = found.select(mark.hits.names).cast(mark.hits)
            done = mark.judge(batch, hits).select(aligned(mark.columns).names).rename_columns(self.schema.names)
            yield judged([mark.step], batch, done, self.schema)


def mark_hits(
    context: Context,
    rows: Rows,
    hits: Dataset,
    mark: Mark,
    findings: dict[str, Any] | None = None,
    drops: Law | None = None,
) -> Rows:
    """Write DIR/<step>, aligned: the rows that `mark` judges lost get a verdict.

    Args:
        context: of the run.
        rows: the rows to mark.
        hits: rows that were found, with the columns of `mark.hits`.
        mark: the meaning of the hits.
        findings: of the search, for the manifest.
        drops: how the number of dropped rows grows; None if every hit is one.
    """
    schema = aligned(context.columns(mark.columns))
    inputs = (hits, *rows.tables([*mark.reads, "verdict"]))
    named = replace(mark, step=context.folder(mark.step))
    grows = Growth.of_marks(hits.ref.stage, drops or SameAs(hits.ref.stage))
    job = context.job(mark.step, mark.table, schema, named.semantic, inputs, rows, grows=grows)
    job = job.with_findings(findings or {})
    splits, emit = tuple(range(hits.ref.num_splits)), EmitHits(hits.ref, mark.hits)
    exchange = Exchange(splits, emit, routed(mark.hits), ("row",), len(rows.splits))
    is_one_read = hits.ref.num_splits == 1 and hits.manifest.rows_out <= OUT_ROWS
    write = context.gather if is_one_read else context.shuffle
    return rows.with_side(write(job, exchange, MarkSplit(rows.ref, named, schema)), schema)
