"""Cells of semantic dedup: the live rows of each skill and context bucket, by the number of the cell."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64
from etl.laws import Growth, With
from etl.rows import Rows, RowsRef
from etl.schema import CTX_BUCKETS, SKILL_BUCKETS
from etl.stages.context import Context
from etl.stages.keyed import live_rows
from etl.storage.build import Chunk

SEMANTIC_VERSION: Final = 1
"""Increased when the same rows and configuration would give other clusters or other survivors."""
STEP: Final = "semantic"
_CTX: Final = tuple(CTX_BUCKETS)
_CELL_BITS: Final = 32

SEMANTIC_CELL = pa.schema(
    [
        pa.field("skill_bucket", pa.string(), nullable=False),
        pa.field("ctx_bucket", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Cells:
    """Live rows of every nonempty cell, by its number."""

    rows: dict[int, int]

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def cell_of(batch: pa.RecordBatch) -> I64:
    """The number of each row's cell, skill · 4 + ctx: int64 [rows]."""
    skill = pc.index_in(batch.column("skill_bucket"), value_set=pa.array(SKILL_BUCKETS)).to_numpy()
    ctx = pc.index_in(batch.column("ctx_bucket"), value_set=pa.array(_CTX)).to_numpy()
    return skill.astype(np.int64) * len(_CTX) + ctx


def name_of(cell: int) -> tuple[str, str]:
    """The skill and the context bucket of a cell."""
    return SKILL_BUCKETS[cell // len(_CTX)], _CTX[cell % len(_CTX)]


def cluster_numbers(cells: I64, places: I64) -> I64:
    """cell << 32 | place of the centroid among those of the cell: int64 [rows]."""
    return (cells << _CELL_BITS) + places


def cell_of_cluster(cluster: int) -> int:
    """The cell that a cluster's number names."""
    return cluster >> _CELL_BITS


def cluster_name(cluster: int) -> str:
    """B2-C1-00017: the skill and context bucket, and the place of the centroid."""
    return "-".join((*name_of(cell_of_cluster(cluster)), f"{cluster & ((1 << _CELL_BITS) - 1):05d}"))


@dataclass(frozen=True)
class CountRows:
    """One split's live rows in each cell."""

    rows: RowsRef

    def __call__(self, split: int) -> Iterator[Chunk]:
        for batch, _ in live_rows(self.rows, split, ["skill_bucket", "ctx_bucket"]):
            counts = pa.table(batch.select(["skill_bucket", "ctx_bucket"])).group_by(SEMANTIC_CELL.names[:2])
            found = counts.aggregate([([], "count_all")]).rename_columns(SEMANTIC_CELL.names)
            yield from (Chunk(out, batch.num_rows) for out in found.cast(SEMANTIC_CELL).combine_chunks().to_batches())


def count_cells(context: Context, rows: Rows) -> Cells:
    inputs = rows.tables(["skill_bucket", "ctx_bucket", "verdict"])
    job = context.job("semantic_cells", "SEMANTIC_CELL", SEMANTIC_CELL, {}, inputs, rows, grows=Growth(With.SPLITS))
    found: dict[int, int] = {}
    for batch in context.map(job, rows.splits, CountRows(rows.ref)).result().read():
        for cell, count in zip(cell_of(batch).tolist(), batch.column("rows").to_pylist(), strict=True):
            found[cell] = found.get(cell, 0) + count
    return Cells(dict(sorted(found.items())))
