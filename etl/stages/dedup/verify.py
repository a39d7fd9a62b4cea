"""Exact comparison of candidate pairs: the sets of their rows, brought together by block, and their Jaccard similarity.

`WriteSets` writes SET, the compared form of each row in a candidate pair; `Verify` gets the sets of a block
(etl.stages.dedup.blocks), then its pairs, and writes NEAR_PAIR, table PAIR, for those at or above the threshold. A set
takes 8 bytes a shingle and crosses the shuffle once for each block of its row, mostly one. A worker holds the sets of
one block and one batch of arriving rows. If all sets fit in one task, `VerifyAll` does without blocks and without a
sort of sets: it holds them all and looks them up by row.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import F64, I64, Bools
from etl.dedup import canaries
from etl.dedup.near import NearDedup, Sets
from etl.dedup.survivor import Survivor
from etl.hashing import binary_buffers, hash_array
from etl.messages import full_text, is_formal
from etl.rows import RowsRef
from etl.schema import ID, PAIR, ROW_KEY, encoded, place
from etl.stages.dedup.bands import MakeCanaries
from etl.stages.dedup.blocks import EDGE
from etl.stages.keyed import (
    Changes,
    buckets_of,
    distinct,
    recut,
    rest_digest,
    rows_with_found,
    slices,
    source_places,
    splits_of,
    to_batch,
    to_numpy,
)
from etl.storage.build import Chunk
from etl.storage.dataset import DatasetRef

_VERIFY_ROWS = 1 << 12
"""Number of sets and pairs that are taken at once."""
_AT_ONCE = 1 << 16
"""Number of pairs that are taken at once if all sets are held."""
_MEMBER_BYTES = 8 << 20
"""Bytes of the shingle sets of one batch that is sent to the blocks."""

SET = pa.schema(
    [
        ROW_KEY,
        pa.field("id", ID, nullable=False),
        pa.field("source", pa.int32(), nullable=False),
        pa.field("example", pa.string(), nullable=False),
        pa.field("preference", pa.int64(), nullable=False),
        pa.field("digest", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64()),
        pa.field("signs", pa.int64()),
        place(pa.field("blocks", pa.list_(pa.int64()), nullable=False)),
        encoded(pa.field("shingles", pa.binary(), nullable=False), "plain"),
    ]
)
"""Sorted by its row or, for a canary, the row that it copies. `source` is a place among the recipe's sources, `digest`
distinguishes rows of one id (`rest_digest`), `tokens` and `signs` are `NearDedup.sign_digests` of its text, null where
no other set can be equal to this one."""
SET_VERSION = 4
"""1 had no `digest`, and a content digest that covered row keys and blocks; 2 had no `tokens` and `signs`, 3 had them
of every row."""
NEAR_PAIR = pa.schema(
    [
        *PAIR,
        place(pa.field("a_row", pa.int64(), nullable=False)),
        place(pa.field("b_row", pa.int64(), nullable=False)),
    ]
)
PAIR_VERSION = 4
"""1 had a content digest that covered the row keys; 2 did not count the pairs that differ only in signs, 3 did not
count canaries by script."""


# --- sets ------------------------------------------------------------------------------------------------------------

WANTED_SET = pa.schema(
    [
        ("bucket", pa.int32()),
        ("row", pa.int64()),
        ("node", pa.int64()),
        ("block", pa.int64()),
        ("alike", pa.int64()),
    ]
)
"""`node` is the row key of a candidate, `row` that of the row whose text it has (for a canary, another one); `alike` is
1 where the set of a partner may be equal."""


@dataclass(frozen=True)
class EmitWantedSets:
    """Sends both ends of every pair, and its block, to the splits that hold them."""

    edges: DatasetRef

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch in self.edges.read_split(split):
            block, a, b, alike = to_numpy(batch, ("block", "a", "b", "alike"))
            ends = distinct(np.concatenate([a, b]), np.tile(block, 2), np.tile(alike, 2))
            rows = canaries.bases(ends[0])
            yield to_batch([splits_of(rows), rows, *ends], WANTED_SET)


@dataclass(frozen=True)
class WriteSets:
    """The compared form of the candidates of one split, and the blocks that need it; holds that of a row group."""

    rows: RowsRef
    near: NearDedup
    canaries: MakeCanaries
    survivor: Survivor
    sources: tuple[str, ...]

    def __call__(self, split: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        for batch, found in rows_with_found(self.rows, split, self.columns, batches, WANTED_SET):
            row, node, block, alike = to_numpy(found, ("row", "node", "block", "alike"))
            places, nodes, blocks = distinct(row, node, block)
            nodes, first = _runs(nodes)
            told = np.isin(nodes, node[alike > 0])
            lists = pa.ListArray.from_arrays(pa.array(np.append(first, len(blocks)), pa.int32()), pa.array(blocks))
            chosen = batch.take(pa.array(places[first]))
            columns = [
                pa.array(nodes), chosen.column("id"), source_places(chosen, self.sources),
                chosen.column("source_example_id"), pa.array(self.survivor.preference(chosen)),
                rest_digest(self.rows, chosen), *self._compared(chosen, canaries.which_canaries(nodes), told, lists),
            ]  # fmt: skip
            yield Chunk(pa.RecordBatch.from_arrays(columns, names=SET.names).cast(SET), batch.num_rows)

    @property
    def columns(self) -> list[str]:
        """The columns that are read of each row."""
        named = ("id", "messages", "skill_bucket", "source_example_id")
        return list(dict.fromkeys([*named, *self.rows.rest_of_id, *self.survivor.reads]))

    def _compared(self, chosen: pa.RecordBatch, copies: Bools, told: Bools, blocks: pa.Array) -> list[pa.Array]:
        """The columns of SET from `tokens` on, with digests for the rows in `told`."""
        texts, formal = full_text(chosen), is_formal(chosen)
        if copies.any():
            mask = pa.array(copies)
            edited = self.canaries.edited(chosen.column("id").filter(mask), texts.filter(mask), formal[copies])
            texts = pc.replace_with_mask(texts, mask, edited)
        of_told = pa.array(np.cumsum(told) - 1, mask=~told)
        digests = self.near.sign_digests(texts.filter(pa.array(told)), formal[told])
        compared = self.near.compared(self.near.shingles(texts, formal))
        return [*(pa.array(digest).take(of_told) for digest in digests), blocks, packed(compared)]


def _runs(values: I64) -> tuple[I64, I64]:
    """The first of each run of equal values, and its place."""
    first = np.flatnonzero(np.concatenate([[True] * min(1, len(values)), values[1:] != values[:-1]]))
    return values[first], first


def packed(sets: Sets) -> pa.Array:
    """Sets as bytes, 8 an element, for the shuffle."""
    offsets, hashes = sets
    assert offsets[-1] < 1 << 28, "a record batch holds at most 2 GB of sets"
    buffers = [None, pa.py_buffer((offsets * 8).astype(np.int32)), pa.py_buffer(hashes)]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def unpacked(array: pa.Array) -> Sets:
    """The sets of `packed`, without a copy if they start at a multiple of 8 bytes."""
    data, offsets = binary_buffers(array)
    hashes = data[offsets[0] : offsets[-1]].view(np.uint64)
    return (offsets - offsets[0]) // 8, np.require(hashes, requirements="A")


# --- pairs by block ------------------------------------------------------------------------------------------------

_DETAILS = ("id", "source", "example", "tokens", "signs")
BLOCK_MEMBER = pa.schema(
    [
        ("bucket", pa.int32()),
        ("block", pa.int64()),
        ("is_edge", pa.bool_()),
        ("a", pa.int64()),
        ("b", pa.int64()),
        ("id", pa.binary()),
        ("source", pa.int32()),
        ("example", pa.string()),
        ("tokens", pa.int64()),
        ("signs", pa.int64()),
        ("shingles", pa.binary()),
    ]
)


def set_lines(sets: pa.RecordBatch, num_buckets: int) -> Iterator[pa.RecordBatch]:
    """Sends each set to the bucket of each of its blocks, _MEMBER_BYTES at a time; its row is in column `a`."""
    parents = pc.list_parent_indices(sets.column("blocks"))
    blocks = sets.column("blocks").flatten()
    sizes = pc.binary_length(sets.column("shingles")).to_numpy()[parents.to_numpy()]
    is_once = len(parents) == sets.num_rows and bool((np.diff(parents.to_numpy()) == 1).all())
    piece = np.cumsum(sizes, dtype=np.int64) // _MEMBER_BYTES
    borders = [0, *(np.flatnonzero(np.diff(piece)) + 1).tolist(), len(piece)]
    for start, end in itertools.pairwise(borders):
        # Mostly a row is in one block, and this is a slice.
        rows = sets.slice(start, end - start) if is_once else sets.take(parents.slice(start, end - start))
        tail = [pa.nulls(end - start, pa.int64()), rows.column("id").cast(pa.binary())]
        tail += [rows.column(name) for name in ("source", "example", "tokens", "signs", "shingles")]
        yield _members(blocks.slice(start, end - start), False, [rows.column("row"), *tail], num_buckets)


def edge_lines(edges: pa.RecordBatch, num_buckets: int) -> Iterator[pa.RecordBatch]:
    """Sends each pair to the bucket of its block, where it comes after all sets of the block."""
    tail = [pa.nulls(edges.num_rows, field.type) for field in list(BLOCK_MEMBER)[5:]]
    yield _members(edges.column("block"), True, [edges.column("a"), edges.column("b"), *tail], num_buckets)


def _members(block: pa.Array, is_edge: bool, columns: list[pa.Array], num_buckets: int) -> pa.RecordBatch:
    head = [buckets_of(hash_array(block), num_buckets), block, pa.repeat(is_edge, len(block))]
    return pa.RecordBatch.from_arrays([*head, *columns], names=BLOCK_MEMBER.names).cast(BLOCK_MEMBER)


class HeldSets:
    """The compared form of the rows of some blocks, found by (block, row).

    Attributes:
        details: _DETAILS of each set.
        sets: offsets and hashes.
    """

    def __init__(self) -> None:
        self.blocks = np.empty(0, np.int64)
        self.rows = np.empty(0, np.int64)
        self.details = pa.schema([BLOCK_MEMBER.field(name) for name in _DETAILS]).empty_table()
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
        """Take the next sets, which are sorted by block and row and come after all held ones."""
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


class AllSets(HeldSets):
    """The compared form of all candidates, found by row.

    Args:
        batches: of SET, in any order.
        most: upper bound on the elements of all sets.

    Attributes:
        rest: the columns of SET except the blocks and the sets.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], most: int) -> None:
        super().__init__()
        names = [name for name in SET.names if name not in ("blocks", "shingles")]
        ends, hashes, rest = [np.zeros(1, np.int64)], np.empty(most, np.uint64), []
        for batch in batches:
            offsets, values = unpacked(batch.column("shingles"))
            first = ends[-1][-1]
            hashes[first : first + len(values)] = values
            ends.append(first + offsets[1:])
            rest.append(batch.select(names))
        self.rest = pa.Table.from_batches(rest, pa.schema([SET.field(name) for name in names])).combine_chunks()
        self.details = self.rest.select(_DETAILS)
        self.rows = self.rest["row"].to_numpy()
        self.sets = (np.concatenate(ends), hashes[: ends[-1][-1]])
        self._order = np.argsort(self.rows)
        self._sorted = self.rows[self._order]

    def find(self, blocks: I64, rows: I64) -> I64:
        """Places of sets, int64; a row has one set, whatever the block."""
        return self.places_of(rows)

    def places_of(self, rows: I64) -> I64:
        """Places of the sets of some rows, int64."""
        places = np.searchsorted(self._sorted, rows)
        assert np.array_equal(self._sorted[np.minimum(places, len(self.rows) - 1)], rows), "a row came without its set"
        return self._order[places]


class SetsAtHand:
    """The sets of a run that one task holds, read once for all datasets that the task writes. Its pickle is small."""

    def __init__(self, ref: DatasetRef) -> None:
        self._ref = ref

    def __getstate__(self) -> dict[str, Any]:
        return {"_ref": self._ref}

    @functools.cached_property
    def all(self) -> AllSets:
        """The sets, read on first use."""
        splits = range(self._ref.num_splits)
        # Parts hold sets uncompressed.
        most = sum(part.bytes for split in splits for part in self._ref.parts_of(split)) // 8
        return AllSets((batch for split in splits for batch in self._ref.read_split(split)), most)


def _parted(members: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """The sets and the pairs of a batch of BLOCK_MEMBER; a batch of one kind is not copied."""
    is_edge = members.column("is_edge")
    if is_edge.true_count in (0, len(is_edge)):
        none = members.slice(0, 0)
        return (none, members) if is_edge.true_count else (members, none)
    return members.filter(pc.invert(is_edge)), members.filter(is_edge)


@dataclass(frozen=True)
class Verify:
    """The similarity of every pair; those at or above the threshold are written, canaries counted.

    The sets of a block come before its pairs, so only a batch of rows and the sets of the open block are in memory.
    """

    near: NearDedup
    sources: tuple[str, ...]

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        return self.verified(_with_sets(batches))

    def verified(self, pairs_of: Iterable[tuple[HeldSets, I64]]) -> Iterator[Chunk]:
        """The rows to write for pairs.

        Args:
            pairs_of: sets at hand, and some distinct pairs of their rows: block, `a` and `b`, int64 [3, pairs].
        """
        pairs_in, in_signs = 0, 0
        found = np.zeros(1024, np.int64)

        def reported() -> Iterator[pa.RecordBatch]:
            nonlocal pairs_in, in_signs
            for held, pairs in pairs_of:
                copies = canaries.which_canaries(pairs[2])
                pairs_in += int((~copies).sum())
                kinds = self._similar(held, pairs[:, copies]) >> canaries.SCRIPT_BIT & np.int64(1023)
                np.add.at(found, kinds, 1)
                batch, num_in_signs = self._verify(held, pairs[:, ~copies])
                in_signs += num_in_signs
                yield batch

        yield from recut(reported())
        counts = {"canaries": canaries.by_kind(found), "in_signs": in_signs}
        yield Chunk(None, pairs_in, {}, {name: count for name, count in counts.items() if count})

    def _similar(self, held: HeldSets, pairs: I64) -> I64:
        """The second ends of the similar pairs."""
        block, a, b = pairs
        return b[self._judge(held, held.find(block, a), held.find(block, b))[1]]

    def _judge(self, held: HeldSets, left: I64, right: I64) -> tuple[F64, Bools]:
        jaccard = self.near.similarity(held.sets, left, right)
        return jaccard, self.near.is_duplicate(jaccard)

    def _verify(self, held: HeldSets, pairs: I64) -> tuple[pa.RecordBatch, int]:
        """NEAR_PAIR of the similar pairs, and how many of them differ only in signs."""
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
        in_signs = pc.and_(pc.equal(one["tokens"], other["tokens"]), pc.not_equal(one["signs"], other["signs"]))
        arrays = [column.combine_chunks() for column in table.columns]
        return pa.RecordBatch.from_arrays(arrays, schema=NEAR_PAIR), pc.sum(in_signs).as_py() or 0


def _with_sets(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[HeldSets, I64]]:
    """The distinct pairs of a sorted stream of BLOCK_MEMBER, each with the sets of its block."""
    held = HeldSets()
    changes = Changes()
    for batch in slices(batches, _VERIFY_ROWS):
        sets, edges = _parted(batch)
        if sets.num_rows:
            held.keep(batch.column("block")[0].as_py())
            held.add(sets)
        if edges.num_rows:
            # A pair found in bands of several buckets comes several times, in sequence.
            pairs = np.stack(to_numpy(edges, ("block", "a", "b")))
            yield held, pairs[:, changes.push(pairs).any(axis=0)]
        held.keep(batch.column("block")[-1].as_py())


@dataclass(frozen=True)
class VerifyAll:
    """All pairs in one task that holds the sets, in the order in which `Verify` gets them from a sort."""

    verify: Verify
    at_hand: SetsAtHand
    edges: DatasetRef

    def __call__(self, split: int) -> Iterator[Chunk]:
        return self.verify.verified(self._pairs())

    def _pairs(self) -> Iterator[tuple[HeldSets, I64]]:
        names = ["block", "a", "b"]
        batches = (batch for split in range(self.edges.num_splits) for batch in self.edges.read_split(split, names))
        table = pa.Table.from_batches(batches, pa.schema([EDGE.field(name) for name in names]))
        pairs = np.stack(distinct(*to_numpy(table, names)))
        for start in range(0, pairs.shape[1], _AT_ONCE):
            yield self.at_hand.all, pairs[:, start : start + _AT_ONCE]


def _comes_after(details: pa.Table, left: I64, right: I64) -> Bools:
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
