"""A source with a limit: its first rows, without reading the others."""

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.sources.files import cut, list_files
from etl.sources.read import read_split
from etl.sources.spec import Source
from tests.etl.sources.toysources import LIMITS, SHAPE, example, jsonl


@pytest.fixture
def folder(tmp_path):
    """Files of three kinds of 9 rows each, every fourth row bad, and a last one that cannot be read."""
    rows = [example(number, **({} if number % 4 else {"q": None})) for number in range(9)]
    (tmp_path / "in").mkdir()
    jsonl(tmp_path / "in" / "a.jsonl", *rows)
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "in" / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / "c.parquet", row_group_size=4)
    (tmp_path / "in" / "d.parquet").write_bytes(b"damaged")
    return tmp_path / "in"


def first(folder, limit):
    """(file, position, whether it is good) of each row, and the etag of each file."""
    source = Source(spec="toy", path=str(folder), limit=limit)
    files = list_files("toy", source, {})
    (split,) = cut("toy", source, files, 1024, {})
    rows = []
    for batch, bad in read_split(source, SHAPE, split, {}, LIMITS):
        rows += [(row["file"], row["position"], True) for row in batch.to_pylist()]
        rows += [(row.file, row.position, False) for row in bad]
    return sorted(rows), [file.etag for file in files]


def test_the_first_rows_are_those_of_every_larger_limit(folder):
    whole, _ = first(folder, 27)
    assert [sum(name == file for file, *_ in whole) for name in ("a.jsonl", "b.jsonl.gz", "c.parquet")] == [9, 9, 9]
    assert sum(not good for *_, good in whole) == 9
    for limit in range(1, 27):
        assert first(folder, limit)[0] == whole[:limit]


def test_the_files_of_a_source_with_a_limit_are_known_without_their_bytes(folder, monkeypatch):
    def refuse(location, stamp):
        raise AssertionError(location)

    monkeypatch.setattr("etl.sources.files._digest", refuse)
    _, before = first(folder, 1)
    jsonl(folder / "a.jsonl", example(1), example(2))
    _, after = first(folder, 1)
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True, True]
