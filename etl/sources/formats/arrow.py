"""Arrow IPC: `.arrow`, `.feather` and `.ipc`, as files with a footer or as streams, as `datasets` writes them.

A file is one piece: where its batches end is only known by reading them. One record batch is held at a time, checked
whole before it is used, since a damaged one could point outside of its own memory.
"""

import io
import itertools
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa

from etl.errors import SourceError, decoding
from etl.sources import raw
from etl.sources.compressed import unpacked
from etl.sources.files import InputPiece
from etl.sources.formats.arrow_columns import ArrowColumns
from etl.sources.formats.endings import compression_of
from etl.sources.raw import RawBatch
from etl.sources.row_groups import Limits, tables, without_dictionaries
from etl.sources.spec import Shape
from etl.storage.location import Location

_MAGIC = b"ARROW1"
_HEAD_BYTES = 8
"""The magic and its padding."""
_REST_BYTES = 1 << 16


def read_arrow(location: Location, shape: Shape, piece: InputPiece, limits: Limits) -> Iterator[RawBatch]:
    """The batches of a file.

    Args:
        location: of the file.
        shape: which columns are read.
        piece: the whole file.
        limits: of a row, and of a record batch (as of a row group).

    Raises:
        SourceError: the file is damaged or cut short, lacks a required column or has it twice, or a column has another
            type.
    """
    with location.open(piece.file.pin) as stored:
        with decoding(str(location)):
            file = Ipc(unpacked(compression_of(location.name), location.url, stored))
            reader = pa.ipc.open_stream(file)
        columns = ArrowColumns.of(location, reader.schema, shape, piece)
        row = piece.file.first_row
        for number in itertools.count():
            place = f"{location}: record batch {number}"
            with decoding(place):
                batch = next(reader, None)
                if batch is not None:
                    batch.validate(full=True)
            if batch is None:
                break
            chosen = without_dictionaries(batch.select(columns.roots))
            for table in tables(place, iter([chosen]), raw.ROW_GROUP_BYTES, limits):
                found = columns.batch(table, pa.array(range(row, row + len(table)), pa.int64()), limits)
                found.ends_row_group = True
                yield found
                row += len(table)
        with decoding(str(location)):
            is_whole = file.is_whole()
        if not is_whole:
            raise SourceError(f"{location} is truncated after row {row}; replace or remove it")


class Ipc(io.RawIOBase):
    """The messages of an IPC file or stream.

    A file is a stream between its magic and a footer that ends in the magic again, so both are read as streams.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream
        self._head = stream.read(_HEAD_BYTES)
        self._is_file = self._head.startswith(_MAGIC)
        if self._is_file:
            self._head = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._stream.read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def is_whole(self) -> bool:
        """Whether a file ends as one does; of a stream nothing says so. To be asked when all batches were read."""
        last = b""
        while data := self._stream.read(_REST_BYTES):
            last = (last + data)[-len(_MAGIC) :]
        return not self._is_file or last == _MAGIC
