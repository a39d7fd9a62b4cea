"""Connected components of pairs of rows, and candidate pairs cut into blocks: one task, or rounds of shuffles.

Up to `run.max_component_edges` pairs, one task holds the rows that are in pairs, never the pairs. Above it, star
contraction (etl/dedup/stars.py) labels the rows: each half-round is a shuffle of 20 bytes an edge (twice that, for
large-star), committed as DIR/rounds/<name>-<n>; their number grows with the logarithm of a component's diameter, and a
reducer holds one batch. Both give the same labels. The path is part of a dataset's fingerprint, so a run that was
killed is never resumed on the other one.

Datasets of `cut_blocks`, beside DIR/edges, when there are too many pairs for one task:

    candidate_components  LABEL  component of each row                        rounds, shuffle by row
    rounds/edges-nodes    NODE   that, and the row's stream key               shuffle by row
    rounds/edges-chunks   CHUNK  place in the component, in chunks of bytes   shuffle by component
    rounds/edges-ends     END    pairs with the chunk of `a`                  shuffle by row
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.arrays import I64
from etl.dedup.blocks import Blocks, ChunkStream
from etl.dedup.components import Components
from etl.dedup.stars import LargeStar, SmallStar, max_rounds
from etl.engine import Exchange
from etl.hashing import hash_columns, signed
from etl.rows import ROW_BITS, Rows
from etl.stages.context import Context
from etl.stages.dedup.marks import OUT_ROWS, Counted, buckets_of, first_of_groups, recut
from etl.storage.dataset import Chunk, Dataset


def _int64s(*names: str) -> pa.Schema:
    return pa.schema([pa.field(name, pa.int64(), nullable=False) for name in names])


LABEL = _int64s("row", "component")
"""A row key, and the smallest row key of its component."""
EDGE = _int64s("block", "a", "b")
"""A candidate pair and the block that verifies it."""
TIE = _int64s("node", "smaller")
"""A row key, and a smaller one (or itself) of the same component."""
NODE = _int64s("row", "component", "key")
CHUNK = _int64s("row", "component", "chunk")
END = _int64s("a", "b", "component", "chunk")
"""A candidate pair, its component, and the chunk of `a`."""

_ARC = pa.schema([("bucket", pa.int32()), ("node", pa.int64()), ("neighbour", pa.int64())])
_ARC_BYTES = 20
_RANKED_BYTES = 28


def _batch(columns: Iterable[npt.NDArray[Any]], schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=schema)


def _numpy(batch: pa.RecordBatch | pa.Table, names: Iterable[str]) -> list[I64]:
    return [batch.column(name).to_numpy() for name in names]


def distinct(*columns: I64) -> list[I64]:
    """The distinct rows of some columns, sorted."""
    order = np.lexsort(columns[::-1])
    ranked = [column[order] for column in columns]
    fresh = np.zeros(len(order), np.bool_)
    fresh[:1] = True
    for column in ranked:
        fresh[1:] |= column[1:] != column[:-1]
    return [column[fresh] for column in ranked]


def _fits_one_task(context: Context, pairs: Dataset) -> bool:
    return pairs.manifest.rows_out <= context.recipe.run.max_component_edges


# --- labels --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelRows:
    """The component of every row in a pair, in one task."""

    pairs: Dataset
    ends: tuple[str, str]

    def __call__(self, split: int) -> Iterator[Chunk]:
        num_pairs = self.pairs.manifest.rows_out
        graph = Components(2 * num_pairs)
        for batch in self.pairs.read(list(self.ends)):
            graph.join(*(graph.number(column) for column in _numpy(batch, self.ends)))
        for labels in graph.labels(OUT_ROWS):
            yield Chunk(_batch(labels, LABEL))
        yield Chunk(None, num_pairs)


@dataclass(frozen=True)
class EmitBothWays:
    """Each edge to either of its ends."""

    edges: Dataset
    ends: tuple[str, str]
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.edges.read_split(split, list(self.ends)):
            one, other = _numpy(batch, self.ends)
            yield _arcs(self.num_buckets, np.concatenate([one, other]), np.concatenate([other, one]))


@dataclass(frozen=True)
class EmitTies:
    """Each tie to its larger end."""

    ties: Dataset
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.ties.read_split(split, TIE.names):
            yield _arcs(self.num_buckets, *_numpy(batch, TIE.names))


@dataclass(frozen=True)
class EmitLabels:
    """The ties of finished stars, each to the split that holds its larger end, and each centre to itself."""

    ties: Dataset
    num_splits: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.ties.read_split(split, TIE.names):
            node, smaller = _numpy(batch, TIE.names)
            centre = np.unique(smaller)
            row, component = np.concatenate([node, centre]), np.concatenate([smaller, centre])
            bucket = buckets_of(row >> ROW_BITS, self.num_splits)
            yield pa.RecordBatch.from_arrays([bucket, pa.array(row), pa.array(component)], schema=_ARC)


def _arcs(num_buckets: int, node: I64, neighbour: I64) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [buckets_of(_spread(node), num_buckets), pa.array(node), pa.array(neighbour)], schema=_ARC
    )


def _spread(rows: I64) -> I64:
    """A hash of row keys: as they are, the rows of one split may all be of one residue."""
    return hash_columns([pa.array(rows)]).view(np.int64)


def large_stars(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """A half-round over edges from both ends: TIE rows, and how many edges do not lie in a finished star yet."""
    counted, star = Counted(batches), LargeStar()
    yield from recut(_tied(star, counted))
    yield Chunk(None, counted.rows, {}, {"unsettled": star.num_unsettled})


def small_stars(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """A half-round over edges from their larger ends: TIE rows."""
    counted = Counted(batches)
    yield from recut(_tied(SmallStar(), counted))
    yield Chunk(None, counted.rows)


def _tied(star: LargeStar | SmallStar, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield _batch(star.push(*_numpy(batch, ("node", "neighbour"))), TIE)


def first_labels(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """LABEL rows of finished stars: each node once, though every leaf names the centre."""
    counted = Counted(batches)
    yield from recut(_labelled(counted))
    yield Chunk(None, counted.rows)


def _labelled(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    last = np.full((2, 1), -1, np.int64)
    for batch in batches:
        labels = np.stack(_numpy(batch, ("node", "neighbour")))
        step = np.diff(labels, axis=1, prepend=last) != 0
        assert not (step[1] & ~step[0]).any(), "a row has two labels"
        last = labels[:, -1:] if batch.num_rows else last
        yield _batch(labels[:, step[0]], LABEL)


def label_components(context: Context, rows: Rows, name: str, pairs: Dataset, ends: tuple[str, str]) -> Dataset:
    """Write DIR/<name>, table LABEL: the component of every row that is in a pair, sorted by row within a part.

    There is one split for all of them, or, above the budget, one for each split of `rows`, with the labels of its rows.

    Args:
        context: the run.
        rows: whose row keys the pairs hold.
        name: of the dataset.
        pairs: the edges; a pair may come several times.
        ends: its two columns of row keys, int64, >= 0.
    """
    if _fits_one_task(context, pairs):
        job = context.job(name, "LABEL", LABEL, {"path": "one_task", "ends": list(ends)}, (pairs,), rows)
        return context.map(job, [0], LabelRows(pairs, ends))
    ties = _contract(context, rows, name, pairs, ends)
    buckets = len(rows.splits)
    exchange = Exchange(tuple(range(ties.num_splits)), EmitLabels(ties, buckets), _ARC, ("node", "neighbour"), buckets)
    job = context.job(name, "LABEL", LABEL, {"path": "stars", "ends": list(ends)}, (ties,), rows)
    return context.shuffle(job, exchange, first_labels)


def _contract(context: Context, rows: Rows, name: str, pairs: Dataset, ends: tuple[str, str]) -> Dataset:
    """Stars of the components, table TIE: large-star and small-star rounds in turn, until nothing moves."""
    bound = max_rounds(pairs.manifest.rows_out)
    ties = pairs
    for number in range(0, bound, 2):
        splits, num_rows = tuple(range(ties.num_splits)), ties.manifest.rows_out
        buckets = context.num_buckets(2 * num_rows * _ARC_BYTES)
        emit = EmitBothWays(ties, ends, buckets)
        job = context.job(f"rounds/{name}-{number}", "TIE", TIE, {"star": "large", "ends": list(ends)}, (ties,), rows)
        ties = context.shuffle(job, Exchange(splits, emit, _ARC, ("node", "neighbour"), buckets), large_stars)
        if ties.manifest.distributions["unsettled"] == 0:
            return ties
        ends = ("node", "smaller")
        splits, buckets = tuple(range(ties.num_splits)), context.num_buckets(ties.manifest.rows_out * _ARC_BYTES)
        job = context.job(f"rounds/{name}-{number + 1}", "TIE", TIE, {"star": "small"}, (ties,), rows)
        exchange = Exchange(splits, EmitTies(ties, buckets), _ARC, ("node", "neighbour"), buckets)
        ties = context.shuffle(job, exchange, small_stars)
    raise AssertionError(f"{pairs.folder}: edges still move after {bound} rounds of star contraction")


# --- blocks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CutCandidates:
    """All candidate pairs in one task, with their block."""

    candidates: Dataset
    block_bytes: int

    def __call__(self, split: int) -> Iterator[Chunk]:
        max_nodes = 2 * self.candidates.manifest.rows_out
        graph, keys = Components(max_nodes), np.empty(max_nodes, np.int64)
        for batch in self.candidates.read(["a", "b", "a_key", "b_key"]):
            a, b, a_key, b_key = _numpy(batch, batch.schema.names)
            left, right = graph.number(a), graph.number(b)
            keys[left], keys[right] = a_key, b_key
            graph.join(left, right)
        blocks = Blocks.of(graph.nodes, graph.roots(), keys[: len(graph.nodes)], self.block_bytes)
        for batch in self.candidates.read(["a", "b"]):
            a, b = _numpy(batch, batch.schema.names)
            yield Chunk(_batch(distinct(blocks.of_pairs(graph.number(a), graph.number(b)), a, b), EDGE), len(a))


_KEYED = pa.schema([("bucket", pa.int32()), ("row", pa.int64()), ("is_key", pa.bool_()), ("value", pa.int64())])


@dataclass(frozen=True)
class EmitKeys:
    """Each row's component, and its stream key from each batch of pairs that it is in, to the bucket of the row."""

    labels: Dataset
    candidates: Dataset
    num_buckets: int

    def __call__(self, split: list[Any]) -> Iterator[pa.RecordBatch]:
        kind, number = split
        if kind == "labels":
            for batch in self.labels.read_split(number, LABEL.names):
                yield self._keyed(*_numpy(batch, LABEL.names), is_key=False)
        else:
            for batch in self.candidates.read_split(number, ["a", "b", "a_key", "b_key"]):
                a, b, a_key, b_key = _numpy(batch, batch.schema.names)
                row, key = distinct(np.concatenate([a, b]), np.concatenate([a_key, b_key]))
                yield self._keyed(row, key, is_key=True)

    def _keyed(self, row: I64, value: I64, *, is_key: bool) -> pa.RecordBatch:
        bucket = buckets_of(_spread(row), self.num_buckets)
        columns = [bucket, pa.array(row), pa.repeat(is_key, len(row)), pa.array(value)]
        return pa.RecordBatch.from_arrays(columns, schema=_KEYED)


def join_keys(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """NODE rows, each row once; its component comes before its keys, which are all the same."""
    counted = Counted(batches)
    yield from recut(_nodes(counted))
    yield Chunk(None, counted.rows)


def _nodes(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    last = -1
    for table, first in first_of_groups(batches, "row"):
        row, value, is_key = (table[name].to_numpy() for name in ("row", "value", "is_key"))
        taken = np.flatnonzero(is_key)
        taken = taken[np.diff(row[taken], prepend=last) != 0]
        last = row[taken[-1]] if len(taken) else last
        yield _batch([row[taken], value[first[taken]], value[taken]], NODE)


_RANKED = pa.schema([("bucket", pa.int32()), ("component", pa.int64()), ("key", pa.int64()), ("row", pa.int64())])


@dataclass(frozen=True)
class EmitNodes:
    """Rows to the bucket of their component."""

    nodes: Dataset
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.nodes.read_split(split, ["component", "key", "row"]):
            bucket = buckets_of(_spread(batch.column("component").to_numpy()), self.num_buckets)
            yield pa.RecordBatch.from_arrays([bucket, *batch.columns], schema=_RANKED)


@dataclass(frozen=True)
class CutComponents:
    """Rows sorted by (component, key, row): the chunk of each."""

    block_bytes: int

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        counted = Counted(batches)
        yield from recut(self._cut(counted))
        yield Chunk(None, counted.rows)

    def _cut(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        stream = ChunkStream(self.block_bytes)
        for batch in batches:
            component, key, row = _numpy(batch, ("component", "key", "row"))
            yield _batch([row, component, stream.push(component, key)], CHUNK)


_MEETING = pa.schema(
    [
        ("bucket", pa.int32()),
        ("row", pa.int64()),
        ("is_pair", pa.bool_()),
        ("other", pa.int64()),
        ("component", pa.int64()),
        ("chunk", pa.int64()),
    ]
)
"""A row's chunk, or a pair at one of its ends with what is known of the `other`."""
_MEETING_BYTES = 37
_MEETING_ORDER = ("row", "is_pair", "other")


def _meetings(
    num_buckets: int, row: I64, other: I64 | None, component: I64 | None, chunk: I64 | None
) -> pa.RecordBatch:
    nothing = pa.nulls(len(row), pa.int64())
    tail = [nothing if column is None else pa.array(column) for column in (other, component, chunk)]
    head = [buckets_of(_spread(row), num_buckets), pa.array(row), pa.repeat(other is not None, len(row))]
    return pa.RecordBatch.from_arrays([*head, *tail], schema=_MEETING)


@dataclass(frozen=True)
class EmitFirstEnds:
    """Chunks, and pairs, to the bucket of their row `a`."""

    chunks: Dataset
    candidates: Dataset
    num_buckets: int

    def __call__(self, split: list[Any]) -> Iterator[pa.RecordBatch]:
        kind, number = split
        if kind == "chunks":
            yield from _emit_chunks(self.chunks, number, self.num_buckets)
        else:
            for batch in self.candidates.read_split(number, ["a", "b"]):
                a, b = _numpy(batch, ("a", "b"))
                yield _meetings(self.num_buckets, a, b, None, None)


@dataclass(frozen=True)
class EmitSecondEnds:
    """Chunks, and pairs with the chunk of `a`, to the bucket of their row `b`."""

    chunks: Dataset
    ends: Dataset
    num_buckets: int

    def __call__(self, split: list[Any]) -> Iterator[pa.RecordBatch]:
        kind, number = split
        if kind == "chunks":
            yield from _emit_chunks(self.chunks, number, self.num_buckets)
        else:
            for batch in self.ends.read_split(number, END.names):
                yield _meetings(self.num_buckets, *_numpy(batch, ("b", "a", "component", "chunk")))


def _emit_chunks(chunks: Dataset, split: int, num_buckets: int) -> Iterator[pa.RecordBatch]:
    for batch in chunks.read_split(split, CHUNK.names):
        row, component, chunk = _numpy(batch, CHUNK.names)
        yield _meetings(num_buckets, row, None, component, chunk)


def meet_first_end(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """END rows, each pair once."""
    counted = Counted(batches)
    yield from recut(_first_ends(counted))
    yield Chunk(None, counted.rows)


def _first_ends(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    last = np.full((2, 1), -1, np.int64)
    for table, first in first_of_groups(batches, "row"):
        taken = np.flatnonzero(table["is_pair"].to_numpy())
        pairs = np.stack(_numpy(table.select(["row", "other"]).take(pa.array(taken)), ("row", "other")))
        fresh = (np.diff(pairs, axis=1, prepend=last) != 0).any(axis=0)
        last = pairs[:, -1:] if len(taken) else last
        component, chunk = _heads(table, first[taken[fresh]])
        yield _batch([*pairs[:, fresh], component, chunk], END)


def meet_second_end(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """EDGE rows."""
    counted = Counted(batches)
    yield from recut(_edges(counted))
    yield Chunk(None, counted.rows)


def _edges(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for table, first in first_of_groups(batches, "row"):
        taken = np.flatnonzero(table["is_pair"].to_numpy())
        pairs = table.take(pa.array(taken))
        b, a, component, one = _numpy(pairs, ("row", "other", "component", "chunk"))
        _, other = _heads(table, first[taken])
        block = [pa.array(column) for column in (component, np.minimum(one, other), np.maximum(one, other))]
        yield _batch([signed(hash_columns(block)).to_numpy(), a, b], EDGE)


def _heads(table: pa.Table, places: I64) -> list[I64]:
    """Component and chunk that stand in some rows, which are those of chunks."""
    return _numpy(table.select(["component", "chunk"]).take(pa.array(places)), ("component", "chunk"))


def cut_blocks(context: Context, rows: Rows, candidates: Dataset, block_bytes: int) -> Dataset:
    """Write DIR/edges, table EDGE: the block that verifies each candidate pair.

    Pairs that share a component whose shingle sets fit `block_bytes` share a block when one task cuts them; above
    `run.max_component_edges` pairs they may come to lie in three, and each pair comes once.

    Args:
        context: the run.
        rows: whose row keys the pairs hold.
        candidates: row keys `a` < `b` and stream keys `a_key`, `b_key` of pairs, which may come several times.
        block_bytes: the sets of a block take at most so many, and two sets more.
    """
    semantic = {"block_bytes": block_bytes}
    if _fits_one_task(context, candidates):
        job = context.job("edges", "EDGE", EDGE, {**semantic, "path": "one_task"}, (candidates,), rows)
        return context.map(job, [0], CutCandidates(candidates, block_bytes))
    labels = label_components(context, rows, "candidate_components", candidates, ("a", "b"))
    chunks = _cut_chunks(context, rows, labels, candidates, block_bytes)
    num_rows = chunks.manifest.rows_out + candidates.manifest.rows_out
    buckets = context.num_buckets(num_rows * _MEETING_BYTES)

    splits = (*_splits("chunks", chunks), *_splits("pairs", candidates))
    exchange = Exchange(splits, EmitFirstEnds(chunks, candidates, buckets), _MEETING, _MEETING_ORDER, buckets)
    job = context.job("rounds/edges-ends", "END", END, {}, (chunks, candidates), rows)
    ends = context.shuffle(job, exchange, meet_first_end)

    splits = (*_splits("chunks", chunks), *_splits("pairs", ends))
    exchange = Exchange(splits, EmitSecondEnds(chunks, ends, buckets), _MEETING, _MEETING_ORDER, buckets)
    job = context.job("edges", "EDGE", EDGE, {**semantic, "path": "stars"}, (chunks, ends), rows)
    return context.shuffle(job, exchange, meet_second_end)


def _cut_chunks(context: Context, rows: Rows, labels: Dataset, candidates: Dataset, block_bytes: int) -> Dataset:
    """Write DIR/rounds/edges-nodes and DIR/rounds/edges-chunks."""
    num_rows = labels.manifest.rows_out + 2 * candidates.manifest.rows_out
    buckets = context.num_buckets(num_rows * _ARC_BYTES)
    splits = (*_splits("labels", labels), *_splits("pairs", candidates))
    keyed = Exchange(splits, EmitKeys(labels, candidates, buckets), _KEYED, ("row", "is_key", "value"), buckets)
    job = context.job("rounds/edges-nodes", "NODE", NODE, {}, (labels, candidates), rows)
    nodes = context.shuffle(job, keyed, join_keys)

    buckets = context.num_buckets(nodes.manifest.rows_out * _RANKED_BYTES)
    ranked = Exchange(
        tuple(range(nodes.num_splits)), EmitNodes(nodes, buckets), _RANKED, ("component", "key", "row"), buckets
    )
    job = context.job("rounds/edges-chunks", "CHUNK", CHUNK, {"block_bytes": block_bytes}, (nodes,), rows)
    return context.shuffle(job, ranked, CutComponents(block_bytes))


def _splits(kind: str, dataset: Dataset) -> Iterator[list[Any]]:
    return ([kind, split] for split in range(dataset.num_splits))
