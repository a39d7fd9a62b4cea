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
