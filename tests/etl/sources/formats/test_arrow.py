"""Arrow files and streams give the rows that Parquet gives."""

import gzip

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from etl.errors import SourceError
from etl.sources.spec import Description
from tests.etl.sources.toysources import rows_of

SHAPE = Description.model_validate(
    {"shape": "messages", "example_id": "info.id", "license": "licence", "skill_bucket": "chat", "meta": ["n"]}
).root
TABLE = pa.table(
    {
        "info": [{"id": "a"}, {"id": "b"}, None],
        "messages": [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "é"}], []],
        "licence": pa.array(["MIT", None, "MIT"]).dictionary_encode(),
        "n": pa.array([1, 2, 3], pa.int16()),
    }
)


def as_file(path):
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)


def as_stream(path):
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=2)


def as_feather(path):
    pyarrow.feather.write_feather(TABLE, str(path), compression="zstd")


def as_gzip(path):
    as_file(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


@pytest.fixture
def expected(tmp_path):
    pq.write_table(TABLE, tmp_path / "x.parquet")
    return rows_of(tmp_path / "x.parquet", SHAPE)


@pytest.mark.parametrize(
    ("name", "write"),
    [("x.arrow", as_file), ("x.arrow", as_stream), ("x.feather", as_feather), ("x.ipc.gz", as_gzip)],
)
def test_the_rows_are_those_of_parquet(tmp_path, expected, name, write):
    (tmp_path / "arrow").mkdir()
    write(tmp_path / "arrow" / name)
    good, bad = rows_of(tmp_path / "arrow" / name, SHAPE)
    assert ([{**row, "file": "x.parquet"} for row in good], bad) == expected
    assert [reason for _, reason in bad] == ["missing_info.id"]


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.99])
def test_a_file_that_is_cut_short_is_an_error(tmp_path, cut):
    as_file(tmp_path / "x.arrow")
    data = (tmp_path / "x.arrow").read_bytes()
    (tmp_path / "x.arrow").write_bytes(data[: int(len(data) * cut)])
    with pytest.raises(SourceError, match=r"x\.arrow"):
        rows_of(tmp_path / "x.arrow", SHAPE)


def test_what_is_no_arrow_is_an_error(tmp_path):
    (tmp_path / "x.feather").write_bytes(b"FEA1" + b"\0" * 100)
    with pytest.raises(SourceError, match=r"x\.feather"):
        rows_of(tmp_path / "x.feather", SHAPE)
