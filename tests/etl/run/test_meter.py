"""The metered engine: what it counts of jobs, and what it keeps of a map side."""

import pyarrow as pa

from etl.engine import Exchange
from etl.laws import GroupCopies, Growth
from etl.run.meter import MeteredEngine
from etl.storage.build import Chunk, Job
from etl.storage.location import Location

SCHEMA = pa.schema([("bucket", pa.int32()), ("n", pa.int64()), ("row", pa.int64())])
NUMBER = pa.schema([("n", pa.int64())])


def emit(split):
    columns = [pa.array([0, 1], pa.int32()), pa.array([split, 10 * split]), pa.array([split, split])]
    yield pa.record_batch(columns, schema=SCHEMA)


def write(number):
    yield Chunk(pa.record_batch([pa.array([number])], schema=NUMBER))


def keep(bucket, batches):
    yield from (Chunk(batch.select(["n"])) for batch in batches)


def job(folder, name, **more):
    return Job(Location.of(folder / name), name, "NUMBER", NUMBER, {}, **more)


def shuffle(engine, one):
    engine.shuffle(one, Exchange((1, 2, 3), emit, SCHEMA, ("n",), 2), keep)


def test_a_shuffle_counts_its_tasks_and_what_its_map_side_emits(tmp_path):
    engine = MeteredEngine()
    shuffle(engine, job(tmp_path, "words"))
    use = engine.uses["words"]
    assert (use.tasks, use.shuffle_bytes, use.shuffle_rows) == (5, 3 * 2 * (4 + 8 + 8), 6)
    assert use.cpu_s > 0
    assert engine.emitted == {}


def test_the_columns_that_a_law_looks_at_are_kept_of_a_map_side(tmp_path):
    engine = MeteredEngine()
    shuffle(engine, job(tmp_path, "kept", grows=Growth(GroupCopies("n"))))
    shuffle(engine, job(tmp_path, "other"))
    kept = {"n": [1, 10, 2, 20, 3, 30], "row": [1, 1, 2, 2, 3, 3]}
    assert {name: table.to_pydict() for name, table in engine.emitted.items()} == {"kept": kept}


def test_jobs_are_known_in_the_order_in_which_they_were_asked_for(tmp_path):
    """Two maps that run as one have one entry of what they took; what the driver writes is one task."""
    engine = MeteredEngine()
    first = engine.map(job(tmp_path, "first"), (1, 2), write)
    second = engine.map(job(tmp_path, "second"), (1, 2), write)
    engine.drive(job(tmp_path, "third"), lambda writer: writer.write(0, write(7)))
    assert first.done()
    assert second.done()
    assert list(engine.jobs) == ["first", "second", "third"]
    assert {name: use.tasks for name, use in engine.uses.items()} == {"first+second": 2, "third": 1}
