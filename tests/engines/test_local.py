"""The local engine in this process and in a pool: the oracle's rows and order, errors as we raise them, no scratch."""

import pickle
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl.engine import Counts, Exchange, Work
from etl.engines.local import LocalEngine
from etl.storage.build import Job
from etl.storage.location import Location
from tests.engines.inprocess import InProcessEngine

KEYS = pa.schema([("bucket", pa.int32()), ("word", pa.binary()), ("text", pa.string()), ("n", pa.int64())])
ROW = st.tuples(
    st.integers(0, 3),
    st.none() | st.binary(max_size=2),
    st.none() | st.text(alphabet="aé\U0001f600\uffff", max_size=2),
    st.none() | st.integers(-(2**63), 2**63 - 1),
)
NUMBER = pa.schema([("n", pa.int64())])
WORDS = pa.schema([("bucket", pa.int32()), ("n", pa.int64())])


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Two workers, whose temporary files and the engine's own lie in a folder of this module."""
    before = tempfile.tempdir
    tempfile.tempdir = str(tmp_path_factory.mktemp("scratch"))
    engine = LocalEngine(processes=2)
    yield engine
    engine.close()
    assert scratch() == []
    tempfile.tempdir = before


@pytest.fixture(params=["here", "pool"])
def engine(request, tmp_path, monkeypatch):
    if request.param == "here":
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return LocalEngine()
    return request.getfixturevalue("pool")


def scratch() -> list[Path]:
    """What engines and workers have left in the folder for temporary files; a living pool may have an empty one."""
    found = Path(tempfile.gettempdir()).glob("stillhouse-*")
    return [path for path in found if not path.name.startswith("stillhouse-local-") or any(path.iterdir())]


def job(folder, stage):
    return Job(Location.of(folder / stage), stage, "NUMBERS", NUMBER, {"x": 1})


# --- the order of a bucket -----------------------------------------------------------------------------------------


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


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(ROW, max_size=12), max_size=4), st.sets(st.integers(0, 3), min_size=1))
def test_wanted_buckets_get_their_rows_in_the_order_of_the_oracle(engine, tmp_path_factory, splits, wanted):
    """Nulls first, binary and text bytewise, buckets without rows; splits without rows and no splits at all."""
    folder = tmp_path_factory.mktemp("exchange")
    made = exchanged(engine, folder / "local", tuple(splits), sorted(wanted))
    assert made == exchanged(InProcessEngine(), folder / "inprocess", tuple(splits), sorted(wanted))
    assert sorted(made) == sorted(wanted)
    assert scratch() == []
