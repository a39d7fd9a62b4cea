"""The engine protocol: what both verbs have in common, whatever runs the tasks."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from etl.engine import Exchange, MeasuredEmit
from etl.errors import DataError
from etl.storage.build import Chunk, Job
from etl.storage.costs import EngineCost, read_dataset_costs, write_cost
from etl.storage.dataset import DatasetRef
from etl.storage.location import Location
from etl.usage import Usage
from tests.engines.inprocess import DyingEngine, InProcessEngine, KilledError

ROUTED = pa.schema([("bucket", pa.int32()), ("n", pa.int64())])
NUMBER = pa.schema([("n", pa.int64())])


@dataclass(frozen=True)
class Deal:
    """The numbers of a split, dealt to buckets."""

    num_buckets: int

    def __call__(self, split):
        numbers = range(10 * split, 10 * split + 10)
        buckets = [n % self.num_buckets for n in numbers]
        yield pa.record_batch([pa.array(buckets, pa.int32()), pa.array(numbers, pa.int64())], schema=ROUTED)


def keep(bucket, batches):
    for batch in batches:
        yield Chunk(batch.select(["n"]).cast(NUMBER), batch.num_rows)


def shuffle(folder, engine, num_buckets):
    exchange = Exchange((0, 1, 2), Deal(num_buckets), ROUTED, ("n",), num_buckets)
    return engine.shuffle(Job(Location.of(folder), "toy", "NUMBER", NUMBER, {"version": 1}), exchange, keep)


@dataclass(frozen=True)
class Write:
    """The numbers of a split."""

    def __call__(self, split):
        yield Chunk(pa.record_batch([pa.array(split, pa.int64())], schema=NUMBER), len(split))


@dataclass(frozen=True)
class Double:
    """Twice the numbers of a split of another dataset."""

    table: DatasetRef

    def __call__(self, split):
        for batch in self.table.read_split(split):
            yield Chunk(pa.record_batch([pc.multiply(batch.column("n"), 2)], schema=NUMBER), batch.num_rows)


def one_and_two(folder, engine, numbers, version):
    """DIR/one of the numbers, DIR/two aligned with it."""
    work = Job(Location.of(folder / "one"), "one", "NUMBER", NUMBER, {"version": version})
    one = engine.map(work, numbers, Write())
    work = Job(Location.of(folder / "two"), "two", "NUMBER", NUMBER, {}, (one,), one)
    return one, engine.map(work, range(len(numbers)), Double(one.ref))


def test_maps_that_wait_run_as_one_job_when_a_result_is_asked_for(tmp_path):
    engine = InProcessEngine()
    one, two = one_and_two(tmp_path, engine, [[1, 2], [3]], 1)
    assert (one.done(), two.done(), engine.ran) == (False, False, [])
    assert sorted(n for batch in two.result().read() for n in batch.column("n").to_pylist()) == [2, 4, 6]
    assert one.done()
    assert sorted(engine.ran) == [("one+two", 0), ("one+two", 1)]


def test_what_is_committed_stays_when_its_input_is_written_again_with_the_same_rows(tmp_path):
    one_and_two(tmp_path, InProcessEngine(), [[1, 2], [3]], 1)[1].result()
    engine = InProcessEngine()
    one_and_two(tmp_path, engine, [[1, 2], [3]], 2)[1].result()
    assert {stage for stage, _ in engine.ran} == {"one"}
    _, two = one_and_two(tmp_path, engine, [[1, 2], [4]], 3)
    assert sorted(n for batch in two.result().read() for n in batch.column("n").to_pylist()) == [2, 4, 8]


def test_a_dataset_that_failed_has_no_result(tmp_path):
    engine = InProcessEngine()
    work = Job(Location.of(tmp_path / "one"), "one", "NUMBER", NUMBER, {})
    pending = engine.map(work, [["no number"]], Write())
    with pytest.raises(pa.ArrowInvalid):
        pending.result()
    with pytest.raises(DataError, match="was not committed; run again to resume"):
        pending.result()


@pytest.mark.parametrize("num_buckets", [1, 3, 4, 9])
def test_a_shuffle_goes_on_with_another_number_of_buckets_without_losing_a_row(tmp_path, num_buckets):
    with pytest.raises(KilledError):
        shuffle(tmp_path, DyingEngine(2), 4)
    dataset = shuffle(tmp_path, InProcessEngine(), num_buckets)
    assert sorted(n for batch in dataset.read() for n in batch.column("n").to_pylist()) == list(range(30))
    assert dataset.ref.num_splits == num_buckets


def test_a_shuffle_with_the_same_number_of_buckets_does_the_missing_ones(tmp_path):
    with pytest.raises(KilledError):
        shuffle(tmp_path, DyingEngine(3), 4)
    engine = InProcessEngine()
    shuffle(tmp_path, engine, 4)
    assert len(engine.ran) == 1


# --- what it costs -------------------------------------------------------------------------------------------------


class Clock:
    """In the place of the meter of the process tree: 10 CPU-seconds and 4 s by the clock at each lap."""

    def lap(self):
        return Usage(10.0, 4.0)


@pytest.fixture
def ten_seconds_a_job(monkeypatch):
    """A job takes 10 CPU-seconds of the process tree; every task says that it took 1, the second dataset's tasks 3."""
    monkeypatch.setattr("etl.engine.TreeMeter", Clock)

    def write(folder, build, task, usage):
        write_cost(folder, build, task, Usage(3.0 if folder.name == "two" else 1.0, 0.5, 7))

    monkeypatch.setattr("etl.storage.build.write_cost", write)
    monkeypatch.setattr("etl.engine.write_cost", write)


def test_the_engine_takes_what_the_tasks_did_not_and_datasets_share_it_as_their_tasks_do(tmp_path, ten_seconds_a_job):
    one_and_two(tmp_path, InProcessEngine(), [[1, 2], [3]], 1)[1].result()
    one, two = (read_dataset_costs(Location.of(tmp_path / name)) for name in ("one", "two"))
    assert (sum(one.tasks.cpu_s), sum(two.tasks.cpu_s)) == (2.0, 6.0)
    assert (one.engine, two.engine) == (EngineCost(cpu_s=0.5, wall_s=1.0), EngineCost(cpu_s=1.5, wall_s=3.0))


def test_where_tasks_run_elsewhere_the_engine_is_the_driver(tmp_path, ten_seconds_a_job):
    class Remote(InProcessEngine):
        tasks_run_here = False

    shuffle(tmp_path, Remote(), 2)
    costs = read_dataset_costs(Location.of(tmp_path))
    assert costs.engine == EngineCost(cpu_s=10.0, wall_s=4.0)
    assert (costs.tasks.cpu_s, costs.map_side.cpu_s) == ((1.0, 1.0), (1.0, 1.0, 1.0))


def test_tasks_that_were_done_before_take_nothing_from_the_engine_of_this_job(tmp_path, ten_seconds_a_job):
    """Of 4 buckets 3 are kept; the last one and the map side, 3 tasks, are run."""
    with pytest.raises(KilledError):
        shuffle(tmp_path, DyingEngine(3), 4)
    shuffle(tmp_path, InProcessEngine(), 4)
    costs = read_dataset_costs(Location.of(tmp_path))
    assert costs.tasks.task == (0, 1, 2, 3)
    assert costs.engine.cpu_s == 10.0 - 4.0


def test_a_dataset_that_is_committed_again_keeps_what_it_took_before(tmp_path, ten_seconds_a_job):
    """Its manifest was removed: nothing is run, and the driver has spent another lap."""
    shuffle(tmp_path, InProcessEngine(), 2)
    place = Location.of(tmp_path)
    before = read_dataset_costs(place)
    (place / "_manifest.json").remove()
    engine = InProcessEngine()
    shuffle(tmp_path, engine, 2)
    assert engine.ran == []
    engine_cost = EngineCost(cpu_s=before.engine.cpu_s + 10.0, wall_s=8.0)
    assert read_dataset_costs(place) == before.model_copy(update={"engine": engine_cost})


def test_maps_that_cannot_run_as_one_are_measured_one_after_the_other(tmp_path):
    engine = InProcessEngine()
    for name, numbers in (("one", [[1]]), ("two", [[2], [3]])):
        engine.map(Job(Location.of(tmp_path / name), name, "NUMBER", NUMBER, {}), numbers, Write())
    engine.settle()
    assert read_dataset_costs(Location.of(tmp_path / "two")).tasks.task == (0, 1)


def test_what_the_driver_writes_is_one_task(tmp_path):
    work = Job(Location.of(tmp_path / "one"), "one", "NUMBER", NUMBER, {})
    InProcessEngine().drive(work, lambda writer: writer.write(0, Write()([1, 2])))
    assert read_dataset_costs(Location.of(tmp_path / "one")).tasks.task == (0,)


def test_a_map_side_is_measured_between_its_batches_alone(tmp_path, monkeypatch):
    """What the engine does with a batch before it asks for the next one is no task's."""
    at_work = []
    monkeypatch.setattr("etl.engine.TaskMeter.__enter__", lambda meter: at_work.append(True))
    monkeypatch.setattr("etl.engine.TaskMeter.__exit__", lambda meter, *_: at_work.pop())

    def emit(split):
        for _ in range(3):
            assert at_work == [True]
            yield split

    measured = MeasuredEmit(emit, Location.of(tmp_path), "a" * 32)
    for batch in measured((4, "split")):
        assert (batch, at_work) == ("split", [])
    (path,) = tmp_path.rglob("*.json")
    assert path.name == "map-00004.json"


def test_a_map_side_that_fails_says_nothing(tmp_path):
    def emit(split):
        yield split
        raise DataError("damaged")

    with pytest.raises(DataError):
        list(MeasuredEmit(emit, Location.of(tmp_path), "a" * 32)((0, "split")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("num_buckets", [1, 3])
def test_a_gathered_dataset_is_the_shuffled_one_and_is_written_in_the_job_of_a_map(tmp_path, num_buckets):
    made = shuffle(tmp_path / "shuffled", InProcessEngine(batch_rows=100), num_buckets)
    engine = InProcessEngine()
    exchange = Exchange((0, 1, 2), Deal(num_buckets), ROUTED, ("n",), num_buckets)
    job = Job(Location.of(tmp_path / "gathered"), "toy", "NUMBER", NUMBER, {"version": 1})
    found = engine.gather(job, exchange, keep)
    doubled = Job(Location.of(tmp_path / "doubled"), "doubled", "NUMBER", NUMBER, {}, (found,))
    assert not engine.ran
    engine.map(doubled, range(num_buckets), Double(found.ref)).result()
    assert [title for title, _ in engine.ran] == ["toy+doubled"] * num_buckets
    assert found.result().manifest == made.manifest
