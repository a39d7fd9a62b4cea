"""Near duplicates: MinHash candidates, checked by the exact Jaccard similarity of their shingle sets.

Bands and row keys cross the shuffles; a document's shingle set crosses once for each block of pairs that it is in,
mostly one, and only when it is a candidate. Datasets, each committed and resumable:

    candidates   MET    pairs that share a band and whose sketches agree   shuffle by band
    edges        EDGE   the same pairs with their block                    etl.stages.dedup.components
    sets         SET    what is compared of the rows in those pairs        shuffle by split
    pairs        PAIR   pairs with Jaccard >= threshold                    shuffle by block

and from there on etl.stages.dedup.clusters. With `verify: estimate` a row's set is a sketch of its signature, 128
bytes. Canaries (etl.dedup.canaries) go the same way; `pairs` counts those that were found and leaves them out.

A worker holds one batch of what came to it and BLOCK_BYTES of shingle sets, however many rows share a band.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64, U64
from etl.dedup import canaries, candidates
from etl.dedup.blocks import CLASS_BITS, size_class
from etl.dedup.canaries import Levels
from etl.dedup.minhash import MINHASH_VERSION, candidate_probability, signatures, sketches
from etl.dedup.near import NearDedup, Sets
from etl.dedup.survivor import Survivor
from etl.engine import Exchange
from etl.hashing import binary_buffers, hash_array
from etl.messages import full_text
from etl.mixture.sampling import in_sample, purpose_seed
from etl.rows import ROW_BITS, Rows
from etl.schema import ID, PAIR
from etl.stages.context import Context
from etl.stages.dedup.components import cut_blocks, distinct
from etl.stages.dedup.marks import (
    OUT_ROWS,
    Counted,
    RowFeed,
    buckets_of,
    living,
    recut,
    row_keys,
    slices,
    source_places,
)
from etl.storage.dataset import Chunk, Dataset
from etl.text import TEXT_VERSION

BLOCK_BYTES = 32 << 20
"""Shingle sets that verification holds at once. It decides how candidate components are cut, never which pairs come."""
PAIR_BLOCK = 1 << 20
"""Candidate pairs that one task makes distinct at once: 32 MB."""
_KEY_SEED = 0x6B6579
_HASH_ROWS = 1 << 14
"""Rows whose signatures are made at once: short texts come by the hundred thousand in a row group."""
_PUSH_ROWS = 1 << 11
"""Rows that are paired at once: in a hot band each gives up to max_partners pairs of 32 bytes."""
_VERIFY_ROWS = 1 << 12
"""Sets and pairs that are taken at once."""
_MEMBER_BYTES = 8 << 20
"""Shingle sets of one batch on its way to the blocks."""
_CHARS_PER_WORD = 6.0

MET = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("a", "b", "a_key", "b_key")])
"""Row keys of a candidate pair, and the keys under which their bands were sorted."""
SET = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("id", ID, nullable=False),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("example", pa.string(), nullable=False),
        pa.field("preference", pa.int64(), nullable=False),
        pa.field("blocks", pa.list_(pa.int64()), nullable=False),
        pa.field("shingles", pa.binary(), nullable=False),
    ]
)
"""Sorted by the row that it is of or, a canary, copies. `source` is a place among the recipe's sources."""
NEAR_PAIR = pa.schema(
    [
        *PAIR,
        pa.field("a_row", pa.int64(), nullable=False),
        pa.field("b_row", pa.int64(), nullable=False),
    ]
)


# --- bands -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MakeCanaries:
    """The canaries of a run: a seeded sample of rows, each copied with edits.

    Args:
        near: what similarity means.
        fraction: share of the rows that have one.
    """

    near: NearDedup
    fraction: float

    @property
    def levels(self) -> Levels:
        return Levels(self.near.threshold)

    def chosen(self, ids: pa.Array) -> npt.NDArray[np.bool_]:
        """Which rows are copied, if their text allows, bool [rows]."""
        seed = purpose_seed("canaries", self.near.seed)
        return in_sample(ids, seed, self.fraction).to_numpy(zero_copy_only=False)

    def edited(self, ids: pa.Array, texts: pa.Array) -> pa.Array:
        """The copies of some rows that were chosen, null where the text is too short: string [rows]."""
        words = float(self.near.ngram) if self.near.unit == "word" else 1 + self.near.ngram / _CHARS_PER_WORD
        return canaries.edit_all(ids, texts, self.levels, words)


BAND = pa.schema([("bucket", pa.int32()), ("band", pa.int64()), ("key", pa.int64()), ("row", pa.int64())])
"""A band of a row; then come the words of its sketch (`band_schema`)."""


def band_schema(num_words: int) -> pa.Schema:
    """BAND with sketches of so many words."""
    return pa.schema([*BAND, *((f"sketch_{word}", pa.int64()) for word in range(num_words))])


def band_bytes(near: NearDedup) -> int:
    """Bytes of all bands of one row on their way."""
    return near.banding[0] * sum(field.type.bit_width // 8 for field in band_schema(near.num_words))


@dataclass(frozen=True)
class EmitBands:
    """The band hashes of each living row's MinHash signature, and of the canaries'."""

    rows: Rows
    near: NearDedup
    canaries: MakeCanaries
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch, keys in living(self.rows, split, ["id", "messages"]):
            for start in range(0, batch.num_rows, _HASH_ROWS):
                yield from self._piece(batch.slice(start, _HASH_ROWS), keys[start : start + _HASH_ROWS])

    def _piece(self, batch: pa.RecordBatch, keys: I64) -> Iterator[pa.RecordBatch]:
        ids, texts = batch.column("id"), full_text(batch)
        sets = self.near.shingles(texts)
        yield self._bands(sets, stream_keys(hash_array(ids, _KEY_SEED), sets), keys)
        chosen = self.canaries.chosen(ids)
        if chosen.any():
            mask = pa.array(chosen)
            yield from self._canaries(ids.filter(mask), texts.filter(mask), keys[chosen], pick(sets, chosen))

    def _bands(self, sets: Sets, order: I64, rows: I64) -> pa.RecordBatch:
        near = self.near
        signed = signatures(*sets, near.num_perm, near.seed)
        flat = near.bands_of(signed).ravel()
        num_bands = len(flat) // max(1, len(rows))
        words = np.repeat(sketches(signed, 1), num_bands, axis=0)
        return _band_batch(flat, np.repeat(order, num_bands), np.repeat(rows, num_bands), words, self.num_buckets)

    def _canaries(self, ids: pa.Array, texts: pa.Array, rows: I64, sets: Sets) -> Iterator[pa.RecordBatch]:
        edited = self.canaries.edited(ids, texts)
        made = np.flatnonzero(edited.is_valid().to_numpy(zero_copy_only=False))
        copies = self.near.shingles(edited.drop_null())
        levels = self.canaries.levels.of(canaries.similarities(pick(sets, made), copies))
        useful = levels >= 0
        copies, made = pick(copies, useful), made[useful]
        keys = canaries.canary_rows(rows[made], levels[useful])
        if len(keys):
            hashes = hash_array(ids.take(pa.array(made)), _KEY_SEED + 1)
            yield self._bands(copies, stream_keys(hashes, copies), keys)
            none = np.zeros((len(keys), self.near.num_words), np.uint64)
            called = np.full(len(keys), candidates.ROLL_CALL)
            yield _band_batch(hash_array(pa.array(keys)).view(np.int64), called, keys, none, self.num_buckets)


def pick(sets: Sets, which: npt.NDArray[Any]) -> Sets:
    """The sets of some rows, by place or by mask."""
    places = np.flatnonzero(which) if which.dtype == np.bool_ else which
    array = pa.LargeListArray.from_arrays(pa.array(sets[0]), pa.array(sets[1][: sets[0][-1]]))
    taken = array.take(pa.array(places))
    return taken.offsets.to_numpy() - taken.offsets[0].as_py(), taken.flatten().to_numpy()


def _band_batch(band: I64, key: I64, row: I64, sketch: U64, num_buckets: int) -> pa.RecordBatch:
    words = (pa.array(np.ascontiguousarray(word).view(np.int64)) for word in sketch.T)
    columns = [buckets_of(band, num_buckets), pa.array(band), pa.array(key), pa.array(row), *words]
    return pa.RecordBatch.from_arrays(columns, schema=band_schema(sketch.shape[1]))


def stream_keys(hashes: U64, sets: Sets) -> I64:
    """What rows of equal bands are sorted by: a hash whose lowest bits are the size class of the row's set."""
    low = np.int64((1 << CLASS_BITS) - 1)
    return (hashes.view(np.int64) & ~low) | size_class(np.diff(sets[0]))


@dataclass(frozen=True)
class PairUp:
    """Candidate pairs inside the groups of equal bands; the order inside a group is a hash of the id."""

    near: NearDedup

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        counted = Counted(batches)
        stream = self.near.candidate_stream()
        for pairs in _blocks((stream.push(rows_of(batch)) for batch in slices(counted, _PUSH_ROWS)), PAIR_BLOCK):
            met = pa.Table.from_arrays([pa.array(column) for column in distinct(*pairs.T)], schema=MET)
            yield from (Chunk(batch) for batch in met.to_batches(max_chunksize=OUT_ROWS))
        yield Chunk(None, counted.rows, {}, _counts(stream.finish()))


def rows_of(batch: pa.RecordBatch) -> candidates.Rows:
    """The rows of a batch of bands."""
    band, key, row, *words = (column.to_numpy() for column in batch.columns[1:])
    return candidates.Rows(band, key, row, np.stack(words, axis=1).view(np.uint64))


def _counts(met: candidates.Met) -> dict[str, Any]:
    counts: dict[str, Any] = {"pairs_compared": met.num_compared}
    if met.hot_bands:
        counts["pairs_left_out"] = met.num_left_out
        counts["similar_left_out"] = met.num_similar_left_out
        counts["hot_bands"] = met.hot_bands
    if met.canaries:
        counts["canaries"] = {str(level): count for level, count in met.canaries.items()}
    return counts


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


# --- sets ------------------------------------------------------------------------------------------------------------

NODE = pa.schema([("bucket", pa.int32()), ("row", pa.int64()), ("node", pa.int64()), ("block", pa.int64())])
"""`node` is the row key of a candidate, `row` that of the row whose text it has: another one for a canary."""


@dataclass(frozen=True)
class EmitNodes:
    """Both ends of every pair, and its block, to the split that holds them."""

    edges: Dataset

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.edges.read_split(split):
            block, a, b = (batch.column(name).to_numpy() for name in ("block", "a", "b"))
            nodes, blocks = distinct(np.concatenate([a, b]), np.concatenate([block, block]))
            rows = canaries.bases(nodes)
            columns = [(rows >> ROW_BITS).astype(np.int32), rows, nodes, blocks]
            yield pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=NODE)


@dataclass(frozen=True)
class WriteSets:
    """What is compared of the candidates of one split, and the blocks that need it; holds a row group's."""

    rows: Rows
    near: NearDedup
    canaries: MakeCanaries
    survivor: Survivor
    sources: tuple[str, ...]

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        feed = RowFeed(batches, NODE)
        start = 0
        for batch in self.rows.read(split, self.columns):
            keys = row_keys(split, start, batch.num_rows)
            start += batch.num_rows
            found = feed.until(int(keys[-1]))
            _, nodes, blocks = distinct(*(found[name].to_numpy() for name in ("row", "node", "block")))
            nodes, first = _runs(nodes)
            lists = pa.ListArray.from_arrays(pa.array(np.append(first, len(blocks)), pa.int32()), pa.array(blocks))
            chosen = batch.take(pa.array(canaries.bases(nodes) - keys[0]))
            columns = [
                pa.array(nodes), chosen.column("id"), source_places(chosen, self.sources),
                chosen.column("source_example_id"), pa.array(self.survivor.preference(chosen)), lists,
                packed(self._compared(chosen, canaries.which_canaries(nodes))),
            ]  # fmt: skip
            yield Chunk(pa.RecordBatch.from_arrays(columns, names=SET.names).cast(SET), batch.num_rows)

    @property
    def columns(self) -> list[str]:
        """What is read of each row."""
        return list(dict.fromkeys(["id", "messages", "source_example_id", *self.survivor.reads]))

    def _compared(self, chosen: pa.RecordBatch, copies: npt.NDArray[np.bool_]) -> Sets:
        texts = full_text(chosen)
        if copies.any():
            mask = pa.array(copies)
            edited = self.canaries.edited(chosen.column("id").filter(mask), texts.filter(mask))
            texts = pc.replace_with_mask(texts, mask, edited)
        return self.near.compared(self.near.shingles(texts))


def _runs(values: I64) -> tuple[I64, I64]:
    """The first of each run of equal values, and its place."""
    first = np.flatnonzero(np.concatenate([[True] * min(1, len(values)), values[1:] != values[:-1]]))
    return values[first], first


def packed(sets: Sets) -> pa.Array:
    """Sets as bytes, 8 an element: what travels."""
    offsets, hashes = sets
    assert offsets[-1] < 1 << 28, "a record batch holds at most 2 GB of sets"
    buffers = [None, pa.py_buffer((offsets * 8).astype(np.int32)), pa.py_buffer(hashes)]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def unpacked(array: pa.Array) -> Sets:
    """The sets of `packed`, without a copy where they lie at a multiple of 8 bytes."""
    data, offsets = binary_buffers(array)
    hashes = data[offsets[0] : offsets[-1]].view(np.uint64)
    return (offsets - offsets[0]) // 8, np.require(hashes, requirements="A")


# --- pairs -----------------------------------------------------------------------------------------------------------

_DETAILS = ("id", "source", "example")
MEMBER = pa.schema(
    [
        ("bucket", pa.int32()),
        ("block", pa.int64()),
        ("is_edge", pa.bool_()),
        ("a", pa.int64()),
        ("b", pa.int64()),
        ("id", pa.binary()),
        ("source", pa.int32()),
        ("example", pa.string()),
        ("shingles", pa.binary()),
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
                tail = [pa.nulls(batch.num_rows, field.type) for field in list(MEMBER)[5:]]
                ends = [batch.column("a"), batch.column("b")]
                yield self._members(batch.column("block"), True, [*ends, *tail])

    def _sets(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Each row once for each of its blocks, _MEMBER_BYTES at a time."""
        parents = pc.list_parent_indices(batch.column("blocks"))
        blocks = batch.column("blocks").flatten()
        sizes = pc.binary_length(batch.column("shingles")).to_numpy()[parents.to_numpy()]
        piece = np.cumsum(sizes, dtype=np.int64) // _MEMBER_BYTES
        borders = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(piece)]
        for start, end in itertools.pairwise(borders):
            rows = batch.take(parents.slice(start, end - start))
            tail = [pa.nulls(end - start, pa.int64()), rows.column("id").cast(pa.binary())]
            tail += [rows.column(name) for name in ("source", "example", "shingles")]
            yield self._members(blocks.slice(start, end - start), False, [rows.column("row"), *tail])

    def _members(self, block: pa.Array, is_edge: bool, columns: list[pa.Array]) -> pa.RecordBatch:
        bucket = buckets_of(hash_array(block), self.num_buckets)
        head = [bucket, block, pa.repeat(is_edge, len(block))]
        return pa.RecordBatch.from_arrays([*head, *columns], names=MEMBER.names).cast(MEMBER)


class HeldSets:
    """What is compared of the rows of some blocks, found by (block, row).

    Attributes:
        details: id, source and example of each set.
        sets: offsets and hashes.
    """

    def __init__(self) -> None:
        self.blocks = np.empty(0, np.int64)
        self.rows = np.empty(0, np.int64)
        self.details = pa.schema([MEMBER.field(name) for name in _DETAILS]).empty_table()
        self.sets: Sets = (np.zeros(1, np.int64), np.empty(0, np.uint64))

    def keep(self, block: int) -> None:
        """Forget the sets of all other blocks."""
        low, high = np.searchsorted(self.blocks, [block, block + 1])
        if high - low == len(self.blocks):
            return
        offsets, hashes = self.sets
        first, last = offsets[low], offsets[high]
        self.blocks, self.rows = self.blocks[low:high].copy(), self.rows[low:high].copy()
        self.details = self.details.slice(low, high - low).combine_chunks()
        self.sets = (offsets[low : high + 1] - first, hashes[first:last].copy())

    def add(self, sets: pa.RecordBatch) -> None:
        """Take the next sets, which are sorted by block and row and come after all that are held."""
        ends, values = unpacked(sets.column("shingles"))
        offsets, hashes = self.sets
        self.blocks = np.concatenate([self.blocks, sets.column("block").to_numpy()])
        self.rows = np.concatenate([self.rows, sets.column("a").to_numpy()])
        self.details = pa.concat_tables([self.details, pa.Table.from_batches([sets.select(_DETAILS)])])
        self.sets = (np.concatenate([offsets, offsets[-1] + ends[1:]]), np.concatenate([hashes, values]))

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
    """The similarity of every pair; those at or above the threshold are written, canaries counted.

    The sets of a block come before its pairs, so a batch of rows and the sets of the open block are all there is
    in memory.
    """

    near: NearDedup
    sources: tuple[str, ...]

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        pairs_in = 0
        found: dict[str, int] = {}

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
                    pairs = pairs[:, fresh]
                    copies = canaries.which_canaries(pairs[2])
                    pairs_in += int((~copies).sum())
                    _count_levels(found, self._similar(held, pairs[:, copies]))
                    yield self._verify(held, pairs[:, ~copies])
                held.keep(batch.column("block")[-1].as_py())

        yield from recut(verified())
        yield Chunk(None, pairs_in, {}, {"canaries": found} if found else {})

    def _similar(self, held: HeldSets, pairs: I64) -> I64:
        """The second ends of the pairs that are similar."""
        block, a, b = pairs
        return b[self._judge(held, held.find(block, a), held.find(block, b))[1]]

    def _judge(self, held: HeldSets, left: I64, right: I64) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        jaccard = self.near.similarity(held.sets, left, right)
        return jaccard, self.near.is_duplicate(jaccard)

    def _verify(self, held: HeldSets, pairs: I64) -> pa.RecordBatch:
        block, a, b = pairs
        left, right = held.find(block, a), held.find(block, b)
        jaccard, good = self._judge(held, left, right)
        left, right = left[good], right[good]
        swap = _comes_after(held.details, left, right)
        left, right = np.where(swap, right, left), np.where(swap, left, right)
        one, other = (held.details.take(pa.array(places)).combine_chunks() for places in (left, right))
        names = pa.array(self.sources, pa.string())
        columns = [
            one["example"], other["example"], pa.array(jaccard[good]), names.take(one["source"].combine_chunks()),
            names.take(other["source"].combine_chunks()), one["id"], other["id"],
            pa.array(held.rows[left]), pa.array(held.rows[right]),
        ]  # fmt: skip
        table = pa.Table.from_arrays(columns, names=NEAR_PAIR.names).cast(NEAR_PAIR)
        return pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=NEAR_PAIR)


def _count_levels(found: dict[str, int], copies: I64) -> None:
    for level in (copies >> canaries.LEVEL_BIT & np.int64(31)).tolist():
        found[str(level)] = found.get(str(level), 0) + 1


def _comes_after(details: pa.Table, left: I64, right: I64) -> npt.NDArray[np.bool_]:
    """Whether the left row's example id comes after the right one's, the shorter first; equal ones go by id."""
    examples, ids = details["example"].combine_chunks(), details["id"].combine_chunks()
    one, other = pa.array(left), pa.array(right)
    lengths = pc.binary_length(examples)
    keys = (lengths, examples, ids)
    after = pa.repeat(False, len(left))
    for key in reversed(keys):
        mine, theirs = key.take(one), key.take(other)
        after = pc.or_(pc.greater(mine, theirs), pc.and_(pc.equal(mine, theirs), after))
    return after.to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class Found:
    """The datasets that near dedup leaves for the clusters."""

    candidates: Dataset
    sets: Dataset
    pairs: Dataset


def find_pairs(context: Context, rows: Rows, near: NearDedup) -> Found:
    """Write DIR/candidates, DIR/edges, DIR/sets and DIR/pairs."""
    num_bands, num_rows = near.banding
    met = candidate_probability(near.threshold, num_bands, num_rows)
    context.report(f"{'near':>24}  {num_bands} bands of {num_rows} rows meet {met:.2%} of pairs at {near.threshold}")
    survivor, sources = context.recipe.dedup.survivor, context.sources
    making = MakeCanaries(near, near.num_canaries / max(1, rows.num_rows))
    shingling = {"text": TEXT_VERSION, "unit": near.unit, "ngram": near.ngram, "canaries": near.num_canaries}
    banding = {
        "minhash": MINHASH_VERSION, "bands": num_bands, "rows": num_rows,
        **near.model_dump(include={"num_perm", "seed", "max_partners", "threshold"}), **shingling,
    }  # fmt: skip
    buckets = context.num_buckets(rows.num_rows * band_bytes(near))
    bands = EmitBands(rows, near, making, buckets)
    order = ("band", "key", "row")
    job = context.job("candidates", "MET", MET, banding, rows.tables(["id", "messages", "verdict"]), rows)
    schema = band_schema(near.num_words)
    candidates = context.shuffle(job, Exchange(tuple(rows.splits), bands, schema, order, buckets), PairUp(near))

    edges = cut_blocks(context, rows, candidates, BLOCK_BYTES)

    writing = WriteSets(rows, near, making, survivor, sources)
    compared = {**shingling, "verify": near.verify, "survivor": survivor.fingerprinted()}
    if near.verify == "estimate":
        compared |= {"minhash": MINHASH_VERSION, "num_perm": near.num_perm, "seed": near.seed}
    job = context.job("sets", "SET", SET, compared, (edges, *rows.tables(writing.columns)), rows)
    nodes = Exchange(tuple(range(edges.num_splits)), EmitNodes(edges), NODE, ("row", "node", "block"), len(rows.splits))
    sets = context.shuffle(job, nodes, writing)

    buckets = context.num_buckets(2 * sum(part.bytes for part in sets.manifest.parts))
    members = Exchange(
        (*(["sets", split] for split in range(sets.num_splits)), *(["edges", n] for n in range(edges.num_splits))),
        EmitMembers(sets, edges, buckets), MEMBER, ("block", "is_edge", "a", "b"), buckets,
    )  # fmt: skip
    job = context.job("pairs", "PAIR", NEAR_PAIR, {"threshold": near.threshold}, (sets, edges), rows)
    return Found(candidates, sets, context.shuffle(job, members, Verify(near, sources)))
