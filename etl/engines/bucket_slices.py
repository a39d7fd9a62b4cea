"""The map side of a shuffle, for engines that move Arrow batches: the rows of a split, sliced by their bucket.

Rows are gathered up to `HELD_BYTES` before they are sliced, so that slices are not tiny; this takes twice that memory.
A batch of one bucket that is large enough is passed on uncopied.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from etl.arrays import Bools
from etl.engine import EmitFn
from etl.sorting import cut_by_bytes, joined, take_rows

HELD_BYTES = 64 << 20
"""Arrow bytes that are gathered before they are sliced."""
SLICE_BYTES = 4 << 20
"""Largest slice, except for a single longer row."""
WHOLE_BYTES = 1 << 16
"""A batch of one bucket with at least this many bytes is not gathered."""


def bucket_slices(emit: EmitFn, split: Any, schema: pa.Schema, wanted: Bools) -> Iterator[tuple[int, pa.RecordBatch]]:
    """What `emit` makes of a split, as pairs of a bucket and some of its rows.

    Args:
        emit: the map side of the shuffle.
        split: the split as in the plan.
        schema: schema of the slices; batches are cast to it.
        wanted: whether a bucket's rows are kept, bool [num_buckets].
    """
    held: list[pa.RecordBatch] = []
    held_bytes = 0
    for batch in emit(split):
        rows = _of_wanted(batch.cast(schema), wanted)
        goes_whole = _is_slice(rows)
        if not goes_whole:
            held.append(rows)
            held_bytes += rows.nbytes
        if held and (goes_whole or held_bytes >= HELD_BYTES):
            yield from _by_bucket(held)
            held, held_bytes = [], 0
        if goes_whole:
            yield from _by_bucket([rows])
    if held:
        yield from _by_bucket(held)


def _of_wanted(rows: pa.RecordBatch, wanted: Bools) -> pa.RecordBatch:
    keep = wanted[rows.column("bucket").to_numpy()]
    return rows if keep.all() else rows.filter(pa.array(keep))


def _is_slice(rows: pa.RecordBatch) -> bool:
    """Whether the batch is of one bucket and large enough."""
    if rows.nbytes < WHOLE_BYTES or rows.num_rows == 0:
        return False
    buckets = rows.column("bucket").to_numpy()
    return bool((buckets == buckets[0]).all())


def _by_bucket(batches: list[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    rows = joined(batches)
    buckets = rows.column("bucket").to_numpy()
    if (buckets[1:] < buckets[:-1]).any():
        order = np.argsort(buckets, kind="stable")
        rows, buckets = take_rows(rows, order), buckets[order]
    starts = np.flatnonzero(np.diff(buckets, prepend=-1))
    for start, end in zip(starts, np.append(starts, len(buckets))[1:], strict=True):
        for piece in cut_by_bytes(rows.slice(start, end - start), SLICE_BYTES):
            yield int(buckets[start]), piece
