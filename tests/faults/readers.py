"""What readers that know nothing of a manifest see in a folder, on any store: pyarrow, and DuckDB through fsspec."""

from collections import Counter

import duckdb
import pyarrow.dataset as pds

from etl.errors import DataError
from etl.storage.dataset import Dataset
from etl.storage.location import Location


def arrow_values(folder: Location, column: str) -> list:
    """The column, sorted, as pyarrow.dataset reads the folder."""
    folder.fs.invalidate_cache()
    found = pds.dataset(folder.path, filesystem=folder.fs, format="parquet", partitioning="hive")
    return sorted(found.to_table(columns=[column] if column in found.schema.names else [])[column].to_pylist())


def duck_values(folder: Location, column: str) -> list:
    """The column, sorted, as DuckDB reads the folder."""
    folder.fs.invalidate_cache()
    url = folder.path if folder.is_local else folder.url
    with duckdb.connect() as connection:
        if not folder.is_local:
            connection.register_filesystem(folder.fs)
        query = f'SELECT "{column}" FROM read_parquet(?, hive_partitioning = true)'
        return sorted(value for (value,) in connection.execute(query, [f"{url}/**/*.parquet"]).fetchall())


def manifest_values(dataset: Dataset, column: str) -> list:
    """The column, sorted, of the rows that the manifest names."""
    return sorted(value for batch in dataset.read([column]) for value in batch.column(column).to_pylist())


def wrong_rows(folder: Location, column: str, expected: list) -> tuple[int, int]:
    """Rows lost and rows doubled (or strange) for a plain reader of the folder."""
    seen, wanted = Counter(arrow_values(folder, column)), Counter(expected)
    return sum((wanted - seen).values()), sum((seen - wanted).values())


def committed(folder: Location) -> Dataset | None:
    """The dataset in a folder, if one is committed there."""
    try:
        return Dataset.open(folder)
    except DataError:
        return None
