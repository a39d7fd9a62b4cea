"""`apply` and `read`: steps on a DataFrame equal steps in a recipe, a dataset's DataFrame has its manifest's rows."""

import re
from pathlib import Path

import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from etl.engines import spark_frames
from etl.engines.spark import apply, read
from etl.errors import DataError, SchemaError
from etl.filters.answers import AnswerStep
from etl.harmony.step import HarmonyStep
from etl.mixture.buckets import CtxBucketStep
from etl.pipeline import open_steps
from etl.schema import VERDICT
from etl.storage.catalog import statements
from etl.storage.location import Location
from tests.datasets import write_dataset
from tests.etl.rows import LevelStep
from tests.etl.stages.toys import make_recipe, mixed_rows, run, stage, write_parquet

STEPS = (AnswerStep(), HarmonyStep(), CtxBucketStep())
NAMED = (
    *STEPS,
    HarmonyStep(name="short", developer="Be brief.", skill_buckets=("B1", "B5")),
    CtxBucketStep(name="short", max_tokens=90),
)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A small corpus, with a file that no manifest names beside its parts."""
    folder = tmp_path_factory.mktemp("frames")
    source = write_parquet(folder / "a.parquet", mixed_rows(60))
    run(
        make_recipe(
            folder / "out",
            {"a": source},
            stages=["filter", "tokenize", "layout"],
            filter={"steps": [{"kind": "answer"}]},
        )
    )
    (part,) = sorted((folder / "out" / "ingest").glob("part-*"))[:1]
    part.with_name("part-99999-orphan.parquet").write_bytes(part.read_bytes())
    return folder / "out"


def test_steps_on_a_frame_give_what_they_give_on_batches(spark, output):
    columns = ["id", "messages", "skill_bucket"]
    frame = apply(read(spark, output / "ingest").select(*columns), NAMED)
    expected = []
    for batch in stage(output, "ingest").read(columns):
        batch = batch.append_column("verdict", pa.nulls(batch.num_rows, VERDICT))
        expected += open_steps(NAMED)(batch).to_pylist()
    assert frame.columns[:3] == columns
    assert frame.columns[-1] == "verdict"
    assert {"input_ids", "n_tokens", "ctx_bucket", "short_n_tokens", "short_ctx_bucket"} <= set(frame.columns)
    rows = [row.asDict(recursive=True) for row in frame.collect()]
    key = lambda row: bytes(row["id"])  # noqa: E731
    assert sorted(rows, key=key) == sorted(expected, key=key)
    assert {row["verdict"] and row["verdict"]["step"] for row in rows} == {None, "answer", "short-ctx_bucket"}
    assert {row["skill_bucket"] for row in rows if row["short_n_tokens"]} == {"B1", "B5"}


def test_a_verdict_that_is_there_is_kept_and_its_rows_are_skipped(spark, output):
    first = apply(read(spark, output / "ingest").select("id", "messages"), [AnswerStep()])
    second = apply(first, [HarmonyStep()])
    assert second.columns[:3] == ["id", "messages", "verdict"]
    dropped = second.where("verdict is not null")
    assert dropped.count() > 0
    assert dropped.where("input_ids is not null").count() == 0
    assert {row["step"] for row in dropped.select("verdict.step").collect()} == {"answer"}


def test_a_step_reads_a_field_of_the_frame(spark):
    frame = spark.createDataFrame([(3, "a"), (1, "b"), (None, "c")], "level bigint, tag string")
    done = apply(frame, [LevelStep(least=2)])
    assert done.columns == ["level", "tag", "above", "verdict"]
    assert [(row["tag"], row["above"], row["verdict"] and row["verdict"]["reason"]) for row in done.collect()] == [
        ("a", 1, None), ("b", -1, "low"), ("c", None, None)
    ]  # fmt: skip


def test_columns_are_checked_before_anything_runs(spark):
    frame = spark.range(1)
    with pytest.raises(SchemaError, match=r"step 'answer' reads \['messages'\]"):
        apply(frame, [AnswerStep()])
    with pytest.raises(
        SchemaError, match=r"column 'messages' is array<string>, but the steps read it as array<struct<role:str"
    ):
        apply(frame.withColumn("messages", F.array(F.lit("no"))), [AnswerStep()])
    with pytest.raises(SchemaError, match="column 'verdict' is string"):
        apply(read_messages(spark).withColumn("verdict", F.lit("no")), [AnswerStep()])
    with pytest.raises(SchemaError, match="adds"):
        apply(read_messages(spark), [HarmonyStep(), HarmonyStep()])
    with pytest.raises(SchemaError, match=r"step 'answer' reads \['source_dataset'\]|'messages', 'source_dataset'"):
        apply(read_messages(spark), [AnswerStep(sources=("a",))])
    wrong = read_messages(spark).withColumn("short_n_tokens", F.lit("no"))
    with pytest.raises(SchemaError, match="column 'short_n_tokens' is string, but the steps read it as int"):
        apply(wrong, [CtxBucketStep(name="short")])


def read_messages(spark):
    message = "named_struct('role', 'user', 'channel', string(null), 'recipient', string(null), 'content', 'hello')"
    return spark.range(1).selectExpr(f"array({message}) as messages")


@pytest.mark.parametrize("reads_natively", [True, False])
def test_read_gives_the_rows_of_the_manifest(spark, output, monkeypatch, reads_natively):
    if not reads_natively:
        monkeypatch.setattr(spark_frames, "_reads_natively", lambda session, folder: False)
    assert read(spark, output / "ingest").count() == stage(output, "ingest").manifest.rows_out
    corpus = stage(output, "corpus")
    frame = read(spark, output / "corpus")
    assert frame.columns[-3:] == ["split", "skill_bucket", "ctx_bucket"]
    cells = {}
    for row in frame.select("id", "split", "skill_bucket", "ctx_bucket").collect():
        cells.setdefault(f"split={row[1]}/skill_bucket={row[2]}/ctx_bucket={row[3]}", set()).add(row[0])
    expected = {}
    for part in corpus.manifest.parts:
        table = corpus.part_location(part).open_parquet().read(["id"])
        expected.setdefault(part.path.rpartition("/")[0], set()).update(table["id"].to_pylist())
    assert cells == expected


def test_read_of_nothing(spark, tmp_path):
    with pytest.raises(DataError, match="not a committed dataset"):
        read(spark, tmp_path)
    table = pa.table({"n": pa.array([], pa.int64())})
    write_dataset(str(tmp_path / "empty"), "empty", "EMPTY", {"": table})
    assert read(spark, tmp_path / "empty").count() == 0


def test_spark_reads_itself_what_its_hadoop_has_a_file_system_for(spark, tmp_path):
    places = {
        str(tmp_path): True,
        "hdfs://host/folder": True,
        "s3a://bucket/folder": False,  # no jars here
        "nosuch://bucket/folder": False,
        f"{tmp_path}/[a]": False,  # Spark would take it for a pattern
    }
    assert {url: spark_frames._reads_natively(spark, Location(url)) for url in places} == places


def test_printed_tables_have_the_rows_of_the_manifest(spark, output):
    spark.sql("CREATE DATABASE printed")
    spark.sql("USE printed")
    try:
        for statement in statements(Location.of(output), "spark"):
            if not statement.startswith("--"):
                spark.sql(statement.removesuffix(";"))
        made = {row["tableName"] for row in spark.sql("SHOW TABLES IN printed").collect()}
        assert {"corpus", "dropped", "filter", "tokenize"} <= made
        for name in made - {"ingest"}:  # which has an orphan
            assert spark.table(name).count() == stage(output, name).manifest.rows_out, name
        assert spark.sql("SELECT DISTINCT split FROM corpus").count() == 2
        kinds = {
            row["data_type"] for row in spark.sql("DESCRIBE EXTENDED corpus").collect() if row["col_name"] == "Type"
        }
        assert kinds == {"EXTERNAL"}
    finally:
        spark.sql("USE default")
        spark.sql("DROP DATABASE printed CASCADE")


def test_the_example_of_the_documentation_runs(spark):
    text = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "library.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = {}
    exec(example, found)
    assert [row["n_tokens"] > 10 for row in found["kept"].collect()] == [True]
    assert [tuple(row) for row in found["reasons"].collect()] == [("answer", "empty_answer")]
