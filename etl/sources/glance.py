"""A glance at a file: its first rows as JSON has them, and what stands in each column.

Read is the head alone: lines until there are rows enough or HEAD_BYTES, of Parquet and Arrow the first batches. What
cannot be read is counted, and damage ends the glance, so a damaged file shows what stands before it. Nothing here
depends on a description; etl/sources/nearest.py finds one.
"""

import io
import itertools
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
import pyarrow as pa

from etl.arrow_types import kept, refused
from etl.errors import DataError, SourceError, decoding
from etl.sources.compressed import unpacked
from etl.sources.formats.arrow import Ipc
from etl.sources.formats.delimited import header, rows_of
from etl.sources.formats.endings import compression_of
from etl.sources.formats.json_values import has_lines, values
from etl.sources.formats.warc import pages
from etl.sources.row_groups import MAX_ROW_BYTES, Limits, without_dictionaries
from etl.sources.utf8 import check_utf8
from etl.storage.location import Location

ROWS: Final = 200
HEAD_BYTES: Final = 16 << 20
"""Of rows beyond the first one, after which a glance ends."""
_BATCH_ROWS: Final = 64
_MEMBERS: Final = 50
"""So many members of a list are looked at for its type."""
_DEPTH: Final = 4
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Unread:
    """A row that is no JSON object, or cannot be read at all."""

    reason: str


@dataclass(frozen=True)
class Column:
    """A column of some rows."""

    name: str
    kind: str
    """A type word: string, int, double, bool, list<…>, object {keys}, JSON text of one of these, null."""
    example: Any
    """The first value that is there; None where none is."""


@dataclass
class Glance:
    """What the head of a file shows."""

    format: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    """The first rows, each with the columns that it has."""
    unread: list[str] = field(default_factory=list)
    """Of each row among them that is no object, why."""
    damage: str | None = None
    """Why the file could be read no further."""
    without_json: dict[str, str] = field(default_factory=dict)
    """Columns whose type has no form as JSON, and that type; no row has them."""

    @property
    def columns(self) -> list[Column]:
        """The columns in order."""
        names = dict.fromkeys(itertools.chain.from_iterable(self.rows))
        return [_column(name, [row.get(name) for row in self.rows]) for name in names]


def glance(location: Location, file_format: str, rows: int = ROWS) -> Glance:
    """The first rows of a file.

    Args:
        location: of the file.
        file_format: as `format_of` calls it.
        rows: how many are looked at.
    """
    found = Glance(file_format)
    size = 0
    try:
        for row, num_bytes in itertools.islice(_READERS[file_format](location, found), rows):
            if isinstance(row, Unread):
                found.unread.append(row.reason)
            else:
                found.rows.append(row)
            size += num_bytes
            if size > HEAD_BYTES:
                break
    except (DataError, SourceError) as error:
        found.damage = str(error)
    except OSError as error:
        found.damage = f"{location} cannot be read ({error})"
    return found


def type_of(found: Iterable[Any], depth: int = 0) -> str:
    """The type word of some values; several with `|` between them.

    Args:
        found: the values.
        depth: how deep they are nested; what is nested deeper than _DEPTH is `…`.
    """
    if depth > _DEPTH:
        return "…"
    words: dict[str, list[Any]] = {}
    for value in found:
        words.setdefault(_word(value), []).append(value)
    words.pop("null", None)
    if "double" in words and "int" in words:
        del words["int"]
    return " | ".join(_spelled(word, group, depth + 1) for word, group in words.items()) or "null"


def opened(value: Any) -> Any:
    """A list or an object, also one whose JSON is the value; None for all else."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            return None
    return value if isinstance(value, list | dict) else None


def _column(name: str, found: list[Any]) -> Column:
    there = (value for value in found if value is not None and value != "")
    return Column(name, type_of(found), next(there, None))


def _word(value: Any) -> str:
    if isinstance(value, str):
        inner = opened(value)
        return "string" if inner is None else f"JSON text of {_word(inner)}"
    names = {bool: "bool", int: "int", float: "double", list: "list", tuple: "list", dict: "object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _spelled(word: str, group: list[Any], depth: int) -> str:
    if word.startswith("JSON text of "):
        return f"JSON text of {type_of(map(orjson.loads, group), depth)}"
    if word == "list":
        members = itertools.islice(itertools.chain.from_iterable(group), _MEMBERS)
        return f"list<{type_of(members, depth)}>"
    if word == "object":
        return f"object {{{', '.join(dict.fromkeys(itertools.chain.from_iterable(group)))}}}"
    return word


# --- one function a format --------------------------------------------------------------------------------------------

Row = tuple[dict[str, Any] | Unread, int]
"""What a row holds, and about how many bytes it takes."""


def _json(location: Location, _: Glance) -> Iterator[Row]:
    with location.open() as stored:
        stream = unpacked(compression_of(location.name), location.url, stored)
        lines = _lines(location, stream) if has_lines(stream, location.name) else _values(location, stream)
        for line in lines:
            if line.strip():
                yield _object(line)


def _lines(location: Location, stream: Any) -> Iterator[bytes]:
    line = stream.readline(MAX_ROW_BYTES)
    check_utf8(location, line)
    line = line.removeprefix(_BOM)
    while line:
        yield line
        line = stream.readline(MAX_ROW_BYTES)


def _values(location: Location, stream: Any) -> Iterator[bytes]:
    for found in values(location.url, stream, MAX_ROW_BYTES):
        for _, text, _ in found:
            yield text


def _object(line: bytes) -> Row:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return Unread(f"invalid_json: {error}"), len(line)
    return found if isinstance(found, dict) else Unread(f"not_an_object: {type_of([found])}"), len(line)


def _delimited(location: Location, _: Glance) -> Iterator[Row]:
    with (
        location.open() as stored,
        io.TextIOWrapper(
            unpacked(compression_of(location.name), location.url, stored), "utf-8", "surrogateescape", newline=""
        ) as lines,
    ):
        rows = rows_of(location, lines)
        names = header(location, rows) or []
        for _number, found in rows:
            if not isinstance(found, list):
                yield Unread(str(found)), 0
            elif len(found) != len(names):
                yield Unread(f"wrong_number_of_values: {len(found)}, the header has {len(names)}"), 0
            else:
                row = {name: _utf8(value) for name, value in zip(names, found, strict=True)}
                yield row, sum(map(len, found))


def _utf8(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _text(location: Location, _: Glance) -> Iterator[Row]:
    """The file as the one row that it is where nothing says otherwise."""
    with location.open() as stored:
        text = unpacked(compression_of(location.name), location.url, stored).read(HEAD_BYTES).removeprefix(_BOM)
    name = posixpath.basename(location.name)
    yield {"id": f"{name}:0", "text": text.decode("utf-8", "replace"), "path": name}, len(text)


def _warc(location: Location, _: Glance) -> Iterator[Row]:
    with location.open() as stored:
        stream = unpacked(compression_of(location.name), location.url, stored)
        for page in pages(location, stream, Limits(), "resiliparse", Counter()):
            size = len(page.block)
            if page.lost is not None:
                yield Unread(f"{page.lost.reason}: {page.lost.detail}"), size
            else:
                yield page.row | {"path": posixpath.basename(location.name)}, size


def _arrow(location: Location, found: Glance) -> Iterator[Row]:
    with location.open() as stored, decoding(str(location)):
        reader = pa.ipc.open_stream(Ipc(unpacked(compression_of(location.name), location.url, stored)))
        for batch in reader:
            batch.validate(full=True)
            for start in range(0, len(batch), _BATCH_ROWS):
                yield from _records(batch.slice(start, _BATCH_ROWS), found)


def _parquet(location: Location, found: Glance) -> Iterator[Row]:
    with location.open_parquet() as file, decoding(str(location)):
        for batch in file.iter_batches(_BATCH_ROWS):
            yield from _records(batch, found)


def _records(batch: pa.RecordBatch, found: Glance) -> Iterator[Row]:
    """The rows of a batch; a column whose type has no form as JSON is noted and left out."""
    batch = without_dictionaries(batch)
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if refused(column.type, "kept") is not None:
            found.without_json[name] = str(column.type)
        else:
            columns[name] = _pylist(kept(column))
    for row in range(len(batch)):
        yield {name: column[row] for name, column in columns.items()}, batch.nbytes // len(batch)


def _pylist(column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(value) for value in column]


def _value(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return None


_READERS: Final[dict[str, Callable[[Location, Glance], Iterator[Row]]]] = {
    "arrow": _arrow,
    "csv": _delimited,
    "jsonl": _json,
    "parquet": _parquet,
    "text": _text,
    "tsv": _delimited,
    "warc": _warc,
}
"""Format -> the rows of a file from its beginning, one after the other."""
