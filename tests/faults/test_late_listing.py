"""A store whose LIST lags behind what was written and deleted, while everything by name is up to date.

Commits rely on receipts that are read by name, so no lag loses a row. A lag can only keep what was deleted late: parts
that an older build or a losing attempt wrote; they are removed by the names in receipts.
"""

import pytest

from etl.storage.location import Location
from etl.storage.verify import verify
from tests.engines.inprocess import KilledError
from tests.faults.kills import Moment, reaping
from tests.faults.readers import committed, manifest_values, wrong_rows
from tests.faults.toybuilds import OLD_ROWS, ROWS, SHAPES
from tests.services.latelist import late_listing

LAGS = (1, 4, 16, 10_000)
"""Operations until LIST has caught up; the last is never."""
pytestmark = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def settled(folder: Location) -> Location:
    """The folder, when LIST has caught up."""
    folder.fs.settle()
    return folder


def assert_whole(folder: Location, rows: list[int]) -> None:
    dataset = committed(folder)
    assert dataset is not None
    assert manifest_values(dataset, "n") == rows
    assert wrong_rows(settled(folder), "n", rows) == (0, 0)
    assert list(verify(settled(folder))) == []


@pytest.mark.parametrize("lag", LAGS)
def test_a_build(shape, tmp_path, lag):
    folder = late_listing(tmp_path, "data", lag)
    shape.build(folder)
    assert_whole(folder, ROWS)


@pytest.mark.parametrize("lag", LAGS)
def test_a_build_over_an_older_one(shape, tmp_path, lag):
    """The older parts may not be in any listing yet when they have to go."""
    folder = late_listing(tmp_path, "data", lag)
    shape.build(folder, version=1)
    assert manifest_values(committed(folder), "n") == OLD_ROWS
    shape.build(folder)
    assert_whole(folder, ROWS)


@pytest.mark.parametrize("lag", LAGS)
def test_back_and_forth(shape, tmp_path, lag):
    folder = late_listing(tmp_path, "data", lag)
    for version, rows in ((2, ROWS), (1, OLD_ROWS), (2, ROWS)):
        shape.build(folder, version)
        assert manifest_values(committed(folder), "n") == rows
    assert_whole(folder, ROWS)


@pytest.mark.parametrize("lag", LAGS)
def test_a_receipt_of_a_build_that_was_given_up_does_not_count_when_it_is_begun_again(shape, tmp_path, lag):
    """It names parts that are gone, and a new plan's receipts are not looked at before its splits run."""
    folder = late_listing(tmp_path, "data", lag)
    shape.end_late(folder)
    shape.build(folder, version=1)
    shape.build(folder)
    assert_whole(folder, ROWS)


@pytest.mark.parametrize("lag", LAGS)
def test_an_attempt_that_ends_after_the_commit(shape, tmp_path, lag):
    """It removes its own part, so no listing is needed."""
    folder = late_listing(tmp_path, "data", lag)
    shape.build(folder)
    shape.end_late(folder)
    assert_whole(folder, ROWS)


@pytest.mark.parametrize("moment", [Moment.BEFORE, Moment.AFTER])
def test_killed_anywhere(shape, tmp_path, moment):
    lag = 4
    expected = shape.build(late_listing(tmp_path / "expected", "data", lag)).manifest
    due = 0
    with reaping() as reaper:
        while True:
            reaper.disarm()
            folder = late_listing(tmp_path / f"{due}", "data", lag)
            shape.build(folder, version=1)
            reaper.arm(due, moment)
            try:
                shape.build(folder)
            except KilledError:
                reaper.disarm()
            else:
                break
            assert shape.build(folder).manifest == expected
            assert_whole(folder, ROWS)
            due += 1
    assert due > 20
