"""Checkpoints of a task: record batches that one attempt stores for the next. Never part of a dataset.

A slow task (a model over rows) stores what it has made every `Limits.seconds` or `Limits.rows`, so a kill costs at most
that much of a split. Reading them back costs one small GET a checkpoint.
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
    """The output of some slices of rows, in order, a checkpoint at a time; what is stored already is not made again.

    The slices must be the same at every attempt.

    Args:
        folder: of the checkpoints; each is named after the row that it begins with.
        slices: the input, cut.
        run: makes as many rows as its slice has.
        limits: when a checkpoint is due; it is looked at between two slices.
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
    """What `store_batch` put there; None where nothing is."""
    try:
        data = place.read()
    except FileNotFoundError:
        return None
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()


def store_batch(place: Location, batch: pa.RecordBatch) -> None:
    """Put a batch where nothing is yet, in one visible step; what is there already stays."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    place.create(sink.getvalue().to_pybytes())
