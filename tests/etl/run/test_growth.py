"""The laws by which duplicates grow, against simulation and against whole samples."""

import numpy as np
import pyarrow as pa
import pytest

from etl.run.growth import HOT_ROWS, CandidateGrowth, Duplicates, grow, grow_groups, pair_weights, partners_of, window


@pytest.mark.parametrize("size", [2, 5, 40])
@pytest.mark.parametrize("scale", [3.0, 10.0])
def test_families_are_found_again_from_a_sample(size, scale):
    """Families of `size` rows, each row in the sample by chance; every row of the sample is a piece of its own."""
    rng = np.random.default_rng(size)
    count = 40_000 // size
    family = np.repeat(np.arange(count), size)
    chosen = np.flatnonzero(rng.random(len(family)) < 1 / scale)
    left, right = [], []
    for member in np.split(chosen, np.flatnonzero(np.diff(family[chosen])) + 1):
        one, other = np.triu_indices(len(member), 1)
        left += member[one].tolist()
        right += member[other].tolist()
    a, b = np.array(left, np.int64) << 32, np.array(right, np.int64) << 32
    grown = grow(a, b, pair_weights(a, b, scale), scale, 1e9)
    assert grown.pairs == pytest.approx(count * size * (size - 1) / 2, rel=0.15)
    assert grown.rows == pytest.approx(count * size, rel=0.4)
    assert grown.removed == pytest.approx(count * (size - 1), rel=0.4)


def test_two_rows_of_a_piece_stand_for_fewer_pairs():
    piece, other = np.array([1 << 32, (1 << 32) + 1]), np.array([(1 << 32) + 5, 2 << 32])
    assert pair_weights(piece, other, 10.0).tolist() == [10.0, 100.0]


def test_a_whole_sample_has_the_partners_that_it_shows():
    numbers, shares = partners_of(np.array([0, 0, 2, 0]), 1.0)
    assert numbers.tolist() == [1.0, 3.0]
    assert shares.tolist() == [0.75, 0.25]


def test_a_hot_band_grows_as_rows_do():
    """100 rows of one band with at most 4 partners: ten times the rows have about ten times the pairs."""
    bands = pa.table({"band": np.zeros(100, np.int64), "key": np.arange(100), "row": np.arange(100) << 32})
    left = np.concatenate([np.arange(100 - apart) for apart in range(1, 5)]) << 32
    right = np.concatenate([np.arange(apart, 100) for apart in range(1, 5)]) << 32
    met = CandidateGrowth.of(bands, (left, right), 4, 10.0)
    assert len(met.left) == 4 * 100 - 10
    assert met.weights.sum() == pytest.approx(4 * 1000 - 10)
    assert len(CandidateGrowth.of(bands, (left[:7], right[:7]), 4, 10.0).left) == 7


@pytest.mark.parametrize("size", [2, 5, 40])
@pytest.mark.parametrize("scale", [3.0, 10.0])
def test_groups_are_found_again_from_a_sample(size, scale):
    """Groups of `size` rows, each row in the sample by chance, and single rows."""
    rng = np.random.default_rng(size)
    count = 40_000 // size
    group = np.concatenate([np.repeat(np.arange(count), size), count + np.arange(20_000)])
    chosen = np.flatnonzero(rng.random(len(group)) < 1 / scale)
    grown = grow_groups(group[chosen], chosen << 32, scale)
    assert grown.rows == pytest.approx(count * size, rel=0.4)
    assert grown.removed == pytest.approx(count * (size - 1), rel=0.4)
    _, seen = np.unique(group[chosen], return_counts=True)
    assert grown.sample_removed == pytest.approx((seen - 1).sum())
    assert grown.sample_rows == seen[seen > 1].sum()
    assert grown.removed_factor == grown.removed / grown.sample_removed


def test_groups_of_a_whole_sample_are_what_they_are():
    sizes = [1, 2, 3, HOT_ROWS - 1, HOT_ROWS, 30]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    grown = grow_groups(groups, np.arange(len(groups)) << 32, 1.0)
    assert grown.rows == grown.sample_rows == sum(sizes) - 1
    assert grown.removed == pytest.approx(sum(size - 1 for size in sizes))
    assert grown.sample_removed == pytest.approx(grown.removed)
    assert grown.pairs == grown.sample_pairs == sum(size * (size - 1) // 2 for size in sizes)


def test_two_units_of_one_row_are_a_pair_of_its_piece():
    grown = grow_groups(np.array([4, 4]), np.array([7 << 32, 7 << 32]), 10.0)
    assert (grown.pairs, grown.rows, grown.removed) == (10.0, 20.0, 10.0)


def test_without_duplicates_nothing_grows():
    grown = grow_groups(np.arange(5), np.arange(5), 10.0)
    assert grown == Duplicates()
    assert grown.removed_factor == grown.row_factor == 1.0


def test_a_window_pairs_each_thing_with_those_before_it_of_its_group():
    left, right = window(np.array([0, 0, 0, 0, 3]), 2)
    assert sorted(zip(left.tolist(), right.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    assert [len(places) for places in window(np.empty(0, np.int64), 2)] == [0, 0]
