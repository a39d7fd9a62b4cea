"""The engine protocol: what both verbs have in common, whatever runs the tasks."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from etl.engine import Exchange
from etl.errors import DataError
from etl.storage.build import Chunk, Job
from etl.storage.dataset import DatasetRef
from etl.storage.location import Location
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
