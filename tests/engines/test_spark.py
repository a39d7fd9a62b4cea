"""The Spark engine: the same committed bytes as the in-process one, errors as we raise them, tables that all read."""

import contextlib
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark import TaskContext

from etl.engine import Exchange, Resources, Work
from etl.engines.spark import SparkEngine, _Job
from etl.errors import ConfigError, DataError, SchemaError, SourceError
from etl.scoring.kenlm_train import train
from etl.storage.build import Chunk, Job
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.progress import Counts
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import (
    files,
    make_recipe,
    mixed_rows,
    plain_rows,
    read,
    run,
    stage,
    whole_recipe,
    write_jsonl,
    write_parquet,
)

NUMBER = pa.schema([("n", pa.int64())])


@pytest.fixture(scope="module")
def engine(spark):
    return SparkEngine(session=spark)


@pytest.fixture(scope="module")
def made(tmp_path_factory, engine):
    """One run of every stage on each engine: folders `spark` and `inprocess`."""
    folder = tmp_path_factory.mktemp("made")
    lines = [item["synthetic_answer"] for item in mixed_rows(60, seed=99) if item["synthetic_answer"]]
    model = train(lines, 2, folder / "model", 1_000_000).path
    write_parquet(folder / "a.parquet", mixed_rows(90))
    with write_jsonl(folder / "b.jsonl", mixed_rows(20, seed=1)).open("ab") as file:
        file.write(b"not a row\n")
    write_parquet(folder / "empty.parquet", [])
    sources = {"a": folder / "a.parquet", "b": folder / "b.jsonl", "empty": folder / "empty.parquet"}
    # Few tasks: a job of Spark's costs more than everything that is done in it here.
    cutting = {"split_bytes": 1 << 14, "bucket_bytes": 1 << 14}
    run(whole_recipe(folder / "spark", sources, model, run=cutting), engine)
    run(whole_recipe(folder / "inprocess", sources, model, run=cutting), InProcessEngine())
    return folder


def test_every_file_equals_the_one_of_the_other_engine(made):
    assert files(made / "spark") == files(made / "inprocess")
    assert stage(made / "spark", "corpus").manifest.rows_out > 30


def test_plain_spark_read_of_the_corpus_gives_the_rows_of_the_manifest(made, spark):
    manifest = stage(made / "spark", "corpus").manifest
    frame = spark.read.parquet(str(made / "spark" / "corpus"))
    assert frame.count() == manifest.rows_out
    assert {"split", "skill_bucket", "ctx_bucket", "id", "input_ids", "spans"} <= set(frame.columns)
    counts = frame.groupBy("split", "skill_bucket", "ctx_bucket").count().collect()
    told = manifest.distributions["cells"]
    assert {(r["split"], r["skill_bucket"], r["ctx_bucket"]): r["count"] for r in counts} == {
        (split, skill, ctx): cell["rows"]
        for split, skills in told.items()
        for skill, contexts in skills.items()
        for ctx, cell in contexts.items()
    }


def test_every_table_is_read_alike_by_spark_duckdb_and_pyarrow(made, spark):
    read_any = 0
    for path in sorted((made / "spark").rglob("_manifest.json")):
        dataset = Dataset.open(str(path.parent))
        if not dataset.manifest.parts:
            continue
        read_any += 1
        columns = dataset.schema.names
        table = pq.read_table(path.parent, partitioning=None).select(columns)
        assert len(table) == dataset.manifest.rows_out, path
        in_duckdb = duckdb.sql(f"select columns({columns}) from read_parquet('{path.parent}/**/part-*.parquet')")
        assert len(in_duckdb.fetchall()) == dataset.manifest.rows_out, path
        in_spark = spark.read.parquet(str(path.parent)).select(*columns).toArrow()
        assert sorted(map(str, in_spark[columns[0]].to_pylist())) == sorted(map(str, table[columns[0]].to_pylist()))
    assert read_any > 15


# --- shuffles ------------------------------------------------------------------------------------------------------

ROUTED = pa.schema([("bucket", pa.int32()), ("word", pa.binary()), ("n", pa.int64())])


@dataclass(frozen=True)
class EmitWords:
    """Some words of a split, each in a bucket; nothing for split 1."""

    num_buckets: int

    def __call__(self, split):
        if split == 1:
            return
        words = [b"\xff", b"", b"a", b"aa", b"\x80", None]
        size = 4 * len(words)
        buckets = pa.array(np.arange(size, dtype=np.int32) % self.num_buckets)
        yield pa.record_batch(
            [buckets, pa.array(words * 4), pa.array(range(split * size, (split + 1) * size))], schema=ROUTED
        )


def tell(bucket, batches):
    """What a bucket got, in order."""
    rows = [(row["word"], row["n"]) for batch in batches for row in batch.to_pylist()]
    values = [hash_of(word) * 1000 + n for word, n in rows]
    yield Chunk(pa.record_batch([pa.array(values, pa.int64())], schema=NUMBER), len(rows))


def hash_of(word):
    return -1 if word is None else int.from_bytes(word[:1], "big") + len(word)


def emit_nothing(split):
    return iter(())


def job(folder, name):
    return Job(Location.of(folder / name), name, "NUMBER", NUMBER, {})


def test_shuffle_sorts_as_the_other_engine(tmp_path, engine):
    for name, runner in (("spark", engine), ("inprocess", InProcessEngine())):
        exchange = Exchange((0, 1, 2), EmitWords(3), ROUTED, ("word", "n"), 3)
        runner.shuffle(Job(Location.of(tmp_path / name), "words", "NUMBER", NUMBER, {}), exchange, tell)
    assert files(tmp_path / "spark") == files(tmp_path / "inprocess")
    assert Dataset.open(str(tmp_path / "spark")).manifest.rows_in == 48


def test_every_bucket_of_an_empty_shuffle_is_opened(tmp_path, engine):
    done = engine.shuffle(job(tmp_path, "empty"), Exchange((0, 1), emit_nothing, ROUTED, ("word",), 4), tell)
    assert (done.manifest.splits, done.manifest.rows_out) == (4, 0)


def test_shuffle_without_a_map_side(tmp_path, engine):
    done = engine.shuffle(job(tmp_path, "none"), Exchange((), emit_nothing, ROUTED, ("word",), 2), tell)
    assert (done.manifest.splits, done.manifest.rows_out) == (2, 0)


def test_shuffle_without_a_bucket(tmp_path, engine):
    done = engine.shuffle(job(tmp_path, "no-bucket"), Exchange((), emit_nothing, ROUTED, ("word",), 0), tell)
    assert done.manifest.parts == ()


def test_only_missing_buckets_are_reduced(tmp_path, engine):
    exchange = Exchange((0, 1, 2), EmitWords(3), ROUTED, ("word", "n"), 3)
    whole = engine.shuffle(job(tmp_path, "words"), exchange, tell).manifest
    folder = tmp_path / "words"
    receipts = sorted((folder / "_receipts").rglob("*.json"))
    (folder / "_manifest.json").unlink()
    receipts[1].unlink()
    kept = [path.read_bytes() for path in receipts[::2]]
    assert engine.shuffle(job(tmp_path, "words"), exchange, tell).manifest == whole
    assert [path.read_bytes() for path in receipts[::2]] == kept


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConfigError, SourceError, SchemaError, DataError])
def test_error_of_a_worker_is_raised_as_what_it_is(tmp_path, engine, error):
    def fail(split):
        raise error(f"split {split}: the value is 3; make it 4")

    with pytest.raises(error, match=r"^split 0: the value is 3; make it 4$"):
        engine.map(job(tmp_path, "failing"), [0], fail).result()
    assert not (tmp_path / "failing" / "_manifest.json").exists()


def test_error_of_a_reducer_is_raised_as_what_it_is(tmp_path, engine):
    def fail(bucket, batches):
        raise SourceError("no")

    with pytest.raises(SourceError, match=r"^no$"):
        engine.shuffle(job(tmp_path, "failing"), Exchange((0,), EmitWords(1), ROUTED, ("word",), 1), fail)


def test_error_of_the_map_side_of_a_shuffle_is_raised_and_no_bucket_is_written(tmp_path, engine):
    def fail_late(split):
        yield from EmitWords(2)(0)
        if split == 2:
            raise DataError(f"split {split} is gone")

    exchange = Exchange((0, 1, 2), fail_late, ROUTED, ("word", "n"), 2)
    with pytest.raises(DataError, match=r"^split 2 is gone$"):
        engine.shuffle(job(tmp_path, "failing"), exchange, tell)
    assert not (tmp_path / "failing" / "_receipts").exists()


def test_other_splits_of_a_failed_job_are_kept(tmp_path, engine):
    def some(split):
        if split == 2:
            raise SourceError("file 2 is damaged")
        yield Chunk(pa.record_batch([pa.array([split])], schema=NUMBER), 1)

    with pytest.raises(SourceError, match="file 2 is damaged"):
        engine.map(job(tmp_path, "some"), range(4), some).result()
    receipts = {path.stem for path in (tmp_path / "some" / "_receipts").rglob("*.json")}
    assert receipts == {"00000", "00001", "00003"}


def test_damaged_input_of_a_recipe_is_a_source_error(tmp_path, engine):
    source = write_parquet(tmp_path / "a.parquet", plain_rows(50))
    data = bytearray(source.read_bytes())
    data[20:600] = bytes(580)
    source.write_bytes(data)
    with pytest.raises(SourceError, match=r"row group 0 \(.* cannot be read"):
        run(make_recipe(tmp_path / "out", {"a": source}), engine)


def test_empty_source_makes_an_empty_corpus(tmp_path, engine):
    source = write_parquet(tmp_path / "a.parquet", [])
    recipe = make_recipe(tmp_path / "out", {"a": source}, stages=["dedup", "tokenize", "layout"])
    assert run(recipe, engine).corpus.manifest.rows_out == 0
    assert read(stage(tmp_path / "out", "dropped")) == []


# --- what Spark shows ------------------------------------------------------------------------------------------------


def count_three(number, value):
    return Counts(rows_in=3, rows_out=2, tokens=10, dropped=1)


def test_jobs_have_a_group_and_a_description_and_the_users_own_come_back(engine, spark, monkeypatch):
    seen = []
    told = {}
    context = spark.sparkContext
    run_job = _Job.run

    def look(job, errors):
        seen.append((context.getLocalProperty("spark.jobGroup.id"), context.getLocalProperty("spark.job.description")))
        run_job(job, errors)
        told[job.group] = job.counts.value

    monkeypatch.setattr(_Job, "run", look)
    context.setJobGroup("mine", "my own job")
    engine.run_splits(Work("filter", 2, 40), [(4, "a"), (7, "b")], count_three)
    engine.run_splits(Work("filter", 2, 2), [(0, "a"), (1, "b")], count_three)
    assert context.getLocalProperty("spark.jobGroup.id") == "mine"
    assert context.getLocalProperty("spark.job.description") == "my own job"
    context.setLocalProperty("spark.jobGroup.id", None)
    context.setLocalProperty("spark.job.description", None)
    groups, descriptions = zip(*seen, strict=True)
    assert descriptions == ("stillhouse: filter, 2 of 40 splits", "stillhouse: filter, 2 splits")
    assert len(set(groups)) == 2
    assert [len(context.statusTracker().getJobIdsForGroup(group)) for group in groups] == [1, 1]
    assert told == dict.fromkeys(groups, Counts(rows_in=6, rows_out=4, tokens=20, dropped=2))


@pytest.mark.parametrize("ending", ["well", "badly"])
def test_what_was_broadcast_is_destroyed_however_the_job_ends(engine, spark, monkeypatch, ending):
    destroyed = []
    context = spark.sparkContext
    broadcast = context.broadcast

    def watched(value):
        shared = broadcast(value)
        end = shared.destroy
        shared.destroy = lambda: (destroyed.append(value), end())
        return shared

    def reduce(bucket, rows):
        if ending == "badly":
            raise SourceError("no")
        return Counts(rows_in=sum(batch.num_rows for batch in rows))

    monkeypatch.setattr(context, "broadcast", watched)
    exchange = Exchange(("plan of split 0",), emit_nothing, ROUTED, ("word",), 1)
    with pytest.raises(SourceError) if ending == "badly" else contextlib.nullcontext():
        # As on a cluster; with a local master no job broadcasts.
        engine._run_buckets_anywhere(Work("toy", 1, 1), [0], exchange, reduce)
    assert destroyed == [exchange.splits]


def test_on_a_local_master_fewer_tasks_run_at_once_when_each_needs_more(spark, tmp_path):
    lines = []
    engine = SparkEngine(session=spark, report=lines.append)

    def where(number, value):
        (tmp_path / str(number)).write_text(str(TaskContext().partitionId()))
        return Counts()

    work = Work("score", 4, 4, Resources(cpus=2))
    for _ in range(2):
        engine.run_splits(work, [(number, None) for number in range(4)], where)
    assert {(tmp_path / str(number)).read_text() for number in range(4)} == {"0"}
    assert lines == ["score: only 1 of 2 tasks at a time, because of the resources that each needs"]


def test_a_given_session_is_not_stopped(engine, spark):
    engine.close()
    assert spark.range(3).count() == 3


def test_a_session_that_was_there_is_adopted_and_left_alone(spark):
    engine = SparkEngine()
    assert engine.session is spark
    engine.close()
    assert spark.range(3).count() == 3
