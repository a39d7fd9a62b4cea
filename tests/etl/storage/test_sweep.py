"""What a sweep takes and what it leaves: each kind of leftover, ages, live locks, and a run's own results."""

import json
import time

import pytest

from etl.errors import ConfigError, DataError
from etl.storage.dataset import CHECKPOINTS, CLOSED, MANIFEST, PLAN, RECEIPTS, TASK_COSTS, Dataset
from etl.storage.location import Location
from etl.storage.lock import LOCK, Holder, RunLock
from etl.storage.manifest import Plan, to_json
from etl.storage.sweep import find_leftovers, parse_age, remove_leftovers
from etl.storage.verify import verify
from tests.etl.storage.builds import InLine, begin, chunks_of, job

SPLITS = [[[1, 2], [3]], [[4]]]
HOUR_S = 3600.0


def build(folder: Location) -> None:
    engine = InLine()
    engine.map(job(folder), SPLITS, chunks_of)
    engine.settle()


@pytest.fixture
def output(folder):
    """A run's output: two committed datasets, a build that did not end, and a file of the user's."""
    for stage in ("ingest", "rounds/cut-0"):
        build(folder / stage)
    _, _, writer = begin(job(folder / "later"), SPLITS)
    writer.write(0, chunks_of(SPLITS[0]))
    (folder / "notes.txt").create(b"mine")
    return folder


def swept(folder: Location, older_than_s: float = 0.0, later_s: float = 10.0) -> list[str]:
    """What would go, as if it were a little later."""
    return [item.path for item in find_leftovers(folder, older_than_s, time.time() + later_s)]


def everything(folder: Location) -> dict[str, bytes]:
    return {path: (folder / path).read() for path, _ in folder.walk()}


def test_a_clean_output_has_no_leftovers(output):
    assert swept(output) == []
    assert swept(output / "ingest") == []


DEAD = Holder.me().model_copy(update={"started": "1"})
"""A run that died."""
LEFTOVERS = [
    "_probe-1.tmp",
    f"_lock-{'a' * 32}.json",
    f"ingest/_{MANIFEST}.1.tmp",
    f"ingest/{CHECKPOINTS}/any/00000/0000000000.arrow",
    f"ingest/{CLOSED}/any",
    f"ingest/{RECEIPTS}/other/00000.json",
    f"ingest/{TASK_COSTS}/any/00000.json",
    "ingest/part-00000-0000000000000000.parquet",
    "ingest/split=train/part-00000-0000000000000000.parquet",
    f"later/{CHECKPOINTS}/other/00000/0000000000.arrow",
    f"later/{RECEIPTS}/other/00000.json",
    f"later/{TASK_COSTS}/other/00000.json",
    "later/part-00001-0000000000000000.parquet",
]


def test_every_kind_of_leftover_goes_and_nothing_else(output):
    before = everything(output)
    plan = json.loads((output / "later" / PLAN).read())
    checkpoint = f"later/{CHECKPOINTS}/{plan['fingerprint']}/00001/0000000000.arrow"
    cost = f"later/{TASK_COSTS}/{Plan.model_validate(plan).name}/map-00000.json"
    for path in (checkpoint, cost):
        (output / path).create(b"x")
        before[path] = b"x"
    for path in LEFTOVERS:
        (output / path).create(to_json(DEAD) if "_lock" in path else b"x")
    assert swept(output) == sorted(LEFTOVERS)
    assert everything(output).keys() == before.keys() | set(LEFTOVERS)
    remove_leftovers(output, find_leftovers(output, 0.0, time.time() + 10))
    assert everything(output) == before
    assert [item.kind for item in verify(output)] == ["uncommitted"]


def test_a_swept_build_is_resumed(output):
    (output / "later/part-00001-0000000000000000.parquet").create(b"x")
    remove_leftovers(output, find_leftovers(output, 0.0, time.time() + 10))
    engine = InLine()
    engine.map(job(output / "later"), SPLITS, chunks_of)
    engine.settle()
    assert engine.asked == [[1]]
    assert Dataset.open(output / "later").manifest.rows_out == 4


def test_what_is_young_stays(output):
    (output / "ingest/stray").create(b"x")
    assert swept(output, HOUR_S, later_s=0.0) == []
    assert swept(output, HOUR_S, later_s=HOUR_S + 60) == ["ingest/stray"]


def test_a_folder_without_datasets_is_left_alone(folder):
    for path in ("a.parquet", "b/c.txt", "_d"):
        (folder / path).create(b"x")
    assert swept(folder) == []


@pytest.mark.parametrize("inside", [".", "ingest", "later"])
def test_a_live_lock_stops_a_sweep(output, inside):
    (output / "ingest/stray").create(b"x")
    place = output if inside == "." else output / inside
    with RunLock(output if inside != "later" else place):
        with pytest.raises(DataError, match=r"is held by process \d+ on .*; sweep after that run has ended"):
            swept(output if inside == "later" else place)
        if inside == ".":
            with pytest.raises(DataError, match="is held by"):
                remove_leftovers(output, [])
    assert swept(output) == ["ingest/stray"]


def test_a_dead_lock_goes(output):
    (output / LOCK).create(to_json(DEAD))
    (output / "ingest" / LOCK).create(to_json(DEAD))
    assert swept(output) == [LOCK, f"ingest/{LOCK}"]
    remove_leftovers(output, find_leftovers(output, 0.0, time.time() + 10))
    assert swept(output) == []
    assert not (output / LOCK).exists()


def test_a_damaged_plan_is_told(output):
    (output / "later" / PLAN).replace(b"{")
    (output / "later/stray").create(b"x")
    with pytest.raises(DataError, match=r"_plan\.json is damaged"):
        swept(output)


@pytest.mark.parametrize(("text", "age_s"), [("90s", 90), ("30m", 1800), ("24h", 86400), ("0s", 0), ("1.5d", 129600)])
def test_ages(text, age_s):
    assert parse_age(text) == age_s


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1w", "1h "])
def test_ages_that_are_none(text):
    with pytest.raises(ConfigError, match="is not an age"):
        parse_age(text)
