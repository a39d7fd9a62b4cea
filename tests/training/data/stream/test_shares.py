import numpy as np
import pytest

from etl.errors import ConfigError
from training.data.stream.shares import Groups

CELLS = ("B1/C1", "B1/C2", "B2/C1", "B2/C2", "B3/C1")


def test_the_cells_of_a_pattern_are_one_group_and_shares_sum_to_one():
    groups = Groups.of({"B1/*": 1, "*/C2": 2, "B1/C2": 1}, CELLS)
    assert groups.patterns == ("*/C2", "B1/*", "B1/C2")
    assert groups.shares == (0.5, 0.25, 0.25)
    assert groups.of_cell.tolist() == [1, 2, -1, 0, -1]


def test_the_order_in_which_patterns_are_written_does_not_matter():
    shares = {"*": 1, "B1/*": 2, "B?/C1": 3, "B1/C1": 4}
    one, other = (Groups.of(dict(items), CELLS) for items in (shares.items(), reversed(shares.items())))
    assert (one.patterns, one.shares) == (other.patterns, other.shares)
    assert np.array_equal(one.of_cell, other.of_cell)
    assert [one.patterns[group] for group in one.of_cell] == ["B1/C1", "B1/*", "B?/C1", "*", "B?/C1"]


def test_a_share_of_zero_leaves_cells_out():
    groups = Groups.of({"*": 1, "B1/*": 0}, CELLS)
    assert groups.patterns == ("*",)
    assert groups.of_cell.tolist() == [-1, -1, 0, 0, 0]


def test_without_shares_all_documents_are_one_group():
    groups = Groups.of(None, CELLS)
    assert groups.shares == (1.0,)
    assert groups.of_cell.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"B9/*": 1, "*": 1}, r"'B9/\*' of data.shares matches no remaining cell.* B1/C1, B1/C2"),
        ({"B1/*": 1, "*/C2": 1}, r"'\*/C2' of data.shares both match the cell B1/C2; add 'B1/C2'"),
        ({"B3/C?": 1, "B3/C1": 1}, "'B3/C.' of data.shares matches no remaining cell"),
    ],
)
def test_a_pattern_that_cannot_be_followed_is_named(shares, message):
    with pytest.raises(ConfigError, match=message):
        Groups.of(shares, CELLS)


def test_a_group_that_cannot_reach_every_lane_is_named():
    groups = Groups.of({"B1/*": 1, "B2/*": 3}, CELLS)
    rows = dict(zip(CELLS, (5, 3, 20, 20, 1), strict=True))
    groups.check_rows(rows, 8)
    with pytest.raises(
        ConfigError, match=r"'B1/\*' 0.25 of the tokens, but the corpus has 8 documents there for 9 lanes"
    ):
        groups.check_rows(rows, 9)
