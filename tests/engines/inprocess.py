"""`InProcessEngine`: both verbs as plain loops in this process. A test double, and the oracle of the real engines.

It holds a whole shuffle in memory. Splits, buckets and the rows of a shuffle arrive in an order drawn from `seed`, and
reducers get batches of `batch_rows` rows, far smaller than a real engine's: what depends on arrival, or does not carry
an open group from batch to batch, shows here. Nulls sort first and binary bytewise, as in Spark.
"""

import pickle
import random
from collections.abc import Sequence
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from etl.engine import Engine, Exchange, Reduce, Task, Work

T = TypeVar("T")


class InProcessEngine(Engine):
    """Runs tasks one after another.

    Args:
        batch_rows: most rows of a batch that a reducer gets.
        seed: of the order in which tasks run and rows arrive.

    Attributes:
        ran: (stage, split or bucket) of every task that was started, in order.
    """

    def __init__(self, batch_rows: int = 7, seed: int = 0) -> None:
        super().__init__()
        self.batch_rows = batch_rows
        self.ran: list[tuple[str, int]] = []
        self._random = random.Random(seed)

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        for number, split in self._shuffled(items):
            self.start(work.stage, number)
            task(number, split)

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        table = self._exchanged(exchange)
        keys = [(name, "ascending", "at_start") for name in exchange.order]
        for bucket in self._shuffled(buckets):
            self.start(work.stage, bucket)
            rows = table.filter(pc.equal(table["bucket"], bucket))
            if len(rows):
                rows = rows.take(pc.sort_indices(rows, keys))
            reduce(bucket, iter(rows.to_batches(max_chunksize=self.batch_rows)))

    def start(self, title: str, number: int) -> None:
        """Called before each task; a subclass may refuse it."""
        self.ran.append((title, number))

    def close(self) -> None:
        """Nothing is held."""

    def _exchanged(self, exchange: Exchange) -> pa.Table:
        """All rows of the map side, in the order of arrival."""
        # What a worker runs has to pickle.
        emit = pickle.loads(pickle.dumps(exchange.emit))
        batches = [batch.cast(exchange.schema) for split in exchange.splits for batch in emit(split)]
        table = pa.Table.from_batches(batches, exchange.schema).combine_chunks()
        return table.take(pa.array(self._shuffled(range(len(table))), pa.int64()))

    def _shuffled(self, items: Sequence[T]) -> list[T]:
        return self._random.sample(items, len(items))


class KilledError(BaseException):
    """Stands for a kill: no handler of ours may catch it."""


class DyingEngine(InProcessEngine):
    """Dies in the middle of the task that follows the first `tasks`."""

    def __init__(self, tasks: int, **options: Any) -> None:
        super().__init__(**options)
        self.tasks = tasks

    def start(self, title: str, number: int) -> None:
        if len(self.ran) == self.tasks:
            raise KilledError(title, number)
        super().start(title, number)


class IdleEngine(InProcessEngine):
    """Refuses every task: what is run with it must be committed already."""

    def __init__(self) -> None:
        super().__init__()

    def start(self, title: str, number: int) -> None:
        raise AssertionError(f"task {number} of {title} was run again")
