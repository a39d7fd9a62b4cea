"""The external sort: the same order as Python's, whatever spills, in memory that does not grow with the rows."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from etl import sorting
from etl.sorting import SortedRows, cut_by_bytes, merge, take_rows

SCHEMA = pa.schema([("word", pa.binary()), ("text", pa.string()), ("yes", pa.bool_()), ("n", pa.int64())])
ORDER = ("word", "text", "yes", "n")
TEXTS = st.text(alphabet="aé\U0001f600\uffff", max_size=2)
ROWS = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=2),
        st.none() | TEXTS,
        st.none() | st.booleans(),
        st.none() | st.integers(-3, 3) | st.sampled_from([-(2**63), 2**63 - 1]),
    ),
    max_size=60,
)


def to_batches(rows, size):
    return [
        pa.RecordBatch.from_pylist([dict(zip(ORDER, row, strict=True)) for row in rows[at : at + size]], SCHEMA)
        for at in range(0, len(rows), size)
    ]


def expected_key(row):
    """Nulls first; text by its UTF-8 bytes."""
    return [(value is not None, value.encode() if isinstance(value, str) else value) for value in row]


def sort(batches, order, run_bytes):
    with SortedRows(order, run_bytes) as rows:
        for batch in batches:
            rows.add(batch)
        return [tuple(row.values()) for batch in rows.sorted() for row in batch.to_pylist()]


@given(ROWS, st.integers(1, 9), st.integers(1, 3000))
def test_rows_come_in_the_order_of_python_whatever_spills(rows, batch_rows, run_bytes):
    assert sort(to_batches(rows, batch_rows), ORDER, run_bytes) == sorted(rows, key=expected_key)


@given(ROWS, st.integers(1, 9), st.integers(1, 3000))
def test_rows_that_tie_are_all_there(rows, batch_rows, run_bytes):
    made = sort(to_batches(rows, batch_rows), ("n",), run_bytes)
    assert [row[3] for row in made] == sorted((row[3] for row in rows), key=lambda n: (n is not None, n))
    assert sorted(made, key=expected_key) == sorted(rows, key=expected_key)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9), max_size=60),
    st.integers(1, 9),
    st.none() | st.integers(1, 500),
)
def test_rows_that_may_go_are_alone_under_their_first_key_and_most_of_them_do(keys, batch_rows, view_run_bytes):
    """Whether they are held or views of files; of views those that remain may spill."""
    rows = pa.table({"key": pa.array(keys, pa.int64()), "n": pa.array(range(len(keys)), pa.int64())})
    batches = rows.to_batches(max_chunksize=batch_rows)
    with SortedRows(("key", "n"), view_run_bytes, may_drop_lone=True) as sorter:
        if view_run_bytes is None:
            for batch in batches:
                sorter.add(batch)
        else:
            sorter.add_views(iter(batches))
        made = [tuple(row.values()) for batch in sorter.sorted() for row in batch.to_pylist()]
    assert made == sorted(made)
    assert set(made) <= set(zip(keys, range(len(keys)), strict=True))
    shared = {(key, n) for n, key in enumerate(keys) if keys.count(key) > 1}
    assert shared <= set(made)
    assert len(made) - len(shared) <= 2 + len(keys) // 2


LISTS = {
    "ids": (pa.list_(pa.int32()), st.lists(st.integers(-9, 9), max_size=4)),
    "scores": (pa.list_(pa.field("score", pa.float64(), nullable=False)), st.lists(st.sampled_from([0.5, -1.0]))),
    "holes": (pa.list_(pa.int8()), st.lists(st.none() | st.integers(0, 9), max_size=3)),
    "words": (pa.list_(pa.string()), st.lists(st.sampled_from(["", "a", "bc"]), max_size=3)),
    "flags": (pa.list_(pa.bool_()), st.lists(st.booleans(), max_size=3)),
}


@given(st.data(), st.lists(st.tuples(*(st.none() | values for _, values in LISTS.values())), max_size=8))
def test_rows_are_taken_as_arrow_takes_them(data, rows):
    columns = [pa.array([row[at] for row in rows], kind) for at, (kind, _) in enumerate(LISTS.values())]
    start = data.draw(st.integers(0, len(rows)))
    batch = pa.RecordBatch.from_arrays(columns, names=list(LISTS))[start:]
    places = data.draw(st.lists(st.integers(0, batch.num_rows - 1), max_size=9)) if batch.num_rows else []
    taken = take_rows(batch, np.array(places, np.int64))
    taken.validate(full=True)
    assert taken.equals(batch.take(pa.array(places, pa.int64())))
    assert taken.schema == batch.schema


def numbers(low, high, rows=10):
    return [pa.record_batch({"n": list(range(at, min(high, at + rows)))}) for at in range(low, high, rows)]


def test_merge_holds_one_batch_of_each_run():
    read = []

    def run(name, batches):
        for batch in batches:
            read.append(name)
            yield batch

    merged = merge([run("early", numbers(0, 1000)), run("late", numbers(1000, 2000))], ("n",))
    out = []
    while not out or out[-1] < 500:
        out += next(merged).column("n").to_pylist()
    assert read.count("late") == 1
    assert out == list(range(len(out)))
    assert [n for batch in merged for n in batch.column("n").to_pylist()] == list(range(len(out), 2000))


def test_merge_of_runs_without_rows():
    assert list(merge([], ("n",))) == []
    assert list(merge([iter(()), iter(())], ("n",))) == []


def test_slices_are_of_about_the_asked_size_and_have_a_row_at_least():
    batch = pa.record_batch({"n": pa.array(range(1000), pa.int64())})
    pieces = list(cut_by_bytes(batch, 800))
    assert {piece.num_rows for piece in pieces} == {100}
    assert pa.concat_batches(pieces) == batch
    assert [piece.num_rows for piece in cut_by_bytes(batch, 1)] == [1] * 1000


def test_temporary_files_are_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with SortedRows(("n",), 100) as rows:
        for batch in numbers(0, 100):
            rows.add(batch)
        assert len(list(tmp_path.rglob("*.arrows"))) == 5
    assert list(tmp_path.iterdir()) == []


def test_arrow_memory_is_a_small_multiple_of_a_run(monkeypatch):
    """16 MB of rows in runs of 1 MB and batches of 16 KB: all rows at once would be four times what is allowed."""
    run_bytes = 1 << 20
    monkeypatch.setattr(sorting, "BATCH_BYTES", 1 << 14)
    before = pa.total_allocated_bytes()
    most = seen = 0
    with sorting.SortedRows(("h",), run_bytes) as rows:
        for first in range(256):
            rows.add(pa.record_batch({"h": pa.array(range(first, 1 << 21, 256), pa.int64())}))
            most = max(most, pa.total_allocated_bytes() - before)
        for batch in rows.sorted():
            seen += batch.num_rows
            most = max(most, pa.total_allocated_bytes() - before)
    assert seen == 1 << 21
    assert most < 4 * run_bytes
