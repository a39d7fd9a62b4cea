"""Converts between Arrow and Spark types; an error names a column without one.

etl/arrow_types.py defines what Spark makes of an Arrow type. In the other direction only Spark's intervals of years and
months have no Arrow type. Moments travel in UTC, whatever the session's time zone shows.
"""

from typing import Any

import pyarrow as pa

from etl.arrow_types import refused
from etl.errors import SchemaError, StillhouseError


def arrow_schema(schema: Any, error: type[StillhouseError], where: str = "") -> pa.Schema:
    """The Arrow types in which Spark hands columns to Python.

    Args:
        schema: a Spark StructType.
        error: class of the error to raise.
        where: the beginning of the message.

    Raises:
        StillhouseError: of the class `error`; a column has no Arrow type.
    """
    from pyspark.errors import PySparkTypeError
    from pyspark.sql.pandas.types import to_arrow_schema
    from pyspark.sql.types import StructType

    fields = []
    for field in schema:
        try:
            (made,) = to_arrow_schema(StructType([field]), timezone="UTC")
        except PySparkTypeError as reason:
            raise error(
                f"{where}column '{field.name}' is {field.dataType.simpleString()}, which Spark cannot pass to "
                "Python; cast it to string, or leave it out"
            ) from reason
        fields.append(made.with_type(_nullable(made.type)))
    return pa.schema(fields)


def _nullable(kind: pa.DataType) -> pa.DataType:
    """The type with nulls allowed inside: Arrow refuses to cast a null struct to one whose fields may not be null."""
    if pa.types.is_list(kind):
        return pa.list_(pa.field(kind.value_field.name, _nullable(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(_nullable(kind.key_type), _nullable(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _nullable(field.type)) for field in kind])
    return kind


def spark_fields(schema: pa.Schema) -> dict[str, Any]:
    """Spark's StructField of each column, by name.

    Raises:
        SchemaError: Spark has no type for a column.
    """
    from pyspark.sql.pandas.types import from_arrow_schema

    for field in schema:
        if (part := refused(field.type, "spark")) is not None:
            raise SchemaError(
                f"column '{field.name}' is {field.type}, and Spark has no type for {part}; "
                "docs/reference/arrow_types.md says what to cast it to"
            )
    return {field.name: field for field in from_arrow_schema(schema)}
