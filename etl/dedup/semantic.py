"""Semantic duplicates: what the stage looks for, the text that it embeds, and which rows of a cluster are dropped.

Inside a cluster rows are taken in order, best first. A row is dropped if its cosine to a row that is kept is at least
the threshold. This is SemDeDup (Abbas et al. 2023), except that only a kept row can cause another to be dropped: so
each dropped row is within the threshold of its survivor, and there are no chains. A cluster of n rows costs n² / 2
cosines, 60 million a second on one core at 384 dimensions, and the memory of two blocks with their products (130 MB).
"""

from collections.abc import Callable
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from etl.arrays import F64, I8, I64
from etl.config import Config
from etl.dedup.lexical import LEXICAL_VERSION
from etl.dedup.survivor import Survivor
from etl.dedup.vectors import BLOCK_ROWS, dots, quantise, squared_lengths, to_binary
from etl.jit import njit
from etl.messages import full_text, instruction_text, response_text
from etl.models.embedder import MINILM, SentenceEmbedder, embedder_digest
from etl.step import BatchFn, Step, append, live

EmbeddedText = Literal["prompt", "answer", "conversation"]

EMBEDDING: Final = pa.schema([("embedding_int8", pa.binary())])
"""The direction of a row's text, one int8 a dimension; null for a row with an earlier verdict."""

SAMPLE_ROWS_PER_CLUSTER: Final = 8
"""Smallest average number of sampled rows in a cluster."""


class SemanticDedup(Config):
    """Rows of one skill and context bucket that mean the same: their clusters, and which of them are dropped."""

    located: ClassVar[frozenset[str]] = frozenset({"model"})

    embedder: Literal["minilm", "lexical"] = "minilm"
    """minilm: the sentence encoder `model`. lexical: tf-idf of words and word pairs, projected; needs no model."""
    model: str = MINILM
    """Local transformers folder of a sentence encoder (mean pooling), or `package:NAME/folder`."""
    max_tokens: int = Field(default=256, ge=2)
    """Tokens of a text that the encoder reads."""
    dim: int = Field(default=256, ge=8, le=4096, multiple_of=4)
    """Dimensions of the lexical embedding."""
    text: EmbeddedText = "prompt"
    """What is embedded; all of a row that has no such text."""
    threshold: float | None = Field(default=0.95, gt=0, le=1)
    """A row is dropped if its cosine to a better row of its cluster is at least this; null drops none."""
    survivor: Survivor = Survivor()
    """Which row of a cluster is the better one."""
    rows_per_cluster: int = Field(default=1000, ge=1)
    """Rows of a cell per cluster."""
    max_clusters: int = Field(default=2048, ge=1)
    """Largest number of clusters of a cell. Larger cells have larger clusters, and the cost grows with the square of a
    cluster's rows."""
    sample_rows: int = Field(default=32768, ge=1)
    """Largest number of rows of a cell that its centroids are computed from, chosen by a hash of the id."""
    iterations: int = Field(default=10, ge=1)
    """Largest number of rounds of k-means."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sample, the first centroids and the lexical projection."""

    def step(self) -> "EmbedStep":
        """The slow pass of the sentence encoder."""
        return EmbedStep(model=self.model, max_tokens=self.max_tokens, text=self.text)

    def lexical_identity(self) -> dict[str, Any]:
        """Everything that decides a lexical embedding, besides the rows."""
        return {"version": LEXICAL_VERSION, "text": self.text, "dim": self.dim, "seed": self.seed}

    def num_clusters(self, rows: int) -> int:
        """The number of centroids of a cell of this many rows."""
        sampled = min(rows, self.sample_rows)
        wanted = min(round(rows / self.rows_per_cluster), self.max_clusters, sampled // SAMPLE_ROWS_PER_CLUSTER)
        return max(1, wanted)


def embedded_text(batch: pa.RecordBatch, text: EmbeddedText) -> pa.StringArray:
    """The text of each row that is embedded; all of it if there is no prompt or answer: string [rows]."""
    if text == "conversation":
        return full_text(batch)
    chosen = instruction_text(batch) if text == "prompt" else response_text(batch)
    return pc.if_else(pc.equal(chosen, ""), full_text(batch), chosen)


class EmbedStep(Step):
    """Adds `embedding_int8`, the direction of a sentence embedding; null for a row with an earlier verdict."""

    kind: Literal["embed"] = "embed"
    purpose: ClassVar[str] = "Embed a text with a sentence model."
    example: ClassVar[str] = "{kind: embed}"
    reads: ClassVar[tuple[str, ...]] = ("messages",)
    adds: ClassVar[pa.Schema] = EMBEDDING
    slow: ClassVar[bool] = True
    located: ClassVar[frozenset[str]] = frozenset({"model"})

    model: str = MINILM
    """Local transformers folder of a sentence encoder (mean pooling), or `package:NAME/folder`."""
    max_tokens: int = Field(default=256, ge=2)
    """Texts are truncated to this many tokens."""
    text: EmbeddedText = "prompt"
    """What is embedded; all of a row that has no such text."""

    def artefacts(self) -> dict[str, str]:
        return {"embedder": embedder_digest(self.model)}

    def open(self) -> BatchFn:
        embedder = SentenceEmbedder.load(self.model, self.max_tokens)

        def run(batch: pa.RecordBatch) -> pa.RecordBatch:
            is_live = live(batch)
            texts = embedded_text(batch, self.text).filter(is_live).to_pylist()
            return append(batch, self.adds, [spread(quantise(embedder.embed(texts)), is_live)])

        return run


def spread(vectors: I8, is_live: pa.BooleanArray) -> pa.BinaryArray:
    """The vectors of the live rows at their places, null at the others: binary [rows]."""
    flags = is_live.to_numpy(zero_copy_only=False)
    return to_binary(vectors).take(pa.array(np.cumsum(flags) - 1, mask=~flags))


# --- removal ---


@njit
def _mark_hits(products: npt.NDArray[Any], mine: F64, others: F64, least: float, first: int, found: I64) -> None:
    """Give each row without a survivor the first of the others that is similar to it, counted from `first`."""
    for i in range(products.shape[0]):
        if found[i] >= 0:
            continue
        for j in range(products.shape[1]):
            product = np.float64(products[i, j])
            if product > 0 and product * product >= least * (mine[i] * others[j]):
                found[i] = first + j
                break


@njit
def _mark_within(products: npt.NDArray[Any], squares: F64, least: float, first: int, found: I64) -> None:
    """The same inside one block, row by row: only a row that is kept can cause a later one to be dropped."""
    for i in range(products.shape[0]):
        if found[i] >= 0:
            continue
        for j in range(i + 1, products.shape[0]):
            product = np.float64(products[i, j])
            if found[j] < 0 and product > 0 and product * product >= least * (squares[i] * squares[j]):
                found[j] = first + i


def survivors(read: Callable[[int, int], I8], num_rows: int, threshold: float, block_rows: int = BLOCK_ROWS) -> I64:
    """For each row of a cluster, the place of the row that is kept in its stead; −1 if it is kept itself.

    Args:
        read: gives the vectors of the rows from one place up to another: int8 [rows, dim].
        num_rows: rows of the cluster, which come best first.
        threshold: cosine from which a row is dropped, above 0.
        block_rows: rows that are compared at once; it does not change the result.

    Returns:
        int64 [num_rows]; of several candidates, the first.
    """
    found = np.full(num_rows, -1, np.int64)
    least = threshold * threshold
    for start in range(0, num_rows, block_rows):
        mine = read(start, min(start + block_rows, num_rows))
        squares = squared_lengths(mine)
        block = found[start : start + block_rows]
        for before in range(0, start, block_rows):
            open_rows = np.flatnonzero(block < 0)
            kept = np.flatnonzero(found[before : before + block_rows] < 0)
            others = read(before, before + block_rows)[kept]
            hits = np.full(len(open_rows), -1, np.int64)
            products = dots(mine[open_rows], others)
            _mark_hits(products, squares[open_rows], squared_lengths(others), least, 0, hits)
            hit = hits >= 0
            block[open_rows[hit]] = before + kept[hits[hit]]
        _mark_within(dots(mine, mine), squares, least, start, block)
    return found
