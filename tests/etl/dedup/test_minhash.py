"""Signatures and bands against their formulas in plain integers, the true similarity, and datasketch."""

import datasketch
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import bdtrc

from etl.dedup.minhash import (
    THINNING_LOSS,
    band_hashes,
    candidate_probability,
    choose_bands,
    disagreement,
    estimate_pairs,
    most_disagreement,
    permutations,
    signatures,
    sketches,
)
from etl.errors import ConfigError

NUM_PERM = 128


def stacked(sets: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *map(len, sets)]).astype(np.int64)
    return offsets, np.concatenate([np.empty(0, np.uint64), *sets]).astype(np.uint64)


def pair_of_sets(rng: np.random.Generator, union: int, shared: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of evenly spread hashes of which `shared` out of `union` are in both; the rest is halved."""
    hashes = rng.integers(0, 2**64, union, dtype=np.uint64)
    half = shared + (union - shared) // 2
    return hashes[:half], np.concatenate([hashes[:shared], hashes[half:]])


@given(st.lists(st.lists(st.integers(0, 2**64 - 1), max_size=9), max_size=5), st.integers(0, 2**32))
def test_signature_is_the_minimum_of_the_stated_formula(rows: list[list[int]], seed: int) -> None:
    got = signatures(*stacked([np.array(row, np.uint64) for row in rows]), num_perm=6, seed=seed)
    for i, row in enumerate(rows):
        for k in range(6):
            drawn = xxhash.xxh64_intdigest(k.to_bytes(8, "little"), seed)
            a, b = drawn >> 32 | 1, drawn % 2**32
            assert got[i, k] == min([(a * (h >> 32) + b) % 2**32 for h in row], default=2**32 - 1)
    assert got.dtype == np.uint32
    assert got.shape == (len(rows), 6)


def test_permutations_are_one_to_one() -> None:
    multipliers, increments = permutations(NUM_PERM, seed=1)
    assert np.all(multipliers & np.uint32(1) == 1)
    assert len(set(zip(multipliers.tolist(), increments.tolist(), strict=True))) == NUM_PERM


@pytest.mark.parametrize(("union", "shared"), [(20, 10), (200, 160), (2000, 1000), (2000, 1900)])
def test_error_of_the_estimate_is_that_of_independent_permutations(union: int, shared: int) -> None:
    rng = np.random.default_rng(0)
    pairs = [pair_of_sets(rng, union, shared) for _ in range(300)]
    signature = signatures(*stacked([side for pair in pairs for side in pair]))
    estimates = (signature[0::2] == signature[1::2]).mean(axis=1)
    truth = shared / union
    standard_error = np.sqrt(truth * (1 - truth) / NUM_PERM)
    assert abs(estimates.mean() - truth) < 5 * standard_error / np.sqrt(len(pairs))
    assert np.sqrt(np.mean((estimates - truth) ** 2)) < 1.2 * standard_error


def test_estimate_is_as_good_as_that_of_datasketch() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = [], []
    for shared in range(0, 400, 10):
        pair = pair_of_sets(rng, 400, shared)
        signature = signatures(*stacked(list(pair)))
        ours.append((signature[0] == signature[1]).mean() - shared / 400)
        sketches = datasketch.MinHash.bulk([[h.tobytes() for h in side] for side in pair], num_perm=NUM_PERM)
        theirs.append(sketches[0].jaccard(sketches[1]) - shared / 400)
    assert np.std(ours) < 1.3 * np.std(theirs)
    assert np.max(np.abs(np.subtract(ours, theirs))) < 0.2  # 5 standard errors of a difference at J = 0.5 are 0.31


def test_repeats_and_order_change_no_signature() -> None:
    hashes = np.random.default_rng(2).integers(0, 2**64, 50, dtype=np.uint64)
    twice = np.concatenate([hashes[::-1], hashes])
    signature = signatures(*stacked([hashes, twice]))
    assert np.array_equal(signature[0], signature[1])


def test_band_hash_is_the_chain_of_its_rows() -> None:
    signature = np.array([[5, 6, 7, 8, 9]], np.uint32)
    expected = []
    for band in range(2):
        value = xxhash.xxh64_intdigest(band.to_bytes(8, "little"), 2)
        for minimum in signature[0, 2 * band : 2 * band + 2].tolist():
            value = xxhash.xxh64_intdigest(minimum.to_bytes(8, "little"), value)
        expected.append(value)
    got = band_hashes(signature, bands=2, rows=2)
    assert got.dtype == np.int64
    assert got.view(np.uint64).tolist() == [expected]


def test_equal_rows_in_different_bands_do_not_meet() -> None:
    assert len(np.unique(band_hashes(np.full((1, 112), 3, np.uint32), 14, 8))) == 14


@pytest.mark.parametrize(("bands", "rows"), [(17, 8), (0, 8), (14, 0)])
def test_bands_that_do_not_fit_are_refused(bands: int, rows: int) -> None:
    with pytest.raises(ConfigError, match=f"{bands} bands of {rows} rows"):
        band_hashes(np.zeros((1, 128), np.uint32), bands, rows)


def test_candidate_probability_is_the_s_curve() -> None:
    assert candidate_probability(0.0, 14, 8) == 0.0
    assert candidate_probability(1.0, 14, 8) == 1.0
    assert candidate_probability(0.5, 1, 3) == 0.125
    assert candidate_probability(0.5, 2, 1) == 0.75


def test_share_of_pairs_that_meet_is_the_s_curve() -> None:
    rng = np.random.default_rng(3)
    pairs = [pair_of_sets(rng, 100, 70) for _ in range(2000)]
    bands = band_hashes(signatures(*stacked([side for pair in pairs for side in pair])), 14, 8)
    share = (bands[0::2] == bands[1::2]).any(axis=1).mean()
    assert share == pytest.approx(candidate_probability(0.7, 14, 8), abs=0.04)


@pytest.mark.parametrize(("threshold", "expected"), [(0.8, (21, 6)), (0.9, (14, 9)), (0.5, (64, 2)), (1.0, (1, 128))])
def test_bands_are_the_longest_with_which_pairs_at_the_threshold_meet(
    threshold: float, expected: tuple[int, int]
) -> None:
    bands, rows = choose_bands(threshold, 128, 0.998)
    assert (bands, rows) == expected
    assert candidate_probability(threshold, bands, rows) >= 0.998
    if rows < 128:
        assert candidate_probability(threshold, 128 // (rows + 1), rows + 1) < 0.998


def test_a_threshold_that_no_bands_reach_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"8 permutations cannot find pairs at 0\.1"):
        choose_bands(0.1, 8, 0.998)


@given(st.integers(1, 200), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**32))
def test_sketches_differ_where_their_entries_do(num_perm: int, bits: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    signature = rng.integers(0, 2**32, (2, num_perm), dtype=np.uint64).astype(np.uint32)
    equal = rng.random(num_perm) < 0.5
    signature[1, equal] = signature[0, equal]
    mixed = (signature.astype(np.uint64) * 0x9E3779B1 % 2**32) >> np.uint64(32 - bits)
    words = sketches(signature, bits)
    assert words.shape == (2, -(-num_perm * bits // 64))
    assert disagreement(words[0], words[1], bits) == int((mixed[0] != mixed[1]).sum())


def similar_signatures(rng: np.random.Generator, union: int, shared: int, count: int) -> np.ndarray:
    pairs = [pair_of_sets(rng, union, shared) for _ in range(count)]
    return signatures(*stacked([side for pair in pairs for side in pair]))


@pytest.mark.parametrize(("union", "shared"), [(5, 4), (10, 8), (1000, 800)])
def test_thinning_loses_no_more_than_it_says(union: int, shared: int) -> None:
    """Of 30,000 pairs at the threshold 3 are lost on average, whatever their size; more than 13, one time in 10^5."""
    words = sketches(similar_signatures(np.random.default_rng(union), union, shared, 30_000), 1)
    most = most_disagreement(0.8, NUM_PERM)
    lost = sum(disagreement(words[i], words[i + 1], 1) > most for i in range(0, len(words), 2))
    assert lost <= 13
    assert THINNING_LOSS == 1e-4


def test_thinning_lets_few_dissimilar_pairs_through() -> None:
    words = sketches(similar_signatures(np.random.default_rng(5), 1000, 400, 2000), 1)
    most = most_disagreement(0.8, NUM_PERM)
    left = sum(disagreement(words[i], words[i + 1], 1) <= most for i in range(0, len(words), 2))
    assert left < 0.05 * 2000


@pytest.mark.parametrize(("union", "shared"), [(20, 16), (1000, 800), (1000, 100)])
def test_the_estimate_from_sketches_is_unbiased(union: int, shared: int) -> None:
    words = sketches(similar_signatures(np.random.default_rng(7), union, shared, 1000), 8)
    left = np.arange(0, len(words), 2, dtype=np.int64)
    found = estimate_pairs(words, NUM_PERM, 8, left, left + 1)
    truth = shared / union
    standard_error = np.sqrt(truth * (1 - truth) / NUM_PERM)
    assert abs(found.mean() - truth) < 5 * standard_error / np.sqrt(1000)
    assert np.sqrt(np.mean((found - truth) ** 2)) < 1.2 * standard_error
    assert estimate_pairs(words, NUM_PERM, 8, left, left).tolist() == [1.0] * 1000


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("num_perm", [1, 64, 128, 2000])
@pytest.mark.parametrize("loss", [1e-9, 1e-4, 0.5])
def test_the_most_disagreement_is_that_of_the_binomial_distribution(threshold, num_perm, loss):
    chance = (1 - threshold) / 2
    expected = next(count for count in range(num_perm + 1) if bdtrc(count, num_perm, chance) <= loss)
    assert most_disagreement(threshold, num_perm, loss) == expected
