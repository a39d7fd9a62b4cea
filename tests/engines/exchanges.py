"""Toy shuffles for the tests of engines: rows of every kind of key, and numbers that are written as a dataset."""

import pickle
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from hypothesis import strategies as st

from etl.engine import Exchange, Work
from etl.storage.build import Chunk
from etl.storage.progress import Counts

NUMBER = pa.schema([("n", pa.int64())])
KEYS = pa.schema([("bucket", pa.int32()), ("word", pa.binary()), ("text", pa.string()), ("n", pa.int64())])
ROW = st.tuples(
    st.integers(0, 3),
    st.none() | st.binary(max_size=2),
    st.none() | st.text(alphabet="aé\U0001f600\uffff", max_size=2),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)


@dataclass(frozen=True)
class EmitRows:
    """The rows that a split consists of, a few to a batch."""

    def __call__(self, split):
        for at in range(0, len(split), 3):
            rows = [dict(zip(KEYS.names, row, strict=True)) for row in split[at : at + 3]]
            yield pa.RecordBatch.from_pylist(rows, KEYS)


@dataclass(frozen=True)
class LeaveRows:
    """Leaves what a bucket got in a file."""

    folder: Path

    def __call__(self, bucket, batches):
        rows = [tuple(row.values()) for batch in batches for row in batch.to_pylist()]
        (self.folder / str(bucket)).write_bytes(pickle.dumps(rows))
        return Counts(len(rows), len(rows))


def exchanged(runner, folder, splits, buckets):
    """What each bucket got from a runner."""
    folder.mkdir()
    exchange = Exchange(splits, EmitRows(), KEYS, ("word", "text", "n"), 4)
    runner.run_buckets(Work("words", len(buckets), 4), buckets, exchange, LeaveRows(folder))
    return {int(path.name): pickle.loads(path.read_bytes()) for path in folder.iterdir()}


WORDS = pa.schema([("bucket", pa.int32()), ("n", pa.int64())])


def emit_numbers(split):
    yield pa.record_batch([pa.array([0, 1], pa.int32()), pa.array([split, 10 * split])], schema=WORDS)


def write_numbers(bucket, batches):
    rows = pa.Table.from_batches(list(batches), WORDS)
    yield Chunk(pa.record_batch([rows["n"].combine_chunks()], schema=NUMBER), len(rows))
