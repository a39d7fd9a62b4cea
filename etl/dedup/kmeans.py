"""Spherical k-means over int8 vectors that gives the same centroids on every machine.

Seeds are drawn as in k-means++ (Arthur and Vassilvitskii 2007), with 1 − cosine as the squared distance, in whole
numbers; a centroid is the direction of the sum of its members' unit vectors in fixed point (2^20 to one). Sums of whole
numbers have no order, so only the order of the sample matters (the draws name places in it): callers sort it.

Cost for n vectors, k centroids: n · k · dim products for the seeds and again for each round. 32,768 vectors of 384
dimensions, 2,048 centroids, 10 rounds take 7 s on one core; memory is 9 bytes a component of the sample and
BLOCK_ROWS · k · 4 bytes.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from etl.arrays import F64, I8, I64
from etl.dedup.vectors import nearest, quantise, squared_lengths
from etl.hashing import xxh64
from etl.jit import njit

_ONE: Final = 1 << 20
"""1 in fixed point."""


@njit
def _closer(sample: I8, squares: F64, chosen: int, distance: I64) -> None:
    """Lower each vector's distance to that from the chosen vector, if it is nearer."""
    for i in range(sample.shape[0]):
        product = np.int32(0)
        for d in range(sample.shape[1]):
            product += np.int32(sample[i, d]) * np.int32(sample[chosen, d])
        cosine = np.float64(product) / np.sqrt(squares[i] * squares[chosen])
        distance[i] = min(distance[i], max(np.int64(0), np.int64(np.rint((1.0 - cosine) * _ONE))))


def seeds(sample: I8, k: int, seed: int) -> I64:
    """Places in the sample of at most k distinct directions, far ones likelier: int64 [at most k].

    Args:
        sample: int8 [rows, dim], at least one row, none of zeros.
        k: largest number of places.
        seed: of the draws.
    """
    squares = squared_lengths(sample)
    distance = np.full(len(sample), 2 * _ONE, np.int64)
    chosen: list[int] = []
    while len(chosen) < k:
        upto = np.cumsum(distance)
        if upto[-1] == 0:
            break
        drawn = xxh64(len(chosen).to_bytes(8, "little"), seed) % int(upto[-1])
        chosen.append(int(np.searchsorted(upto, drawn, "right")))
        _closer(sample, squares, chosen[-1], distance)
    return np.array(chosen, np.int64)


@njit
def _add(units: npt.NDArray[np.int32], label: I64, sums: I64) -> None:
    for i in range(units.shape[0]):
        for d in range(units.shape[1]):
            sums[label[i], d] += units[i, d]


def kmeans(sample: I8, k: int, iterations: int, seed: int) -> I8:
    """Centroids of a sample: int8 [at most k, dim]; fewer if there are fewer directions, one of zeros for none.

    Args:
        sample: int8 [rows, dim], at least one row, in an order that is the same in every run.
        k: centroids wanted, at least 1.
        iterations: rounds at most; it ends earlier once no vector changes its centroid.
        seed: of the first centroids.
    """
    squares = squared_lengths(sample)
    sample = np.ascontiguousarray(sample[squares > 0])
    if len(sample) == 0:
        return np.zeros((1, sample.shape[1]), np.int8)
    centroids = sample[seeds(sample, k, seed)]
    units = np.rint(sample * (_ONE / np.sqrt(squares[squares > 0]))[:, None]).astype(np.int32)
    label = np.full(len(sample), -1, np.int64)
    for _ in range(iterations):
        before = label
        label, _ = nearest(sample, centroids)
        if np.array_equal(label, before):
            break
        sums = np.zeros(centroids.shape, np.int64)
        _add(units, label, sums)
        has_members = np.bincount(label, minlength=len(centroids)) > 0
        centroids = np.where(has_members[:, None], quantise(sums), centroids)
    return centroids
