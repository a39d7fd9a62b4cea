"""CSV and TSV: a header and rows, quoted as RFC 4180 says; every column is text.

A file is one piece, since a quoted value may hold line ends. Of a file whose header has semicolons and no comma, as
spreadsheets write them where the comma is a decimal sign, semicolons divide. A position is the number of the row, the
header and blank lines not counted; a row is as long as its text, quotes and separators with it. Python's `csv` parses
about 100 MB a CPU-second.
"""

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson
import pyarrow as pa

from etl.errors import SourceError
from etl.sources import raw
from etl.sources.compressed import unpacked
from etl.sources.files import InputPiece
from etl.sources.formats.arrow_columns import ArrowColumns
from etl.sources.formats.endings import compression_of, format_of
from etl.sources.raw import Bad, RawBatch, too_long
from etl.sources.row_groups import Limits
from etl.sources.spec import Shape
from etl.sources.utf8 import check_utf8
from etl.storage.location import Location

_BATCH_BYTES = 1 << 20
_LINE_CHARS = 1 << 20
"""How much of a line is asked for at once."""
_HEAD_CHARS = 16
_LIMITS: Final = Limits()
"""The default ones."""
_ENDS = ("\n", "\r")


def read_delimited(location: Location, shape: Shape, piece: InputPiece, limits: Limits) -> Iterator[RawBatch]:
    """The batches of a file.

    Args:
        location: of the file.
        shape: which columns are read.
        piece: the whole file.
        limits: of a row.

    Raises:
        SourceError: the file is damaged or UTF-16, has a quote that does not end, or lacks a required column.
        OSError: it cannot be read to its end.
    """
    with (
        location.open(piece.file.pin) as stored,
        io.TextIOWrapper(
            unpacked(compression_of(location.name), location.url, stored), "utf-8", "surrogateescape", newline=""
        ) as stream,
    ):
        rows = rows_of(location, stream, limits)
        names = header(location, rows)
        if names is None:
            return
        columns = ArrowColumns.of(location, pa.schema([(name, pa.string()) for name in names]), shape, piece)
        good: list[tuple[int, list[str]]] = []
        bad: list[Bad] = []
        held = held_in_group = 0
        for number, values in rows:
            if isinstance(values, Broken):
                bad.append(Bad(number - 1, values.reason, values.detail, values.raw))
                held += len(values.raw)
            elif len(values) != len(names):
                detail = f"{len(values)} values, the header has {len(names)}"
                bad.append(Bad(number - 1, "wrong_number_of_values", detail, _written(values)[: raw.RAW_BYTES]))
            else:
                good.append((number - 1, values))
            held += sum(map(len, values)) if isinstance(values, list) else 0
            if held >= _BATCH_BYTES:
                held_in_group += held
                batch = _batch(columns, names, good, bad, limits)
                batch.ends_row_group = held_in_group >= raw.ROW_GROUP_BYTES
                held_in_group = 0 if batch.ends_row_group else held_in_group
                yield batch
                good, bad, held = [], [], 0
        if good or bad:
            yield _batch(columns, names, good, bad, limits)


@dataclass(frozen=True)
class Broken:
    """A row that cannot be read."""

    reason: str
    detail: str
    raw: bytes
    """What stood there; of a row that is too long its start."""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


_Row = tuple[int, list[str] | Broken]
"""Number, and values or what is wrong with them."""


def header(location: Location, rows: Iterator[_Row]) -> list[str] | None:
    """The names of the columns; None of an empty file."""
    _, names = next(rows, (0, None))
    if isinstance(names, Broken):
        raise SourceError(f"{location}: the header cannot be read ({names})")
    if names is not None and any(map(_is_broken, names)):
        raise SourceError(f"{location}: the header is not UTF-8; convert the file, for example with iconv")
    return names


def rows_of(location: Location, stream: io.TextIOWrapper, limits: Limits = _LIMITS) -> Iterator[_Row]:
    """The rows with their numbers, the header as the first; of a row that cannot be read, what is wrong with it.

    Args:
        location: of the file.
        stream: its text, bytes that are not UTF-8 as surrogates.
        limits: of a row, with its quotes and separators.

    Raises:
        SourceError: the file is UTF-16 or UTF-32, or has a quote that does not end.
        OSError: it cannot be read to its end.
    """
    lines = _Lines(stream, limits.row_bytes)
    check_utf8(location, _stored(lines.head[:_HEAD_CHARS]))
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, delimiter=_delimiter(location, lines.head), strict=True)
    number = 0
    while True:
        lines.begin_row()
        values: list[str] = []
        wrong = ""
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            wrong = str(error)
            if "unexpected end of data" in wrong:
                begun = reader.line_num - lines.num_lines + 1
                raise SourceError(f"{location}: a quote in the row of line {begun} is not closed") from error
        if lines.is_too_long:
            lost = too_long(lines.num_bytes, limits)
            yield number, Broken(lost.reason, lost.detail, lines.text()[: raw.RAW_BYTES])
        elif wrong:
            yield number, Broken("invalid_csv", wrong, lines.text()[: raw.RAW_BYTES])
        elif values:
            yield number, values
        else:
            continue
        number += 1


class _Lines:
    """The lines of a file for `csv.reader`, and what the row that it reads is made of.

    Of a row that is too long no more than the limit is held. In the place of its further lines the reader gets whether
    their quotes open or close a value, so that it still finds the row's end.

    Args:
        stream: the text.
        row_bytes: above which a row is too long.
    """

    def __init__(self, stream: io.TextIOWrapper, row_bytes: int) -> None:
        self._stream = stream
        self._row_bytes = row_bytes
        self.head = stream.readline(_LINE_CHARS).removeprefix("\ufeff")
        """The first line, as far as it is read at once."""
        self._ahead = self.head
        self.begin_row()

    def begin_row(self) -> None:
        """What comes next belongs to another row."""
        self._held: list[str] = []
        self._bytes_before = 0
        self.num_lines = self.num_bytes = 0
        """Of the row; its line end is not counted."""

    @property
    def is_too_long(self) -> bool:
        return self.num_bytes > self._row_bytes

    def text(self) -> bytes:
        """The row as it stands in the file, of one that is too long its start."""
        return _stored("".join(self._held).rstrip("\r\n"))

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not (piece := self._read()):
            raise StopIteration
        self.num_lines += 1
        size = self._bytes_before + len(piece)
        if size <= self._row_bytes and piece.isascii() and piece.endswith(_ENDS):
            # Most lines; their line end counts, which makes no row too long.
            self._held.append(piece)
            self._bytes_before = self.num_bytes = size
            return piece
        first, quotes = len(self._held), 0
        while piece:
            self._add(piece)
            quotes += piece.count('"')
            piece = "" if piece.endswith(_ENDS) else self._read()
        return '"' * (quotes % 2) if self.is_too_long else "".join(self._held[first:])

    def _read(self) -> str:
        piece, self._ahead = self._ahead or self._stream.readline(_LINE_CHARS), ""
        return piece

    def _add(self, piece: str) -> None:
        if not self.is_too_long:
            self._held.append(piece)
        size = len(piece) if piece.isascii() else len(_stored(piece))
        self._bytes_before += size
        self.num_bytes = self._bytes_before - (len(piece) - len(piece.rstrip("\r\n")))


def _delimiter(location: Location, head: str) -> str:
    if format_of(location.name) == "tsv":
        return "\t"
    return ";" if ";" in head and "," not in head else ","


def _batch(
    columns: ArrowColumns, names: list[str], rows: list[tuple[int, list[str]]], bad: list[Bad], limits: Limits
) -> RawBatch:
    wanted = set(columns.roots)
    values: Any = zip(*(row for _, row in rows), strict=True) if rows else [()] * len(names)
    arrays = {name: _text(column) for name, column in zip(names, values, strict=True) if name in wanted}
    positions = pa.array([number for number, _ in rows], pa.int64())
    batch = columns.batch(pa.table(arrays) if arrays else _no_columns(len(rows)), positions, limits)
    batch.bad += bad
    return batch


def _no_columns(num_rows: int) -> pa.Table:
    return pa.table({"": pa.nulls(num_rows)}).select([])


def _text(values: tuple[str, ...]) -> pa.Array:
    """Text, as bytes where it is not UTF-8; the reader finds these rows."""
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array(list(map(_stored, values)), pa.binary())


def _stored(text: str) -> bytes:
    """The bytes of a text in the file."""
    return text.encode("utf-8", "surrogateescape")


def _is_broken(text: str) -> bool:
    """Whether it holds bytes that are not UTF-8."""
    return not text.isascii() and any("\udc80" <= letter <= "\udcff" for letter in text)


def _written(values: list[str]) -> bytes:
    return orjson.dumps([_stored(value).decode("utf-8", "replace") for value in values])
