"""Clusters of semantic dedup: each row with its nearest centroid, and which rows of a cluster are kept.

`EmitClusterMembers` sends each live row's embedding to the bucket of its cluster, the best rows first;
`CompareClusters` takes them in that order (etl/dedup/semantic.py) and writes SEMANTIC_HIT, each row's cluster, rank and
survivor. Similarities are exact products of int8, so the result is the same on every engine. An embedding crosses the
shuffle once. A worker holds all centroids (20 · max_clusters · dim bytes) on the map side; then two blocks of a cluster
with their products (130 MB) and 16 bytes a row of the cluster. A cluster's vectors are in a temporary file.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.arrays import I64
from etl.dedup.semantic import EMBEDDING, SemanticDedup, survivors
from etl.dedup.vectors import BLOCK_ROWS, from_binary, nearest
from etl.engine import Exchange
from etl.hashing import hash_array
from etl.laws import Growth
from etl.rows import Rows, RowsRef
from etl.schema import ID, PROMPT, ROW_KEY
from etl.stages.context import Context
from etl.stages.dedup.semantic_cells import (
    SEMANTIC_VERSION,
    cell_of,
    cell_of_cluster,
    cluster_name,
    cluster_numbers,
    name_of,
)
from etl.stages.keyed import buckets_of, live_rows, reduced, rest_digest, slices
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset, DatasetRef

COSINE_ONE: Final = 1_000_000
"""A cosine of 1, in the units in which cosines are added up."""
_ASSIGN_ROWS: Final = 4096

SEMANTIC_HIT = pa.schema(
    [
        ROW_KEY,
        PROMPT.field("id"),
        pa.field("cluster", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("rank", pa.int32()),
        pa.field("survivor", ID),
    ]
)
"""`size` counts the kept rows of the cluster, `rank` is a row's place among them; null for a dropped row."""
CLUSTER_MEMBER = pa.schema(
    [
        ("bucket", pa.int32()), ("cluster", pa.int64()), ("order", pa.int64()), ("id", pa.binary()),
        ("digest", pa.int64()), ("row", pa.int64()), ("cosine", pa.int32()), ("vector", pa.binary()),
    ]
)  # fmt: skip
"""`order` is the survivor's preference; `cosine` that to the centroid in units of 1 / COSINE_ONE."""


@dataclass(frozen=True)
class EmitClusterMembers:
    """Each live row of a split with the nearest centroid of its cell."""

    rows: RowsRef
    centroids: DatasetRef
    config: SemanticDedup
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        # One row group a cell, in the order of its places.
        found = self.centroids.open().read()
        centroids = {int(cell_of(batch)[0]): from_binary(batch.column("centroid")) for batch in found}
        reads = ["id", "skill_bucket", "ctx_bucket", *EMBEDDING.names, *self.rows.rest_of_id]
        columns = list(dict.fromkeys([*reads, *self.config.survivor.reads]))
        for batch, keys in live_rows(self.rows, split, columns):
            for start in range(0, batch.num_rows, _ASSIGN_ROWS):
                piece = batch.slice(start, _ASSIGN_ROWS)
                yield self._members(piece, keys[start : start + _ASSIGN_ROWS], centroids)

    def _members(self, batch: pa.RecordBatch, keys: I64, centroids: dict[int, Any]) -> pa.RecordBatch:
        cells = cell_of(batch)
        vectors = from_binary(batch.column("embedding_int8"))
        place = np.empty(batch.num_rows, np.int64)
        cosine = np.empty(batch.num_rows)
        for cell in np.unique(cells).tolist():
            mine = cells == cell
            place[mine], cosine[mine] = nearest(vectors[mine], centroids[cell])
        cluster = pa.array(cluster_numbers(cells, place))
        columns = [
            buckets_of(hash_array(cluster), self.num_buckets), cluster,
            pa.array(self.config.survivor.preference(batch)), batch.column("id").cast(pa.binary()),
            rest_digest(self.rows, batch), pa.array(keys), pa.array(np.rint(cosine * COSINE_ONE).astype(np.int32)),
            batch.column("embedding_int8"),
        ]  # fmt: skip
        return pa.RecordBatch.from_arrays(columns, schema=CLUSTER_MEMBER)


class ClusterFile:
    """Context manager that holds the rows of one cluster at a time, in a temporary file."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._dtype = np.dtype([])
        self.num_rows = 0

    def __enter__(self) -> "ClusterFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def begin(self) -> None:
        """Forget all rows: the next one is the first of another cluster."""
        self._file.seek(0)
        self.num_rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        vectors = from_binary(batch.column("vector"))
        self._dtype = np.dtype([("row", np.int64), ("id", "V16"), ("vector", np.int8, (vectors.shape[1],))])
        records = np.empty(batch.num_rows, self._dtype)
        records["row"] = batch.column("row").to_numpy()
        records["id"] = from_binary(batch.column("id")).view("V16").ravel()
        records["vector"] = vectors
        self._file.write(records.tobytes())
        self.num_rows += batch.num_rows

    def records(self) -> npt.NDArray[Any]:
        """row, id and vector of the cluster's rows, mapped; valid until the next cluster begins."""
        self._file.flush()
        return np.memmap(self._file, self._dtype, "r", 0, (self.num_rows,))


@dataclass
class Tally:
    """The report on the clusters of one bucket, by skill and context bucket."""

    cells: dict[str, dict[str, dict[str, int]]]
    largest: dict[str, dict[str, dict[str, int]]]
    """Skill → ctx → the largest cluster of this bucket → its rows."""

    def add(self, cluster: int, rows: int, kept: int, cosine: int) -> None:
        skill, ctx = name_of(cell_of_cluster(cluster))
        counts = self.cells.setdefault(skill, {}).setdefault(ctx, dict.fromkeys(("clusters", "rows", "removed"), 0))
        for name, value in (("clusters", 1), ("rows", rows), ("removed", rows - kept), ("cosine_millionths", cosine)):
            counts[name] = counts.get(name, 0) + value
        before = self.largest.setdefault(skill, {}).get(ctx, {})
        if kept > max(before.values(), default=-1):
            self.largest[skill][ctx] = {cluster_name(cluster): kept}

    def tree(self) -> dict[str, Any]:
        """The distributions of the bucket."""
        return {"cells": self.cells, "largest": self.largest}


@dataclass(frozen=True)
class CompareClusters:
    """The clusters of one bucket: which rows are kept, and every row's rank."""

    config: SemanticDedup

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        tally = Tally({}, {})
        return reduced(slices(batches, BLOCK_ROWS), lambda rows: self._hits(rows, tally), tally.tree)

    def _hits(self, batches: Iterable[pa.RecordBatch], tally: Tally) -> Iterator[pa.RecordBatch]:
        current: int | None = None
        cosine = 0
        with ClusterFile() as file:
            for batch in batches:
                clusters = batch.column("cluster").to_numpy()
                starts = np.flatnonzero(np.diff(clusters, prepend=-1)).tolist()
                for start, end in itertools.pairwise([*starts, len(clusters)]):
                    if int(clusters[start]) != current:
                        if current is not None:
                            yield from self._close(file, current, cosine, tally)
                        current, cosine = int(clusters[start]), 0
                        file.begin()
                    piece = batch.slice(start, end - start)
                    cosine += int(piece.column("cosine").to_numpy().sum(dtype=np.int64))
                    file.add(piece)
            if current is not None:
                yield from self._close(file, current, cosine, tally)

    def _close(self, file: ClusterFile, cluster: int, cosine: int, tally: Tally) -> Iterator[pa.RecordBatch]:
        records = file.records()
        found = np.full(len(records), -1, np.int64)
        if self.config.threshold is not None:
            found = survivors(
                lambda start, end: np.ascontiguousarray(records["vector"][start:end]),
                len(records),
                self.config.threshold,
            )
        rank = np.cumsum(found < 0) - 1
        kept = int(rank[-1]) + 1
        tally.add(cluster, len(records), kept, cosine)
        for start in range(0, len(records), BLOCK_ROWS):
            piece = slice(start, start + BLOCK_ROWS)
            yield _hit_rows(records[piece], cluster, kept, rank[piece], _survivor_ids(records, found[piece]))


def _survivor_ids(records: npt.NDArray[Any], found: I64) -> pa.Array:
    """The id of each row's survivor, null where `found` is negative: the row is kept."""
    lost = found >= 0
    bits = pa.py_buffer(np.packbits(lost, bitorder="little"))
    return _ids(records["id"][np.where(lost, found, 0)], bits)


def _ids(ids: npt.NDArray[Any], valid: pa.Buffer | None = None) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(ID, len(ids), [valid, pa.py_buffer(ids.tobytes())])


def _hit_rows(records: npt.NDArray[Any], cluster: int, kept: int, rank: I64, survivor: pa.Array) -> pa.RecordBatch:
    """SEMANTIC_HIT of rows of one cluster."""
    columns = [
        pa.array(np.ascontiguousarray(records["row"])),
        _ids(records["id"]),
        pa.repeat(pa.scalar(cluster, pa.int64()), len(records)),
        pa.repeat(pa.scalar(kept, pa.int32()), len(records)),
        pa.array(rank.astype(np.int32), mask=survivor.is_valid().to_numpy(zero_copy_only=False)),
        survivor,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SEMANTIC_HIT)


def compare_clusters(context: Context, rows: Rows, centroids: Dataset, config: SemanticDedup) -> Dataset:
    """Write DIR/semantic_hits: each live row's cluster and its size, and the row's rank in it or its survivor."""
    tasks = context.buckets(rows.num_rows * (72 + (384 if config.embedder == "minilm" else config.dim)))
    num_buckets = tasks.count()
    read = ["skill_bucket", "ctx_bucket", *EMBEDDING.names, *rows.ref.rest_of_id]
    columns = [*read, *config.survivor.reads, "verdict"]
    identity = {"version": SEMANTIC_VERSION, "threshold": config.threshold, "survivor": config.survivor.fingerprinted()}
    inputs = (centroids, *rows.tables(columns))
    grows = Growth(tasks=tasks)
    semantic = {"removal": identity}
    job = context.job("semantic_hits", "SEMANTIC_HIT", SEMANTIC_HIT, semantic, inputs, rows, version=2, grows=grows)
    emit = EmitClusterMembers(rows.ref, centroids.ref, config, num_buckets)
    exchange = Exchange(
        tuple(rows.splits), emit, CLUSTER_MEMBER, ("cluster", "order", "id", "digest", "row"), num_buckets
    )
    return context.shuffle(job, exchange, CompareClusters(config))
