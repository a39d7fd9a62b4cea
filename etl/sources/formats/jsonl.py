"""JSON: lines that begin inside bytes [start, end) of a file; a compressed file is one piece.

An array, and objects printed over several lines, have their values in the place of lines; all belong to the piece at
the beginning of the file (etl/sources/formats/json_values.py).

A line that is not a JSON object, is too long or nested too deep is a bad row. Lines end at LF alone (U+2028 and its
like are text), with a byte-order mark and blank lines allowed. Of a line that is too long no more than
`Limits.row_bytes` is held. Lines of the usual kind are read by kernels (etl/sources/formats/json_rows.py), each of the
others by orjson; both give the same.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I64
from etl.sources import raw
from etl.sources.compressed import unpacked
from etl.sources.files import InputPiece
from etl.sources.formats.endings import compression_of
from etl.sources.formats.json_rows import MOST_COLUMNS, Lines, Scanned, Scanner, WantedColumns, is_utf8
from etl.sources.formats.json_values import has_lines, values
from etl.sources.paths import descend, parts_of
from etl.sources.raw import Bad, Lost, RawBatch, text_of, too_long
from etl.sources.row_groups import Limits
from etl.sources.spec import Shape
from etl.sources.utf8 import check_utf8
from etl.storage.location import Location

_BLOCK_BYTES = 1 << 20
"""How much is read at once: few parsed lines are held, and they lie in the processor's cache."""
_LINE_BYTES = 1 << 20
"""How much of a line beyond that is asked for at once."""
_BEYOND_64_BITS = 2.0**63
_SAFE_DIGITS = 19
"""Whole numbers of fewer digits, a sign among them, fit into 64 bits."""
_BOM = b"\xef\xbb\xbf"
_NO_NUMBERS = re.compile(r"-?(?:NaN|Infinity)")


@dataclass(frozen=True)
class _Wanted:
    """The columns that are read of a line's object."""

    texts: tuple[str, ...]
    said: frozenset[str]
    """Those of the texts that may not be numbers."""
    kept: tuple[str, ...]
    nested: tuple[str, ...]
    deep: tuple[str, ...]
    """Paths among all of these."""
    required: tuple[str, ...]
    example_id: str | None
    fields: tuple[str, ...]
    """Those of the nested ones that fields alone read."""
    usual: tuple[str, ...]
    """The nested column that may be read without a parser, if there is one."""

    @property
    def all(self) -> tuple[str, ...]:
        """Every column that is read, each once."""
        return tuple(dict.fromkeys((*self.texts, *self.kept, *self.nested)))

    @classmethod
    def of(cls, shape: Shape) -> "_Wanted":
        texts = shape.text_columns
        kept = dict.fromkeys(name for name in shape.meta if name not in texts)
        deep = tuple(name for name in shape.columns if "." in name)
        said = frozenset(shape.said)
        nested = tuple(dict.fromkeys((*shape.nested, *shape.field_columns.values())))
        fields = tuple(name for name in nested if name not in shape.nested)
        usual = () if shape.usual is None else (shape.usual.column,)
        return cls(texts, said, tuple(kept), nested, deep, shape.required, shape.example_id, fields, usual)

    def scanner(self, shape: Shape, limits: Limits) -> Scanner | None:
        """Reads lines of these columns; None where some of them need a parser in every line."""
        also = {*self.texts, *self.kept, *self.fields}
        if self.deep or len(self.all) > MOST_COLUMNS or also.intersection(self.usual):
            return None
        return Scanner(
            WantedColumns(
                said=tuple(name for name in self.texts if name in self.said),
                named=tuple(name for name in self.texts if name not in self.said),
                kept=tuple(dict.fromkeys((*self.kept, *(name for name in self.fields if name not in self.texts)))),
                refused=tuple(name for name in shape.nested if name not in self.usual),
                required=self.required,
                messages=shape.usual,
            ),
            limits.row_bytes,
        )


_Line = tuple[int, bytes, int]
"""Byte offset, the line without its LF, and its length without a byte-order mark; of a line that is too long only the
start is held."""


@dataclass(frozen=True)
class _Block:
    """Whole lines as they stand in a file, none of them too long."""

    position: int
    """Byte offset of the first."""
    data: bytes


def read_jsonl(location: Location, shape: Shape, piece: InputPiece, limits: Limits) -> Iterator[RawBatch]:
    """The batches of a piece.

    Args:
        location: of the file.
        shape: which columns are read.
        piece: the bytes.
        limits: of a row.

    Raises:
        SourceError: the file is UTF-16 or UTF-32, or ends inside an array or an object.
        OSError: it cannot be read to its end.
    """
    wanted = _Wanted.of(shape)
    folders = piece.of_folders(shape.columns)
    scanner = None if folders else wanted.scanner(shape, limits)
    held = 0
    for block in _blocks(location, piece, limits):
        if isinstance(block, _Block) and scanner is not None and is_utf8(block.data):
            batches = _scanned(block, scanner, wanted, held, limits)
        else:
            lines = block if isinstance(block, list) else _placed(block, limits)
            batches = _parsed(lines, wanted, folders, held, limits)
        for batch, taken in batches:
            held = taken
            yield batch


def read_lines(lines: list[bytes], shape: Shape, limits: Limits) -> RawBatch:
    """Lines that are no file's, each positioned by its number."""
    return _batch([(number, line, len(line)) for number, line in enumerate(lines)], _Wanted.of(shape), {}, limits)


def _parsed(
    lines: list[_Line], wanted: _Wanted, folders: dict[str, Any], held: int, limits: Limits
) -> Iterator[tuple[RawBatch, int]]:
    """The batches of some lines, and how many bytes their row group has then."""
    while lines:
        count, held = _fill(lines, held)
        batch = _batch(lines[:count], wanted, folders, limits)
        lines = lines[count:]
        if held >= raw.ROW_GROUP_BYTES:
            batch.ends_row_group, held = True, 0
        yield batch, held


def _scanned(
    block: _Block, scanner: Scanner, wanted: _Wanted, held: int, limits: Limits
) -> Iterator[tuple[RawBatch, int]]:
    """The batches of a block, and how many bytes their row group has then."""
    found = scanner.scan(block.data)
    ends = np.cumsum(found.ends - found.starts)
    start = 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = min(len(ends), int(np.searchsorted(ends, raw.ROW_GROUP_BYTES - held + before)) + 1)
        batch = _of_scanned(found, np.arange(start, stop), block.position, wanted, limits)
        held += int(ends[stop - 1] - before)
        start = stop
        if held >= raw.ROW_GROUP_BYTES:
            batch.ends_row_group, held = True, 0
        yield batch, held


def _of_scanned(found: Scanned, rows: I64, position: int, wanted: _Wanted, limits: Limits) -> RawBatch:
    """Some consecutive rows of a block, those that were handed over parsed."""
    known = rows[found.known[rows]]
    columns = {name: found.text(name, known) for name in wanted.texts}
    for name in wanted.kept:
        written = found.json(name, known)
        if written is None:
            known = known[:0]
            break
        columns[name] = written
    handed_over = np.setdiff1d(rows, known, assume_unique=True)
    places = zip(found.starts[handed_over].tolist(), found.ends[handed_over].tolist(), strict=True)
    lines = [
        line
        for start, end in places
        for line in _placed_line(position + start, found.block[start:end], end - start, limits)
    ]
    if not len(known):
        return _batch(lines, wanted, {}, limits)
    batch = RawBatch(
        columns,
        pa.array(found.starts[known] + position),
        {path: found.values(path, known) if path in wanted.fields else [None] * len(known) for path in wanted.nested},
        Lines(found.block, found.starts[known], found.ends[known]),
        usual={path: found.messages(known) for path in wanted.usual},
    )
    return _joined(batch, _batch(lines, wanted, {}, limits)) if lines else batch


def _joined(scanned: RawBatch, parsed: RawBatch) -> RawBatch:
    """The rows of both by their positions."""
    positions = pa.concat_arrays([scanned.positions, parsed.positions])
    order = pc.sort_indices(positions)
    places = order.to_pylist()
    assert scanned.lines is not None
    assert parsed.lines is not None
    lines = [*scanned.lines, *parsed.lines]
    nested = {path: values + parsed.nested[path] for path, values in scanned.nested.items()}
    return RawBatch(
        {
            name: pa.concat_arrays([column, parsed.columns[name]]).take(order)
            for name, column in scanned.columns.items()
        },
        positions.take(order),
        {path: [values[place] for place in places] for path, values in nested.items()},
        [lines[place] for place in places],
        bad=parsed.bad,
        usual={
            path: pa.concat_arrays([messages, pa.nulls(len(parsed), messages.type)]).take(order)
            for path, messages in scanned.usual.items()
        },
    )


def _fill(lines: list[_Line], held: int) -> tuple[int, int]:
    """How many lines go into a row group that has some bytes, and how many bytes it has then."""
    for count, (_, line, _) in enumerate(lines, 1):
        held += len(line)
        if held >= raw.ROW_GROUP_BYTES:
            return count, held
    return len(lines), held


def _batch(lines: list[_Line], wanted: _Wanted, folders: dict[str, Any], limits: Limits) -> RawBatch:
    """The rows of some lines: column by column where nothing is wrong with any of them, else line by line."""
    texts = [_without_bom(position, line) for position, line, _ in lines]
    if all(size <= limits.row_bytes for *_, size in lines):
        try:
            records = list(map(orjson.loads, texts))
        except orjson.JSONDecodeError:
            records = []
        if records and set(map(type, records)) == {dict}:
            found = _columns(records, texts, wanted, folders)
            if found is not None:
                columns, nested = found
                positions = pa.array([position for position, *_ in lines], pa.int64())
                return RawBatch(columns, positions, nested, [line for _, line, _ in lines])
    return _line_by_line(lines, texts, wanted, folders, limits)


def _columns(
    records: list[dict[str, Any]], texts: list[bytes], wanted: _Wanted, folders: dict[str, Any]
) -> tuple[dict[str, pa.Array], dict[str, list[Any]]] | None:
    """The columns of some objects; None where one of them may be a bad row."""
    values = {path: _values(records, path, folders.get(path)) for path in wanted.all}
    if any(None in values[path] for path in wanted.required):
        return None
    columns = {}
    for path in wanted.texts:
        column = values[path]
        if not set(map(type, column)) <= {str, type(None)}:
            column = [text_of(value, path, path in wanted.said) for value in column]
            if any(isinstance(text, Lost) for text in column):
                return None
        columns[path] = pa.array(column, pa.string())
    try:
        for path in wanted.kept:
            written = [
                None if value is None else _fragment(value, path, text)
                for value, text in zip(values[path], texts, strict=True)
            ]
            columns[path] = pa.array(written, pa.binary())
    except (orjson.JSONEncodeError, RecursionError):
        return None
    return columns, {path: values[path] for path in wanted.nested}


def _values(records: list[dict[str, Any]], path: str, of_folder: Any) -> list[Any]:
    if "." not in path:
        return [record.get(path, of_folder) for record in records]
    parts = parts_of(path)
    return [record[path] if path in record else descend(record, parts) for record in records]


def _line_by_line(
    lines: list[_Line], texts: list[bytes], wanted: _Wanted, folders: dict[str, Any], limits: Limits
) -> RawBatch:
    """The rows of some lines, and those that are bad with their reasons."""
    good: list[int] = []
    records, nested, bad = [], [], []
    for number, ((position, line, size), text) in enumerate(zip(lines, texts, strict=True)):
        row = _parse(text, wanted, folders) if size <= limits.row_bytes else too_long(size, limits)
        if isinstance(row, Lost):
            bad.append(Bad(position, row.reason, row.detail, line[: raw.RAW_BYTES], row.example_id))
        else:
            good.append(number)
            records.append(row[0])
            nested.append(row[1])
    kinds = dict.fromkeys(wanted.texts, pa.string()) | dict.fromkeys(wanted.kept, pa.binary())
    columns = {name: pa.array([record.get(name) for record in records], kind) for name, kind in kinds.items()}
    by_path = {path: [values[place] for values in nested] for place, path in enumerate(wanted.nested)}
    positions = pa.array([lines[number][0] for number in good], pa.int64())
    return RawBatch(columns, positions, by_path, [lines[number][1] for number in good], bad)


def _blocks(location: Location, piece: InputPiece, limits: Limits) -> Iterator[_Block | list[_Line]]:
    """The rows that begin inside the piece, some megabytes at a time; blank lines are no rows."""
    with location.open(piece.file.pin) as stored:
        stream = unpacked(compression_of(location.name), location.url, stored)
        if has_lines(stream, location.name):
            yield from _blocks_of_lines(location, stream, piece, limits)
        elif piece.start == 0:
            yield from values(location.url, stream, limits.row_bytes)


def _blocks_of_lines(
    location: Location, stream: IO[bytes], piece: InputPiece, limits: Limits
) -> Iterator[_Block | list[_Line]]:
    position = _first_line(stream, piece)
    # The last piece of a file goes to its end: a compressed file is longer than its stored size.
    end = math.inf if piece.end >= piece.file.bytes else piece.end
    while position < end and (block := stream.read(int(min(_BLOCK_BYTES, end - position)))):
        if position == 0:
            check_utf8(location, block.partition(b"\n")[0])
        num_read = len(block)
        if block.endswith(b"\n"):
            yield _Block(position, block)
        else:
            begun = block.rfind(b"\n") + 1
            rest, size, more = _next_line(stream, limits.row_bytes)
            num_read += more
            if len(block) - begun + size > limits.row_bytes:
                if begun:
                    yield _Block(position, block[:begun])
                yield _placed_line(position + begun, block[begun:] + rest, len(block) - begun + size, limits)
            else:
                yield _Block(position, block + rest)
        position += num_read


def _placed(block: _Block, limits: Limits) -> list[_Line]:
    """The lines of a block with their offsets, blank ones left out."""
    placed: list[_Line] = []
    position = block.position
    for line in block.data.split(b"\n"):
        placed += _placed_line(position, line, len(line), limits)
        position += len(line) + 1
    return placed


def _placed_line(position: int, line: bytes, size: int, limits: Limits) -> list[_Line]:
    """A line with its offset; nothing where it is blank."""
    text = _without_bom(position, line)
    size -= len(line) - len(text)
    if size > limits.row_bytes:
        return [(position, line[:_LINE_BYTES], size)]
    return [(position, line, size)] if text and not text.isspace() else []


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


def _first_line(stream: IO[bytes], piece: InputPiece) -> int:
    """Move to the first line that begins inside the piece, and say where that is; its end or later where none does."""
    if piece.start == 0:
        return 0
    position = piece.start - 1
    stream.seek(position)
    return position + _skip_line(stream, piece.end - position)


def _skip_line(stream: IO[bytes], wanted: float = math.inf) -> int:
    """Read on to the end of a line, but no further than that many bytes take; the number of bytes read."""
    count = 0
    while count < wanted and (piece := stream.readline(_LINE_BYTES)):
        count += len(piece)
        if piece.endswith(b"\n"):
            break
    return count


def _parse(line: bytes, wanted: _Wanted, folders: dict[str, Any]) -> tuple[dict[str, Any], tuple[Any, ...]] | Lost:
    """The line's object with the columns of its folders and the nested ones apart, or what is wrong with it.

    Text columns are text, kept ones JSON, and every required one is there.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Lost("invalid_json", _said(error))
    if not isinstance(record, dict):
        return Lost("not_an_object", f"a {type(record).__name__}")
    record = {**folders, **record}
    for path in wanted.deep:
        if path not in record:
            record[path] = descend(record, parts_of(path))
    missing = next((name for name in wanted.required if record.get(name) is None), None)
    nested = tuple(map(record.get, wanted.nested))
    try:
        lost = _make_columns(record, line, wanted)
    except RecursionError as error:
        # Of Python's own parser, which reads lines with whole numbers of more than 64 bits.
        lost = Lost("too_deep", str(error))
    if lost is None and missing is not None:
        lost = Lost(f"missing_{missing}", "null or absent")
    if lost is None:
        return record, nested
    name = record.get(wanted.example_id) if wanted.example_id is not None else None
    return replace(lost, example_id=name if isinstance(name, str) else None)


def _said(error: orjson.JSONDecodeError) -> str:
    """What is wrong with a line; Python's json module writes numbers that JSON does not know."""
    number = _NO_NUMBERS.match(error.doc, max(0, error.pos - 1)) or _NO_NUMBERS.match(error.doc, error.pos)
    return str(error) if number is None else f"{number[0]} is no JSON, write null: {error}"


def _make_columns(record: dict[str, Any], line: bytes, wanted: _Wanted) -> Lost | None:
    """Make the columns of an object what they are kept as, in place; what is wrong with the first that cannot be."""
    for name in wanted.texts:
        value = record.get(name)
        if isinstance(value, float) and abs(value) >= _BEYOND_64_BITS and name not in wanted.said:
            value = _exact(line, name)
        text = text_of(value, name, name in wanted.said)
        if isinstance(text, Lost):
            return text
        record[name] = text
    for name in wanted.kept:
        if (value := record.get(name)) is not None:
            try:
                record[name] = _fragment(value, name, line)
            except orjson.JSONEncodeError as error:
                return Lost("too_deep", f"column '{name}': {error}")
    return None


def _exact(line: bytes, path: str) -> Any:
    """The digits of a whole number beyond 64 bits, which orjson reads as a float; of a real float that float."""
    record = json.loads(line, parse_int=str)
    return record[path] if path in record else descend(record, parts_of(path))


def _fragment(value: Any, path: str, line: bytes) -> bytes:
    """The JSON of a kept value; whole numbers beyond 64 bits keep their digits."""
    text = orjson.dumps(value)
    # orjson writes a float so from 1e16 on; in a line without one no number has been rounded.
    if b"e+" in text and not isinstance(value, str):
        record = json.loads(line, parse_int=_whole)
        return orjson.dumps(record[path] if path in record else descend(record, parts_of(path)))
    return text


def _whole(digits: str) -> Any:
    return int(digits) if len(digits) < _SAFE_DIGITS else orjson.Fragment(digits)
