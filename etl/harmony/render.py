"""Conversations to Harmony tokens and spans, exactly as openai-harmony renders them for training.

openai-harmony makes every header, once: the constant system and developer messages, and one template for each
distinct (role, author, recipient, channel), so recipients, tool calls (closed by <|call|>) and tool results
are its own rendering. Bodies are encoded in one batch as ordinary text (etl/harmony/encode.py), so text that
looks like a control token stays text; a kernel then copies headers, bodies and closing tokens into one flat
buffer. Analysis is kept in every turn (openai-harmony's `auto_drop_analysis=False`). Eight tenths of the
time and more is the BPE's; no Python object is made per row but the strings that it reads.

How the columns of a message are read: a `system` or `developer` message of a row holds instructions, so it is
rendered as a developer message after the constant ones; an assistant's message without a channel is `final`,
or `commentary` when it calls a tool; a `tool` message is written by the recipient of the last call before it. An
empty channel or recipient is none.

A raw document (one message of the role `text`) is its own tokens and <|endoftext|>, without any header or constant
message: one span of the kind `text`, turn -1, that covers all of them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I32, I64
from etl.harmony.encode import TextEncoder
from etl.harmony.vocabulary import ENDOFTEXT, RETURN, load_encoding
from etl.jit import njit
from etl.schema import ROLES, SPAN_KINDS, TEXT_ROLE

if TYPE_CHECKING:
    from openai_harmony import Message


CHANNELS: Final = ("analysis", "commentary", "final")
INSTRUCTIONS: Final = "# Instructions\n\n"
"""What openai-harmony puts before the instructions of a developer message."""

Effort = Literal["low", "medium", "high"]


@dataclass(frozen=True)
class Preamble:
    """What the constant system and developer messages say; None leaves a line, or the message, out."""

    identity: str
    developer: str | None
    effort: Effort
    start_date: str | None
    knowledge_cutoff: str | None


class MessageKey(NamedTuple):
    """All of a message but its text."""

    role: str
    channel: str | None
    recipient: str | None
    author: str | None

    def problem(self) -> str | None:
        """Why such a message cannot be rendered; None when it can."""
        if self.role == TEXT_ROLE:
            return None
        if self.role not in ROLES:
            return f"role '{self.role}'"
        if self.role == "assistant" and self.channel not in CHANNELS:
            return f"channel '{self.channel}'"
        if self.role == "tool" and self.author is None:
            return "tool message with no call before it"
        return None


@dataclass(frozen=True)
class Messages:
    """The messages of some rows, flat."""

    offsets: I64
    """[rows + 1]: row i has the messages offsets[i]:offsets[i + 1]."""
    keys: tuple[MessageKey, ...]
    key: npt.NDArray[np.intp]
    """[messages]: index into `keys`."""
    content: pa.Array

    @classmethod
    def of(cls, column: pa.Array) -> "Messages":
        """From a `messages` column without nulls."""
        offsets = _offsets(pc.list_value_length(column).to_numpy(zero_copy_only=False))
        flat = column.flatten()
        role, channel, recipient, content = (
            pc.struct_field(flat, name) for name in ("role", "channel", "recipient", "content")
        )
        channel, recipient = _or_none(channel), _or_none(recipient)
        channel = _channels(role, channel, recipient)
        columns = (role, channel, recipient, _authors(offsets, role, recipient))
        code = np.zeros(len(flat), np.int64)
        for values in columns:
            codes = values.dictionary_encode(null_encoding="encode")
            code = code * max(len(codes.dictionary), 1) + codes.indices.to_numpy()
        _, first, key = np.unique(code, return_index=True, return_inverse=True)
        keys = zip(*(values.take(pa.array(first)).to_pylist() for values in columns), strict=True)
        return cls(offsets, tuple(MessageKey(*parts) for parts in keys), key, content)

    @property
    def row(self) -> I64:
        """[messages]: number of the row."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """[messages]: whether it is that of a raw document."""
        return np.array([key.role == TEXT_ROLE for key in self.keys], bool)[self.key]

    def rows_with(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """[rows]: whether any message of the row is `chosen` ([messages])."""
        before = _offsets(chosen.astype(np.int64))
        return before[self.offsets[1:]] > before[self.offsets[:-1]]

    def problems(self) -> pa.Array:
        """string [rows]: why a row cannot be rendered; null when it can."""
        said = [key.problem() for key in self.keys]
        code = np.where(np.array([problem is not None for problem in said], bool)[self.key], self.key, -1)
        code[self.is_text & (np.diff(self.offsets)[self.row] > 1)] = len(said)
        bad = np.flatnonzero(code >= 0)
        rows, first = np.unique(self.row[bad], return_index=True)
        where = np.full(len(self.offsets) - 1, -1)
        where[rows] = code[bad[first]]
        reasons = pa.array([*said, f"role '{TEXT_ROLE}' beside other messages"], pa.string())
        return reasons.take(pa.array(where, mask=where < 0))


@dataclass(frozen=True)
class Spans:
    """Supervised token ranges in order, flat; positions count from the start of the row. All [spans]."""

    row: I64
    kind: npt.NDArray[np.intp]
    """Index into etl.schema.SPAN_KINDS."""
    turn: I64
    """Index of the user message that is answered; -1 before the first, and of a raw document."""
    start: I64
    content_start: I64
    end: I64


@dataclass(frozen=True)
class Rendered:
    """The tokens of some rows: row i is tokens[offsets[i]:offsets[i + 1]]."""

    tokens: I32
    offsets: I64
    spans: Spans


class _Template(NamedTuple):
    header: I32
    """From <|start|> to <|message|>."""
    closing: int


_DOCUMENT: Final = _Template(np.empty(0, np.int32), ENDOFTEXT)


class Renderer:
    """Renders with one preamble. Threads may share it: at worst two of them make the same template."""

    def __init__(self, preamble: Preamble, vocabulary: str) -> None:
        self._encoding = load_encoding(vocabulary)
        self._encoder = TextEncoder(vocabulary)
        constant = [np.array(self._encoding.render(m), np.int32) for m in preamble_messages(preamble)]
        self._preamble = np.concatenate(constant)
        self._templates: dict[MessageKey, _Template] = {}

    def render(self, messages: Messages) -> Rendered:
        """The tokens of every row; the rows must have no `problems`.

        They end in <|return|> where the last message is an assistant's final one, in <|endoftext|> where the row is a
        raw document.
        """
        keys, key, offsets = messages.keys, messages.key, messages.offsets
        body, body_offsets = self._encode(messages)
        templates = [self._template(k) for k in keys]
        header_offsets = _offsets(np.array([len(t.header) for t in templates], np.int64))
        size = np.diff(header_offsets)[key] + np.diff(body_offsets) + 1
        before = _offsets(size)
        preamble = np.where(messages.rows_with(messages.is_text), 0, len(self._preamble))
        row_offsets = _offsets(preamble + before[offsets[1:]] - before[offsets[:-1]])
        row = messages.row
        start = preamble[row] + before[:-1] - before[offsets[row]]
        closing = np.array([t.closing for t in templates], np.int32)[key]
        closing[_ends_sampling(messages)] = RETURN
        tokens = np.empty(row_offsets[-1], np.int32)
        _fill_preambles(tokens, row_offsets, preamble, self._preamble)
        headers = np.concatenate([np.empty(0, np.int32), *(t.header for t in templates)])
        at = row_offsets[row] + start
        _fill_messages(tokens, at, headers, header_offsets, key, body, body_offsets, closing)
        spans = _spans(messages, row, start, np.diff(header_offsets)[key], size)
        return Rendered(tokens, row_offsets, spans)

    def _encode(self, messages: Messages) -> tuple[I32, I64]:
        """Flat body tokens and their offsets [messages + 1]."""
        content = messages.content
        instructs = np.array([k.role in ("system", "developer") for k in messages.keys], bool)[messages.key]
        if instructs.any():
            prefixed = pc.binary_join_element_wise(INSTRUCTIONS, content, "")
            content = pc.if_else(pa.array(instructs), prefixed, content)
        return self._encoder.encode_batch(content)

    def _template(self, key: MessageKey) -> _Template:
        if key.role == TEXT_ROLE:
            return _DOCUMENT
        if key not in self._templates:
            tokens = self._encoding.render(_message(key, ""))
            self._templates[key] = _Template(np.array(tokens[:-1], np.int32), tokens[-1])
        return self._templates[key]


def preamble_messages(preamble: Preamble) -> list["Message"]:
    """The constant messages as openai-harmony's own."""
    from openai_harmony import ChannelConfig, DeveloperContent, Message, ReasoningEffort, Role, SystemContent

    system = SystemContent(
        model_identity=preamble.identity,
        reasoning_effort=ReasoningEffort[preamble.effort.upper()],
        conversation_start_date=preamble.start_date,
        knowledge_cutoff=preamble.knowledge_cutoff,
        channel_config=ChannelConfig.require_channels(list(CHANNELS)),
    )
    messages = [Message.from_role_and_content(Role.SYSTEM, system)]
    if preamble.developer is not None:
        developer = DeveloperContent(instructions=preamble.developer)
        messages.append(Message.from_role_and_content(Role.DEVELOPER, developer))
    return messages


def _message(key: MessageKey, text: str) -> "Message":
    from openai_harmony import Author, Message, Role, TextContent

    role = "developer" if key.role == "system" else key.role
    return Message(
        author=Author(role=Role(role), name=key.author),
        content=[TextContent(text=text)],
        channel=key.channel,
        recipient=key.recipient,
    )


def _offsets(lengths: I64) -> I64:
    """[n + 1]: 0 and the running sums of n lengths."""
    out = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return out


def _or_none(names: pa.Array) -> pa.Array:
    """The names, null where one is empty."""
    return pc.if_else(pc.equal(names, ""), pa.scalar(None, names.type), names)


def _channels(role: pa.Array, channel: pa.Array, recipient: pa.Array) -> pa.Array:
    """string [messages]: the channels, with those that an assistant's message lacks."""
    missing = pc.and_(pc.equal(role, "assistant"), pc.is_null(channel))
    return pc.if_else(missing, pc.if_else(pc.is_null(recipient), "final", "commentary"), channel)


def _authors(offsets: I64, role: pa.Array, recipient: pa.Array) -> pa.Array:
    """string [messages]: for a tool's message the recipient of the last call of its row, else null."""
    is_tool = pc.equal(role, "tool").to_numpy(zero_copy_only=False)
    authors: list[str | None] = [None] * len(role)
    for row in np.unique(np.searchsorted(offsets, np.flatnonzero(is_tool), side="right") - 1):
        called = None
        for m in range(offsets[row], offsets[row + 1]):
            if is_tool[m]:
                authors[m] = called
            elif role[m].as_py() == "assistant" and recipient[m].is_valid:
                called = recipient[m].as_py()
    return pa.array(authors, pa.string())


def _ends_sampling(messages: Messages) -> npt.NDArray[np.intp]:
    """Indices of the messages that close with <|return|>: a row's last, if it is an assistant's final one."""
    last = messages.offsets[1:][np.diff(messages.offsets) > 0] - 1
    ends = np.array([k.role == "assistant" and k.channel == "final" for k in messages.keys], bool)
    return np.compress(ends[messages.key[last]], last)


def _spans(messages: Messages, row: I64, start: I64, header: I64, size: I64) -> Spans:
    """One span for each assistant message or raw document. The arrays are [messages]; `header` counts its tokens."""
    kind = np.array([_span_kind(k) for k in messages.keys], np.intp)[messages.key]
    users = _offsets(np.array([k.role == "user" for k in messages.keys], np.int64)[messages.key])
    at = np.flatnonzero(kind >= 0)
    turn = users[at] - users[messages.offsets[row[at]]] - 1
    return Spans(row[at], kind[at], turn, start[at], start[at] + header[at], start[at] + size[at])


def _span_kind(key: MessageKey) -> int:
    """Index into SPAN_KINDS; -1 for a message that is not supervised."""
    if key.role == TEXT_ROLE:
        return SPAN_KINDS.index("text")
    return SPAN_KINDS.index(key.channel or "") if key.role == "assistant" else -1


@njit
def _fill_preambles(tokens: I32, row_offsets: I64, sizes: I64, preamble: I32) -> None:
    """Write the first sizes[i] tokens of row i, all of the preamble or none of it."""
    for i in range(len(row_offsets) - 1):
        tokens[row_offsets[i] : row_offsets[i] + sizes[i]] = preamble[: sizes[i]]


@njit
def _fill_messages(
    tokens: I32,
    at: I64,
    headers: I32,
    header_offsets: I64,
    key: I64,
    body: I32,
    body_offsets: I64,
    closing: I32,
) -> None:
    """Copy header, body and closing token of each message to its place `at`."""
    for m in range(len(at)):
        header = headers[header_offsets[key[m]] : header_offsets[key[m] + 1]]
        text = body[body_offsets[m] : body_offsets[m + 1]]
        k = at[m] + len(header)
        tokens[at[m] : k] = header
        tokens[k : k + len(text)] = text
        tokens[k + len(text)] = closing[m]
