"""Streams of rows with row keys, against plain Python, for every way to cut them."""

import itertools
import pickle
import uuid
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.schema import ID
from etl.stages.keyed import (
    OUT_ROWS,
    Changes,
    Counted,
    EmitInputs,
    Input,
    RowFeed,
    bucket_of_hash128,
    buckets_of,
    counted_distinct_rows,
    distinct,
    first_of_groups,
    hashed_buckets,
    int64_schema,
    live_rows,
    recut,
    reduced,
    routed,
    row_keys,
    rows_with_found,
    slices,
    source_places,
    splits_of,
    uuid_texts,
)
from etl.storage.location import Location
from tests.etl.stages.toybatches import ToyRows, cut_at, verdict_column
from tests.etl.storage.builds import commit

cuts = st.lists(st.integers(0, 40), max_size=6)


# --- the map side --------------------------------------------------------------------------------------------------


def test_a_row_key_holds_the_split_and_the_row():
    assert row_keys(3, 5, 2).tolist() == [(3 << 32) + 5, (3 << 32) + 6]
    assert row_keys(0, 0, 0).tolist() == []
    assert splits_of(row_keys(3, 5, 2)).equals(pa.array([3, 3], pa.int32()))


def test_live_rows_have_the_keys_of_their_places_over_all_row_groups():
    groups = [
        pa.record_batch([pa.array([0, 1, 2]), verdict_column(3, dropped=[1])], ["n", "verdict"]),
        pa.record_batch([pa.array([3, 4]), verdict_column(2, dropped=[0, 1])], ["n", "verdict"]),
        pa.record_batch([pa.array([5]), verdict_column(1)], ["n", "verdict"]),
    ]
    found = list(live_rows(ToyRows([], groups), 1, ["n"]))
    assert [batch.column("n").to_pylist() for batch, _ in found] == [[0, 2], [], [5]]
    assert [keys.tolist() for _, keys in found] == [[1 << 32, (1 << 32) + 2], [], [(1 << 32) + 5]]


def test_the_place_of_a_source_is_that_among_the_sources_of_the_recipe():
    batch = pa.record_batch([pa.array(["b", "a", "b"])], ["source_dataset"])
    assert source_places(batch, ("a", "b")).to_pylist() == [1, 0, 1]
    with pytest.raises(AssertionError, match="a source that the recipe does not have"):
        source_places(batch, ("a",))


@given(st.lists(st.integers(-(2**63), 2**63 - 1)), st.integers(1, 50))
def test_buckets_are_the_remainders_of_unsigned_keys(keys, num_buckets):
    found = buckets_of(np.array(keys, np.int64), num_buckets)
    assert found.type == pa.int32()
    assert found.to_pylist() == [key % 2**64 % num_buckets for key in keys]


def test_the_rows_of_one_split_spread_over_all_buckets():
    """Row keys 0, 64, 128 … have one remainder by 64."""
    keys = np.arange(0, 64 * 2000, 64, dtype=np.int64)
    assert set(buckets_of(keys, 64).to_pylist()) == {0}
    counts = np.bincount(hashed_buckets(keys, 64).to_numpy(), minlength=64)
    assert counts.min() > 10


def test_the_bucket_of_a_128_bit_hash_follows_from_its_first_half():
    hashes = pa.array([(7).to_bytes(8, "little") + bytes(8), (8).to_bytes(8, "little") + b"\xff" * 8], pa.binary(16))
    assert bucket_of_hash128(hashes, 5).to_pylist() == [2, 3]


def test_a_routed_schema_has_plain_binaries_behind_a_bucket():
    found = routed(pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("id", ID, nullable=False)]))
    assert found == pa.schema([("bucket", pa.int32()), ("row", pa.int64()), ("id", pa.binary())])


def doubled(batch, num_buckets):
    """A batch twice, beside the number of buckets."""
    columns = [pa.array([num_buckets] * batch.num_rows, pa.int32()), batch.column("n")]
    yield from [pa.record_batch(columns, ["bucket", "n"])] * 2


def negated(batch, num_buckets):
    yield pa.record_batch([pa.array([-num_buckets] * batch.num_rows, pa.int32()), batch.column("m")], ["bucket", "n"])


def test_every_input_of_a_shuffle_sends_its_own_lines(tmp_path):
    one, other = int64_schema("n"), int64_schema("m", "k")
    ones = [[pa.record_batch([[1, 2]], one)], [pa.record_batch([[3]], one), pa.record_batch([[4]], one)]]
    others = [[pa.record_batch([[5], [0]], other)]]
    emit = EmitInputs(
        {
            "ones": Input(commit(Location.of(str(tmp_path / "ones")), one, ones).ref, ["n"], doubled),
            "others": Input(commit(Location.of(str(tmp_path / "others")), other, others).ref, ["m"], negated),
        },
        7,
    )
    assert emit.splits == (["ones", 0], ["ones", 1], ["others", 0])
    sent = [[batch.to_pydict() for batch in pickle.loads(pickle.dumps(emit))(split)] for split in emit.splits]
    three, four = {"bucket": [7], "n": [3]}, {"bucket": [7], "n": [4]}
    assert sent == [
        [{"bucket": [7, 7], "n": [1, 2]}] * 2, [three, three, four, four], [{"bucket": [-7], "n": [5]}],
    ]  # fmt: skip


# --- the reducers --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=6, unique_by=lambda group: group[0]), cuts)
@pytest.mark.parametrize("kind", ["binary", "int64"])
def test_rows_know_the_first_of_their_group_however_the_stream_is_cut(kind, groups, where):
    keys = [key for key, size in sorted(groups) for _ in range(size)]
    column = pa.array([bytes([key]) for key in keys], pa.binary()) if kind == "binary" else pa.array(keys, pa.int64())
    batches = list(cut_at(pa.table({"key": column, "n": pa.array(range(len(keys)), pa.int64())}), where))
    found = {}
    for table, first in first_of_groups(batches, "key"):
        assert len(table) <= max(batch.num_rows for batch in batches) + 1
        numbers = table["n"].to_pylist()
        found |= {number: numbers[place] for number, place in zip(numbers, first, strict=True)}
    assert found == {number: keys.index(key) for number, key in enumerate(keys)}


@given(st.lists(st.integers(0, 30), max_size=30), cuts, st.lists(st.integers(0, 35), max_size=5))
def test_a_feed_gives_every_row_once_at_its_turn_however_the_stream_is_cut(rows, where, asked):
    table = pa.table({"row": pa.array(sorted(rows), pa.int64()), "n": pa.array(range(len(rows)), pa.int64())})
    feed = RowFeed(cut_at(table, where), table.schema)
    seen = 0
    for last in sorted(asked):
        given_now = feed.until(last).to_pydict()
        expected = [n for n, row in enumerate(sorted(rows)) if row <= last][seen:]
        assert given_now["n"] == expected
        assert given_now["row"] == [sorted(rows)[n] for n in expected]
        seen += len(expected)


@given(
    st.lists(st.integers(1, 5), max_size=4),
    st.lists(st.integers(0, 19), max_size=30),
    cuts,
)
def test_what_was_found_comes_with_the_row_group_of_its_row_however_the_stream_is_cut(sizes, found, where):
    """Several hits for a row, none for others, the last row of a group and the first of the next one alike."""
    num_rows, first = sum(sizes), 3 << 32
    found = sorted(row for row in found if row < num_rows)
    starts = np.cumsum([0, *sizes]).tolist()
    groups = [pa.record_batch({"n": range(start, end)}) for start, end in itertools.pairwise(starts)]
    stream = pa.table({"n": pa.array(found, pa.int64()), "row": pa.array([first + row for row in found], pa.int64())})
    rows = ToyRows([], [], [], groups)
    pieces = list(rows_with_found(rows, 3, ["n"], cut_at(stream, where), stream.schema))
    assert [batch.column("n").to_pylist() for batch, _ in pieces] == [group.column("n").to_pylist() for group in groups]
    assert all(hits.schema == stream.schema for _, hits in pieces)
    assert [hits["n"].to_pylist() for _, hits in pieces] == [
        [row for row in found if start <= row < end] for start, end in itertools.pairwise(starts)
    ]
    for batch, hits in pieces:
        assert batch.column("n").take(hits["row"].combine_chunks()).to_pylist() == hits["n"].to_pylist()


@given(st.lists(st.tuples(st.sampled_from([-(2**63), -1, 0, 2**63 - 1]), st.integers(0, 1)), max_size=12), cuts)
def test_a_row_that_differs_from_the_one_before_is_told_over_all_batches(rows, where):
    columns = np.array(rows, np.int64).reshape(-1, 2).T
    changes = Changes()
    borders = [0, *sorted(min(cut, len(rows)) for cut in where), len(rows)]
    found = np.concatenate([changes.push(columns[:, start:end]) for start, end in itertools.pairwise(borders)], axis=1)
    before = [(None, None), *rows]
    assert found.T.tolist() == [
        [mine != theirs for mine, theirs in zip(row, last, strict=True)]
        for row, last in zip(rows, before[: len(rows)], strict=True)
    ]


@pytest.mark.parametrize("batch_rows", [1, 3, 10, 16, 100])
def test_row_groups_do_not_depend_on_the_batches_that_arrive(batch_rows):
    table = pa.table({"n": range(33)})
    chunks = [chunk.batch for chunk in recut(table.to_batches(max_chunksize=batch_rows), rows=8)]
    assert [batch.num_rows for batch in chunks] == [8, 8, 8, 8, 1]
    assert [n for batch in chunks for n in batch.column("n").to_pylist()] == list(range(33))


def test_a_reducer_writes_row_groups_then_its_counts():
    table = pa.table({"n": range(OUT_ROWS + 5)})
    evens = []

    def take_even(batches):
        for batch in batches:
            kept = batch.filter(pa.array(batch.column("n").to_numpy() % 2 == 0))
            evens.append(kept.num_rows)
            yield pa.concat_batches([kept, kept])

    chunks = list(reduced(table.to_batches(max_chunksize=1000), take_even, lambda: {"evens": sum(evens)}))
    assert [chunk.batch.num_rows for chunk in chunks[:-1]] == [OUT_ROWS, 6]
    assert (chunks[-1].batch, chunks[-1].rows_in, chunks[-1].distributions) == (
        None, OUT_ROWS + 5, {"evens": OUT_ROWS // 2 + 3},
    )  # fmt: skip


def test_a_bucket_without_rows_still_gives_its_counts():
    (chunk,) = reduced(iter([]), lambda batches: batches)
    assert (chunk.batch, chunk.rows_in, chunk.distributions) == (None, 0, {})


def test_a_counted_stream_knows_what_has_passed():
    counted = Counted(pa.table({"n": range(5)}).to_batches(max_chunksize=2))
    seen = [(batch.num_rows, counted.rows) for batch in counted]
    assert seen == [(2, 2), (2, 4), (1, 5)]


def test_slices_cut_only_batches_that_are_too_large():
    batches = [pa.record_batch({"n": [0, 1, 2, 3, 4]}), pa.record_batch({"n": [5]})]
    assert [batch.column("n").to_pylist() for batch in slices(batches, 2)] == [[0, 1], [2, 3], [4], [5]]


# --- columns and ids -----------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3))))
def test_distinct_rows_are_sorted(pairs):
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    assert list(zip(*(column.tolist() for column in distinct(one, other)), strict=True)) == sorted(set(pairs))


@given(st.lists(st.tuples(*[st.integers(-2, 2) | st.integers(-(2**63), 2**63 - 1)] * 3)))
def test_distinct_rows_are_counted_and_sorted_by_every_column(rows):
    *columns, times = counted_distinct_rows(np.array(rows, np.int64).reshape(-1, 3))
    found = zip(*(column.tolist() for column in (*columns, times)), strict=True)
    assert [(tuple(row), count) for *row, count in found] == sorted(Counter(rows).items())


def test_int64_columns_have_no_nulls():
    assert int64_schema("a", "b") == pa.schema(
        [pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.int64(), nullable=False)]
    )


@given(st.lists(st.none() | st.binary(min_size=16, max_size=16), max_size=5))
def test_ids_read_as_uuids(values):
    assert uuid_texts(pa.array(values, ID)).to_pylist() == [value and str(uuid.UUID(bytes=value)) for value in values]
