"""Checkpoints of a task: record batches that an attempt stores for the next one. Never part of a dataset.

A slow task (a model over rows) stores its results every `Limits.seconds` or `Limits.rows`, so a kill loses at most that
much. Reading them back costs one small GET per checkpoint.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import pyarrow as pa

from etl.storage.location import Location


class _HasRows(Protocol):
    def __len__(self) -> int: ...


S = TypeVar("S", bound=_HasRows)


@dataclass(frozen=True)
class Limits:
    """When a checkpoint is due: whichever comes first."""

    rows: int
    seconds: float


LIMITS: Final = Limits(rows=1000, seconds=60.0)


def checkpointed(
    folder: Location, slices: Sequence[S], run: Callable[[S], pa.RecordBatch], limits: Limits, first_row: int = 0
) -> Iterator[pa.RecordBatch]:
    """The output of some slices of rows, in order, one checkpoint at a time. Stored checkpoints are reused.

    The slices must be the same in every attempt.

    Args:
        folder: of the checkpoints; each is named after the row that it begins with.
        slices: the input, cut.
        run: returns as many rows as its slice has.
        limits: when a checkpoint is due; checked between slices.
        first_row: number of the first slice's first row.
    """
    at, row = 0, first_row
    while at < len(slices):
        place = folder / f"{row:010d}.arrow"
        batch = load_batch(place)
        if batch is None:
            batch = _run_some(slices[at:], run, limits)
            store_batch(place, batch)
        yield batch
        end = row + batch.num_rows
        while at < len(slices) and row < end:
            row += len(slices[at])
            at += 1


def _run_some(slices: Sequence[S], run: Callable[[S], pa.RecordBatch], limits: Limits) -> pa.RecordBatch:
    """The first slices (at least one), as many as a checkpoint holds."""
    began = time.monotonic()
    done: list[pa.RecordBatch] = []
    num_rows = 0
    for piece in slices:
        is_due = num_rows + len(piece) > limits.rows or time.monotonic() - began >= limits.seconds
        if done and is_due:
            break
        done.append(run(piece))
        num_rows += len(piece)
    return pa.Table.from_batches(done).combine_chunks().to_batches()[0]


def load_batch(place: Location) -> pa.RecordBatch | None:
    """The batch that `store_batch` has stored; None if there is none."""
    try:
        data = place.read()
    except FileNotFoundError:
        return None
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()


def store_batch(place: Location, batch: pa.RecordBatch) -> None:
    """Store a batch atomically, unless one is stored already."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    place.create(sink.getvalue().to_pybytes())
