"""What a format gives of a split: the columns that a shape reads, and the rows that could not be read.

A format's reader makes `RawBatch`es; the checks here hold for all formats: text that is not UTF-8, a required value
that is null, a row that is too long. A bad row keeps its position, its reason and what stood there; nothing is
repaired or skipped silently. Arrow kernels over whole columns; Python looks only at rows that are bad.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from etl.arrays import I64, Bools
from etl.sources.row_groups import Limits
from etl.sources.shapes.described import Constant, Value
from etl.sources.spec import Shape

ROW_GROUP_BYTES = 16 << 20
"""Raw bytes after which a row group is closed."""
RAW_BYTES = 16 << 20
"""How much of a bad row a quarantine keeps; of a line that is too long, no more than the reader holds is there."""


@dataclass
class Bad:
    """A row that could not be read."""

    position: int
    reason: str
    detail: str
    raw: bytes
    """Of JSONL the line as it was; of Parquet the text at fault, or the columns that are read as JSON."""
    example_id: str | None = None
    """The row's name, where that could be read."""
    file: str = ""
    """As its rows call it; whoever reads the split fills it in."""


@dataclass(frozen=True)
class Lost:
    """Why a row is bad."""

    reason: str
    detail: str
    example_id: str | None = None


@dataclass
class RawBatch:
    """Consecutive rows of a file: the columns that the shape reads, all of equal length, and the bad rows."""

    columns: dict[str, pa.Array]
    """Text, and what is kept for meta_json."""
    positions: pa.Array
    nested: dict[str, list[Any]] = field(default_factory=dict)
    """What the shape and its fields read as JSON values."""
    lines: Sequence[bytes] | None = None
    """Of JSONL the rows as they were."""
    bad: list[Bad] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """By kind, what stands among the rows and is none, such as the requests of a WARC file."""
    unparsed: Counter[str] = field(default_factory=Counter)
    """By field, the values that were none of its type."""
    ends_row_group: bool = False
    """Whether a row group of the output is full with it, unless it is a small one; Parquet's batches each are one."""
    arrays: dict[str, pa.Array] = field(default_factory=dict)
    """What its fields read as the file has it, in the types of `etl.arrow_types.kept`."""
    usual: dict[str, pa.Array] = field(default_factory=dict)
    """By path what Columns.usual_messages has; `nested` has None for these rows."""
    assembled: "Assembled | None" = None
    """Of rows that were made of several; then `positions` are their places in it."""

    def __len__(self) -> int:
        return len(self.positions)

    def text(self, value: Value | None) -> pa.Array:
        """As Columns has it."""
        if isinstance(value, Constant):
            return pa.repeat(pa.scalar(value.constant), len(self))
        return self.columns[value] if value in self.columns else pa.nulls(len(self), pa.string())

    def values(self, path: str) -> list[Any]:
        """As Columns has it."""
        return self.nested[path] if path in self.nested else [None] * len(self)

    def given(self, path: str) -> pa.Array | list[Any]:
        """What a field is made of: [rows] of a column, or of JSON values; nulls where nothing stands at its path."""
        return self.arrays[path] if path in self.arrays else self.values(path)

    def usual_messages(self, path: str) -> pa.Array | None:
        """As Columns has it."""
        return self.usual.get(path)

    def keep(self, good: Bools) -> None:
        """Take out the rows that are not good: bool [rows]."""
        if good.all():
            return
        mask, places = pa.array(good), np.flatnonzero(good)
        self.columns = {name: column.filter(mask) for name, column in self.columns.items()}
        self.arrays = {name: column.filter(mask) for name, column in self.arrays.items()}
        self.nested = {name: [values[place] for place in places] for name, values in self.nested.items()}
        self.positions = self.positions.filter(mask)
        if self.lines is not None:
            self.lines = [self.lines[int(place)] for place in places]
        self.usual = {name: messages.filter(mask) for name, messages in self.usual.items()}

    def is_null(self, name: str) -> Bools:
        """bool [rows]: whether a column that is read, as text or nested, has no value there."""
        if name in self.nested:
            read = self.usual.get(name)
            if read is not None and not read.null_count:
                return np.zeros(len(self), bool)
            absent = np.array([value is None for value in self.nested[name]], bool)
            return absent if read is None else absent & read.is_null().to_numpy(zero_copy_only=False)
        return self.text(name).is_null().to_numpy(zero_copy_only=False)

    def take_out(self, lost: Mapping[int, Lost], shape: Shape) -> Bools:
        """Put rows into quarantine as they were; bool [rows before], which stay."""
        good = np.ones(len(self), bool)
        for index, why in lost.items():
            good[index] = False
            self.quarantine(index, why, self.raw(index), shape)
        self.keep(good)
        return good

    def quarantine(self, index: int, lost: Lost, raw: bytes, shape: Shape) -> None:
        """Note a row as bad; `keep` takes it out."""
        named = lost.example_id or self.name_of(index, shape)
        self.bad.append(Bad(self.positions[index].as_py(), lost.reason, lost.detail, raw[:RAW_BYTES], named))

    def name_of(self, index: int, shape: Shape) -> str | None:
        """The example id of a row; None where there is none or it is not UTF-8."""
        name = self.text(shape.example_id)[index]
        return None if not_utf8(name) is not None else name.as_py()

    def raw(self, index: int) -> bytes:
        """A row as it was, or where only its columns are known, these as JSON."""
        if self.lines is not None:
            return self.lines[index]
        row = {name: _readable(column[index]) for name, column in (self.arrays | self.columns).items()}
        nested = {name: values[index] for name, values in self.nested.items()}
        try:
            return orjson.dumps(row | nested)
        except orjson.JSONEncodeError:  # nested too deep
            return orjson.dumps(row)


@dataclass(frozen=True)
class Assembled:
    """What rows that were made of several say beside their columns: [rows], as they were read."""

    files: pa.Array
    positions: pa.Array
    conversations: pa.Array
    """string: equal in rows that were cut from one conversation; null in the others."""

    def place_of(self, row: int) -> tuple[str, int]:
        """The file and the position that a row is named after."""
        return self.files[row].as_py(), self.positions[row].as_py()


@dataclass
class Tally:
    """What is counted of a split beside its rows; fields as in RawBatch."""

    left_out: Counter[str] = field(default_factory=Counter)
    unparsed: Counter[str] = field(default_factory=Counter)

    def add(self, batch: RawBatch) -> None:
        self.left_out.update(batch.left_out)
        self.unparsed.update(batch.unparsed)


def too_long(size: int, limits: Limits) -> Lost:
    """A row that is not read for its length."""
    return Lost("too_long", f"{size:,} bytes, above max_row_bytes={limits.row_bytes}")


def text_of(value: Any, name: str, is_said: bool) -> str | Lost | None:
    """A JSON value of a text column as text.

    Args:
        value: as a JSON parser gives it.
        name: of the column.
        is_said: whether the column holds what is said, where a number is a mistake.
    """
    if value is None or isinstance(value, str):
        return value
    if not is_said and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return Lost("wrong_type", f"column '{name}' is a {type(value).__name__}, text is needed")


def quarantine_long(batch: RawBatch, sizes: I64, shape: Shape, limits: Limits) -> None:
    """Take out the rows that are too long.

    Args:
        batch: of rows.
        sizes: [rows], bytes of what is read of a row.
        shape: whose rows they are.
        limits: what is too long.
    """
    good = sizes <= limits.row_bytes
    for index in map(int, np.flatnonzero(~good)):
        columns = (batch.arrays | batch.columns).values()
        texts = [column[index] for column in columns if pa.types.is_string(column.type)]
        longest = max((text for text in texts if text.is_valid), key=_num_bytes, default=None)
        raw = b"" if longest is None else bytes(memoryview(longest.as_buffer())[:RAW_BYTES])
        lost = too_long(int(sizes[index]), limits)
        batch.quarantine(index, lost, raw, shape)
    batch.keep(good)


def _num_bytes(text: pa.Scalar) -> int:
    return len(text.as_buffer())


def quarantine_bad_text(batch: RawBatch, shape: Shape) -> None:
    """Take out the rows in which some text is not UTF-8 (Parquet readers do not check)."""
    good = np.ones(len(batch.positions), bool)
    for name, column in (batch.arrays | batch.columns).items():
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            for index in map(int, np.flatnonzero(good)):
                text = not_utf8(column[index])
                if text is not None:
                    good[index] = False
                    batch.quarantine(index, Lost("invalid_utf8", f"column '{name}'"), text, shape)
    batch.keep(good)


def not_utf8(value: pa.Scalar) -> bytes | None:
    """The text in a value, nested or not, that is not UTF-8; None when all is."""
    try:
        value.as_py()
    except UnicodeDecodeError as error:
        return error.object
    return None


def quarantine_nulls(batch: RawBatch, shape: Shape) -> None:
    """Take out the rows that lack a required value."""
    lost: dict[int, Lost] = {}
    for name in shape.required:
        absent = map(int, np.flatnonzero(batch.is_null(name)))
        lost = dict.fromkeys(absent, Lost(f"missing_{name}", "null or absent")) | lost
    batch.take_out(lost, shape)


def _readable(value: pa.Scalar) -> Any:
    """A value of a column as orjson writes it, what is not UTF-8 in it replaced."""
    bad = not_utf8(value)
    found = value.as_py() if bad is None else bad
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else found
