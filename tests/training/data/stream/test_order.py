import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.stream.order import lane_of_packs, lane_order, micro_steps, own_lanes, turns


@given(st.integers(1, 130))
def test_each_lane_has_one_turn_in_a_round(lanes):
    assert sorted(lane_order(lanes)) == list(range(lanes))


@given(st.integers(1, 64), st.integers(1, 64))
def test_ranks_own_all_lanes_in_blocks_of_about_one_size(lanes, world):
    world = min(world, lanes)
    owned = [own_lanes(rank, world, lanes) for rank in range(world)]
    assert [lane for block in owned for lane in block] == list(range(lanes))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1


def test_64_lanes_take_turns_in_the_order_of_reversed_bits():
    assert lane_order(64) == tuple(int(f"{lane:06b}"[::-1], 2) for lane in range(64))


EXACT = [2**a * b for b in (1, 3, 7) for a in range(7)]


@pytest.mark.parametrize("lanes", EXACT)
def test_worlds_that_divide_lanes_and_packs_have_exactly_even_steps(lanes):
    for world in (world for world in range(1, lanes + 1) if lanes % world == 0):
        for times in (1, 2, 5):
            assert micro_steps(lanes, times * world, world) == times


@pytest.mark.parametrize("lanes", [5, 60, 64, 100, 168])
def test_other_worlds_have_a_few_packs_more_than_an_even_share(lanes):
    for world in range(1, 17):
        for batch in (1, 4, 6, 16, 64):
            if world <= lanes:
                fair = -(-batch * -(-lanes // world) // lanes)
                assert fair <= micro_steps(lanes, batch, world) <= fair + 3


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 12))
def test_micro_steps_is_the_most_that_a_rank_has_in_a_long_run(lanes, batch, world):
    world = min(world, lanes)
    lane_of = lane_of_packs(np.arange(lanes * batch * 3), lanes)
    most = max(
        sum(lane in own_lanes(rank, world, lanes) for lane in lane_of[start : start + batch].tolist())
        for rank in range(world)
        for start in range(0, len(lane_of), batch)
    )
    assert micro_steps(lanes, batch, world) == most


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 40))
def test_turns_counts_the_packs_of_a_place(lanes, start, size):
    for place in range(lanes):
        assert turns(place, lanes, start, start + size) == sum(p % lanes == place for p in range(start, start + size))
