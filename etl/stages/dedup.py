"""Duplicates: exact by content hash, near by MinHash candidates checked by exact Jaccard.

Hashes, signatures' bands and row keys cross the shuffles; a document's shingle set crosses once, and only when it is a
candidate. Datasets of a run, each committed and resumable:

    exact_hits   HIT      duplicates by content hash                      shuffle by hash
    exact        VERDICT  aligned                                         shuffle by split
    candidates   EDGE     pairs that share a band                         shuffle by band
    edges        EDGE     the distinct pairs with their component         one task, 100 bytes of memory a pair
    sets         SET      shingle sets of the rows in those pairs         shuffle by split
    pairs        PAIR     pairs with Jaccard >= threshold                 shuffle by component
    near_hits    HIT      connected components of the pairs               one task
    clusters     CLUSTER  aligned, with verdicts                          shuffle by split
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.dedup.candidates import CandidateStream
from etl.dedup.clusters import components, rank_clusters
from etl.dedup.minhash import MINHASH_VERSION, band_hashes, candidate_probability, signatures
from etl.dedup.verify import jaccard_pairs
from etl.engine import Exchange
from etl.errors import DataError
from etl.hashing import hash128, hash_array, hash_columns, signed
from etl.messages import full_text, instruction_text, response_text
from etl.recipe import NearDedup
from etl.schema import ID, PAIR, PROMPT
from etl.stages.context import Context
from etl.stages.hits import (
    HIT,
    OUT_ROWS,
    Counted,
    Mark,
    bucket_of_hash128,
    buckets_of,
    groups,
    hits_in_groups,
    living,
    mark_hits,
    recut,
    row_keys,
)
from etl.storage.aligned import ROW_BITS, Rows
from etl.storage.dataset import Chunk, Dataset
from etl.text import TEXT_VERSION, normalise, shingles

I64 = npt.NDArray[np.int64]

MAX_EDGES = 50_000_000
"""Pairs that one task may hold for connected components: about 5 GB."""
_KEY_SEED = 0x6B6579
PAIR_BLOCK = 1 << 20
"""Candidate pairs that one task makes distinct at once: 16 MB."""

EDGE = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("component", "a", "b")])
SET = pa.schema(
    [
        pa.field("component", pa.int64(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", ID, nullable=False),
        pa.field("shingles", pa.list_(pa.int64()), nullable=False),
    ]
)
NEAR_PAIR = pa.schema(
    [
        *PAIR,
        pa.field("a_row", pa.int64(), nullable=False),
        pa.field("b_row", pa.int64(), nullable=False),
    ]
)


def dedup(context: Context, rows: Rows) -> Rows:
    """Mark duplicates: exact ones, then near ones among those that are left."""
    if context.recipe.dedup.exact is not None:
        rows = exact(context, rows)
    if context.recipe.dedup.near is not None:
        rows = near(context, rows, context.recipe.dedup.near)
    return rows


# --- exact ---

CONTENT = pa.schema(
    [("bucket", pa.int32()), ("content", pa.binary()), ("digest", pa.int64()), ("id", pa.binary()), ("row", pa.int64())]
)


@dataclass(frozen=True)
class EmitContent:
    """128-bit hash of the normalised prompt and answer of each living row."""

    rows: Rows
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch, keys in living(self.rows, split, PROMPT.names):
            content = hash128([normalise(instruction_text(batch)), normalise(response_text(batch))])
            digest = signed(hash_columns([batch.column(name) for name in PROMPT.names]))
            columns = [
                bucket_of_hash128(content, self.num_buckets), content.cast(pa.binary()), digest,
                batch.column("id").cast(pa.binary()), pa.array(keys),
            ]  # fmt: skip
            yield pa.RecordBatch.from_arrays(columns, schema=CONTENT)


def exact_hits(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """Groups of equal content, sorted by row digest and id: HIT rows for those with more than one member."""
    counted = Counted(batches)
    yield from recut(_groups_of_equal_content(counted))
    yield Chunk(None, counted.rows)


def _groups_of_equal_content(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for table in groups(batches, ["content"]):
        hits, _ = hits_in_groups(table, "content")
        yield hits.filter(pc.greater(hits.column("cluster_size"), 1))


def exact(context: Context, rows: Rows) -> Rows:
    """Write DIR/exact_hits and DIR/exact: rows of equal normalised content but the first by digest get a verdict."""
    num_buckets = context.num_buckets(rows.num_rows * 56)
    identity = {"text": TEXT_VERSION, "inputs": rows.inputs([*PROMPT.names, "verdict"])}
    job = context.job("exact_hits", "HIT", HIT, identity, rows)
    exchange = Exchange(
        tuple(rows.splits), EmitContent(rows, num_buckets), CONTENT, ("content", "digest", "id", "row"), num_buckets
    )
    hits = context.committed(context.engine.shuffle(job, exchange, exact_hits))
    return mark_hits(context, rows, hits, Mark("exact", "exact_duplicate", with_clusters=False))


# --- near ---

BAND = pa.schema([("bucket", pa.int32()), ("band", pa.int64()), ("key", pa.int64()), ("row", pa.int64())])


@dataclass(frozen=True)
class EmitBands:
    """The band hashes of each living row's MinHash signature."""

    rows: Rows
    near: NearDedup
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        near = self.near
        for batch, keys in living(self.rows, split, ["id", "messages"]):
            offsets, hashes = shingles(full_text(batch), near.ngram)
            bands = band_hashes(signatures(offsets, hashes, near.num_perm, near.seed), near.bands, near.rows)
            order = hash_array(batch.column("id"), _KEY_SEED).view(np.int64)
            flat = bands.ravel()
            columns = [
                buckets_of(flat, self.num_buckets),
                pa.array(flat),
                pa.array(np.repeat(order, near.bands)),
                pa.array(np.repeat(keys, near.bands)),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=BAND)


@dataclass(frozen=True)
class PairUp:
    """Candidate pairs inside the groups of equal bands; the order inside a group is a hash of the id."""

    max_partners: int

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        counted = Counted(batches)
        stream = CandidateStream(self.max_partners)
        for pairs in _blocks(self._pairs(counted, stream), PAIR_BLOCK):
            yield from (Chunk(batch) for batch in _edges(pairs).to_batches(max_chunksize=OUT_ROWS))
        yield Chunk(None, counted.rows, {}, {"pairs_left_out": stream.num_left_out} if stream.num_left_out else {})

    def _pairs(self, batches: Iterable[pa.RecordBatch], stream: CandidateStream) -> Iterator[I64]:
        """Pairs of row keys, int64 [pairs, 2], smaller key first."""
        tail = np.empty(0, np.int64)
        seen = 0
        for batch in batches:
            rows = np.concatenate([tail, batch.column("row").to_numpy()])
            ordinals = np.arange(seen, seen + batch.num_rows, dtype=np.int64)
            left, right = stream.push(batch.column("band").to_numpy(), ordinals)
            first = seen - len(tail)
            seen += batch.num_rows
            yield np.sort(np.stack([rows[left - first], rows[right - first]], axis=1), axis=1)
            tail = rows[-self.max_partners :]


def _blocks(arrays: Iterable[I64], size: int) -> Iterator[I64]:
    """The rows of a stream of arrays, `size` at a time."""
    held: list[I64] = []
    num_held = 0
    for array in arrays:
        held.append(array)
        num_held += len(array)
        if num_held >= size:
            whole = np.concatenate(held)
            yield from (whole[at : at + size] for at in range(0, num_held - size + 1, size))
            held, num_held = [whole[num_held - num_held % size :]], num_held % size
    if num_held:
        yield np.concatenate(held)


def _edges(pairs: I64) -> pa.Table:
    """Distinct pairs, component not known yet."""
    distinct = np.unique(pairs, axis=0)
    columns = [np.full(len(distinct), -1, np.int64), distinct[:, 0], distinct[:, 1]]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=EDGE)


def _read_edges(dataset: Dataset, columns: tuple[str, str]) -> tuple[I64, I64]:
    if dataset.manifest.rows_out > MAX_EDGES:
        raise DataError(
            f"{dataset.folder} holds {dataset.manifest.rows_out:,} pairs, more than the {MAX_EDGES:,} that one task "
            "may join; raise dedup.near.rows or lower dedup.near.max_partners"
        )
    batches = [batch.select(list(columns)) for batch in dataset.read()]
    left = np.concatenate([np.empty(0, np.int64), *(batch.column(0).to_numpy() for batch in batches)])
    right = np.concatenate([np.empty(0, np.int64), *(batch.column(1).to_numpy() for batch in batches)])
    return left, right


@dataclass(frozen=True)
class JoinCandidates:
    """All candidate pairs in one task: distinct, with their component, sorted by it."""

    candidates: Dataset

    def __call__(self, split: int) -> Iterator[Chunk]:
        left, right = _read_edges(self.candidates, ("a", "b"))
        pairs = np.unique(np.stack([left, right], axis=1), axis=0)
        nodes, labels = components(pairs[:, 0], pairs[:, 1])
        component = labels[np.searchsorted(nodes, pairs[:, 0])]
        order = np.lexsort((pairs[:, 1], pairs[:, 0], component))
        columns = [component[order], pairs[order, 0], pairs[order, 1]]
        table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=EDGE)
        for batch in table.to_batches(max_chunksize=OUT_ROWS):
            yield Chunk(batch)
        yield Chunk(None, len(left))


NODE = pa.schema([("bucket", pa.int32()), ("row", pa.int64()), ("component", pa.int64())])


@dataclass(frozen=True)
class EmitNodes:
    """Both ends of every pair to the split that holds them."""

    edges: Dataset

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.edges.read_split(split):
            ends = np.concatenate([batch.column("a").to_numpy(), batch.column("b").to_numpy()])
            component = np.tile(batch.column("component").to_numpy(), 2)
            _, first = np.unique(ends, return_index=True)
            columns = [(ends[first] >> ROW_BITS).astype(np.int32), ends[first], component[first]]
            yield pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=NODE)


@dataclass(frozen=True)
class WriteSets:
    """The shingle sets of the candidate rows of one split."""

    rows: Rows
    ngram: int

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        nodes = pa.Table.from_batches(list(batches), NODE)
        wanted, first = np.unique(nodes["row"].to_numpy(), return_index=True)
        component = nodes["component"].to_numpy()[first]
        start = 0
        for batch in self.rows.read(split, ["id", "messages"]):
            low, high = np.searchsorted(wanted, row_keys(split, start, batch.num_rows)[[0, -1]] + [0, 1])
            chosen = batch.take(pa.array((wanted[low:high] & ((1 << ROW_BITS) - 1)) - start))
            start += batch.num_rows
            offsets, hashes = shingles(full_text(chosen), self.ngram)
            lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(hashes.view(np.int64)))
            columns = [pa.array(component[low:high]), pa.array(wanted[low:high]), chosen.column("id"), lists]
            yield Chunk(pa.RecordBatch.from_arrays(columns, names=SET.names).cast(SET), batch.num_rows)


MEMBER = pa.schema(
    [
        ("bucket", pa.int32()),
        ("component", pa.int64()),
        ("is_edge", pa.bool_()),
        ("a", pa.int64()),
        ("b", pa.int64()),
        ("id", pa.binary()),
        ("shingles", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class EmitMembers:
    """Sets and pairs to the bucket of their component; a set's row is in column `a`."""

    sets: Dataset
    edges: Dataset
    num_buckets: int

    def __call__(self, split: list[Any]) -> Iterator[pa.RecordBatch]:
        kind, number = split
        dataset = self.sets if kind == "sets" else self.edges
        for batch in dataset.read_split(number):
            size = batch.num_rows
            component = batch.column("component")
            bucket = buckets_of(hash_array(component), self.num_buckets)
            if kind == "sets":
                tail = [
                    pa.repeat(False, size), batch.column("row"), pa.nulls(size, pa.int64()),
                    batch.column("id").cast(pa.binary()), batch.column("shingles"),
                ]  # fmt: skip
            else:
                tail = [
                    pa.repeat(True, size), batch.column("a"), batch.column("b"),
                    pa.nulls(size, pa.binary()), pa.nulls(size, MEMBER.field("shingles").type),
                ]  # fmt: skip
            yield pa.RecordBatch.from_arrays([bucket, component, *tail], names=MEMBER.names).cast(MEMBER)


@dataclass(frozen=True)
class Verify:
    """Exact Jaccard of every pair; those at or above the threshold are written, smaller id first."""

    threshold: float

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        pairs_in = 0

        def verified() -> Iterator[pa.RecordBatch]:
            nonlocal pairs_in
            for table in groups(batches, ["component"]):
                pairs_in += pc.sum(table["is_edge"]).as_py()
                yield self._verify(table)

        yield from recut(verified())
        yield Chunk(None, pairs_in)

    def _verify(self, table: pa.Table) -> pa.RecordBatch:
        """Whole components at once."""
        is_edge = table["is_edge"].combine_chunks()
        sets = table.filter(pc.invert(is_edge)).sort_by("a").combine_chunks()
        edges = table.filter(is_edge)
        rows = sets["a"].to_numpy()
        left = np.searchsorted(rows, edges["a"].to_numpy())
        right = np.searchsorted(rows, edges["b"].to_numpy())
        lists = sets["shingles"].combine_chunks()
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(lists).to_numpy())]).astype(np.int64)
        hashes = lists.flatten().to_numpy().view(np.uint64)
        jaccard = jaccard_pairs(offsets, hashes, left, right)
        return self._pairs(sets, left, right, jaccard)

    def _pairs(self, sets: pa.Table, left: I64, right: I64, jaccard: npt.NDArray[np.float64]) -> pa.RecordBatch:
        # The tolerance lets 4/5 count as 0.8 whatever the rounding of the division.
        good = jaccard >= self.threshold - 1e-12
        left, right = left[good], right[good]
        ids = sets["id"].combine_chunks().cast(ID)
        swap = pc.greater(ids.take(pa.array(left)), ids.take(pa.array(right))).to_numpy(zero_copy_only=False)
        left, right = np.where(swap, right, left), np.where(swap, left, right)
        rows = sets["a"].to_numpy()
        columns = [
            ids.take(pa.array(left)), ids.take(pa.array(right)), pa.array(jaccard[good]),
            pa.array(rows[left]), pa.array(rows[right]),
        ]  # fmt: skip
        return pa.RecordBatch.from_arrays(columns, schema=NEAR_PAIR)


@dataclass(frozen=True)
class JoinPairs:
    """Connected components of the verified pairs in one task; the smallest id survives."""

    pairs: Dataset

    def __call__(self, split: int) -> Iterator[Chunk]:
        left, right = _read_edges(self.pairs, ("a_row", "b_row"))
        if not len(left):
            return
        nodes, labels = components(left, right)
        batches = list(self.pairs.read(["a", "a_row", "b", "b_row"]))
        table = pa.Table.from_batches(batches)
        ends = np.concatenate([table["a_row"].to_numpy(), table["b_row"].to_numpy()])
        ids = pa.chunked_array([*table["a"].chunks, *table["b"].chunks]).combine_chunks()
        _, first = np.unique(ends, return_index=True)
        cluster_id, size, rank = rank_clusters(labels, ids.take(pa.array(first)))
        out = pa.Table.from_arrays([pa.array(nodes), cluster_id, size, rank], schema=HIT)
        for batch in out.to_batches(max_chunksize=OUT_ROWS):
            yield Chunk(batch)
        yield Chunk(None, len(left))


def near(context: Context, rows: Rows, near: NearDedup) -> Rows:
    """Write the near-duplicate datasets of the head of this file, down to DIR/clusters."""
    engine = context.engine
    met = candidate_probability(near.threshold, near.bands, near.rows)
    context.report(f"{'near':>24}  {near.bands} bands of {near.rows} rows meet {met:.1%} of pairs at {near.threshold}")
    columns = ["id", "messages", "verdict"]
    shingling = {"text": TEXT_VERSION, "ngram": near.ngram, "inputs": rows.inputs(columns)}
    banding = {
        "minhash": MINHASH_VERSION,
        **near.model_dump(include={"num_perm", "bands", "rows", "seed", "max_partners"}),
        **shingling,
    }
    buckets = context.num_buckets(rows.num_rows * near.bands * 28)
    bands = Exchange(tuple(rows.splits), EmitBands(rows, near, buckets), BAND, ("band", "key", "row"), buckets)
    job = context.job("candidates", "EDGE", EDGE, banding, rows)
    candidates = context.committed(engine.shuffle(job, bands, PairUp(near.max_partners)))

    job = context.job("edges", "EDGE", EDGE, {"candidates": candidates.manifest.fingerprint}, rows)
    edges = context.committed(engine.map(job, [0], JoinCandidates(candidates)))

    job = context.job("sets", "SET", SET, {**shingling, "edges": edges.manifest.fingerprint}, rows)
    nodes = Exchange((0,), EmitNodes(edges), NODE, ("row",), len(rows.splits))
    sets = context.committed(engine.shuffle(job, nodes, WriteSets(rows, near.ngram)))

    buckets = context.num_buckets(2 * sum(part.bytes for part in sets.manifest.parts))
    members = Exchange(
        (*(["sets", split] for split in range(sets.manifest.splits)), ["edges", 0]),
        EmitMembers(sets, edges, buckets), MEMBER, ("component", "is_edge", "a", "b"), buckets,
    )  # fmt: skip
    identity = {"sets": sets.manifest.fingerprint, "edges": edges.manifest.fingerprint, "threshold": near.threshold}
    job = context.job("pairs", "PAIR", NEAR_PAIR, identity, rows)
    pairs = context.committed(engine.shuffle(job, members, Verify(near.threshold)))

    job = context.job("near_hits", "HIT", HIT, {"pairs": pairs.manifest.fingerprint}, rows)
    hits = context.committed(engine.map(job, [0], JoinPairs(pairs)))
    return mark_hits(context, rows, hits, Mark("near", "near_duplicate", with_clusters=True))
