"""JSON that is not one object a line: an array of objects, and objects that are printed over several lines.

The values of the array, or those that stand one behind the other, are found by their brackets and then read as lines
are, with the byte offset of each as its position. So nothing but one block and one value is held, whatever the file's
size. The search costs about 1 ns a byte; a file is one piece.
"""

import itertools
from collections.abc import Iterator
from io import BufferedReader
from typing import IO, Final, cast

import numpy as np
import orjson

from etl.arrays import I64, U8
from etl.errors import SourceError
from etl.jit import njit
from etl.sources.formats.endings import is_json_document

_HEAD_BYTES: Final = 1 << 16
"""How much of a file shows how it is written."""
_BLOCK_BYTES: Final = 1 << 20
_MOST_VALUES: Final = _BLOCK_BYTES // 2 + 1
"""That end in a block: each has a byte, and one that divides it from the next, or two brackets."""

Value = tuple[int, bytes, int]
"""Byte offset, the text of the value (of one that is too long its start), and its length."""


def is_lines(head: bytes, is_document: bool = False) -> bool:
    """Whether a file that begins so has one value a line.

    An array holds the rows where it is empty or its first value is an object, and where it goes on in the next line or
    nothing follows it. An object goes on in the next line where the first line ends in a bracket or a comma and the
    next begins with a key. Where CR alone ends lines, values follow one another. All else is lines, of which the first
    may be a bad one.

    Args:
        head: of the file.
        is_document: whether its name says that it is one JSON text, so that an array whose first line is broken is one.
    """
    head = head.removeprefix(b"\xef\xbb\xbf").strip()
    if b"\r" in head and b"\n" not in head:
        return not head.startswith((b"{", b"["))
    lines = (line.strip() for line in head.split(b"\n"))
    first, second = itertools.islice(itertools.chain((line for line in lines if line), (b"", b"")), 2)
    if first.startswith(b"["):
        if first[1:].strip() == b"]" and not second:
            return False
        if first[1:].lstrip()[:1] not in (b"", b"{"):
            return True
        if _is_json(first):
            return second.startswith((b"{", b"["))
        is_open = not second or first.endswith((b"{", b"[", b",")) or second.startswith((b",", b"]"))
        return not (is_open or is_document)
    if not first.startswith(b"{") or _is_json(first):
        return True
    return not (first.endswith(b"[") or (first.endswith((b"{", b",")) and second.startswith((b'"', b"}"))))


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def has_lines(stream: IO[bytes], name: str) -> bool:
    """Whether a file has one value a line, by its name and what lies ahead at its beginning, which stays to be read."""
    head = cast(BufferedReader, stream).peek(_HEAD_BYTES)[:_HEAD_BYTES]
    whole_lines = head if len(head) < _HEAD_BYTES else head[: head.rfind(b"\n") + 1] or head
    return is_lines(whole_lines, is_document=is_json_document(name))


def values(place: str, stream: IO[bytes], max_bytes: int) -> Iterator[list[Value]]:
    """The values of an array, or those that follow one another, some of them at a time.

    Args:
        place: of the file, for errors.
        stream: from the file's beginning.
        max_bytes: length of a value above which only its start is held.

    Raises:
        SourceError: the file ends inside a value or an array, or goes on behind its array.
    """
    state = np.zeros(_STATE, np.int64)
    state[_START] = -1
    starts, ends = np.empty(_MOST_VALUES, np.int64), np.empty(_MOST_VALUES, np.int64)
    offset, pending = 0, b""
    while block := stream.read(_BLOCK_BYTES):
        if offset == 0 and block.startswith(b"\xef\xbb\xbf"):
            block = b"   " + block[3:]
        data = np.frombuffer(block, np.uint8)
        count = _find(data, offset, state, starts, ends)
        if count < 0:
            raise SourceError(f"{place} continues after the end of its array, at byte {offset - count - 1:,}")
        found: list[Value] = []
        for start, end in zip(starts[:count].tolist(), ends[:count].tolist(), strict=True):
            text = pending + block[: end - offset] if start < offset else block[start - offset : end - offset]
            pending = b""
            found.append((start, text[: max_bytes + 1], end - start))
        begun = int(state[_START])
        if begun >= 0 and len(pending) <= max_bytes:
            pending += block[max(0, begun - offset) :]
        offset += len(block)
        yield found
    if state[_START] >= 0 or state[_DEPTH] > 0:
        if state[_DEPTH] == 0:
            yield [(int(state[_START]), pending, offset - int(state[_START]))]
        else:
            raise SourceError(f"{place} is truncated: it ends inside a value or an array; replace or remove it")


_DEPTH, _IN_TEXT, _ESCAPED, _START, _BASE, _SEEN, _CLOSED, _STATE = range(8)
"""What is known between two blocks: open brackets, whether text is open and a backslash stands before, where the open
value begins or -1, the depth at which values stand, whether anything has been seen, whether the array is closed."""


@njit
def _find(data: U8, offset: int, state: I64, starts: I64, ends: I64) -> int:
    """Find the values that end in a block.

    Args:
        data: the block.
        offset: of the block in the file.
        state: of the search; changed.
        starts: where each value begins, in the file; filled.
        ends: where it ends; filled.

    Returns:
        the number of values; -1 - i where byte i of the block follows the end of the array.
    """
    depth, in_text, escaped, start = state[0], state[1], state[2], state[3]
    base, seen, closed = state[4], state[5], state[6]
    count = 0
    for i in range(len(data)):
        c = data[i]
        if in_text:
            if escaped:
                escaped = 0
            elif c == 92:
                escaped = 1
            elif c == 34:
                in_text = 0
            continue
        if c == 32 or c == 9 or c == 10 or c == 13 or (c == 44 and depth == base):
            if start >= 0 and depth == base:
                starts[count], ends[count] = start, offset + i
                count += 1
                start = -1
            continue
        if closed:
            return -1 - i
        if not seen:
            seen = 1
            if c == 91:
                base, depth = 1, 1
                continue
        if c == 93 and depth == base and base == 1:
            if start >= 0:
                starts[count], ends[count] = start, offset + i
                count += 1
                start = -1
            depth, closed = 0, 1
            continue
        if start < 0 and depth == base:
            start = offset + i
        if c == 34:
            in_text = 1
        elif c == 123 or c == 91:
            depth += 1
        elif (c == 125 or c == 93) and depth > base:
            depth -= 1
            if depth == base:
                starts[count], ends[count] = start, offset + i + 1
                count += 1
                start = -1
    state[0], state[1], state[2], state[3] = depth, in_text, escaped, start
    state[4], state[5], state[6] = base, seen, closed
    return count
