"""Several attempts of one split, each to completion: at most one of them is read, whenever the others end.

Attempts are started by the test: together, after the commit, and from a build that was abandoned for another one.
"""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from etl.errors import DataError
from etl.storage.build import SplitWriter
from etl.storage.dataset import MANIFEST
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.engines.inprocess import KilledError
from tests.etl.storage.builds import InLine, begin, chunks_of, counted, job, numbers
from tests.faults.kills import Moment, reaping
from tests.faults.readers import arrow_values, duck_values, manifest_values, wrong_rows

ROWS = [1, 2, 3, 4]
ONE_GROUP = [[1, 2, 3, 4]]
TWO_GROUPS = [[1, 2], [3, 4]]


def attempt(writer: SplitWriter, groups: list[list[int]], partition: str = "") -> None:
    writer.write(0, [counted(numbers(*group), partition) for group in groups])


def data_files(folder: Location) -> list[str]:
    return [path for path, _ in folder.walk() if not path.startswith("_")]


def assert_whole(folder: Location, rows: list[int]) -> None:
    assert wrong_rows(folder, "n", rows) == (0, 0)
    assert duck_values(folder, "n") == rows
    assert list(verify(folder)) == []


class Meeting:
    """A writer's chunks that wait, before the last of them, until as many attempts have come as far."""

    def __init__(self, attempts: int) -> None:
        self._barrier = threading.Barrier(attempts)

    def chunks(self, groups: list[list[int]], partition: str = ""):
        for group in groups[:-1]:
            yield counted(numbers(*group), partition)
        self._barrier.wait(timeout=60)
        yield counted(numbers(*groups[-1]), partition)


@pytest.mark.parametrize(
    "cuts", [(ONE_GROUP, ONE_GROUP), (ONE_GROUP, TWO_GROUPS)], ids=["same bytes", "another row-group cut"]
)
@pytest.mark.parametrize("partition", ["", "side=left"], ids=["flat", "partitioned"])
def test_two_attempts_at_once(folders, cuts, partition):
    build, plan, writer = begin(job(folder := folders()), [0])
    meeting = Meeting(len(cuts))
    with ThreadPoolExecutor(len(cuts)) as pool:
        receipts = list(pool.map(lambda groups: writer.write(0, meeting.chunks(groups, partition)), cuts))
    assert receipts[0] == receipts[1]
    assert len(data_files(folder)) == 1
    dataset = build.commit(plan)
    assert manifest_values(dataset, "n") == ROWS
    assert_whole(folder, ROWS)


def test_an_attempt_with_other_rows_loses_whole(folders):
    """Attempts of one split should agree; where one does not, no reader sees a mixture."""
    build, plan, writer = begin(job(folder := folders()), [0])
    attempt(writer, ONE_GROUP)
    attempt(writer, [[7, 8, 9]])
    assert data_files(folder) == [part.path for part in build.commit(plan).manifest.parts]
    assert_whole(folder, ROWS)


@pytest.mark.parametrize("groups", [ONE_GROUP, TWO_GROUPS, [[7, 8]]], ids=["same bytes", "another cut", "other rows"])
def test_an_attempt_that_ends_after_the_commit(folders, groups):
    build, plan, writer = begin(job(folder := folders()), [0])
    attempt(writer, ONE_GROUP)
    build.commit(plan)
    before = (folder / MANIFEST).read()
    attempt(writer, groups)
    assert (folder / MANIFEST).read() == before
    assert_whole(folder, ROWS)


def test_a_straggler_that_is_killed_after_its_upload(folders):
    """The commit is over; only the next run can remove what it left."""
    engine = InLine()
    dataset = engine.map(job(folder := folders()), [ONE_GROUP], chunks_of).result()
    before = dataset.manifest
    _, _, writer = begin(job(folder), [ONE_GROUP])
    with reaping() as reaper:
        reaper.arm(0, Moment.AFTER)
        with pytest.raises(KilledError):
            attempt(writer, TWO_GROUPS)
    assert wrong_rows(folder, "n", ROWS) == (0, len(ROWS))
    assert engine.map(job(folder), [ONE_GROUP], chunks_of).result().manifest == before
    assert_whole(folder, ROWS)


@pytest.mark.parametrize("groups", [ONE_GROUP, [[7, 8]]], ids=["rows of the new build", "rows of its own"])
@pytest.mark.parametrize("moment", ["planned", "written", "committed"])
def test_a_straggler_of_a_build_that_was_given_up(folders, groups, moment):
    """Its part may have the very rows of the new build's, and must not take that one away with it."""
    folder = folders()
    _, _, old_writer = begin(job(folder, semantic={"version": 1}), [0])
    build, plan, writer = begin(job(folder, semantic={"version": 2}), [0])
    if moment != "planned":
        attempt(writer, ONE_GROUP)
    if moment == "committed":
        build.commit(plan)
    with pytest.raises(DataError, match="abandoned"):
        attempt(old_writer, groups)
    if moment == "planned":
        attempt(writer, ONE_GROUP)
    assert manifest_values(build.commit(plan), "n") == ROWS
    assert_whole(folder, ROWS)


def test_a_straggler_that_uploads_while_its_build_is_given_up(folders, monkeypatch):
    """Between the look at what is there and the removal of it, a part of the old build comes in."""
    folder = folders()
    _, _, old_writer = begin(job(folder, semantic={"version": 1}), [0])
    remove_children = Location.remove_children
    refused = []

    def slow(place: Location, **options) -> None:
        remove_children(place, **options)
        with pytest.raises(DataError, match="abandoned"):
            attempt(old_writer, [[7, 8]])
        refused.append(place)

    monkeypatch.setattr(Location, "remove_children", slow)
    build, plan, writer = begin(job(folder, semantic={"version": 2}), [0])
    attempt(writer, ONE_GROUP)
    build.commit(plan)
    assert refused == [folder]
    assert_whole(folder, ROWS)


def test_back_and_forth_between_two_configurations(folders):
    """The first build comes back; a straggler of its first time is one of its attempts again."""
    folder = folders()
    _, _, first = begin(job(folder, semantic={"version": 1}), [0])
    begin(job(folder, semantic={"version": 2}), [0])
    build, plan, again = begin(job(folder, semantic={"version": 1}), [0])
    attempt(first, TWO_GROUPS)
    attempt(again, ONE_GROUP)
    assert build.commit(plan).manifest.parts[0].row_groups == (2, 2)
    assert_whole(folder, ROWS)


def test_a_plain_reader_during_a_race_never_sees_a_committed_folder_with_two_attempts(folders):
    """Attempts and commits of many builds in threads; every manifest that is there is the whole truth."""
    folder = folders()
    for round_number in range(5):
        build, plan, writer = begin(job(folder, semantic={"version": round_number}), [0])
        with ThreadPoolExecutor(4) as pool:
            cuts = [ONE_GROUP, TWO_GROUPS, ONE_GROUP, [[1], [2, 3, 4]]]
            list(pool.map(functools.partial(attempt, writer), cuts))
        build.commit(plan)
        assert arrow_values(folder, "n") == ROWS
    assert_whole(folder, ROWS)
