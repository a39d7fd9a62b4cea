"""Sources that are tables of Spark's catalog: the rows of a file source, no work twice, all of it after a change."""

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from etl.engine import Table
from etl.engines import spark_tables
from etl.engines.spark import SparkEngine
from etl.errors import ConfigError, SourceError
from etl.run.plan import plan_recipe
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import COLUMNS, files, make_recipe, plain_rows, read, run, stage, write_parquet


@pytest.fixture
def rows(spark, tmp_path):
    """A managed Parquet table `toys.rows` with one more column and names in capitals, in two files."""
    spark.sql("CREATE DATABASE toys")
    write_parquet(tmp_path / "a.parquet", plain_rows(30))
    frame = spark.read.parquet(str(tmp_path / "a.parquet"))
    frame = frame.selectExpr(*(f"{name} AS {name.upper()}" for name in COLUMNS), "42 AS unused").repartition(2)
    frame.write.saveAsTable("toys.rows")
    yield frame
    spark.sql("DROP DATABASE toys CASCADE")


def recipe(folder, table, **source):
    """A recipe that tokenizes the source `a`: a table, or what `source` says."""
    plain = make_recipe(folder / "out", {"a": "x.parquet"}, stages=["tokenize"]).model_dump()
    return Recipe.model_validate(
        plain | {"sources": {"a": {"spec": "synth", "table": table, "may_be_empty": True} | source}}
    )


def test_a_table_gives_the_rows_that_its_files_give(rows, spark, tmp_path):
    engine = SparkEngine(session=spark, report=lambda line: None)
    run(recipe(tmp_path, "toys.rows"), engine)
    run(make_recipe(tmp_path / "files", {"a": tmp_path / "a.parquet"}, stages=["tokenize"]))
    landed = stage(tmp_path / "out", "tables/a")
    assert landed.manifest.rows_out == 30
    assert set(landed.schema.names) <= set(COLUMNS)
    ours, theirs = (stage(tmp_path / name, "tokenize").manifest for name in ("out", "files"))
    assert ours.content_digest == theirs.content_digest
    places = [(item["file"], item["position"]) for item in read(stage(tmp_path / "out", "ingest"))]
    assert sorted(places) == [("toys.rows", number) for number in range(30)]
    assert list(verify(Location.of(tmp_path / "out"))) == []


def test_an_unchanged_table_does_no_work_and_a_changed_one_all_of_it(rows, spark, tmp_path, monkeypatch):
    engine = SparkEngine(session=spark, report=lambda line: None)
    run(recipe(tmp_path, "toys.rows"), engine)
    before = files(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(SparkEngine, "_job", None)
        run(recipe(tmp_path, "toys.rows"), engine)
    assert files(tmp_path / "out") == before
    planned = {stage.stage: stage for stage in plan_recipe(recipe(tmp_path, "toys.rows")).stages}
    assert planned["tables/a"].action == "check"
    rows.limit(3).write.insertInto("toys.rows")
    run(recipe(tmp_path, "toys.rows"), engine)
    assert stage(tmp_path / "out", "tables/a").manifest.rows_out == 33
    assert len(read(stage(tmp_path / "out", "tokenize"))) == 33
    assert list(verify(Location.of(tmp_path / "out"))) == []


def test_a_view_is_landed_each_time_and_nothing_after_it_runs_again(rows, spark, tmp_path):
    spark.table("toys.rows").coalesce(1).orderBy("synth_id").createOrReplaceTempView("some_rows")
    engine = SparkEngine(session=spark, report=lambda line: None)
    run(recipe(tmp_path, "some_rows"), engine)
    first = stage(tmp_path / "out", "tables/a").manifest
    landed = (tmp_path / "out" / "tables" / "a" / "_manifest.json").stat().st_mtime_ns
    ingested = (tmp_path / "out" / "ingest" / "_manifest.json").stat().st_mtime_ns
    run(recipe(tmp_path, "some_rows"), engine)
    second = stage(tmp_path / "out", "tables/a").manifest
    assert first.parts == second.parts
    assert landed != (tmp_path / "out" / "tables" / "a" / "_manifest.json").stat().st_mtime_ns
    assert (tmp_path / "out" / "ingest" / "_manifest.json").stat().st_mtime_ns == ingested


def test_an_empty_table_is_an_empty_source(rows, spark, tmp_path):
    spark.sql("CREATE TABLE toys.none AS SELECT * FROM toys.rows LIMIT 0")
    run(recipe(tmp_path, "toys.none"), SparkEngine(session=spark))
    assert stage(tmp_path / "out", "tokenize").manifest.rows_out == 0


def test_a_table_that_is_not_there_and_one_without_the_columns(rows, spark, tmp_path):
    engine = SparkEngine(session=spark)
    with pytest.raises(SourceError, match=r"source 'a': there is no table toys.nothing: \[TABLE_OR_VIEW_NOT_FOUND\]"):
        run(recipe(tmp_path, "toys.nothing"), engine)
    spark.range(3).write.saveAsTable("toys.numbers")
    with pytest.raises(SourceError, match=r"source 'a': toys.numbers has the columns \['id'\], but none of"):
        run(recipe(tmp_path, "toys.numbers"), engine)


def test_other_engines_refuse_a_table(tmp_path):
    with pytest.raises(ConfigError, match=r"sources.a.table=toys.rows: only the Spark engine can read tables"):
        run_recipe(recipe(tmp_path, "toys.rows"), InProcessEngine(), lambda line: None)


def test_a_source_is_files_or_a_table(tmp_path):
    for table, source in (("t", {"path": "x"}), ("t", {"options": {"anon": True}})):
        with pytest.raises(ValidationError, match=r"either `path`|`options` are for the files"):
            recipe(tmp_path, table, **source)


@pytest.mark.parametrize(
    ("provider", "query"),
    [
        ("delta", "DESCRIBE HISTORY c.d.t LIMIT 1"),
        ("iceberg", "SELECT snapshot_id FROM c.d.t.history ORDER BY made_current_at DESC LIMIT 1"),
    ],
)
def test_formats_with_versions_are_asked_for_theirs(provider, query):
    """No such format is installed here: this holds the queries to what their documentation says."""
    answers = {
        "DESCRIBE EXTENDED c.d.t": [{"col_name": "Provider", "data_type": provider}],
        query: [{"version": 7, "snapshot_id": 7}],
    }
    session = SimpleNamespace(sql=lambda text: SimpleNamespace(collect=lambda: answers[text]))
    assert spark_tables._state(session, Table("a", "c.d.t", ()), None) == {"provider": provider, "version": [7]}
