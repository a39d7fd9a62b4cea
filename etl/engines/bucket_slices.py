"""The map side of a shuffle, for engines that move Arrow batches: the rows of a split, sliced by their bucket.

Rows are gathered up to `HELD_BYTES` before they are sliced, so that slices are not tiny; it takes twice that.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from etl.arrays import Bools
from etl.engine import EmitFn
from etl.sorting import cut_by_bytes

HELD_BYTES = 64 << 20
"""Arrow bytes that are gathered before they are sliced."""
SLICE_BYTES = 4 << 20
"""Largest slice, a single longer row excepted."""


def bucket_slices(emit: EmitFn, split: Any, schema: pa.Schema, wanted: Bools) -> Iterator[tuple[int, pa.RecordBatch]]:
    """What `emit` makes of a split, as pairs of a bucket and some of its rows.

    Args:
        emit: the map side of the shuffle.
        split: as the plan describes it.
        schema: of the slices; batches are cast to it.
        wanted: whether a bucket's rows are kept, bool [num_buckets].
    """
    held: list[pa.RecordBatch] = []
    held_bytes = 0
    for rows in emit(split):
        rows = rows.cast(schema)
        keep = wanted[rows.column("bucket").to_numpy()]
        held.append(rows if keep.all() else rows.filter(pa.array(keep)))
        held_bytes += held[-1].nbytes
        if held_bytes >= HELD_BYTES:
            yield from _by_bucket(held)
            held, held_bytes = [], 0
    if held:
        yield from _by_bucket(held)


def _by_bucket(held: list[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    rows = pa.concat_batches(held)
    buckets = rows.column("bucket").to_numpy()
    if (buckets[1:] < buckets[:-1]).any():
        order = np.argsort(buckets, kind="stable")
        rows, buckets = rows.take(pa.array(order)), buckets[order]
    starts = np.flatnonzero(np.diff(buckets, prepend=-1))
    for start, end in zip(starts, np.append(starts, len(buckets))[1:], strict=True):
        for piece in cut_by_bytes(rows.slice(start, end - start), SLICE_BYTES):
            yield int(buckets[start]), piece
