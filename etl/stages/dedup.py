"""Duplicates: exact by content hash, near by MinHash candidates checked by exact Jaccard.

Hashes, signatures' bands and row keys cross the shuffles; a document's shingle set crosses once for each block of pairs
that it is in, mostly one, and only when it is a candidate. Datasets of a run, each committed and resumable:

    exact_hits   LOSER    duplicates by content hash                      shuffle by hash
    exact        VERDICT  aligned                                         shuffle by split
    candidates   MET      pairs that share a band                         shuffle by band
    edges        EDGE     the same pairs with their block                 one task
    sets         SET      shingle sets of the rows in those pairs         shuffle by split
    pairs        PAIR     pairs with Jaccard >= threshold                 shuffle by block
    near_hits    HIT      connected components of the pairs               one task
    clusters     CLUSTER  aligned, with verdicts                          shuffle by split

A worker holds one batch of what came to it and BLOCK_BYTES of shingle sets, however many rows share a band or a
content; the two tasks over all pairs hold about 150 bytes for each row that is in a pair.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.dedup.blocks import CLASS_BITS, Blocks, class_bytes, size_class
from etl.dedup.candidates import CandidateStream
from etl.dedup.clusters import Components, rank_clusters
from etl.dedup.minhash import MINHASH_VERSION, band_hashes, candidate_probability, signatures
from etl.dedup.verify import jaccard_pairs
from etl.engine import Exchange
from etl.errors import DataError
from etl.hashing import fixed_binary, hash128, hash_array, hash_columns, signed
from etl.messages import full_text, instruction_text, response_text
from etl.recipe import NearDedup
from etl.schema import ID, PAIR, PROMPT
from etl.stages.context import Context
from etl.stages.hits import (
    HIT,
    LOSER,
    OUT_ROWS,
    Counted,
    Mark,
    RowFeed,
    bucket_of_hash128,
    buckets_of,
    first_of_groups,
    living,
    losers,
    mark_hits,
    recut,
    row_keys,
    slices,
)
from etl.storage.aligned import ROW_BITS, Rows
from etl.storage.dataset import Chunk, Dataset
from etl.text import TEXT_VERSION, normalise, shingles

I64 = npt.NDArray[np.int64]

MAX_NODES = 50_000_000
"""Rows in pairs that one task may join to components: 7 GB. The number of pairs does not matter."""
BLOCK_BYTES = 32 << 20
"""Shingle sets that verification holds at once. It decides how candidate components are cut, never which pairs come."""
PAIR_BLOCK = 1 << 18
"""Candidate pairs that one task makes distinct at once: 8 MB."""
_KEY_SEED = 0x6B6579
_PUSH_ROWS = 1 << 11
"""Rows that are paired at once: in a hot band each gives up to max_partners pairs of 32 bytes."""
_VERIFY_ROWS = 1 << 12
"""Sets and pairs that are taken at once."""
_MEMBER_BYTES = 8 << 20
"""Shingle sets of one batch on its way to the blocks."""

MET = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("a", "b", "a_key", "b_key")])
"""Row keys of a candidate pair, and the keys under which their bands were sorted."""
EDGE = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("block", "a", "b")])
SET = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", ID, nullable=False),
        pa.field("blocks", pa.list_(pa.int64()), nullable=False),
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
    """Groups of equal content, sorted by row digest and id: LOSER rows for all but the first."""
    counted = Counted(batches)
    yield from recut(_all_but_first(counted))
    yield Chunk(None, counted.rows)


def _all_but_first(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for table, first in first_of_groups(batches, "content"):
        yield losers(table, first, np.arange(len(first)) > first)


def exact(context: Context, rows: Rows) -> Rows:
    """Write DIR/exact_hits and DIR/exact: rows of equal normalised content but the first by digest get a verdict."""
    num_buckets = context.num_buckets(rows.num_rows * 56)
    job = context.job(
        "exact_hits", "LOSER", LOSER, {"text": TEXT_VERSION}, rows.tables([*PROMPT.names, "verdict"]), rows
    )
    exchange = Exchange(
        tuple(rows.splits), EmitContent(rows, num_buckets), CONTENT, ("content", "digest", "id", "row"), num_buckets
    )
    hits = context.shuffle(job, exchange, exact_hits)
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
            order = stream_keys(batch.column("id"), np.diff(offsets))
            flat = bands.ravel()
            columns = [
                buckets_of(flat, self.num_buckets),
                pa.array(flat),
                pa.array(np.repeat(order, near.bands)),
                pa.array(np.repeat(keys, near.bands)),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=BAND)


def stream_keys(ids: pa.Array, num_shingles: I64) -> I64:
    """What rows of equal bands are sorted by: a hash of the id whose lowest bits are the set's size class."""
    low = np.int64((1 << CLASS_BITS) - 1)
    return (hash_array(ids, _KEY_SEED).view(np.int64) & ~low) | size_class(num_shingles)


def set_bytes(keys: I64) -> I64:
    """At most so many bytes has the shingle set of a row with that key."""
    return class_bytes(keys & np.int64((1 << CLASS_BITS) - 1))


@dataclass(frozen=True)
class PairUp:
    """Candidate pairs inside the groups of equal bands; the order inside a group is a hash of the id."""

    max_partners: int

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        counted = Counted(batches)
        stream = CandidateStream(self.max_partners)
        for pairs in _blocks(self._pairs(counted, stream), PAIR_BLOCK):
            met = pa.Table.from_arrays([pa.array(column) for column in distinct(*pairs.T)], schema=MET)
            yield from (Chunk(batch) for batch in met.to_batches(max_chunksize=OUT_ROWS))
        yield Chunk(None, counted.rows, {}, {"pairs_left_out": stream.num_left_out} if stream.num_left_out else {})

    def _pairs(self, batches: Iterable[pa.RecordBatch], stream: CandidateStream) -> Iterator[I64]:
        """Columns of MET, int64 [pairs, 4], smaller row key first."""
        tail = np.empty((0, 2), np.int64)
        seen = 0
        for batch in slices(batches, _PUSH_ROWS):
            mine = np.stack([batch.column("row").to_numpy(), batch.column("key").to_numpy()], axis=1)
            rows = np.concatenate([tail, mine])
            ordinals = np.arange(seen, seen + batch.num_rows, dtype=np.int64)
            left, right = stream.push(batch.column("band").to_numpy(), ordinals)
            first = seen - len(tail)
            seen += batch.num_rows
            left, right = left - first, right - first
            swap = rows[left, 0] > rows[right, 0]
            left, right = np.where(swap, right, left), np.where(swap, left, right)
            yield np.stack([rows[left, 0], rows[right, 0], rows[left, 1], rows[right, 1]], axis=1)
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


def distinct(*columns: I64) -> list[I64]:
    """The distinct rows of some columns, sorted."""
    order = np.lexsort(columns[::-1])
    ranked = [column[order] for column in columns]
    fresh = np.zeros(len(order), np.bool_)
    fresh[:1] = True
    for column in ranked:
        fresh[1:] |= column[1:] != column[:-1]
    return [column[fresh] for column in ranked]


class Distinct:
    """The distinct rows of some columns that come in pieces, in at most three times their memory."""

    def __init__(self, num_columns: int) -> None:
        self._pieces = [np.empty((num_columns, 0), np.int64)]
        self._num_pending = 0

    def add(self, *columns: I64) -> None:
        self._pieces.append(np.stack(columns))
        self._num_pending += len(columns[0])
        if self._num_pending > max(PAIR_BLOCK, len(self)):
            self._compact()

    def columns(self) -> I64:
        """Sorted, int64 [columns, rows]."""
        self._compact()
        return self._pieces[0]

    def __len__(self) -> int:
        return self._pieces[0].shape[1]

    def _compact(self) -> None:
        columns = np.concatenate(self._pieces, axis=1)
        self._pieces = []
        self._pieces = [np.stack(distinct(*columns))]
        self._num_pending = 0


def _check_nodes(dataset: Dataset, num_nodes: int) -> None:
    if num_nodes > MAX_NODES:
        raise DataError(
            f"the pairs of {dataset.folder} join more than {MAX_NODES:,} rows, which is what one task may hold; raise "
            "dedup.near.rows or dedup.near.threshold"
        )


@dataclass(frozen=True)
class JoinCandidates:
    """All candidate pairs in one task, with their block; holds the rows that are in pairs, never the pairs."""

    candidates: Dataset
    block_bytes: int

    def __call__(self, split: int) -> Iterator[Chunk]:
        keyed = Distinct(2)
        for a, b, a_key, b_key in self._pairs():
            keyed.add(*distinct(np.concatenate([a, b]), np.concatenate([a_key, b_key])))
            _check_nodes(self.candidates, len(keyed))
        nodes, keys = keyed.columns()
        graph = Components(nodes)
        for a, b, *_ in self._pairs():
            graph.join(graph.find(a), graph.find(b))
        blocks = Blocks.of(nodes[graph.labels()], set_bytes(keys), keys, self.block_bytes)
        for a, b, *_ in self._pairs():
            ranked = distinct(blocks.of_pairs(graph.find(a), graph.find(b)), a, b)
            yield Chunk(pa.RecordBatch.from_arrays([pa.array(column) for column in ranked], schema=EDGE), len(a))

    def _pairs(self) -> Iterator[list[I64]]:
        for batch in self.candidates.read():
            yield [column.to_numpy() for column in batch.columns]


NODE = pa.schema([("bucket", pa.int32()), ("row", pa.int64()), ("block", pa.int64())])


@dataclass(frozen=True)
class EmitNodes:
    """Both ends of every pair, and its block, to the split that holds them."""

    edges: Dataset

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.edges.read_split(split):
            block, a, b = (column.to_numpy() for column in batch.columns)
            rows, blocks = distinct(np.concatenate([a, b]), np.concatenate([block, block]))
            columns = [(rows >> ROW_BITS).astype(np.int32), rows, blocks]
            yield pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=NODE)


@dataclass(frozen=True)
class WriteSets:
    """The shingle sets of the candidate rows of one split, and the blocks that need them; holds a row group's."""

    rows: Rows
    ngram: int

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        feed = RowFeed(batches, NODE)
        start = 0
        for batch in self.rows.read(split, ["id", "messages"]):
            keys = row_keys(split, start, batch.num_rows)
            start += batch.num_rows
            nodes = feed.until(int(keys[-1]))
            rows, blocks = distinct(nodes["row"].to_numpy(), nodes["block"].to_numpy())
            wanted, first = np.unique(rows, return_index=True)
            chosen = batch.take(pa.array(wanted - keys[0]))
            offsets, hashes = shingles(full_text(chosen), self.ngram)
            columns = [
                pa.array(wanted),
                chosen.column("id"),
                pa.ListArray.from_arrays(pa.array(np.append(first, len(rows)), pa.int32()), pa.array(blocks)),
                pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(hashes.view(np.int64))),
            ]
            yield Chunk(pa.RecordBatch.from_arrays(columns, names=SET.names).cast(SET), batch.num_rows)


MEMBER = pa.schema(
    [
        ("bucket", pa.int32()),
        ("block", pa.int64()),
        ("is_edge", pa.bool_()),
        ("a", pa.int64()),
        ("b", pa.int64()),
        ("id", pa.binary()),
        ("shingles", pa.list_(pa.int64())),
    ]
)


@dataclass(frozen=True)
class EmitMembers:
    """Sets and pairs to the bucket of their block; a set's row is in column `a`, and it comes before all pairs."""

    sets: Dataset
    edges: Dataset
    num_buckets: int

    def __call__(self, split: list[Any]) -> Iterator[pa.RecordBatch]:
        kind, number = split
        if kind == "sets":
            for batch in self.sets.read_split(number):
                yield from self._sets(batch)
        else:
            for batch in self.edges.read_split(number):
                size = batch.num_rows
                tail = [batch.column("b"), pa.nulls(size, pa.binary()), pa.nulls(size, MEMBER.field("shingles").type)]
                yield self._members(batch.column("block"), True, [batch.column("a"), *tail])

    def _sets(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Each row once for each of its blocks, _MEMBER_BYTES at a time."""
        parents = pc.list_parent_indices(batch.column("blocks"))
        blocks = batch.column("blocks").flatten()
        sizes = pc.list_value_length(batch.column("shingles")).to_numpy()[parents.to_numpy()] * 8
        piece = np.cumsum(sizes, dtype=np.int64) // _MEMBER_BYTES
        borders = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(piece)]
        for start, end in itertools.pairwise(borders):
            rows = batch.take(parents.slice(start, end - start))
            tail = [pa.nulls(end - start, pa.int64()), rows.column("id").cast(pa.binary()), rows.column("shingles")]
            yield self._members(blocks.slice(start, end - start), False, [rows.column("row"), *tail])

    def _members(self, block: pa.Array, is_edge: bool, columns: list[pa.Array]) -> pa.RecordBatch:
        bucket = buckets_of(hash_array(block), self.num_buckets)
        head = [bucket, block, pa.repeat(is_edge, len(block))]
        return pa.RecordBatch.from_arrays([*head, *columns], names=MEMBER.names).cast(MEMBER)


class HeldSets:
    """Shingle sets of some blocks, found by (block, row).

    Attributes:
        ids: uint8 [sets, 16].
        offsets: int64 [sets + 1]; set s has hashes[offsets[s] : offsets[s + 1]].
        hashes: uint64.
    """

    def __init__(self) -> None:
        self.blocks = np.empty(0, np.int64)
        self.rows = np.empty(0, np.int64)
        self.ids = np.empty((0, 16), np.uint8)
        self.offsets = np.zeros(1, np.int64)
        self.hashes = np.empty(0, np.uint64)

    def keep(self, block: int) -> None:
        """Forget the sets of all other blocks."""
        low, high = np.searchsorted(self.blocks, [block, block + 1])
        if high - low == len(self.blocks):
            return
        first, last = self.offsets[low], self.offsets[high]
        self.blocks, self.rows = self.blocks[low:high].copy(), self.rows[low:high].copy()
        self.ids, self.hashes = self.ids[low:high].copy(), self.hashes[first:last].copy()
        self.offsets = self.offsets[low : high + 1] - first

    def add(self, sets: pa.RecordBatch) -> None:
        """Take the next sets, which are sorted by block and row and come after all that are held."""
        lists = sets.column("shingles")
        ends = np.cumsum(pc.list_value_length(lists).to_numpy(), dtype=np.int64)
        self.blocks = np.concatenate([self.blocks, sets.column("block").to_numpy()])
        self.rows = np.concatenate([self.rows, sets.column("a").to_numpy()])
        self.ids = np.concatenate([self.ids, fixed_binary(sets.column("id").cast(ID))])
        self.hashes = np.concatenate([self.hashes, lists.flatten().to_numpy().view(np.uint64)])
        self.offsets = np.concatenate([self.offsets, self.offsets[-1] + ends])

    def find(self, blocks: I64, rows: I64) -> I64:
        """Places of sets that are held, int64."""
        known_blocks, known_rows = np.unique(self.blocks), np.unique(self.rows)

        def code(block: I64, row: I64) -> I64:
            return np.searchsorted(known_blocks, block) * len(known_rows) + np.searchsorted(known_rows, row)

        codes, wanted = code(self.blocks, self.rows), code(blocks, rows)
        places = np.searchsorted(codes, wanted)
        assert np.array_equal(codes[np.minimum(places, len(codes) - 1)], wanted), "a pair came without its sets"
        return places


@dataclass(frozen=True)
class Verify:
    """Exact Jaccard of every pair; those at or above the threshold are written, smaller id first.

    The sets of a block come before its pairs, so a batch of rows and the sets of the open block are all there is
    in memory.
    """

    threshold: float

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        pairs_in = 0

        def verified() -> Iterator[pa.RecordBatch]:
            nonlocal pairs_in
            held = HeldSets()
            last = np.full((3, 1), -1, np.int64)
            for batch in slices(batches, _VERIFY_ROWS):
                is_edge = batch.column("is_edge")
                sets, edges = batch.filter(pc.invert(is_edge)), batch.filter(is_edge)
                if sets.num_rows:
                    held.keep(batch.column("block")[0].as_py())
                    held.add(sets)
                if edges.num_rows:
                    # A pair that met in bands of several buckets comes several times, one after the other.
                    pairs = np.stack([edges.column(name).to_numpy() for name in ("block", "a", "b")])
                    fresh = (np.diff(pairs, axis=1, prepend=last) != 0).any(axis=0)
                    last = pairs[:, -1:]
                    pairs_in += int(fresh.sum())
                    yield self._verify(held, pairs[:, fresh])
                held.keep(batch.column("block")[-1].as_py())

        yield from recut(verified())
        yield Chunk(None, pairs_in)

    def _verify(self, held: HeldSets, pairs: I64) -> pa.RecordBatch:
        block, a, b = pairs
        left, right = held.find(block, a), held.find(block, b)
        jaccard = jaccard_pairs(held.offsets, held.hashes, left, right)
        # The tolerance lets 4/5 count as 0.8 whatever the rounding of the division.
        good = jaccard >= self.threshold - 1e-12
        left, right = left[good], right[good]
        swap = _greater(held.ids[left], held.ids[right])
        left, right = np.where(swap, right, left), np.where(swap, left, right)
        columns = [
            _binary16(held.ids[left]), _binary16(held.ids[right]), pa.array(jaccard[good]),
            pa.array(held.rows[left]), pa.array(held.rows[right]),
        ]  # fmt: skip
        return pa.RecordBatch.from_arrays(columns, schema=NEAR_PAIR)


def _greater(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether each 16-byte id comes after its counterpart, bytewise: bool [rows]."""
    a, b = np.ascontiguousarray(one).view(">u8"), np.ascontiguousarray(other).view(">u8")
    return (a[:, 0] > b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] > b[:, 1]))


def _binary16(ids: npt.NDArray[np.uint8]) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(ID, len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))])


@dataclass(frozen=True)
class JoinPairs:
    """Connected components of the verified pairs in one task, which holds their rows; the smallest id survives."""

    pairs: Dataset

    def __call__(self, split: int) -> Iterator[Chunk]:
        found = Distinct(3)
        num_pairs = 0
        for batch in self.pairs.read(["a", "a_row", "b", "b_row"]):
            for name in ("a", "b"):
                halves = fixed_binary(batch.column(name)).view(np.int64)
                found.add(*distinct(batch.column(f"{name}_row").to_numpy(), halves[:, 0], halves[:, 1]))
            num_pairs += batch.num_rows
            _check_nodes(self.pairs, len(found))
        rows, first, second = found.columns()
        if not num_pairs:
            return
        graph = Components(rows)
        for batch in self.pairs.read(["a_row", "b_row"]):
            graph.join(*(graph.find(column.to_numpy()) for column in batch.columns))
        ids = _binary16(np.stack([first, second], axis=1).view(np.uint8))
        cluster_id, size, rank = rank_clusters(graph.labels(), ids)
        out = pa.Table.from_arrays([pa.array(rows), cluster_id, size, rank], schema=HIT)
        for batch in out.to_batches(max_chunksize=OUT_ROWS):
            yield Chunk(batch)
        yield Chunk(None, num_pairs)


def near(context: Context, rows: Rows, near: NearDedup) -> Rows:
    """Write the near-duplicate datasets of the head of this file, down to DIR/clusters."""
    met = candidate_probability(near.threshold, near.bands, near.rows)
    context.report(f"{'near':>24}  {near.bands} bands of {near.rows} rows meet {met:.1%} of pairs at {near.threshold}")
    texts = rows.tables(["id", "messages", "verdict"])
    shingling = {"text": TEXT_VERSION, "ngram": near.ngram}
    banding = {
        "minhash": MINHASH_VERSION,
        **near.model_dump(include={"num_perm", "bands", "rows", "seed", "max_partners"}),
        **shingling,
    }
    buckets = context.num_buckets(rows.num_rows * near.bands * 28)
    bands = Exchange(tuple(rows.splits), EmitBands(rows, near, buckets), BAND, ("band", "key", "row"), buckets)
    job = context.job("candidates", "MET", MET, banding, texts, rows)
    candidates = context.shuffle(job, bands, PairUp(near.max_partners))

    job = context.job("edges", "EDGE", EDGE, {"block_bytes": BLOCK_BYTES}, (candidates,), rows)
    edges = context.map(job, [0], JoinCandidates(candidates, BLOCK_BYTES))

    job = context.job("sets", "SET", SET, shingling, (edges, *texts), rows)
    nodes = Exchange((0,), EmitNodes(edges), NODE, ("row",), len(rows.splits))
    sets = context.shuffle(job, nodes, WriteSets(rows, near.ngram))

    buckets = context.num_buckets(2 * sum(part.bytes for part in sets.manifest.parts))
    members = Exchange(
        (*(["sets", split] for split in range(sets.num_splits)), ["edges", 0]),
        EmitMembers(sets, edges, buckets), MEMBER, ("block", "is_edge", "a", "b"), buckets,
    )  # fmt: skip
    job = context.job("pairs", "PAIR", NEAR_PAIR, {"threshold": near.threshold}, (sets, edges), rows)
    pairs = context.shuffle(job, members, Verify(near.threshold))

    job = context.job("near_hits", "HIT", HIT, {}, (pairs,), rows)
    hits = context.map(job, [0], JoinPairs(pairs))
    return mark_hits(context, rows, hits, Mark("near", "near_duplicate", with_clusters=True))
