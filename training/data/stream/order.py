"""Which lane gives pack p of the run, and which rank owns which lane; only numbers.

Ranks own contiguous blocks of lanes, so that they share few row groups; the lanes take turns in an order that spreads
any few consecutive packs over all blocks, whatever the number of ranks. For 2^a, 3 · 2^a and 7 · 2^a lanes (2^a <= 64)
every world that divides the lanes gets exactly global_batch_packs / world packs a rank and step, where it divides that
number too (checked for each such world; the order of 64 lanes is the one of reversed bits). Other worlds get at most a
few packs more than an even share (3 ranks of 64 lanes: 9 instead of 8 of 24, 88 instead of 86 of 256): a rank's lanes
have turns in proportion to their number. Cost: some lanes² operations, once a process.
"""

import math
from functools import cache

import numpy as np

from etl.arrays import I64


@cache
def lane_order(num_lanes: int) -> tuple[int, ...]:
    """The lane of each of `num_lanes` consecutive packs; pack p of the run comes from entry p mod `num_lanes`.

    Greedy: each turn goes to the free lane that breaks the evenness of the fewest worlds, and among those to where most
    lanes are still free. A world of d ranks is even while each d consecutive packs, counted from a multiple of d, are
    of d different ranks.
    """
    worlds = [d for d in range(2, num_lanes) if num_lanes % d == 0]
    owner = np.array([np.arange(num_lanes) * d // num_lanes for d in worlds], np.int64).reshape(-1, num_lanes)
    free = np.ones(num_lanes, bool)
    had_turn = np.zeros((len(worlds), num_lanes), bool)
    """Of each world: whether a rank has had its turn since the last multiple of d."""
    order = []
    for turn in range(num_lanes):
        broken = np.zeros(num_lanes)
        room = np.zeros(num_lanes)
        for number, (world, ranks) in enumerate(zip(worlds, owner, strict=True)):
            if turn % world == 0:
                had_turn[number] = False
            broken += had_turn[number][ranks]
            room += np.bincount(ranks[free], minlength=world)[ranks] * (world / num_lanes)
        candidates = np.flatnonzero(free & (broken == broken[free].min()))
        lane = int(candidates[np.argmax(room[candidates])])
        order.append(lane)
        free[lane] = False
        had_turn[np.arange(len(worlds)), owner[:, lane]] = True
    return tuple(order)


def own_lanes(rank: int, world: int, num_lanes: int) -> range:
    """The lanes of a rank: contiguous blocks that differ by at most one lane."""
    return range(rank * num_lanes // world, (rank + 1) * num_lanes // world)


def lane_of_packs(packs: I64, num_lanes: int) -> I64:
    """The lane of each pack of the run: int64 [packs]."""
    return np.array(lane_order(num_lanes), np.int64)[packs % num_lanes]


def turns(place: int, num_lanes: int, start: int, stop: int) -> int:
    """How many packs p with start <= p < stop are at `place` of the order, i.e. congruent to it modulo `num_lanes`."""
    return (stop - 1 - place) // num_lanes - (start - 1 - place) // num_lanes


@cache
def micro_steps(num_lanes: int, global_batch_packs: int, world: int) -> int:
    """The largest number of packs that any rank of a world has in any step of a run.

    Exact: turns and steps meet again after the least common multiple of the two numbers, so so many packs are counted.
    """
    rank_of = np.empty(num_lanes, np.int64)
    for rank in range(world):
        lanes = own_lanes(rank, world, num_lanes)
        rank_of[lanes.start : lanes.stop] = rank
    packs = np.arange(math.lcm(num_lanes, global_batch_packs))
    counts = np.bincount(packs // global_batch_packs * world + rank_of[lane_of_packs(packs, num_lanes)])
    return int(counts.max())
