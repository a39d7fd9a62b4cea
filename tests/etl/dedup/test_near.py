"""The configuration of near dedup: the bands that it chooses, what it compares, and settings that do not fit."""

import math

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from etl.dedup.candidates import Rows
from etl.dedup.minhash import signatures
from etl.dedup.near import NearDedup

SETS = (np.array([0, 4, 8, 9], np.int64), np.array([1, 2, 3, 4, 1, 2, 3, 5, 9], np.uint64) << np.uint64(40))
"""Three sets: the first two share three hashes of five, the last one none with either."""
LEFT, RIGHT = np.array([0, 0, 1], np.int64), np.array([0, 1, 2], np.int64)


def longest_bands(threshold: float, num_perm: int, recall: float) -> tuple[int, int]:
    """By the S-curve, over all lengths of a band."""
    lengths = range(1, num_perm + 1)
    rows = max(rows for rows in lengths if 1 - (1 - threshold**rows) ** (num_perm // rows) >= recall)
    return num_perm // rows, rows


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("num_perm", [64, 128])
@pytest.mark.parametrize("recall", [0.5, 0.9, 0.998])
def test_bands_are_chosen_for_threshold_permutations_and_recall(threshold: float, num_perm: int, recall: float) -> None:
    near = NearDedup(threshold=threshold, num_perm=num_perm, recall=recall)
    assert near.banding == longest_bands(threshold, num_perm, recall)


def test_bands_that_are_given_are_taken() -> None:
    assert NearDedup(bands=14, rows=8, recall=0.5).banding == (14, 8)
    assert NearDedup(bands=16, rows=8).banding == (16, 8)
    assert NearDedup().banding == (21, 6)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"bands": 14}, "give both bands and rows, or neither"),
        ({"rows": 8}, "give both bands and rows, or neither"),
        (
            {"bands": 17, "rows": 8},
            "17 bands of 8 rows need 136 permutations, but num_perm is 128; lower bands or rows",
        ),
        ({"bands": 2, "rows": 3, "num_perm": 5}, "2 bands of 3 rows need 6 permutations, but num_perm is 5"),
        ({"threshold": 0.1, "num_perm": 8}, r"8 permutations cannot find pairs at 0\.1 with probability 0\.998"),
        ({"threshold": 0}, "greater than 0"),
        ({"threshold": 1.01}, "less than or equal to 1"),
        ({"recall": 1}, "less than 1"),
        ({"max_partners": 0}, "greater than or equal to 1"),
        ({"unit": "line"}, "'auto', 'word', 'char' or 'token'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        NearDedup.model_validate(fields)


@pytest.mark.parametrize(("num_perm", "num_words"), [(1, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_a_sketch_has_a_bit_for_each_permutation(num_perm: int, num_words: int) -> None:
    assert NearDedup(num_perm=num_perm, bands=1, rows=1).num_words == num_words


@pytest.mark.parametrize(
    ("unit", "ngram", "sizes"),
    [("word", 2, [2, 1, 1]), ("word", 1, [3, 1, 2]), ("char", 2, [4, 1, 2]), ("char", 5, [1, 1, 1])],
)
def test_shingles_are_sets_of_ngrams_of_words_or_of_their_characters(unit: str, ngram: int, sizes: list[int]) -> None:
    """Of `a b c` the pairs of words are (a b) and (b c), those of characters (a ), ( b), (b ) and ( c)."""
    near = NearDedup.model_validate({"unit": unit, "ngram": ngram})
    offsets, hashes = near.shingles(pa.array(["A  b, C!", "a", "a b"]))
    assert np.diff(offsets).tolist() == sizes
    assert len(hashes) == sum(sizes)


def test_sets_are_compared_as_they_are() -> None:
    near = NearDedup()
    assert near.compared(SETS) is SETS
    assert near.similarity(SETS, LEFT, RIGHT).tolist() == [1.0, 3 / 5, 0.0]


@pytest.mark.parametrize(("num_perm", "words_a_set"), [(128, 16), (20, 3)])
def test_an_estimate_compares_eight_bits_of_each_permutation(num_perm: int, words_a_set: int) -> None:
    near = NearDedup(verify="estimate", num_perm=num_perm, bands=1, rows=1)
    offsets, words = near.compared(SETS)
    assert offsets.tolist() == [0, words_a_set, 2 * words_a_set, 3 * words_a_set]
    assert words.dtype == np.uint64
    assert words.shape == (3 * words_a_set,)
    equal, similar, apart = near.similarity((offsets, words), LEFT, RIGHT).tolist()
    signed = signatures(*SETS, num_perm, near.seed)
    share = float((signed[0] == signed[1]).mean())
    assert equal == 1.0
    # Entries that differ agree in eight bits with a chance of 1 in 256, which the estimate takes off.
    assert similar == pytest.approx(share, abs=4 / num_perm)
    assert apart == pytest.approx(0.0, abs=4 / num_perm)


def test_a_similarity_that_equals_the_threshold_is_enough_whatever_the_rounding() -> None:
    assert 0.1 + 0.7 < 0.8
    assert NearDedup().is_duplicate(np.array([0.8, 0.1 + 0.7, 0.7999, 1.0])).tolist() == [True, True, False, True]


def test_equal_sets_share_all_bands_and_a_seed_makes_others() -> None:
    near = NearDedup(bands=14, rows=8)
    signed = signatures(np.array([0, 2, 4, 6], np.int64), np.array([7, 8, 7, 8, 8, 9], np.uint64) << np.uint64(33))
    bands = near.bands_of(signed)
    assert bands.shape == (3, 14)
    assert bands[0].tolist() == bands[1].tolist()
    assert len(set(bands[0].tolist())) == 14
    assert bands[0].tolist() != bands[2].tolist()


def most_differing(threshold: float, num_perm: int) -> int:
    """Fewest bits that only one pair at the threshold in ten thousand exceeds: each differs with (1 - J) / 2."""
    chance = (1 - threshold) / 2
    left, bits = 1.0, -1
    while left > 1e-4:
        bits += 1
        left -= math.comb(num_perm, bits) * chance**bits * (1 - chance) ** (num_perm - bits)
    return bits


@pytest.mark.parametrize(("threshold", "num_perm"), [(0.8, 128), (0.5, 128), (0.8, 64)])
def test_candidates_differ_in_no_more_bits_than_pairs_at_the_threshold(threshold: float, num_perm: int) -> None:
    most = most_differing(threshold, num_perm)
    near = NearDedup(threshold=threshold, num_perm=num_perm)
    met = []
    for bits in (most, most + 1):
        words = [(1 << bits) - 1 >> 64 * place & (1 << 64) - 1 for place in range(near.num_words)]
        sketch = np.array([[0] * near.num_words, words], np.uint64)
        rows = np.arange(2, dtype=np.int64)
        met.append(len(near.candidate_stream().push(Rows(np.zeros(2, np.int64), rows, rows, sketch))))
    assert met == [1, 0]


def test_a_row_meets_no_more_partners_of_a_band_than_it_may() -> None:
    rows = np.arange(4, dtype=np.int64)
    stream = NearDedup(max_partners=2).candidate_stream()
    pairs = stream.push(Rows(np.zeros(4, np.int64), rows, rows, np.zeros((4, 2), np.uint64)))
    assert sorted(map(tuple, pairs[:, :2].tolist())) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    found = stream.finish()
    assert (found.num_compared, found.num_left_out) == (5, 1)
