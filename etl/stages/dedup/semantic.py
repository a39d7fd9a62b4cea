"""Semantic duplicates: clusters of rows that mean the same within each cell, and the rows of a cluster that go.

A cell is a skill bucket and a context bucket, so the stage stands after `tokenize`. Datasets, each committed and
resumable:

    semantic_cells      SEMANTIC_CELL  living rows by cell                                   map
    semantic_terms      TERM           rows that have a word or pair, by hash (lexical)      shuffle by slot
    embeddings          EMBEDDING      aligned: one int8 a dimension (etl/dedup/vectors.py)  map, slow with a model
    semantic_centroids  CENTROID       k-means on a sample of a cell (etl/dedup/kmeans.py)   shuffle by cell
    semantic_hits       SEMANTIC_HIT   each row's cluster, size, rank and survivor           shuffle by cluster
    semantic            SEMANTIC       aligned, with verdicts                                shuffle by split

Centroids come from sums of whole numbers over a sample that the hash of the id decides, and similarities from exact
products of int8, so everything after the embedding is the same on every engine, for any splits and any order of rows.

What crosses: 4 MB a split of counts (lexical), an embedding once for the sample (`sample_rows` a cell) and once for its
cluster, 32 bytes a row back. A worker holds a batch, all centroids (20 · max_clusters · dim bytes), and one of: a
cell's sample and its products with the centroids (9 bytes a component and 32 MB: 150 MB by default), or two blocks of a
cluster with their products (130 MB) and 16 bytes a row of the cluster; a cluster's vectors lie in a temporary file of
the worker. docs/semantic.md has the speeds.
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
import pyarrow.compute as pc

from etl.accounting import account
from etl.arrays import I64
from etl.dedup.kmeans import kmeans
from etl.dedup.lexical import NUM_SLOTS, count_terms, embed, rarity
from etl.dedup.semantic import EMBEDDING, SemanticDedup, embedded_text, spread, survivors
from etl.dedup.vectors import BLOCK_ROWS, from_binary, nearest, to_binary
from etl.engine import Exchange
from etl.errors import SchemaError
from etl.hashing import hash_array
from etl.mixture.sampling import purpose_seed
from etl.pipeline import Pipeline
from etl.rows import Rows
from etl.schema import CTX_BUCKETS, ID, SKILL_BUCKETS, aligned
from etl.stages.context import Context
from etl.stages.dedup.marks import (
    Counted,
    EmitHits,
    RowFeed,
    buckets_of,
    living,
    recut,
    routed,
    row_keys,
    slices,
    uuid_texts,
)
from etl.stages.passes import RunSteps
from etl.step import drop
from etl.storage.dataset import CHECKPOINTS, Chunk, Dataset

SEMANTIC_VERSION: Final = 1
STEP: Final = "semantic"
_CTX: Final = tuple(CTX_BUCKETS)
_CELL_BITS: Final = 32
"""A cluster's number is cell << 32 | place of its centroid; a cell's is skill · 4 + ctx."""
_MORE_SAMPLED: Final = 1.1
"""The hash lets so much more through than the sample takes, so that a cell falls short of it once in a blue moon."""
_COSINE_ONE: Final = 1_000_000
_ASSIGN_ROWS: Final = 4096

SEMANTIC_CELL = pa.schema(
    [
        pa.field("skill_bucket", pa.string(), nullable=False),
        pa.field("ctx_bucket", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
    ]
)
TERM = pa.schema([pa.field("slot", pa.int32(), nullable=False), pa.field("rows", pa.int64(), nullable=False)])
CENTROID = pa.schema(
    [
        pa.field("skill_bucket", pa.string(), nullable=False),
        pa.field("ctx_bucket", pa.string(), nullable=False),
        pa.field("place", pa.int32(), nullable=False),
        pa.field("centroid", pa.binary(), nullable=False),
    ]
)
SEMANTIC_HIT = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("cluster", pa.int64(), nullable=False),
        pa.field("size", pa.int32(), nullable=False),
        pa.field("rank", pa.int32()),
        pa.field("survivor", ID),
    ]
)
"""`size` counts the rows of the cluster that stay, `rank` is a row's place among them; null for one that goes."""
SEMANTIC = pa.schema(
    [
        ("semantic_cluster_id", pa.string()),
        ("semantic_cluster_size", pa.int32()),
        ("semantic_cluster_rank", pa.int32()),
    ]
)


def output_schema(config: SemanticDedup, schema: pa.Schema) -> pa.Schema:
    """The schema after the stage.

    Raises:
        SchemaError: a column that the stage reads is absent, or the survivor's score is no number.
    """
    missing = [name for name in ("skill_bucket", "ctx_bucket") if name not in schema.names]
    if missing:
        raise SchemaError(f"the stage 'semantic' works within {missing}, not there yet; list 'tokenize' before it")
    config.survivor.check(schema)
    return pa.schema([*schema, *SEMANTIC])


def semantic(context: Context, rows: Rows) -> Rows:
    """Write DIR/semantic: every living row's cluster, and a verdict for what is too similar to a better row."""
    config = context.recipe.semantic
    cells = _count_cells(context, rows)
    embedded = _embed(context, rows, cells, config)
    centroids = _find_centroids(context, embedded, cells, config)
    hits = _compare(context, embedded, centroids, config)
    return _mark(context, rows, hits, cells)


# --- cells ---


@dataclass(frozen=True)
class Cells:
    """Living rows of every cell that has some, by its number."""

    rows: dict[int, int]

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def cell_of(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """The number of each row's cell: int64 [rows]."""
    skill = pc.index_in(batch.column("skill_bucket"), value_set=pa.array(SKILL_BUCKETS)).to_numpy()
    ctx = pc.index_in(batch.column("ctx_bucket"), value_set=pa.array(_CTX)).to_numpy()
    return skill.astype(np.int64) * len(_CTX) + ctx


def name_of(cell: int) -> tuple[str, str]:
    return SKILL_BUCKETS[cell // len(_CTX)], _CTX[cell % len(_CTX)]


@dataclass(frozen=True)
class CountRows:
    """One split's living rows in each cell."""

    rows: Rows

    def __call__(self, split: int) -> Iterator[Chunk]:
        for batch, _ in living(self.rows, split, ["skill_bucket", "ctx_bucket"]):
            counts = pa.table(batch.select(["skill_bucket", "ctx_bucket"])).group_by(SEMANTIC_CELL.names[:2])
            found = counts.aggregate([([], "count_all")]).rename_columns(SEMANTIC_CELL.names)
            yield from (Chunk(out, batch.num_rows) for out in found.cast(SEMANTIC_CELL).combine_chunks().to_batches())


def _count_cells(context: Context, rows: Rows) -> Cells:
    inputs = rows.tables(["skill_bucket", "ctx_bucket", "verdict"])
    job = context.job("semantic_cells", "SEMANTIC_CELL", SEMANTIC_CELL, {}, inputs, rows)
    found: dict[int, int] = {}
    for batch in context.map(job, rows.splits, CountRows(rows)).read():
        for cell, count in zip(cell_of(batch).tolist(), batch.column("rows").to_pylist(), strict=True):
            found[cell] = found.get(cell, 0) + count
    return Cells(dict(sorted(found.items())))


# --- embeddings ---

COUNTED_TERMS = pa.schema([("bucket", pa.int32()), ("counts", pa.binary())])
"""Rows that have a word or pair in each slot of a bucket, int32, in one binary."""
_TERM_BUCKETS: Final = 8
_BUCKET_SLOTS: Final = NUM_SLOTS // _TERM_BUCKETS


@dataclass(frozen=True)
class EmitTerms:
    """How many of a split's rows have a word or pair in each slot: 4 MB a split."""

    rows: Rows
    config: SemanticDedup

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        counts = np.zeros(NUM_SLOTS, np.int64)
        for batch, _ in living(self.rows, split, ["messages"]):
            count_terms(embedded_text(batch, self.config.text), counts)
        pieces = [piece.tobytes() for piece in np.split(counts.astype(np.int32), _TERM_BUCKETS)]
        columns = [pa.array(np.arange(_TERM_BUCKETS, dtype=np.int32)), pa.array(pieces, pa.binary())]
        yield pa.RecordBatch.from_arrays(columns, schema=COUNTED_TERMS)


def add_terms(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """The sum of each slot's counts, slots without rows left out."""
    counts = np.zeros(_BUCKET_SLOTS, np.int64)
    num_rows = 0
    for batch in batches:
        for piece in batch.column("counts"):
            counts += np.frombuffer(piece.as_buffer(), np.int32)
        num_rows += batch.num_rows
    slots = np.flatnonzero(counts)
    numbers = (slots + bucket * _BUCKET_SLOTS).astype(np.int32)
    yield Chunk(pa.RecordBatch.from_arrays([pa.array(numbers), pa.array(counts[slots])], schema=TERM), num_rows)


@dataclass(frozen=True)
class EmbedLexical:
    """One split's lexical embeddings."""

    rows: Rows
    terms: Dataset
    num_rows: int
    """Living rows of all splits."""
    config: SemanticDedup

    def __call__(self, split: int) -> Iterator[Chunk]:
        counts = np.zeros(NUM_SLOTS, np.int64)
        for batch in self.terms.read():
            counts[batch.column("slot").to_numpy()] = batch.column("rows").to_numpy()
        rare = rarity(counts, self.num_rows)
        schema = aligned(EMBEDDING)
        for batch in self.rows.read(split, ["id", "messages", "verdict"]):
            alive = batch.column("verdict").is_null()
            vectors = embed(
                embedded_text(batch, self.config.text).filter(alive), rare, self.config.dim, self.config.seed
            )
            columns = [batch.column("id"), spread(vectors, alive), batch.column("verdict")]
            yield Chunk(pa.RecordBatch.from_arrays(columns, schema=schema), batch.num_rows)


def _embed(context: Context, rows: Rows, cells: Cells, config: SemanticDedup) -> Rows:
    """The rows with their embeddings beside them; DIR/embeddings."""
    schema = aligned(EMBEDDING)
    inputs = rows.tables(["messages", "verdict"])
    if config.embedder == "lexical":
        emit = EmitTerms(rows, config)
        exchange = Exchange(tuple(rows.splits), emit, COUNTED_TERMS, ("bucket",), _TERM_BUCKETS)
        identity = config.lexical_identity()
        job = context.job("semantic_terms", "TERM", TERM, {"lexical": identity}, inputs)
        terms = context.shuffle(job, exchange, add_terms)
        job = context.job("embeddings", "EMBEDDING", schema, {"lexical": identity}, (terms, *inputs), rows)
        work: Any = EmbedLexical(rows, terms, cells.total, config)
    else:
        pipeline = Pipeline(steps=(config.step(),))
        job = context.job("embeddings", "EMBEDDING", schema, {"steps": pipeline.identity()}, inputs, rows)
        work = RunSteps(rows, pipeline, job.folder / CHECKPOINTS / job.plan_fingerprint, context.recipe.storage)
    return rows.with_side(context.map(job, rows.splits, work), schema)


# --- centroids ---

SAMPLED = pa.schema([("bucket", pa.int32()), ("order", pa.int64()), ("id", pa.binary()), ("vector", pa.binary())])


@dataclass(frozen=True)
class EmitSample:
    """Rows whose hash falls into the sample of their cell; a cell's bucket is its place among the cells."""

    rows: Rows
    cells: Cells
    config: SemanticDedup

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        numbers = np.array(list(self.cells.rows), np.int64)
        share = self.config.sample_rows * _MORE_SAMPLED / np.array(list(self.cells.rows.values()), np.float64)
        seed = purpose_seed(STEP, self.config.seed)
        for batch, _ in living(self.rows, split, ["id", "skill_bucket", "ctx_bucket", *EMBEDDING.names]):
            bucket = np.searchsorted(numbers, cell_of(batch))
            order = (hash_array(batch.column("id"), seed) >> np.uint64(11)).astype(np.int64)
            chosen = pa.array(order < share[bucket] * 2.0**53)
            columns = [
                pa.array(bucket.astype(np.int32)), pa.array(order), batch.column("id").cast(pa.binary()),
                batch.column("embedding_int8"),
            ]  # fmt: skip
            yield pa.RecordBatch.from_arrays(columns, schema=SAMPLED).filter(chosen)


@dataclass(frozen=True)
class FindCentroids:
    """k-means on the sample of one cell: its first rows by hash."""

    cells: Cells
    config: SemanticDedup

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        sample = []
        num_rows = 0
        for batch in batches:
            sample.append(from_binary(batch.column("vector"))[: max(0, self.config.sample_rows - num_rows)])
            num_rows += batch.num_rows
        if num_rows == 0:
            yield Chunk(None, 0)
            return
        cell, rows = list(self.cells.rows.items())[bucket]
        k = self.config.num_clusters(rows)
        centroids = kmeans(np.concatenate(sample), k, self.config.iterations, self.config.seed)
        skill, ctx = (pa.repeat(pa.scalar(name), len(centroids)) for name in name_of(cell))
        place = pa.array(np.arange(len(centroids), dtype=np.int32))
        out = pa.RecordBatch.from_arrays([skill, ctx, place, to_binary(centroids)], schema=CENTROID)
        yield Chunk(out, num_rows)


def _find_centroids(context: Context, rows: Rows, cells: Cells, config: SemanticDedup) -> Dataset:
    chosen = {"rows_per_cluster", "max_clusters", "sample_rows", "iterations", "seed"}
    counted = {"-".join(name_of(cell)): count for cell, count in cells.rows.items()}
    identity = {"version": SEMANTIC_VERSION, **config.model_dump(include=chosen), "cells": counted}
    inputs = rows.tables(["skill_bucket", "ctx_bucket", *EMBEDDING.names, "verdict"])
    job = context.job("semantic_centroids", "CENTROID", CENTROID, {"kmeans": identity}, inputs)
    exchange = Exchange(
        tuple(rows.splits), EmitSample(rows, cells, config), SAMPLED, ("order", "id"), max(1, len(cells.rows))
    )
    return context.shuffle(job, exchange, FindCentroids(cells, config))


# --- clusters ---

MEMBER = pa.schema(
    [
        ("bucket", pa.int32()), ("cluster", pa.int64()), ("order", pa.int64()), ("id", pa.binary()),
        ("row", pa.int64()), ("cosine", pa.int32()), ("vector", pa.binary()),
    ]
)  # fmt: skip
"""`order` is the survivor's preference; `cosine` that to the centroid in units of 1e-6."""


@dataclass(frozen=True)
class EmitMembers:
    """Each living row of a split with the nearest centroid of its cell."""

    rows: Rows
    centroids: Dataset
    config: SemanticDedup
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        # One row group a cell, in the order of its places.
        centroids = {int(cell_of(batch)[0]): from_binary(batch.column("centroid")) for batch in self.centroids.read()}
        columns = ["id", "skill_bucket", "ctx_bucket", *EMBEDDING.names, *self.config.survivor.reads]
        for batch, keys in living(self.rows, split, columns):
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
        cluster = pa.array((cells << _CELL_BITS) + place)
        columns = [
            buckets_of(hash_array(cluster), self.num_buckets), cluster,
            pa.array(self.config.survivor.preference(batch)), batch.column("id").cast(pa.binary()),
            pa.array(keys), pa.array(np.rint(cosine * _COSINE_ONE).astype(np.int32)), batch.column("embedding_int8"),
        ]  # fmt: skip
        return pa.RecordBatch.from_arrays(columns, schema=MEMBER)


class ClusterFile:
    """Context manager with the rows of one cluster after another, in a temporary file."""

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
        """The next row is the first one of another cluster."""
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
    """What is reported of the clusters of one bucket."""

    cells: dict[str, dict[str, dict[str, int]]]
    largest: dict[str, dict[str, dict[str, int]]]
    """Skill → ctx → the largest cluster of this bucket → its rows."""

    def add(self, cluster: int, rows: int, kept: int, cosine: int) -> None:
        skill, ctx = name_of(cluster >> _CELL_BITS)
        counts = self.cells.setdefault(skill, {}).setdefault(ctx, dict.fromkeys(("clusters", "rows", "removed"), 0))
        for name, value in (("clusters", 1), ("rows", rows), ("removed", rows - kept), ("cosine_millionths", cosine)):
            counts[name] = counts.get(name, 0) + value
        before = self.largest.setdefault(skill, {}).get(ctx, {})
        if kept > max(before.values(), default=-1):
            self.largest[skill][ctx] = {cluster_name(cluster): kept}


@dataclass(frozen=True)
class RankClusters:
    """The clusters of one bucket: who stays, and every row's place."""

    config: SemanticDedup

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        counted = Counted(slices(batches, BLOCK_ROWS))
        tally = Tally({}, {})
        yield from recut(self._hits(counted, tally))
        yield Chunk(None, counted.rows, distributions={"cells": tally.cells, "largest": tally.largest})

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
            gone = found[start : start + BLOCK_ROWS]
            lost = gone >= 0
            mine = np.arange(start, start + len(gone))
            ids = np.ascontiguousarray(records["id"][np.where(lost, gone, mine)])
            columns = [
                pa.array(np.ascontiguousarray(records["row"][start : start + len(gone)])),
                pa.repeat(pa.scalar(cluster, pa.int64()), len(gone)),
                pa.repeat(pa.scalar(kept, pa.int32()), len(gone)),
                pa.array(rank[mine].astype(np.int32), mask=lost),
                pa.FixedSizeBinaryArray.from_buffers(
                    ID, len(gone), [pa.py_buffer(np.packbits(lost, bitorder="little")), pa.py_buffer(ids.tobytes())]
                ),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=SEMANTIC_HIT)


def cluster_name(cluster: int) -> str:
    """B2-C1-00017: the skill and context bucket, and the place of the centroid."""
    return "-".join((*name_of(cluster >> _CELL_BITS), f"{cluster & ((1 << _CELL_BITS) - 1):05d}"))


def _compare(context: Context, rows: Rows, centroids: Dataset, config: SemanticDedup) -> Dataset:
    num_buckets = context.num_buckets(rows.num_rows * (64 + (384 if config.embedder == "minilm" else config.dim)))
    columns = ["skill_bucket", "ctx_bucket", *EMBEDDING.names, *config.survivor.reads, "verdict"]
    identity = {"version": SEMANTIC_VERSION, "threshold": config.threshold, "survivor": config.survivor.fingerprinted()}
    inputs = (centroids, *rows.tables(columns))
    job = context.job("semantic_hits", "SEMANTIC_HIT", SEMANTIC_HIT, {"removal": identity}, inputs, rows)
    emit = EmitMembers(rows, centroids, config, num_buckets)
    exchange = Exchange(tuple(rows.splits), emit, MEMBER, ("cluster", "order", "id", "row"), num_buckets)
    return context.shuffle(job, exchange, RankClusters(config))


# --- back to the rows ---


@dataclass(frozen=True)
class MarkClusters:
    """One split's rows with what their clusters say, sorted by row; holds a row group and its hits."""

    rows: Rows

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        feed = RowFeed(batches, routed(SEMANTIC_HIT))
        start = 0
        for batch in self.rows.read(split, ["id", "source_dataset", "verdict"]):
            mine = row_keys(split, start, batch.num_rows)
            start += batch.num_rows
            yield self._mark(batch, mine, feed.until(int(mine[-1])))

    def _mark(self, batch: pa.RecordBatch, mine: I64, hits: pa.Table) -> Chunk:
        keys = hits["row"].to_numpy()
        absent = ~np.isin(mine, keys, assume_unique=True)
        place = pa.array(np.searchsorted(keys, mine), mask=absent)
        cluster, size, rank, survivor = (
            hits[name].combine_chunks().take(place) for name in ("cluster", "size", "rank", "survivor")
        )
        done = drop(batch, STEP, survivor.is_valid(), "semantic_duplicate", uuid_texts(survivor.cast(ID)))
        verdict = done.column("verdict")
        accounting = account([STEP], batch.column("source_dataset"), batch.column("verdict"), verdict)
        columns = [batch.column("id"), _cluster_names(cluster), size, rank, verdict]
        schema = aligned(SEMANTIC)
        return Chunk(pa.RecordBatch.from_arrays(columns, names=schema.names).cast(schema), batch.num_rows, accounting)


def _cluster_names(clusters: pa.Array) -> pa.Array:
    """The name of each cluster, of which a row group has few that differ: string [rows]."""
    coded = clusters.dictionary_encode()
    names = pa.array([cluster_name(cluster) for cluster in coded.dictionary.to_pylist()], pa.string())
    return names.take(coded.indices)


def findings(hits: Dataset, cells: Cells) -> dict[str, Any]:
    """By cell: rows, clusters, removed, the mean cosine to the centroid, and the largest cluster after removal."""
    counted, largest = (hits.manifest.distributions.get(name, {}) for name in ("cells", "largest"))
    report = {}
    for cell, rows in cells.rows.items():
        skill, ctx = name_of(cell)
        counts = counted.get(skill, {}).get(ctx, {})
        clusters = largest.get(skill, {}).get(ctx, {})
        name = min(clusters, key=lambda key: (-clusters[key], key), default=None)
        report["-".join(name_of(cell))] = {
            "rows": rows,
            "clusters": counts.get("clusters", 0),
            "removed": counts.get("removed", 0),
            "mean_cosine_to_centroid": round(counts.get("cosine_millionths", 0) / _COSINE_ONE / max(1, rows), 6),
            "largest_cluster": {"semantic_cluster_id": name, "rows": clusters.get(name, 0)},
        }
    return report


def _mark(context: Context, rows: Rows, hits: Dataset, cells: Cells) -> Rows:
    schema = aligned(SEMANTIC)
    job = context.job(STEP, "SEMANTIC", schema, {"step": STEP}, (hits, *rows.tables(["verdict"])), rows)
    job = job.with_findings({"semantic": findings(hits, cells)})
    exchange = Exchange(
        tuple(range(hits.num_splits)),
        EmitHits(hits, SEMANTIC_HIT),
        routed(SEMANTIC_HIT),
        ("row",),
        len(rows.splits),
    )
    dataset = context.shuffle(job, exchange, MarkClusters(rows))
    return rows.with_side(dataset, schema)
