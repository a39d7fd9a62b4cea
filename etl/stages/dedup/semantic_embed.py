"""The embeddings of semantic dedup: DIR/embeddings, aligned, one int8 a dimension (etl/dedup/vectors.py).

With a sentence encoder it is a pipeline of one slow step. Lexical embeddings weigh words by how rare they are, so the
rows that have a word or pair are counted first, by hash, in DIR/semantic_terms: 4 MB cross the shuffle for each split,
and a worker holds 8 MB of counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from etl.dedup.lexical import NUM_SLOTS, count_terms, embed, rarity
from etl.dedup.semantic import EMBEDDING, SemanticDedup, embedded_text, spread
from etl.engine import Exchange
from etl.laws import AtMost, Growth, With
from etl.pipeline import Pipeline
from etl.rows import Rows, RowsRef
from etl.schema import aligned
from etl.stages.context import Context
from etl.stages.dedup.semantic_cells import Cells
from etl.stages.keyed import live_rows
from etl.stages.passes import run_pipeline
from etl.step import live
from etl.storage.build import Chunk
from etl.storage.dataset import DatasetRef

TERM = pa.schema([pa.field("slot", pa.int32(), nullable=False), pa.field("rows", pa.int64(), nullable=False)])
COUNTED_TERMS = pa.schema([("bucket", pa.int32()), ("counts", pa.binary())])
"""Rows that have a word or pair in each slot of a bucket, int32, in one binary."""
_TERM_BUCKETS: Final = 8
_BUCKET_SLOTS: Final = NUM_SLOTS // _TERM_BUCKETS


@dataclass(frozen=True)
class EmitTerms:
    """How many of a split's rows have a word or pair in each slot: 4 MB a split."""

    rows: RowsRef
    config: SemanticDedup

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        counts = np.zeros(NUM_SLOTS, np.int64)
        for batch, _ in live_rows(self.rows, split, ["messages"]):
            count_terms(embedded_text(batch, self.config.text), counts)
        pieces = [piece.tobytes() for piece in np.split(counts.astype(np.int32), _TERM_BUCKETS)]
        columns = [pa.array(np.arange(_TERM_BUCKETS, dtype=np.int32)), pa.array(pieces, pa.binary())]
        yield pa.RecordBatch.from_arrays(columns, schema=COUNTED_TERMS)


def add_terms(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """The sum of the counts of each slot; slots without rows are left out."""
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

    rows: RowsRef
    terms: DatasetRef
    num_rows: int
    """Live rows of all splits."""
    config: SemanticDedup

    def __call__(self, split: int) -> Iterator[Chunk]:
        counts = np.zeros(NUM_SLOTS, np.int64)
        for batch in self.terms.open().read():
            counts[batch.column("slot").to_numpy()] = batch.column("rows").to_numpy()
        rare = rarity(counts, self.num_rows)
        schema = aligned(EMBEDDING)
        for batch in self.rows.read(split, ["id", "messages", "verdict"]):
            is_live = live(batch)
            vectors = embed(
                embedded_text(batch, self.config.text).filter(is_live), rare, self.config.dim, self.config.seed
            )
            columns = [batch.column("id"), spread(vectors, is_live), batch.column("verdict")]
            yield Chunk(pa.RecordBatch.from_arrays(columns, schema=schema), batch.num_rows)


def embed_rows(context: Context, rows: Rows, cells: Cells, config: SemanticDedup) -> Rows:
    """The rows with their embeddings added: DIR/embeddings, and DIR/semantic_terms for lexical ones."""
    if config.embedder == "lexical":
        return _embed_lexical(context, rows, cells, config)
    return run_pipeline(context, rows, "embeddings", "EMBEDDING", Pipeline(steps=(config.step(),)))


def _embed_lexical(context: Context, rows: Rows, cells: Cells, config: SemanticDedup) -> Rows:
    schema = aligned(EMBEDDING)
    inputs = rows.tables(["messages", "verdict"])
    identity = {"lexical": config.lexical_identity()}
    exchange = Exchange(tuple(rows.splits), EmitTerms(rows.ref, config), COUNTED_TERMS, ("bucket",), _TERM_BUCKETS)
    grows = Growth(AtMost(NUM_SLOTS), crosses=With.SPLITS, tasks=With.NOTHING)
    job = context.job("semantic_terms", "TERM", TERM, identity, inputs, grows=grows)
    terms = context.shuffle(job, exchange, add_terms)
    job = context.job("embeddings", "EMBEDDING", schema, identity, (terms, *inputs), rows)
    work = EmbedLexical(rows.ref, terms.ref, cells.total, config)
    return rows.with_side(context.map(job, rows.splits, work), schema)
