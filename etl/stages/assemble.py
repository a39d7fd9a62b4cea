"""Rows assembled from several raw rows, before ingest reads them: DIR/assembled/NAME of each source that asks for it.

    raw rows, each under the key of its group   ->  shuffle  ->  rows of one group  ->  ASSEMBLED

A group is a tree of messages or the rows of one prompt, and is held as a whole; the rows of one with more than
`max_row_bytes` are bad. For a join, the text of the other table comes before the rows that it belongs to, and only that
text is held. Text crosses the shuffle here, once. Costs some Python objects a row: 10 to 30 µs a row.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa

from etl.digests import digest_of
from etl.engine import Exchange
from etl.errors import ConfigError
from etl.hashing import hash_columns
from etl.laws import Growth, With
from etl.schema import ASSEMBLED
from etl.sources.assemble.gather import Gather
from etl.sources.assemble.join import Join
from etl.sources.assemble.made import BadRow, MadeRow, RawRow, Record
from etl.sources.assemble.raw_rows import RawRows, raw_rows
from etl.sources.assemble.tree import Tree
from etl.sources.files import InputFile, InputPiece, InputSplit, cut, dataset_files, list_files
from etl.sources.raw import RAW_BYTES, ROW_GROUP_BYTES, RawBatch
from etl.sources.read import read_raw
from etl.sources.shapes.turns import Unfit
from etl.sources.spec import Shape
from etl.stages.context import Context
from etl.stages.keyed import buckets_of
from etl.stages.raw_input import Raw
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset
from etl.storage.manifest import ASSEMBLED as ASSEMBLED_ROWS

STEP: Final = "assemble"
"""The name of the step in the accounts."""
FOLDER: Final = "assembled"
VERSION: Final = 1
"""Increased when the same raw rows would make other rows."""
STORED_TO_ARROW: Final = 4
"""Bytes that cross the shuffle for each stored byte, if files are compressed."""

_PARTNER, _ROW = 0, 1
KEYED = pa.schema(
    [
        ("bucket", pa.int32()), ("key", pa.string()), ("kind", pa.int32()), ("file", pa.string()),
        ("position", pa.int64()), ("record", pa.binary()), ("example_id", pa.string()), ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)  # fmt: skip
"""A raw row on its way; one with a `reason` is a bad row, and `record` is then its original text."""


@dataclass
class _Lines:
    """Columns of KEYED without the bucket."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)

    def add(self, key: str, kind: int, place: tuple[str, int], record: bytes, *why: str | None) -> None:
        """A row; if it is bad, `why` is the example's name, a reason and a detail."""
        self.rows.append((key, kind, *place, record, *(why or (None, None, None))))

    def batch(self, num_buckets: int) -> pa.RecordBatch:
        columns = list(zip(*self.rows, strict=True)) or [()] * (len(KEYED) - 1)
        arrays = [pa.array(values, kind.type) for values, kind in zip(columns, list(KEYED)[1:], strict=True)]
        buckets = buckets_of(hash_columns([arrays[0]]), num_buckets)
        return pa.RecordBatch.from_arrays([buckets, *arrays], schema=KEYED)


@dataclass(frozen=True)
class EmitRaw:
    """The raw rows of a split with the keys of their groups; a split is [name of a source or of a table, split]."""

    raw: Raw
    """The source, and for a join each of the tables, under its name in the recipe."""
    source: str
    assembly: Tree | Join | Gather
    num_buckets: int

    def __call__(self, split: list[Any]) -> Iterator[pa.RecordBatch]:
        name, planned = split
        pieces, num_before = self.raw.from_plan(planned), 0
        shape = self.raw.shapes[name]
        assert isinstance(shape, RawRows)
        for file, batch in read_raw(self.raw.sources[name], shape, pieces, self.raw.storage, self.raw.limits):
            lines = _Lines()
            if name == self.source:
                self._emit_rows(file, batch, shape, lines)
            else:
                num_before = self._emit_questions(name, batch, shape, num_before, lines)
            yield lines.batch(self.num_buckets)

    def _emit_rows(self, file: str, batch: RawBatch, shape: RawRows, lines: _Lines) -> None:
        positions = batch.positions.to_pylist()
        for number, record in enumerate(_records(batch, shape)):
            place = file, positions[number]
            try:
                data = orjson.dumps(record)
                lines.add(self.assembly.key(record) or _alone(place), _ROW, place, data)
            except Unfit as error:
                lines.add(_alone(place), _ROW, place, batch.raw(number)[:RAW_BYTES], None, error.reason, error.detail)
            except orjson.JSONEncodeError as error:
                lines.add(_alone(place), _ROW, place, batch.raw(number)[:RAW_BYTES], None, "too_deep", str(error))
        for bad in batch.bad:
            place = file, bad.position
            lines.add(_alone(place), _ROW, place, bad.raw, bad.example_id, bad.reason, bad.detail)

    def _emit_questions(self, name: str, batch: RawBatch, shape: RawRows, num_before: int, lines: _Lines) -> int:
        """The texts of a table with their row numbers, and how many rows have been read by now, including bad ones."""
        assert isinstance(self.assembly, Join)
        places = batch.positions.to_numpy()
        bad = np.array([row.position for row in batch.bad], np.int64)
        numbers = num_before + np.searchsorted(np.sort(np.concatenate([places, bad])), places)
        for number, record in zip(numbers.tolist(), _records(batch, shape), strict=True):
            text = self.assembly.question(name.rpartition("/")[0], record)
            if text:
                lines.add(f"{name}/{number}", _PARTNER, (name, number), text.encode())
        return num_before + len(places) + len(bad)


def _alone(place: tuple[str, int]) -> str:
    """The key of a row that is its own group; no row's content can give such a key."""
    return f"\0{place[0]}\0{place[1]}"


def _records(batch: RawBatch, shape: RawRows) -> Iterator[Record]:
    """The rows as JSON objects, without columns that are null."""
    for values in zip(*(batch.values(path) for path in shape.read), strict=True):
        yield {path: value for path, value in zip(shape.read, values, strict=True) if value is not None}


@dataclass(frozen=True)
class MakeRows:
    """The rows of a bucket, group by group, as ASSEMBLED."""

    source: str
    assembly: Tree | Join | Gather
    columns: tuple[str, ...]
    """The columns of the assembled rows."""
    max_group_bytes: int

    def __call__(self, bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        out = _Out(self.source)
        group = _Group(self, out)
        for batch in batches:
            names = [name for name in KEYED.names if name != "bucket"]
            for key, kind, file, position, data, example_id, reason, detail in zip(
                *(batch.column(name).to_pylist() for name in names), strict=True
            ):
                group.enter(key)
                if reason is not None:
                    out.num_in += 1
                    out.lose(file, position, data, reason, detail, example_id)
                else:
                    group.add(kind, file, position, data)
                if out.is_full:
                    yield out.chunk()
        group.close()
        yield out.chunk()


class _Group:
    """The open group: its rows, or the text that is filled into them."""

    def __init__(self, make: MakeRows, out: "_Out") -> None:
        self._make, self._out = make, out
        self._key: str | None = None
        self._rows: list[RawRow] = []
        self._num_bytes = 0
        self._text: str | None = None

    def enter(self, key: str) -> None:
        """The next row has this key."""
        if key != self._key:
            self.close()
            self._key = key

    def add(self, kind: int, file: str, position: int, data: bytes) -> None:
        """Take a row of the group, or the text that is filled in, which comes first."""
        if kind == _PARTNER:
            self._text = data.decode()
            return
        self._out.num_in += 1
        row = RawRow(file, position, data, orjson.loads(data))
        if isinstance(self._make.assembly, Join):
            self._join(self._make.assembly, row)
            return
        self._num_bytes += len(data)
        self._rows.append(row)
        if self._num_bytes > self._make.max_group_bytes:
            self._lose_rows()

    def _join(self, join: Join, row: RawRow) -> None:
        wanted = join.key(row.record)
        if not wanted:
            self._out.keep(MadeRow(row.record, row.file, row.position), row.data)
        elif self._text is None:
            self._out.bad(BadRow(row, "no_partner", f"sources.{self._make.source}.tables has no row {wanted}"))
        else:
            self._out.num_assembled += 1
            self._out.make(MadeRow(join.filled(row.record, self._text), row.file, row.position))

    def _lose_rows(self) -> None:
        limit = self._make.max_group_bytes
        for row in self._rows:
            self._out.bad(BadRow(row, "group_too_long", f"rows of one group have more than max_row_bytes={limit:,}"))
        self._rows = []

    def close(self) -> None:
        """Close the group, which has no more rows."""
        if self._num_bytes > self._make.max_group_bytes:
            self._lose_rows()
        elif self._rows and not isinstance(self._make.assembly, Join):
            made = self._make.assembly.make(self._rows, self._make.columns)
            for row in made.rows:
                self._out.make(row)
            for bad in made.bad:
                self._out.bad(bad)
            self._out.num_assembled += made.num_assembled
            self._out.dropped += made.dropped
        self._rows, self._num_bytes, self._text = [], 0, None


class _Out:
    """The rows of the next row group, and the account."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._rows: list[tuple[Any, ...]] = []
        self._num_bytes = self._num_made = 0
        self.num_in = self.num_assembled = 0
        self.dropped: Counter[str] = Counter()

    @property
    def is_full(self) -> bool:
        """Whether they fill a row group; asked between groups, so that the rows of a group stay together."""
        return self._num_bytes >= ROW_GROUP_BYTES

    def make(self, row: MadeRow) -> None:
        """Add an assembled row."""
        self._num_made += 1
        self.keep(row, orjson.dumps(row.record))

    def keep(self, row: MadeRow, data: bytes) -> None:
        """Add a row that is kept as it is."""
        self._add(data, row.conversation, row.file, row.position, None, None, None, None)

    def bad(self, bad: BadRow) -> None:
        """Add a raw row from which nothing can be made."""
        self.lose(bad.row.file, bad.row.position, bad.row.data[:RAW_BYTES], bad.reason, bad.detail, None)

    def lose(self, file: str, position: int, raw: bytes, reason: str, detail: str, example_id: str | None) -> None:
        self._add(None, None, file, position, example_id, reason, detail, raw)

    def _add(self, *row: Any) -> None:
        self._rows.append(row)
        self._num_bytes += len(row[0] or row[-1] or b"")

    def chunk(self) -> Chunk:
        """The held rows with their account; afterwards it holds none."""
        columns = list(zip(*self._rows, strict=True)) or [()] * len(ASSEMBLED)
        arrays = [pa.array(values, of.type) for values, of in zip(columns, ASSEMBLED, strict=True)]
        counts = {"in": self.num_in, "made": self._num_made, "kept": len(self._rows)}
        chunk = Chunk(
            pa.RecordBatch.from_arrays(arrays, schema=ASSEMBLED) if self._rows else None,
            self.num_in,
            {self._source: {STEP: {**counts, ASSEMBLED_ROWS: self.num_assembled, **self.dropped}}},
        )
        self._rows, self._num_bytes, self._num_made = [], 0, 0
        self.num_in, self.num_assembled, self.dropped = 0, 0, Counter()
        return chunk


@dataclass(frozen=True)
class Found:
    """The files of a recipe's sources, by source name."""

    files: dict[str, list[InputFile]]
    identity: dict[str, Any]
    """Everything that decides the rows of each source."""
    landed: dict[str, Dataset]
    """The sources that are tables of a catalog."""
    split_bytes: int


def assemble_sources(context: Context, raw: Raw, found: Found) -> dict[str, Dataset]:
    """Write DIR/assembled/NAME for each source whose description assembles rows.

    Args:
        context: of the run.
        raw: the sources and their descriptions.
        found: their files.

    Raises:
        ConfigError: a source does not give the tables that its description joins.
        SourceError: the files of such a table cannot be listed.
    """
    for name, shape in raw.shapes.items():
        check_tables(name, shape, raw.sources[name].tables)
    return {name: _assemble(context, name, raw, found) for name, one in raw.shapes.items() if one.assemble is not None}


def _assemble(context: Context, name: str, raw: Raw, found: Found) -> Dataset:
    """Write one source's rows as ingest is to read them."""
    source, shape = raw.sources[name], raw.shapes[name]
    assembly = shape.assemble
    assert assembly is not None
    tables = {table: source.table_of(path) for table, path in source.tables.items()}
    listed = {table: list_files(f"{name}.tables.{table}", one, raw.storage) for table, one in tables.items()}
    files = {name: found.files[name], **listed}
    shapes: dict[str, Shape] = {name: raw_rows(shape), **{table: _questions(assembly, table) for table in tables}}
    given = Raw.of({name: source, **tables}, shapes, files, raw.storage, raw.limits)
    pieces = [(name, split) for split in cut(name, source, files[name], found.split_bytes, raw.storage)]
    pieces += [(table, _whole(table, of_table)) for table, of_table in listed.items()]
    splits = tuple([of, given.to_plan(number, split)] for number, (of, split) in enumerate(pieces))
    tasks = context.buckets(STORED_TO_ARROW * sum(file.bytes for of in files.values() for file in of))
    listing = {
        table: digest_of([[file.relative, file.bytes, file.etag] for file in of]) for table, of in listed.items()
    }
    semantic = {
        "version": VERSION,
        "assemble": {"kind": assembly.kind, **assembly.fingerprinted()},
        "columns": sorted(shapes[name].columns),
        "max_row_bytes": raw.limits.row_bytes,
        "input": {key: value for key, value in found.identity[name].items() if key != "shape"},
        **({"tables": listing} if listing else {}),
    }
    inputs = (found.landed[name],) if name in found.landed else ()
    empty = {name: {STEP: {"in": 0, "made": 0, "kept": 0, ASSEMBLED_ROWS: 0}}}
    grows = Growth.all_by(With.INPUT, tasks)
    job = context.job(f"{FOLDER}/{name}", "ASSEMBLED", ASSEMBLED, semantic, inputs, grows=grows).with_inherited(empty)
    num_buckets = tasks.count()
    exchange = Exchange(
        splits, EmitRaw(given, name, assembly, num_buckets), KEYED, ("key", "kind", "file", "position"), num_buckets
    )
    return context.shuffle(job, exchange, MakeRows(name, assembly, shape.columns, raw.limits.row_bytes))


def _questions(assembly: Tree | Join | Gather, table: str) -> RawRows:
    """How a joined table is read."""
    assert isinstance(assembly, Join)
    read = tuple(section.column for section in assembly.tables[table.rpartition("/")[0]])
    return RawRows(read=read)


def _whole(table: str, files: Sequence[InputFile]) -> InputSplit:
    """All rows of a table, in the order of its files: one split, as its rows are counted."""
    return InputSplit(source=table, pieces=tuple(InputPiece(file=file, start=0, end=file.bytes) for file in files))


def with_assembled(
    raw: Raw, files: dict[str, list[InputFile]], assembled: dict[str, Dataset]
) -> tuple[Raw, dict[str, list[InputFile]]]:
    """The input and its files as ingest reads them, with the assembled rows in place of the raw ones."""
    if not assembled:
        return raw, files
    sources = {
        name: source.assembled_at(str(assembled[name].folder)) if name in assembled else source
        for name, source in raw.sources.items()
    }
    files = {**files, **{name: dataset_files(dataset) for name, dataset in assembled.items()}}
    return Raw.of(sources, raw.shapes, files, raw.storage, raw.limits), files


def check_tables(name: str, shape: Shape, tables: dict[str, Any]) -> None:
    """Refuse tables that a source does not join, and a join without any.

    Raises:
        ConfigError: naming the tables to give.
    """
    assembly = shape.assemble
    if not isinstance(assembly, Join):
        if tables:
            raise ConfigError(f"sources.{name}.tables: the description joins no table; leave it out")
        return
    known = ", ".join(assembly.tables)
    if not tables:
        raise ConfigError(f"sources.{name}.tables: give the tables to join with, as DATASET/SPLIT: PATH, of {known}")
    for table in tables:
        if table.rpartition("/")[0] not in assembly.tables:
            raise ConfigError(f"sources.{name}.tables: '{table}' is no DATASET/SPLIT of {known}")
