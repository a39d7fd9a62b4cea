"""WARC and WET: each page of a crawl is a row, with the columns `COLUMNS`; other records are left out and counted.

A page is a conversion of text (WET), or a response with status 200 or a resource from the web whose type is HTML or
plain text. fastwarc finds the records (3 GB a CPU-second unpacked); etl/sources/formats/pages.py makes text of them. A
file is one piece, packed or not, read from its beginning; one record is held at a time. A file that is cut inside a
record, or has something else between two, is a SourceError.
"""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Final

import pyarrow as pa

from etl.errors import SourceError, said
from etl.sources import raw
from etl.sources.compressed import unpacked
from etl.sources.files import InputPiece
from etl.sources.formats.arrow_columns import ArrowColumns
from etl.sources.formats.endings import compression_of
from etl.sources.formats.pages import decoded, payload, to_text
from etl.sources.raw import Bad, Lost, RawBatch, too_long
from etl.sources.row_groups import Limits
from etl.sources.spec import HtmlText, Shape
from etl.storage.location import Location

COLUMNS: Final = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("content_type", pa.string()),
        ("status", pa.int64()),
        ("language", pa.string()),
        ("path", pa.string()),
    ]
)
_PAGES: Final = ("response", "resource", "conversion")
_HTML: Final = ("text/html", "application/xhtml+xml")
_TYPES: Final = ("application", "audio", "font", "image", "message", "model", "multipart", "text", "video")
_HEAD_BYTES: Final = 1 << 20
"""Of HTTP headers, beyond what a row may have."""
_BATCH_BYTES: Final = 1 << 20
_ANY_LENGTH: Final = Limits(row_bytes=1 << 62)
"""Of rows whose length has been looked at."""


@dataclass(frozen=True)
class Page:
    """A record that is a row, or would be one."""

    position: int
    """Byte at which the record begins, unpacked."""
    row: dict[str, Any]
    """`COLUMNS` without the path; `text` is None where it is lost."""
    lost: Lost | None
    block: bytes
    """What stands in the record; of one that is too long its beginning."""


def read_warc(
    location: Location, shape: Shape, piece: InputPiece, limits: Limits, html: HtmlText
) -> Iterator[RawBatch]:
    """The batches of a file.

    Args:
        location: of the file.
        shape: which columns are read.
        piece: the whole file.
        limits: of a page, as it was sent and before its text is taken out of it.
        html: what becomes of HTML.

    Raises:
        SourceError: the file is no WARC, is damaged or cut short, or a column is not there.
    """
    held = _Held(ArrowColumns.of(location, COLUMNS, shape, piece))
    written = 0
    with location.open(piece.file.pin) as stored:
        stream = unpacked(compression_of(location.name), location.url, stored)
        for page in pages(location, stream, limits, html, held.left_out):
            held.add(page)
            if held.bytes >= _BATCH_BYTES:
                written += held.bytes
                batch = held.taken(piece)
                if written >= raw.ROW_GROUP_BYTES:
                    batch.ends_row_group, written = True, 0
                yield batch
    yield held.taken(piece)


class _Forward:
    """A stream that knows where it is, as fastwarc wants it to; what unpacks a file does not."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._place = 0

    def read(self, num_bytes: int = -1) -> bytes:
        """So many bytes, fewer at the end alone."""
        data = self._stream.read(num_bytes)
        self._place += len(data)
        return data

    def tell(self) -> int:
        """Bytes that have been read."""
        return self._place


@dataclass
class _Held:
    """Pages on their way into a batch."""

    columns: ArrowColumns
    pages: list[Page] = field(default_factory=list)
    bytes: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, page: Page) -> None:
        self.pages.append(page)
        self.bytes += len(page.row["text"] or "") + (len(page.block) if page.lost else 0)

    def taken(self, piece: InputPiece) -> RawBatch:
        """A batch of the pages that are held; none are then."""
        good = [page for page in self.pages if page.lost is None]
        rows = pa.Table.from_pylist([page.row | {"path": piece.file.called} for page in good], schema=COLUMNS)
        positions = pa.array([page.position for page in good], pa.int64())
        batch = self.columns.batch(rows.select(self.columns.roots), positions, _ANY_LENGTH)
        name = self.columns.shape.example_id or ""
        for page in self.pages:
            if page.lost is not None:
                lost = page.lost
                named = page.row.get(name)
                block = page.block[: raw.RAW_BYTES]
                batch.bad.append(Bad(page.position, lost.reason, lost.detail, block, named and str(named)))
        batch.left_out.update(self.left_out)
        self.pages, self.bytes = [], 0
        self.left_out.clear()
        return batch


def pages(
    location: Location, stream: IO[bytes], limits: Limits, html: HtmlText, left_out: Counter[str]
) -> Iterator[Page]:
    """The pages of a file in order.

    Args:
        location: of the file, for errors.
        stream: the file, unpacked.
        limits: of a page.
        html: what becomes of HTML.
        left_out: gets the other records, by kind.

    Raises:
        SourceError: the file is no WARC, is damaged or cut short.
    """
    from fastwarc.warc import ArchiveIterator

    source: Any = _Forward(stream)
    text_of = to_text(html)
    try:
        records = ArchiveIterator(source, parse_http=False, auto_decode="none", stream_detect=False)
        for record in records:
            found = _page(location, record, limits, text_of)
            if isinstance(found, Page):
                yield found
            else:
                left_out[found] += 1
    except OSError as error:
        raise SourceError(f"{location} cannot be read to its end ({said(error)}); replace or remove it") from error


def _page(location: Location, record: Any, limits: Limits, text_of: Callable[[str], str | Lost]) -> Page | str:
    """The page in a record, or why it is none."""
    kind = str(record.record_type)
    block = _block(location, record, limits if kind in _PAGES else Limits(row_bytes=0))
    if kind not in _PAGES:
        return kind
    headers = record.headers
    url = (headers.get("WARC-Target-URI") or "").strip("<>")
    row = {
        "id": headers.get("WARC-Record-ID"),
        "text": None,
        "url": url,
        "date": headers.get("WARC-Date"),
        "content_type": headers.get("Content-Type") or "",
        "status": None,
        "language": headers.get("WARC-Identified-Content-Language"),
    }
    body: bytes | Lost = block
    if row["content_type"].lower().startswith("application/http"):
        body = _sent(block, row, headers, limits)
        if row["status"] not in (None, 200):
            return f"{kind} with HTTP status {row['status']}"
    elif kind == "resource" and not url.startswith(("http:", "https:", "ftp:")):
        return "resource that is not from the web"
    media = row["content_type"].partition(";")[0].strip().lower()
    if not isinstance(body, Lost) and media not in (*_HTML, "text/plain"):
        major = media.partition("/")[0]
        return f"{kind} of type {major}" if major in _TYPES else f"{kind} without a known type"
    if isinstance(body, bytes) and len(body) > limits.row_bytes:
        body = too_long(record.content_length, limits)
    text = body if isinstance(body, Lost) else decoded(body, row["content_type"], media in _HTML)
    if isinstance(text, str) and media in _HTML:
        text = text_of(text)
    lost = text if isinstance(text, Lost) else None
    return Page(record.stream_pos, row | {"text": None if lost else text}, lost, block)


def _block(location: Location, record: Any, limits: Limits) -> bytes:
    """What stands in a record, no more of it than tells that it is too long.

    Raises:
        SourceError: the record is cut short, or does not say how long it is.
    """
    wanted = limits.row_bytes + _HEAD_BYTES if limits.row_bytes else 0
    block: bytes = record.reader.read(wanted) if wanted else b""
    num_bytes = len(block) + record.reader.consume()
    if record.headers.get("Content-Length") is None or num_bytes != record.content_length:
        raise SourceError(f"{location} is truncated in the record at byte {record.stream_pos:,}; replace or remove it")
    return block


def _sent(block: bytes, row: dict[str, Any], headers: Any, limits: Limits) -> bytes | Lost:
    """What an HTTP response sent, its status and type put into the row."""
    from fastwarc.warc import HeaderMap

    http = HeaderMap("utf-8")
    start = http.parse(io.BytesIO(block), has_status_line=True)
    row["status"] = http.status_code
    row["content_type"] = http.get("Content-Type") or headers.get("WARC-Identified-Payload-Type") or ""
    if http.status_code is None:
        return Lost("invalid_http", "the record has no HTTP status line")
    return payload(block[start:], http.get, headers.get("WARC-Truncated") is not None, limits)
