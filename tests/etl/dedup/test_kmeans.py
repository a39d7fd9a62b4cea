import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from etl.dedup import kmeans as kmeans_module
from etl.dedup.kmeans import kmeans, seeds
from etl.dedup.vectors import nearest, quantise, squared_lengths


def blobs(num_blobs, rows, dim=16, spread=0.05, seed=0):
    """Points around random directions, and the blob of each."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(num_blobs, dim))
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    label = rng.integers(0, num_blobs, rows)
    return quantise(middles[label] + spread * rng.normal(size=(rows, dim))), label


def test_clusters_are_the_blobs_that_were_planted():
    sample, label = blobs(7, 400)
    found, _ = nearest(sample, kmeans(sample, 7, 10, seed=3))
    assert len({(a, b) for a, b in zip(found.tolist(), label.tolist(), strict=True)}) == 7


def test_a_round_moves_each_centroid_to_the_direction_of_its_members_sum():
    sample, _ = blobs(5, 200, spread=0.6)
    first = sample[seeds(sample, 5, 1)]
    label, _ = nearest(sample, first)
    units = sample / np.sqrt(squared_lengths(sample))[:, None]
    expected = np.stack([units[label == k].sum(0) for k in range(5)])
    expected *= 127 / np.abs(expected).max(1, keepdims=True)
    assert np.abs(kmeans(sample, 5, 1, seed=1) - expected).max() <= 0.51


def test_rounds_raise_the_mean_cosine():
    sample, _ = blobs(12, 600, spread=0.5)
    means = [nearest(sample, kmeans(sample, 12, rounds, seed=2))[1].mean() for rounds in (1, 2, 10)]
    assert means[0] < means[1] < means[2]


@given(st.permutations(range(30)))
def test_sums_have_no_order(order):
    units = np.random.default_rng(0).integers(-(2**20), 2**20, (30, 4)).astype(np.int32)
    label = np.arange(30) % 3
    sums = np.zeros((2, 3, 4), np.int64)
    kmeans_module._add(units, label, sums[0])
    kmeans_module._add(units[list(order)], label[list(order)], sums[1])
    assert np.array_equal(sums[0], sums[1])
    assert sums[0].tolist() == [units[label == k].sum(0, dtype=np.int64).tolist() for k in range(3)]


def test_fewer_directions_than_clusters():
    sample = np.repeat(np.eye(3, dtype=np.int8) * 100, 5, axis=0)
    assert sorted(kmeans(sample, 8, 10, 0).tolist()) == [[0, 0, 127], [0, 127, 0], [127, 0, 0]]


def test_vectors_of_zeros_are_no_direction():
    assert kmeans(np.zeros((4, 3), np.int8), 2, 10, 0).tolist() == [[0, 0, 0]]
    assert kmeans(np.array([[0, 0], [0, 5]], np.int8), 2, 10, 0).tolist() == [[0, 127]]


def test_seeds_are_distinct_and_depend_on_the_seed():
    sample, _ = blobs(3, 100, spread=0.5)
    found = [tuple(seeds(sample, 6, seed).tolist()) for seed in range(5)]
    assert all(len(set(places)) == 6 for places in found)
    assert len(set(found)) > 1
