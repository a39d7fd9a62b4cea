"""Fields: columns of one type that a description makes of what stands in the rows of a data set.

A value that says nothing (`n/a`, NaN) is null, and so is one that does not parse, which is counted. Columns as Arrow or
CSV hold them are cast by Arrow kernels, 0.1 to 0.5 µs a value; what JSON holds is first put into Arrow arrays by its
Python types, and lists are opened value by value.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from etl.arrays import Bools
from etl.config import Config
from etl.errors import ConfigError
from etl.schema import CLUSTER_COLUMNS, CORPUS, PROMPT, REMOVED, ROW_KEY
from etl.sources.paths import descend, opened, parts_of

_ALIASES: Final = {"text": "string", "str": "string", "boolean": "bool", "integer": "int", "float": "double"}
"""What people call the types, too."""


def _known_type(name: Any) -> Any:
    return _ALIASES.get(name, name) if isinstance(name, str) else name


FieldType = Literal["string", "bool", "int", "double"]
TYPES: Final[dict[str, pa.DataType]] = {
    "string": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "double": pa.float64(),
}  # fmt: skip
NOTHING: Final = ("", "-", "--", "?", "#n/a", "<na>", "n/a", "na", "nan", "nil", "none", "null")
"""Texts that say that there is no value, in any letter case; not in a field of text, where each may mean something."""
TRUE: Final = ("true", "t", "yes", "y", "on")
FALSE: Final = ("false", "f", "no", "n", "off")
_WHOLE: Final = r"^[+-]?\d+(?:\.0*)?$"
_DECIMAL: Final = r"^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$"
_INFINITE: Final = r"^[+-]?inf(?:inity)?$"
_EXACT_FLOATS: Final = float(1 << 53)
"""Up to here every whole number is a float of its own."""
_BEYOND_64_BITS: Final = 2.0**63
_MAX_DIGITS: Final = 4000
"""Of a whole number that Python reads; its own limit is 4300."""
_SHOWN: Final = 80


class SourceField(Config):
    """A column that a description adds to its rows: its type, and where its values come from."""

    type: Annotated[FieldType, BeforeValidator(_known_type)]
    """Type of its values; `int` has 64 bits."""
    column: str | None = Field(default=None, min_length=1)
    """Column or path to read; null: the column with the field's name."""
    of: Literal["any", "all", "count"] | int | None = None
    """What to take from a list: whether any or all items are true, their number (count), or the item at an index
    (negative: from the end)."""
    strict: bool = False
    """Quarantine a row whose value does not parse; if false, the value becomes null."""

    @model_validator(mode="after")
    def _is_of_its_type(self) -> Self:
        wanted = {"any": "bool", "all": "bool", "count": "int"}.get(str(self.of), self.type)
        if wanted != self.type:
            raise ValueError(f"`of: {self.of}` gives values of type {wanted}, not {self.type}; write `type: {wanted}`")
        if self.of is None and "*" in parts_of(self.column or ""):
            raise ValueError(
                f"'{self.column}' is a list of values; say what the field takes from it: of: any, all, count, or "
                "an index such as 0"
            )
        return self

    @property
    def arrow_type(self) -> pa.DataType:
        """Of the column in every table."""
        return TYPES[self.type]


def _long_form(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


_OURS: Final = frozenset(
    {*PROMPT.names, *CORPUS.names, *CLUSTER_COLUMNS.names, REMOVED.name, ROW_KEY.name, "split", "ctx_bucket"}
)
"""Columns and folders of every corpus and of the tables on the way there."""


def called_otherwise(name: str, field: SourceField) -> str:
    """How to give a field another name."""
    read = f"{{type: {field.type}, column: {field.column or name}}}"
    return f"give the field another name, such as `source_{name}: {read}`"


def _are_no_columns_of_ours(fields: dict[str, SourceField]) -> dict[str, SourceField]:
    """Spark and SQL know no letter case, so names must differ in more."""
    known: dict[str, str] = {}
    for name, field in fields.items():
        if name.lower() in _OURS:
            raise ValueError(f"every table already has a column '{name}'; {called_otherwise(name, field)}")
        if name.lower() in known:
            raise ValueError(
                f"'{known[name.lower()]}' and '{name}' differ only in letter case; {called_otherwise(name, field)}"
            )
        known[name.lower()] = name
    return fields


FieldName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Fields = Annotated[
    dict[FieldName, Annotated[SourceField, BeforeValidator(_long_form)]], AfterValidator(_are_no_columns_of_ours)
]
"""By name, the type alone or all that can be said."""


def union(fields: Mapping[str, Mapping[str, SourceField]]) -> pa.Schema:
    """The columns that the fields of some sources are, each once.

    Args:
        fields: by source.

    Raises:
        ConfigError: two sources give one field two types, or two names that differ in letter case alone.
    """
    columns: dict[str, tuple[str, str, SourceField]] = {}
    for source, given in fields.items():
        for name, field in given.items():
            other, theirs, known = columns.setdefault(name.lower(), (source, name, field))
            if theirs != name:
                raise ConfigError(
                    f"the field '{name}' of the source '{source}' and '{theirs}' of '{other}' differ only in "
                    "letter case; give both the same name, or clearly different ones"
                )
            if known.type != field.type:
                raise ConfigError(
                    f"the field '{name}' has the type {field.type} in the source '{source}' and {known.type} in "
                    f"'{other}'; give both the same type, or different names"
                )
    return pa.schema([(name, field.arrow_type) for _, name, field in columns.values()])


@dataclass(frozen=True)
class Parsed:
    """What became of some values."""

    values: pa.Array
    """[rows] of the field's type."""
    failed: Bools
    """[rows]: whether there was a value that is none of this type; null then."""


def parse(given: pa.Array | Sequence[Any], field: SourceField) -> Parsed:
    """What stands in some rows as values of a field.

    Args:
        given: [rows], a column as `etl.arrow_types.kept` gives it, or JSON values.
        field: what they are to be.
    """
    if field.of is not None:
        values = given.to_pylist() if isinstance(given, pa.Array) else given
        return _of_lists([_list_of(value, parts_of(field.column or "").count("*")) for value in values], field)
    if isinstance(given, pa.Array) and pa.types.is_nested(given.type):
        given = given.to_pylist()
    return _cast(given, field.type) if isinstance(given, pa.Array) else _of_values(given, field.type)


def unparsed(name: str, field: SourceField, value: Any) -> str:
    """Why a row is quarantined for a field."""
    shown = value if isinstance(value, str) else _json_text(value) or str(value)
    cut = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
    return f"field '{name}': {cut} is not of type {field.type}"


# --- JSON values --------------------------------------------------------------------------------------------------


class _Unfit:
    """In the place of a value of which nothing can be made."""


_UNFIT: Final = _Unfit()


def _of_values(values: Sequence[Any], kind: FieldType) -> Parsed:
    """JSON values, by their Python types: each type as one array with nulls for the others."""
    types = set(map(type, values))
    if not types <= _SIMPLE or (int in types and not _fit_64_bits(values)):
        values = [_plain(value, kind) for value in values]
        types = set(map(type, values))
    whole = Parsed(pa.nulls(len(values), TYPES[kind]), np.zeros(len(values), bool))
    for python_type, arrow_type in _ARRAYS.items():
        if python_type not in types:
            continue
        column = values
        if not types <= {python_type, type(None)}:
            column = [value if type(value) is python_type else None for value in values]
        found = _cast(pa.array(column, arrow_type), kind)
        whole = Parsed(pc.coalesce(whole.values, found.values), whole.failed | found.failed)
    if _Unfit in types:
        return Parsed(whole.values, whole.failed | np.array([value is _UNFIT for value in values]))
    return whole


_ARRAYS: Final = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
_SIMPLE: Final = {*_ARRAYS, type(None)}


def _fit_64_bits(values: Sequence[Any]) -> bool:
    whole = [value for value in values if type(value) is int]
    return min(whole) >= -(1 << 63) and max(whole) < 1 << 63


def _plain(value: Any, kind: FieldType) -> Any:
    """A JSON value as one that an array holds."""
    if isinstance(value, list | tuple | dict):
        return (_json_text(value) or _UNFIT) if kind == "string" else _UNFIT
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return str(value)
    return value


def _json_text(value: Any) -> str | None:
    """The JSON of a value, whole numbers of any size; None where it is nested too deep."""
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        pass
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return None


def exact(value: Any, path: str, line: bytes) -> Any:
    """A JSON value with its whole numbers beyond 64 bits, which orjson reads as floats.

    Args:
        value: as orjson reads it.
        path: where it stands in its row.
        line: the row.
    """
    if isinstance(value, float):
        is_rounded = abs(value) >= _BEYOND_64_BITS
    else:
        # orjson writes a float so from 1e16 on.
        is_rounded = isinstance(value, list | dict) and "e+" in (_json_text(value) or "")
    if not is_rounded:
        return value
    try:
        record = json.loads(line, parse_int=_integer)
    except RecursionError:
        return value
    return record[path] if path in record else descend(record, parts_of(path))


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


# --- lists ----------------------------------------------------------------------------------------------------------


def _list_of(value: Any, depth: int) -> list[Any] | _Unfit | None:
    """The list that a value is or that its text holds, as deep lists as a path has stars joined into one."""
    value = opened(value)
    if value is None or (isinstance(value, str) and value.strip().lower() in NOTHING):
        return None
    if not isinstance(value, list):
        return _UNFIT
    for _ in range(depth - 1):
        value = [item for inner in value if isinstance(inner, list) for item in inner]
    return value


def _of_lists(lists: list[list[Any] | _Unfit | None], field: SourceField) -> Parsed:
    if isinstance(field.of, int):
        return _of_values([_item(items, field.of) for items in lists], field.type)
    unfit = np.array([isinstance(items, _Unfit) for items in lists], bool)
    sizes = np.array([len(items) if isinstance(items, list) else 0 for items in lists], np.int64)
    flat = [item for items in lists if isinstance(items, list) for item in items]
    rows = np.repeat(np.arange(len(lists)), sizes)
    known = np.array([isinstance(items, list) for items in lists], bool)
    if field.of == "count":
        counts = np.bincount(rows[[item is not None for item in flat]], minlength=len(lists))
        return Parsed(pa.array(counts, pa.int64(), mask=~known), unfit)
    return _any_or_all(_of_values(flat, "bool"), rows, known, unfit, is_any=field.of == "any")


def _item(items: list[Any] | _Unfit | None, place: int) -> Any:
    if not isinstance(items, list):
        return items
    return items[place] if -len(items) <= place < len(items) else None


def _any_or_all(items: Parsed, rows: np.ndarray[Any, Any], known: Bools, unfit: Bools, *, is_any: bool) -> Parsed:
    """By row whether any or all of its items are true, null where an item that is null decides: Kleene's logic."""
    deciding = _rows_where(pc.fill_null(pc.equal(items.values, is_any), False), rows, len(known))
    open_rows = _rows_where(items.values.is_null(), rows, len(known)) & ~deciding
    failed = _rows_where(pa.array(items.failed), rows, len(known)) & open_rows
    values = deciding if is_any else ~deciding
    return Parsed(pa.array(values, pa.bool_(), mask=~known | open_rows), unfit | failed)


def _rows_where(mask: pa.BooleanArray, rows: np.ndarray[Any, Any], num_rows: int) -> Bools:
    return np.bincount(rows[mask.to_numpy(zero_copy_only=False)], minlength=num_rows) > 0


# --- columns --------------------------------------------------------------------------------------------------------


def _cast(column: pa.Array, kind: FieldType) -> Parsed:
    """A column of null, booleans, numbers or text as a field's type."""
    if pa.types.is_null(column.type):
        return Parsed(pa.nulls(len(column), TYPES[kind]), np.zeros(len(column), bool))
    if pa.types.is_floating(column.type) and column.type != pa.float64():
        # By its digits: what was written as 0.7 is 0.7, not 0.699999988.
        column = column.cast(pa.float32()).cast(pa.string()).cast(pa.float64())
    elif pa.types.is_uint64(column.type):
        column = column.cast(pa.string())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        said, values = _CASTS[kind](column)
    else:
        said, values = column.is_valid(), _of_numbers(column, kind)
        if pa.types.is_floating(column.type):
            said = pc.and_(said, pc.invert(pc.fill_null(pc.is_nan(column), True)))
    failed = pc.and_(said, values.is_null()).to_numpy(zero_copy_only=False)
    return Parsed(values, failed)


def _of_numbers(column: pa.Array, kind: FieldType) -> pa.Array:
    """Booleans, int64 or less, and float64 as a field's type; null where they are none of it."""
    is_bool, is_float = pa.types.is_boolean(column.type), pa.types.is_floating(column.type)
    if kind == "string":
        return _digits(column) if is_float else column.cast(pa.string())
    if kind == "bool":
        return column if is_bool else _zero_or_one(column)
    if is_bool:
        return pa.nulls(len(column), TYPES[kind])
    if kind == "int":
        return _whole(column) if is_float else column.cast(pa.int64())
    # Minus zero is zero: they are equal, and would be two in a digest.
    return pc.add(_where(column, pc.invert(pc.is_nan(column))), 0.0) if is_float else column.cast(pa.float64(), False)


def _where(column: pa.Array, mask: pa.BooleanArray) -> pa.Array:
    """The column with null where the mask is not true."""
    return pc.if_else(pc.fill_null(mask, False), column, pa.scalar(None, column.type))


def _zero_or_one(numbers: pa.Array) -> pa.Array:
    return pc.equal(_where(numbers, pc.or_(pc.equal(numbers, 0), pc.equal(numbers, 1))), 1)


def _whole(floats: pa.Array) -> pa.Array:
    """float64 as int64, null where they have a fraction or are so large that they may have been rounded."""
    is_whole = pc.and_(pc.equal(floats, pc.trunc(floats)), pc.less_equal(pc.abs(floats), _EXACT_FLOATS))
    return _where(floats, is_whole).cast(pa.int64())


def _digits(floats: pa.Array) -> pa.Array:
    """float64 in the fewest digits that name them, `1.0` for a whole one; null for NaN."""
    text = _where(floats, pc.invert(pc.is_nan(floats))).cast(pa.string())
    return pc.replace_substring_regex(text, r"^(-?\d+)$", r"\1.0")


_Said = tuple[pa.BooleanArray, pa.Array]
"""[rows] whether a text says anything, and what it says, null where that is nothing of the type."""


def _as_string(text: pa.Array) -> _Said:
    return text.is_valid(), text.cast(pa.string())


def _words(text: pa.Array) -> tuple[pa.BooleanArray, pa.Array]:
    """Which texts say anything, and these without space around them, in lower case."""
    words = pc.utf8_lower(pc.utf8_trim_whitespace(text.cast(pa.string())))
    says = pc.invert(pc.is_in(words, value_set=pa.array(NOTHING)))
    return pc.and_(text.is_valid(), says), words


def _as_double(text: pa.Array) -> _Said:
    said, words = _words(text)
    return said, _doubles(words)


def _as_int(text: pa.Array) -> _Said:
    """Digits exactly, up to 64 bits, and what a float says exactly, such as 3e2."""
    said, words = _words(text)
    is_digits = pc.match_substring_regex(words, _WHOLE)
    others = _whole(_doubles(_where(words, pc.invert(is_digits))))
    return said, pc.coalesce(_int64(_where(words, is_digits)), others)


def _as_bool(text: pa.Array) -> _Said:
    said, words = _words(text)
    yes, no = (pc.is_in(words, value_set=pa.array(known)) for known in (TRUE, FALSE))
    return said, pc.coalesce(_where(yes, pc.or_(yes, no)), _zero_or_one(_doubles(words)))


_CASTS: Final = {"string": _as_string, "bool": _as_bool, "int": _as_int, "double": _as_double}


def _doubles(words: pa.Array) -> pa.Array:
    """Decimal numbers and infinities as float64, null for other texts and for what is larger than a float."""
    is_decimal, is_infinite = (pc.match_substring_regex(words, pattern) for pattern in (_DECIMAL, _INFINITE))
    values = _where(words, pc.or_(is_decimal, is_infinite)).cast(pa.float64())
    return pc.add(_where(values, pc.or_(is_infinite, pc.is_finite(values))), 0.0)


def _int64(digits: pa.Array) -> pa.Array:
    """Texts that match _WHOLE as int64, null where they have more than 64 bits."""
    digits = pc.replace_substring_regex(digits, r"\.0*$", "")
    digits = pc.replace_substring_regex(digits, r"^(?:\+|(-))?0*(\d)", r"\1\2")
    is_negative = pc.starts_with(digits, "-")
    size = pc.binary_length(pc.utf8_ltrim(digits, "-"))
    largest = pc.if_else(is_negative, f"{-(1 << 63)}", f"{(1 << 63) - 1}")
    fits = pc.or_(pc.less(size, 19), pc.and_(pc.equal(size, 19), pc.less_equal(digits, largest)))
    return _where(digits, fits).cast(pa.int64())
