"""Conversations to Harmony tokens and spans, exactly as openai-harmony renders them for training.

openai-harmony makes every header, once: the constant system and developer messages, and one template for each
distinct (role, author, recipient, channel, content type). So recipients, tool calls (closed by <|call|>) and tool
results are its own rendering. Bodies are encoded in one batch as ordinary text (etl/harmony/encode.py), so text that
looks like a control token remains text. A kernel then copies headers, bodies and closing tokens into one flat
buffer. Analysis is kept in every turn (openai-harmony's `auto_drop_analysis=False`). The BPE takes at least eight
tenths of the time; the only Python objects made per row are the strings that it reads.

The columns of a message are read as follows. A `system` or `developer` message of a row contains instructions, so it is
rendered as a developer message after the constant ones. An assistant's message without a channel is `final`, or
`commentary` if it calls a tool. A `tool` message is signed by the recipient of the earlier call with its `call_id`, or
of the last call if it has none. Without a recipient and channel it is sent to `assistant` in `commentary`. An empty
channel, recipient, content type or call id counts as none.

The tools of a row follow the instructions in its first developer message. That is the constant one, or the row's own if
it is the row's first message, else one made for the tools (etl/harmony/tools.py). The row's system message then states
where calls are sent.

A raw document (one message of the role `text`) is rendered as its own tokens and <|endoftext|>, without any header or
constant message. One span of the kind `text`, turn -1, covers all of them.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I32, I64, Bools
from etl.harmony.encode import TextEncoder
from etl.harmony.tools import tool_sections
from etl.harmony.vocabulary import ENDOFTEXT, RETURN, load_encoding
from etl.jit import njit
from etl.messages import field_of
from etl.schema import ROLES, SPAN_KINDS, TEXT_ROLE

if TYPE_CHECKING:
    from openai_harmony import Message


CHANNELS: Final = ("analysis", "commentary", "final")
INSTRUCTIONS: Final = "# Instructions\n\n"
"""What openai-harmony puts before the instructions of a developer message."""

Effort = Literal["low", "medium", "high"]


@dataclass(frozen=True)
class Preamble:
    """The contents of the constant system and developer messages; None omits a line, or the message."""

    identity: str
    developer: str | None
    effort: Effort
    start_date: str | None
    knowledge_cutoff: str | None


class MessageKey(NamedTuple):
    """Everything about a message except its text."""

    role: str
    channel: str | None
    recipient: str | None
    author: str | None
    content_type: str | None = None

    def problem(self) -> str | None:
        """Why such a message cannot be rendered; None if it can."""
        if self.role == TEXT_ROLE:
            return None
        if self.role not in ROLES:
            return f"role '{self.role}'"
        if self.role == "assistant" and self.channel not in CHANNELS:
            return f"channel '{self.channel}'"
        if self.role == "tool" and self.author is None:
            return "tool message that answers no call before it"
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
    tools: pa.Array | None = None
    """string [rows]: the developer message's text about a row's tools; None if no row has any."""
    tool_problems: pa.Array | None = None
    """string [rows]: why there is no such text; None if `tools` is."""

    @classmethod
    def of(cls, column: pa.Array, tools: pa.Array | None = None) -> "Messages":
        """From a `messages` column without nulls, and the `tools` of its rows; fields that a message lacks are null."""
        offsets = _offsets(pc.list_value_length(column).to_numpy(zero_copy_only=False))
        flat = column.flatten()
        role, content = pc.struct_field(flat, "role"), pc.struct_field(flat, "content")
        names = ("channel", "recipient", "content_type", "call_id")
        channel, recipient, content_type, call_id = (_or_none(field_of(flat, name)) for name in names)
        is_tool = pc.equal(role, "tool")
        author = _authors(offsets, role, is_tool, recipient, call_id)
        columns = (role, _channels(role, channel, recipient), _recipients(is_tool, recipient), author, content_type)
        code = np.zeros(len(flat), np.int64)
        for values in columns:
            if values.null_count < len(values):
                codes = values.dictionary_encode(null_encoding="encode")
                code = code * max(len(codes.dictionary), 1) + codes.indices.to_numpy()
        _, first, key = np.unique(code, return_index=True, return_inverse=True)
        keys = zip(*(values.take(pa.array(first)).to_pylist() for values in columns), strict=True)
        said = cls(offsets, tuple(MessageKey(*parts) for parts in keys), key, content)
        if tools is None or tools.null_count == len(tools):
            return said
        return replace(said, **dict(zip(("tools", "tool_problems"), tool_sections(tools), strict=True)))

    @property
    def row(self) -> I64:
        """[messages]: number of the row."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """[messages]: whether it is a raw document."""
        return np.array([key.role == TEXT_ROLE for key in self.keys], bool)[self.key]

    def rows_with(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """[rows]: whether any message of the row is `chosen` ([messages])."""
        before = _offsets(chosen.astype(np.int64))
        return before[self.offsets[1:]] > before[self.offsets[:-1]]

    def problems(self) -> pa.Array:
        """string [rows]: why a row cannot be rendered; null if it can."""
        said = [key.problem() for key in self.keys]
        code = np.where(np.array([problem is not None for problem in said], bool)[self.key], self.key, -1)
        code[self.is_text & (np.diff(self.offsets)[self.row] > 1)] = len(said)
        bad = np.flatnonzero(code >= 0)
        rows, first = np.unique(self.row[bad], return_index=True)
        where = np.full(len(self.offsets) - 1, -1)
        where[rows] = code[bad[first]]
        reasons = pa.array([*said, f"role '{TEXT_ROLE}' beside other messages"], pa.string())
        found = reasons.take(pa.array(where, mask=where < 0))
        if self.tools is None:
            return found
        documents = pc.and_(pc.is_valid(self.tools), pa.array(self.rows_with(self.is_text)))
        beside = pc.if_else(documents, f"tools beside role '{TEXT_ROLE}'", pa.scalar(None, pa.string()))
        return pc.coalesce(found, self.tool_problems, beside)


@dataclass(frozen=True)
class Spans:
    """Supervised token ranges in order, flat; positions count from the start of the row. All [spans]."""

    row: I64
    kind: npt.NDArray[np.intp]
    """Index into etl.schema.SPAN_KINDS."""
    turn: I64
    """Index of the user message that is answered; -1 before the first, and for a raw document."""
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
        from openai_harmony import RenderOptions

        self._encoding = load_encoding(vocabulary)
        self._encoder = TextEncoder(vocabulary)
        self._developer = preamble.developer
        constant = preamble_messages(preamble)
        self._preambles = [
            np.empty(0, np.int32),
            np.concatenate([np.array(self._encoding.render(m), np.int32) for m in constant]),
            np.array(self._encoding.render(constant[0], RenderOptions(conversation_has_function_tools=True)), np.int32),
        ]
        self._templates: dict[MessageKey, _Template] = {}

    def render(self, messages: Messages) -> Rendered:
        """The tokens of every row; the rows must have no `problems`.

        They end in <|return|> if the last message is an assistant's final one, in <|endoftext|> if the row is a raw
        document.
        """
        messages, which = self._with_developers(messages)
        keys, key, offsets = messages.keys, messages.key, messages.offsets
        body, body_offsets = self._encoder.encode_batch(messages.content)
        templates = [self._template(k) for k in keys]
        header_offsets = _offsets(np.array([len(t.header) for t in templates], np.int64))
        size = np.diff(header_offsets)[key] + np.diff(body_offsets) + 1
        before = _offsets(size)
        preamble_offsets = _offsets(np.array([len(preamble) for preamble in self._preambles], np.int64))
        preamble = np.diff(preamble_offsets)[which]
        row_offsets = _offsets(preamble + before[offsets[1:]] - before[offsets[:-1]])
        row = messages.row
        start = preamble[row] + before[:-1] - before[offsets[row]]
        closing = np.array([t.closing for t in templates], np.int32)[key]
        closing[_ends_sampling(messages)] = RETURN
        tokens = np.empty(row_offsets[-1], np.int32)
        _fill_preambles(tokens, row_offsets, which, np.concatenate(self._preambles), preamble_offsets)
        headers = np.concatenate([np.empty(0, np.int32), *(t.header for t in templates)])
        at = row_offsets[row] + start
        _fill_messages(tokens, at, headers, header_offsets, key, body, body_offsets, closing)
        spans = _spans(messages, row, start, np.diff(header_offsets)[key], size)
        return Rendered(tokens, row_offsets, spans)

    def _with_developers(self, messages: Messages) -> tuple[Messages, I64]:
        """The messages to write, and the preamble of each row as an index into `_preambles`: [rows]."""
        content = messages.content
        instructs = np.array([k.role in ("system", "developer") for k in messages.keys], bool)[messages.key]
        if instructs.any():
            prefixed = pc.binary_join_element_wise(INSTRUCTIONS, content, "")
            content = pc.if_else(pa.array(instructs), prefixed, content)
        which = np.where(messages.rows_with(messages.is_text), 0, 1)
        messages = replace(messages, content=content)
        if messages.tools is None or messages.tools.null_count == len(messages.tools):
            return messages, which
        rows = np.flatnonzero(messages.tools.is_valid())
        which[rows] = 2
        first, has_messages = messages.offsets[rows], np.diff(messages.offsets)[rows] > 0
        instructs = np.append(instructs, False)
        own = has_messages & instructs[first] & (self._developer is None)
        if self._developer is None:
            before = content.take(pa.array(first, mask=~own))
        else:
            before = pa.repeat(INSTRUCTIONS + self._developer, len(rows))
        sections = messages.tools.take(pa.array(rows))
        said = pc.binary_join_element_wise(before, sections, "\n\n", null_handling="skip")
        return _with_said(messages, rows, said, own), which

    def _template(self, key: MessageKey) -> _Template:
        if key.role == TEXT_ROLE:
            return _DOCUMENT
        if key not in self._templates:
            tokens = self._encoding.render(_message(key, ""))
            self._templates[key] = _Template(np.array(tokens[:-1], np.int32), tokens[-1])
        return self._templates[key]


def _with_said(messages: Messages, rows: I64, said: pa.Array, own: npt.NDArray[np.bool_]) -> Messages:
    """The messages, with a developer message first in some rows.

    Args:
        messages: of all rows.
        rows: ascending numbers of the rows that get one.
        said: string [len(rows)], the whole content of the message.
        own: bool [len(rows)], whether it replaces the row's first message.
    """
    first, new = messages.offsets[rows], len(messages.key) + np.arange(len(rows))
    place, key = np.arange(len(messages.key)), messages.key
    place[first[own]] = new[own]
    place = np.insert(place, first[~own], new[~own])
    key = np.insert(key, first[~own], len(messages.keys))
    added = np.zeros(len(messages.offsets), np.int64)
    added[rows[~own] + 1] = 1
    return Messages(
        messages.offsets + np.cumsum(added),
        (*messages.keys, MessageKey("developer", None, None, None)),
        key,
        pa.concat_arrays([messages.content, said]).take(pa.array(place)),
    )


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
        content_type=key.content_type,
    )


def _offsets(lengths: I64) -> I64:
    """[n + 1]: 0 and the running sums of n lengths."""
    out = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=out[1:])
    return out


def _or_none(names: pa.Array) -> pa.Array:
    """The names, with null for an empty one."""
    return pc.if_else(pc.equal(names, ""), pa.scalar(None, names.type), names)


def _channels(role: pa.Array, channel: pa.Array, recipient: pa.Array) -> pa.Array:
    """string [messages]: the channels, completed for messages of an assistant or a tool that have none."""
    of_assistant = pc.if_else(pc.is_null(recipient), "final", "commentary")
    default = pc.if_else(pc.equal(role, "assistant"), of_assistant, "commentary")
    missing = pc.and_(pc.is_in(role, value_set=pa.array(["assistant", "tool"])), pc.is_null(channel))
    return pc.if_else(missing, default, channel)


def _recipients(is_tool: pa.Array, recipient: pa.Array) -> pa.Array:
    """string [messages]: the recipients, completed for a tool's messages that have none."""
    if not is_tool.true_count:
        return recipient
    return pc.if_else(pc.and_(is_tool, pc.is_null(recipient)), "assistant", recipient)


def _authors(offsets: I64, role: pa.Array, is_tool: pa.Array, recipient: pa.Array, call_id: pa.Array) -> pa.Array:
    """string [messages]: for a tool's message the recipient of the call that it answers, else null."""
    if not is_tool.true_count:
        return pa.nulls(len(role), pa.string())
    is_call = pc.and_(pc.equal(role, "assistant"), pc.is_valid(recipient))
    codes = call_id.dictionary_encode()
    ids = pc.fill_null(codes.indices, -1).to_numpy().astype(np.int64)
    tools, calls = (mask.to_numpy(zero_copy_only=False) for mask in (is_tool, is_call))
    call = _calls(offsets, tools, calls, ids, np.full(len(codes.dictionary) + 1, -1, np.int64))
    return recipient.take(pa.array(call, mask=call < 0))


@njit
def _calls(offsets: I64, is_tool: Bools, is_call: Bools, ids: I64, last: I64) -> I64:
    """[messages]: for a tool's message, the place of the last earlier call in its row with its id; else -1.

    Args:
        offsets: [rows + 1].
        is_tool: [messages].
        is_call: [messages].
        ids: [messages], -1 for none; a tool's message without one answers the last call.
        last: [ids + 1], all -1: working space for the last call with each id, and the last of all at the end.
    """
    found = np.full(len(ids), -1, np.int64)
    for row in range(len(offsets) - 1):
        for m in range(offsets[row], offsets[row + 1]):
            if is_call[m]:
                last[ids[m]] = last[-1] = m
            elif is_tool[m] and last[ids[m]] >= offsets[row]:
                found[m] = last[ids[m]]
    return found


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
def _fill_preambles(tokens: I32, row_offsets: I64, which: I64, preambles: I32, preamble_offsets: I64) -> None:
    """Begin each row with preamble which[row]; the preambles are stored one after another."""
    for i in range(len(row_offsets) - 1):
        preamble = preambles[preamble_offsets[which[i]] : preamble_offsets[which[i] + 1]]
        tokens[row_offsets[i] : row_offsets[i] + len(preamble)] = preamble


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
