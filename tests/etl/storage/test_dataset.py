"""What readers see of a committed dataset, on the driver and on workers."""

import pickle

import pyarrow as pa
import pytest

from etl.errors import DataError
from etl.storage.dataset import Dataset
from tests.datasets import write_dataset
from tests.etl.storage.builds import (
    NUMBERS,
    SPLITS,
    InLine,
    build,
    chunks_of,
    job,
    numbers,
    values,
)


def test_reading_goes_row_group_by_row_group(folder):
    dataset = build(folder)
    groups = [[1, 2], [3], [4], [5, 6, 7]]
    assert [batch.column("n").to_pylist() for batch in dataset.read()] == groups
    assert [batch.column("n").to_pylist() for batch in dataset.ref.read_split(2)] == groups[2:]
    assert list(dataset.ref.read_split(1)) == []
    swapped = next(dataset.read(["word", "n"]))
    assert swapped.schema.names == ["word", "n"]
    assert swapped.schema.metadata is None
    assert dataset.schema == NUMBERS
    assert [part.split for part in dataset.ref.parts_of(2)] == [2]


def test_a_dataset_without_rows(folder):
    dataset = build(folder, splits=[[], []])
    assert (dataset.manifest.rows_out, dataset.manifest.parts, list(dataset.read())) == (0, (), [])
    assert dataset.schema == pa.schema([])
    assert build(folder / "none", splits=[]).manifest.splits == 0


def test_a_folder_without_a_manifest_is_no_dataset(folder):
    (folder / "part-00000-x.parquet").create(b"x")
    with pytest.raises(DataError, match="is not a committed dataset"):
        Dataset.open(folder)


def test_a_path_below_a_file_is_no_dataset(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is not a committed dataset"):
        Dataset.open(tmp_path.joinpath("file").as_posix())


def test_what_a_worker_gets_pickles_small_and_finds_the_rows(folder):
    dataset = build(folder)
    data = pickle.dumps(dataset.ref)
    assert len(data) < 400
    ref = pickle.loads(data)
    assert ref.parts_of(2) == dataset.manifest.parts[1:]
    assert ref.open() == dataset


def test_a_pending_dataset_is_a_future_of_it(folder):
    engine = InLine()
    pending = engine.map(job(folder), SPLITS, chunks_of)
    assert (pending.done(), engine.asked) == (False, [])
    dataset = pending.result()
    assert (pending.done(), engine.asked) == (True, [[0, 1, 2]])
    assert pending.result() is dataset
    assert dataset == Dataset.open(folder)
    assert dataset.ref == pending.ref
    assert (dataset.done(), dataset.result()) == (True, dataset)
    # Committed and of the same work, so the next run gets it at once.
    assert InLine().map(job(folder), SPLITS, chunks_of) == dataset


def test_write_dataset_makes_one_part_a_table(folder):
    tables = {name: pa.Table.from_batches([numbers(n)]) for n, name in enumerate(("split=a", "split=b"))}
    dataset = write_dataset(folder, "corpus", "CORPUS", tables)
    assert [part.path.split("/")[0] for part in dataset.manifest.parts] == ["split=a", "split=b"]
    assert values(dataset) == [0, 1]
