"""Rows that a search found, by row key, become an aligned table of verdicts.

A search writes HIT or LOSER, a table of its own; `mark_hits` sends its rows to the split that holds them and writes
DIR/<step> beside the base. Costs one shuffle of 32 bytes (LOSER) to 48 (HIT) a found row. A worker holds a row group of
its split and the hits of that.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.accounting import account
from etl.arrays import I64, Bools
from etl.engine import Exchange
from etl.rows import ROW_BITS, Rows, RowsRef
from etl.schema import CLUSTER_COLUMNS, ID, aligned
from etl.stages.context import Context
from etl.stages.keyed import RowFeed, routed, row_keys, uuid_texts
from etl.step import drop, live
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset, DatasetRef

HIT = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("cluster_id", ID, nullable=False),
        pa.field("cluster_size", pa.int32(), nullable=False),
        pa.field("cluster_rank", pa.int32(), nullable=False),
        pa.field("cluster_jaccard", pa.float64(), nullable=False),
    ]
)
"""A row that has duplicates; rank 0 survives."""

LOSER = pa.schema([HIT.field("row"), pa.field("survivor", ID, nullable=False)])
"""A row that is dropped because another one stays."""


def losers(table: pa.Table, first: I64, lost: Bools) -> pa.RecordBatch:
    """LOSER of the rows where `lost` is true: the first row of their group survives.

    Args:
        table: with `row` and `id`.
        first: place of the first row of each row's group, int64 [rows].
        lost: bool [rows].
    """
    survivor = table["id"].combine_chunks().take(pa.array(first[lost])).cast(ID)
    return pa.RecordBatch.from_arrays([table["row"].combine_chunks().filter(pa.array(lost)), survivor], schema=LOSER)


@dataclass(frozen=True)
class EmitHits:
    """HIT or LOSER rows to the split that holds their row."""

    hits: DatasetRef
    schema: pa.Schema

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        schema = routed(self.schema)
        for batch in self.hits.read_split(split, self.schema.names):
            bucket = pa.array((batch.column("row").to_numpy() >> ROW_BITS).astype(np.int32))
            yield pa.RecordBatch.from_arrays([bucket, *batch.columns], names=schema.names).cast(schema)


@dataclass(frozen=True)
class Mark:
    """How the rows of LOSER become an aligned table of verdicts."""

    step: str
    reason: str
    table: ClassVar[str] = "VERDICT"
    hits: ClassVar[pa.Schema] = LOSER
    """Of the rows that were found."""
    columns: ClassVar[pa.Schema] = pa.schema([])
    """Of the aligned table, beside id and verdict."""

    def judge(self, batch: pa.RecordBatch, found: list[pa.Array]) -> tuple[list[pa.Array], pa.Array, pa.Array]:
        """The columns of each row, whether it is dropped, and the id of the one that stays.

        Args:
            batch: rows with id and verdict.
            found: the columns of LOSER but `row`, one entry a row, null for a row that was not found.
        """
        (survivor,) = found
        return [], survivor.is_valid(), survivor


@dataclass(frozen=True)
class ClusterMark(Mark):
    """How the rows of HIT become an aligned table of clusters."""

    drop_below: float
    """A row stays, whatever its rank, when it is less similar to the survivor."""
    table: ClassVar[str] = "CLUSTER"
    hits: ClassVar[pa.Schema] = HIT
    columns: ClassVar[pa.Schema] = CLUSTER_COLUMNS

    def judge(self, batch: pa.RecordBatch, found: list[pa.Array]) -> tuple[list[pa.Array], pa.Array, pa.Array]:
        """As `Mark.judge`, of HIT; a live row that was not found is a cluster of its own."""
        is_live = live(batch)
        alone = (batch.column("id").cast(pa.binary()), *(pa.scalar(value, kind) for value, kind in _ALONE))
        columns = [
            pc.coalesce(column, pc.if_else(is_live, own, pa.scalar(None, column.type)))
            for column, own in zip(found, alone, strict=True)
        ]
        similar = pc.greater_equal(found[3], self.drop_below - 1e-12)
        return columns, pc.and_(pc.greater(found[2], 0), similar), columns[0]


_ALONE = ((1, pa.int32()), (0, pa.int32()), (1.0, pa.float64()))
"""Size, rank and similarity to itself of a row without a duplicate."""


@dataclass(frozen=True)
class MarkSplit:
    """One split's rows with the hits that came for it, sorted by row; holds a row group and its hits."""

    rows: RowsRef
    mark: Mark

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        feed = RowFeed(batches, routed(self.mark.hits))
        start = 0
        for batch in self.rows.read(split, ["id", "source_dataset", "verdict"]):
            mine = row_keys(split, start, batch.num_rows)
            start += batch.num_rows
            yield self._mark(batch, mine, feed.until(int(mine[-1])))

    def _mark(self, batch: pa.RecordBatch, mine: I64, hits: pa.Table) -> Chunk:
        keys = hits["row"].to_numpy()
        place = np.searchsorted(keys, mine)
        absent = ~np.isin(mine, keys, assume_unique=True)
        found = [hits[name].combine_chunks().take(pa.array(place, mask=absent)) for name in self.mark.hits.names[1:]]
        columns, lost, survivor = self.mark.judge(batch, found)
        done = drop(batch, self.mark.step, lost, self.mark.reason, uuid_texts(survivor.cast(ID)))
        verdict = done.column("verdict")
        accounting = account([self.mark.step], batch.column("source_dataset"), batch.column("verdict"), verdict)
        schema = aligned(self.mark.columns)
        out = pa.RecordBatch.from_arrays([batch.column("id"), *columns, verdict], names=schema.names).cast(schema)
        return Chunk(out, batch.num_rows, accounting)


def mark_hits(context: Context, rows: Rows, hits: Dataset, mark: Mark, findings: dict[str, Any] | None = None) -> Rows:
    """Write DIR/<step>, aligned: the rows that `mark` judges lost get a verdict.

    Args:
        context: of the run.
        rows: what is marked.
        hits: rows that were found, of the schema `mark.hits`.
        mark: what becomes of them.
        findings: what the manifest says of the search.
    """
    schema = aligned(mark.columns)
    semantic = {"mark": asdict(mark)}
    job = context.job(mark.step, mark.table, schema, semantic, (hits, *rows.tables(["verdict"])), rows)
    exchange = Exchange(
        tuple(range(hits.ref.num_splits)), EmitHits(hits.ref, mark.hits), routed(mark.hits), ("row",), len(rows.splits)
    )
    job = job.with_findings(findings or {})
    return rows.with_side(context.shuffle(job, exchange, MarkSplit(rows.ref, mark)), schema)
