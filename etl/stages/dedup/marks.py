"""Rows that a shuffle found by their hashes, brought back to where they lie.

What stages with a key of their own (duplicates, prompts on both sides) share: streaming the living rows of a split with
their row keys, the first row of each group of a sorted bucket, and found rows turned into an aligned table of verdicts.
Row keys (split << 32 | row) cross the shuffles. Everything streams: a worker holds one batch of what came to it and one
row group of its split, however large a group of equal keys is or how many rows of a split were found.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.accounting import account
from etl.arrays import I64
from etl.engine import Exchange
from etl.hashing import fixed_binary, hash_array
from etl.rows import ROW_BITS, Rows
from etl.schema import CLUSTER_COLUMNS, ID, aligned
from etl.stages.context import Context
from etl.step import drop
from etl.storage.dataset import Chunk, Dataset

OUT_ROWS = 1 << 16
"""Rows of a row group in tables of hits and pairs."""

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
"""A row that goes because another one stays."""


def row_keys(split: int, start: int, count: int) -> I64:
    return (np.int64(split) << np.int64(ROW_BITS)) + np.arange(start, start + count, dtype=np.int64)


def buckets_of(keys: npt.NDArray[Any], num_buckets: int) -> pa.Array:
    return pa.array((keys.view(np.uint64) % np.uint64(num_buckets)).astype(np.int32))


def source_places(batch: pa.RecordBatch, sources: tuple[str, ...]) -> pa.Array:
    """The place of each row's source among the sources of the recipe: int32 [rows]."""
    places = pc.index_in(batch.column("source_dataset"), value_set=pa.array(sources, pa.string()))
    assert not places.null_count, "a row of a source that the recipe does not have"
    return places


def living(rows: Rows, split: int, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, I64]]:
    """The rows of a split without a verdict, with their row keys."""
    start = 0
    for batch in rows.read(split, list(dict.fromkeys([*columns, "verdict"]))):
        keys = row_keys(split, start, batch.num_rows)
        start += batch.num_rows
        alive = batch.column("verdict").is_null()
        yield batch.filter(alive), keys[alive.to_numpy(zero_copy_only=False)]


def slices(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at most so many: engines hand out batches of any size."""
    return (batch.slice(start, rows) for batch in batches for start in range(0, batch.num_rows, rows))


class Counted:
    """A stream of batches that counts the rows it has given."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self.rows = 0
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.rows += batch.num_rows
            yield batch


def first_of_groups(batches: Iterable[pa.RecordBatch], key: str) -> Iterator[tuple[pa.Table, I64]]:
    """A stream that is sorted by `key`, and for each row the place of the first row of its group.

    A table begins with the first row of the group that was open when the batch came, so a group of any size costs one
    row of memory. That row comes again in each table of its group, always as its own first.

    Args:
        batches: sorted by `key`.
        key: a binary column.
    """
    opened: list[pa.RecordBatch] = []
    for batch in batches:
        if batch.num_rows == 0:
            continue
        table = pa.Table.from_batches([*opened, batch]).combine_chunks()
        hashes = hash_array(table[key].combine_chunks())
        starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
        first = np.repeat(starts, np.diff(np.append(starts, len(hashes))))
        yield table, first
        opened = table.take(pa.array(first[-1:])).to_batches()


class RowFeed:
    """A stream that is sorted by `row`, taken piece by piece; holds a batch and what was asked for."""

    def __init__(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        self._batches = iter(batches)
        self._held = schema.empty_table()

    def until(self, last: int) -> pa.Table:
        """The next rows whose key is at most `last`, in one chunk."""
        pieces = [self._held]
        end = self._last(self._held)
        while end is None or end <= last:
            batch = next(self._batches, None)
            if batch is None:
                break
            pieces.append(pa.Table.from_batches([batch]))
            end = self._last(pieces[-1])
        table = pa.concat_tables(pieces).combine_chunks()
        cut = int(np.searchsorted(table["row"].to_numpy(), last, "right"))
        self._held = table.slice(cut)
        return table.slice(0, cut).combine_chunks()

    @staticmethod
    def _last(table: pa.Table) -> int | None:
        return table["row"][-1].as_py() if len(table) else None


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


def losers(table: pa.Table, first: I64, lost: npt.NDArray[np.bool_]) -> pa.RecordBatch:
    """LOSER of the rows where `lost` is true: the first row of their group survives.

    Args:
        table: with `row` and `id`.
        first: place of the first row of each row's group, int64 [rows].
        lost: bool [rows].
    """
    survivor = table["id"].combine_chunks().take(pa.array(first[lost])).cast(ID)
    return pa.RecordBatch.from_arrays([table["row"].combine_chunks().filter(pa.array(lost)), survivor], schema=LOSER)


def routed(hits: pa.Schema) -> pa.Schema:
    """A schema with a bucket before it, as the engines carry rows: plain binaries, everything nullable."""
    carried = [(field.name, pa.binary() if field.type == ID else field.type) for field in hits]
    return pa.schema([("bucket", pa.int32()), *carried])


@dataclass(frozen=True)
class EmitHits:
    """HIT or LOSER rows to the split that holds their row."""

    hits: Dataset
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
        """The columns of each row, whether it goes, and the id of the one that stays.

        Args:
            batch: rows with id and verdict.
            found: what LOSER says of them, null for a row that was not found.
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
        """As `Mark.judge`, of HIT; a living row that was not found is a cluster of its own."""
        alive = batch.column("verdict").is_null()
        alone = (batch.column("id").cast(pa.binary()), *(pa.scalar(value, kind) for value, kind in _ALONE))
        columns = [
            pc.coalesce(column, pc.if_else(alive, own, pa.scalar(None, column.type)))
            for column, own in zip(found, alone, strict=True)
        ]
        similar = pc.greater_equal(found[3], self.drop_below - 1e-12)
        return columns, pc.and_(pc.greater(found[2], 0), similar), columns[0]


_ALONE = ((1, pa.int32()), (0, pa.int32()), (1.0, pa.float64()))
"""Size, rank and similarity to itself of a row without a duplicate."""


@dataclass(frozen=True)
class MarkSplit:
    """One split's rows with the hits that came for it, sorted by row; holds a row group and its hits."""

    rows: Rows
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


_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)
_DIGITS = np.array([place for place in range(36) if place not in (8, 13, 18, 23)])


def uuid_texts(ids: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """The 36-character form of 16-byte ids; null for null."""
    data = fixed_binary(ids)
    text = np.full((len(ids), 36), ord("-"), np.uint8)
    text[:, _DIGITS] = _HEX[np.stack([data >> 4, data & 15], axis=2).reshape(len(ids), 32)]
    offsets = np.arange(0, 36 * (len(ids) + 1), 36, dtype=np.int32)
    made = pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(text))
    return pc.if_else(ids.is_valid(), made, None) if ids.null_count else made


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
        tuple(range(hits.num_splits)), EmitHits(hits, mark.hits), routed(mark.hits), ("row",), len(rows.splits)
    )
    return rows.with_side(context.shuffle(job.with_findings(findings or {}), exchange, MarkSplit(rows, mark)), schema)
