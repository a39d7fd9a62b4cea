"""Near duplicates of texts in memory: the kernels of the stages in sequence, without a run.

For a notebook, a small corpus, or a check of the stages. The result is that of the stages, except for the order in
which rows of a hot band are compared. Holds the texts' shingle sets, about as many bytes as the texts, and 8 bytes for
each band of a row; about 80 MB of text a CPU-second.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.arrays import I64, U64, Bools
from etl.arrow_types import as_text, kind_of
from etl.dedup.candidates import Rows
from etl.dedup.components import Components
from etl.dedup.minhash import signatures, sketches
from etl.dedup.near import NearDedup, Sets
from etl.errors import SchemaError

_TEXTS = 1 << 11
"""Number of texts that are hashed at once."""
_PUSH_ROWS = 1 << 16
"""Number of rows of equal bands that are paired at once."""


@dataclass(frozen=True)
class NearDuplicates:
    """Near duplicates by row number.

    Attributes:
        left: the smaller row of each pair, int64 [pairs].
        right: the larger one.
        jaccard: float64 [pairs], at or above the threshold.
        label: the smallest row of each row's cluster, int64 [rows]; itself for a row without a duplicate.
    """

    left: I64
    right: I64
    jaccard: npt.NDArray[np.float64]
    label: I64


def near_duplicates(texts: pa.Array | pa.ChunkedArray, near: NearDedup, formal: Bools | None = None) -> NearDuplicates:
    """Pairs of texts whose similarity reaches the threshold, and their connected components.

    Args:
        texts: of any string type (string, large_string, string_view, a dictionary of one) [rows], no nulls.
        near: as in a recipe; canaries and the choice of the survivor have no effect here.
        formal: bool [rows], which texts are code or maths, which `unit: auto` cuts with their signs; null: none.

    Raises:
        SchemaError: they are of another type.
    """
    if kind_of(texts.type) not in ("string", "null"):
        raise SchemaError(f"the texts are {texts.type}, but strings are needed; cast them, for example to pa.string()")
    sets, bands, words = _hashed(texts, near, formal)
    pairs = _candidates(bands, words, near)
    left, right = pairs // len(texts), pairs % len(texts)
    jaccard = near.similarity(sets, left, right)
    good = near.is_duplicate(jaccard)
    left, right = left[good], right[good]
    return NearDuplicates(left, right, jaccard[good], _labels(len(texts), left, right))


def _hashed(texts: pa.Array | pa.ChunkedArray, near: NearDedup, formal: Bools | None) -> tuple[Sets, I64, U64]:
    """The compared form of each text, its band hashes [rows, bands] and its sketch [rows, words]."""
    offsets, hashes = [np.zeros(1, np.int64)], [np.empty(0, np.uint64)]
    bands, words = [], []
    for start in range(0, len(texts), _TEXTS):
        mine = None if formal is None else formal[start : start + _TEXTS]
        sets = near.shingles(_strings(texts.slice(start, _TEXTS)), mine)
        signed = signatures(*sets, near.num_perm, near.seed)
        bands.append(near.bands_of(signed))
        words.append(sketches(signed, 1))
        ends, elements = near.compared(sets)
        offsets.append(ends[1:] + offsets[-1][-1])
        hashes.append(elements.copy())
    num_bands = near.banding[0]
    none = np.empty((0, num_bands), np.int64), np.empty((0, near.num_words), np.uint64)
    kept = (np.concatenate(offsets), np.concatenate(hashes))
    return kept, np.concatenate([none[0], *bands]), np.concatenate([none[1], *words])


def _strings(texts: pa.Array | pa.ChunkedArray) -> pa.Array:
    return as_text(texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts, "prose")


def _candidates(bands: I64, words: U64, near: NearDedup) -> I64:
    """Candidate pairs as smaller row times the number of rows plus larger row, ascending: int64 [pairs]."""
    num_rows, num_bands = bands.shape
    order = np.argsort(bands.ravel())
    band = bands.ravel()[order]
    shared = np.zeros(len(band), np.bool_)
    shared[1:] = band[1:] == band[:-1]
    shared[:-1] |= shared[1:]
    band, row = band[shared], order[shared] // num_bands
    ranked = np.lexsort((row, band))
    band, row = band[ranked], row[ranked]
    stream = near.candidate_stream()
    found = [np.empty(0, np.int64)]
    for start in range(0, len(band), _PUSH_ROWS):
        piece = slice(start, start + _PUSH_ROWS)
        pairs = stream.push(Rows(band[piece], row[piece], row[piece], words[row[piece]]))
        found.append(np.unique(pairs[:, 0] * num_rows + pairs[:, 1]))
    return np.unique(np.concatenate(found))


def _labels(num_rows: int, left: I64, right: I64) -> I64:
    graph = Components(2 * len(left))
    graph.join(graph.number(left), graph.number(right))
    label = np.arange(num_rows, dtype=np.int64)
    for rows, components in graph.labels(max(1, num_rows)):
        label[rows] = components
    return label
