"""Candidate pairs cut into blocks of bounded bytes (etl.dedup.blocks), in one task or by shuffles.

`CutCandidates` does it in one task that holds the rows of the pairs, and 8 bytes for each record of a pair. The
shuffles start from the component of each row:

    rounds/edges-nodes   NODE   component and stream key of each row         by row        join_keys
    rounds/edges-chunks  CHUNK  place in the component, in chunks of bytes   by component  CutComponents
    rounds/edges-ends    END    pairs with the chunk of `a`                  by row `a`    join_first_chunk
    edges                EDGE   pairs with their block                       by row `b`    join_second_chunk

53 bytes cross a shuffle for each end of a pair; a reducer holds one batch. Either way each pair comes once.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from etl.arrays import I64
from etl.dedup.blocks import Blocks, ChunkStream
from etl.dedup.components import Components
from etl.hashing import hash_columns, signed
from etl.stages.dedup.stars import LABEL
from etl.stages.keyed import (
    Changes,
    distinct,
    first_of_groups,
    hashed_buckets,
    int64_schema,
    reduced,
    to_batch,
    to_numpy,
)
from etl.storage.build import Chunk
from etl.storage.dataset import DatasetRef

EDGE = int64_schema("block", "a", "b", "a_key", "b_key", "alike", places=("block", "a", "b"))
"""A candidate pair, the block that verifies it, the stream keys of its rows, which identify them in its digest, and 1
where their sets may be equal."""
EDGE_VERSION = 3
"""1 had no stream keys, and a pair several times; 2 had no `alike`."""
NODE = int64_schema("row", "component", "key", places=("row", "component"))
CHUNK = int64_schema("row", "component", "chunk", "key", places=("row", "component", "chunk"))
END = int64_schema("a", "b", "alike", "component", "chunk", "key", places=("a", "b", "component", "chunk"))
"""A candidate pair, whether its sets may be equal, its component, and the chunk and stream key of `a`."""
_CUT_PAIRS = 1 << 20
"""Pairs whose block is found at once."""

KEY_COLUMNS = ["a", "b", "a_key", "b_key"]
"""The columns of candidates with a row and its stream key."""
FIRST_END_COLUMNS = ["a", "b", "alike"]
"""The columns of candidates that are sent to the chunk of `a`."""


@dataclass(frozen=True)
class CutCandidates:
    """All candidate pairs in one task, with their block."""

    candidates: DatasetRef
    block_bytes: int

    def __call__(self, split: int) -> Iterator[Chunk]:
        candidates = self.candidates.open()
        max_nodes = 2 * candidates.manifest.rows_out
        graph, keys = Components(max_nodes), np.empty(max_nodes, np.int64)
        pairs, num_pairs = np.empty(candidates.manifest.rows_out, np.int64), 0
        for batch in candidates.read([*KEY_COLUMNS, "alike"]):
            a, b, a_key, b_key, alike = to_numpy(batch, [*KEY_COLUMNS, "alike"])
            left, right = graph.number(a), graph.number(b)
            keys[left], keys[right] = a_key, b_key
            graph.join(left, right)
            # Node numbers have 31 bits.
            pairs[num_pairs : num_pairs + len(a)] = left.astype(np.int64) << 32 | right.astype(np.int64) << 1 | alike
            num_pairs += len(a)
        nodes, keys = graph.nodes, keys[: len(graph.nodes)]
        blocks = Blocks.of(nodes, graph.roots(), keys, self.block_bytes)
        pairs.sort()
        last = np.int64(-1)
        for start in range(0, num_pairs, _CUT_PAIRS):
            some = pairs[start : start + _CUT_PAIRS]
            fresh = some[np.diff(some, prepend=last) != 0]
            last = some[-1]
            left, right = (fresh >> 32).astype(np.int32), (fresh >> 1 & np.int64(0x7FFFFFFF)).astype(np.int32)
            columns = [blocks.of_pairs(left, right), nodes[left], nodes[right], keys[left], keys[right], fresh & 1]
            yield Chunk(to_batch(distinct(*columns), EDGE), len(some))


KEYED = pa.schema([("bucket", pa.int32()), ("row", pa.int64()), ("is_key", pa.bool_()), ("value", pa.int64())])


def component_lines(labels: pa.RecordBatch, num_buckets: int) -> Iterator[pa.RecordBatch]:
    """Each row's component to the bucket of the row."""
    row, component = to_numpy(labels, LABEL.names)
    yield _keyed(row, component, False, num_buckets)


def key_lines(candidates: pa.RecordBatch, num_buckets: int) -> Iterator[pa.RecordBatch]:
    """The stream key of each row in a batch of pairs to the bucket of the row."""
    a, b, a_key, b_key = to_numpy(candidates, KEY_COLUMNS)
    row, key = distinct(np.concatenate([a, b]), np.concatenate([a_key, b_key]))
    yield _keyed(row, key, True, num_buckets)


def _keyed(row: I64, value: I64, is_key: bool, num_buckets: int) -> pa.RecordBatch:
    columns = [hashed_buckets(row, num_buckets), pa.array(row), pa.repeat(is_key, len(row)), pa.array(value)]
    return pa.RecordBatch.from_arrays(columns, schema=KEYED)


def join_keys(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """NODE rows, each row once; its component comes before its keys, which are all equal."""
    return reduced(batches, _nodes)


def _nodes(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    changes = Changes()
    for table, first in first_of_groups(batches, "row"):
        row, value, is_key = (table[name].to_numpy() for name in ("row", "value", "is_key"))
        taken = np.flatnonzero(is_key)
        taken = taken[changes.push(row[np.newaxis, taken])[0]]
        yield to_batch([row[taken], value[first[taken]], value[taken]], NODE)


RANKED = pa.schema([("bucket", pa.int32()), ("component", pa.int64()), ("key", pa.int64()), ("row", pa.int64())])
RANKED_BYTES = 28


@dataclass(frozen=True)
class EmitNodes:
    """Rows to the bucket of their component."""

    nodes: DatasetRef
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.nodes.read_split(split, ["component", "key", "row"]):
            bucket = hashed_buckets(batch.column("component").to_numpy(), self.num_buckets)
            yield pa.RecordBatch.from_arrays([bucket, *batch.columns], schema=RANKED)


@dataclass(frozen=True)
class CutComponents:
    """Rows sorted by (component, key, row): the chunk of each."""

    block_bytes: int

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        return reduced(batches, self._cut)

    def _cut(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        stream = ChunkStream(self.block_bytes)
        for batch in batches:
            component, key, row = to_numpy(batch, ("component", "key", "row"))
            yield to_batch([row, component, stream.push(component, key), key], CHUNK)


AT_END = pa.schema(
    [
        ("bucket", pa.int32()),
        ("row", pa.int64()),
        ("is_pair", pa.bool_()),
        ("other", pa.int64()),
        ("alike", pa.int64()),
        ("component", pa.int64()),
        ("chunk", pa.int64()),
        ("key", pa.int64()),
    ]
)
"""A row's chunk and key, or a pair at one of its ends with the known values of the `other`; the chunk sorts first."""
AT_END_BYTES = 53
AT_END_ORDER = ("row", "is_pair", "other")


def chunk_lines(chunks: pa.RecordBatch, num_buckets: int) -> Iterator[pa.RecordBatch]:
    """Each row's chunk to the bucket of the row."""
    row, *known = to_numpy(chunks, CHUNK.names)
    yield _at_end(num_buckets, row, None, None, *known)


def first_end_lines(pairs: pa.RecordBatch, num_buckets: int) -> Iterator[pa.RecordBatch]:
    """Pairs to the bucket of `a`."""
    yield _at_end(num_buckets, *to_numpy(pairs, FIRST_END_COLUMNS))


def second_end_lines(ends: pa.RecordBatch, num_buckets: int) -> Iterator[pa.RecordBatch]:
    """Pairs to the bucket of `b`, with the chunk of `a`."""
    yield _at_end(num_buckets, *to_numpy(ends, ("b", "a", "alike", "component", "chunk", "key")))


def _at_end(num_buckets: int, row: I64, other: I64 | None, alike: I64 | None, *known: I64) -> pa.RecordBatch:
    """AT_END rows; `known` is component, chunk and key, or nothing."""
    nothing = pa.nulls(len(row), pa.int64())
    tail = [nothing if column is None else pa.array(column) for column in (other, alike, *(known or [None] * 3))]
    head = [hashed_buckets(row, num_buckets), pa.array(row), pa.repeat(other is not None, len(row))]
    return pa.RecordBatch.from_arrays([*head, *tail], schema=AT_END)


def join_first_chunk(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """END rows, each pair once; the chunk of `a` comes before the pairs."""
    return reduced(batches, _first_ends)


def _first_ends(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    changes = Changes()
    for table, first in first_of_groups(batches, "row"):
        taken = np.flatnonzero(table["is_pair"].to_numpy())
        names = ("row", "other", "alike")
        pairs = np.stack(to_numpy(table.select(names).take(pa.array(taken)), names))
        fresh = changes.push(pairs).any(axis=0)
        yield to_batch([*pairs[:, fresh], *_heads(table, first[taken[fresh]])], END)


def join_second_chunk(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """EDGE rows; the chunk of `b` comes before the pairs."""
    return reduced(batches, _edges)


def _edges(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for table, first in first_of_groups(batches, "row"):
        taken = np.flatnonzero(table["is_pair"].to_numpy())
        pairs = table.take(pa.array(taken))
        b, a, alike, component, one, a_key = to_numpy(pairs, ("row", "other", "alike", "component", "chunk", "key"))
        _, other, b_key = _heads(table, first[taken])
        block = [pa.array(column) for column in (component, np.minimum(one, other), np.maximum(one, other))]
        yield to_batch([signed(hash_columns(block)).to_numpy(), a, b, a_key, b_key, alike], EDGE)


def _heads(table: pa.Table, places: I64) -> list[I64]:
    """Component, chunk and key of some rows, all of which are records of chunks."""
    names = ["component", "chunk", "key"]
    return to_numpy(table.select(names).take(pa.array(places)), names)
