"""A conversation while it is built: messages are added one by one, a row is closed or taken back as a whole.

Every shape that reads nested records writes its messages here: a number and a text each, about 0.2 µs. What cannot be a
conversation raises `Unfit`, which the reader turns into a quarantined row.
"""

from typing import Final

import pyarrow as pa

from etl.messages import structs
from etl.schema import MESSAGE

MESSAGE_FIELDS: Final = ("role", "channel", "recipient", "content", "content_type", "call_id")
Kind = tuple[str, str | None, str | None, str | None]
"""Role, channel, recipient and content type of a message."""
Message = tuple[str | None, ...]
"""One message: a value for each of MESSAGE_FIELDS."""


class Unfit(Exception):
    """A record that cannot be a conversation.

    Args:
        reason: a name in snake_case; QUARANTINE's `reason`.
        detail: what was found, and where a key of the description would help, which.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class Turns:
    """The messages of the rows of a batch, in order."""

    def __init__(self) -> None:
        self._kinds: dict[Kind, int] = {}
        self._codes: list[int] = []
        self._contents: list[str] = []
        self._call_ids: dict[int, str] = {}
        self._ends: list[int] = [0]

    def add(
        self,
        role: str,
        content: str,
        channel: str | None = None,
        recipient: str | None = None,
        content_type: str | None = None,
        call_id: str | None = None,
    ) -> None:
        """Append a message to the open row."""
        if call_id is not None:
            self._call_ids[len(self._contents)] = call_id
        self._codes.append(self.code((role, channel, recipient, content_type)))
        self._contents.append(content)

    def add_instructions(self, text: str | None) -> None:
        """Append what a system column says; nothing where it is null or blank."""
        if text and text.strip():
            self.add("system", text)

    def code(self, kind: Kind) -> int:
        """A number for all of a message but its content and the id of its call."""
        return self._kinds.setdefault(kind, len(self._kinds))

    def add_plain(self, code: int, content: str) -> None:
        """Append a message without the id of a call."""
        self._codes.append(code)
        self._contents.append(content)

    def append(self, message: Message) -> None:
        """Append a message that another Turns has made."""
        role, channel, recipient, content, content_type, call_id = message
        assert role is not None
        assert content is not None
        self.add(role, content, channel, recipient, content_type, call_id)

    def open_row(self) -> list[Message]:
        """The messages of the open row."""
        kinds = list(self._kinds)
        return [
            (*kinds[self._codes[at]][:3], self._contents[at], kinds[self._codes[at]][3], self._call_ids.get(at))
            for at in range(self._ends[-1], len(self._contents))
        ]

    def close(self) -> None:
        """End the open row."""
        self._ends.append(len(self._contents))

    def take_back(self) -> None:
        """End the open row without any message."""
        start = self._ends[-1]
        for at in range(start, len(self._contents)):
            self._call_ids.pop(at, None)
        del self._codes[start:], self._contents[start:]
        self.close()

    def to_array(self) -> pa.Array:
        """list<MESSAGE> [rows]."""
        codes = pa.array(self._codes, pa.int32())
        columns = list(zip(*self._kinds, strict=True)) or [()] * 4
        named = {
            name: pa.array(values, pa.string()).take(codes)
            for name, values in zip(("role", "channel", "recipient", "content_type"), columns, strict=True)
        }
        named["content"] = pa.array(self._contents, pa.string())
        named["call_id"] = self._call_id_array()
        return pa.ListArray.from_arrays(pa.array(self._ends, pa.int32()), structs(named), type=pa.list_(MESSAGE))

    def _call_id_array(self) -> pa.Array:
        if not self._call_ids:
            return pa.nulls(len(self._contents), pa.string())
        return pa.array([self._call_ids.get(at) for at in range(len(self._contents))], pa.string())
