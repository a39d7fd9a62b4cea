import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from etl.dedup import vectors
from etl.dedup.vectors import dots, from_binary, nearest, quantise, squared_lengths, to_binary

INT8 = npst.arrays(np.int8, npst.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(-127, 127))


def test_quantised_vectors_keep_their_directions():
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(200, 384))
    plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    small = quantise(plain).astype(float)
    small /= np.linalg.norm(small, axis=1, keepdims=True)
    assert np.abs(small @ small.T - plain @ plain.T).max() < 0.005


def test_quantising_known_numbers():
    found = quantise(np.array([[0.5, -1.0, 0.0], [0.0, 0.0, 0.0], [3.0, 2.0, 1.0]]))
    assert found.tolist() == [[64, -127, 0], [0, 0, 0], [127, 85, 42]]
    assert quantise(np.empty((0, 4))).shape == (0, 4)


@given(INT8)
def test_binary_columns_come_back_also_from_a_slice(array):
    column = to_binary(array)
    column.validate(full=True)
    assert np.array_equal(from_binary(column), array)
    assert from_binary(column.slice(1)).ravel().tolist() == array[1:].ravel().tolist()


@pytest.mark.parametrize("dim", [1, 384, 1040, 1041, 4096])
def test_products_of_the_largest_vectors_are_exact(dim):
    most = np.full((3, dim), 127, np.int8)
    most[1:, 0] = [126, -127]
    assert dots(most, most).astype(np.int64).tolist() == (most.astype(np.int64) @ most.T.astype(np.int64)).tolist()
    assert squared_lengths(most).tolist() == (most.astype(np.int64) ** 2).sum(1).tolist()


def test_nearest_is_the_largest_cosine_and_the_first_of_equal_ones(monkeypatch):
    monkeypatch.setattr(vectors, "BLOCK_ROWS", 7)
    rng = np.random.default_rng(1)
    points = quantise(rng.normal(size=(50, 12)))
    centroids = np.concatenate([quantise(rng.normal(size=(5, 12))), np.zeros((1, 12), np.int8)])
    centroids = np.concatenate([centroids, centroids[:3]])
    place, cosine = nearest(points, centroids)
    lengths = np.maximum(np.linalg.norm(centroids.astype(float), axis=1), 1)
    every = (
        points.astype(float)
        @ centroids.T.astype(float)
        / lengths
        / np.linalg.norm(points.astype(float), axis=1)[:, None]
    )
    assert place.tolist() == every[:, :6].argmax(1).tolist()
    assert np.allclose(cosine, every.max(1), atol=1e-12)


def test_a_vector_of_zeros_has_the_first_centroid_and_no_cosine():
    place, cosine = nearest(np.zeros((2, 3), np.int8), np.eye(3, dtype=np.int8))
    assert (place.tolist(), cosine.tolist()) == ([0, 0], [0.0, 0.0])


def test_no_rows():
    assert from_binary(pa.array([], pa.binary())).shape == (0, 0)
