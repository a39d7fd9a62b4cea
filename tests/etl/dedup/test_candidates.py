"""The stream against the definition in plain Python, for every way to cut it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.canaries import canary_rows
from etl.dedup.candidates import MEMBERSHIP_KEY, CandidateStream, Rows

groups = st.lists(st.integers(1, 9), max_size=6)


def stream_of(sizes: list[int], seed: int = 0) -> Rows:
    """Sorted groups of these sizes, with small sketches; rows differ from band to band."""
    band = np.repeat(np.arange(len(sizes), dtype=np.int64) * 1000 - 2000, sizes)
    row = np.concatenate([np.empty(0, np.int64), *[np.arange(n, dtype=np.int64) * 7 + i for i, n in enumerate(sizes)]])
    key = row // 14  # some rows of a group share a key
    sketch = np.random.default_rng(seed).integers(0, 16, (len(band), 1)).astype(np.uint64)
    return Rows(band, key, row.astype(np.int64), sketch)


def part(rows: Rows, start: int, end: int) -> Rows:
    return Rows(rows.band[start:end], rows.key[start:end], rows.row[start:end], rows.sketch[start:end])


def differing_bits(one: np.ndarray, other: np.ndarray) -> int:
    return sum((int(a) ^ int(b)).bit_count() for a, b in zip(one, other, strict=True))


def expected_pairs(rows: Rows, cap: int, most: int) -> set[tuple[int, int]]:
    pairs = set()
    for i in range(len(rows)):
        before = [k for k in range(i) if rows.band[k] == rows.band[i]]
        for k in before[-cap:]:
            if differing_bits(rows.sketch[k], rows.sketch[i]) <= most:
                a, b = sorted((int(rows.row[k]), int(rows.row[i])))
                pairs.add((a, b))
    return pairs


def pushed(rows: Rows, cuts: list[int], stream: CandidateStream) -> list[tuple[int, ...]]:
    borders = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    found = [stream.push(part(rows, start, end)) for start, end in itertools.pairwise(borders)]
    return [tuple(pair) for pairs in found for pair in pairs.tolist()]


@given(groups, st.lists(st.integers(0, 60), max_size=8), st.integers(1, 4), st.integers(0, 4))
def test_any_chunking_gives_the_defined_pairs(sizes: list[int], cuts: list[int], cap: int, most: int) -> None:
    rows = stream_of(sizes)
    stream = CandidateStream(cap, most, 0, 1)
    pairs = pushed(rows, cuts, stream)
    assert {pair[:2] for pair in pairs} == expected_pairs(rows, cap, most)
    assert len(set(pairs)) == len(pairs)
    key = dict(zip(rows.row.tolist(), rows.key.tolist(), strict=True))
    assert all((key[a], key[b]) == (a_key, b_key) for a, b, a_key, b_key, _ in pairs)
    sketch = dict(zip(rows.row.tolist(), rows.sketch.tolist(), strict=True))
    assert all(alike == (sketch[a] == sketch[b]) for a, b, _, _, alike in pairs)
    met = stream.finish()
    assert met.num_compared + met.num_left_out == sum(n * (n - 1) // 2 for n in sizes)
    assert sum(met.hot_bands.values()) == sum(n > cap + 1 for n in sizes)


def same_band(count: int, sketch: np.ndarray) -> Rows:
    rows = np.arange(count, dtype=np.int64)
    return Rows(np.zeros(count, np.int64), rows, rows, sketch)


def test_a_hot_band_is_linear() -> None:
    stream = CandidateStream(64, 0, 0, 1)
    pairs = stream.push(same_band(10_000, np.zeros((10_000, 1), np.uint64)))
    assert len(pairs) == 64 * 10_000 - 64 * 65 // 2
    assert np.max(pairs[:, 1] - pairs[:, 0]) == 64
    met = stream.finish()
    assert met.num_left_out == 10_000 * 9_999 // 2 - len(pairs)
    assert met.num_similar_left_out == met.num_left_out
    assert met.hot_bands == {"8192": 1}


def test_what_a_hot_band_hides_is_estimated() -> None:
    """A third of the rows look alike: about a ninth of the pairs that were left out are similar."""
    rng = np.random.default_rng(3)
    alike = rng.random(3000) < 1 / 3
    alike[:8] = [True, False, False, True, False, False, True, False]  # a sample that shows the third
    sketch = np.where(alike[:, None], np.uint64(0), rng.integers(0, 2**63, (3000, 2), dtype=np.uint64))
    stream = CandidateStream(4, 10, 10, 2)
    stream.push(same_band(3000, sketch))
    met = stream.finish()
    assert met.num_similar_left_out / met.num_left_out == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize("cuts", [[], [3], list(range(40))])
def test_a_canary_pairs_with_its_own_row_and_takes_no_place(cuts: list[int]) -> None:
    """Rows 0 … 19 of one band with canaries of 4 and 9 among them, each six places after its row."""
    real = np.arange(20, dtype=np.int64)
    made = canary_rows(np.array([4, 9], np.int64), np.array([1, 2], np.int64))
    row = np.concatenate([real, made])
    key = np.concatenate([real * 10, np.array([4, 9], np.int64) * 10 + 61])
    order = np.argsort(key)
    rows = Rows(np.zeros(22, np.int64), key[order], row[order], np.zeros((22, 1), np.uint64))
    without = Rows(np.zeros(20, np.int64), real * 10, real, np.zeros((20, 1), np.uint64))
    for cap, met in ((6, 0), (7, 2), (30, 2)):
        pairs = pushed(rows, cuts, stream := CandidateStream(cap, 0, 0, 1))
        plain = pushed(without, [], CandidateStream(cap, 0, 0, 1))
        assert [pair for pair in pairs if pair[1] < 1 << 62] == plain
        with_copies = {pair[:2] for pair in pairs if pair[1] >= 1 << 62}
        assert with_copies == ({(4, int(made[0])), (9, int(made[1]))} if met else set())
        assert stream.finish().num_compared == len(plain)


def test_canaries_that_were_made_are_counted_by_level() -> None:
    made = canary_rows(np.array([5, 6, 7], np.int64), np.array([0, 3, 3], np.int64))
    stream = CandidateStream(4, 64, 0, 1)
    called = np.full(3, MEMBERSHIP_KEY)
    assert len(stream.push(Rows(np.zeros(3, np.int64), called, made, np.zeros((3, 1), np.uint64)))) == 0
    assert stream.finish().canaries == {"0": {"other": 1}, "3": {"other": 2}}


@pytest.mark.parametrize("later", [(0, 1, 9), (1, 2, 2), (1, 2, 1), (1, 1, 9)])
def test_rows_out_of_order_are_refused(later: tuple[int, int, int]) -> None:
    def one(band: int, key: int, row: int) -> Rows:
        key_row = np.array([key], np.int64), np.array([row], np.int64)
        return Rows(np.array([band], np.int64), *key_row, np.zeros((1, 1), np.uint64))

    stream = CandidateStream(4, 0, 0, 1)
    stream.push(one(1, 2, 2))
    with pytest.raises(AssertionError, match="sorted by"):
        stream.push(one(*later))
