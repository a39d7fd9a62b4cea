"""The engine protocol: what both verbs have in common, whatever runs the tasks."""

from dataclasses import dataclass

import pyarrow as pa
import pytest

from etl.engine import Exchange
from etl.storage.dataset import Chunk, Job
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


@pytest.mark.parametrize("num_buckets", [1, 3, 4, 9])
def test_a_shuffle_goes_on_with_another_number_of_buckets_without_losing_a_row(tmp_path, num_buckets):
    with pytest.raises(KilledError):
        shuffle(tmp_path, DyingEngine(2), 4)
    dataset = shuffle(tmp_path, InProcessEngine(), num_buckets)
    assert sorted(n for batch in dataset.read() for n in batch.column("n").to_pylist()) == list(range(30))
    assert dataset.num_splits == num_buckets


def test_a_shuffle_with_the_same_number_of_buckets_does_the_missing_ones(tmp_path):
    with pytest.raises(KilledError):
        shuffle(tmp_path, DyingEngine(3), 4)
    engine = InProcessEngine()
    shuffle(tmp_path, engine, 4)
    assert len(engine.ran) == 1
