"""Connected components by large and small stars: rounds of shuffles over the edges, for graphs of any size.

Each half-round (etl.dedup.stars) is a shuffle of 20 bytes an edge (twice that, for large-star), committed as
DIR/rounds/<name>-<n>, table TIE. Their number grows with the logarithm of a component's diameter. A reducer holds one
batch. When every component is a star round its smallest row, `first_labels` makes LABEL of it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from etl.arrays import I64
from etl.dedup.stars import LargeStar, SmallStar, max_rounds
from etl.engine import Exchange
from etl.laws import Growth, SameAs
from etl.rows import ROW_BITS, Rows
from etl.stages.context import Context
from etl.stages.keyed import Changes, buckets_of, hashed_buckets, int64_schema, reduced, to_batch, to_numpy
from etl.storage.build import Chunk, Job
from etl.storage.dataset import Dataset, DatasetRef

LABEL = int64_schema("row", "component", places=("row", "component"))
"""A row key, and the smallest row key of its component."""
TIE = int64_schema("node", "smaller", places=("node", "smaller"))
"""A row key, and a smaller one (or itself) of the same component.

Both hold only places, so their content digests depend only on the number of rows. Datasets made from them are
fingerprinted by the pairs from which they come."""
LABEL_VERSION = 2
"""Of every job that writes LABEL or TIE; 1 had a digest that covered the row keys."""

ARC = pa.schema([("bucket", pa.int32()), ("node", pa.int64()), ("neighbour", pa.int64())])
ARC_BYTES = 20
ARC_ORDER = ("node", "neighbour")


@dataclass(frozen=True)
class EmitBothWays:
    """Each edge to either of its ends."""

    edges: DatasetRef
    ends: tuple[str, str]
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.edges.read_split(split, list(self.ends)):
            one, other = to_numpy(batch, self.ends)
            yield _arcs(self.num_buckets, np.concatenate([one, other]), np.concatenate([other, one]))


@dataclass(frozen=True)
class EmitTies:
    """Each tie to its larger end."""

    ties: DatasetRef
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.ties.read_split(split, TIE.names):
            yield _arcs(self.num_buckets, *to_numpy(batch, TIE.names))


@dataclass(frozen=True)
class EmitLabels:
    """Sends each tie of finished stars to the split that holds its larger end, and ties each centre to itself."""

    ties: DatasetRef
    num_splits: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.ties.read_split(split, TIE.names):
            node, smaller = to_numpy(batch, TIE.names)
            centre = np.unique(smaller)
            row, component = np.concatenate([node, centre]), np.concatenate([smaller, centre])
            # A canary is in no split: its key (etl.dedup.canaries) has higher bits, so any bucket will do.
            bucket = buckets_of(row >> ROW_BITS, self.num_splits)
            yield pa.RecordBatch.from_arrays([bucket, pa.array(row), pa.array(component)], schema=ARC)


def _arcs(num_buckets: int, node: I64, neighbour: I64) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [hashed_buckets(node, num_buckets), pa.array(node), pa.array(neighbour)], schema=ARC
    )


def large_stars(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """A half-round over edges from both ends: TIE rows, and how many edges are not in a finished star yet."""
    star = LargeStar()
    return reduced(batches, lambda arcs: _tied(star, arcs), lambda: {"unsettled": star.num_unsettled})


def small_stars(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """A half-round over edges from their larger ends: TIE rows."""
    return reduced(batches, lambda arcs: _tied(SmallStar(), arcs))


def _tied(star: LargeStar | SmallStar, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield to_batch(star.push(*to_numpy(batch, ARC_ORDER)), TIE)


def first_labels(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """LABEL rows of finished stars: each node once, although every leaf names the centre."""
    return reduced(batches, _labelled)


def _labelled(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    changes = Changes()
    for batch in batches:
        labels = np.stack(to_numpy(batch, ARC_ORDER))
        new_node, new_label = changes.push(labels)
        assert not (new_label & ~new_node).any(), "a row has two labels"
        yield to_batch(labels[:, new_node], LABEL)


def contract(context: Context, rows: Rows, name: str, pairs: Dataset, ends: tuple[str, str]) -> Dataset:
    """Stars of the components, table TIE: alternating large-star and small-star rounds, until nothing changes.

    Args:
        context: the run.
        rows: whose row keys the pairs hold.
        name: of the dataset that the labels will be; the rounds are DIR/rounds/<name>-<n>.
        pairs: the edges; a pair may come several times.
        ends: its two columns of row keys, int64, >= 0.
    """
    bound = max_rounds(pairs.manifest.rows_out)
    as_pairs = SameAs(pairs.ref.stage)
    ties = pairs
    for number in range(0, bound, 2):
        splits, num_rows = tuple(range(ties.ref.num_splits)), ties.manifest.rows_out
        tasks = context.buckets(2 * num_rows * ARC_BYTES, as_pairs)
        buckets, grows = tasks.count(), Growth.all_by(as_pairs, tasks)
        emit = EmitBothWays(ties.ref, ends, buckets)
        semantic = {"star": "large", "ends": list(ends)}
        job = _round(context, rows, f"{name}-{number}", semantic, pairs, grows)
        ties = context.shuffle(job, Exchange(splits, emit, ARC, ARC_ORDER, buckets), large_stars)
        if ties.manifest.count("unsettled") == 0:
            return ties
        ends = ("node", "smaller")
        splits, tasks = tuple(range(ties.ref.num_splits)), context.buckets(ties.manifest.rows_out * ARC_BYTES, as_pairs)
        buckets, grows = tasks.count(), Growth.all_by(as_pairs, tasks)
        job = _round(context, rows, f"{name}-{number + 1}", {"star": "small"}, pairs, grows)
        exchange = Exchange(splits, EmitTies(ties.ref, buckets), ARC, ARC_ORDER, buckets)
        ties = context.shuffle(job, exchange, small_stars)
    raise AssertionError(f"{pairs.folder}: edges still move after {bound} rounds of star contraction")


def _round(context: Context, rows: Rows, name: str, semantic: dict[str, Any], pairs: Dataset, grows: Growth) -> Job:
    return context.job(f"rounds/{name}", "TIE", TIE, semantic, (pairs,), rows, version=LABEL_VERSION, grows=grows)
