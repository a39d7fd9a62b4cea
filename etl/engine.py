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
from etl.storage.manifest import FLOW, Plan, Receipt

MapFn = Callable[[Any], Iterable[Chunk]]
"""From a split, as the plan describes it, to what it writes. Runs on a worker, so it must pickle."""

EmitFn = Callable[[Any], Iterable[pa.RecordBatch]]
"""From a split of the map side to batches with an int32 column `bucket`."""

ReduceFn = Callable[[int, Iterator[pa.RecordBatch]], Iterable[Chunk]]
"""From a bucket and its rows, sorted, in batches of any size, to what the bucket writes."""


@dataclass(frozen=True)
class Resources:
    """What one task needs of its worker; zero leaves it to the engine's own settings."""

    cpus: int = 0
    gpus: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True)
class Work:
    """What an engine is about to run, for its scheduler and for people who watch."""

    stage: str
    num_tasks: int
    of_tasks: int
    """Tasks of the whole dataset; those that are not to run were done by an earlier run."""
    resources: Resources = Resources()


@dataclass(frozen=True)
class Counts:
    """What one task did, for an engine's counters; the dataset's own accounts come from receipts alone."""

    rows_in: int = 0
    rows_out: int = 0
    tokens: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, receipt: Receipt) -> "Counts":
        losses = [
            rows
            for steps in receipt.accounting.values()
            for counts in steps.values()
            for reason, rows in counts.items()
            if reason not in FLOW
        ]
        tokens = sum(part.tokens or 0 for part in receipt.parts)
        return cls(receipt.rows_in, receipt.rows_out, tokens, sum(losses))


Task = Callable[[int, Any], Counts]
"""Does one split: its number and its value in the plan."""

Reduce = Callable[[int, Iterator[pa.RecordBatch]], Counts]
"""Does one bucket."""


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

    def map(self, job: Job, splits: Iterable[Any], fn: MapFn, resources: Resources = Resources()) -> Dataset:
        """Write one dataset, split by split.

        Args:
            job: what is written.
            splits: one JSON value for each split; `fn` gets it as the plan stores it.
            fn: does one split.
            resources: what `fn` needs.
        """
        build = Build(job)

        def task(number: int, split: Any) -> Counts:
            return Counts.of(build.write(number, fn(split)))

        def work(plan: Plan, missing: list[int]) -> None:
            items = [(number, plan.splits[number]) for number in missing]
            self.run_splits(Work(job.stage, len(items), len(plan.splits), resources), items, task)

        return build.run(splits, work)

    def shuffle(self, job: Job, exchange: Exchange, fn: ReduceFn) -> Dataset:
        """Write one dataset, bucket by bucket; rows travel to the bucket that their column `bucket` names.

        Args:
            job: what is written.
            exchange: where the rows come from, the number of buckets and the order inside one.
            fn: does one bucket; it gets an empty iterator for a bucket without rows.
        """
        build = Build(job)

        def reduce(bucket: int, batches: Iterator[pa.RecordBatch]) -> Counts:
            return Counts.of(build.write(bucket, fn(bucket, batches)))

        def work(plan: Plan, missing: list[int]) -> None:
            self.run_buckets(Work(job.stage, len(missing), len(plan.splits)), missing, exchange, reduce)

        return build.run(range(exchange.num_buckets), work)

    @abstractmethod
    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        """Call `task` once (or more often, after a failure) for every (number, value) of a split.

        Raises:
            StillhouseError: what a task raised, as the class that it was.
        """

    @abstractmethod
    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        """Call `reduce` once (or more often) for every bucket in `buckets`, with its rows sorted by exchange.order.

        A bucket without rows is called too. Nulls sort first, binary and strings bytewise.

        Raises:
            StillhouseError: what `exchange.emit` or `reduce` raised; then no bucket is written from half of its rows.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what the engine holds."""
