"""Clusters of near duplicates: which rows belong together, which are kept, and the report about them.

Datasets, each committed and resumable:

    components   LABEL    connected components of the pairs            etl.stages.dedup.components
    near_hits    HIT      place of each of their rows in its cluster   shuffle by component
    near         CLUSTER  aligned, with verdicts                       shuffle by split
    clusters     KEPT     what a person reads: every row that entered  map

The compared form of a row (its shingle set) is sent to its cluster's bucket, where the survivor comes first, so each
row's similarity to the survivor costs one comparison and one set in memory. A worker holds one batch, and 40 bytes for
each row of the largest cluster. If one task has verified the pairs, it also ranks the rows, with the sets that it
holds.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from etl.arrays import F64, I64, U8, Bools
from etl.dedup import canaries
from etl.dedup.by_source import DuplicateCounts, by_source, lines
from etl.dedup.canaries import Levels
from etl.dedup.minhash import candidate_probability
from etl.dedup.near import NearDedup, Sets
from etl.dedup.overlap import Overlap
from etl.dedup.survivor import Survivor
from etl.engine import Exchange
from etl.hashing import fixed_binary, hash_array
from etl.laws import Growth, PairCopies, PairRows, With
from etl.rows import ROW_BITS, Rows, RowsRef
from etl.schema import CLUSTER_COLUMNS, ID, KEPT
from etl.sorting import SortedRows
from etl.stages.context import Context
from etl.stages.dedup.components import label_components
from etl.stages.dedup.marks import HIT, HIT_VERSION, ClusterMark, mark_hits
from etl.stages.dedup.near import NearPairs, find_pairs, set_tasks
from etl.stages.dedup.verify import SetsAtHand, unpacked
from etl.stages.keyed import RowFeed, buckets_of, reduced, slices, uuid_texts
from etl.step import live
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset, DatasetLike, DatasetRef

LARGEST = 10
"""Number of cluster sizes that a manifest lists."""
_SLICE_ROWS = 1 << 12
"""Number of sets that are compared at once."""

CLUSTER_ROW = pa.schema(
    [
        ("bucket", pa.int32()), ("component", pa.int64()), ("preference", pa.int64()), ("id", pa.binary()),
        ("digest", pa.int64()), ("row", pa.int64()), ("source", pa.int32()), ("shingles", pa.binary()),
    ]
)  # fmt: skip
CLUSTER_ORDER = ("component", "preference", "id", "digest", "row")


def cluster(
    context: Context, rows: Rows, near: NearDedup, survivor: Survivor
) -> tuple[Rows, Callable[[], DuplicateCounts]]:
    """Write the datasets of etl.stages.dedup.near and those above; rows that are not the survivor get a verdict.

    Returns:
        The rows, and their counts: a barrier where the verdicts are pending.
    """
    found = find_pairs(context, rows, near, survivor)
    labels = label_components(context, rows, "components", found.pairs, ("a_row", "b_row"), found.candidates)
    tasks = set_tasks(context, found.sets)
    grows = Growth.all_by(PairRows(found.pairs.ref.stage), tasks)
    # Labels hold only places, so the pairs identify them.
    semantic, inputs = {"threshold": near.threshold}, (found.pairs, labels, found.sets)
    job = context.job("near_hits", "HIT", HIT, semantic, inputs, rows, version=HIT_VERSION, grows=grows)
    if found.at_hand is not None:
        rank = RankAll(labels.ref, RankAtHand(near, context.sources, found.at_hand))
        hits = context.map(job.with_buckets(1), [0], rank).result()
    else:
        buckets = tasks.count()
        emit = EmitClusterRows(labels.ref, found.sets.ref, buckets)
        exchange = Exchange(tuple(rows.splits), emit, CLUSTER_ROW, CLUSTER_ORDER, buckets)
        hits = context.shuffle(job, exchange, RankComponents(near, context.sources))
    drop_below = 0.0 if near.clusters == "components" else near.threshold
    mark = ClusterMark("near", "near_duplicate", drop_below)
    findings = near_findings(near, found, hits)
    rows = mark_hits(context, rows, hits, mark, findings, PairCopies(found.pairs.ref.stage))
    _report_findings(context, findings)
    return rows, functools.partial(_counts, context.folder("near"), rows.datasets[-1], hits)


def _counts(label: str, verdicts: DatasetLike, hits: Dataset) -> DuplicateCounts:
    manifest = verdicts.result().manifest
    accounting = {source: manifest.account(source, label) for source in manifest.accounting}
    entered = {source: counts["in"] for source, counts in accounting.items()}
    removed = {source: counts["in"] - counts["kept"] for source, counts in accounting.items()}
    return DuplicateCounts("near", entered, removed, hits.manifest.counts("overlap", levels=2))


@dataclass(frozen=True)
class EmitClusterRows:
    """The sets of the rows that are in clusters, to the bucket of their component."""

    labels: DatasetRef
    sets: DatasetRef
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        feed = RowFeed(self._labels(split), self.labels_schema)
        for batch in self.sets.read_split(split):
            rows = batch.column("row").to_numpy()
            real = ~canaries.which_canaries(rows)
            rows = rows[real]
            if not len(rows):
                continue
            labels = feed.until(int(rows[-1]))
            places = np.flatnonzero(real)[np.searchsorted(rows, labels["row"].to_numpy())]
            found = batch.take(pa.array(places))
            component = labels["component"].combine_chunks()
            columns = [
                buckets_of(hash_array(component), self.num_buckets), component, found.column("preference"),
                found.column("id").cast(pa.binary()), found.column("digest"), found.column("row"),
                found.column("source"), found.column("shingles"),
            ]  # fmt: skip
            table = pa.RecordBatch.from_arrays(columns, names=CLUSTER_ROW.names).cast(CLUSTER_ROW)
            yield from slices([table], _SLICE_ROWS)

    @property
    def labels_schema(self) -> pa.Schema:
        return pa.schema([("row", pa.int64()), ("component", pa.int64())])

    def _labels(self, split: int) -> Iterator[pa.RecordBatch]:
        """The labels of the rows of one split: a part is sorted, so statistics of row groups locate them."""
        low, high = split << ROW_BITS, (split + 1) << ROW_BITS
        for part in self.labels.parts_of(0 if self.labels.num_splits == 1 else split):
            with self.labels.part_location(part).open_parquet() as file:
                for group in range(file.num_row_groups):
                    bounds = file.metadata.row_group(group).column(0).statistics
                    if bounds.max >= low and bounds.min < high:
                        (batch,) = file.read_row_group(group).cast(self.labels_schema).combine_chunks().to_batches()
                        rows = batch.column("row").to_numpy()
                        start, end = np.searchsorted(rows, [low, high])
                        yield batch.slice(start, end - start)


@dataclass
class _Members:
    """Rows of clusters in the order of the stream."""

    component: I64
    ids: U8
    row: I64
    jaccard: F64

    def part(self, start: int, end: int) -> "_Members":
        return _Members(self.component[start:end], self.ids[start:end], self.row[start:end], self.jaccard[start:end])


def _joined(pieces: list[_Members]) -> _Members:
    return _Members(
        np.concatenate([piece.component for piece in pieces]), np.concatenate([piece.ids for piece in pieces]),
        np.concatenate([piece.row for piece in pieces]), np.concatenate([piece.jaccard for piece in pieces]),
    )  # fmt: skip


@dataclass
class _ClusterCounts:
    """The counts of the clusters of a bucket."""

    removed: dict[str, int] = field(default_factory=dict)
    below: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)

    def add_sizes(self, sizes: I64) -> None:
        """Clusters by the power of two below their rows, and the largest ones by their rows."""
        for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
            power = str(1 << (int(size).bit_length() - 1))
            self.sizes[power] = self.sizes.get(power, 0) + int(count)
            self.largest[str(size)] = self.largest.get(str(size), 0) + int(count)
        kept = sorted(self.largest, key=int, reverse=True)[:LARGEST]
        self.largest = {size: self.largest[size] for size in kept}

    def tree(self, overlap: Overlap) -> dict[str, Any]:
        """The distributions of a bucket, empty ones left out; closes `overlap`."""
        counts = {
            "overlap": overlap.finish(), "below_threshold": self.below, "removed": self.removed,
            "cluster_sizes": self.sizes, "largest": self.largest,
        }  # fmt: skip
        return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class RankComponents:
    """The rows of each component, the preferred row first: place, size, and similarity to the survivor."""

    near: NearDedup
    sources: tuple[str, ...]

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        overlap, counts = Overlap(self.sources), _ClusterCounts()
        return reduced(batches, lambda rows: self._hits(rows, overlap, counts), lambda: counts.tree(overlap))

    def _hits(
        self, batches: Iterable[pa.RecordBatch], overlap: Overlap, counts: _ClusterCounts
    ) -> Iterator[pa.RecordBatch]:
        opened: list[_Members] = []
        survivor: pa.RecordBatch | None = None
        for batch in slices(batches, _SLICE_ROWS):
            component = batch.column("component").to_numpy()
            last = opened[-1].component[-1] if opened else -1
            starts = np.diff(component, prepend=last) != 0
            overlap.push(starts, batch.column("source").to_numpy())
            jaccard = self._jaccard(batch, starts, survivor)
            self._count(counts, batch, starts, jaccard)
            ids = fixed_binary(batch.column("id").cast(ID))
            members = _Members(component, ids, batch.column("row").to_numpy(), jaccard)
            places = np.flatnonzero(starts)
            if not len(places):
                opened.append(members)
                continue
            first, last_start = int(places[0]), int(places[-1])
            yield _ranked(_joined([*opened, members.part(0, first)]), counts)
            yield _ranked(members.part(first, last_start), counts)
            opened = [members.part(last_start, batch.num_rows)]
            survivor = batch.slice(last_start, 1)
        if opened:
            yield _ranked(_joined(opened), counts)

    def _jaccard(self, batch: pa.RecordBatch, starts: Bools, survivor: pa.RecordBatch | None) -> F64:
        """Similarity of each row to the first of its component; rows before the first start belong to `survivor`."""
        batches = [batch] if survivor is None else [survivor, batch]
        sets, places = self._sets(batches)
        own = np.arange(len(starts), dtype=np.int64) + len(batches) - 1
        return self.near.similarity(sets, places[np.maximum.accumulate(np.where(starts, own, 0))], places[own])

    def _sets(self, batches: list[pa.RecordBatch]) -> tuple[Sets, I64]:
        """Sets, and the places in them of the rows of some batches."""
        sets = unpacked(pa.concat_arrays([piece.column("shingles") for piece in batches]))
        return sets, np.arange(len(sets[0]) - 1)

    def _count(self, counts: _ClusterCounts, batch: pa.RecordBatch, starts: Bools, jaccard: F64) -> None:
        """Rows that are not survivors, and how many of them are not similar to theirs, by source."""
        source = batch.column("source").to_numpy()
        low = ~self.near.is_duplicate(jaccard)
        for tally, mask in ((counts.removed, ~starts), (counts.below, ~starts & low)):
            for place, count in enumerate(np.bincount(source[mask], minlength=len(self.sources)).tolist()):
                if count:
                    tally[self.sources[place]] = tally.get(self.sources[place], 0) + count


@dataclass(frozen=True)
class RankAtHand(RankComponents):
    """As `RankComponents`, for rows that come without their sets."""

    at_hand: SetsAtHand

    def _sets(self, batches: list[pa.RecordBatch]) -> tuple[Sets, I64]:
        rows = np.concatenate([batch.column("row").to_numpy() for batch in batches])
        return self.at_hand.all.sets, self.at_hand.all.places_of(rows)


@dataclass(frozen=True)
class RankAll:
    """All rows of clusters in one task that holds their sets, so that these cross no shuffle."""

    labels: DatasetRef
    rank: RankAtHand

    def __call__(self, split: int) -> Iterator[Chunk]:
        with SortedRows(CLUSTER_ORDER) as rows:
            for number in range(self.labels.num_splits):
                for labels in self.labels.read_split(number):
                    rows.add(self._rows(labels))
            yield from self.rank(split, rows.sorted())

    def _rows(self, labels: pa.RecordBatch) -> pa.RecordBatch:
        """CLUSTER_ROW of the rows with these labels, without bucket and sets."""
        held = self.rank.at_hand.all
        places = held.places_of(labels.column("row").to_numpy())
        found = held.rest.take(pa.array(places)).append_column("component", labels.column("component"))
        schema = pa.schema([field for field in CLUSTER_ROW if field.name not in ("bucket", "shingles")])
        return found.select(schema.names).cast(schema).combine_chunks().to_batches()[0]


def _ranked(members: _Members, counts: _ClusterCounts) -> pa.RecordBatch:
    """HIT rows of whole components."""
    _, first, place, size = np.unique(members.component, return_index=True, return_inverse=True, return_counts=True)
    counts.add_sizes(size)
    columns = [
        pa.array(members.row), _ids(members.ids), _ids(members.ids[first[place]]),
        pa.array(size[place].astype(np.int32)), pa.array((np.arange(len(place)) - first[place]).astype(np.int32)),
        pa.array(members.jaccard),
    ]  # fmt: skip
    return pa.RecordBatch.from_arrays(columns, schema=HIT)


def _ids(ids: U8) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(ID, len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))])


# --- what a run found out --------------------------------------------------------------------------------------------


def near_findings(near: NearDedup, found: NearPairs, hits: Dataset) -> dict[str, Any]:
    """The findings of a run: recall and precision, hot bands, clusters."""
    met, seen, counts = (dataset.manifest for dataset in (found.candidates, found.pairs.result(), hits))
    num_bands, num_rows = near.banding
    removed, below = (sum(counts.counts(name).values()) for name in ("removed", "below_threshold"))
    return {
        "bands": {
            "bands": num_bands,
            "rows": num_rows,
            "expected_recall_at_threshold": round(candidate_probability(near.threshold, num_bands, num_rows), 6),
        },
        "canaries": _canaries(
            Levels(near.threshold), met.counts("canaries", levels=2), seen.counts("canaries", levels=2)
        ),
        "pairs": {
            "compared": met.count("pairs_compared"),
            "candidates": seen.rows_in,
            "reported": seen.rows_out,
            "differ_in_signs_alone": seen.count("in_signs"),
        },
        "hot_bands": {
            "groups_by_rows": met.counts("hot_bands"),
            "pairs_left_out": met.count("pairs_left_out"),
            "similar_pairs_left_out": met.count("similar_left_out"),
        },
        "clusters": {
            "by_rows": counts.counts("cluster_sizes"),
            "largest": _largest(counts.counts("largest")),
            "not_survivors": removed,
            "not_survivors_below_threshold": below,
        },
    }


def _canaries(levels: Levels, made: dict[str, dict[str, int]], found: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The results of canaries, from their counts by level and script: `by_level` and recall by script."""
    flat = ({level: sum(scripts.values()) for level, scripts in counts.items()} for counts in (made, found))
    return by_level(levels, *flat) | {"by_script": by_script(levels, made, found)}


def by_script(
    levels: Levels, made: dict[str, dict[str, int]], found: dict[str, dict[str, int]]
) -> dict[str, dict[str, Any]]:
    """Canaries at or above the threshold by the main script of their row, and the recall, the most frequent first."""
    totals: dict[str, list[int]] = {}
    for place, counts in enumerate((made, found)):
        for level in range(len(levels.edges)):
            for script, count in counts.get(str(level), {}).items() if levels.is_duplicate(level) else ():
                totals.setdefault(script, [0, 0])[place] += count
    return {
        script: {"made": total, "reported": reported, "recall": _share(reported, total)}
        for script, (total, reported) in sorted(totals.items(), key=lambda item: (-item[1][0], item[0]))
    }


def by_level(levels: Levels, made: dict[str, int], found: dict[str, int]) -> dict[str, Any]:
    """Recall and precision by the canaries, overall and by level; null where the divisor would be 0."""
    table = {}
    totals = {True: [0, 0], False: [0, 0]}
    for level in range(len(levels.edges)):
        is_duplicate = levels.is_duplicate(level)
        counts = [made.get(str(level), 0), found.get(str(level), 0)]
        totals[is_duplicate] = [total + count for total, count in zip(totals[is_duplicate], counts, strict=True)]
        table[levels.name(level)] = {
            "made": counts[0],
            "reported": counts[1],
            "recall": _share(counts[1], counts[0]) if is_duplicate else None,
            "precision": (1.0 if is_duplicate else 0.0) if counts[1] else None,
        }
    reported = totals[True][1] + totals[False][1]
    recall, precision = _share(totals[True][1], totals[True][0]), _share(totals[True][1], reported)
    return {"recall": recall, "precision": precision, "by_jaccard": table}


def _largest(by_size: dict[str, int]) -> list[int]:
    """Rows of the largest clusters, the largest first."""
    # A forged count may have an invalid size.
    sizes = (int(size[:18]) for size in by_size if size.isdecimal() for _ in range(min(by_size[size], LARGEST)))
    return sorted(sizes, reverse=True)[:LARGEST]


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _report_findings(context: Context, findings: dict[str, Any]) -> None:
    canary = findings["canaries"]
    if canary["recall"] is not None:
        rates = f"recall {canary['recall']:.4f}, precision {canary['precision'] or 0:.4f}"
        context.detail("near", f"canaries: {rates}")
    in_signs = findings["pairs"]["differ_in_signs_alone"]
    if in_signs:
        context.tell(
            "near",
            f"{in_signs:,} of the pairs differ in signs alone (C++ and C#) and count as equal; where signs matter use "
            "unit: token, or describe the source with a skill_bucket for code (B3) or maths (B2)",
        )
    hot = findings["hot_bands"]
    if hot["pairs_left_out"]:
        context.tell(
            "near",
            f"hot bands: {hot['pairs_left_out']:,} pairs not compared in them, of which about "
            f"{hot['similar_pairs_left_out']:,} similar (their rows mostly meet through others)",
        )


# --- the table of clusters -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WriteKept:
    """Every row of a split that reached near dedup."""

    rows: RowsRef
    clusters: tuple[str, ...]
    """The names of the columns of CLUSTER_COLUMNS."""

    def __call__(self, split: int) -> Iterator[Chunk]:
        names = ["id", "source_dataset", "source_example_id", *self.clusters, "verdict"]
        for batch in self.rows.read(split, names):
            mine = batch.filter(batch.column(self.clusters[0]).is_valid())
            survivor, *places = (mine.column(name) for name in self.clusters)
            columns = [
                mine.column("source_dataset"), mine.column("source_example_id"), uuid_texts(mine.column("id")),
                uuid_texts(survivor), *places, live(mine),
            ]  # fmt: skip
            yield Chunk(pa.RecordBatch.from_arrays(columns, schema=KEPT), batch.num_rows)


def write_clusters(context: Context, rows: Rows, kinds: Callable[[], list[DuplicateCounts]]) -> DatasetLike:
    """Write DIR/clusters, the table for people; its manifest reports all kinds of duplicates by source.

    Args:
        context: of the run.
        rows: with the verdicts of near dedup, which may be pending: then both are written in one job.
        kinds: of duplicates; called when the table is committed, after the verdicts.
    """
    inputs = rows.tables(["source_dataset", "source_example_id", "verdict"])
    grows = Growth(With.INPUT, work=With.INPUT)
    job = context.job("clusters", "KEPT", KEPT, {}, inputs, grows=grows)
    job = job.with_findings_of(lambda _: {"sources": by_source(kinds())})
    clusters = tuple(context.columns(CLUSTER_COLUMNS).names)
    write = WriteKept(rows.ref, clusters)
    return context.map(job, rows.splits, write, then=lambda _: tell_kinds(context, kinds()))


def tell_kinds(context: Context, kinds: list[DuplicateCounts]) -> None:
    """The report for the user on kinds of duplicates by source."""
    for line in lines(by_source(kinds)):
        context.telling.note(context.label, line)
