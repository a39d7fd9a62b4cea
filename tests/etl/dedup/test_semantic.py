import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup.semantic import SemanticDedup, survivors
from etl.dedup.vectors import quantise


def near_copies(rows, seed, spread=0.3):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(max(1, rows // 4), 8))
    return quantise(base[rng.integers(0, len(base), rows)] + spread * rng.normal(size=(rows, 8)))


def greedy(vectors, threshold):
    """One pair at a time, on Python's own whole numbers."""
    rows = vectors.astype(object)
    found = []
    for i, row in enumerate(rows):
        survivor = -1
        for j in range(i):
            product = sum(row * rows[j])
            if found[j] < 0 and product > 0 and product**2 >= threshold**2 * sum(row**2) * sum(rows[j] ** 2):
                survivor = j
                break
        found.append(survivor)
    return found


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.9, 0.95, 1.0]), st.integers(1, 50))
def test_survivors_are_those_of_a_plain_loop_whatever_the_blocks(rows, seed, threshold, block):
    vectors = near_copies(rows, seed)
    found = survivors(lambda start, end: vectors[start:end], rows, threshold, block)
    assert found.tolist() == greedy(vectors, threshold)


def test_a_removed_row_removes_nothing():
    """a ~ b ~ c, a not ~ c: b is dropped for a, c is kept."""
    angles = np.deg2rad([0, 20, 40])
    vectors = quantise(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert survivors(lambda start, end: vectors[start:end], 3, 0.93).tolist() == [-1, 0, -1]


def test_equal_vectors_go_at_a_threshold_of_one_and_zeros_never():
    vectors = np.array([[3, 4], [3, 4], [6, 8], [-3, -4], [0, 0], [0, 0]], np.int8)
    assert survivors(lambda start, end: vectors[start:end], 6, 1.0).tolist() == [-1, 0, 0, -1, -1, -1]


@pytest.mark.parametrize(
    ("rows", "clusters"), [(1, 1), (1499, 1), (1500, 2), (10_000, 10), (1_000_000, 1000), (10**9, 2048)]
)
def test_number_of_clusters(rows, clusters):
    assert SemanticDedup().num_clusters(rows) == clusters


def test_a_small_sample_bounds_the_clusters():
    assert SemanticDedup(sample_rows=80, rows_per_cluster=1).num_clusters(1000) == 10
