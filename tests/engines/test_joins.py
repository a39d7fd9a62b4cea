"""The one line of docs/reference/contract.md that joins `dropped` with aligned tables, in DuckDB and in Spark."""

import re
from pathlib import Path

import duckdb
import pytest

from etl.storage.location import Location
from etl.storage.verify import verify
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, read, run, stage, write_parquet

CONTRACT = Path(__file__).parents[2] / "docs" / "reference" / "contract.md"
(LINE,) = re.findall(r"^    (SELECT \* FROM dropped JOIN .*)$", CONTRACT.read_text("utf-8"), re.MULTILINE)
NAMED = LINE.replace("*", "dropped.id, ingest.id, dropped.file = ingest.file AND dropped.position = ingest.position")


@pytest.fixture
def output(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", mixed_rows(40))
    run(make_recipe(tmp_path / "out", {"a": source}, stages=["filter"], filter=FILTER))
    assert list(verify(Location.of(str(tmp_path / "out")))) == []
    return tmp_path / "out"


def check(rows, output):
    lost = {item["id"] for item in read(stage(output, "dropped"))}
    assert len(lost) > 5
    assert {text for text, _, _ in rows} == lost
    assert all(text.replace("-", "") == bytes(key).hex() and is_same for text, key, is_same in rows)


def test_duckdb_joins_dropped_with_an_aligned_table(output):
    with duckdb.connect() as session:
        for name in ("dropped", "ingest"):
            session.execute(f"CREATE VIEW {name} AS FROM '{output}/{name}/*.parquet'")
        check(session.execute(NAMED).fetchall(), output)


def test_spark_joins_dropped_with_an_aligned_table(output, spark):
    names = ("dropped", "ingest")
    for name in names:
        spark.read.parquet(f"{output}/{name}").createOrReplaceTempView(name)
    try:
        check([tuple(row) for row in spark.sql(NAMED).collect()], output)
    finally:  # The session is shared, and a view goes before a table of its name.
        for name in names:
            spark.catalog.dropTempView(name)
