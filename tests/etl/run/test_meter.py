"""The metered engine: what it counts of jobs, and what it keeps of a map side."""

import pyarrow as pa

from etl.engine import Counts, Exchange, Work
from etl.run.meter import MeteredEngine

SCHEMA = pa.schema([("bucket", pa.int32()), ("n", pa.int64())])


def emit(split):
    yield pa.record_batch([pa.array([0, 1], pa.int32()), pa.array([split, 10 * split])], schema=SCHEMA)


def count(bucket, batches):
    return Counts(sum(batch.num_rows for batch in batches))


def exchange(job, engine):
    engine.run_buckets(Work(job, 2, 2), [0, 1], Exchange((1, 2, 3), emit, SCHEMA, ("n",), 2), count)


def test_a_shuffle_counts_its_tasks_and_the_bytes_of_its_map_side():
    engine = MeteredEngine({})
    exchange("words", engine)
    use = engine.jobs["words"]
    assert (use.tasks, use.shuffle_bytes) == (5, 3 * 2 * (4 + 8))
    assert use.cpu_s > 0
    assert engine.emitted == {}


def test_the_chosen_columns_of_a_map_side_are_kept():
    engine = MeteredEngine({"kept": ("n",)})
    exchange("kept", engine)
    exchange("other", engine)
    assert {job: table.to_pydict() for job, table in engine.emitted.items()} == {"kept": {"n": [1, 10, 2, 20, 3, 30]}}


def test_a_map_counts_its_splits():
    engine = MeteredEngine({})
    engine.run_splits(Work("map", 2, 2), [(0, "a"), (1, "b")], lambda number, value: Counts(number))
    assert (engine.jobs["map"].tasks, engine.jobs["map"].shuffle_bytes) == (2, 0)
