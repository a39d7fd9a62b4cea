import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data.streams import index_of, part
from training.data.stream.deal import deal_lanes, documents_of_lanes, lanes_of_pairs, whole_units
from training.data.stream.order import own_lanes
from training.data.stream.plan import split_parts

PARTS = st.lists(
    st.tuples(
        st.sampled_from(["B1", "B2", "B3"]),
        st.lists(st.integers(0, 50), min_size=1, max_size=4),
        st.one_of(st.none(), st.integers(0, 10_000)),
    ),
    min_size=1,
    max_size=5,
)


def parts_of(drawn):
    return [
        part(f"split=train/skill_bucket={cell}/ctx_bucket=C1/part-{i}-x", groups, tokens)
        for i, (cell, groups, tokens) in enumerate(drawn)
    ]


@given(PARTS, st.integers(1, 9), st.integers(0, 3))
def test_lanes_own_every_row_exactly_once(drawn, lanes, seed):
    parts = parts_of(drawn)
    owned = [
        (unit.part, unit.row_group, row)
        for lane in deal_lanes(parts, lanes, seed)
        for unit in lane
        for row in range(unit.start, unit.stop)
    ]
    expected = [(i, g, row) for i, p in enumerate(parts) for g, rows in enumerate(p.row_groups) for row in range(rows)]
    assert sorted(owned) == expected


@given(PARTS, st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
def test_a_rank_finds_the_documents_of_each_lane_in_one_index(drawn, num_lanes, world, seed):
    world = min(num_lanes, world)
    lanes = deal_lanes(parts_of(drawn), num_lanes, seed)
    for rank in range(world):
        own = [lanes[lane] for lane in own_lanes(rank, world, num_lanes)]
        units = whole_units(own)
        groups = [(unit.part, unit.row_group) for unit in units]
        assert groups == sorted(set(groups))
        rows = [(unit.part, unit.row_group, row) for unit in units for row in range(unit.start, unit.stop)]
        for lane, numbers in zip(own, documents_of_lanes(units, own), strict=True):
            expected = [(unit.part, unit.row_group, row) for unit in lane for row in range(unit.start, unit.stop)]
            assert [rows[number] for number in numbers] == expected


def cells_by_lane(parts, lanes):
    """[lanes, cells]: rows."""
    cells = sorted({p.path.split("/")[1] for p in parts})
    counts = np.zeros((len(lanes), len(cells)), int)
    for lane, units in enumerate(lanes):
        for unit in units:
            counts[lane, cells.index(parts[unit.part].path.split("/")[1])] += unit.stop - unit.start
    return counts


@pytest.mark.parametrize("num_lanes", [1, 3, 8, 64])
def test_each_lane_is_a_small_image_of_the_corpus(num_lanes):
    parts = [part(f"split=train/skill_bucket=B{cell}/ctx_bucket=C1/part-{i}-x", [40, 7, 90], 137 * 50)
             for cell in range(3) for i in range(4 - cell)]  # fmt: skip
    counts = cells_by_lane(parts, deal_lanes(parts, num_lanes, 0))
    exact = counts.sum(axis=0) / num_lanes
    assert np.abs(counts - exact).max() < 2


def test_few_rows_of_many_cells_do_not_all_fall_to_the_same_lanes():
    parts = [part(f"split=train/skill_bucket=B{cell}/ctx_bucket=C1/part-0-x", [4], 400) for cell in range(64)]
    lanes = cells_by_lane(parts, deal_lanes(parts, 64, 0))
    assert lanes.sum() == 256
    assert (lanes.sum(axis=1) > 0).sum() > 40


def test_lanes_depend_on_the_seed_and_not_on_the_order_of_parts_or_on_digests_in_names():
    parts = [part(f"split=train/a=B1/b=C1/part-{i}-aa", [10, 10], 1000) for i in range(8)]
    renamed = [part(f"split=train/a=B1/b=C1/part-{i}-bb", [10, 10], 1000) for i in range(8)]
    dealt = deal_lanes(split_parts(parts, "train"), 4, 0)
    assert deal_lanes(split_parts(parts[::-1], "train"), 4, 0) == dealt
    assert deal_lanes(split_parts(renamed, "train"), 4, 0) == dealt
    assert deal_lanes(parts, 4, 1) != dealt


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("num_groups", [10, 16, 100])
def test_ranks_share_at_most_one_row_group_a_border(world, num_groups):
    parts = [part(f"split=train/a=B{cell}/b=C1/part-0-x", [20] * num_groups, 999) for cell in range(3)]
    lanes = deal_lanes(parts, 64, 0)
    read = sum(len(whole_units([lanes[lane] for lane in own_lanes(rank, world, 64)])) for rank in range(world))
    assert read <= 3 * (num_groups + world - 1)
    if world <= 4:
        assert read <= 1.3 * 3 * num_groups


def test_both_sides_of_a_pair_are_in_one_lane_and_lanes_are_even():
    pairs = [(1 + number, side) for number in range(2000) for side in (0, 1)]
    index = index_of([5] * 4000, pairs=pairs)
    index.pair[:] *= np.int64(0x1E3779B97F4A7C15)
    lanes = lanes_of_pairs(index, 8, 3).reshape(2000, 2)
    assert (lanes[:, 0] == lanes[:, 1]).all()
    counts = np.bincount(lanes[:, 0], minlength=8)
    assert counts.min() > 190
    assert counts.max() < 310
    single = lanes_of_pairs(index_of([5] * 4000), 8, 3)
    assert np.bincount(single, minlength=8).min() > 380
