"""Overlaps of sources against counting in plain Python."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.overlap import Overlap

NAMES = ("a", "b", "c")


def counted(groups: list[list[int]]) -> dict[str, dict[str, int]]:
    found: Counter[tuple[str, str]] = Counter()
    for group in groups:
        for place, source in enumerate(group):
            others = {other for k, other in enumerate(group) if k != place}
            for other in others:
                found[NAMES[source], NAMES[other]] += 1
    table: dict[str, dict[str, int]] = {}
    for (name, inside), count in found.items():
        table.setdefault(name, {})[inside] = count
    return table


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=8), st.lists(st.integers(0, 50)))
def test_any_cut_of_the_stream_gives_the_same_counts(groups: list[list[int]], cuts: list[int]) -> None:
    source = np.array([source for group in groups for source in group], np.int64)
    starts = np.array([place == 0 for group in groups for place in range(len(group))], np.bool_)
    overlap = Overlap(NAMES)
    for start, end in itertools.pairwise([0, *sorted(min(cut, len(source)) for cut in cuts), len(source)]):
        overlap.push(starts[start:end], source[start:end])
    assert overlap.finish() == counted(groups)
