"""Plain text: a file, a line or a block of lines between blank ones is a row, with the columns `id`, `text` and `path`.

Lines end at LF or CRLF (U+2028 and a lone CR are text). A blank line has white space alone: it divides blocks and is no
row. A byte-order mark is no text. A block belongs to the piece in which the blank line before it begins, so pieces are
read alone. The search costs about 2 ns a byte; held are one block of the file and one row, of a row that is too long no
more than `Limits.row_bytes`. `id` is file and position, the byte at which the row begins.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I32, I64, U8
from etl.jit import njit
from etl.sources import raw
from etl.sources.compressed import unpacked
from etl.sources.files import InputPiece
from etl.sources.formats.arrow_columns import ArrowColumns
from etl.sources.formats.endings import compression_of
from etl.sources.raw import Bad, Lost, RawBatch, too_long
from etl.sources.row_groups import Limits
from etl.sources.spec import Shape, TextRows
from etl.sources.utf8 import check_utf8
from etl.storage.location import Location

_COLUMNS: Final = pa.schema([("id", pa.string()), ("text", pa.string()), ("path", pa.string())])
_BLOCK_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_TAIL_BYTES = 1 << 16
"""How much is read at once behind the end of a piece."""
_NO_END = 1 << 62
_CHECKED: Final = Limits(row_bytes=_NO_END)
"""Of rows whose length has been looked at."""


def read_text(
    location: Location, shape: Shape, piece: InputPiece, limits: Limits, rows: TextRows
) -> Iterator[RawBatch]:
    """The batches of a piece.

    Args:
        location: of the file.
        shape: which columns are read.
        piece: the bytes.
        limits: of a row.
        rows: what a row is.

    Raises:
        SourceError: the file is UTF-16 in lines, or a column is not there.
        OSError: it cannot be read to its end.
    """
    columns = ArrowColumns.of(location, _COLUMNS, shape, piece)
    with location.open(piece.file.pin) as stored:
        stream = unpacked(compression_of(location.name), location.url, stored)
        if rows == "file":
            yield _whole_file(stream, columns, piece, limits)
        else:
            yield from _cut_file(location, stream, columns, piece, limits, rows)


def _whole_file(stream: IO[bytes], columns: ArrowColumns, piece: InputPiece, limits: Limits) -> RawBatch:
    """One row, of a file that is too long no more than its beginning."""
    data = stream.read(len(_BOM) + limits.row_bytes + 1)
    text = data.removeprefix(_BOM)
    lost = None
    if text.startswith(_UTF16_BOMS):
        lost = Lost("utf16", "the file is UTF-16; convert it to UTF-8, for example with iconv")
    elif len(text) > limits.row_bytes and compression_of(piece.file.relative) is None:
        lost = too_long(piece.file.bytes, limits)
    elif len(text) > limits.row_bytes:
        lost = Lost("too_long", f"unpacked more than max_row_bytes={limits.row_bytes}")
    elif (place := text.find(b"\0")) >= 0:
        lost = _has_nul(place)
    found = _Found(np.zeros(1, np.int64), pa.array([text], pa.binary()), {} if lost is None else {0: lost})
    return _batch(found, columns, piece)


def _cut_file(
    location: Location,
    stream: IO[bytes],
    columns: ArrowColumns,
    piece: InputPiece,
    limits: Limits,
    rows: Literal["line", "paragraph"],
) -> Iterator[RawBatch]:
    held = 0
    for found in _Cutter(stream, piece, limits, rows == "paragraph").rows(location):
        held += found.texts.nbytes
        batch = _batch(found, columns, piece)
        if held >= raw.ROW_GROUP_BYTES:
            batch.ends_row_group, held = True, 0
        yield batch


@dataclass(frozen=True)
class _Found:
    """Some rows: where they begin, their bytes, and those that are bad by number."""

    positions: I64
    texts: pa.Array
    """binary [rows]; of a row that is too long its start."""
    lost: dict[int, Lost]


def _batch(found: _Found, columns: ArrowColumns, piece: InputPiece) -> RawBatch:
    good = np.ones(len(found.texts), bool)
    good[list(found.lost)] = False
    kept = pa.array(good)
    positions = pa.array(found.positions).filter(kept)
    paths = pa.repeat(pa.scalar(piece.file.called), len(positions))
    ids = pc.binary_join_element_wise(paths, positions.cast(pa.string()), ":")
    # Whether it is UTF-8 is looked at where all formats are read.
    texts = found.texts.filter(kept).view(pa.string())
    table = pa.table({"id": ids, "text": texts, "path": paths}).select(columns.roots)
    batch = columns.batch(table if columns.roots else _no_columns(len(positions)), positions, _CHECKED)
    for number, lost in found.lost.items():
        position = int(found.positions[number])
        named = {"id": f"{piece.file.called}:{position}", "path": piece.file.called}.get(columns.shape.example_id or "")
        batch.bad.append(Bad(position, lost.reason, lost.detail, found.texts[number].as_py()[: raw.RAW_BYTES], named))
    return batch


def _no_columns(num_rows: int) -> pa.Table:
    return pa.table({"": pa.nulls(num_rows)}).select([])


def _has_nul(place: int) -> Lost:
    return Lost("nul", f"byte {place:,} of the row is 0, as in no text; the file is binary, or UTF-16")


class _Cutter:
    """The rows that belong to a piece, in order."""

    def __init__(self, stream: IO[bytes], piece: InputPiece, limits: Limits, by_paragraph: bool) -> None:
        self._stream = stream
        self._start = piece.start
        self._end = _NO_END if piece.end >= piece.file.bytes else piece.end
        self._max_bytes = limits.row_bytes
        self._limits = limits
        self._by_paragraph = by_paragraph
        self._held = bytearray()
        """What has been read of the row or line that is open, no more than tells that it is too long."""

    def rows(self, location: Location) -> Iterator[_Found]:
        """The rows, about a megabyte at a time.

        Raises:
            SourceError: the file is UTF-16.
        """
        offset = max(0, self._start - 1)
        if offset:
            self._stream.seek(offset)
        state = np.array([self._start > 0, offset, 0, self._start == 0, -1, 0, -1, 0, 0], np.int64)
        while not state[_DONE]:
            block = self._stream.read(min(_BLOCK_BYTES, max(_TAIL_BYTES, self._end - offset)))
            if offset == 0:
                check_utf8(location, block)
                if block.startswith(_BOM):
                    block, offset = block[len(_BOM) :], len(_BOM)
                    state[_LINE] = offset
                    # The first line begins where the file does, though its text comes after the mark.
                    self._end = max(self._end, offset + 1) if self._start == 0 else self._end
            is_last = not block
            # A line end of our own ends the last line, a blank line the last block.
            found = self._cut(block or b"\n\n", offset, state)
            if len(found.texts):
                yield found
            offset += len(block)
            if is_last or (offset >= self._end and self._is_of_others(state)):
                return

    def _is_of_others(self, state: I64) -> bool:
        """Whether what is open at the end of the piece is of another."""
        is_inside = self._by_paragraph and state[_ROW] < 0 and state[_HAS_TEXT] and not state[_MAY_BEGIN]
        return bool(state[_SKIPS] or is_inside)

    def _cut(self, block: bytes, offset: int, state: I64) -> _Found:
        data = np.frombuffer(block, np.uint8)
        most = len(data) // 2 + 2
        starts, ends, nuls = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.int64)
        count = _find(data, offset, self._end, self._by_paragraph, state, starts, ends, nuls)
        starts, ends, nuls = starts[:count], ends[:count], nuls[:count]
        spans = int(count > 0 and starts[0] < offset)
        first = self._first(block, offset, int(starts[0]), int(ends[0])) if spans else b""
        texts = _copied(data, starts[spans:] - offset, ends[spans:] - offset)
        if spans:
            texts = pa.concat_arrays([pa.array([first], pa.binary()), texts])
        lost = {int(row): _has_nul(int(nuls[row] - starts[row])) for row in np.flatnonzero(nuls >= 0)}
        sizes = ends - starts
        lost |= {int(row): too_long(int(sizes[row]), self._limits) for row in np.flatnonzero(sizes > self._max_bytes)}
        self._hold(block, offset, int(state[_ROW] if state[_ROW] >= 0 else state[_LINE]))
        return _Found(starts, texts, lost)

    def _first(self, block: bytes, offset: int, start: int, end: int) -> bytes:
        """The row that begins in an earlier block."""
        size = min(end - start, self._max_bytes)
        return bytes(self._held[:size]) + block[: max(0, min(end - offset, size - len(self._held)))]

    def _hold(self, block: bytes, offset: int, start: int) -> None:
        """Hold what is open at the end of a block and begins at `start`."""
        if start >= offset:
            self._held = bytearray(block[start - offset :])
        elif len(self._held) <= self._max_bytes:
            self._held += block
        del self._held[self._max_bytes + 1 :]


def _copied(data: U8, starts: I64, ends: I64) -> pa.Array:
    """Stretches of a block: binary [rows]."""
    offsets = np.zeros(len(starts) + 1, np.int32)
    np.cumsum(ends - starts, out=offsets[1:])
    out = np.empty(offsets[-1], np.uint8)
    _copy(data, starts, offsets, out)
    return pa.Array.from_buffers(pa.binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(out)])


@njit
def _copy(data: U8, starts: I64, offsets: I32, out: U8) -> None:
    for row in range(len(starts)):
        for i in range(offsets[row + 1] - offsets[row]):
            out[offsets[row] + i] = data[starts[row] + i]


_SKIPS, _LINE, _HAS_TEXT, _MAY_BEGIN, _ROW, _ROW_END, _NUL, _LAST, _DONE = range(9)
"""What is known between two blocks: whether a line that began before the piece is passed over, where the line begins,
whether it has more than white space, whether a blank line of the piece stands before it, where the open block of lines
begins or -1 and where its last line ends, where the row has a zero byte or -1, the last byte, whether all is found."""


@njit
def _find(data: U8, offset: int, end: int, by_paragraph: bool, state: I64, starts: I64, ends: I64, nuls: I64) -> int:
    """Find the rows that end in a block of bytes.

    Args:
        data: the block.
        offset: of the block in the file.
        end: of the piece; what begins there or later is of another piece.
        by_paragraph: whether blank lines end rows, and not each line.
        state: of the search; changed.
        starts: where each row begins, in the file; filled.
        ends: where it ends, without its line end; filled.
        nuls: where it has a zero byte, -1 where it has none; filled.

    Returns:
        the number of rows.
    """
    skips, line, has_text, may_begin = state[0], state[1], state[2], state[3]
    row, row_end, nul, last, done = state[4], state[5], state[6], state[7], state[8]
    count = 0
    for i in range(len(data)):
        c = data[i]
        if c != 10:
            if c == 0 and nul < 0:
                nul = offset + i
            if c > 32 or c < 9 or (c > 13 and c < 32):
                has_text = 1
            last = c
            continue
        at = offset + i
        line_end = at - 1 if last == 13 else at
        last = c
        if skips:
            skips = 0
        elif not by_paragraph:
            if has_text:
                starts[count], ends[count], nuls[count] = line, line_end, nul
                count += 1
        elif has_text:
            if row < 0 and may_begin:
                row, may_begin = line, 0
            row_end = line_end
        else:
            if row >= 0:
                starts[count], ends[count], nuls[count] = row, row_end, nul
                count += 1
                row = -1
            may_begin = 1
            if line >= end:
                done = 1
        if row < 0:
            nul = -1
        line, has_text = at + 1, 0
        if line >= end and row < 0 and not (by_paragraph and may_begin):
            done = 1
        if done:
            break
    state[0], state[1], state[2], state[3] = skips, line, has_text, may_begin
    state[4], state[5], state[6], state[7], state[8] = row, row_end, nul, last, done
    return count
