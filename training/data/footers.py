"""Reads parts of a dataset by row group: some columns, and the largest value of a column from the footer.

A footer is one read of the store. If it has no statistics of the column, the column of that row group is read.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from etl.errors import DataError
from etl.storage.dataset import Dataset
from etl.storage.manifest import Part


@dataclass(frozen=True)
class Largest:
    """A largest value and its place."""

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
        DataError: a part is missing, of another size than the manifest's, or damaged.
    """
    found = dict.fromkeys(columns, NOTHING)
    for part in parts:
        dataset.check_part(part)
        with dataset.part_location(part).open_parquet() as file:
            for group in range(file.metadata.num_row_groups):
                for column in columns:
                    value = in_footer(file.metadata, group, column)
                    if value is None or math.isnan(value):
                        value = _in_rows(read_columns(file, dataset, part, group, [column]).column(column))
                    found[column] = largest_of([found[column], Largest(value, f"{part.path}, row group {group}")])
    return found


def read_columns(file: pq.ParquetFile, dataset: Dataset, part: Part, group: int, columns: Sequence[str]) -> pa.Table:
    """Columns of a row group of an open part, each in at most one chunk.

    Raises:
        DataError: it cannot be decoded.
    """
    # One thread: several row groups are decoded at a time instead.
    try:
        return file.read_row_group(group, columns=list(columns), use_threads=False).combine_chunks()
    # As Arrow says that bytes are not what its format or a compression asks for.
    except (OSError, ValueError) as error:
        raise DataError(
            f"{dataset.part_location(part)}, row group {group} is damaged ({error}); run "
            f"`stillhouse verify {dataset.folder}`, then the recipe that writes it"
        ) from error


def in_footer(metadata: pq.FileMetaData, group: int, column: str) -> float | None:
    """The largest value of a column of a row group; None where the footer does not say."""
    row_group = metadata.row_group(group)
    chunks = (row_group.column(number) for number in range(row_group.num_columns))
    (chunk,) = (chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    return float(chunk.statistics.max) if chunk.statistics is not None and chunk.statistics.has_min_max else None


def _in_rows(column: pa.ChunkedArray) -> float:
    values = column.combine_chunks()
    while pa.types.is_nested(values.type):
        values = values.flatten()
    numbers = values.drop_null().to_numpy(zero_copy_only=False).astype(np.float64)
    return float(np.fmax.reduce(numbers, initial=-np.inf))
