"""SQL for datasets: types and names as the three engines want them; the DuckDB views are run here."""

import re

import duckdb
import pyarrow as pa
import pytest

from etl.errors import DataError, SchemaError
from etl.schema import ID, PROMPT
from etl.storage.build import Job
from etl.storage.catalog import partition_values, sql_type, statements, table_name
from etl.storage.location import Location
from etl.storage.manifest import Part
from tests.datasets import write_dataset
from tests.etl.storage.builds import begin

WORDS = pa.table({"id": pa.array([bytes(16), bytes(15) + b"\1"], ID), "word": ["it's", None]})


@pytest.fixture
def output(tmp_path):
    """A run's output with one flat dataset, one in Hive folders and one without rows; a quote in its path."""
    root = Location.of(tmp_path / "o'ut")
    write_dataset(root / "rounds/share-0", "rounds/share-0", "WORDS", {"": WORDS})
    cells = {"split=train/skill_bucket=B1": WORDS, "split=validation/skill_bucket=B2": WORDS.slice(0, 1)}
    write_dataset(root / "corpus", "corpus", "WORDS", cells)
    write_dataset(root / "quarantine", "quarantine", "WORDS", {"": WORDS.slice(0, 0)})
    return root


def test_types():
    assert sql_type(PROMPT.field("messages").type) == (
        "ARRAY<STRUCT<`role`: STRING, `channel`: STRING, `recipient`: STRING, `content`: STRING, "
        "`content_type`: STRING, `call_id`: STRING>>"
    )
    assert [sql_type(kind) for kind in (ID, pa.int32(), pa.list_(pa.float64()))] == ["BINARY", "INT", "ARRAY<DOUBLE>"]
    with pytest.raises(SchemaError, match="uint64 has no SQL type"):
        sql_type(pa.uint64())


def test_statements_for_spark_and_hive(output):
    made = list(statements(output, "spark"))
    place = output.path.replace("'", "\\'")
    columns = "(\n  `id` BINARY,\n  `word` STRING\n)\nUSING PARQUET\n"
    by = "PARTITIONED BY (`split` STRING, `skill_bucket` STRING)"
    assert made == [
        f"CREATE EXTERNAL TABLE IF NOT EXISTS `corpus` {columns}{by}\nLOCATION '{place}/corpus';",
        "MSCK REPAIR TABLE `corpus`;",
        "-- quarantine: no rows, so its columns are unknown",
        f"CREATE EXTERNAL TABLE IF NOT EXISTS `rounds_share_0` {columns}LOCATION '{place}/rounds/share-0';",
    ]
    hive = list(statements(output, "hive"))
    assert hive[0].splitlines()[4:] == [
        by,
        "STORED AS PARQUET",
        f"LOCATION '{place}/corpus';",
    ]


def test_views_in_duckdb_have_the_rows_of_the_manifests(output):
    with duckdb.connect() as connection:
        for statement in statements(output, "duckdb"):
            connection.execute(statement)
        assert connection.execute("SELECT word FROM rounds_share_0").fetchall() == [("it's",), (None,)]
        counts = "SELECT split, skill_bucket, count(*) FROM corpus GROUP BY ALL ORDER BY ALL"
        assert connection.execute(counts).fetchall() == [("train", "B1", 2), ("validation", "B2", 1)]


def test_files_are_no_table(tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    build, plan, writer = begin(Job(Location.of(tmp_path / "model"), "model", "MODEL", pa.schema([]), {}), [0])
    writer.write_files(0, "model", {".bin": tmp_path / "file"}, 0, {})
    (part,) = build.commit(plan).manifest.parts
    for dialect in ("spark", "hive", "duckdb"):
        made = list(statements(Location.of(tmp_path), dialect))
        assert made == [f"-- model: not a table, but files such as {part.path}"]


def test_one_dataset_alone_is_called_as_its_folder(output):
    assert table_name(output / "corpus", "") == "corpus"
    assert len(list(statements(output / "corpus", "duckdb"))) == 1


def test_partition_values_come_from_the_path():
    part = Part(split=0, path="a=1/b=x=y/part-0.parquet", rows=1, bytes=1, sha256="0" * 64, row_groups=(1,))
    assert partition_values(part) == {"a": "1", "b": "x=y"}


def test_a_folder_without_datasets_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no committed dataset at or below"):
        list(statements(Location.of(tmp_path), "spark"))


EVIL = [
    "k': VARCHAR}); COPY (SELECT 42 AS x) TO 'pwn.csv'; --",
    'k"; DROP VIEW x; --',
    "k`) ; DROP TABLE x; --",
    "-- k",
    "a'b\"c`d",
    "/* k",
    "k\\",
]


@pytest.mark.parametrize("evil", EVIL)
def test_s12_names_of_columns_folders_and_datasets_are_names_alone(tmp_path, monkeypatch, evil):
    monkeypatch.chdir(tmp_path)
    folder = evil.replace("/", "").replace("\\", "")
    root = Location.of(tmp_path / "out")
    words = pa.table({evil: ["x"], "in": pa.array([{evil: 1}], pa.struct([(evil, pa.int32())]))})
    write_dataset(root / folder, folder, "WORDS", {f"p {folder}=1": words})
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with duckdb.connect() as connection:
        (statement,) = statements(root, "duckdb")
        assert len(connection.extract_statements(statement)) == 1
        connection.execute(statement)
        found = connection.execute(f'SELECT * FROM "{table_name(root, folder)}"').fetchall()
        assert found == [("x", {evil: 1}, "1")]
        assert connection.execute("SELECT count(*) FROM duckdb_views() WHERE NOT internal").fetchone() == (1,)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    for dialect in ("spark", "hive"):
        made = "\n".join(statements(root, dialect))
        assert "`" + evil.replace("`", "``") + "`" in made
        assert _outside_of_quotes(made).count(";") == 2
        assert "DROP" not in _outside_of_quotes(made)
        assert "COPY" not in _outside_of_quotes(made)


def _outside_of_quotes(sql: str) -> str:
    """What of Spark's SQL is neither a name nor a string."""
    return re.sub(r"`(?:[^`]|``)*`|'(?:[^'\\]|\\.)*'", "", sql)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb"])
def test_s12_names_with_control_characters_make_a_comment_of_one_line(tmp_path, name):
    root = Location.of(tmp_path / "out")
    write_dataset(root / "corpus", "corpus", "WORDS", {"": pa.table({"x": pa.array([{name: 1}])})})
    for dialect in ("spark", "hive", "duckdb"):
        made = list(statements(root, dialect))
        assert made == ["-- corpus: no table, as a column has control characters"]
