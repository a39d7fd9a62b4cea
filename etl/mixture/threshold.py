"""The cut `threshold`: keeps the rows whose value in a column is within given bounds.

One narrow pass over the column, no rounds. Bounds are checked against the column's type before a row is read, and
compared in that type, so that no stored value is rounded: an integer column with whole numbers, exactly, and a float32
column with the bound as float32. So `min: 0.7` keeps what was stored as 0.7, although that is less than the double 0.7.
"""

import math
import types
from collections.abc import Iterator
from typing import Annotated, ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr, model_validator

from etl.errors import SchemaError
from etl.mixture.cuts import RowCut
from etl.step import drop

Value = StrictBool | StrictInt | Annotated[float, Field(strict=True, allow_inf_nan=False)] | StrictStr
Key = Literal["min", "max", "equals", "in"]

_TYPES: Final = "numbers, text, and true or false"


class ThresholdCut(RowCut):
    """Keep the rows whose `column` meets every given condition. A verdict's value is the row's value as text.

    Verdicts are `below_min`, `above_max`, `not_equal` and `not_in`, of which a row gets the first that applies, and
    `unscored` for a row without a value (null, or NaN in a column of floats). Text is ordered by its UTF-8 bytes: dates
    such as 2024-05-01 and codes of one length can be bounded, but "10" is less than "9". A bound that the column's type
    cannot hold (text for a number, 3e9 for an int32, 0.5 as an integer's `equals`) is an error.
    """

    # `in` is a word of Python.
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    kind: Literal["threshold"] = "threshold"
    purpose: ClassVar[str] = "Keep rows whose column meets every condition that is given."
    example: ClassVar[str] = "{kind: threshold, name: fluent, column: perplexity, max: 800}"
    version: ClassVar[int] = 1
    column: str
    """Column of numbers, text or booleans."""
    min: Value | None = None
    """Smallest value to keep."""
    max: Value | None = None
    """Largest value to keep."""
    equals: Value | None = None
    """The only value to keep."""
    values: tuple[Value, ...] | None = Field(default=None, alias="in")
    """Values to keep."""
    unscored: Literal["drop", "keep"] = "drop"
    """What to do with a row without a value."""

    @model_validator(mode="after")
    def _keeps_something(self) -> "ThresholdCut":
        if self.values == ():
            raise ValueError("`in` is an empty list, so no row would be kept; name the values to keep")
        if not list(self._bounds()):
            raise ValueError("no condition is given; give at least one of min, max, equals and in")
        bounds = (self.min, self.max)
        if (_are(bounds, str) or _are(bounds, int | float)) and self.min > self.max:  # type: ignore[operator]  # one kind
            raise ValueError(
                f"min is {self.min!r} and max is {self.max!r}, so no row would be kept; min must not be above max"
            )
        return self

    def _bounds(self) -> Iterator[tuple[Key, Value]]:
        """Every value with which the column is compared, and its key in the configuration."""
        single: dict[Key, Value | None] = {"min": self.min, "max": self.max, "equals": self.equals}
        yield from ((key, value) for key, value in single.items() if value is not None)
        yield from (("in", value) for value in self.values or ())

    def reads(self) -> tuple[str, ...]:
        return (self.column,)

    def check(self, schema: pa.Schema) -> None:
        super().check(schema)
        self._stored(schema.field(self.column).type)

    def mark(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        column = batch.column(self.column)
        stored = self._stored(column.type)
        text = column.cast(pa.string())
        missing = pc.is_null(column, nan_is_null=True)
        if self.unscored == "drop":
            batch = drop(batch, self.label, missing, "unscored", text)
        for reason, wrong in _wrong(column, stored):
            batch = drop(batch, self.label, pc.and_not(wrong, missing), reason, text)
        return batch

    def _stored(self, kind: pa.DataType) -> dict[Key, list[Value]]:
        """The values by key, as a column of this type holds them.

        Raises:
            SchemaError: the type is not one that can be compared, or cannot hold a value.
        """
        stored: dict[Key, list[Value]] = {}
        for key, value in self._bounds():
            try:
                stored.setdefault(key, []).append(_as_stored(value, kind, key))
            except ValueError as error:
                raise SchemaError(
                    f"cut '{self.name}': {key} is {_shown(value)}, but column '{self.column}' is {kind}; {error}"
                ) from error
        return stored


def _are(values: tuple[object, ...], kind: type | types.UnionType) -> bool:
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _as_stored(value: Value, kind: pa.DataType, key: Key) -> Value:
    """A value as a column of this type would hold it; ValueError with a remedy if it cannot."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if pa.types.is_boolean(kind):
        if key in ("min", "max"):
            raise ValueError("true and false have no order; use `equals: true` or `equals: false`")
        if not isinstance(value, bool):
            raise ValueError("write true or false")
        return value
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        if not isinstance(value, str):
            raise ValueError("write it as text, in quotes")
        return value
    is_integer = pa.types.is_integer(kind)
    if not (is_integer or pa.types.is_float32(kind) or pa.types.is_float64(kind)):
        raise ValueError(f"a threshold compares {_TYPES}; give such a column")
    if not number:
        raise ValueError("write a number, without quotes")
    assert not isinstance(value, str)
    return _whole(value, kind, key) if is_integer else _floating(value, kind)


def _whole(value: float, kind: pa.DataType, key: Key) -> int:
    """The nearest whole number that cuts between the same integers."""
    if key in ("equals", "in") and value != math.floor(value):
        raise ValueError("no whole number equals it; write a whole number, or use min and max")
    whole = math.floor(value) if key == "max" else math.ceil(value)
    limits = np.iinfo(kind.to_pandas_dtype())
    if not limits.min <= whole <= limits.max:
        raise ValueError(f"its values are from {limits.min} to {limits.max}; write one of these")
    return whole


def _floating(value: float, kind: pa.DataType) -> float:
    """The nearest float of the column's type."""
    largest = float(np.finfo(kind.to_pandas_dtype()).max)
    if abs(value) > largest:
        raise ValueError(f"its values are from {-largest} to {largest}; write one of these")
    return float(kind.to_pandas_dtype()(value))


def _wrong(column: pa.Array, stored: dict[Key, list[Value]]) -> Iterator[tuple[str, pa.BooleanArray]]:
    """For each condition in order, the reason of its verdicts and the rows that do not meet it."""
    against = {key: pa.array(values, column.type) for key, values in stored.items()}
    if "min" in against:
        yield "below_min", pc.less(column, against["min"][0])
    if "max" in against:
        yield "above_max", pc.greater(column, against["max"][0])
    if "equals" in against:
        yield "not_equal", pc.not_equal(column, against["equals"][0])
    if "in" in against:
        found, values = (_without_sign_of_zero(array) for array in (column, against["in"]))
        yield "not_in", pc.invert(pc.is_in(found, value_set=values))


def _without_sign_of_zero(column: pa.Array) -> pa.Array:
    """`is_in` looks at bits, by which −0.0 is not 0.0."""
    return pc.add(column, 0.0) if pa.types.is_floating(column.type) else column
