"""Rows that hold a list of messages: OpenAI's `messages`, ShareGPT's `conversations`, or the JSON of either as text.

Who speaks and what is said stand under the first of `role_keys` and `content_keys` that a message has, so both layouts
and their relatives need no description of their own; etl/sources/shapes/dialogue.py reads what is inside a message. A
list of texts is what user and assistant say in turn. One pass in Python over the messages of a batch,
about 3 µs each, but for rows that the format has read (`usual`).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa

from etl.arrays import I64
from etl.config import Config
from etl.sources.shapes import dialogue
from etl.sources.shapes.described import Columns, Conversations, Described, Value, columns_of, converse_rows
from etl.sources.shapes.turns import Turns, Unfit
from etl.sources.shapes.usual import UsualMessages

Speaker = Literal["system", "developer", "user", "assistant", "call", "tool"]


PLAIN: Final = {
    name: (role, "final" if role == "assistant" else None, None, None)
    for name, role in dialogue.ROLE_NAMES.items()
    if role in ("system", "developer", "user", "assistant")
}
"""What a message of a role and a text alone becomes, unless the text has tags."""
_NUM_PLAIN_KEYS: Final = 2


class Spoken(Config):
    """How a list of messages says who speaks and what is said."""

    roles: dict[str, Speaker] = {}
    """Roles for further names of speakers; the usual ones are known (etl/sources/shapes/dialogue.py)."""
    role_keys: tuple[str, ...] = ("role", "from")
    """Keys with the speaker; the first one that a message has is used."""
    content_keys: tuple[str, ...] = ("content", "value", "text")
    """Keys with the text; the first one that a message has is used."""

    def add(self, turns: Turns, messages: Any, calls: dialogue.Calls) -> Any:
        """Add the messages of a list, or its texts in turn; returns what stood in `<tools>`, or None.

        Raises:
            Unfit: it is no list of messages, or one of them cannot be read.
        """
        if isinstance(messages, dict):
            messages = [messages]
        if not isinstance(messages, list):
            raise Unfit("not_messages", f"a list of messages is needed, this is {dialogue.called(messages)}")
        if messages and isinstance(messages[0], str):
            _add_in_turn(turns, messages, calls)
            return None
        tools = None
        for message in messages:
            if not isinstance(message, dict):
                raise Unfit("not_messages", f"a message is {dialogue.called(message)}, an object is needed")
            name, content = _first(message, self.role_keys), _first(message, self.content_keys)
            kind = (
                PLAIN.get(name)
                if isinstance(name, str) and len(message) == _NUM_PLAIN_KEYS and not self.roles
                else None
            )
            if kind is not None and _is_plain(content):
                turns.add_plain(turns.code(kind), content)
                continue
            role = dialogue.role_of(name, self.roles)
            if role == "system" and isinstance(content, str):
                content, found = dialogue.take_tools(content)
                tools = found or tools
                if not content.strip():
                    continue
            dialogue.add_message(turns, role, message, content, calls)
        return tools

    def first_speaker(self, messages: Any) -> str | None:
        """Who speaks first in a list of messages; None where it is no such list.

        Raises:
            Unfit: the name of the speaker is not known.
        """
        first = messages[0] if isinstance(messages, list) and messages else messages
        return dialogue.role_of(_first(first, self.role_keys), self.roles) if isinstance(first, dict) else None


def _add_in_turn(turns: Turns, texts: list[Any], calls: dialogue.Calls) -> None:
    """Add texts that user and assistant say in turn, the user first."""
    for text, role in zip(texts, itertools.cycle(("user", "assistant")), strict=False):
        if not isinstance(text, str):
            raise Unfit("not_messages", f"one of the texts is {dialogue.called(text)}")
        dialogue.add_message(turns, role, {}, text, calls)


def _is_plain(content: Any) -> bool:
    """Whether a content is a text that says something and has none of the tags that are read."""
    if not isinstance(content, str) or not content or content.isspace():
        return False
    return "<" not in content or dialogue.TAGS.search(content) is None


def _first(message: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    for key in keys:
        if key in message:
            return message[key]
    return None


def converse_with_tools(
    columns: Columns,
    system: Value | None,
    tools: str | None,
    said: Sequence[Any],
    add: Callable[[Turns, Any], Any],
) -> Conversations:
    """The conversations of rows that may define tools, each row's instructions first.

    Args:
        columns: of the rows.
        system: column or constant of the instructions.
        tools: column of the definitions.
        said: [rows], what `add` takes of each.
        add: adds the messages of a row and returns the definitions that stood in them, or None.
    """
    made_tools: list[str | None] = []
    given = columns.values(tools) if tools is not None else [None] * len(columns)

    def write(turns: Turns, row: tuple[Any, Any, Any]) -> None:
        instructions, messages, defined = row
        made_tools.append(None)
        turns.add_instructions(instructions)
        found = add(turns, messages)
        made_tools[-1] = dialogue.definitions(defined or found)

    made = converse_rows(zip(columns.text(system).to_pylist(), said, given, strict=True), write)
    made.tools = pa.array(made_tools, pa.string())
    return made


class MessagesShape(Spoken, Described):
    """Rows with a list of messages."""

    shape: Literal["messages"]
    messages: str = "messages"
    """Column of the list, or of its JSON. A list of plain texts alternates between user and assistant, user first."""
    system: Value | None = None
    """Instructions before the messages; an empty value makes no message."""
    tools: str | None = "tools"
    """Column of tool definitions: a list, or its JSON."""

    @property
    def said(self) -> tuple[str, ...]:
        """The instructions."""
        return columns_of(self.system)

    @property
    def nested(self) -> tuple[str, ...]:
        """The messages and the tools."""
        return columns_of(self.messages, self.tools)

    @property
    def needed(self) -> tuple[str, ...]:
        """The messages."""
        return (self.messages,)

    @property
    def usual(self) -> UsualMessages | None:
        """Roles and texts, where no instructions go before them and each key has one meaning."""
        roles = {
            name: role for name, role in (dialogue.ROLE_NAMES | self.roles).items() if role not in ("call", "tool")
        }
        keys = (*self.role_keys, *self.content_keys, *dialogue.REASONING, *dialogue.ACTIVE)
        if self.system is not None or len(set(keys)) < len(keys):
            return None
        return UsualMessages(
            self.messages, roles, self.role_keys, self.content_keys, dialogue.REASONING, dialogue.ACTIVE,
            dialogue.TAG_STARTS,
        )  # fmt: skip

    def converse(self, columns: Columns) -> Conversations:
        """The messages of each row, its instructions first."""
        usual = columns.usual_messages(self.messages)
        if usual is None:
            return self._parsed(columns)
        rest = np.flatnonzero(usual.is_null())
        return _with_rest(usual, rest, self._parsed(_Some(columns, rest))) if len(rest) else Conversations(usual)

    def _parsed(self, columns: Columns) -> Conversations:
        return converse_with_tools(
            columns, self.system, self.tools, columns.values(self.messages),
            lambda turns, messages: self.add(turns, dialogue.json_of(messages, "the messages"), dialogue.Calls()),
        )  # fmt: skip


class _Some:
    """Some rows of a batch."""

    def __init__(self, columns: Columns, rows: I64) -> None:
        self._columns = columns
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def text(self, value: Value | None) -> pa.Array:
        """As Columns has it."""
        return self._columns.text(value).take(pa.array(self._rows))

    def values(self, path: str) -> Sequence[Any]:
        """As Columns has it."""
        values = self._columns.values(path)
        return [values[row] for row in self._rows]

    def usual_messages(self, path: str) -> pa.Array | None:
        """As Columns has it."""
        return None


def _with_rest(usual: pa.Array, rows: I64, made: Conversations) -> Conversations:
    """The messages of all rows: those of `rows` are in `made`, the others in `usual`."""
    order = np.arange(len(usual))
    order[rows] = len(usual) + np.arange(len(rows))
    messages = pa.concat_arrays([usual, made.messages]).take(pa.array(order))
    tools = None
    if made.tools is not None:
        tools = pa.concat_arrays([pa.nulls(len(usual), pa.string()), made.tools]).take(pa.array(order))
    lost = [(int(rows[row]), reason, detail) for row, reason, detail in made.lost]
    return Conversations(messages, tools, lost=lost)
