"""Columns of Arrow tables as a shape reads them: what Parquet, Arrow and CSV have in common.

A column is found by its name or by a path into structs; lists and text that is JSON are opened value by value. No
Python object is made a row but for nested columns.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64
from etl.arrow_types import as_text, kept, refused
from etl.errors import SourceError
from etl.sources.files import InputPiece
from etl.sources.paths import descend, parts_of, root_of
from etl.sources.raw import Lost, RawBatch, not_utf8, quarantine_long, text_of
from etl.sources.row_groups import Limits
from etl.sources.spec import Shape
from etl.storage.location import Location

_TEXT_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
Use = Literal["prose", "name", "kept", "nested", "field"]


@dataclass(frozen=True)
class ArrowColumns:
    """Which columns of a file a shape reads, and where they are."""

    shape: Shape
    wanted: dict[str, str]
    """Path that the shape names -> column that it starts in."""
    folders: dict[str, str | None]
    """Columns that the folders above the file stand for, and their value."""

    @classmethod
    def of(cls, location: Location, schema: pa.Schema, shape: Shape, piece: InputPiece) -> "ArrowColumns":
        """The columns of one file.

        Raises:
            SourceError: it lacks a required column or has one twice, or a column has a type that cannot be read.
        """
        names = set(schema.names)
        folders = {name: value for name, value in piece.of_folders(shape.columns).items() if name not in names}
        missing = [name for name in shape.required if root_of(name, names) not in names and name not in folders]
        if missing:
            raise SourceError(f"{location} lacks the columns {missing}; it has {schema.names}")
        wanted = {path: root_of(path, names) for path in shape.columns if root_of(path, names) in names}
        found = cls(shape, wanted, folders)
        twice = [name for name in found.roots if schema.names.count(name) > 1]
        if twice:
            raise SourceError(f"{location} has several columns named {twice}; rename all but one")
        for path, root in wanted.items():
            if path == root:
                for use in _uses(path, shape):
                    _check_type(f"{location}: column '{path}'", schema.field(path).type, use)
        return found

    @property
    def roots(self) -> list[str]:
        """The columns of the file that are read, each once."""
        return list(dict.fromkeys(self.wanted.values()))

    def batch(self, table: pa.Table, positions: pa.Array, limits: Limits) -> RawBatch:
        """The columns of some rows, those of a wrong kind or too long in quarantine.

        Args:
            table: with the columns `roots`.
            positions: int64 [rows].
            limits: of a row.
        """
        batch = RawBatch({}, positions)
        whole = {root: table[root].combine_chunks() for root in self.roots}
        lost: dict[int, Lost] = {}
        for path, root in self.wanted.items():
            lost = _add_column(batch, path, whole[root], root, self.shape) | lost
        for name, value in self.folders.items():
            batch.columns[name] = pa.repeat(pa.scalar(value, pa.string()), len(table))
            batch.nested[name] = [value] * len(table)
        sizes = self._row_bytes(batch, whole)
        good = batch.take_out(lost, self.shape)
        quarantine_long(batch, sizes[good], self.shape, limits)
        return batch

    def _row_bytes(self, batch: RawBatch, whole: dict[str, pa.Array]) -> I64:
        """[rows]: bytes of the texts of a row, and of all that is nested in it."""
        sizes = np.zeros(len(batch), np.int64)
        opened: set[str] = set()
        for path, root in self.wanted.items():
            uses = _uses(path, self.shape)
            if "nested" in uses or path in batch.nested:
                opened.add(root)
            elif "field" in uses:
                sizes += _num_bytes(batch.arrays[path])
            elif uses and uses[0] != "kept":
                sizes += _num_bytes(batch.columns[path])
        return sum((_num_bytes(whole[root]) for root in opened), sizes)


def _uses(path: str, shape: Shape) -> list[Use]:
    found: list[Use] = []
    if path in shape.text_columns:
        found.append("prose" if path in shape.said else "name")
    elif path in shape.meta:
        found.append("kept")
    found += ["nested"] if path in shape.nested else []
    return [*found, "field"] if path in shape.field_columns.values() else found


def _check_type(column: str, kind: pa.DataType, use: Use) -> None:
    if (part := refused(kind, "kept" if use == "nested" or use == "field" else use)) is None:
        return
    if use in ("kept", "field"):
        key = "meta" if use == "kept" else "fields"
        raise SourceError(f"{column} is {kind}, and {part} has no form as JSON; remove it from the source's `{key}`")
    raise SourceError(f"{column} is {kind}, {'JSON' if use == 'nested' else 'text'} is needed")


def _add_column(batch: RawBatch, path: str, column: pa.Array, root: str, shape: Shape) -> dict[int, Lost]:
    """Put what stands at a path into a batch, once for each of its uses; the rows where it is of a wrong kind."""
    parts = parts_of(path)[1:] if path != root else ()
    while parts and pa.types.is_struct(column.type) and column.type.get_field_index(parts[0]) >= 0:
        column, parts = pc.struct_field(column, parts[0]), parts[1:]
    uses = _uses(path, shape)
    values: list[Any] = []
    lost: dict[int, Lost] = {}
    if parts or "nested" in uses:
        as_json = kept(column)
        values, lost = _values(as_json, path)
        if "nested" in uses and _has_null_fields(as_json):
            values = [_without_nulls(value) for value in values]
        values = [descend(value, parts) for value in values]
    for use in uses:
        if use == "nested" or (use == "field" and parts):
            batch.nested[path] = values
        elif use == "field":
            batch.arrays[path] = kept(column)
        elif not parts:
            batch.columns[path] = kept(column) if use == "kept" else as_text(column, use)
        elif use == "kept":
            written = [_written(value, path) for value in values]
            batch.columns[path] = pa.array([_unless_lost(one) for one in written], pa.binary())
            lost |= {index: one for index, one in enumerate(written) if isinstance(one, Lost)}
        else:
            texts = [text_of(value, path, is_said=use == "prose") for value in values]
            batch.columns[path] = pa.array([_unless_lost(text) for text in texts], pa.string())
            lost |= {index: text for index, text in enumerate(texts) if isinstance(text, Lost)}
    return lost


def _values(column: pa.Array, path: str) -> tuple[list[Any], dict[int, Lost]]:
    """The values of a column, None where one has text that is not UTF-8, and these rows."""
    try:
        return column.to_pylist(), {}
    except UnicodeDecodeError:
        values = [None if not_utf8(value) is not None else value.as_py() for value in column]
        bad = [index for index, value in enumerate(column) if not_utf8(value) is not None]
        return values, dict.fromkeys(bad, Lost("invalid_utf8", f"column '{path}'"))


def _has_null_fields(column: pa.Array) -> bool:
    """Whether a struct in a column has a field without a value."""
    kind = column.type
    if pa.types.is_struct(kind):
        fields = [column.field(number) for number in range(kind.num_fields)]
        return any(field.null_count or _has_null_fields(field) for field in fields)
    return _is_list(kind) and _has_null_fields(column.flatten())


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _without_nulls(value: Any) -> Any:
    """A value without the fields that are null.

    All structs of a column have the same fields, so a null says no more than that this one has no such key: the
    arguments of a call would else have those of every tool.
    """
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _written(value: Any, path: str) -> bytes | Lost | None:
    try:
        return None if value is None else orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        return Lost("too_deep", f"column '{path}': {error}")


def _unless_lost(value: Any) -> Any:
    return None if isinstance(value, Lost) else value


def _num_bytes(column: pa.Array) -> I64:
    """[rows]: bytes of the texts in a column, those inside lists and structs too."""
    kind = column.type
    if pa.types.is_struct(kind):
        fields = (_num_bytes(pc.struct_field(column, [number])) for number in range(kind.num_fields))
        return sum(fields, np.zeros(len(column), np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        ends = np.concatenate([[0], np.cumsum(_num_bytes(column.flatten()))])
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        places = np.concatenate([[0], np.cumsum(lengths)])
        return ends[places[1:]] - ends[places[:-1]]
    if any(is_kind(kind) for is_kind in _TEXT_KINDS):
        return pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    return np.zeros(len(column), np.int64)
