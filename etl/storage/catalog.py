"""SQL that registers committed datasets in a catalog: external tables for Spark or Hive, views for DuckDB.

Columns and types come from the first part's footer, partition columns from the folders in the paths of the parts. None
of this is trusted: names are quoted as in the dialect, places are quoted as strings, and a dataset whose names or place
contain control characters gets a comment instead. Cost: one manifest and one footer per dataset.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import pyarrow as pa

from etl.arrow_types import FORMS, children, kind_of, plain_type, refused
from etl.errors import DataError, SchemaError
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.manifest import Part
from etl.storage.opened import Run
from etl.storage.stale import stale_below
from etl.terminal import one_line

Dialect = Literal["spark", "hive", "duckdb"]


def statements(root: Location, dialect: Dialect) -> Iterator[str]:
    """SQL for every committed dataset at or below a folder, in the order of their paths; a comment where there is none.

    A table has the name of its folder, with `_` for every character that a name cannot have. A stale dataset
    (etl/storage/stale.py) gets a comment, unless its folder was given.

    Raises:
        DataError: there is no committed dataset at or below the folder, or a record or manifest is damaged.
    """
    run = Run.open(root)
    if not run.committed:
        raise DataError(f"there is no committed dataset at or below {root}")
    stale = stale_below(run)
    for folder in run.committed:
        dataset = run.dataset(folder)
        name = table_name(root, folder)
        if folder in stale:
            yield f"-- {name}: skipped, as it is from an earlier recipe and no stage of the last recipe writes it"
        elif dataset.manifest.holds_files:
            yield f"-- {name}: not a table, but files such as {one_line(dataset.manifest.parts[0].path)}"
        elif not dataset.manifest.parts:
            yield f"-- {name}: no rows, so its columns are unknown"
        elif unseen := _unseen(dataset):
            yield f"-- {name}: no table, as {unseen} has control characters"
        elif dialect == "duckdb":
            yield _view(name, dataset)
        elif reason := _without_sql(dataset):
            yield f"-- {name}: no table, as {one_line(reason)}"
        else:
            yield from _table(name, dataset, dialect)


def table_name(root: Location, folder: str) -> str:
    """The path of a dataset below `root` (or the name of `root` itself) as an identifier."""
    return "".join(sign if sign.isascii() and sign.isalnum() else "_" for sign in folder or root.name)


def partition_values(part: Part) -> dict[str, str]:
    """Names and values of the Hive folders in a part's path, outermost first."""
    pairs = (folder.partition("=") for folder in part.path.split("/")[:-1])
    return {name: value for name, sign, value in pairs if sign}


def sql_type(arrow: pa.DataType, dialect: Dialect = "spark") -> str:
    """The type as Spark and Hive write it.

    Raises:
        SchemaError: no SQL type reads it as it is stored.
    """
    if (part := refused(arrow, "sql")) is not None:
        raise SchemaError(
            f"the Arrow type {part} has no SQL type here; docs/reference/arrow_types.md says what to cast it to"
        )
    arrow = plain_type(arrow)
    name = str(FORMS[kind_of(arrow)].sql)
    inner = [sql_type(child, dialect) for child in children(arrow)]
    if name == "DECIMAL":
        return f"DECIMAL({arrow.precision},{arrow.scale})"
    if name == "STRUCT":
        fields = (f"{_quoted(field.name)}: {made}" for field, made in zip(arrow, inner, strict=True))
        return f"STRUCT<{', '.join(fields)}>"
    if inner:
        return f"{name}<{', '.join(inner)}>"
    # Hive's TIMESTAMP has no zone, and not all readers of its tables know another type.
    return "TIMESTAMP" if name == "TIMESTAMP_NTZ" and dialect == "hive" else name


def _without_sql(dataset: Dataset) -> str:
    """A message about the first column whose type SQL does not have; empty if there is none."""
    for field in dataset.schema:
        if (part := refused(field.type, "sql")) is not None:
            return f"column '{field.name}' is {field.type}, and no SQL type reads {part} as it is stored"
    return ""


def _table(name: str, dataset: Dataset, dialect: Dialect) -> Iterator[str]:
    partitions = partition_values(dataset.manifest.parts[0])
    columns = ",\n".join(f"  {_quoted(field.name)} {sql_type(field.type, dialect)}" for field in dataset.schema)
    by = [f"PARTITIONED BY ({', '.join(f'{_quoted(column)} STRING' for column in partitions)})"] if partitions else []
    storage = ["USING PARQUET", *by] if dialect == "spark" else [*by, "STORED AS PARQUET"]
    place = _place(dataset).replace("\\", "\\\\").replace("'", "\\'")
    head = f"CREATE EXTERNAL TABLE IF NOT EXISTS {_quoted(name)} (\n{columns}\n)"
    yield "\n".join([head, *storage, f"LOCATION '{place}';"])
    if partitions:
        yield f"MSCK REPAIR TABLE {_quoted(name)};"


def _view(name: str, dataset: Dataset) -> str:
    """A pattern, not the list of parts: after a commit the folder holds nothing else, and DuckDB prunes folders."""
    partitions = partition_values(dataset.manifest.parts[0])
    pattern = f"{_place(dataset)}/{'*/' * len(partitions)}part-*.parquet".replace("'", "''")
    types = ", ".join(f"{_double_quoted(column)}: VARCHAR" for column in partitions)
    options = f"hive_partitioning = true, hive_types = {{{types}}}" if partitions else "hive_partitioning = false"
    return f"CREATE OR REPLACE VIEW {_double_quoted(name)} AS\nSELECT * FROM read_parquet('{pattern}', {options});"


def _quoted(name: str) -> str:
    """A name in Spark and Hive."""
    return "`" + name.replace("`", "``") + "`"


def _double_quoted(name: str) -> str:
    """A name in DuckDB."""
    return '"' + name.replace('"', '""') + '"'


def _unseen(dataset: Dataset) -> str:
    """Which name of a dataset cannot be printed on one line; empty if none."""
    names = {"its place": [_place(dataset)], "a part": [part.path for part in dataset.manifest.parts]}
    names["a column"] = list(_names(dataset.schema))
    found = (what for what, texts in names.items() if any(one_line(text) != text for text in texts))
    return next(found, "")


def _names(fields: Iterable[pa.Field]) -> Iterator[str]:
    """Names of fields and of nested fields."""
    for field in fields:
        yield field.name
        inner = [field.type.field(number) for number in range(field.type.num_fields)]
        yield from _names(inner)


def _place(dataset: Dataset) -> str:
    return dataset.folder.path if dataset.folder.is_local else dataset.folder.url
