"""Files that share a split: their rows in order and in common row groups, each with its own name, pin and errors."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import SourceError
from etl.sources import raw
from etl.sources.files import cut, list_files
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.spec import Source
from tests.etl.sources.toysources import SHAPE, batches_of, example, jsonl, rows_of, table


def write_files(folder, count=9):
    """Files of three kinds with three rows each, the second of which is bad; the names of the good rows in order."""
    for number in range(count):
        lines = [example(3 * number), {"id": f"bad{number}"}, example(3 * number + 2)]
        path = folder / f"{number:02d}"
        if number % 3 == 0:
            jsonl(path.with_suffix(".jsonl"), *lines)
        elif number % 3 == 1:
            text = "".join(f"{json.dumps(line)}\r\n" for line in lines)
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(text.encode()))
        else:
            rows = table(2).to_pylist()
            rows[0]["id"], rows[1]["id"] = lines[0]["id"], lines[2]["id"]
            made = [*rows[:1], dict.fromkeys(rows[0]) | lines[1], *rows[1:]]
            pq.write_table(pa.Table.from_pylist(made), path.with_suffix(".parquet"), row_group_size=2)
    return [f"e{3 * number + place}" for number in range(count) for place in (0, 2)]


def test_rows_of_many_files_are_one_row_group_and_each_names_its_own(tmp_path):
    names = write_files(tmp_path)
    (split,) = batches_of(tmp_path)
    ((batch, bad),) = split
    assert batch.column("source_example_id").to_pylist() == names
    files = sorted(path.name for path in tmp_path.iterdir())
    assert batch.column("file").to_pylist() == [name for name in files for _ in range(2)]
    assert [(row.file, row.example_id) for row in bad] == [(name, f"bad{n}") for n, name in enumerate(files)]
    assert batch.column("position").to_pylist()[4:6] == [0, 2], "rows of Parquet"
    assert [row.position for row in bad[:3]] == [len(json.dumps(example(0))) + 1, len(json.dumps(example(3))) + 2, 1]


def test_files_apart_and_together_give_the_same_rows(tmp_path):
    write_files(tmp_path)
    assert rows_of(tmp_path, split_bytes=1) == rows_of(tmp_path, split_bytes=1 << 30)


@pytest.mark.parametrize("limit", [400, 3000, 100_000])
def test_a_row_group_is_no_more_than_its_limit_or_one_batch(tmp_path, monkeypatch, limit):
    names = write_files(tmp_path)
    (split,) = batches_of(tmp_path)
    ((whole, _),) = split
    monkeypatch.setattr(raw, "ROW_GROUP_BYTES", limit)
    (split,) = batches_of(tmp_path)
    sizes = [batch.nbytes for batch, _ in split]
    assert [name for batch, _ in split for name in batch.column("source_example_id").to_pylist()] == names
    assert sum(len(bad) for _, bad in split) == 9
    assert len(sizes) == 1 if limit > whole.nbytes else len(sizes) > whole.nbytes / limit
    assert all(
        size <= limit or len(set(batch.column("file").to_pylist())) == 1
        for size, (batch, _) in zip(sizes, split, strict=True)
    )


def test_bad_rows_count_for_a_row_group(tmp_path, monkeypatch):
    """What a quarantine keeps of them is held as long as the rows are."""
    monkeypatch.setattr(raw, "ROW_GROUP_BYTES", 10_000)
    for number in range(8):
        jsonl(tmp_path / f"{number}.jsonl", b"x" * 4000 + b"\n")
    (split,) = batches_of(tmp_path)
    assert [len(bad) for _, bad in split] == [2, 2, 2, 2]


def test_an_error_names_the_file_that_it_is_of(tmp_path):
    write_files(tmp_path)
    packed = tmp_path / "04.jsonl.gz"
    packed.write_bytes(packed.read_bytes()[:-3])
    with pytest.raises(SourceError, match=r"04\.jsonl\.gz cannot be read to its end"):
        batches_of(tmp_path)


@pytest.mark.parametrize("name", ["03.jsonl", "05.parquet"])
def test_each_file_is_read_as_it_was_listed(tmp_path, name):
    write_files(tmp_path)
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    with pytest.raises(SourceError, match=rf"{name}"):
        list(read_split(source, SHAPE, split, {}, Limits()))
