"""Semantic duplicates: clusters of rows that mean the same within each cell, and the rows of a cluster that go.

A cell is a skill bucket and a context bucket, so the stage stands after `tokenize`. Datasets, each committed and
resumable:

    semantic_cells      SEMANTIC_CELL  live rows by cell                                     map
    semantic_terms      TERM           rows that have a word or pair, by hash (lexical)      shuffle by slot
    embeddings          EMBEDDING      aligned: one int8 a dimension (etl/dedup/vectors.py)  map, slow with a model
    semantic_centroids  CENTROID       k-means on a sample of a cell (etl/dedup/kmeans.py)   shuffle by cell
    semantic_hits       SEMANTIC_HIT   each row's cluster, size, rank and survivor           shuffle by cluster
    semantic            SEMANTIC       aligned, with verdicts                                shuffle by split

Each is written by the file semantic_{cells,embed,centroids,compare}.py that says what crosses its shuffle and what a
worker holds; the last one is written here, with 32 bytes a row. Everything after the embedding is the same on every
engine, for any splits and any order of rows. docs/semantic.md has the speeds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from etl.accounting import account
from etl.arrays import I64
from etl.dedup.semantic import SemanticDedup
from etl.engine import Exchange
from etl.errors import SchemaError
from etl.rows import Rows, RowsRef
from etl.schema import ID, aligned
from etl.stages.context import Context
from etl.stages.dedup.marks import EmitHits
from etl.stages.dedup.semantic_cells import STEP, Cells, cluster_name, count_cells, name_of
from etl.stages.dedup.semantic_centroids import find_centroids
from etl.stages.dedup.semantic_compare import COSINE_ONE, SEMANTIC_HIT, compare_clusters
from etl.stages.dedup.semantic_embed import embed_rows
from etl.stages.keyed import RowFeed, routed, row_keys, uuid_texts
from etl.step import drop
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset

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
    """Write DIR/semantic: every live row's cluster, and a verdict for what is too similar to a better row."""
    config = context.recipe.semantic
    cells = count_cells(context, rows)
    embedded = embed_rows(context, rows, cells, config)
    centroids = find_centroids(context, embedded, cells, config)
    hits = compare_clusters(context, embedded, centroids, config)
    return _mark(context, rows, hits, cells)


@dataclass(frozen=True)
class MarkClusters:
    """One split's rows with what was found of their clusters; holds a row group and its hits."""

    rows: RowsRef

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


def cell_findings(hits: Dataset, cells: Cells) -> dict[str, Any]:
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
            "mean_cosine_to_centroid": round(counts.get("cosine_millionths", 0) / COSINE_ONE / max(1, rows), 6),
            "largest_cluster": {"semantic_cluster_id": name, "rows": clusters.get(name, 0)},
        }
    return report


def _mark(context: Context, rows: Rows, hits: Dataset, cells: Cells) -> Rows:
    schema = aligned(SEMANTIC)
    job = context.job(STEP, "SEMANTIC", schema, {"step": STEP}, (hits, *rows.tables(["verdict"])), rows)
    job = job.with_findings({"semantic": cell_findings(hits, cells)})
    exchange = Exchange(
        tuple(range(hits.ref.num_splits)),
        EmitHits(hits.ref, SEMANTIC_HIT),
        routed(SEMANTIC_HIT),
        ("row",),
        len(rows.splits),
    )
    dataset = context.shuffle(job, exchange, MarkClusters(rows.ref))
    return rows.with_side(dataset, schema)
