"""Exact duplicates: rows of equal content, found by a 128-bit hash.

Datasets, each committed and resumable:

    exact_hits   LOSER    all rows of a content but the kept one   shuffle by hash
    exact        VERDICT  aligned                                  shuffle by split

Hashes and row keys cross the shuffles, never text: 66 bytes a row. A worker holds one batch of the rows sent to it,
however many rows share a content.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64, Bools
from etl.config import Config
from etl.dedup.by_source import DuplicateCounts, by_source
from etl.dedup.overlap import Overlap
from etl.dedup.survivor import Survivor
from etl.engine import Exchange
from etl.hashing import hash128, hash_array, hash_columns, signed
from etl.laws import GroupCopies, Growth
from etl.messages import instruction_text, is_formal, response_text
from etl.rows import Rows, RowsRef
from etl.stages.context import Context
from etl.stages.dedup.marks import LOSER, LOSER_VERSION, LoserMark, losers, mark_hits
from etl.stages.keyed import bucket_of_hash128, first_of_groups, live_rows, reduced, source_places
from etl.storage.build import Chunk
from etl.text import TEXT_VERSION, is_laid_out, normalise, normalise_layout

CONTENT_VERSION: Final = 2
"""Increased when other rows would count as equal; part of the fingerprint."""


class ExactDedup(Config):
    """Rows with equal content. `survivor` decides which one is kept, then the smallest row digest."""

    by: Literal["content", "row"] = "content"
    """content: prompt and answer after normalisation (line breaks and indentation count in code, maths and any text
    with an indented line after its first). row: all messages as they are."""


CONTENT = pa.schema(
    [
        ("bucket", pa.int32()), ("content", pa.binary()), ("preference", pa.int64()), ("digest", pa.int64()),
        ("id", pa.binary()), ("row", pa.int64()), ("source", pa.int32()),
    ]
)  # fmt: skip
CONTENT_BYTES = 68
"""Bytes of a row in the shuffle."""


@dataclass(frozen=True)
class EmitContent:
    """A 128-bit hash of the content of each live row."""

    rows: RowsRef
    exact: ExactDedup
    survivor: Survivor
    sources: tuple[str, ...]
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        wanted = list(dict.fromkeys([*self.rows.content, *self.survivor.reads]))
        for batch, keys in live_rows(self.rows, split, wanted):
            content = self._content(batch)
            digest = signed(hash_columns([batch.column(name) for name in self.rows.content]))
            columns = [
                bucket_of_hash128(content, self.num_buckets), content.cast(pa.binary()),
                pa.array(self.survivor.preference(batch)), digest, batch.column("id").cast(pa.binary()), pa.array(keys),
                source_places(batch, self.sources),
            ]  # fmt: skip
            yield pa.RecordBatch.from_arrays(columns, schema=CONTENT)

    def _content(self, batch: pa.RecordBatch) -> pa.Array:
        if self.exact.by == "row":
            return hash128([batch.column("messages")])
        texts = [instruction_text(batch), response_text(batch)]
        formal = is_formal(batch)
        return hash128([content_form(text, formal) for text in texts])


def content_form(texts: pa.Array, formal: Bools) -> pa.Array:
    """The form in which `by: content` compares prompts or answers.

    Their layout is kept if the row is code or maths (`formal`) or the text is laid out; otherwise white space is
    reduced to single spaces.
    """
    keeps = pa.array(formal | is_laid_out(texts))
    return pc.replace_with_mask(normalise(texts), keeps, normalise_layout(texts.filter(keeps)))


@dataclass(frozen=True)
class FindLosers:
    """Groups of equal content, sorted by preference, row digest and id: LOSER rows for all but the first."""

    sources: tuple[str, ...]

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        counts = SourceCounts(self.sources)
        return reduced(batches, lambda rows: _all_but_first(counts.saw(rows)), counts.tree)


def _all_but_first(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for table, first in first_of_groups(batches, "content"):
        yield losers(table, first, np.arange(len(first)) > first)


class SourceCounts:
    """Rows, removed rows and overlap by source, of a stream sorted by content; holds one hash of it."""

    def __init__(self, sources: tuple[str, ...]) -> None:
        self._sources = sources
        self._overlap = Overlap(sources)
        self._rows = np.zeros(len(sources), np.int64)
        self._firsts = np.zeros(len(sources), np.int64)

    def saw(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The same batches, counted as they pass."""
        last = np.zeros(0, np.uint64)
        for batch in batches:
            if batch.num_rows:
                hashes = hash_array(batch.column("content"))
                first = hashes[:1] != last if len(last) else np.ones(1, np.bool_)
                starts = np.concatenate([first, hashes[1:] != hashes[:-1]])
                source = batch.column("source").to_numpy()
                self._overlap.push(starts, source)
                self._rows += self._count(source)
                self._firsts += self._count(source[starts])
                last = hashes[-1:]
            yield batch

    def _count(self, source: I64) -> I64:
        return np.bincount(source, minlength=len(self._sources))

    def tree(self) -> dict[str, Any]:
        """Rows and removed rows by source, without zeros, and the overlap of sources; call it once, at the end."""
        named = {"rows": self._rows, "removed": self._rows - self._firsts}
        counts = {
            name: {source: int(n) for source, n in zip(self._sources, number, strict=True) if n}
            for name, number in named.items()
        }
        return {**counts, "overlap": self._overlap.finish()}


def exact(context: Context, rows: Rows, config: ExactDedup, survivor: Survivor) -> tuple[Rows, DuplicateCounts]:
    """Write DIR/exact_hits and DIR/exact: of the rows of equal content all but the preferred one get a verdict."""
    sources = context.sources
    tasks = context.buckets(rows.num_rows * CONTENT_BYTES)
    num_buckets = tasks.count()
    semantic = {"text": TEXT_VERSION, "content": CONTENT_VERSION, **config.fingerprinted(), **survivor.fingerprinted()}
    inputs = rows.tables([*rows.ref.content, *survivor.reads, "verdict"])
    grows = Growth(GroupCopies("content"), tasks=tasks)
    job = context.job("exact_hits", "LOSER", LOSER, semantic, inputs, rows, version=LOSER_VERSION, grows=grows)
    order = ("content", "preference", "digest", "id", "row")
    emit = EmitContent(rows.ref, config, survivor, sources, num_buckets)
    hits = context.shuffle(job, Exchange(tuple(rows.splits), emit, CONTENT, order, num_buckets), FindLosers(sources))
    found = hits.manifest
    counts = DuplicateCounts("exact", found.counts("rows"), found.counts("removed"), found.counts("overlap", levels=2))
    findings = {"sources": by_source([counts])}
    return mark_hits(context, rows, hits, LoserMark("exact", "exact_duplicate"), findings), counts
