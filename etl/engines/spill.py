"""Scratch files of a shuffle whose two sides see one disk: the map side of a split writes one, every bucket reads it.

A file is an Arrow file whose batches hold rows of one bucket each. It is not compressed: a file is read back
within minutes, mostly from the page cache, and zstd took a third of a layout's time. A bucket maps the file, so its
rows are pages of that cache until they are copied.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from etl.arrays import I32, Bools
from etl.engine import EmitFn, Reduce
from etl.engines.bucket_slices import bucket_slices
from etl.sorting import SortedRows
from etl.storage.progress import Counts


@dataclass(frozen=True)
class Spill:
    """The rows that the map side made of one split."""

    path: Path
    buckets: I32
    """The bucket of each batch of the file, int32 [num_batches]."""

    def read(self, bucket: int) -> Iterator[pa.RecordBatch]:
        """The batches of a bucket, as views of the file."""
        places = np.flatnonzero(self.buckets == bucket)
        if len(places):
            with pa.memory_map(str(self.path)) as file, pa.ipc.open_file(file) as reader:
                for place in places.tolist():
                    yield reader.get_batch(place)


@dataclass(frozen=True)
class WriteSpill:
    """The map side of one split."""

    emit: EmitFn
    schema: pa.Schema
    wanted: Bools
    """Whether a bucket is to be reduced, bool [num_buckets]."""
    folder: Path

    def __call__(self, number: int, split: Any) -> Spill:
        """Write the file of a split; `number` names it."""
        path = self.path_of(number)
        buckets: list[int] = []
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, self.schema) as writer:
            for bucket, rows in bucket_slices(self.emit, split, self.schema, self.wanted):
                writer.write_batch(rows)
                buckets.append(bucket)
        return Spill(path, np.array(buckets, np.int32))

    def path_of(self, number: int) -> Path:
        """Path of the file with the rows of a split."""
        return self.folder / f"{number:05d}.arrow"


@dataclass(frozen=True)
class SpillSplit:
    """The map side of one split for an engine whose tasks return nothing: the buckets are stored beside the file."""

    write: WriteSpill

    def __call__(self, number: int, split: Any) -> Counts:
        """Write both files of a split."""
        spill = self.write(number, split)
        np.save(self._buckets(number), spill.buckets)
        return Counts()

    def spill_of(self, number: int) -> Spill:
        """The spill that the task of a split has written."""
        return Spill(self.write.path_of(number), np.load(self._buckets(number)))

    def _buckets(self, number: int) -> Path:
        return self.write.path_of(number).with_suffix(".npy")


@dataclass(frozen=True)
class ReduceSpills:
    """Hands one bucket to the reducer: its slices of all spills, sorted."""

    spills: list[Spill]
    sorter: Callable[[], SortedRows]
    reduce: Reduce

    def __call__(self, bucket: int) -> Counts:
        with self.sorter() as rows:
            rows.add_views(batch for spill in self.spills for batch in spill.read(bucket))
            return self.reduce(bucket, rows.sorted())
