"""The largest value of a column of Parquet files, by the statistics in their footers.

A footer is one read of the store. A row group whose footer says nothing of the column is read, that column alone.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from etl.storage.dataset import Dataset
from etl.storage.manifest import Part


@dataclass(frozen=True)
class Largest:
    """A largest value and where it lies."""

    value: float
    """-inf where there is none; NaN takes no part."""
    place: str
    """Part and row group."""


NOTHING = Largest(-math.inf, "")


def largest_of(found: Iterable[Largest]) -> Largest:
    """The first of the largest ones."""
    return max(found, key=lambda one: one.value, default=NOTHING)


def largest_in(dataset: Dataset, parts: Sequence[Part], columns: Sequence[str]) -> dict[str, Largest]:
    """The largest value of each column, of numbers or of lists of numbers, over all row groups of some parts.

    Raises:
        DataError: a part is gone or of another size than the manifest's.
    """
    found = dict.fromkeys(columns, NOTHING)
    for part in parts:
        dataset.check_part(part)
        with dataset.part_location(part).open_parquet() as file:
            for group in range(file.metadata.num_row_groups):
                for column in columns:
                    here = Largest(_largest(file, group, column), f"{part.path}, row group {group}")
                    found[column] = largest_of([found[column], here])
    return found


def in_footer(metadata: pq.FileMetaData, group: int, column: str) -> float | None:
    """The largest value of a column of a row group; None where the footer does not say."""
    row_group = metadata.row_group(group)
    chunks = (row_group.column(number) for number in range(row_group.num_columns))
    (chunk,) = (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    return float(chunk.statistics.max) if chunk.statistics is not None and chunk.statistics.has_min_max else None


def _largest(file: pq.ParquetFile, group: int, column: str) -> float:
    found = in_footer(file.metadata, group, column)
    if found is not None and not math.isnan(found):
        return found
    values = file.read_row_group(group, columns=[column]).column(column).combine_chunks()
    while pa.types.is_nested(values.type):
        values = values.flatten()
    numbers = values.drop_null().to_numpy(zero_copy_only=False)
    return float(np.nanmax(numbers, initial=-np.inf)) if len(numbers) else -math.inf
