"""How far a job is, from what its tasks leave beside the dataset: the same lines on every engine."""

import io
import itertools
import time

import pyarrow as pa
import pytest

from etl.engine import Exchange
from etl.engines.beam import BeamEngine
from etl.engines.local import LocalEngine
from etl.engines.spark import SparkEngine
from etl.live import LiveLine
from etl.run.told import Lines, StageLines
from etl.storage.build import Chunk, Job
from etl.storage.location import Location
from etl.voice import Voice

NUMBERS = pa.schema([("n", pa.int64())])
DEALT = pa.schema([("bucket", pa.int32()), ("n", pa.int64())])


class Gates(LiveLine):
    """A live line that opens a file for each number of parts that it has shown, and keeps what it has shown."""

    def __init__(self, folder):
        super().__init__(io.StringIO, pause_s=0)
        self.folder = folder
        self.shown = []

    def show(self, text):
        if text not in self.shown:
            self.shown.append(text)
        done = text.partition(": ")[2].split(" of ")[0]
        (self.folder / f"shown-{done}").touch()


def wait_for(gate):
    """Until a line was shown; the timeout of the test ends it otherwise."""
    while not gate.exists():
        time.sleep(0.005)


class Write:
    """Split i has 10 · (i + 1) rows, and is written when i parts were seen to be there."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, split):
        if split:
            wait_for(self.folder / f"shown-{split}")
        rows = 10 * (split + 1)
        lost = {"in": rows, "made": 0, "kept": rows - split, "odd": split}
        yield Chunk(pa.record_batch([pa.array(range(rows - split))], NUMBERS), rows, {"toy": {"step": lost}})


class Emit(Write):
    """The map side of split i ends when i parts were seen."""

    def __call__(self, split):
        if split:
            wait_for(self.folder / f"shown-{split}")
        yield pa.record_batch([pa.array([0], pa.int32()), pa.array([split])], DEALT)


class Reduce(Write):
    """A bucket is written when both tasks of the map side were seen."""

    def __call__(self, bucket, batches):
        rows = sum(batch.num_rows for batch in batches)
        wait_for(self.folder / "shown-2")
        yield Chunk(pa.record_batch([pa.array(range(rows))], NUMBERS), rows)


@pytest.fixture(params=["local", "beam", "spark"])
def engine(request):
    if request.param == "spark":
        return SparkEngine(request.getfixturevalue("spark"))
    return LocalEngine() if request.param == "local" else BeamEngine()


@pytest.fixture
def watched(engine, tmp_path):
    """A watched job of the stage `numbers`: two seconds have passed at each look."""
    live = Gates(tmp_path)
    clock = itertools.chain([0.0], itertools.repeat(2.0))
    lines = StageLines(["ingest", "numbers"], Lines(Voice(lambda line: None, live=live)), clock.__next__)
    lines.enter("numbers")
    lines.began("numbers", "numbers")
    engine.onlooker = lines
    return Job(Location.of(tmp_path / "numbers"), "numbers", "NUMBERS", NUMBERS, {}), live


def test_a_map_is_watched_by_its_receipts(engine, watched, tmp_path):
    job, live = watched
    engine.map(job, range(3), Write(tmp_path)).result()
    assert [text for text in live.shown if not text.startswith("2/2 numbers: 0 of")][:2] == [
        "2/2 numbers: 1 of 3 parts, 10 rows, 5.0 rows/s, 4.0 s left",
        "2/2 numbers: 2 of 3 parts, 30 rows, 1 lost, 15 rows/s, 1.0 s left",
    ]


def test_the_map_side_of_a_shuffle_is_watched_by_what_its_tasks_cost(engine, watched, tmp_path):
    job, live = watched
    engine.shuffle(job, Exchange((0, 1), Emit(tmp_path), DEALT, ("n",), 1), Reduce(tmp_path))
    assert [text for text in live.shown if not text.startswith("2/2 numbers: 0 of")][:2] == [
        "2/2 numbers: 1 of 3 parts, 4.0 s left",
        "2/2 numbers: 2 of 3 parts, 1.0 s left",
    ]
