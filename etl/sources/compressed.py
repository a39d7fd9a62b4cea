"""Compressed files as the bytes that they hold: .gz, .zst, .bz2 and .xz, of one member or many, read to the very end.

gzip calls the pieces that may follow one another members, zstd frames, and the others streams; here all are members. A
file is whole if it is at least one member, each of them ends, and nothing else follows but the zeros that gzip and xz
allow between and after members. Everything else is a SourceError: a cut anywhere but between two members, damage that
a checksum shows (zstd has one only where it was asked for), an empty file. A cut between two members cannot be seen.

The decompressors are those of the standard library, zstd's by its backport, which bound what one call gives. So
memory is that of a member's window and a few blocks: at most 2 GiB for zstd (--long=31, --ultra), 1.5 GiB for xz.
"""

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol, cast

from etl.errors import SourceError, decoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PACKED_BYTES: Final = 1 << 16
_UNPACKED_BYTES: Final = 1 << 20
_ZSTD_OPTIONS: Final[Mapping[int, int]] = {zstd.DecompressionParameter.window_log_max: 31}


class _Decompressor(Protocol):
    """Of one member, as bz2, lzma and zstd have it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor as a `_Decompressor`; it compares checksum and length at the end of the member."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        text = self._inflate.decompress(self._inflate.unconsumed_tail + data, max_length)
        self.needs_input = len(text) < max_length and not self._inflate.unconsumed_tail
        return text


@dataclass(frozen=True)
class _Format:
    begin: Callable[[], _Decompressor]
    padding_unit: int = 0
    """Zeros may follow a member in multiples of this number; 0 where none may."""


_FORMATS: Final[Mapping[str, _Format]] = {
    "gzip": _Format(_Gzip, padding_unit=1),
    "zstd": _Format(lambda: zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)),
    "bz2": _Format(bz2.BZ2Decompressor),
    "xz": _Format(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), padding_unit=4),
}


def unpacked(compression: str | None, url: str, stored: IO[bytes]) -> IO[bytes]:
    """The bytes that a file holds: those of its members, or those stored where there is no compression.

    Args:
        compression: as fsspec calls it, gzip, zstd, bz2 or xz.
        url: of the file, for errors.
        stored: the file, at its beginning.

    Raises:
        SourceError: while the result is read, if the file is damaged, cut inside a member, or empty.
    """
    if compression is None:
        return stored
    return io.BufferedReader(_Members(url, stored, _FORMATS[compression]), _UNPACKED_BYTES)


class _Members(io.RawIOBase):
    def __init__(self, url: str, stored: IO[bytes], form: _Format) -> None:
        super().__init__()
        self._url = url
        self._stored = stored
        self._format = form
        self._packed = b""
        self._member = form.begin()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = cast("memoryview[int]", buffer)
        while not self._member.eof or self._begin_next():
            data = self._decompress(len(view))
            if data:
                view[: len(data)] = data
                return len(data)
        return 0

    def _decompress(self, max_length: int) -> bytes:
        """Up to so many bytes of the member; none where more input is needed for any."""
        packed = b""
        if self._member.needs_input:
            packed = self._packed or self._stored.read(_PACKED_BYTES)
            self._packed = b""
            if not packed:
                raise self._not_whole("it is truncated or empty")
        with decoding(self._url):
            return self._member.decompress(packed, max_length)

    def _begin_next(self) -> bool:
        """Begin the member after the one that has ended; False at the end of the file."""
        unit = self._format.padding_unit
        padding = 0
        self._packed = self._member.unused_data or self._stored.read(_PACKED_BYTES)
        while unit and self._packed:
            rest = self._packed.lstrip(b"\0")
            padding += len(self._packed) - len(rest)
            self._packed = rest or self._stored.read(_PACKED_BYTES)
            if rest:
                break
        if padding and padding % unit:
            raise self._not_whole(f"{padding} zeros follow a stream, which is not a multiple of {unit}")
        if self._packed:
            self._member = self._format.begin()
        return bool(self._packed)

    def _not_whole(self, reason: str) -> SourceError:
        return SourceError(f"{self._url} cannot be read to its end ({reason}); replace or remove it")
