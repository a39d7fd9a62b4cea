"""Semantic duplicates: clusters of rows that mean the same within each cell, and which of their rows are dropped.

A cell is a skill bucket and a context bucket, so the stage comes after `tokenize`. Datasets, each committed and
resumable:

    semantic_cells      SEMANTIC_CELL  live rows by cell                                     map
    semantic_terms      TERM           rows that have a word or pair, by hash (lexical)      shuffle by slot
    embeddings          EMBEDDING      aligned: one int8 a dimension (etl/dedup/vectors.py)  map, slow with a model
    semantic_centroids  CENTROID       k-means on a sample of a cell (etl/dedup/kmeans.py)   shuffle by cell
    semantic_hits       SEMANTIC_HIT   each row's cluster, size, rank and survivor           shuffle by cluster
    semantic            SEMANTIC       aligned, with verdicts                                shuffle by split

The files semantic_{cells,embed,centroids,compare}.py write them, and describe what crosses each shuffle and what a
worker holds. The last one is written here, with 32 bytes a row. Everything after the embedding is the same on every
engine, for any splits and any order of rows. docs/concepts/semantic.md has the speeds.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyarrow as pa

from etl.dedup.semantic import SemanticDedup
from etl.errors import SchemaError
from etl.laws import FamilyCopies
from etl.rows import Rows
from etl.stages.context import Context
from etl.stages.dedup.marks import Mark, mark_hits, one_a_row, sent
from etl.stages.dedup.semantic_cells import STEP, Cells, cluster_name, count_cells, name_of
from etl.stages.dedup.semantic_centroids import find_centroids
from etl.stages.dedup.semantic_compare import COSINE_ONE, SEMANTIC_HIT, compare_clusters
from etl.stages.dedup.semantic_embed import embed_rows
from etl.stages.keyed import uuid_texts
from etl.stages.stage import Stage
from etl.step import append, drop, prefixed
from etl.storage.dataset import Dataset

SEMANTIC = pa.schema(
    [
        ("semantic_cluster_id", pa.string()),
        ("semantic_cluster_size", pa.int32()),
        ("semantic_cluster_rank", pa.int32()),
    ]
)


class Semantic(SemanticDedup, Stage):
    """Writes DIR/semantic: a cluster for every remaining row, and a verdict for rows too similar to a better one."""

    kind: Literal["semantic"] = "semantic"
    purpose: ClassVar[str] = "Cluster rows by meaning and drop those that are too similar to a better one."
    example: ClassVar[str] = "{kind: semantic}"
    tables: ClassVar[Mapping[str, str]] = {
        "semantic_cells": "SEMANTIC_CELL", "semantic_terms": "TERM", "embeddings": "EMBEDDING",
        "semantic_centroids": "CENTROID", "semantic_hits": "SEMANTIC_HIT", "semantic": "SEMANTIC",
    }  # fmt: skip
    own_steps: ClassVar[tuple[str, ...]] = ("embed",)

    def folders(self) -> dict[str, str]:
        left_out = set() if self.embedder == "lexical" else {self.named("semantic_terms")}
        return {folder: table for folder, table in super().folders().items() if folder not in left_out}

    def folders_by_rows(self) -> dict[str, str]:
        return {}

    @property
    def added(self) -> pa.Schema:
        return prefixed(self.name, SEMANTIC)

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        missing = [name for name in ("skill_bucket", "ctx_bucket") if name not in schema.names]
        if missing:
            raise SchemaError(
                f"the stage '{self.label}' works within {missing}, not there yet; list 'tokenize' before it"
            )
        self.survivor.check(schema)
        return pa.schema([*schema, *self.added])

    def check_sources(self, known: Collection[str]) -> None:
        self.survivor.check_sources(self.label, known)

    def check_artefacts(self) -> None:
        if self.embedder == "minilm":
            self.step().artefacts()

    def run(self, context: Context, rows: Rows) -> Rows:
        cells = count_cells(context, rows)
        embedded = embed_rows(context, rows, cells, self)
        centroids = find_centroids(context, embedded, cells, self)
        hits = compare_clusters(context, embedded, centroids, self)
        findings, drops = {"semantic": cell_findings(hits, cells)}, FamilyCopies(hits.ref.stage)
        return mark_hits(context, rows, hits, SemanticMark(STEP), findings, drops)


@dataclass(frozen=True)
class SemanticMark(Mark):
    """Drops the rows of SEMANTIC_HIT that have a survivor."""

    table: ClassVar[str] = "SEMANTIC"
    hits: ClassVar[pa.Schema] = sent(SEMANTIC_HIT)

    @property
    def columns(self) -> pa.Schema:
        return SEMANTIC

    @property
    def semantic(self) -> dict[str, Any]:
        return {"step": self.step}

    def judge(self, batch: pa.RecordBatch, found: pa.Table) -> pa.RecordBatch:
        """As `Mark.judge`; a row that was not found is in no cluster."""
        cluster, size, rank, survivor = one_a_row(found, batch.num_rows)
        done = drop(batch, self.step, survivor.is_valid(), "semantic_duplicate", uuid_texts(survivor))
        return append(done, SEMANTIC, [_cluster_names(cluster), size, rank])


def _cluster_names(clusters: pa.Array) -> pa.Array:
    """The name of each row's cluster; a row group has few distinct ones: string [rows]."""
    coded = clusters.dictionary_encode()
    names = pa.array([cluster_name(cluster) for cluster in coded.dictionary.to_pylist()], pa.string())
    return names.take(coded.indices)


def cell_findings(hits: Dataset, cells: Cells) -> dict[str, Any]:
    """By cell: rows, clusters, removed, the mean cosine to the centroid, and the largest cluster after removal."""
    counted, largest = (hits.manifest.counts(name, levels=3) for name in ("cells", "largest"))
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
