"""Candidates for near duplicates: pairs of rows that share a band of their MinHash signatures and agree in a sketch.

`EmitBands` sends the band hashes of each live row, and of its canary (etl.dedup.canaries), to the bucket of the band;
`PairUp` pairs rows of equal bands (etl.dedup.candidates) and writes CANDIDATE, table MET. A row sends one line of
`band_schema` for each band, 44 bytes with sketches of 128 bits. A worker holds one batch of bands and PAIR_BLOCK pairs,
however many rows share a band.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.arrays import I64, U64, Bools
from etl.dedup import canaries, candidates
from etl.dedup.blocks import CLASS_BITS, size_class
from etl.dedup.canaries import Levels
from etl.dedup.minhash import signatures, sketches
from etl.dedup.near import NearDedup, Sets
from etl.hashing import hash_array
from etl.messages import full_text, is_formal
from etl.mixture.sampling import in_sample, purpose_seed
from etl.rows import RowsRef
from etl.schema import count
from etl.stages.keyed import OUT_ROWS, buckets_of, counted_distinct_rows, int64_schema, live_rows, slices
from etl.storage.build import Chunk
from etl.text import distinct_hashes

PAIR_BLOCK = 1 << 20
"""Candidate pairs among which one task removes repeats at once: 40 MB."""
_KEY_SEED = 0x6B6579
_HASH_ROWS = 1 << 14
"""Rows whose signatures are made at once: a row group can hold hundreds of thousands of short texts."""
_PUSH_ROWS = 1 << 11
"""Rows that are paired at once: in a hot band each gives up to max_partners pairs of 40 bytes."""

CANDIDATE = pa.schema(
    [
        *int64_schema("a", "b", "a_key", "b_key", "alike", places=("a", "b")),
        count(pa.field("bands", pa.int64(), nullable=False)),
    ]
)
"""Row keys of a candidate pair, the keys by which their bands were sorted, the smaller one first (a canary second), 1
where both are rows whose sketches are equal, and the number of bands in which they met: of those in one PAIR_BLOCK,
since repeats are only removed within it."""
CANDIDATE_VERSION = 5
"""1 had the smaller row key first and no `bands`; 2 did not count canaries by script; 3 had no `alike`, 4 had the sizes
of sets in the keys, not those of n-grams with repeats."""


@dataclass(frozen=True)
class MakeCanaries:
    """The canaries of a run: a seeded sample of rows, each copied with edits.

    Args:
        near: the measure of similarity.
        fraction: share of the rows that have a canary.
    """

    near: NearDedup
    fraction: float

    @property
    def levels(self) -> Levels:
        return Levels(self.near.threshold)

    def chosen(self, ids: pa.Array) -> Bools:
        """Which rows are copied, if their texts are long enough: bool [rows]."""
        seed = purpose_seed("canaries", self.near.seed)
        return in_sample(ids, seed, self.fraction).to_numpy(zero_copy_only=False)

    def edited(self, ids: pa.Array, texts: pa.Array, formal: Bools) -> pa.Array:
        """The copies of some chosen rows, null where the text is too short: string [rows]."""
        signed = self.near.signed(len(texts), formal)
        return canaries.edit_all(ids, texts, self.levels, self.near.tokens_of_ngram, signed)


BAND = pa.schema([("bucket", pa.int32()), ("band", pa.int64()), ("key", pa.int64()), ("row", pa.int64())])
"""A band of a row; the words of its sketch follow (`band_schema`)."""


def band_schema(num_words: int) -> pa.Schema:
    """BAND with sketches of this many words."""
    return pa.schema([*BAND, *((f"sketch_{word}", pa.int64()) for word in range(num_words))])


def band_bytes(near: NearDedup) -> int:
    """Bytes of all bands of one row in the shuffle."""
    return near.banding[0] * sum(field.type.bit_width // 8 for field in band_schema(near.num_words))


@dataclass(frozen=True)
class EmitBands:
    """The band hashes of each live row's MinHash signature, and of the canaries'."""

    rows: RowsRef
    near: NearDedup
    canaries: MakeCanaries
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch, keys in live_rows(self.rows, split, ["id", "messages", "skill_bucket"]):
            for start in range(0, batch.num_rows, _HASH_ROWS):
                yield from self._piece(batch.slice(start, _HASH_ROWS), keys[start : start + _HASH_ROWS])

    def _piece(self, batch: pa.RecordBatch, keys: I64) -> Iterator[pa.RecordBatch]:
        ids, texts = batch.column("id"), full_text(batch)
        formal = is_formal(batch)
        ngrams = self.near.ngrams(texts, formal)
        # A text without a visible character resembles nothing.
        filled = np.diff(ngrams[0]) > 0
        some = pick(ngrams, filled)
        yield self._bands(some, stream_keys(hash_array(ids.filter(pa.array(filled)), _KEY_SEED), some), keys[filled])
        chosen = self.canaries.chosen(ids)
        if chosen.any():
            mask = pa.array(chosen)
            yield from self._canaries(
                ids.filter(mask), texts.filter(mask), keys[chosen], pick(ngrams, chosen), formal[chosen]
            )

    def _bands(self, ngrams: Sets, order: I64, rows: I64) -> pa.RecordBatch:
        near = self.near
        signed = signatures(*ngrams, near.num_perm, near.seed)
        flat = near.bands_of(signed).ravel()
        num_bands = len(flat) // max(1, len(rows))
        words = np.repeat(sketches(signed, 1), num_bands, axis=0)
        return _band_batch(flat, np.repeat(order, num_bands), np.repeat(rows, num_bands), words, self.num_buckets)

    def _canaries(
        self, ids: pa.Array, texts: pa.Array, rows: I64, ngrams: Sets, formal: Bools
    ) -> Iterator[pa.RecordBatch]:
        edited = self.canaries.edited(ids, texts, formal)
        made = np.flatnonzero(edited.is_valid().to_numpy(zero_copy_only=False))
        copies = self.near.shingles(edited.drop_null(), formal[made])
        levels = self.canaries.levels.of(canaries.similarities(_sets_of(pick(ngrams, made)), copies))
        useful = levels >= 0
        copies, made = pick(copies, useful), made[useful]
        scripts = canaries.main_scripts(texts.take(pa.array(made)))
        keys = canaries.canary_rows(rows[made], levels[useful], scripts)
        if len(keys):
            hashes = hash_array(ids.take(pa.array(made)), _KEY_SEED + 1)
            yield self._bands(copies, stream_keys(hashes, copies), keys)
            none = np.zeros((2 * len(keys), self.near.num_words), np.uint64)
            membership = np.full(2 * len(keys), candidates.MEMBERSHIP_KEY)
            bands = np.tile(hash_array(pa.array(keys)).view(np.int64), 2)
            yield _band_batch(bands, membership, np.append(rows[made], keys), none, self.num_buckets)


def _sets_of(ngrams: Sets) -> Sets:
    """Each n-gram once, in copied arrays."""
    return distinct_hashes(ngrams[0], ngrams[1].copy())


def pick(sets: Sets, which: npt.NDArray[Any]) -> Sets:
    """The sets, or n-grams, of some rows, by place or by mask; the same arrays if a mask takes all."""
    if which.dtype == np.bool_ and which.all():
        return sets
    places = np.flatnonzero(which) if which.dtype == np.bool_ else which
    array = pa.LargeListArray.from_arrays(pa.array(sets[0]), pa.array(sets[1][: sets[0][-1]]))
    taken = array.take(pa.array(places))
    return taken.offsets.to_numpy() - taken.offsets[0].as_py(), taken.flatten().to_numpy()


def _band_batch(band: I64, key: I64, row: I64, sketch: U64, num_buckets: int) -> pa.RecordBatch:
    words = (pa.array(np.ascontiguousarray(word).view(np.int64)) for word in sketch.T)
    columns = [buckets_of(band, num_buckets), pa.array(band), pa.array(key), pa.array(row), *words]
    return pa.RecordBatch.from_arrays(columns, schema=band_schema(sketch.shape[1]))


def stream_keys(hashes: U64, ngrams: Sets) -> I64:
    """Sort key of rows with equal bands: a hash whose lowest bits are the size class of the row's n-grams.

    A row has at least as many n-grams as its set has elements; the exact size would need a sort of every set.
    """
    low = np.int64((1 << CLASS_BITS) - 1)
    return (hashes.view(np.int64) & ~low) | size_class(np.diff(ngrams[0]))


@dataclass(frozen=True)
class PairUp:
    """Candidate pairs inside the groups of equal bands; the order inside a group is a hash of the id."""

    near: NearDedup

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        stream = self.near.candidate_stream()
        for pairs in _blocks((stream.push(rows_of(batch)) for batch in slices(batches, _PUSH_ROWS)), PAIR_BLOCK):
            columns = [pa.array(column) for column in counted_distinct_rows(pairs)]
            found = pa.Table.from_arrays(columns, schema=CANDIDATE)
            yield from (Chunk(batch) for batch in found.to_batches(max_chunksize=OUT_ROWS))
        counts = stream.finish()
        yield Chunk(None, counts.num_rows, {}, _distributions(counts))


def rows_of(batch: pa.RecordBatch) -> candidates.Rows:
    """The rows of a batch of bands."""
    band, key, row, *words = (column.to_numpy() for column in batch.columns[1:])
    return candidates.Rows(band, key, row, np.stack(words, axis=1).view(np.uint64))


def _distributions(counts: candidates.CandidateCounts) -> dict[str, Any]:
    found: dict[str, Any] = {"pairs_compared": counts.num_compared}
    if counts.hot_bands:
        found["pairs_left_out"] = counts.num_left_out
        found["similar_left_out"] = counts.num_similar_left_out
        found["hot_bands"] = counts.hot_bands
    if counts.canaries:
        found["canaries"] = counts.canaries
    return found


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
