"""Exact similarity against Python sets."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.verify import jaccard_pairs


@given(st.lists(st.sets(st.integers(0, 12) | st.integers(0, 2**64 - 1)), min_size=1, max_size=6))
def test_every_pair_has_the_jaccard_of_its_sets(sets: list[set[int]]) -> None:
    offsets = np.cumsum([0, *map(len, sets)]).astype(np.int64)
    hashes = np.array([h for members in sets for h in sorted(members)], np.uint64)
    left, right = (side.ravel().astype(np.int64) for side in np.indices((len(sets), len(sets))))
    union = [len(sets[a] | sets[b]) for a, b in zip(left, right, strict=True)]
    shared = [len(sets[a] & sets[b]) for a, b in zip(left, right, strict=True)]
    expected = [s / u if u else 0.0 for s, u in zip(shared, union, strict=True)]
    assert jaccard_pairs(offsets, hashes, left, right).tolist() == expected


def test_no_pairs_give_no_similarities() -> None:
    none = np.empty(0, np.int64)
    assert jaccard_pairs(np.array([0, 1]), np.array([7], np.uint64), none, none).tolist() == []


def test_long_sets_are_compared_as_short_ones_are() -> None:
    chance = np.random.default_rng(1)
    sets = [np.unique(chance.integers(0, 400, size).astype(np.uint64)) for size in (0, 1, 31, 32, 33, 100, 300, 900)]
    sets += [sets[6] + np.uint64(200), sets[7] + np.uint64(1 << 63), sets[5]]
    offsets = np.cumsum([0, *map(len, sets)]).astype(np.int64)
    left, right = (side.ravel().astype(np.int64) for side in np.indices((len(sets), len(sets))))
    shared = np.array([len(np.intersect1d(sets[a], sets[b])) for a, b in zip(left, right, strict=True)])
    union = np.array([len(np.union1d(sets[a], sets[b])) for a, b in zip(left, right, strict=True)])
    found = jaccard_pairs(offsets, np.concatenate(sets), left, right)
    assert found.tolist() == (shared / np.maximum(1, union)).tolist()
