"""Steps and datasets as Spark DataFrames, for people without a recipe: `apply(df, steps)` and `read(session, path)`.

Both are lazy like DataFrames: they check their arguments on the driver at once, and do the work when the user's action
runs. Steps cost one load of their models for each partition; every column of the frame travels to Python and back, so
select what is needed first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from etl.engines.spark_types import arrow_schema, spark_fields
from etl.errors import SchemaError
from etl.messages import whole_messages
from etl.pipeline import AnyStep, open_steps
from etl.schema import ID, MESSAGE, PROMPT, VERDICT
from etl.step import Step, drop
from etl.storage.catalog import partition_values
from etl.storage.dataset import Dataset, read_part
from etl.storage.location import Location
from etl.storage.manifest import Part

_GLOB_SIGNS = frozenset("*?[]{}\\")


def apply(df: Any, steps: Sequence[Step]) -> Any:
    """A DataFrame with the steps' columns.

    Args:
        df: a Spark DataFrame that has the columns which the steps read, in the types of `etl.schema` (`id` is binary of
            16 bytes, `messages` is array<struct<role, channel, recipient, content, content_type, call_id>>; all of its
            fields but role and content, and `tools`, may be absent and read as null then). Other columns may be of any
            type that Spark hands to Python.
        steps: run in this order on each row; none of them looks at another row.

    Returns:
        The rows of `df`, none left out, with its columns as they were, those that the steps add, and `verdict` at the
        end (or where it was): null, or struct<step, reason, value> of the step that would drop the row. A row with a
        message that is null, or has no role or no content, has the verdict `null_message`, `null_role` or
        `null_content` of a step called `apply`.

    Raises:
        SchemaError: a column that a step reads is absent or has another type, one that it adds is already there, a name
            occurs twice, or a column is of a type that Arrow or Spark does not have.
    """
    from pyspark.sql.types import StructField, StructType

    given = arrow_schema(df.schema, SchemaError)
    twice = sorted({name for name in given.names if given.names.count(name) > 1})
    if twice:
        raise SchemaError(f"the DataFrame has several columns called {twice}; rename all but one")
    schema = given if "verdict" in given.names else pa.schema([*given, pa.field("verdict", VERDICT)])
    for step in steps:
        schema = step.output_schema(schema)
    read = _read_types(steps)
    for field in df.schema:
        if field.name in read:
            _check_type(field, read[field.name])
    names = [*given.names, *(name for name in schema.names if name not in given.names and name != "verdict")]
    if "verdict" not in given.names:
        names.append("verdict")
    added = spark_fields(pa.schema([field for field in schema if field.name not in given.names]))
    declared = {name: StructField(name, field.dataType) for name, field in added.items()}
    declared |= {field.name: field for field in df.schema}
    out = StructType([declared[name] for name in names])
    types = arrow_schema(out, SchemaError)
    unchanged = set(given.names) - {"verdict"}

    def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        function = open_steps(steps)
        for batch in batches:
            done = function(_readable(batch, read))
            columns = [
                batch.column(name) if name in unchanged else done.column(name).cast(types.field(name).type)
                for name in names
            ]
            yield pa.RecordBatch.from_arrays(columns, names=names)

    return df.mapInArrow(run, out)


def _read_types(steps: Sequence[Step]) -> dict[str, pa.DataType]:
    """Arrow type of every column that the steps read and can rely on, by name in the table."""
    known = _known_types()
    read = {"verdict": "verdict"}
    for step in steps:
        read |= {name: name for name in (*step.selects_by, *step.may_read)} | step.inputs
    return {name: known[column] for name, column in read.items() if column in known}


def _check_type(field: Any, wanted: pa.DataType) -> None:
    from pyspark.sql.pandas.types import from_arrow_type

    kind = from_arrow_type(wanted)
    if field.dataType.simpleString() == kind.simpleString() or (field.name == "messages" and _is_messages(field)):
        return
    raise SchemaError(
        f"column '{field.name}' is {field.dataType.simpleString()}, but the steps read it as "
        f"{kind.simpleString()}; cast it, or build it with named_struct and array"
    )


def _is_messages(field: Any) -> bool:
    """Whether a Spark column has role and content of messages, and no field that messages do not have."""
    from pyspark.sql.types import ArrayType, NullType, StringType, StructType

    kind = field.dataType
    if not (isinstance(kind, ArrayType) and isinstance(kind.elementType, StructType)):
        return False
    fields = {part.name: part.dataType for part in kind.elementType}
    textual = all(isinstance(part, StringType | NullType) for part in fields.values())
    return textual and {"role", "content"} <= set(fields) <= set(MESSAGE.names)


def _readable(batch: pa.RecordBatch, read: dict[str, pa.DataType]) -> pa.RecordBatch:
    """The batch as steps read it: their columns in their types, and a verdict for incomplete messages."""
    if "verdict" not in batch.schema.names:
        batch = batch.append_column("verdict", pa.nulls(batch.num_rows, VERDICT))
    flaws: dict[str, pa.BooleanArray] = {}
    if "messages" in read:
        messages, flaws = whole_messages(batch.column("messages"))
        batch = batch.set_column(batch.schema.get_field_index("messages"), "messages", messages)
    batch = _cast(batch, read)
    for reason, mask in flaws.items():
        batch = drop(batch, "apply", mask, reason, pa.nulls(batch.num_rows, pa.string()))
    return batch


def _known_types() -> dict[str, pa.DataType]:
    """Arrow type of every column that a step can rely on, by name."""
    kinds = get_args(get_args(AnyStep)[0])
    added = {field.name: field.type for kind in kinds for field in kind.adds}
    return added | {field.name: field.type for field in PROMPT} | {"verdict": VERDICT}


def _cast(batch: pa.RecordBatch, types: dict[str, pa.DataType]) -> pa.RecordBatch:
    """The batch with some columns in other types."""
    columns = [
        column.cast(types[name]) if name in types else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def read(session: Any, path: str | Path | Location) -> Any:
    """A DataFrame with exactly the rows that a dataset's manifest names, partition columns included.

    Spark reads the files itself where its Hadoop has a file system for the path (local, hdfs, s3a with its jars, …);
    from any other store the workers read them through fsspec, every column of them.

    Args:
        session: the SparkSession.
        path: folder of a committed dataset; a `Location` for a store that needs options.

    Raises:
        DataError: there is no committed dataset, or a part of it is gone.
        SchemaError: Spark has no type for a column.
    """
    from pyspark.sql.types import StructType

    dataset = Dataset.open(Location.of(path))
    parts = dataset.manifest.parts
    partitions = [partition_values(part) for part in parts]
    folders = [pa.field(name, pa.string()) for name in (partitions[0] if partitions else ())]
    schema = StructType(list(spark_fields(pa.schema([*dataset.schema, *folders])).values()))
    if not parts:
        return session.createDataFrame([], schema)
    if _reads_natively(session, dataset.folder):
        root = f"file://{dataset.folder.path}" if dataset.folder.is_local else dataset.folder.url
        files = [f"{root}/{part.path}" for part in parts]
        return session.read.schema(schema).option("basePath", root).parquet(*files)
    return session.range(0, len(parts), 1, len(parts)).mapInArrow(_ReadParts(dataset.folder, parts, partitions), schema)


@dataclass(frozen=True)
class _ReadParts:
    """On a worker, the rows of the parts whose numbers it receives."""

    folder: Location
    parts: tuple[Part, ...]
    partitions: list[dict[str, str]]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                for rows in read_part(self.folder / self.parts[number].path):
                    for name, value in self.partitions[number].items():
                        rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
                    yield _cast(rows, {field.name: pa.binary() for field in rows.schema if field.type == ID})


def _reads_natively(session: Any, folder: Location) -> bool:
    """Whether Spark itself can read below a folder; it would treat some characters in a path as a pattern."""
    from py4j.protocol import Py4JJavaError

    if _GLOB_SIGNS.intersection(folder.url):
        return False
    scheme, sign, _ = folder.url.partition("://")
    if not sign:
        return True
    context = session.sparkContext
    try:
        context._jvm.org.apache.hadoop.fs.FileSystem.getFileSystemClass(scheme, context._jsc.hadoopConfiguration())
    except Py4JJavaError:
        return False
    return True
