"""Duplicate units: removes paragraphs, lines or sentences of raw documents that also occur elsewhere from the text.

Nothing between ingest and layout rewrites rows, so the stage writes which bytes are removed. Whatever reads `messages`
from then on (near dedup, scores, tokens, layout) gets the text without them, and ids remain those of ingest. For each
kind of unit:

    paragraph_hits  UNIT_HIT  removed units, as (row, place in the row)      shuffle by the unit's hash
    paragraph       UNITS     aligned: byte ranges, counts, verdicts         shuffle by split

76 bytes cross the first shuffle for each unit of at least min_words words, 12 the second for each removed one; texts
are read and cut twice, and cross no shuffle. A worker holds one batch of the rows sent to it and one row group of its
split with its removed units, however many rows share a unit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64
from etl.dedup.survivor import Survivor
from etl.dedup.units import UNITS_VERSION, UnitDedup, Units, cut, hash_units, lost_ranges
from etl.engine import Exchange
from etl.laws import GroupCopies, Growth
from etl.messages import raw_documents
from etl.rows import Rows, RowsRef
from etl.schema import PROMPT, REMOVED, ROW_KEY
from etl.stages.context import Context
from etl.stages.dedup.marks import Mark, mark_hits, sent
from etl.stages.keyed import (
    bucket_of_hash128,
    first_of_groups,
    live_rows,
    reduced,
    rest_digest,
    source_places,
)
from etl.step import append, drop
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset
from etl.text import TEXT_VERSION

UNIT = pa.schema(
    [
        ("bucket", pa.int32()), ("unit", pa.binary()), ("preference", pa.int64()), ("id", pa.binary()),
        ("digest", pa.int64()), ("row", pa.int64()), ("place", pa.int32()), ("source", pa.int32()),
        ("num_bytes", pa.int32()),
    ]
)  # fmt: skip
"""`place` is that of the unit in its row, `source` that of the source among those of the recipe."""
_ORDER = ("unit", "preference", "id", "digest", "row", "place")

UNIT_HIT = pa.schema([ROW_KEY, PROMPT.field("id"), pa.field("place", pa.int32(), nullable=False)])
"""A unit that is removed because it occurs elsewhere."""


@dataclass(frozen=True)
class EmitUnits:
    """The hashes of the sufficiently long units of each live raw document."""

    rows: RowsRef
    config: UnitDedup
    survivor: Survivor
    sources: tuple[str, ...]
    num_buckets: int

    @property
    def reads(self) -> list[str]:
        return list(dict.fromkeys(["id", "messages", *self.rows.rest_of_id, "source_dataset", *self.survivor.reads]))

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch, keys in live_rows(self.rows, split, self.reads):
            texts = raw_documents(batch.column("messages"))
            units = cut(texts, self.config.unit)
            yield self._emit(batch, keys, texts, units)

    def _emit(self, batch: pa.RecordBatch, keys: I64, texts: pa.Array, units: Units) -> pa.RecordBatch:
        chosen = np.flatnonzero(units.num_words >= self.config.min_words)
        of = units.text[chosen]
        row = pa.array(of)
        hashes = hash_units(texts, units, chosen)
        columns = [
            bucket_of_hash128(hashes, self.num_buckets),
            hashes.cast(pa.binary()),
            pa.array(self.survivor.preference(batch)[of]),
            batch.column("id").cast(pa.binary()).take(row),
            rest_digest(self.rows, batch).take(row),
            pa.array(keys[of]),
            pa.array((chosen - units.offsets[of]).astype(np.int32)),
            source_places(batch, self.sources).take(row),
            pa.array((units.end - units.start)[chosen].astype(np.int32)),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=UNIT)


class UnitCounts:
    """Units and their bytes by source: those seen, those removed, and where the kept copies are."""

    def __init__(self, sources: tuple[str, ...]) -> None:
        self._sources = sources
        self._seen = np.zeros((2, len(sources)), np.int64)
        self._removed = np.zeros((2, len(sources)), np.int64)
        self._kept_in = np.zeros((len(sources), len(sources)), np.int64)

    def saw(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Count the units of a stream as they pass."""
        for batch in batches:
            self._add(self._seen, batch.column("source"), batch.column("num_bytes"))
            yield batch

    def removed(self, gone: pa.Table, kept_in: pa.ChunkedArray) -> None:
        """Count removed units.

        Args:
            gone: with `source` and `num_bytes`.
            kept_in: source of the kept copy, int32 [gone].
        """
        self._add(self._removed, gone["source"], gone["num_bytes"])
        np.add.at(self._kept_in, (gone["source"].to_numpy(), kept_in.to_numpy()), 1)

    @staticmethod
    def _add(counts: I64, sources: pa.Array, num_bytes: pa.Array) -> None:
        np.add.at(counts[0], sources.to_numpy(), 1)
        np.add.at(counts[1], sources.to_numpy(), num_bytes.to_numpy())

    def tree(self) -> dict[str, Any]:
        """source -> seen, bytes_seen, removed, bytes_removed, kept_in (source -> units); only sources with units."""
        return {
            self._sources[code]: {
                "seen": int(self._seen[0, code]),
                "bytes_seen": int(self._seen[1, code]),
                "removed": int(self._removed[0, code]),
                "bytes_removed": int(self._removed[1, code]),
                "kept_in": {
                    self._sources[other]: int(self._kept_in[code, other])
                    for other in np.flatnonzero(self._kept_in[code]).tolist()
                },
            }
            for code in np.flatnonzero(self._seen[0]).tolist()
        }


@dataclass(frozen=True)
class FindUnits:
    """UNIT_HIT for all units of a group of equal hashes but the first, and counts by source."""

    sources: tuple[str, ...]

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        counts = UnitCounts(self.sources)
        return reduced(batches, lambda rows: self._hits(counts.saw(rows), counts), counts.tree)

    @staticmethod
    def _hits(batches: Iterable[pa.RecordBatch], counts: UnitCounts) -> Iterator[pa.RecordBatch]:
        for table, first in first_of_groups(batches, "unit"):
            lost = np.flatnonzero(np.arange(len(first)) > first)
            gone = table.take(pa.array(lost))
            counts.removed(gone, table["source"].take(pa.array(first[lost])))
            yield from gone.select(UNIT_HIT.names).cast(UNIT_HIT).combine_chunks().to_batches()


def unit_counts(config: UnitDedup) -> pa.Field:
    """The column with the number of units removed from a row."""
    return pa.field(f"num_{config.unit}s_removed", pa.int32())


@dataclass(frozen=True)
class UnitMark(Mark):
    """Removes the units of UNIT_HIT, and drops the rows with too little text left."""

    config: UnitDedup
    table: ClassVar[str] = "UNITS"
    hits: ClassVar[pa.Schema] = sent(UNIT_HIT)
    reads: ClassVar[tuple[str, ...]] = ("messages",)

    @property
    def columns(self) -> pa.Schema:
        """The ranges of `REMOVED` and how many units they remove, 0 for most rows."""
        return pa.schema([REMOVED, unit_counts(self.config)])

    @property
    def semantic(self) -> dict[str, Any]:
        return {"units": UNITS_VERSION, "unit": self.config.unit, "min_left_words": self.config.fewest_left}

    def judge(self, batch: pa.RecordBatch, found: pa.Table) -> pa.RecordBatch:
        """As `Mark.judge`; only rows that lose a unit are cut."""
        row, place = found["row"].to_numpy(), found["place"].to_numpy()
        num_lost = np.bincount(row, minlength=batch.num_rows)
        texts = raw_documents(batch.column("messages"))
        units = cut(pc.if_else(pa.array(num_lost > 0), texts, None), self.config.unit)
        lost = np.zeros(len(units), np.bool_)
        lost[units.offsets[row] + place] = True
        words = units.words_left(lost)
        gone = pa.array((num_lost > 0) & (words < self.config.fewest_left))
        done = drop(batch, self.step, gone, "only_duplicate_units", pa.array(words).cast(pa.string()))
        return append(done, self.columns, [lost_ranges(texts, units, lost), pa.array(num_lost)])


def dedup_units(context: Context, rows: Rows, config: UnitDedup, survivor: Survivor) -> Rows:
    """Write DIR/<unit>_hits and DIR/<unit>; whatever reads `messages` from then on gets the remaining text.

    The manifest of DIR/<unit> has for each source the share of units (of at least min_words words) and of their bytes
    that was removed. That of DIR/<unit>_hits has their counts, and in which source the kept copies are.

    Args:
        context: of the run.
        rows: to which the aligned table is added.
        config: which units.
        survivor: whose copy is kept.
    """
    sources = context.sources
    # Per stored byte: text is compressed to a third, and a unit of 100 to 300 bytes sends 76.
    tasks = context.buckets(sum(part.bytes for part in rows.base.result().manifest.parts))
    num_buckets = tasks.count()
    emit = EmitUnits(rows.ref, config, survivor, sources, num_buckets)
    semantic = {
        "units": UNITS_VERSION,
        "text": TEXT_VERSION,
        **config.model_dump(include={"unit", "min_words"}),
        "survivor": survivor.fingerprinted(),
    }
    inputs = rows.tables([*emit.reads, "verdict"])
    grows = Growth(GroupCopies("unit"), tasks=tasks)
    job = context.job(f"{config.unit}_hits", "UNIT_HIT", UNIT_HIT, semantic, inputs, rows, version=2, grows=grows)
    exchange = Exchange(tuple(rows.splits), emit, UNIT, _ORDER, num_buckets)
    hits = context.shuffle(job, exchange, FindUnits(sources))

    return mark_hits(context, rows, hits, UnitMark(config.unit, config), {"dedup_rate": dedup_rates(hits)})


def dedup_rates(hits: Dataset) -> dict[str, dict[str, float]]:
    """Source -> share of its units and of their bytes that is removed."""
    count = hits.manifest.count
    return {
        source: {
            "units": round(count(source, "removed") / max(1, count(source, "seen")), 6),
            "bytes": round(count(source, "bytes_removed") / max(1, count(source, "bytes_seen")), 6),
        }
        for source in hits.manifest.distributions
    }
