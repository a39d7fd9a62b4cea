"""Blocks of JSON lines as columns, without a Python object a row where the lines are of the usual kind.

The kernels of etl/sources/formats/json_kernels.py note where everything lies; here it becomes Arrow arrays. A line that
they do not know is left to the caller, who parses it. Kept values that are not text, whole numbers or booleans are
written by orjson, about 0.3 µs each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
import pyarrow as pa

from etl.arrays import I8, I32, I64, U8, Bools
from etl.messages import structs
from etl.schema import MESSAGE
from etl.sources.formats import json_kernels as kernels
from etl.sources.shapes.usual import UsualMessages

_KINDS: Final = (
    ("system", None), ("developer", None), ("user", None), ("assistant", "analysis"), ("assistant", "final")
)  # fmt: skip
"""Role and channel of each kind of message; that of reasoning stands before that of the answer, both last."""
_SYSTEM: Final = 0
_THOUGHT: Final = 3
_LEAST_MESSAGE: Final = 8
"""Bytes that a message takes in JSON at least, and more."""
MOST_COLUMNS: Final = 64


@dataclass(frozen=True)
class _Names:
    """Some names one behind the other."""

    data: U8
    offsets: I64

    @classmethod
    def of(cls, names: Sequence[str]) -> "_Names":
        texts = [name.encode() for name in names]
        offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts], dtype=np.int64)])
        return cls(np.frombuffer(b"".join(texts), np.uint8), offsets.astype(np.int64))


class Lines(Sequence[bytes]):
    """The lines of a block, cut out when they are asked for."""

    def __init__(self, data: bytes, starts: I64, ends: I64) -> None:
        self._data = data
        self._starts = starts
        self._ends = ends

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place: Any) -> Any:
        return self._data[self._starts[place] : self._ends[place]]


@dataclass(frozen=True)
class WantedColumns:
    """What is read of a line.

    Attributes:
        said: columns of text.
        named: columns of text in which a whole number may be a name.
        kept: columns that are kept as JSON.
        refused: columns whose values need a parser; a line is handed over unless they are null or absent.
        required: columns without which a line is handed over.
        messages: how messages are read, where the rows have any.
    """

    said: tuple[str, ...]
    named: tuple[str, ...]
    kept: tuple[str, ...]
    refused: tuple[str, ...]
    required: tuple[str, ...]
    messages: UsualMessages | None


class Scanner:
    """Reads blocks of lines.

    Args:
        wanted: what is read of a line.
        max_row_bytes: length of a line above which it is handed over.
    """

    def __init__(self, wanted: WantedColumns, max_row_bytes: int) -> None:
        usual = wanted.messages
        uses = {
            **dict.fromkeys(wanted.said, kernels.SAID),
            **dict.fromkeys(wanted.named, kernels.NAMED),
            **dict.fromkeys(wanted.kept, kernels.KEPT),
            **dict.fromkeys(wanted.refused, kernels.REFUSED),
            **({usual.column: kernels.MESSAGES} if usual is not None else {}),
        }
        self._columns = tuple(uses)
        self._has_messages = usual is not None
        self._max_row_bytes = max_row_bytes
        self._names = _Names.of(self._columns)
        self._uses = np.array(list(uses.values()), np.int8)
        self._required = np.array([name in wanted.required for name in uses], bool)
        roles = usual.roles if usual is not None else {}
        places = {role: place for place, (role, _) in enumerate(_KINDS)}
        self._roles = _Names.of(tuple(roles))
        self._role_kinds = np.array([places[role] for role in roles.values()], np.int8)
        keys: dict[str, int] = {}
        if usual is not None:
            keys = {
                **dict.fromkeys(usual.role_keys, kernels.ROLE),
                **dict.fromkeys(usual.content_keys, kernels.CONTENT),
                **dict.fromkeys(usual.thought_keys, kernels.THOUGHT),
                **dict.fromkeys(usual.active_keys, kernels.ACTIVE),
            }
        self._keys = _Names.of(tuple(keys))
        self._key_uses = np.array(list(keys.values()), np.int8)
        self._tags = _Names.of(usual.tags if usual is not None else ())
        self._held: _Held | None = None

    def scan(self, block: bytes) -> "Scanned":
        """Read the lines of a block of UTF-8; what was found of the block before is no longer there."""
        data = np.frombuffer(block, np.uint8)
        num_lines = block.count(b"\n") + 1
        held = self._held
        if held is None or not held.has_room(len(data), num_lines):
            held = self._held = _Held.of(len(data), num_lines, len(self._columns), self._has_messages)
        names, roles, keys, tags = self._names, self._roles, self._keys, self._tags
        count = kernels.scan(
            data, self._max_row_bytes, names.data, names.offsets, self._uses, self._required,
            roles.data, roles.offsets, self._role_kinds, _SYSTEM, _THOUGHT,
            keys.data, keys.offsets, self._key_uses, tags.data, tags.offsets, held.plain,
            held.row_starts, held.row_ends, held.known, held.kinds, held.starts, held.ends,
            held.num_messages, held.message_kinds, held.message_starts, held.message_ends,
        )  # fmt: skip
        return Scanned(block, data, held, self._columns, count)


@dataclass(frozen=True)
class _Held:
    """What the kernel fills, for one block after the other: fresh memory costs as much as the reading."""

    plain: U8
    row_starts: I64
    row_ends: I64
    known: Bools
    kinds: I8
    starts: I64
    ends: I64
    num_messages: I32
    message_kinds: I8
    message_starts: I64
    message_ends: I64

    @classmethod
    def of(cls, num_bytes: int, num_lines: int, num_columns: int, has_messages: bool) -> "_Held":
        most_said = num_bytes // _LEAST_MESSAGE + 1 if has_messages else 1
        return cls(
            plain=np.empty(num_bytes, np.uint8),
            row_starts=np.empty(num_lines, np.int64),
            row_ends=np.empty(num_lines, np.int64),
            known=np.empty(num_lines, np.bool_),
            kinds=np.empty((num_columns, num_lines), np.int8),
            starts=np.empty((num_columns, num_lines), np.int64),
            ends=np.empty((num_columns, num_lines), np.int64),
            num_messages=np.empty(num_lines, np.int32),
            message_kinds=np.empty(most_said, np.int8),
            message_starts=np.empty(most_said, np.int64),
            message_ends=np.empty(most_said, np.int64),
        )

    def has_room(self, num_bytes: int, num_lines: int) -> bool:
        return num_bytes <= len(self.plain) and num_lines <= len(self.known)


class Scanned:
    """What was found in a block.

    Attributes:
        block: the lines.
        starts: [rows], of each line that is not blank.
        ends: [rows], without its line feed.
        known: [rows], whether it was read; the others are handed over.
    """

    def __init__(self, block: bytes, data: U8, held: _Held, columns: tuple[str, ...], count: int) -> None:
        self.block = block
        self.starts, self.ends, self.known = held.row_starts[:count], held.row_ends[:count], held.known[:count]
        self._data = data
        self._held = held
        self._columns = columns
        self._num_messages = held.num_messages[:count]

    def text(self, name: str, rows: I64) -> pa.StringArray:
        """A column of text: string [rows]."""
        kinds, starts, ends = self._found(name, rows)
        return self._gathered(self._data, starts, ends, kinds == kernels.ABSENT, pa.string())

    def json(self, name: str, rows: I64) -> pa.BinaryArray | None:
        """A kept column as JSON: binary [rows]; None where a number of it needs a parser of its own."""
        kinds, starts, ends = self._found(name, rows)
        is_text = (kinds == kernels.TEXT) & (starts >= 0)
        # With the quotes around a text.
        starts, ends = starts - is_text, ends + is_text
        data = self._data
        for odd, write in ((kinds == kernels.FLOAT, self._floats), (kinds == kernels.OTHER, self._others)):
            if odd.any():
                written, sizes = write(starts[odd], ends[odd])
                # Whole numbers beyond 64 bits keep their digits, which orjson rounds.
                if b"e+" in written:
                    return None
                ends[odd] = len(data) + np.cumsum(sizes)
                starts[odd] = ends[odd] - sizes
                data = _with(data, written)
        escaped = (kinds == kernels.TEXT) & ~is_text
        if escaped.any():
            places = zip(starts[escaped].tolist(), ends[escaped].tolist(), strict=True)
            texts = [orjson.dumps(self._plain(start, end)) for start, end in places]
            sizes = np.array(list(map(len, texts)), np.int64)
            ends[escaped] = len(data) + np.cumsum(sizes)
            starts[escaped] = ends[escaped] - sizes
            data = _with(data, b"".join(texts))
        return self._gathered(data, starts, ends, kinds == kernels.ABSENT, pa.binary())

    def values(self, name: str, rows: I64) -> list[Any]:
        """A column as JSON values: [rows]."""
        kinds, starts, ends = self._found(name, rows)
        is_text = kinds == kernels.TEXT
        escaped = is_text & (starts < 0)
        as_it_stands = (kinds != kernels.ABSENT) & ~escaped
        found: list[Any] = [None] * len(rows)
        listed = self._listed((starts - is_text)[as_it_stands], (ends + is_text)[as_it_stands])
        for place, value in zip(np.flatnonzero(as_it_stands).tolist(), orjson.loads(b"[" + listed + b"]"), strict=True):
            found[place] = value
        for place in np.flatnonzero(escaped).tolist():
            found[place] = self._plain(int(starts[place]), int(ends[place]))
        return found

    def messages(self, rows: I64) -> pa.ListArray:
        """The messages of some rows, all those that are known among consecutive ones: list<MESSAGE> [rows]."""
        counts = self._num_messages[rows].astype(np.int64)
        stops = np.cumsum(self._num_messages, dtype=np.int64)[rows]
        chosen = slice(int(stops[0] - counts[0]), int(stops[-1]))
        kinds = pa.array(self._held.message_kinds[chosen])
        starts, ends = self._held.message_starts[chosen], self._held.message_ends[chosen]
        roles, channels = zip(*_KINDS, strict=True)
        values = structs(
            {
                "role": pa.array(roles, pa.string()).take(kinds),
                "channel": pa.array(channels, pa.string()).take(kinds),
                "content": self._gathered(self._data, starts, ends, np.zeros(len(starts), bool), pa.string()),
            }
        )
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(MESSAGE))

    def _found(self, name: str, rows: I64) -> tuple[I8, I64, I64]:
        """What was noted of a column."""
        column, held = self._columns.index(name), self._held
        return held.kinds[column, rows], held.starts[column, rows], held.ends[column, rows]

    def _plain(self, start: int, end: int) -> str:
        """A text that had escapes."""
        return self._held.plain[~start:~end].tobytes().decode()

    def _floats(self, starts: I64, ends: I64) -> tuple[bytes, I64]:
        """Numbers as orjson writes them, and the length of each, without the commas."""
        values = orjson.loads(b"[" + self._listed(starts, ends) + b"]")
        written = orjson.dumps(values)[1:-1]
        commas = np.flatnonzero(np.frombuffer(written, np.uint8) == ord(","))
        places = np.concatenate([[-1], commas, [len(written)]])
        return written.replace(b",", b""), np.diff(places) - 1

    def _others(self, starts: I64, ends: I64) -> tuple[bytes, I64]:
        """Values of any kind as orjson writes them, and the length of each."""
        written = list(map(orjson.dumps, orjson.loads(b"[" + self._listed(starts, ends) + b"]")))
        return b"".join(written), np.array(list(map(len, written)), np.int64)

    def _listed(self, starts: I64, ends: I64) -> bytes:
        """Some slices of the block with commas between them."""
        return b",".join([self.block[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])

    def _gathered(self, data: U8, starts: I64, ends: I64, absent: Bools, kind: pa.DataType) -> Any:
        """Slices of `data`, or of the texts without escapes, as an array."""
        offsets = np.zeros(len(starts) + 1, np.int64)
        np.cumsum(np.where(absent, 0, np.abs(ends - starts)), out=offsets[1:])
        out = np.empty(int(offsets[-1]), np.uint8)
        kernels.gather(data, self._held.plain, starts, offsets, out)
        valid = pa.py_buffer(np.packbits(~absent, bitorder="little")) if absent.any() else None
        buffers = [valid, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(out)]
        return pa.Array.from_buffers(kind, len(starts), buffers)


def _with(data: U8, more: bytes) -> U8:
    """Bytes and more of them, read-only as a block is: kernels are compiled for one or the other."""
    joined = np.concatenate([data, np.frombuffer(more, np.uint8)])
    joined.setflags(write=False)
    return joined


def is_utf8(block: bytes) -> bool:
    """Whether a block is UTF-8."""
    offsets = pa.py_buffer(np.array([0, len(block)], np.int32))
    try:
        pa.StringArray.from_buffers(1, offsets, pa.py_buffer(block)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
