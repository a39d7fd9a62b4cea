"""Row groups of foreign Parquet files, decoded a few rows at a time, and the limits of what is read into memory.

A footer says how long a row group is with each text of a dictionary counted once, so that a file of a few KB may become
GBs. So its figure is compared with the limit first, and what has really been decoded after every batch. Held are one
batch and one table at a time. Costs no more than reading the row group at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from etl.errors import SourceError, decoding

MAX_ROW_BYTES: Final = 64_000_000
MAX_ROW_GROUP_BYTES: Final = 1 << 32
_DECODED_BYTES = 1 << 26
"""What the rows that are decoded at once would hold if each held all that the footer counts."""
_FEWEST_ROWS: Final = 64
_MOST_ROWS: Final = 1024


@dataclass(frozen=True)
class Limits:
    """What is read into memory at most."""

    row_bytes: int = MAX_ROW_BYTES
    """Of a line without its line feed, or of the text columns of a Parquet row; a longer row is bad. While it is read a
    row takes about four times its length."""
    row_group_bytes: int = MAX_ROW_GROUP_BYTES
    """Of a row group of Parquet when it is decoded; a file with a larger one is not read."""


def decoded(
    place: str, file: pq.ParquetFile, group: int, columns: list[str], limits: Limits
) -> Iterator[pa.RecordBatch]:
    """A row group in batches, the columns without dictionaries.

    Args:
        place: file and row group, for errors.
        file: where it is.
        group: number of the row group.
        columns: that are read.
        limits: of which the row group's holds for what the footer says.

    Raises:
        SourceError: the row group is damaged or too large.
    """
    with decoding(place):
        size = file.metadata.row_group(group).total_byte_size
        _check(place, size, limits)
        rows = min(max(_FEWEST_ROWS, _DECODED_BYTES // max(1, size)), _MOST_ROWS)
        # A task has one core; threads for so few rows cost more than they read.
        batches = file.iter_batches(rows, [group], columns, use_threads=False)
    while True:
        with decoding(place):
            if (batch := next(batches, None)) is None:
                return
            batch = without_dictionaries(batch)
        yield batch


def without_dictionaries(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows, so that how long the texts of a dictionary are together is seen."""
    for number, field in enumerate(batch.schema):
        if pa.types.is_dictionary(field.type):
            batch = batch.set_column(number, field.name, batch.column(number).dictionary_decode())
    return batch


def tables(place: str, batches: Iterator[pa.RecordBatch], table_bytes: int, limits: Limits) -> Iterator[pa.Table]:
    """The batches of a row group in tables of about `table_bytes`.

    Raises:
        SourceError: they hold more than a row group may.
    """
    held: list[pa.RecordBatch] = []
    held_bytes = total_bytes = 0
    for batch in batches:
        size = batch.nbytes
        held_bytes += size
        total_bytes += size
        _check(place, total_bytes, limits)
        held.append(batch)
        if held_bytes >= table_bytes:
            yield from _slices(pa.Table.from_batches(held), table_bytes)
            held, held_bytes = [], 0
    if held:
        yield from _slices(pa.Table.from_batches(held), table_bytes)


def _slices(table: pa.Table, table_bytes: int) -> Iterator[pa.Table]:
    count = max(1, round(table.nbytes / table_bytes))
    size = max(1, -(-len(table) // count))
    for start in range(0, len(table), size):
        yield table.slice(start, size)


def _check(place: str, size: int, limits: Limits) -> None:
    if size > limits.row_group_bytes:
        raise SourceError(
            f"{place} has {size:,} bytes or more when decoded, above run.max_row_group_bytes="
            f"{limits.row_group_bytes}; write the file with smaller row groups, or raise the limit"
        )
