"""Rows of a split by bucket: every wanted one once, in the order of its split, in slices of a bounded size."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.engines import bucket_slices as module
from etl.engines.bucket_slices import bucket_slices

SCHEMA = pa.schema([("bucket", pa.int32()), ("n", pa.int64())])
ROW_BYTES = 12


def emitted(batches, schema=SCHEMA):
    """A map side that emits batches of (bucket, n), and counts in a list how many it has been asked for."""
    asked = []

    def emit(split):
        for batch in batches:
            asked.append(split)
            columns = [[row[place] for row in batch] for place in range(2)]
            yield pa.record_batch([pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)],
                                  schema=schema)  # fmt: skip

    return emit, asked


def sliced(batches, wanted, schema=SCHEMA):
    emit, _ = emitted(batches, schema)
    pieces = list(bucket_slices(emit, "split", SCHEMA, pa.array(wanted).to_numpy(zero_copy_only=False)))
    return [(bucket, piece.column("bucket").to_pylist(), piece.column("n").to_pylist()) for bucket, piece in pieces]


def test_a_slice_is_of_one_bucket_and_keeps_the_order_of_its_rows():
    batches = [[(2, 0), (0, 1), (2, 2)], [(0, 3), (1, 4), (2, 5)]]
    assert sliced(batches, [True, True, True]) == [
        (0, [0, 0], [1, 3]), (1, [1], [4]), (2, [2, 2, 2], [0, 2, 5]),
    ]  # fmt: skip


def test_rows_of_buckets_that_are_not_wanted_are_left_out():
    batches = [[(2, 0), (0, 1), (2, 2)], [(0, 3), (1, 4)]]
    assert sliced(batches, [False, True, False]) == [(1, [1], [4])]
    assert sliced(batches, [False, False, False]) == []


@pytest.mark.parametrize("batches", [[], [[]], [[], []]])
def test_a_split_without_rows_gives_nothing(batches):
    assert sliced(batches, [True]) == []


def test_batches_are_cast_to_the_schema_of_the_shuffle():
    wide = pa.schema([("bucket", pa.int64()), ("n", pa.int32())])
    emit, _ = emitted([[(1, 7), (0, 8)]], wide)
    pieces = [piece for _, piece in bucket_slices(emit, None, SCHEMA, pa.array([1, 1]).to_numpy().astype(bool))]
    assert [piece.schema for piece in pieces] == [SCHEMA, SCHEMA]


@pytest.mark.parametrize(("slice_rows", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (5, [5])])
def test_slices_of_a_bucket_are_cut_by_bytes(monkeypatch, slice_rows, sizes):
    monkeypatch.setattr(module, "SLICE_BYTES", slice_rows * ROW_BYTES)
    pieces = sliced([[(1, n) for n in range(5)], [(0, 5)]], [True, True])
    assert pieces[0] == (0, [0], [5])
    assert [len(rows) for _, _, rows in pieces[1:]] == sizes
    assert [n for _, _, rows in pieces[1:] for n in rows] == list(range(5))


def test_rows_are_held_until_there_are_enough_to_slice(monkeypatch):
    """Four rows are enough: a slice comes of two batches of two at a time, and of the last one."""
    monkeypatch.setattr(module, "HELD_BYTES", 4 * ROW_BYTES)
    emit, asked = emitted([[(1, n), (0, n + 1)] for n in range(0, 10, 2)])
    pieces = bucket_slices(emit, "split", SCHEMA, pa.array([1, 1]).to_numpy().astype(bool))
    assert next(pieces)[1].column("n").to_pylist() == [1, 3]
    assert asked == ["split", "split"]
    rest = [(bucket, piece.column("n").to_pylist()) for bucket, piece in pieces]
    assert rest == [(1, [0, 2]), (0, [5, 7]), (1, [4, 6]), (0, [9]), (1, [8])]


def test_a_long_batch_of_one_bucket_goes_uncopied_after_what_is_held(monkeypatch):
    monkeypatch.setattr(module, "WHOLE_BYTES", 3 * ROW_BYTES)
    emit, _ = emitted([[(1, 0), (0, 1)], [(1, 2), (1, 3), (1, 4)], [(1, 5), (0, 6), (1, 7)], [(0, 8)]])
    given = list(emit("split"))
    pieces = list(bucket_slices(lambda _: given, "split", SCHEMA, pa.array([1, 1]).to_numpy().astype(bool)))
    found = [(bucket, piece.column("n").to_pylist()) for bucket, piece in pieces]
    assert found == [(0, [1]), (1, [0]), (1, [2, 3, 4]), (0, [6, 8]), (1, [5, 7])]
    assert pieces[2][1].column("n").buffers()[1].address == given[1].column("n").buffers()[1].address


@given(
    batches=st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99)), max_size=8), max_size=6),
    wanted=st.lists(st.booleans(), min_size=4, max_size=4),
    held_rows=st.integers(1, 9),
    slice_rows=st.integers(1, 5),
    whole_rows=st.integers(1, 9),
)
def test_every_wanted_row_comes_once_whatever_the_limits(batches, wanted, held_rows, slice_rows, whole_rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HELD_BYTES", held_rows * ROW_BYTES)
        patch.setattr(module, "SLICE_BYTES", slice_rows * ROW_BYTES)
        patch.setattr(module, "WHOLE_BYTES", whole_rows * ROW_BYTES)
        pieces = sliced(batches, wanted)
    assert all(set(buckets) == {bucket} and len(rows) <= slice_rows for bucket, buckets, rows in pieces)
    for bucket in range(4):
        expected = [n for batch in batches for b, n in batch if b == bucket and wanted[bucket]]
        assert [n for b, _, rows in pieces if b == bucket for n in rows] == expected
