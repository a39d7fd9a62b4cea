"""The engine protocol: two verbs, `map` and `shuffle`, and both end in a committed dataset.

What is the same on every engine is here: adopt a dataset that is already committed, plan, find the splits without a
receipt, let the engine run them, commit. What differs is in the two abstract methods that etl/engines implements.
Nothing lazy crosses a verb, and tasks hand back nothing: their receipts are the result.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from etl.storage.dataset import Build, Chunk, Dataset, Job
from etl.storage.manifest import Plan

MapFn = Callable[[Any], Iterable[Chunk]]
"""From a split, as the plan describes it, to what it writes. Runs on a worker, so it must pickle."""

EmitFn = Callable[[Any], Iterable[pa.RecordBatch]]
"""From a split of the map side to batches with an int32 column `bucket`."""

ReduceFn = Callable[[int, Iterator[pa.RecordBatch]], Iterable[Chunk]]
"""From a bucket and its rows, sorted, in batches of any size, to what the bucket writes."""


@dataclass(frozen=True)
class Exchange:
    """The map side of a shuffle and the order in which a bucket's rows arrive."""

    splits: tuple[Any, ...]
    emit: EmitFn
    schema: pa.Schema
    order: tuple[str, ...]
    num_buckets: int


class Engine(ABC):
    """Runs tasks somewhere. Subclasses implement `run_splits` and `run_buckets`."""

    def map(self, job: Job, splits: Iterable[Any], fn: MapFn) -> Dataset:
        """Write one dataset, split by split.

        Args:
            job: what is written.
            splits: one JSON value for each split; `fn` gets it as the plan stores it.
            fn: does one split.
        """
        build = Build(job)

        def work(plan: Plan, missing: list[int]) -> None:
            def task(split: int) -> None:
                build.write(split, fn(plan.splits[split]))

            self.run_splits(missing, task, job.stage)

        return build.run(splits, work)

    def shuffle(self, job: Job, exchange: Exchange, fn: ReduceFn) -> Dataset:
        """Write one dataset, bucket by bucket; rows travel to the bucket that their column `bucket` names.

        Args:
            job: what is written.
            exchange: where the rows come from, the number of buckets and the order inside one.
            fn: does one bucket; it gets an empty iterator for a bucket without rows.
        """
        build = Build(job)

        def reduce(bucket: int, batches: Iterator[pa.RecordBatch]) -> None:
            build.write(bucket, fn(bucket, batches))

        def work(_: Plan, missing: list[int]) -> None:
            self.run_buckets(missing, exchange, reduce, job.stage)

        return build.run(range(exchange.num_buckets), work)

    @abstractmethod
    def run_splits(self, splits: Sequence[int], task: Callable[[int], None], title: str) -> None:
        """Call `task` once (or more often, after a failure) for every split."""

    @abstractmethod
    def run_buckets(
        self,
        buckets: Sequence[int],
        exchange: Exchange,
        reduce: Callable[[int, Iterator[pa.RecordBatch]], None],
        title: str,
    ) -> None:
        """Call `reduce` once (or more often) for every bucket in `buckets`, with its rows sorted by exchange.order."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds."""
