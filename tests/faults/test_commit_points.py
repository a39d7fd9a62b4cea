"""Killed before, amid and after every operation on storage, then run again: equal manifests, no row lost or doubled.

Operations are the commit points: plan, part, receipt, deletion of losing parts, manifest, and the clearing of an older
dataset. Local: 20 ms a kill; S3: 0.3 s.
"""

import random
from collections import Counter

import pytest

from etl.storage.dataset import MANIFEST
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.engines.inprocess import KilledError
from tests.faults.kills import MANY_OBJECTS, Moment, Operation, Reaper, reaping
from tests.faults.readers import arrow_values, committed, duck_values, manifest_values, wrong_rows
from tests.faults.toybuilds import OLD_ROWS, ROWS, SHAPES, Shape


@pytest.fixture
def reaper():
    with reaping() as made:
        yield made


def killed_at(shape: Shape, folder: Location, reaper: Reaper, due: int, moment: Moment) -> Operation | None:
    """The operation at which a build was killed; None when it came to its end before."""
    reaper.arm(due, moment)
    try:
        shape.build(folder)
    except KilledError:
        pass
    finally:
        killed = reaper.killed_at
        reaper.disarm()
    return killed


def assert_nothing_half_written(folder: Location) -> None:
    """Who finds a manifest finds exactly its rows, with or without knowing about manifests."""
    dataset = committed(folder)
    if dataset is not None:
        rows = manifest_values(dataset, "n")
        assert rows in (OLD_ROWS, ROWS)
        assert arrow_values(folder, "n") == rows


def assert_whole(folder: Location, manifest: bytes) -> None:
    assert (folder / MANIFEST).read() == manifest
    assert wrong_rows(folder, "n", ROWS) == (0, 0)
    assert list(verify(folder)) == []


def kill_everywhere(shape: Shape, folders, reaper: Reaper, moment: Moment, older: bool) -> Counter:
    """Kill one build after another, each at the next operation; how often each kind of operation was hit."""
    shape.build(reference := folders())
    manifest = (reference / MANIFEST).read()
    hit: Counter = Counter()
    while True:
        folder = folders()
        if older:
            shape.build(folder, version=1)
        operation = killed_at(shape, folder, reaper, hit.total(), moment)
        if operation is None:
            return hit
        hit[kind(operation)] += 1
        assert_nothing_half_written(folder)
        shape.build(folder)
        assert_whole(folder, manifest)
        if hit.total() % 5 == 0:
            # Slower than the rest together.
            assert duck_values(folder, "n") == ROWS


def kind(operation: Operation) -> str:
    """The name of a commit point."""
    name = operation.url.rpartition("/")[2]
    if name.startswith("part-"):
        return f"{operation.name} part"
    if "/_receipts/" in operation.url:
        return f"{operation.name} receipt"
    return f"{operation.name} {name}" if name.startswith("_") and name.endswith(".json") else operation.name


COMMIT_POINTS = {"create _plan.json", "take part", "create receipt", "remove part", "replace _manifest.json"}
CLEARING = {"remove _manifest.json", "remove _plan.json", "remove_children"}


@pytest.mark.parametrize("older", [False, True], ids=["empty", "older"])
@pytest.mark.parametrize("moment", [Moment.BEFORE, Moment.AFTER])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_killed_anywhere_on_a_local_disk(shape, local_folders, reaper, moment, older):
    hit = kill_everywhere(shape, local_folders, reaper, moment, older)
    assert set(hit) >= COMMIT_POINTS | (CLEARING if older else set())
    assert hit["create receipt"] == shape.num_splits + 1


@pytest.mark.slow
@pytest.mark.parametrize("moment", [Moment.BEFORE, Moment.AFTER])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_killed_anywhere_on_s3(shape, s3_folders, reaper, moment):
    hit = kill_everywhere(shape, s3_folders, reaper, moment, older=True)
    assert set(hit) >= COMMIT_POINTS | CLEARING


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_killed_while_many_objects_are_removed(shape, folders, reaper):
    shape.build(reference := folders())
    manifest = (reference / MANIFEST).read()
    shape.build(folder := folders(), version=1)
    reaper.disarm()
    shape.build(folder)
    due = [number for number, operation in enumerate(reaper.seen) if operation.name in MANY_OBJECTS]
    assert due
    for number in due:
        shape.build(folder := folders(), version=1)
        assert killed_at(shape, folder, reaper, number, Moment.AMID) is not None
        assert_nothing_half_written(folder)
        shape.build(folder)
        assert_whole(folder, manifest)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_killed_again_and_again(shape, folders, reaper):
    """Each run is killed some operations after it has taken up the work of the last."""
    shape.build(reference := folders())
    manifest = (reference / MANIFEST).read()
    shape.build(folder := folders(), version=1)
    draw = random.Random(shape.name)
    kills = 0
    while killed_at(shape, folder, reaper, draw.randrange(8), draw.choice([Moment.BEFORE, Moment.AFTER])) is not None:
        assert_nothing_half_written(folder)
        kills += 1
    assert kills >= 4
    assert_whole(folder, manifest)
