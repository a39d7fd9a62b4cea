"""Reading a split of raw rows: PROMPT batches on one side, what could not be read on the other.

A line that is not a JSON object, is too long or nested too deep, a row whose required column is null or of another
kind, and text that is not UTF-8 are `Bad` rows with their position and reason; nothing is repaired or skipped silently.
Whatever a library says of a file or a row group is a SourceError with the file and the rows. JSONL is split on LF alone
(U+2028 and its like are text), with a byte-order mark and blank lines allowed. Parquet goes column by column without a
Python object a row, except for meta_json (about 1 µs a row); JSONL costs one orjson parse a line.

Of a line that is too long no more than `Limits.row_bytes` is held; etl/sources/row_groups.py bounds what Parquet takes.
The file is long because lines and columns end in the same batches and the same bad rows, by the same functions.
"""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrow_types import as_text, hex_text, kept, refused
from etl.errors import DataError, SourceError, decoding, said
from etl.hashing import hash128
from etl.schema import MESSAGE, PROMPT, TEXT_ROLE
from etl.sources.compressed import unpacked
from etl.sources.files import InputSplit
from etl.sources.formats import compression_of
from etl.sources.row_groups import Limits, decoded, tables
from etl.sources.spec import Shape, Source, TextShape
from etl.storage.location import Location
from etl.storage.remote import Storage

ROW_GROUP_BYTES = 16 << 20
"""Raw bytes after which a batch, and so a row group, is closed."""
RAW_BYTES = 16 << 20
"""How much of a bad row a quarantine keeps; of a line that is too long, no more than _LINE_BYTES are there."""
_LINE_BYTES = 1 << 20
"""How much of a line is asked for at once."""
_BEYOND_64_BITS = 2.0**63
_SAFE_DIGITS = 19
"""Whole numbers of fewer digits, a sign among them, fit into 64 bits."""
_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")


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


@dataclass
class RawBatch:
    """Consecutive rows of a split: the columns that the shape reads, all of equal length, and the bad rows."""

    columns: dict[str, pa.Array]
    positions: pa.Array
    bad: list[Bad] = field(default_factory=list)


def read_split(
    source: Source, shape: Shape, split: InputSplit, storage: Storage, limits: Limits
) -> Iterator[tuple[pa.RecordBatch, list[Bad]]]:
    """PROMPT rows and bad rows of a split, one pair for each row group to be written.

    Args:
        source: that the split is of.
        shape: its description.
        split: what is read.
        storage: the recipe's options by scheme.
        limits: of a row, above which it is bad, and of a row group, above which the file is not read.

    Raises:
        SourceError: the file cannot be opened, is cut short, lacks a required column, or has too large a row group.
    """
    location = source.locate(split.file.url, storage)
    raw = _read_parquet if split.file.format == "parquet" else _read_jsonl
    try:
        for batch in raw(location, shape, split, limits):
            _quarantine_bad_text(batch, shape)
            _quarantine_nulls(batch, shape)
            yield to_prompt(batch, shape, split), sorted(batch.bad, key=lambda bad: bad.position)
    except DataError as error:
        raise SourceError(f"source '{split.source}': {error}") from error


def _read_parquet(location: Location, shape: Shape, split: InputSplit, limits: Limits) -> Iterator[RawBatch]:
    with location.open_parquet(split.file.pin) as file:
        with decoding(str(location)):
            schema = file.schema_arrow
            names = schema.names
            counts = [file.metadata.row_group(group).num_rows for group in range(split.end)]
        folders = {name: value for name, value in _of_folders(split, shape).items() if name not in names}
        missing = [name for name in shape.required if name not in names and name not in folders]
        if missing:
            raise SourceError(f"{location} lacks the columns {missing}; it has {names}")
        wanted = [name for name in shape.columns if name in names]
        twice = [name for name in wanted if names.count(name) > 1]
        if twice:
            raise SourceError(f"{location} has more than one column of each of the names {twice}; rename all but one")
        for name in wanted:
            _check_type(f"{location}: column '{name}'", schema.field(name).type, _use(name, shape))
        row = sum(counts[: split.start])
        for group in range(split.start, split.end):
            place = f"{location}: row group {group} (rows {row} to {row + counts[group] - 1})"
            for piece in tables(place, decoded(place, file, group, wanted, limits), ROW_GROUP_BYTES, limits):
                columns = {name: _as_used(piece[name].combine_chunks(), _use(name, shape)) for name in wanted}
                for name, value in folders.items():
                    columns[name] = pa.repeat(pa.scalar(value, pa.string()), len(piece))
                start = split.file.first_row + row
                batch = RawBatch(columns, pa.array(range(start, start + len(piece)), pa.int64()))
                _quarantine_long(batch, shape, limits)
                yield batch
                row += len(piece)


def _of_folders(split: InputSplit, shape: Shape) -> dict[str, str | None]:
    """The columns that the shape reads and that the folders above the file stand for."""
    return {name: value for name, value in split.file.partitions.items() if name in shape.columns}


def _use(name: str, shape: Shape) -> Literal["prose", "name", "kept"]:
    if name in shape.prose:
        return "prose"
    return "name" if name in shape.text_columns else "kept"


def _check_type(column: str, kind: pa.DataType, use: Literal["prose", "name", "kept"]) -> None:
    if (part := refused(kind, use)) is None:
        return
    if use == "kept":
        raise SourceError(f"{column} is {kind}, and {part} has no form as JSON; take it out of the source's `meta`")
    raise SourceError(f"{column} is {kind}, text is needed")


def _as_used(column: pa.Array, use: Literal["prose", "name", "kept"]) -> pa.Array:
    """Text as string, the rest as what orjson writes; whether bytes are UTF-8 is checked later, as for strings."""
    return kept(column) if use == "kept" else as_text(column, use)


def _quarantine_long(batch: RawBatch, shape: Shape, limits: Limits) -> None:
    """Take out the rows whose text columns are too long together."""
    texts = {name: batch.columns[name] for name in shape.text_columns if name in batch.columns}
    sizes = np.zeros(len(batch.positions), np.int64)
    for column in texts.values():
        sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    good = sizes <= limits.row_bytes
    for index in map(int, np.flatnonzero(~good)):
        longest = max((column[index] for column in texts.values() if column[index].is_valid), key=_num_bytes)
        raw = bytes(memoryview(longest.as_buffer())[:RAW_BYTES])
        lost = _too_long(int(sizes[index]), limits)
        batch.bad.append(
            Bad(batch.positions[index].as_py(), lost.reason, lost.detail, raw, _name_of(batch, shape, index))
        )
    _keep(batch, good)


def _name_of(batch: RawBatch, shape: Shape, index: int) -> str | None:
    """The example id of a row; None where there is none or it is not UTF-8."""
    name = batch.columns[shape.example_id][index]
    return None if _not_utf8(name) is not None else name.as_py()


def _num_bytes(text: pa.Scalar) -> int:
    return len(text.as_buffer())


@dataclass(frozen=True)
class _Lost:
    """Why a line is a bad row."""

    reason: str
    detail: str
    example_id: str | None = None


def _too_long(size: int, limits: Limits) -> _Lost:
    """A row that is not read for its length."""
    return _Lost("too_long", f"{size:,} bytes, above max_row_bytes={limits.row_bytes}")


@dataclass(frozen=True)
class _Wanted:
    """The columns that are read of a line's object."""

    texts: tuple[str, ...]
    prose: tuple[str, ...]
    """Those of the texts that may not be numbers."""
    kept: tuple[str, ...]
    required: tuple[str, ...]
    example_id: str
    """The first of the texts."""

    @classmethod
    def of(cls, shape: Shape) -> "_Wanted":
        texts = shape.text_columns
        kept = dict.fromkeys(name for name in shape.meta if name not in texts)
        return cls(texts, shape.prose, tuple(kept), shape.required, shape.example_id)


def _read_jsonl(location: Location, shape: Shape, split: InputSplit, limits: Limits) -> Iterator[RawBatch]:
    wanted = _Wanted.of(shape)
    rows: list[dict[str, Any]] = []
    positions: list[int] = []
    bad: list[Bad] = []
    held = 0
    folders = {
        name: orjson.dumps(value) if name in wanted.kept and value is not None else value
        for name, value in _of_folders(split, shape).items()
    }
    lines = _lines(location, split, limits)
    for position, line, size in lines if split.start else _lines_of_objects(location, lines):
        text = _without_bom(position, line)
        row = _parse(text, wanted, folders) if size <= limits.row_bytes else _too_long(size, limits)
        if isinstance(row, _Lost):
            bad.append(Bad(position, row.reason, row.detail, line[:RAW_BYTES], row.example_id))
        else:
            rows.append(row)
            positions.append(position)
        held += len(line)
        if held >= ROW_GROUP_BYTES:
            batch = _raw_batch(wanted, rows, positions, bad)
            rows, positions, bad, held = [], [], [], 0
            yield batch
    if rows or bad:
        yield _raw_batch(wanted, rows, positions, bad)


_Line = tuple[int, bytes, int]
"""Byte offset, the line without its LF, and its length without a byte-order mark; of a line that is too long only the
start is held."""


def _lines(location: Location, split: InputSplit, limits: Limits) -> Iterator[_Line]:
    """The lines that begin inside the split; blank ones are no rows."""
    try:
        with location.open(split.file.pin) as stored:
            stream = unpacked(compression_of(location.name), location.url, stored)
            position = _first_line(stream, split)
            # The last split of a file goes to its end: a compressed file is longer than its stored size.
            end = None if split.end >= split.file.bytes else split.end
            while end is None or position < end:
                line, size, num_read = _next_line(stream, limits.row_bytes)
                if not num_read:
                    return
                start, position = position, position + num_read
                text = _without_bom(start, line)
                size -= len(line) - len(text)
                if size > limits.row_bytes or (text and not text.isspace()):
                    yield start, line, size
    except OSError as error:
        raise SourceError(f"{location} cannot be read to its end ({said(error)}); replace or remove it") from error


def _without_bom(position: int, line: bytes) -> bytes:
    """The line at a byte offset; the first of a file may begin with a byte-order mark."""
    return line.removeprefix(_BOM) if position == 0 else line


def _next_line(stream: IO[bytes], max_bytes: int) -> tuple[bytes, int, int]:
    """The next line without its LF, its length, and the bytes read: no more when the file has ended.

    Of a line that is longer than `max_bytes`, a byte-order mark aside, only the start is held and the rest read away.
    """
    pieces: list[bytes] = []
    num_read, is_ended = 0, False
    while not is_ended and (piece := stream.readline(_LINE_BYTES)):
        num_read += len(piece)
        is_ended = piece.endswith(b"\n")
        if num_read <= max_bytes + len(_BOM) + 1 or not pieces:
            pieces.append(piece)
        else:
            del pieces[1:]
    return b"".join(pieces).removesuffix(b"\n"), num_read - is_ended, num_read


def _first_line(stream: IO[bytes], split: InputSplit) -> int:
    """Move to the first line that begins inside the split, and say where that is; its end or later where none does."""
    if split.start == 0:
        return 0
    position = split.start - 1
    stream.seek(position)
    return position + _skip_line(stream, split.end - position)


def _skip_line(stream: IO[bytes], wanted: float = math.inf) -> int:
    """Read on to the end of a line, but no further than that many bytes take; the number of bytes read."""
    count = 0
    while count < wanted and (piece := stream.readline(_LINE_BYTES)):
        count += len(piece)
        if piece.endswith(b"\n"):
            break
    return count


def _lines_of_objects(location: Location, lines: Iterator[_Line]) -> Iterator[_Line]:
    """All lines of a file, unless the first one shows that they cannot be objects.

    Raises:
        SourceError: the file is a JSON array of objects, or UTF-16.
    """
    for position, line, size in lines:
        if line.startswith(_UTF16_BOMS) and b"\0" in line:
            raise SourceError(f"{location} is UTF-16; convert it to UTF-8, for example with iconv")
        begin = _without_bom(position, line).lstrip()[:_LINE_BYTES]
        if begin.startswith(b"[") and begin[1:].lstrip()[:1] in (b"", b"{"):
            raise SourceError(f"{location} is a JSON array; write one object a line, for example with jq -c '.[]'")
        return itertools.chain([(position, line, size)], lines)
    return lines


def _parse(line: bytes, wanted: _Wanted, folders: dict[str, Any]) -> dict[str, Any] | _Lost:
    """The line's object with the columns of its folders, or what is wrong with it.

    Text columns are text, kept ones JSON, and every required one is there.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _Lost("invalid_json", str(error))
    if not isinstance(row, dict):
        return _Lost("not_an_object", f"a {type(row).__name__}")
    try:
        lost = _make_columns(row, line, wanted)
    except RecursionError as error:
        # Of Python's own parser, which reads lines with whole numbers of more than 64 bits.
        lost = _Lost("too_deep", str(error))
    row = {**folders, **row}
    missing = next((name for name in wanted.required if row.get(name) is None), None)
    if lost is None and missing is not None:
        lost = _Lost(f"missing_{missing}", "null or absent")
    if lost is None:
        return row
    name = row.get(wanted.example_id)
    return replace(lost, example_id=name if isinstance(name, str) else None)


def _make_columns(row: dict[str, Any], line: bytes, wanted: _Wanted) -> _Lost | None:
    """Make the columns of an object what they are kept as, in place; what is wrong with the first that cannot be."""
    for name in wanted.texts:
        value = row.get(name)
        if name not in wanted.prose and (digits := _digits(value, name, line)) is not None:
            row[name] = digits
        elif value is not None and not isinstance(value, str):
            return _Lost("wrong_type", f"column '{name}' is a {type(value).__name__}, text is needed")
    for name in wanted.kept:
        if (value := row.get(name)) is not None:
            try:
                row[name] = _fragment(value, name, line)
            except orjson.JSONEncodeError as error:
                return _Lost("too_deep", f"column '{name}': {error}")
    return None


def _digits(value: Any, name: str, line: bytes) -> str | None:
    """A whole number as text, also one beyond 64 bits, which orjson reads as a float; None for all else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and abs(value) >= _BEYOND_64_BITS:
        exact = json.loads(line, parse_int=str)[name]
        return exact if isinstance(exact, str) else None
    return None


def _fragment(value: Any, name: str, line: bytes) -> bytes:
    """The JSON of a kept value; whole numbers beyond 64 bits keep their digits."""
    text = orjson.dumps(value)
    # orjson writes a float so from 1e16 on; in a line without one no number has been rounded.
    if b"e+" in text and not isinstance(value, str):
        return orjson.dumps(json.loads(line, parse_int=_whole)[name])
    return text


def _whole(digits: str) -> Any:
    return int(digits) if len(digits) < _SAFE_DIGITS else orjson.Fragment(digits)


def _raw_batch(wanted: _Wanted, rows: list[dict[str, Any]], positions: list[int], bad: list[Bad]) -> RawBatch:
    kinds = dict.fromkeys(wanted.texts, pa.string()) | dict.fromkeys(wanted.kept, pa.binary())
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()}
    return RawBatch(columns, pa.array(positions, pa.int64()), bad)


def _quarantine_bad_text(batch: RawBatch, shape: Shape) -> None:
    """Take out the rows in which some text is not UTF-8 (Parquet readers do not check)."""
    good = np.ones(len(batch.positions), bool)
    for name, column in batch.columns.items():
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            for index in map(int, np.flatnonzero(good)):
                text = _not_utf8(column[index])
                if text is not None:
                    good[index] = False
                    position = batch.positions[index].as_py()
                    named = _name_of(batch, shape, index)
                    batch.bad.append(Bad(position, "invalid_utf8", f"column '{name}'", text[:RAW_BYTES], named))
    _keep(batch, good)


def _not_utf8(value: pa.Scalar) -> bytes | None:
    """The text in a value, nested or not, that is not UTF-8; None when all is."""
    try:
        value.as_py()
    except UnicodeDecodeError as error:
        return error.object
    return None


def _quarantine_nulls(batch: RawBatch, shape: Shape) -> None:
    """Take out the rows that lack a required value (of Parquet: a line is looked at as it is parsed)."""
    good = np.ones(len(batch.positions), bool)
    for name in shape.required:
        for index in np.flatnonzero(np.asarray(batch.columns[name].is_null()) & good):
            good[index] = False
            row = {key: _plain(column[int(index)].as_py()) for key, column in batch.columns.items()}
            position, raw = batch.positions[int(index)].as_py(), orjson.dumps(row)[:RAW_BYTES]
            named = _name_of(batch, shape, int(index))
            batch.bad.append(Bad(position, f"missing_{name}", "null or absent", raw, named))
    _keep(batch, good)


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _keep(batch: RawBatch, good: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    if not good.all():
        mask = pa.array(good)
        batch.columns = {name: column.filter(mask) for name, column in batch.columns.items()}
        batch.positions = batch.positions.filter(mask)


def to_prompt(batch: RawBatch, shape: Shape, split: InputSplit) -> pa.RecordBatch:
    """Raw columns as PROMPT rows; the id is the hash of source, subset, example id and messages."""
    size = len(batch.positions)

    def column(name: str | None) -> pa.Array:
        return batch.columns[name] if name in batch.columns else pa.nulls(size, pa.string())

    if isinstance(shape, TextShape):
        messages = _documents(column(shape.text))
    else:
        messages = _messages(column(shape.user), column(shape.analysis), column(shape.final))
    dataset = pa.repeat(pa.scalar(split.source), size)
    example = column(shape.example_id)
    ids = hash128([dataset, column(shape.subset), example, messages])
    key = column(shape.split_key)
    columns = {
        "id": ids,
        "source_dataset": dataset,
        "source_subset": column(shape.subset),
        "source_example_id": example,
        "license": column(shape.license),
        "language": column(shape.language),
        "split_key": pc.coalesce(key, hex_text(ids)),
        "messages": messages,
        "skill_bucket": _skill_bucket(column(shape.skill_bucket.column), shape),
        "meta_json": _meta(batch, shape, size),
        "file": pa.repeat(pa.scalar(split.file.called), size),
        "position": batch.positions,
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in PROMPT.names], schema=PROMPT)


def _messages(user: pa.Array, analysis: pa.Array, final: pa.Array) -> pa.Array:
    """One list a row: user, assistant analysis unless empty, assistant final."""
    size = len(user)
    present = np.ones((size, 3), bool)
    present[:, 1] = pc.greater(pc.fill_null(pc.binary_length(analysis), 0), 0).to_numpy(zero_copy_only=False)
    order = (np.arange(size)[:, None] + size * np.arange(3)[None, :])[present]
    kind = np.broadcast_to(np.arange(3), (size, 3))[present]
    roles = pa.array(["user", "assistant", "assistant"]).take(pa.array(kind))
    channels = pa.array([None, "analysis", "final"], pa.string()).take(pa.array(kind))
    contents = pa.concat_arrays([user, analysis, final]).take(pa.array(order))
    fields = [roles, channels, pa.nulls(len(kind), pa.string()), contents]
    offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int32)
    values = pa.StructArray.from_arrays(fields, fields=list(MESSAGE))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(MESSAGE))


def _documents(text: pa.Array) -> pa.Array:
    """One message a row, of the role `text`."""
    size = len(text)
    fields = [pa.repeat(TEXT_ROLE, size), *(pa.nulls(size, pa.string()) for _ in range(2)), text.cast(pa.string())]
    values = pa.StructArray.from_arrays(fields, fields=list(MESSAGE))
    return pa.ListArray.from_arrays(pa.array(range(size + 1), pa.int32()), values, type=pa.list_(MESSAGE))


def _skill_bucket(values: pa.Array, shape: Shape) -> pa.Array:
    rule = shape.skill_bucket
    if not rule.by_value:
        return pa.repeat(pa.scalar(rule.default), len(values))
    known = pa.array(list(rule.by_value), pa.string())
    buckets = pa.array(list(rule.by_value.values()), pa.string())
    return pc.fill_null(buckets.take(pc.index_in(values, value_set=known)), rule.default)


def _meta(batch: RawBatch, shape: Shape, size: int) -> pa.Array:
    """The kept columns of each row as one JSON object with sorted keys."""
    names = sorted(name for name in shape.meta if name in batch.columns)
    values = [batch.columns[name].to_pylist() for name in names]
    return pa.array([_json(names, row) for row in zip(*values, strict=True)] if names else ["{}"] * size, pa.string())


def _json(names: list[str], row: tuple[Any, ...]) -> str:
    present = {
        name: orjson.Fragment(value) if isinstance(value, bytes) else value
        for name, value in zip(names, row, strict=True)
        if value is not None
    }
    return orjson.dumps(present).decode("utf-8")
