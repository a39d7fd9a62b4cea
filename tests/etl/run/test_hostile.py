"""Somebody else's folder is data: whatever its JSON objects say, no command leaves it, crashes or hangs."""

import functools
import itertools
import json
import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import DataError
from etl.run.costs import keep_estimate
from etl.run.run import run_recipe
from etl.storage.costs import COSTS, DATASET_COSTS, ESTIMATE
from etl.storage.dataset import MANIFEST, TASK_COSTS, Dataset
from etl.storage.local_files import local_stamp
from etl.storage.location import Location
from etl.storage.lock import LOCK
from etl.storage.sweep import find_leftovers, remove_leftovers
from etl.storage.verify import verify
from tests.engines.inprocess import DyingEngine, InProcessEngine, KilledError
from tests.etl.run.hostile import SECRET, Watched, leave_locks, mutations
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, row, run, write_jsonl

ALL = ["filter", "dedup", "tokenize", "layout"]
SHORT = ["filter", "tokenize", "layout"]
OTHER = {"steps": [{"kind": "answer"}]}
HANGS_S = 120
"""No example takes a tenth of that."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A source of 16 rows and one that is quarantined."""
    return write_jsonl(tmp_path_factory.mktemp("in") / "a.jsonl", [*mixed_rows(16), {"synth_id": 5}])


@pytest.fixture(scope="module")
def recipe_of(source):
    """Makes the recipe of an output: with its stages, and with another filter."""

    def recipe(output, stages=ALL, steps=FILTER):
        return make_recipe(output, {"a": source}, stages=stages, filter=steps)

    return recipe


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, recipe_of):
    """By name, an output as a run has left it, and the recipe that meets it."""
    folder = tmp_path_factory.mktemp("outputs")
    run(recipe_of(folder / "finished"))
    keep_estimate(recipe_of(folder / "finished"), 1, 1, {"ingest": 1.0})
    with pytest.raises(KilledError):
        run(recipe_of(folder / "killed"), DyingEngine(25))
    run(recipe_of(folder / "stale"))
    run(recipe_of(folder / "stale", SHORT))
    for path in folder.iterdir():
        leave_locks(path)
    return {
        "finished": (folder / "finished", recipe_of),
        "changed": (folder / "finished", functools.partial(recipe_of, steps=OTHER)),
        "killed": (folder / "killed", recipe_of),
        "stale": (folder / "stale", functools.partial(recipe_of, stages=SHORT)),
    }


@pytest.fixture
def watchdog():
    """Ends a test that hangs with the traceback of where it does."""

    def bark(*_: object) -> None:
        raise AssertionError(f"no end after {HANGS_S} s")

    before = signal.signal(signal.SIGALRM, bark)
    yield functools.partial(signal.alarm, HANGS_S)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def meet(outputs, name, folders, watchdog, examples):
    """Change one object in as many copies of an output, and give every command each of them."""
    output, recipe = outputs[name]
    changes = list(mutations(output))

    # Neighbours in the list change one object: a number that is drawn evenly reaches all of them.
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(number=st.integers(0, 2**32 - 1))
    def change(number):
        watched = Watched(next(folders), output)
        watched.change(changes[number * 2_654_435_761 % 2**32 % len(changes)])
        watchdog()
        watched.check(watched.meet(recipe))

    change()


@pytest.fixture
def folders(tmp_path):
    return (tmp_path / str(number) for number in itertools.count())


CASES = {"finished": 15, "changed": 4, "killed": 10, "stale": 4}


@pytest.mark.parametrize("name", CASES)
def test_one_hostile_value(outputs, name, folders, watchdog):
    meet(outputs, name, folders, watchdog, CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_hostile_values(outputs, name, folders, watchdog):
    meet(outputs, name, folders, watchdog, 4 * CASES[name])


def test_the_mutations_reach_every_kind_of_object(outputs):
    names = {Path(change.file).name for change in mutations(outputs["finished"][0])}
    assert {"_plan.json", "_manifest.json", "_run.json", LOCK, "00000.json", DATASET_COSTS, COSTS, ESTIMATE} <= names
    assert any(f"/{TASK_COSTS}/" in change.file for change in mutations(outputs["killed"][0]))


# --- the cases of security.md by name


def watched_copy(outputs, name, folder) -> tuple[Watched, Location]:
    watched = Watched(folder, outputs[name][0])
    return watched, Location.of(watched.output)


def rewrite(place: Path, change) -> None:
    tree = json.loads(place.read_bytes())
    change(tree)
    place.write_text(json.dumps(tree))


def test_s1_a_forged_lock_deletes_nothing_outside(outputs, tmp_path, watchdog, recipe_of):
    watched, place = watched_copy(outputs, "finished", tmp_path / "w")
    rewrite(watched.output / LOCK, lambda tree: tree.update(run="x/../../victim/x"))
    old = watched.output / "_a.tmp"
    old.touch()
    os.utime(old, (0, 0))
    watchdog()
    leftovers = find_leftovers(place, 3600, old.stat().st_mtime + 10**6)
    assert LOCK not in [item.path for item in leftovers]
    remove_leftovers(place, leftovers)
    assert not old.exists()
    run_recipe(recipe_of(watched.output), InProcessEngine(), lambda _: None)
    watched.check([])
    assert [item.path for item in verify(place) if item.kind == "lock"] == [LOCK]


def test_s2_a_hand_edited_receipt_deletes_nothing_outside(outputs, tmp_path, recipe_of):
    watched, _ = watched_copy(outputs, "finished", tmp_path / "w")
    (receipt,) = (watched.output / "filter/_receipts").glob("*/00000.json")
    rewrite(receipt, lambda tree: tree["parts"][0].update(path="../../victim/x"))
    with pytest.raises(DataError, match=r"parts.0.path: must be a path inside the folder"):
        run_recipe(recipe_of(watched.output, steps=OTHER), InProcessEngine(), lambda _: None)
    watched.check([])


@pytest.mark.parametrize("path", ["../../victim/x.parquet", "/../../victim/x.parquet", "file:///{victim}/x.parquet"])
def test_s8_no_row_is_read_from_outside(outputs, tmp_path, path):
    watched, place = watched_copy(outputs, "finished", tmp_path / "w")
    pq.write_table(pa.table({"id": [SECRET]}), watched.victim / "x.parquet")
    text = path.format(victim=watched.victim)
    rewrite(watched.output / "ingest" / MANIFEST, lambda tree: tree["parts"][0].update(path=text))
    with pytest.raises(DataError, match=r"_manifest.json is damaged: parts.0.path: must be a path inside"):
        Dataset.open(place / "ingest")
    assert not any(SECRET in str(item) for item in verify(place))


def test_s8_no_receipt_is_read_from_outside(outputs, tmp_path):
    watched, place = watched_copy(outputs, "finished", tmp_path / "w")
    rewrite(watched.output / "ingest" / MANIFEST, lambda tree: tree.update(receipts="../../../victim"))
    told = [str(item) for item in verify(place)]
    assert any("receipts: must match pattern" in line for line in told)
    watched.check(told)


def test_s8_a_forged_plan_makes_no_run_read_another_file(tmp_path, source, recipe_of):
    """The plan of a run that was killed in ingest: what its tasks still have to read is what the run itself lists."""
    with pytest.raises(KilledError):
        run(recipe_of(tmp_path / "base"), DyingEngine(0))
    watched = Watched(tmp_path / "w", tmp_path / "base")
    victim = write_jsonl(tmp_path / "other/x.jsonl", [row(1, SECRET, SECRET)])
    forged = {
        "relative": os.path.relpath(victim, source.parent),
        "bytes": victim.stat().st_size,
        "etag": local_stamp(victim.stat()),
    }

    def forge(tree):
        tree["splits"][0]["input"]["pieces"][-1]["file"].update(forged)

    rewrite(watched.output / "ingest/_plan.json", forge)
    run_recipe(recipe_of(watched.output), InProcessEngine(), lambda _: None)
    assert SECRET not in str(list(Dataset.open(str(watched.output / "ingest")).read(["messages"])))
    watched.check([])


@pytest.mark.parametrize(
    "changes",
    [
        {"run": "e" * 32},
        {"beat_unix_s": "x"},
        {"pid": "x"},
        {"since_unix_s": "x"},
        {"since_unix_s": 1e30},
        {"pid": 2**70},
        {"beat_unix_s": float("nan")},
    ],
)
def test_s9_forged_locks_stop_nothing(outputs, tmp_path, watchdog, recipe_of, changes):
    watched, place = watched_copy(outputs, "finished", tmp_path / "w")
    rewrite(watched.output / LOCK, lambda tree: tree.update(changes))
    (watched.output / f"_lock-{'e' * 32}.json").write_bytes((watched.output / LOCK).read_bytes())
    watchdog()
    run_recipe(recipe_of(watched.output), InProcessEngine(), lambda _: None)
    remove_leftovers(place, find_leftovers(place, 0, 10**10))
    watched.check([])


def test_a_million_splits_are_told_in_a_few_lines(outputs, tmp_path):
    watched, place = watched_copy(outputs, "finished", tmp_path / "w")
    for splits, told in ((10**9, "splits: must be less than or equal to 1000000"), (10**6, "are missing")):
        rewrite(watched.output / "ingest" / MANIFEST, lambda tree: tree.update(splits=splits))  # noqa: B023
        lines = [str(item) for item in verify(place / "ingest")]
        assert any(told in line for line in lines)
        assert len(lines) < 200
