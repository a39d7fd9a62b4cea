"""The centroids of semantic dedup: k-means (etl/dedup/kmeans.py) on a sample of each cell, in DIR/semantic_centroids.

Centroids come from sums of whole numbers over a sample that the hash of the id decides, so they are the same for any
splits and any order of rows. The sample's embeddings cross the shuffle, `sample_rows` a cell; a worker holds one cell's
sample and its products with the centroids, 9 bytes a component and 32 MB: 150 MB by default.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from etl.dedup.kmeans import kmeans
from etl.dedup.semantic import EMBEDDING, SemanticDedup
from etl.dedup.vectors import from_binary, to_binary
from etl.engine import Exchange
from etl.hashing import hash_array
from etl.laws import AtMost, Growth, With
from etl.mixture.sampling import purpose_seed
from etl.rows import Rows, RowsRef
from etl.stages.context import Context
from etl.stages.dedup.semantic_cells import SEMANTIC_VERSION, STEP, Cells, cell_of, name_of
from etl.stages.keyed import live_rows
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset

_OVERSAMPLING: Final = 1.1
"""On average the hash selects this multiple of the sample, so that a cell hardly ever has too few rows."""

CENTROID = pa.schema(
    [
        pa.field("skill_bucket", pa.string(), nullable=False),
        pa.field("ctx_bucket", pa.string(), nullable=False),
        pa.field("place", pa.int32(), nullable=False),
        pa.field("centroid", pa.binary(), nullable=False),
    ]
)
SAMPLED = pa.schema([("bucket", pa.int32()), ("order", pa.int64()), ("id", pa.binary()), ("vector", pa.binary())])


@dataclass(frozen=True)
class EmitSample:
    """Live rows whose hash falls into the sample of their cell; a cell's bucket is its place among the cells."""

    rows: RowsRef
    cells: Cells
    config: SemanticDedup

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        numbers = np.array(list(self.cells.rows), np.int64)
        share = self.config.sample_rows * _OVERSAMPLING / np.array(list(self.cells.rows.values()), np.float64)
        seed = purpose_seed(STEP, self.config.seed)
        for batch, _ in live_rows(self.rows, split, ["id", "skill_bucket", "ctx_bucket", *EMBEDDING.names]):
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


def find_centroids(context: Context, rows: Rows, cells: Cells, config: SemanticDedup) -> Dataset:
    """Write DIR/semantic_centroids; one row group a cell, in the order of the places of its centroids."""
    chosen = {"rows_per_cluster", "max_clusters", "sample_rows", "iterations", "seed"}
    counted = {"-".join(name_of(cell)): count for cell, count in cells.rows.items()}
    identity = {"version": SEMANTIC_VERSION, **config.model_dump(include=chosen), "cells": counted}
    inputs = rows.tables(["skill_bucket", "ctx_bucket", *EMBEDDING.names, "verdict"])
    most = AtMost(len(cells.rows) * config.max_clusters)
    sampled = AtMost(round(len(cells.rows) * config.sample_rows * _OVERSAMPLING))
    grows = Growth(most, crosses=sampled, tasks=With.NOTHING)
    job = context.job("semantic_centroids", "CENTROID", CENTROID, {"kmeans": identity}, inputs, grows=grows)
    exchange = Exchange(
        tuple(rows.splits), EmitSample(rows.ref, cells, config), SAMPLED, ("order", "id"), max(1, len(cells.rows))
    )
    return context.shuffle(job, exchange, FindCentroids(cells, config))
