"""Streams of rows with row keys: shared code of stages that shuffle rows by a key and bring the result back.

A row key is split << 32 | row (`etl.rows.ROW_BITS`). A map side reads the live rows of a split with their row keys, and
sends its output to buckets by a hash. A reducer gets batches of any size, sorted, and writes row groups of OUT_ROWS
rows, however large those batches were. Everything streams: a worker holds one batch of arriving rows and one row group
of its split, however many rows share a key.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I32, I64, Bools
from etl.hashing import fixed_binary, hash_array, hash_columns, signed
from etl.jit import njit
from etl.rows import ROW_BITS, RowsRef
from etl.schema import ID, place
from etl.step import live
from etl.storage.build import Chunk
from etl.storage.dataset import DatasetRef

OUT_ROWS = 1 << 16
"""Rows of a row group in tables of hits and pairs."""


# --- the map side: live rows, row keys, buckets --------------------------------------------------------------------


def row_keys(split: int, start: int, count: int) -> I64:
    """Keys of `count` rows of a split from row `start` on: int64 [count]."""
    return (np.int64(split) << np.int64(ROW_BITS)) + np.arange(start, start + count, dtype=np.int64)


def splits_of(keys: I64) -> pa.Array:
    """The split that holds each row: int32 [keys]."""
    return pa.array((keys >> ROW_BITS).astype(np.int32))


def keyed_rows(rows: RowsRef, split: int, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, I64]]:
    """The rows of a split with their row keys, one batch a row group."""
    start = 0
    for batch in rows.read(split, columns):
        yield batch, row_keys(split, start, batch.num_rows)
        start += batch.num_rows


def live_rows(rows: RowsRef, split: int, columns: list[str]) -> Iterator[tuple[pa.RecordBatch, I64]]:
    """The rows of a split that no step has dropped, with their row keys, one batch a row group."""
    for batch, keys in keyed_rows(rows, split, list(dict.fromkeys([*columns, "verdict"]))):
        is_live = live(batch)
        mask = is_live.to_numpy(zero_copy_only=False)
        # A filter copies every text, even if all rows are live.
        yield (batch, keys) if mask.all() else (batch.filter(is_live), keys[mask])


@dataclass(frozen=True)
class Input:
    """One of the datasets that a shuffle brings together."""

    dataset: DatasetRef
    columns: list[str]
    lines: Callable[[pa.RecordBatch, int], Iterable[pa.RecordBatch]]
    """Makes the output of a batch of these columns for a number of buckets; a module-level function, so that it
    pickles."""


@dataclass(frozen=True)
class EmitInputs:
    """The map side of a shuffle that brings several datasets together; a split is [name of the input, split of it]."""

    inputs: dict[str, Input]
    num_buckets: int

    @property
    def splits(self) -> tuple[list[Any], ...]:
        """The splits of all inputs."""
        return tuple([name, split] for name, given in self.inputs.items() for split in range(given.dataset.num_splits))

    def __call__(self, split: list[Any]) -> Iterator[pa.RecordBatch]:
        name, number = split
        given = self.inputs[name]
        for batch in given.dataset.read_split(number, given.columns):
            yield from given.lines(batch, self.num_buckets)


def rest_digest(rows: RowsRef, batch: pa.RecordBatch) -> pa.Array:
    """A hash of the columns in which rows of one id can differ, `rows.rest_of_id`: int64 [rows].

    Where one of several rows is chosen, only the row key decides after it, so the choice does not depend on the splits.
    """
    return signed(hash_columns([batch.column(name) for name in rows.rest_of_id]))


def source_places(batch: pa.RecordBatch, sources: tuple[str, ...]) -> pa.Array:
    """The place of each row's source among the sources of the recipe: int32 [rows]."""
    places = pc.index_in(batch.column("source_dataset"), value_set=pa.array(sources, pa.string()))
    assert not places.null_count, "a row of a source that the recipe does not have"
    return places


def buckets_of(keys: npt.NDArray[Any], num_buckets: int) -> pa.Array:
    """The remainder of 64-bit keys, read as unsigned: int32 [keys]."""
    return pa.array((keys.view(np.uint64) % np.uint64(num_buckets)).astype(np.int32))


def hashed_buckets(keys: I64, num_buckets: int) -> pa.Array:
    """Buckets by a hash of row keys, since the rows of one split may all have the same remainder: int32 [keys]."""
    return buckets_of(hash_columns([pa.array(keys)]), num_buckets)


def bucket_of_hash128(hashes: pa.FixedSizeBinaryArray, num_buckets: int) -> pa.Array:
    """Buckets by the first half of 128-bit hashes: int32 [rows]."""
    first = np.ascontiguousarray(fixed_binary(hashes)[:, :8]).view(np.uint64).ravel()
    return buckets_of(first, num_buckets)


def routed(schema: pa.Schema) -> pa.Schema:
    """A schema with a bucket column in front, as the engines carry rows: plain binaries, everything nullable."""
    carried = [(field.name, pa.binary() if field.type == ID else field.type) for field in schema]
    return pa.schema([("bucket", pa.int32()), *carried])


# --- the reducers --------------------------------------------------------------------------------------------------


class Counted:
    """A stream of batches that counts the rows it has given."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self.rows = 0
        self._batches = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.rows += batch.num_rows
            yield batch


def slices(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of at most `rows`: engines deliver batches of any size."""
    return (batch.slice(start, rows) for batch in batches for start in range(0, batch.num_rows, rows))


def recut(batches: Iterable[pa.RecordBatch], rows: int = OUT_ROWS) -> Iterator[Chunk]:
    """The same rows in row groups of `rows`: a file does not depend on the batches of an engine."""
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


def reduced(
    batches: Iterable[pa.RecordBatch],
    fn: Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]],
    distributions: Callable[[], dict[str, Any]] = dict,
) -> Iterator[Chunk]:
    """The output of most reducers: the rows that `fn` makes of a bucket, recut, then a chunk of only counts.

    Args:
        batches: the rows of the bucket, sorted.
        fn: consumes them all.
        distributions: called when `fn` is done.
    """
    counted = Counted(batches)
    yield from recut(fn(counted))
    yield Chunk(None, counted.rows, {}, distributions())


def first_of_groups(batches: Iterable[pa.RecordBatch], key: str) -> Iterator[tuple[pa.Table, I64]]:
    """A stream sorted by `key`, with the place of the first row of its group for each row.

    A table begins with the first row of the group that was open when the batch came, so a group of any size costs one
    row of memory. That row comes again in each table of its group, always as its own first.

    Args:
        batches: sorted by `key`.
        key: a binary or integer column.
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


class Changes:
    """Where the rows of a stream differ from the one before them, in whatever batches they come; holds one row."""

    def __init__(self) -> None:
        self._last: I64 | None = None

    def push(self, columns: I64) -> Bools:
        """By column, whether each of the next rows differs from the one before it; the very first one does.

        Args:
            columns: the rows, int64 [columns, rows].

        Returns:
            bool [columns, rows].
        """
        changed = np.ones(columns.shape, np.bool_)
        changed[:, 1:] = columns[:, 1:] != columns[:, :-1]
        if columns.shape[1]:
            if self._last is not None:
                changed[:, 0] = columns[:, 0] != self._last
            self._last = columns[:, -1].copy()
        return changed


class RowFeed:
    """A stream sorted by `row`, taken piece by piece; holds a batch and the requested piece."""

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


def rows_with_found(
    rows: RowsRef, split: int, columns: list[str], batches: Iterable[pa.RecordBatch], schema: pa.Schema
) -> Iterator[tuple[pa.RecordBatch, pa.Table]]:
    """The rows of a split, one batch a row group, each with the findings about them; holds both for one row group.

    Args:
        rows: read split by split.
        split: which one.
        columns: those that are read of the rows.
        batches: findings for the split, sorted by the row key `row`; none, one or several for a row.
        schema: of the findings.

    Yields:
        The rows, and their findings in one chunk, where `row` is now the place in the batch, int64.
    """
    feed = RowFeed(batches, schema)
    for batch, keys in keyed_rows(rows, split, columns):
        found = feed.until(int(keys[-1]))
        place = pa.array(found["row"].to_numpy() - keys[0])
        yield batch, found.set_column(found.schema.get_field_index("row"), "row", place)


# --- tables of int64 columns ---------------------------------------------------------------------------------------


def int64_schema(*names: str, places: Sequence[str] = ()) -> pa.Schema:
    """int64 columns without nulls, some of them places (row keys, and numbers derived from them)."""
    fields = (pa.field(name, pa.int64(), nullable=False) for name in names)
    return pa.schema([place(field) if field.name in places else field for field in fields])


def to_batch(columns: Iterable[npt.NDArray[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """NumPy columns as a batch."""
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=schema)


def to_numpy(batch: pa.RecordBatch | pa.Table, names: Iterable[str]) -> list[I64]:
    """Some columns of a batch as NumPy arrays."""
    return [batch.column(name).to_numpy() for name in names]


def distinct(*columns: I64) -> list[I64]:
    """The distinct rows of some columns, sorted."""
    return counted_distinct(*columns)[:-1]


def counted_distinct(*columns: I64) -> list[I64]:
    """The distinct rows of some columns, sorted, and how often each one came.

    A hash table finds them, so that only the distinct ones are sorted: pairs come as often as they share bands.
    """
    return counted_distinct_rows(np.stack(columns, axis=1))


def counted_distinct_rows(rows: I64) -> list[I64]:
    """`counted_distinct` of adjacent columns, int64 [rows, columns]."""
    bits = max(4, (2 * len(rows) - 1).bit_length())
    first, times = np.empty(len(rows), np.int32), np.zeros(len(rows), np.int64)
    num = _find_distinct(rows, np.full(1 << bits, -1, np.int32), np.uint64(64 - bits), first, times)
    found, times = rows[first[:num]], times[:num]
    order = _order_of_distinct(found)
    return [*found[order].T.copy(), times[order]]


def _order_of_distinct(rows: I64) -> I64:
    """The order of distinct rows, by the first column first: their places, int64 [rows].

    NumPy sorts one column in a fraction of the time of its lexsort, and two columns mostly distinguish all rows.
    """
    code = _ranks(rows[:, 0])
    for column in rows.T[1:]:
        if not len(code) or code.max() + 1 == len(code):
            break
        code = _ranks(code << 32 | _ranks(column))
    order = np.empty_like(code)
    order[code] = np.arange(len(code))
    return order


def _ranks(values: I64) -> I64:
    """The place of each value among the distinct ones in order."""
    order = np.argsort(values)
    ranked = values[order]
    ranks = np.empty_like(order)
    ranks[order] = np.cumsum(np.concatenate([np.zeros(min(1, len(values)), np.bool_), ranked[1:] != ranked[:-1]]))
    return ranks


@njit
def _are_equal(rows: I64, one: int, other: int) -> bool:
    equal = True
    for k in range(rows.shape[1]):
        equal &= rows[one, k] == rows[other, k]
    return equal


@njit
def _find_distinct(rows: I64, table: I32, shift: np.uint64, first: I32, times: I64) -> int:
    """Write the first place of each distinct row and how often it came; returns how many there are."""
    mask, num = len(table) - 1, 0
    for row in range(len(rows)):
        mixed = np.uint64(0)
        for k in range(rows.shape[1]):
            mixed = (mixed ^ np.uint64(rows[row, k])) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(32)
        slot = np.int64((mixed * np.uint64(0xD6E8FEB86659FD93)) >> shift)
        while table[slot] >= 0 and not _are_equal(rows, first[table[slot]], row):
            slot = (slot + 1) & mask
        if table[slot] < 0:
            table[slot], first[num] = num, row
            num += 1
        times[table[slot]] += 1
    return num


# --- ids as text ---------------------------------------------------------------------------------------------------

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
