"""Every type of Spark's and of Arrow's through `apply` and a table that is a source: its values, or its name."""

import contextlib
import json
import runpy

import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from etl.arrow_types import FORMS, kind_of, plain_type, refused
from etl.engines.spark import SparkEngine, apply
from etl.engines.spark_types import spark_fields
from etl.errors import SchemaError, SourceError
from etl.filters.answers import AnswerStep
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.storage.catalog import statements
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.engines.stamps import VALUES, StampStep
from tests.etl.stages.toys import read, run, stage
from tests.etl.test_arrow_types import FLAT

NULL = "string(null)"


def message(role, content):
    """SQL of a message; its arguments are SQL as well."""
    return f"named_struct('role', {role}, 'channel', 'final', 'recipient', {NULL}, 'content', {content})"


USER, ASSISTANT = message("'user'", "'hi'"), message("'assistant'", "'ok'")
MESSAGES = f"array({USER}, {ASSISTANT})"
# Expression of a column -> what meta_json keeps of it; null keeps nothing.
COLUMNS = {
    "void": ("NULL", None),
    "yes": ("true", True),
    "small": ("tinyint(-1)", -1),
    "large": ("9223372036854775807", 2**63 - 1),
    "real": ("double('NaN')", None),
    "exact": ("12345678901234567890123456789.012345678BD", "12345678901234567890123456789.012345678"),
    "word": ("cast('a' AS char(3))", "a"),
    "collated": ("'a' COLLATE UNICODE", "a"),
    "bytes": ("X'6162'", "ab"),
    "day": ("date'2026-01-02'", "2026-01-02"),
    "far": ("date_add(date'9999-12-31', 1)", "10000-01-01"),
    "at": ("timestamp'2026-01-02 03:04:05.6Z'", "2026-01-02T03:04:05.600000+00:00"),
    "local": ("timestamp_ntz'2026-01-02 03:04:05'", "2026-01-02T03:04:05"),
    "hour": ("time'03:04:05.000001'", "03:04:05.000001"),
    "took": ("interval '1 02:03:04' day to second", "1 day, 2:03:04"),
    "map": ("map('a', timestamp'2026-01-02 03:04:05Z')", [["a", "2026-01-02T03:04:05+00:00"]]),
    "list": ("array(named_struct('d', 1.50BD), NULL)", [{"d": "1.50"}, None]),
}
INTERVALS = {"months": "interval '1-2' year to month", "calendar": "make_interval(1, 2, 3)"}


@contextlib.contextmanager
def time_zone(spark, name):
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", name)
    try:
        yield
    finally:
        spark.conf.set("spark.sql.session.timeZone", before)


def frame_of(spark, columns, **more):
    chosen = [f"{expression} AS {name}" for name, expression in {**columns, **more}.items()]
    return spark.range(1).selectExpr(*chosen)


def test_columns_of_any_type_come_out_as_they_went_in(spark):
    with time_zone(spark, "America/New_York"):
        columns = {name: expression for name, (expression, _) in COLUMNS.items()}
        frame = frame_of(spark, columns, messages=MESSAGES, variant="parse_json('[1]')")
        made = apply(frame, [AnswerStep()])
        assert made.schema.fields[:-1] == frame.schema.fields
        # Python has no date of that year, so it is compared as text.
        (before,), (after,) = (each.withColumn("far", F.col("far").cast("string")).collect() for each in (frame, made))
        assert str(after.asDict(recursive=True)) == str({**before.asDict(recursive=True), "verdict": None})


@pytest.mark.parametrize("name", INTERVALS)
def test_intervals_of_months_are_named(spark, name):
    frame = frame_of(spark, INTERVALS, messages=MESSAGES).select(name, "messages")
    with pytest.raises(
        SchemaError, match=rf"column '{name}' is interval.*, which Spark cannot pass to Python; cast it"
    ):
        apply(frame, [AnswerStep()])


def test_columns_that_a_step_adds_arrive_in_spark(spark):
    with time_zone(spark, "America/New_York"):
        made = apply(frame_of(spark, {"messages": MESSAGES}), [StampStep()])
        (row,) = made.selectExpr("*", "unix_seconds(at) AS s").select("s", *list(VALUES)[1:]).collect()
    expected = {name: value for name, (value, _) in VALUES.items()}
    at = expected.pop("at")
    assert row.asDict(recursive=True) == {**expected, "counts": {"a": [1, None]}, "s": int(at.timestamp())}


@pytest.mark.parametrize("array", [array for array, _ in FLAT], ids=lambda array: str(array.type))
def test_every_type_of_arrow_has_one_in_spark_or_is_named(array):
    kind = array.type
    form = FORMS[kind_of(kind)].spark
    encoded = plain_type(kind) != kind and not pa.types.is_dictionary(kind)
    if form is None or encoded:
        assert refused(kind, "spark") is not None
        with pytest.raises(
            SchemaError, match=r"column 'c' is .*, and Spark has no type for .*; docs/reference/arrow_types.md"
        ):
            spark_fields(pa.schema([("c", kind)]))
    elif refused(kind, "spark") is None:
        made = spark_fields(pa.schema([("c", kind)]))["c"].dataType.simpleString()
        assert made.split("(")[0].split("<")[0].split(" ")[0] == form


def test_messages_that_say_nothing_have_a_verdict_and_stay_as_they_are(spark):
    others = {
        "null_content": "array(" + message("'user'", NULL) + f", {ASSISTANT})",
        "null_role": "array(" + message(NULL, "'hi'") + ")",
        "null_message": f"array({USER}, NULL)",
        "empty_answer": f"array({USER})",
    }
    frame = frame_of(spark, {"messages": MESSAGES}, name=NULL)
    for reason, messages in others.items():
        frame = frame.union(frame_of(spark, {"messages": messages}, name=f"'{reason}'"))
    frame = frame.coalesce(1)
    rows = apply(frame, [AnswerStep()]).collect()
    assert [row["messages"] for row in rows] == [row["messages"] for row in frame.collect()]
    assert [row["verdict"] and row["verdict"]["reason"] for row in rows] == [row["name"] for row in rows]
    steps = {row["name"]: row["verdict"]["step"] for row in rows if row["verdict"]}
    assert steps == {"null_content": "apply", "null_role": "apply", "null_message": "apply", "empty_answer": "answer"}


def test_fields_that_a_message_does_not_have_read_as_null(spark):
    bare = "array(named_struct('content', 'hi', 'role', 'user'), named_struct('content', '', 'role', 'assistant'))"
    nulls = "array(named_struct('role', 'assistant', 'channel', NULL, 'content', 'ok'))"
    for messages, reason in ((bare, "empty_answer"), (nulls, None)):
        (row,) = apply(frame_of(spark, {"messages": messages}), [AnswerStep()]).collect()
        assert (row["verdict"] and row["verdict"]["reason"]) == reason
    for wrong in ("named_struct('role', 'user')", "named_struct('role', 'user', 'content', 'a', 'tools', 'b')"):
        with pytest.raises(
            SchemaError, match=r"column 'messages' is array<struct<role:string.*, but the steps read it as"
        ):
            apply(frame_of(spark, {"messages": f"array({wrong})"}), [AnswerStep()])


def test_a_name_that_stands_twice(spark):
    with pytest.raises(SchemaError, match=r"several columns called \['a'\]"):
        apply(spark.range(1).selectExpr(f"{MESSAGES} AS messages", "1 AS a", "2 AS a"), [AnswerStep()])


@contextlib.contextmanager
def view(spark, frame, name):
    frame.createOrReplaceTempView(name)
    try:
        yield name
    finally:
        spark.catalog.dropTempView(name)


def recipe_of(folder, table, kept):
    spec = {
        "shape": "columns", "example_id": "name", "user": "q", "final": "a", "skill_bucket": {"default": "B1"},
        "meta": list(kept),
    }  # fmt: skip
    (folder / "spec.yaml").write_text(json.dumps(spec))
    sources = {"a": {"spec": str(folder / "spec.yaml"), "table": table}}
    return Recipe.model_validate({"name": "toy", "output": str(folder / "out"), "sources": sources, "stages": []})


def test_columns_of_any_type_of_a_table_are_kept(spark, tmp_path):
    expressions = {name: expression for name, (expression, _) in COLUMNS.items()}
    frame = frame_of(spark, expressions, name="decimal(7)", q="'q'", a="'a'")
    with time_zone(spark, "America/New_York"), view(spark, frame, "every_type") as table:
        run(recipe_of(tmp_path, table, COLUMNS), SparkEngine(session=spark, report=lambda line: None))
    (row,) = read(stage(tmp_path / "out", "ingest"))
    assert row["source_example_id"] == "7"
    kept = json.loads(row["meta_json"])
    assert kept.pop("real") is None
    assert kept == {name: value for name, (_, value) in COLUMNS.items() if value is not None}
    assert list(verify(Location.of(tmp_path / "out"))) == []
    (line,) = [line for line in statements(Location.of(tmp_path / "out"), "spark") if "tables_a" in line]
    assert line.startswith("-- tables_a: no table, as column 'void' is null, and no SQL type reads null")


def test_a_table_whose_column_spark_cannot_hand_over_is_named(spark, tmp_path):
    frame = frame_of(spark, INTERVALS, name="'n'", q="'q'", a="'a'")
    message = r"source 'a': months: column 'months' is interval year to month, which Spark cannot pass to Python"
    with view(spark, frame, "months") as table, pytest.raises(SourceError, match=message):
        run_recipe(recipe_of(tmp_path, table, ["months"]), SparkEngine(session=spark), lambda line: None)


def test_the_field_case(spark, shared_data, capsys):
    runpy.run_path(str(shared_data / "field_cases" / "apply_timestamp.py"))
    said = capsys.readouterr().out.splitlines()
    assert said == ["timestamp column 1", "struct with a timestamp 1", "one null content 2"]
