"""Toy batches for the tests of stages: rows without a dataset behind them, and streams cut anywhere."""

import itertools

import pyarrow as pa

from etl.schema import ID, REST_OF_ID, VERDICT

EARLIER = {"step": "earlier", "reason": "x", "value": None}


class ToyRows:
    """Stands for `etl.rows.Rows` without fields of sources: the row groups of each split, and nothing else.

    Args:
        splits: for each split its row groups, batches with a column `verdict`.
    """

    rest_of_id = REST_OF_ID

    def __init__(self, *splits):
        self._splits = splits
        self.splits = range(len(splits))

    def read(self, split, columns):
        return (batch.select(columns) for batch in self._splits[split])


def identity(number):
    """A 16-byte id that sorts as its number."""
    return number.to_bytes(16, "big")


def ids(numbers):
    return pa.array([identity(number) for number in numbers], ID)


def verdict_column(num_rows, dropped=()):
    """Verdicts of a batch; the rows numbered in `dropped` have one already."""
    return pa.array([EARLIER if row in dropped else None for row in range(num_rows)], VERDICT)


def with_rest_of_id(batch):
    """The rows with the columns that distinguish rows of one id, the same in all of them."""
    for name in REST_OF_ID:
        batch = batch.append_column(name, pa.array(["x"] * batch.num_rows))
    return batch


def cut_at(table, cuts):
    """The rows of a table as a stream of batches that begin at `cuts`; some may be empty."""
    (batch,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    borders = [0, *sorted(min(cut, batch.num_rows) for cut in cuts), batch.num_rows]
    return iter([batch.slice(start, end - start) for start, end in itertools.pairwise(borders)])


def rows_of(chunks):
    """The rows of a reducer's chunks, as dicts."""
    return [row for chunk in chunks if chunk.batch is not None for row in chunk.batch.to_pylist()]


def rows_in(chunks):
    """How many rows the chunks say have come in."""
    return sum(chunk.rows_in for chunk in chunks)


def distributions_of(chunks):
    """What the last chunk counts."""
    return chunks[-1].distributions
