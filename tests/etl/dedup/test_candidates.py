"""The stream against the definition in plain Python, for every way to cut it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.candidates import CandidateStream

groups = st.lists(st.integers(1, 9), max_size=6)


def stream_of(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Sorted (band, row) with the groups' sizes; rows differ from band to band."""
    band = np.repeat(np.arange(len(sizes), dtype=np.int64) * 1000 - 2000, sizes)
    row = np.concatenate([np.empty(0, np.int64), *[np.arange(n, dtype=np.int64) * 7 + i for i, n in enumerate(sizes)]])
    return band, row.astype(np.int64)


def expected_pairs(band: np.ndarray, row: np.ndarray, cap: int) -> list[tuple[int, int]]:
    pairs = []
    for i in range(len(band)):
        before = [k for k in range(i) if band[k] == band[i]]
        pairs += [(int(row[k]), int(row[i])) for k in before[-cap:]]
    return pairs


@given(groups, st.lists(st.integers(0, 60), max_size=8), st.integers(1, 4))
def test_any_chunking_gives_the_defined_pairs(sizes: list[int], cuts: list[int], cap: int) -> None:
    band, row = stream_of(sizes)
    stream = CandidateStream(max_partners=cap)
    pairs = []
    borders = [0, *sorted(min(cut, len(band)) for cut in cuts), len(band)]
    for start, end in itertools.pairwise(borders):
        left, right = stream.push(band[start:end], row[start:end])
        pairs += list(zip(left.tolist(), right.tolist(), strict=True))
    assert pairs == expected_pairs(band, row, cap)
    assert stream.num_pairs == len(pairs)
    assert stream.num_pairs + stream.num_left_out == sum(n * (n - 1) // 2 for n in sizes)


def test_a_hot_band_is_linear() -> None:
    rows = np.arange(100_000, dtype=np.int64)
    stream = CandidateStream()
    left, right = stream.push(np.zeros(100_000, np.int64), rows)
    assert len(left) == 64 * 100_000 - 64 * 65 // 2
    assert np.max(right - left) == 64
    assert stream.num_left_out == 100_000 * 99_999 // 2 - len(left)


@pytest.mark.parametrize("later", [(0, 1), (1, 2), (1, 1)])
def test_rows_out_of_order_are_refused(later: tuple[int, int]) -> None:
    stream = CandidateStream()
    stream.push(np.array([1], np.int64), np.array([2], np.int64))
    with pytest.raises(AssertionError, match="sorted by"):
        stream.push(np.array([later[0]], np.int64), np.array([later[1]], np.int64))
