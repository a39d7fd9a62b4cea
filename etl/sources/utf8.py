"""Text in another encoding of Unicode, known by how it begins: UTF-16 and UTF-32, with a byte-order mark or without."""

from typing import Final

from etl.errors import SourceError
from etl.storage.location import Location

_UTF32_MARKS: Final = (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_UTF32_ASCII: Final = ((False, True, True, True), (True, True, True, False))
_UTF16_ASCII: Final = ((False, True, False, True), (True, False, True, False))
"""Which of the first four bytes are zero where text begins with ASCII."""


def check_utf8(location: Location, head: bytes) -> None:
    """Refuse a file of text that is UTF-16 or UTF-32.

    Args:
        location: of the file.
        head: how it begins, a few bytes at least.

    Raises:
        SourceError: it is.
    """
    if (encoding := _wide_encoding(head)) is not None:
        raise SourceError(f"{location} is {encoding}; convert it to UTF-8, for example with iconv")


def _wide_encoding(head: bytes) -> str | None:
    zeros = tuple(byte == 0 for byte in head[:4])
    if head.startswith(_UTF32_MARKS) or zeros in _UTF32_ASCII:
        return "UTF-32"
    if (head.startswith(_UTF16_MARKS) and b"\0" in head) or zeros in _UTF16_ASCII:
        return "UTF-16"
    return None
