"""Three toy datasets (a map, a shuffle, a partitioned one), each in an older and a newer version, with a straggler.

They are small enough to be killed at every operation on storage: 3 splits, 7 rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from etl.engine import Exchange
from etl.storage.build import Chunk, Job
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from tests.engines.inprocess import InProcessEngine
from tests.etl.storage.builds import begin, chunks_of, counted, job, numbers

ROWS = [1, 2, 3, 4, 5, 6, 7]
OLD_ROWS = [4, 5, 50, 51]
"""Two of them are in the newer version too, in the same split, so that both versions write the same bytes there."""
_SPLITS = {1: [[[50, 51]], [], [[4, 5]]], 2: [[[1, 2], [3]], [], [[4, 5], [6, 7]]]}
_STRANGE = [100, 101]
_EXCHANGED = pa.schema([pa.field("bucket", pa.int32()), pa.field("n", pa.int64())])
_NUM_BUCKETS = 3


class Straggling(InProcessEngine):
    """Does its work in the order of the splits, then calls `after`, in which an attempt ends late."""

    def __init__(self, after: Callable[[], object]) -> None:
        super().__init__()
        self._after = after

    def run_splits(self, work, items, task) -> None:
        super().run_splits(work, items, task)
        self._after()

    def run_buckets(self, work, buckets, exchange, reduce) -> None:
        super().run_buckets(work, buckets, exchange, reduce)
        self._after()


def partitioned(split: list[list[int]]) -> Iterator[Chunk]:
    for group in split:
        for n in group:
            yield counted(numbers(n), partition=f"parity={n % 2}")


def emit(rows: list[int]) -> Iterator[pa.RecordBatch]:
    buckets = [n % _NUM_BUCKETS for n in rows]
    yield pa.record_batch([pa.array(buckets, pa.int32()), pa.array(rows, pa.int64())], schema=_EXCHANGED)


def reduced(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    rows = [n for batch in batches for n in batch.column("n").to_pylist()]
    if rows:
        yield counted(numbers(*rows))


@dataclass(frozen=True)
class Shape:
    """One way to make a dataset. Version 1 has OLD_ROWS, version 2 ROWS."""

    name: str
    num_splits: int = 3

    def build(self, folder: Location, version: int = 2) -> Dataset:
        """The dataset; a second attempt of split 0 with other rows ends before the commit."""
        engine = Straggling(lambda: self.end_late(folder, version))
        if self.name == "shuffle":
            sides = tuple([n for group in split for n in group] for split in _SPLITS[version])
            exchange = Exchange(sides, emit, _EXCHANGED, ("n",), _NUM_BUCKETS)
            return engine.shuffle(self._job(folder, version), exchange, reduced)
        fn = partitioned if self.name == "partitioned" else chunks_of
        return engine.map(self._job(folder, version), _SPLITS[version], fn).result()

    def end_late(self, folder: Location, version: int = 2) -> None:
        """One more attempt of split 0, with rows of its own."""
        what = self._job(folder, version)
        if self.name == "shuffle":
            _, _, writer = begin(what.with_buckets(_NUM_BUCKETS), range(_NUM_BUCKETS))
        else:
            _, _, writer = begin(what, _SPLITS[version])
        writer.write(0, [counted(numbers(*_STRANGE))])

    def _job(self, folder: Location, version: int) -> Job:
        return job(folder, semantic={"shape": self.name, "version": version})


SHAPES = (Shape("map"), Shape("shuffle"), Shape("partitioned"))
