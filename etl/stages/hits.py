"""Rows that a shuffle found by their hashes, brought back to where they lie.

What stages with a key of their own (duplicates, prompts on both sides) share: streaming the living rows of a split with
their row keys, whole groups from a sorted bucket, and the HIT rows of found rows turned into an aligned table of
verdicts. Row keys (split << 32 | row) cross the shuffles; hits are few, and a split's hits are held in memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.accounting import account
from etl.engine import Exchange
from etl.hashing import fixed_binary, hash_array, hash_columns
from etl.schema import CLUSTER_COLUMNS, ID, aligned
from etl.stages.context import Context
from etl.step import drop
from etl.storage.aligned import ROW_BITS, Rows
from etl.storage.dataset import Chunk, Dataset

I64 = npt.NDArray[np.int64]

OUT_ROWS = 1 << 16
"""Rows of a row group in tables of hits and pairs."""

HIT = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("cluster_id", ID, nullable=False),
        pa.field("cluster_size", pa.int32(), nullable=False),
        pa.field("cluster_rank", pa.int32(), nullable=False),
    ]
)
"""A row that has duplicates; rank 0 survives."""


def row_keys(split: int, start: int, count: int) -> I64:
    return (np.int64(split) << np.int64(ROW_BITS)) + np.arange(start, start + count, dtype=np.int64)


def buckets_of(keys: npt.NDArray[Any], num_buckets: int) -> pa.Array:
    return pa.array((keys.view(np.uint64) % np.uint64(num_buckets)).astype(np.int32))


def living(rows: Rows, split: int, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, I64]]:
    """The rows of a split without a verdict, with their row keys."""
    start = 0
    for batch in rows.read(split, list(dict.fromkeys([*columns, "verdict"]))):
        keys = row_keys(split, start, batch.num_rows)
        start += batch.num_rows
        alive = batch.column("verdict").is_null()
        yield batch.filter(alive), keys[alive.to_numpy(zero_copy_only=False)]


class Counted:
    """A stream of batches that counts the rows it has given."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self.rows = 0
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.rows += batch.num_rows
            yield batch


def groups(batches: Iterable[pa.RecordBatch], key: list[str]) -> Iterator[pa.Table]:
    """Whole groups of equal keys from a sorted stream, many to a table; an open group waits for the next batch."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        if batch.num_rows == 0:
            continue
        held.append(batch)
        table = pa.Table.from_batches(held).combine_chunks()
        hashes = hash_columns([table[name].combine_chunks() for name in key])
        changes = np.flatnonzero(hashes[1:] != hashes[:-1])
        if len(changes):
            cut = int(changes[-1]) + 1
            yield table.slice(0, cut)
            held = table.slice(cut).combine_chunks().to_batches()
    if held:
        yield pa.Table.from_batches(held).combine_chunks()


def recut(batches: Iterable[pa.RecordBatch], rows: int = OUT_ROWS) -> Iterator[Chunk]:
    """The same rows in row groups of `rows`: a file does not show in which batches an engine handed them out."""
    held: list[pa.RecordBatch] = []
    num_held = 0
    for batch in batches:
        held.append(batch)
        num_held += batch.num_rows
        while num_held >= rows:
            table = pa.Table.from_batches(held).combine_chunks()
            yield from (Chunk(piece) for piece in table.slice(0, rows).to_batches())
            held, num_held = table.slice(rows).to_batches(), num_held - rows
    if num_held:
        yield from (Chunk(piece) for piece in pa.Table.from_batches(held).combine_chunks().to_batches())


def bucket_of_hash128(hashes: pa.FixedSizeBinaryArray, num_buckets: int) -> pa.Array:
    """Buckets by the first half of 128-bit hashes: int32 [rows]."""
    first = np.ascontiguousarray(fixed_binary(hashes)[:, :8]).view(np.uint64).ravel()
    return buckets_of(first, num_buckets)


def hits_in_groups(table: pa.Table, key: str) -> tuple[pa.RecordBatch, I64]:
    """HIT for every row of whole groups of equal `key`, and the place of its group's first row, which survives.

    Args:
        table: sorted by `key`, with `row` and `id`.
        key: a binary column.
    """
    hashes = hash_array(table[key].combine_chunks())
    starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
    sizes = np.diff(np.append(starts, len(hashes)))
    first = np.repeat(starts, sizes)
    columns = [
        table["row"].combine_chunks(),
        table["id"].combine_chunks().take(pa.array(first)).cast(ID),
        pa.array(np.repeat(sizes, sizes).astype(np.int32)),
        pa.array((np.arange(len(first)) - first).astype(np.int32)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=HIT), first


ROUTED_HIT = pa.schema(
    [
        ("bucket", pa.int32()), ("row", pa.int64()), ("cluster_id", pa.binary()), ("cluster_size", pa.int32()),
        ("cluster_rank", pa.int32()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class EmitHits:
    """HIT rows to the split that holds their row."""

    hits: Dataset

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.hits.read_split(split):
            bucket = pa.array((batch.column("row").to_numpy() >> ROW_BITS).astype(np.int32))
            columns = [bucket, *batch.columns]
            yield pa.RecordBatch.from_arrays(columns, names=ROUTED_HIT.names).cast(ROUTED_HIT)


@dataclass(frozen=True)
class Mark:
    """What an aligned table of duplicates is called and says."""

    step: str
    reason: str
    with_clusters: bool

    @property
    def schema(self) -> pa.Schema:
        return aligned(CLUSTER_COLUMNS if self.with_clusters else pa.schema([]))


@dataclass(frozen=True)
class MarkSplit:
    """One split's rows with the hits that came for it, sorted by row."""

    rows: Rows
    mark: Mark

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        hits = pa.Table.from_batches(list(batches), ROUTED_HIT).combine_chunks()
        keys = hits["row"].to_numpy()
        start = 0
        for batch in self.rows.read(split, ["id", "source_dataset", "verdict"]):
            mine = row_keys(split, start, batch.num_rows)
            start += batch.num_rows
            place = np.searchsorted(keys, mine)
            found = (place < len(keys)) & (keys[np.minimum(place, len(keys) - 1)] == mine if len(keys) else False)
            index = pa.array(place, mask=~found)
            columns = [hits[name].combine_chunks().take(index) for name in CLUSTER_COLUMNS.names]
            dropped = pc.greater(columns[2], 0)
            survivor = pa.array([uuid_text(value) for value in columns[0].to_pylist()], pa.string())
            done = drop(batch, self.mark.step, dropped, self.mark.reason, survivor)
            verdict = done.column("verdict")
            accounting = account([self.mark.step], batch.column("source_dataset"), batch.column("verdict"), verdict)
            middle = columns if self.mark.with_clusters else []
            out = pa.RecordBatch.from_arrays([batch.column("id"), *middle, verdict], names=self.mark.schema.names).cast(
                self.mark.schema
            )
            yield Chunk(out, batch.num_rows, accounting)


def uuid_text(value: bytes | None) -> str | None:
    """The 36-character form of a 16-byte id."""
    if value is None:
        return None
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def mark_hits(context: Context, rows: Rows, hits: Dataset, mark: Mark) -> Rows:
    stage = "clusters" if mark.with_clusters else mark.step
    identity = {"hits": hits.manifest.fingerprint, "inputs": rows.inputs(["verdict"]), "step": mark.step}
    job = context.job(stage, "CLUSTER" if mark.with_clusters else "VERDICT", mark.schema, identity, rows)
    exchange = Exchange(tuple(range(hits.manifest.splits)), EmitHits(hits), ROUTED_HIT, ("row",), len(rows.splits))
    dataset = context.committed(context.engine.shuffle(job, exchange, MarkSplit(rows, mark)))
    return rows.with_side(dataset, mark.schema)
