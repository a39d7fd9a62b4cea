"""The Beam engine on the in-process runner: the rows and order of the oracle, errors as we raise them, single steps."""

import logging
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.engine import Exchange, Resources, Work
from etl.engines.beam import (
    ApplySteps,
    BeamEngine,
    JobNotRun,
    RecordBatchCoder,
    TableCoder,
    ToArrow,
)
from etl.engines.beam_options import pipeline_options, runs_here
from etl.errors import ConfigError, DataError, SchemaError, SourceError
from etl.filters.answers import AnswerStep
from etl.filters.language import LanguageStep
from etl.pipeline import apply
from etl.schema import PROMPT, VERDICT
from etl.step import Step, append
from etl.storage.build import Chunk, Job
from etl.storage.location import Location
from etl.storage.progress import Counts
from tests.engines.exchanges import NUMBER, ROW, WORDS, emit_numbers, exchanged, write_numbers
from tests.engines.grid import check_files_are_those_of_the_oracle
from tests.engines.inprocess import InProcessEngine
from tests.etl.rows import LevelStep, verdicts

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def engine():
    return BeamEngine(report=lambda line: None)


def job(folder, name):
    return Job(Location.of(folder / name), name, "NUMBER", NUMBER, {})


def test_every_file_of_a_recipe_equals_the_one_of_the_other_engine(tmp_path, engine):
    """Exact and near duplicates, a cut in rounds, files of the corpus; tests/engines/test_grid.py runs every stage."""
    check_files_are_those_of_the_oracle(tmp_path, engine)


# --- shuffles ------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.lists(st.lists(ROW, max_size=12), max_size=4), st.sets(st.integers(0, 3), min_size=1))
def test_wanted_buckets_get_their_rows_in_the_order_of_the_oracle(tmp_path_factory, splits, wanted):
    folder = tmp_path_factory.mktemp("exchange")
    buckets = sorted(wanted)
    engine = BeamEngine()
    made = exchanged(engine, folder / "beam", tuple(splits), buckets)
    assert made == exchanged(InProcessEngine(), folder / "inprocess", tuple(splits), buckets)
    assert sorted(made) == buckets


@pytest.mark.parametrize("limit", ["HELD_BYTES", "SLICE_BYTES"])
def test_rows_are_the_same_in_the_smallest_slices(tmp_path, engine, monkeypatch, limit):
    rows = [(n % 4, bytes([n % 7]), None, n) for n in range(500)]
    monkeypatch.setattr(f"etl.engines.bucket_slices.{limit}", 1)
    made = exchanged(engine, tmp_path / "made", (rows[:300], rows[300:]), [0, 1, 2, 3])
    assert made == {bucket: sorted((row for row in rows if row[0] == bucket), key=sort_key) for bucket in range(4)}


def sort_key(row):
    return row[1], row[3]


def test_only_missing_buckets_are_reduced_and_sent_rows(tmp_path, engine):
    exchange = Exchange((1, 2, 3), emit_numbers, WORDS, ("n",), 2)
    whole = engine.shuffle(job(tmp_path, "numbers"), exchange, write_numbers).manifest
    folder = tmp_path / "numbers"
    (folder / "_manifest.json").unlink()
    next((folder / "_receipts").rglob("00001.json")).unlink()
    kept = next((folder / "_receipts").rglob("00000.json")).read_bytes()
    assert engine.shuffle(job(tmp_path, "numbers"), exchange, write_numbers).manifest == whole
    assert next((folder / "_receipts").rglob("00000.json")).read_bytes() == kept


def test_shuffle_without_a_map_side_opens_every_bucket(tmp_path, engine):
    done = engine.shuffle(job(tmp_path, "none"), Exchange((), emit_numbers, WORDS, ("n",), 2), write_numbers)
    assert (done.manifest.splits, done.manifest.rows_out) == (2, 0)


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConfigError, SourceError, SchemaError, DataError])
def test_error_of_a_worker_is_raised_as_what_it_is_and_other_splits_are_kept(tmp_path, engine, error):
    def some(split):
        if split == 2:
            raise error(f"split {split}: the value is 3; make it 4")
        yield Chunk(pa.record_batch([pa.array([split])], schema=NUMBER), 1)

    def run_it():
        return engine.map(job(tmp_path, "some"), range(4), some).result().manifest

    with pytest.raises(error, match=r"^split 2: the value is 3; make it 4$"):
        run_it()
    assert {path.stem for path in (tmp_path / "some" / "_receipts").rglob("*.json")} == {"00000", "00001", "00003"}


def test_error_of_a_reducer_is_raised_as_what_it_is(tmp_path, engine):
    def fail(bucket, batches):
        raise SourceError("no")

    with pytest.raises(SourceError, match=r"^no$"):
        engine.shuffle(job(tmp_path, "failing"), Exchange((1,), emit_numbers, WORDS, ("n",), 2), fail)


def test_error_of_the_map_side_of_a_shuffle_is_raised_and_no_bucket_is_written(tmp_path, engine):
    def fail_late(split):
        yield from emit_numbers(split)
        if split == 2:
            raise DataError(f"split {split} is gone: here: there")

    exchange = Exchange((1, 2, 3), fail_late, WORDS, ("n",), 2)
    with pytest.raises(DataError, match=r"^split 2 is gone: here: there$"):
        engine.shuffle(job(tmp_path, "failing"), exchange, write_numbers)
    assert not list((tmp_path / "failing").rglob("_receipts/*/*"))


def test_another_exception_fails_the_pipeline_with_its_traceback(tmp_path, engine, caplog):
    def fail(split):
        raise ZeroDivisionError("a bug of ours")

    def run_it():
        return engine.map(job(tmp_path, "bug"), [0], fail).result().manifest

    with caplog.at_level(logging.CRITICAL), pytest.raises(Exception, match="a bug of ours"):
        run_it()
    assert not (tmp_path / "bug" / "_manifest.json").exists()


def test_the_next_job_does_not_see_the_error_of_the_last_one(tmp_path):
    def fail(split):
        raise DataError("gone")

    engine = BeamEngine(scratch=tmp_path / "scratch")
    with pytest.raises(DataError, match="gone"):
        engine.run_splits(Work("first", 1, 1), [(0, 0)], lambda number, split: fail(split))
    engine.run_splits(Work("second", 1, 1), [(0, 0)], lambda number, split: Counts())
    assert list((tmp_path / "scratch").iterdir()) == []


# --- counters, names, resources ------------------------------------------------------------------------------------


@pytest.fixture
def results(monkeypatch):
    """What every pipeline returns."""
    seen = []
    start = beam.Pipeline.run
    monkeypatch.setattr(beam.Pipeline, "run", lambda self, *args: seen.append(start(self, *args)) or seen[-1])
    return seen


def test_counts_are_metrics_of_the_stage(engine, results):
    counts = Counts(rows_in=5, rows_out=3, tokens=70, dropped=2)
    engine.run_splits(Work("filter+score", 2, 2), [(0, 0), (1, 0)], lambda number, split: counts)
    found = results[0].metrics().query(beam.metrics.MetricsFilter().with_namespace("stillhouse/filter+score"))
    assert {item.key.metric.name: item.committed for item in found["counters"]} == {
        "rows_in": 10, "rows_out": 6, "tokens": 140, "dropped": 4,
    }  # fmt: skip


@pytest.fixture
def graphs(monkeypatch):
    """(pipeline proto, options) of every job, none of which runs."""
    seen = []

    def run_pipeline(self, pipeline, options):
        seen.append((pipeline.to_runner_api(), options))
        return beam.runners.runner.PipelineResult("DONE")

    monkeypatch.setattr("etl.engines.beam_options.FnApiRunner.run_pipeline", run_pipeline)
    monkeypatch.setattr(beam.runners.runner.PipelineResult, "wait_until_finish", lambda self: "DONE")
    return seen


def test_a_job_and_its_steps_are_called_after_the_stage(engine, graphs):
    exchange = Exchange((0,), emit_numbers, WORDS, ("n",), 2)
    engine.run_splits(Work("ingest+filter", 1, 1), [(0, 0)], lambda number, split: Counts())
    engine.run_buckets(Work("rounds/english_1", 2, 2), [0, 1], exchange, lambda bucket, batches: Counts())
    names = [options.view_as(GoogleCloudOptions).job_name for _, options in graphs]
    assert [name.partition("-")[2].partition("-")[2] for name in names] == ["ingest-filter", "rounds-english-1"]
    assert names[0].split("-")[:2] == names[1].split("-")[:2]
    steps = [{item.unique_name for item in graph.components.transforms.values()} for graph, _ in graphs]
    assert {"ingest+filter/splits", "ingest+filter/task"} <= steps[0]
    assert {f"rounds/english_1/{step}" for step in ("splits", "emit", "buckets", "group", "reduce")} <= steps[1]


def test_the_users_job_name_is_the_prefix(graphs):
    engine = BeamEngine(["--job_name=mine"])
    engine.run_splits(Work("ingest", 1, 1), [(0, 0)], lambda number, split: Counts())
    assert graphs[0][1].view_as(GoogleCloudOptions).job_name == "mine-ingest"


def test_resources_are_hints_of_the_task(graphs):
    engine = BeamEngine(["--gpu_type=nvidia-l4"])
    work = Work("score", 1, 1, Resources(cpus=4, gpus=2, memory_bytes=3 << 30))
    engine.run_splits(work, [(0, 0)], lambda number, split: Counts())
    components = graphs[0][0].components
    (task,) = (item for item in components.transforms.values() if item.unique_name == "score/task")
    assert dict(components.environments[task.environment_id].resource_hints) == {
        "beam:resources:accelerator:v1": b"type:nvidia-l4;count:2;install-nvidia-driver",
        "beam:resources:cpu_count:v1": b"4",
        "beam:resources:min_ram_bytes:v1": str(3 << 30).encode(),
    }


# --- options -------------------------------------------------------------------------------------------------------


def test_options_of_the_user_stay_as_they_are(engine, tmp_path):
    options = PipelineOptions(["--direct_num_workers=1"])
    before = dict(options.get_all_options())
    mine = BeamEngine(options)
    mine.run_splits(Work("ingest", 1, 1), [(0, 0)], lambda number, split: Counts())
    assert options.get_all_options() == before


def test_only_runners_of_this_machine_take_a_local_scratch_folder(tmp_path):
    here = ["--runner=PortableRunner", "--job_endpoint=127.0.0.1:1", "--environment_type=LOOPBACK"]
    elsewhere = ["--runner=PortableRunner", "--job_endpoint=127.0.0.1:1", "--environment_type=DOCKER"]
    assert runs_here(pipeline_options(here))
    assert not runs_here(pipeline_options(elsewhere))
    BeamEngine(here)
    for scratch in (None, str(tmp_path)):
        with pytest.raises(ConfigError, match="give a URL such as gs://bucket/folder"):
            BeamEngine(elsewhere, scratch=scratch)


def test_a_dry_run_stops_before_anything_is_read_into_the_next_stage(graphs):
    engine = BeamEngine(["--dry_run=1"])
    with pytest.raises(JobNotRun, match=r"^ingest: .*not submitted"):
        engine.run_splits(Work("ingest", 1, 1), [(0, 0)], lambda number, split: Counts())


# --- coders and steps without a recipe -----------------------------------------------------------------------------


def test_coders_keep_rows_schema_and_metadata():
    batch = pa.record_batch({"a": [1, None, 3], "b": ["x", "", None]}).slice(1)
    batch = batch.replace_schema_metadata({"k": "v"})
    again = RecordBatchCoder().decode(RecordBatchCoder().encode(batch))
    assert again.equals(batch, check_metadata=True)
    table = pa.table({"a": pa.chunked_array([[1], [2, 3]])})
    assert TableCoder().decode(TableCoder().encode(table)).equals(table)
    assert TableCoder().decode(TableCoder().encode(table.slice(3))).schema == table.schema


def test_an_encoded_slice_does_not_carry_the_rows_around_it():
    batch = pa.record_batch({"a": pa.array(range(100_000), pa.int64())})
    assert len(RecordBatchCoder().encode(batch.slice(5, 10))) < 1000


MESSAGES = [
    {"messages": [{"role": "user", "channel": None, "recipient": None, "content": "Why is the sky blue?"},
                  {"role": "assistant", "channel": "final", "recipient": None, "content": text}]}
    for text in ("Because air scatters short waves of light most of all.", "", "Weil die Luft blaues Licht streut.")
]  # fmt: skip
STEPS = [AnswerStep(), LanguageStep(keep=["en"], min_score=0.0), LanguageStep(name="again")]


def with_verdict(steps, batch):
    """What `ApplySteps` is to give for a batch without a verdict."""
    done = next(apply(steps, [batch.append_column(pa.field("verdict", VERDICT), pa.nulls(batch.num_rows, VERDICT))]))
    return done.select([*(name for name in done.schema.names if name != "verdict"), "verdict"])


def message_batch():
    return pa.RecordBatch.from_pylist(MESSAGES, pa.schema([PROMPT.field("messages")]))


@pytest.mark.parametrize("make", [lambda batch: batch, lambda batch: pa.Table.from_batches([batch])])
def test_steps_over_arrow_elements(make):
    expected = with_verdict(STEPS, message_batch())
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        done = pipeline | beam.Create([make(message_batch())]) | ApplySteps(STEPS)
        assert_that(done, equal_to([make(expected)]))
    assert [item and item["step"] for item in expected.column("verdict").to_pylist()] == [None, "answer", "language"]
    assert expected.column("again_detected_language").to_pylist() == ["en", None, None]


def test_steps_over_dictionaries_and_rows():
    schema = message_batch().schema
    expected = with_verdict(STEPS, message_batch()).to_pylist()
    for rows in (MESSAGES, [beam.Row(**item) for item in MESSAGES]):
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            done = pipeline | beam.Create(rows) | ToArrow(schema) | ApplySteps(STEPS)
            assert_that(done | beam.FlatMap(pa.RecordBatch.to_pylist), equal_to(expected))


def test_a_step_reads_a_field_of_the_elements():
    batch = pa.record_batch({"level": [3, 1, None], "score": ["a", "b", "c"]})
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        done = pipeline | beam.Create([batch]) | ApplySteps([LevelStep(least=2)])
        assert_that(done, equal_to([with_verdict([LevelStep(least=2)], batch)]))
    done = with_verdict([LevelStep(least=2)], batch)
    assert done.column("above").to_pylist() == [1, -1, None]
    assert verdicts(done) == [None, ("level", "low", "1"), None]


class Opened(Step):
    """Counts how often it was opened, in a file."""

    kind: str = "opened"
    log: str

    def open(self):
        with Path(self.log).open("a") as file:
            file.write("opened\n")
        return lambda batch: append(batch, pa.schema([]), [])


def test_a_worker_opens_its_steps_once_and_a_verdict_that_is_there_stays(tmp_path):
    batch = with_verdict([AnswerStep()], message_batch())
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        batches = [batch.slice(n, 1) for n in range(3)]
        done = pipeline | beam.Create(batches, reshuffle=False) | ApplySteps([Opened(log=str(tmp_path / "log"))])
        assert_that(done, equal_to(batches))
    assert (tmp_path / "log").read_text() == "opened\n"


def test_a_column_of_another_arrow_type_is_cast():
    large = message_batch().column("messages").cast(pa.large_list(PROMPT.field("messages").type.value_type))
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        batch = pa.record_batch([large], pa.schema([pa.field("messages", large.type, nullable=False)]))
        done = pipeline | beam.Create([batch], reshuffle=False) | ApplySteps(STEPS)
        assert_that(done, equal_to([with_verdict(STEPS, message_batch())]))


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (pa.record_batch({"text": ["a"]}), r"step 'answer' reads \['messages'\]"),
        (pa.record_batch({"messages": ["a"]}), "column 'messages' is string, but the steps read it as list<"),
    ],
)
def test_a_missing_or_wrong_column_is_a_schema_error(caplog, batch, told):
    def run_it():
        with beam.Pipeline(runner="FnApiRunner") as pipeline:
            _ = pipeline | beam.Create([batch]) | ApplySteps(STEPS)

    with caplog.at_level(logging.CRITICAL), pytest.raises(Exception, match=told):
        run_it()


# --- what a process of its own loads -------------------------------------------------------------------------------

QUIET = """
import sys
calls = []
sys.addaudithook(lambda event, args: event in ("socket.connect", "socket.getaddrinfo") and calls.append(args[-1]))
from etl.engine import Work
from etl.storage.progress import Counts
from etl.engines.beam import BeamEngine
engine = BeamEngine()
engine.run_splits(Work("toy", 2, 2), [(0, 0), (1, 1)], lambda number, split: Counts())
engine.close()
print(calls, sorted({"pyspark", "py4j", "torch"} & set(sys.modules)))
"""


def test_a_run_speaks_to_nobody_loads_no_other_engine_and_says_nothing():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, cwd=PROJECT, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[] []\n", "")
