"""Reading a split of raw rows: PROMPT batches on one side, what could not be read on the other.

A format (etl/sources/formats) gives the columns that the shape (etl/sources/shapes) names; the shape makes
conversations of them (etl/sources/prompts.py). Whatever a library says of a file is a SourceError with its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pyarrow as pa

from etl.errors import DataError, SourceError, said
from etl.sources import raw
from etl.sources.assemble.raw_rows import RawRows
from etl.sources.conversations import by_turn, with_conversations
from etl.sources.files import InputPiece, InputSplit
from etl.sources.formats.arrow import read_arrow
from etl.sources.formats.assembled import read_assembled
from etl.sources.formats.dataset import read_dataset
from etl.sources.formats.delimited import read_delimited
from etl.sources.formats.jsonl import read_jsonl
from etl.sources.formats.parquet import read_parquet
from etl.sources.formats.plain_text import read_text
from etl.sources.formats.warc import read_warc
from etl.sources.prompts import to_prompt
from etl.sources.raw import Bad, RawBatch, Tally, quarantine_bad_text, quarantine_nulls
from etl.sources.row_groups import Limits
from etl.sources.spec import Shape, Source
from etl.storage.location import Location
from etl.storage.remote import Storage

_READERS: Final = {
    "arrow": read_arrow,
    "csv": read_delimited,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "tsv": read_delimited,
}


def read_split(
    source: Source,
    shape: Shape,
    split: InputSplit,
    storage: Storage,
    limits: Limits,
    tally: Tally | None = None,
) -> Iterator[tuple[pa.RecordBatch, list[Bad]]]:
    """PROMPT rows and bad rows of a split, one pair for each row group to be written; small files share one.

    Of a source with a `limit` no more than that are read, the bad ones counted.

    Args:
        source: that the split is of.
        shape: its description.
        split: what is read.
        storage: the recipe's options by scheme.
        limits: of a row, above which it is bad, and of a row group, above which the file is not read.
        tally: gets what is counted beside the rows so far.

    Raises:
        SourceError: a file went away or changed since it was listed, cannot be opened, is cut short, lacks a required
            column, or has too large a row group.
    """
    try:
        held = _RowGroup()
        for prompts, bad, ends_row_group in _rows(source, shape, split, storage, limits, tally):
            size = prompts.nbytes + sum(len(row.raw) for row in bad)
            if held.prompts and held.bytes + size > raw.ROW_GROUP_BYTES:
                yield held.joined()
                held = _RowGroup()
            held.add(prompts, bad, size)
            if ends_row_group and held.bytes >= raw.ROW_GROUP_BYTES // 2:
                yield held.joined()
                held = _RowGroup()
        if held.prompts:
            yield held.joined()
    except DataError as error:
        raise SourceError(f"source '{split.source}': {error}") from error


@dataclass
class _RowGroup:
    """Batches on their way into one row group."""

    prompts: list[pa.RecordBatch] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    bytes: int = 0

    def add(self, prompts: pa.RecordBatch, bad: list[Bad], size: int) -> None:
        self.prompts.append(prompts)
        self.bad += bad
        self.bytes += size

    def joined(self) -> tuple[pa.RecordBatch, list[Bad]]:
        return self.prompts[0] if len(self.prompts) == 1 else pa.concat_batches(self.prompts), self.bad


_Rows = Iterator[tuple[pa.RecordBatch, list[Bad], bool]]
"""PROMPT rows, bad rows, and whether a row group is full with them."""


def _rows(
    source: Source, shape: Shape, split: InputSplit, storage: Storage, limits: Limits, tally: Tally | None
) -> _Rows:
    if source.dataset is not None:
        yield from _committed_rows(source, shape, split, storage)
        return
    for file, batch in _first(source.limit, _pieces(source, shape, split, storage, limits)):
        quarantine_bad_text(batch, shape)
        quarantine_nulls(batch, shape)
        prompts = to_prompt(batch, shape, split.source, file)
        if tally is not None:
            tally.add(batch)
        bad = _placed(batch, file)
        for cut in _turns(batch, prompts, shape):
            yield cut, bad, batch.ends_row_group
            bad = []


def _turns(batch: RawBatch, prompts: pa.RecordBatch, shape: Shape) -> Iterator[pa.RecordBatch]:
    """The rows with the conversations that they were cut from, one a turn where the description says so."""
    splits_by_id = shape.split_key is None
    if batch.assembled is not None and batch.assembled.conversations.null_count < len(batch.assembled.conversations):
        groups = batch.assembled.conversations.take(batch.positions)
        prompts = with_conversations(prompts, groups, splits_by_id)
    if shape.rows == "turn":
        yield from by_turn(prompts, splits_by_id)
    else:
        yield prompts


def _placed(batch: RawBatch, file: str) -> list[Bad]:
    """The bad rows of a batch, by their positions, each with its file."""
    bad = sorted(batch.bad, key=_position)
    if batch.assembled is None:
        return [replace(row, file=file) for row in bad]
    places = ((row, *batch.assembled.place_of(row.position)) for row in bad)
    return [replace(row, file=called, position=position) for row, called, position in places]


def read_raw(
    source: Source, shape: RawRows, split: InputSplit, storage: Storage, limits: Limits
) -> Iterator[tuple[str, RawBatch]]:
    """The raw rows of a split of a source that is assembled, each batch with what its rows call their file.

    Args:
        source: that the split is of.
        shape: the columns that are read.
        split: what is read.
        storage: the recipe's options by scheme.
        limits: as of `read_split`.

    Raises:
        SourceError: as of `read_split`.
    """
    try:
        for file, batch in _first(source.limit, _pieces(source, shape, split, storage, limits)):
            quarantine_bad_text(batch, shape)
            yield file, batch
    except DataError as error:
        raise SourceError(f"source '{split.source}': {error}") from error


def _committed_rows(source: Source, shape: Shape, split: InputSplit, storage: Storage) -> _Rows:
    """The rows of a dataset, the first of them where the source has a limit."""
    left = source.limit
    for piece in split.pieces:
        for prompts in read_dataset(source.locate(piece.file.url, storage), piece, source, split.source):
            yield prompts.slice(0, left), [], True
            if left is not None:
                left -= len(prompts)
                if left <= 0:
                    return


_Batches = Iterator[tuple[str, RawBatch]]
"""Batches, each with what its rows call their file."""


def _pieces(source: Source, shape: Shape, split: InputSplit, storage: Storage, limits: Limits) -> _Batches:
    for piece in split.pieces:
        for batch in _read_piece(source, piece, shape, storage, limits):
            yield piece.file.called, batch


def _first(num_rows: int | None, batches: _Batches) -> _Batches:
    """The batches with the first rows, bad ones among them; all for None."""
    if num_rows is None:
        yield from batches
        return
    for file, batch in batches:
        places = batch.positions.to_numpy()
        of_all = np.concatenate([places, np.array([row.position for row in batch.bad], np.int64)])
        if len(of_all) >= num_rows:
            last = np.sort(of_all)[num_rows - 1]
            batch.keep(places <= last)
            batch.bad = [row for row in batch.bad if row.position <= last]
            yield file, batch
            return
        num_rows -= len(of_all)
        yield file, batch


def _read_piece(
    source: Source, piece: InputPiece, shape: Shape, storage: Storage, limits: Limits
) -> Iterator[RawBatch]:
    location = source.locate(piece.file.url, storage)
    try:
        yield from _batches(source, piece, shape, location, limits)
        location.check_unchanged(piece.file.pin)
    except FileNotFoundError as error:
        raise SourceError(f"{location} cannot be read: it was removed; run again when nobody writes there") from error
    except OSError as error:
        raise SourceError(f"{location} cannot be read to its end ({said(error)}); replace or remove it") from error


def _batches(source: Source, piece: InputPiece, shape: Shape, location: Location, limits: Limits) -> Iterator[RawBatch]:
    if shape.assemble is not None:
        return read_assembled(location, shape, piece, limits)
    kind = source.format_of(piece.file.relative)
    assert kind is not None, piece.file.relative
    if kind == "text":
        return read_text(location, shape, piece, limits, source.text_rows or "file")
    if kind == "warc":
        return read_warc(location, shape, piece, limits, source.html)
    return _READERS[kind](location, shape, piece, limits)


def _position(bad: Bad) -> int:
    return bad.position
