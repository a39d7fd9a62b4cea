"""What an HTTP response sent as text: transfer and content encodings undone, the character set found, HTML read.

As browsers do, a byte-order mark decides before the header, that before `<meta>`, and that before a guess by the bytes;
one under which the bytes are no text is passed over. Text is taken out of HTML by resiliparse (20 MB a CPU-second) or
trafilatura (1 to 2 MB).
"""

import importlib.metadata
import itertools
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Final

from etl.sources.raw import Lost
from etl.sources.row_groups import Limits
from etl.sources.spec import HtmlText

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_DEPTH: Final = 2000
"""Elements of a page that may stand inside one another: what resiliparse does grows with the square of it."""
_BOMS: Final = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_CHUNK: Final = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_CHARSET: Final = re.compile(r"charset\s*=\s*[\"']?([^\s\"';,]+)", re.IGNORECASE)
_TAG: Final = re.compile(
    # Neither what has no end tag nor what often goes without one.
    r"<(/?)(?!(?:area|base|br|col|colgroup|dd|dt|embed|hr|img|input|li|link|meta|option|p|param|source|tbody|td|tfoot|th"
    r"|thead|tr|track|wbr)\b)[a-z]",
    re.IGNORECASE,
)


def packages_for(html: HtmlText) -> tuple[str, ...]:
    """What reads WARC files and makes text of their pages, as it is imported."""
    return ("fastwarc", "resiliparse", *(["trafilatura"] if html == "trafilatura" else []))


def versions(html: HtmlText) -> dict[str, str]:
    """The versions of the packages that decide what the text of a page is."""
    return {name: importlib.metadata.version(name) for name in packages_for(html)}


def payload(body: bytes, header: Callable[[str], str | None], is_truncated: bool, limits: Limits) -> bytes | Lost:
    """The body of a response as it was before it was sent; what a crawler has undone already is left as it is.

    Args:
        body: behind the headers.
        header: value of one.
        is_truncated: whether the crawler says that it kept the beginning alone.
        limits: of what is unpacked; one byte more is given of what is longer.
    """
    if "chunked" in (header("Transfer-Encoding") or "").lower():
        joined = _dechunked(body, is_truncated)
        if joined is None:
            return Lost("cut_short", "its chunks do not fit together")
        body = joined
    names = [name.strip().lower() for name in (header("Content-Encoding") or "").split(",")]
    for name in reversed(names):
        try:
            found = _unpacked(name, body, limits.row_bytes + 1, is_truncated)
        except (zlib.error, zstd.ZstdError, EOFError, _brotli_error()) as error:
            return Lost("undecodable", f"content encoding '{name}': {error}")
        if found is None:
            return Lost("undecodable", f"content encoding '{name}' is unknown")
        body = found
    return body


def _dechunked(body: bytes, is_truncated: bool) -> bytes | None:
    """The chunks of a body joined; None where they do not fit together."""
    chunks: list[bytes] = []
    at = 0
    while (head := _CHUNK.match(body, at)) is not None:
        size = int(head[1], 16)
        if size == 0:
            return b"".join(chunks)
        chunks.append(body[head.end() : head.end() + size])
        at = head.end() + size
        at += 2 if body[at : at + 2] == b"\r\n" else int(body[at : at + 1] == b"\n")
    if not chunks:
        return body
    return b"".join(chunks) if is_truncated else None


def _unpacked(name: str, data: bytes, max_bytes: int, is_truncated: bool) -> bytes | None:
    """Data as it was before a content encoding; None where that is unknown.

    Raises:
        EOFError: it is cut short.
    """
    if name in ("", "identity", "none", "utf-8"):
        return data
    if name in ("gzip", "x-gzip"):
        if not data.startswith(b"\x1f\x8b"):
            return data
        unpacker: Any = zlib.decompressobj(16 + zlib.MAX_WBITS)
        found: bytes = unpacker.decompress(data, max_bytes)
    elif name == "deflate":
        unpacker = zlib.decompressobj(zlib.MAX_WBITS if data[:1] == b"\x78" else -zlib.MAX_WBITS)
        found = unpacker.decompress(data, max_bytes)
    elif name == "zstd":
        unpacker = zstd.ZstdDecompressor()
        found = unpacker.decompress(data, max_bytes)
    elif name == "br":
        import brotli

        unpacker = brotli.Decompressor()
        found = unpacker.process(data, output_buffer_limit=max_bytes)
        is_truncated = is_truncated or len(found) >= max_bytes or unpacker.is_finished()
        if not is_truncated:
            raise EOFError("it is cut short")
        return found
    else:
        return None
    if not (is_truncated or unpacker.eof or len(found) >= max_bytes):
        raise EOFError("it is cut short")
    return found


def _brotli_error() -> type[Exception]:
    import brotli

    return brotli.error


def decoded(data: bytes, content_type: str, is_html: bool) -> str | Lost:
    """The text of some bytes.

    Args:
        data: of a page.
        content_type: with the character set, where it is told.
        is_html: whether `<meta>` may tell it, too.
    """
    tried = []
    for name in _charsets(data, content_type, is_html):
        try:
            return data.decode(name)
        except (UnicodeDecodeError, LookupError):
            tried.append(name)
    return Lost("undecodable", f"it is no text under the character sets {', '.join(dict.fromkeys(tried))}")


def _charsets(data: bytes, content_type: str, is_html: bool) -> Iterator[str]:
    """Names of character sets, the likeliest first."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    yield from (name for mark, name in _BOMS if data.startswith(mark))
    if (told := _CHARSET.search(content_type)) is not None:
        known = map_encoding_to_html5(told[1], fallback_utf8=False)
        yield from [known] if known is not None else []
    elif not is_html:
        yield "utf-8"
    for from_meta in (True, False) if is_html else (False,):
        guess = detect_encoding(data, from_html_meta=from_meta)
        yield from [guess] if guess is not None else []


def to_text(html: HtmlText) -> Callable[[str], str | Lost]:
    """What makes text of HTML."""
    if html == "raw":
        return _as_it_is
    return _by_resiliparse if html == "resiliparse" else _by_trafilatura


def _as_it_is(html: str) -> str | Lost:
    return html


def _by_resiliparse(html: str) -> str | Lost:
    from resiliparse.extract.html2text import extract_plain_text

    signs = (-1 if end else 1 for end in _TAG.findall(html))
    depth = max(itertools.accumulate(signs), default=0)
    if depth > MAX_DEPTH:
        return Lost("too_deep", f"about {depth:,} elements stand inside one another; MAX_DEPTH is {MAX_DEPTH:,}")
    found: str = extract_plain_text(html, main_content=True, alt_texts=False)
    return found


def _by_trafilatura(html: str) -> str | Lost:
    import trafilatura

    return trafilatura.extract(html, include_comments=False) or ""
