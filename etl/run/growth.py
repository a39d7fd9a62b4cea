"""How duplicates grow with the input: laws that predict those of the whole from a sample.

`scale` is the input's bytes over the sample's. A pair of rows of one piece of the sample (one split) counts as `scale`
pairs. A pair of rows of two pieces counts as `scale`^2: it is in the sample only if both rows are. Both are unbiased,
but few pairs in the sample give only a rough number. A group of `HOT_ROWS` or more equal rows in the sample grows as
rows do. The number of rows with duplicates follows from the pairs and the partners that a row has (`partners_of`).
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.arrays import F64, I64
from etl.dedup.canaries import which_canaries
from etl.rows import ROW_BITS

HOT_ROWS = 8
"""A group with this many rows in the sample, or more, is assumed to grow with the input."""
_EM_STEPS = 100


@dataclass(frozen=True)
class Duplicates:
    """Duplicates of the whole input, and of the sample by the same rules."""

    pairs: float = 0.0
    rows: float = 0.0
    """Rows that have a duplicate."""
    removed: float = 0.0
    """Rows that would be dropped as copies of another."""
    sample_pairs: int = 0
    sample_rows: int = 0
    sample_removed: float = 0.0

    @property
    def row_factor(self) -> float:
        """Rows with a duplicate in the whole input for each one in the sample."""
        return self.rows / self.sample_rows if self.sample_rows else 1.0

    @property
    def removed_factor(self) -> float:
        """Copies in the whole input for each one in the sample."""
        return self.removed / self.sample_removed if self.sample_removed else 1.0


def grow(left: I64, right: I64, weights: F64, scale: float, most_rows: float) -> Duplicates:
    """Duplicates of the whole input from the distinct pairs of a sample.

    Args:
        left: the number of one row of each pair, int64 [pairs].
        right: the number of the other, int64 [pairs].
        weights: pairs of the input that each stands for, from `scale` to `scale`^2, float64 [pairs].
        scale: rows of the input that a row of the sample stands for.
        most_rows: rows of the input.
    """
    far = weights > scale
    rows, removed = _rows_of_pairs(left[~far], right[~far])
    all_rows, all_removed = rows * scale, removed * scale
    if far.any():
        _, node, degree = np.unique(np.concatenate([left[far], right[far]]), return_inverse=True, return_counts=True)
        numbers, shares = partners_of(degree[node] - 1, 1 / scale)
        ends = 2 * float(weights[far].sum())
        all_rows += ends * float((shares / numbers).sum())
        all_removed += ends * float((shares / (numbers + 1)).sum())
    fits = min(1.0, most_rows / all_rows) if all_rows else 1.0
    return Duplicates(
        float(weights.sum()), all_rows * fits, all_removed * fits, len(left), *_rows_of_pairs(left, right)
    )


def _rows_of_pairs(left: I64, right: I64) -> tuple[int, float]:
    """Rows that have a partner, and how many are dropped when one of each family is kept."""
    _, partners = np.unique(np.concatenate([left, right]), return_counts=True)
    return len(partners), float((partners / (1 + partners)).sum())


def grow_groups(groups: I64, rows: I64, scale: float) -> Duplicates:
    """Duplicates of the whole input from groups of equal things in a sample.

    Args:
        groups: number of the group that each thing belongs to, int64 [things].
        rows: key of the row that each thing is, or is part of, int64 [things].
        scale: things of the input that one of the sample stands for.
    """
    order = np.lexsort((rows, groups))
    groups, rows = groups[order], rows[order]
    _, sizes = np.unique(groups, return_counts=True)
    of_thing = np.repeat(sizes, sizes)
    few = np.flatnonzero((of_thing > 1) & (of_thing < HOT_ROWS))
    left, right = (few[places] for places in window(groups[few], HOT_ROWS))
    small = grow(left, right, pair_weights(rows[left], rows[right], scale), scale, len(rows) * scale)
    hot = sizes[sizes >= HOT_ROWS].astype(np.float64)
    return Duplicates(
        small.pairs + _pairs_within(hot * scale),
        small.rows + float(hot.sum()) * scale,
        small.removed + float((hot * scale - 1).sum()),
        small.sample_pairs + round(_pairs_within(hot)),
        small.sample_rows + round(float(hot.sum())),
        small.sample_removed + float((hot - 1).sum()),
    )


def _pairs_within(sizes: F64) -> float:
    return float((sizes * (sizes - 1) / 2).sum())


def partners_of(others: I64, fraction: float) -> tuple[F64, F64]:
    """How many partners the rows of a pair have in the whole input, from how many others they have in a sample.

    Each partner of a row beyond the one in the pair is in the sample with probability `fraction`. Fitted is the mixture
    of binomials of greatest likelihood, over about 80 numbers of partners, by expectation maximisation.

    Args:
        others: partners beyond the pair's own, int64 [ends of pairs].
        fraction: probability that a row is in the sample.

    Returns:
        numbers of partners, float64 [n], and the share of the ends of pairs with each number, float64 [n].
    """
    most = max(2.0, 4 * (1 + others.max(initial=0)) / fraction)
    numbers = np.unique(np.round(np.geomspace(1.0, most, 80))).astype(np.float64)
    seen, counts = np.unique(others, return_counts=True)
    if fraction >= 1:
        return (seen + 1).astype(np.float64), counts / counts.sum()
    from scipy.special import gammaln  # 0.2 CPU-seconds that a run has no use for

    likelihood = np.exp(
        gammaln(numbers) - gammaln(np.maximum(numbers - seen[:, None], 1)) - gammaln(seen[:, None] + 1)
        + seen[:, None] * math.log(fraction) + (numbers - 1 - seen[:, None]) * math.log1p(-fraction)
    )  # fmt: skip
    likelihood[numbers - 1 < seen[:, None]] = 0.0
    shares = np.full(len(numbers), 1 / len(numbers))
    for _ in range(_EM_STEPS):
        posterior = likelihood * shares
        posterior /= posterior.sum(axis=1, keepdims=True)
        shares = counts @ posterior / counts.sum()
    return numbers, shares


def pair_weights(left: I64, right: I64, scale: float) -> F64:
    """`scale` for two rows of one piece, `scale`^2 for two of different pieces: float64 [pairs]."""
    return np.where(left >> ROW_BITS == right >> ROW_BITS, scale, scale**2)


def capped_pairs(rows: F64, max_partners: int) -> F64:
    """Candidate pairs of groups of equal bands: each row with at most `max_partners` rows before it."""
    few = rows * (rows - 1) / 2
    many = max_partners * rows - max_partners * (max_partners + 1) / 2
    return np.where(rows <= max_partners, few, many)


def window(groups: I64, max_partners: int) -> tuple[I64, I64]:
    """Pairs of each thing with those before it in its group, at most `max_partners`.

    Args:
        groups: number of each thing's group, sorted, int64 [things].
        max_partners: pairs of a thing.

    Returns:
        places of the earlier and of the later one, int64 [pairs] each.
    """
    starts = np.flatnonzero(np.concatenate([[True], np.diff(groups) != 0])) if len(groups) else np.empty(0, np.int64)
    position = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    partners = np.minimum(position, max_partners)
    right = np.repeat(np.arange(len(groups)), partners)
    first = np.repeat(np.cumsum(partners) - partners, partners)
    return right - 1 - (np.arange(len(right)) - first), right


@dataclass(frozen=True)
class CandidateGrowth:
    """The distinct candidate pairs of a sample, and how each grows."""

    left: I64
    right: I64
    weights: F64
    """Pairs of the input that each stands for."""
    num_bands: I64
    """Bands in which each pair meets."""

    @classmethod
    def of(cls, bands: pa.Table, candidates: tuple[I64, I64], max_partners: int, scale: float) -> "CandidateGrowth":
        """Pair up rows as the candidates stage does; a band of HOT_ROWS rows or more grows as rows do.

        Args:
            bands: with int64 `band`, `key` and `row`.
            candidates: row keys of the pairs that the stage let through, the smaller one first.
            max_partners: number of preceding rows that a row of a band is paired with.
            scale: rows of the input that a row of the sample stands for.
        """
        band, key, row = (bands[name].to_numpy() for name in ("band", "key", "row"))
        real = ~which_canaries(row)
        band, key, row = band[real], key[real], row[real]
        order = np.lexsort((row, key, band))
        band, row = band[order], row[order]
        left, right = window(band, max_partners)
        met = np.isin(_codes(row[left], row[right]), _codes(*candidates))
        left, right = left[met], right[met]
        _, group, size = np.unique(band, return_inverse=True, return_counts=True)
        sizes = size[group][left].astype(np.float64)
        growth = capped_pairs(sizes * scale, max_partners) / capped_pairs(sizes, max_partners)
        far = np.where(sizes >= HOT_ROWS, np.minimum(growth, scale**2), scale**2)
        a, b = np.minimum(row[left], row[right]), np.maximum(row[left], row[right])
        return cls._distinct(a, b, np.minimum(pair_weights(a, b, scale), far))

    @classmethod
    def _distinct(cls, a: I64, b: I64, weights: F64) -> "CandidateGrowth":
        """One entry per pair, with its highest weight."""
        if not len(a):
            return cls(a, b, weights, a)
        order = np.lexsort((b, a))
        a, b = a[order], b[order]
        starts = np.flatnonzero(np.concatenate([[True], (np.diff(a) != 0) | (np.diff(b) != 0)]))
        highest = np.maximum.reduceat(weights[order], starts)
        return cls(a[starts], b[starts], highest, np.diff(np.append(starts, len(a))))

    def weights_of(self, left: I64, right: I64) -> F64:
        """Weights of some of the pairs, smaller row key first."""
        if not len(left):
            return np.empty(0)
        known = np.rec.fromarrays([self.left, self.right])
        return self.weights[np.searchsorted(known, np.rec.fromarrays([left, right]))]

    def stored(self, num_tasks: int, block_pairs: int) -> float:
        """Pairs that are written: a pair once by each task, or by each `block_pairs` of a task, in which it meets."""
        pieces = max(num_tasks, math.ceil(float((self.weights * self.num_bands).sum()) / block_pairs))
        return float((self.weights * pieces * (1 - (1 - 1 / pieces) ** self.num_bands)).sum())


def _codes(left: I64, right: I64) -> npt.NDArray[np.void]:
    """Each pair as a single value, the smaller number first."""
    return np.rec.fromarrays([np.minimum(left, right), np.maximum(left, right)])
