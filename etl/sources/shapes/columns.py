"""Rows that hold prompt, reasoning and answer in columns of their own; Alpaca's are the best known.

The prompt is one column (`user`) or a template over several (`prompt`); `then` adds later exchanges. Built by
Arrow kernels over whole columns: no Python object a row, but for answers that have reasoning in tags, and where there
are tools.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import Bools
from etl.hashing import binary_buffers
from etl.messages import structs
from etl.schema import MESSAGE
from etl.sources.shapes import template
from etl.sources.shapes.described import Columns, Conversations, Described, Value, columns_of
from etl.sources.shapes.dialogue import Calls, add_message, split_thinking
from etl.sources.shapes.messages import converse_with_tools
from etl.sources.shapes.question import Question
from etl.sources.shapes.turns import Turns, Unfit


class Turn(Question):
    """One exchange: the user's text and the assistant's answer."""

    analysis: str | None = None
    """Column of the reasoning; an empty value makes no message."""
    final: str
    """Column of the answer; reasoning in tags at its start becomes a separate message."""

    def question(self, columns: Columns) -> pa.Array:
        """What the user says: string [rows]."""
        return columns.text(self.user) if self.prompt is None else template.filled(self.prompt, columns)


class ColumnsShape(Turn, Described):
    """Rows with prompt, reasoning and answer in separate columns."""

    shape: Literal["columns"]
    system: Value | None = None
    """Instructions before the conversation; an empty value makes no message."""
    then: tuple[Turn, ...] = ()
    """Later exchanges; an exchange whose columns are all empty is skipped."""
    tools: str | None = None
    """Column of tool definitions: a list, or its JSON. With it, an answer that is JSON of tool calls becomes these
    calls."""

    @property
    def exchanges(self) -> tuple[Turn, ...]:
        """The first exchange and the later ones."""
        return (self, *self.then)

    @property
    def needed(self) -> tuple[str, ...]:
        """What is asked first, and the answer to it."""
        return (*self.asked, self.final)

    @property
    def said(self) -> tuple[str, ...]:
        """Prompts, reasoning and answers."""
        return columns_of(
            self.system, *(name for turn in self.exchanges for name in (turn.user, turn.analysis, turn.final))
        )

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of the templates."""
        return tuple(dict.fromkeys(name for turn in self.exchanges for name in turn.templated))

    @property
    def nested(self) -> tuple[str, ...]:
        """The tools."""
        return columns_of(self.tools)

    def converse(self, columns: Columns) -> Conversations:
        """Instructions where there are any, then each exchange."""
        return self._converse(columns) if self.tools is None else self._converse_with_tools(columns)

    def _converse_with_tools(self, columns: Columns) -> Conversations:
        """Row by row, since an answer may be several calls."""
        turns = (
            zip(turn.question(columns).to_pylist(), columns.text(turn.analysis).to_pylist(),
                columns.text(turn.final).to_pylist(), strict=True)
            for turn in self.exchanges
        )  # fmt: skip
        rows = list(zip(*turns, strict=True))
        return converse_with_tools(columns, self.system, self.tools, rows, _add_exchanges)

    def _converse(self, columns: Columns) -> Conversations:
        system = columns.text(self.system)
        parts: list[Part] = [("system", None, system, has_text(system))]
        lost: dict[int, Unfit] = {}
        for number, turn in enumerate(self.exchanges):
            question, analysis = turn.question(columns), columns.text(turn.analysis)
            thought, final, unfit = _split_thinking(columns.text(turn.final))
            lost = unfit | lost
            there = np.ones(len(columns), bool) if number == 0 else has_text(question) | has_text(final)
            parts += [
                ("user", None, question, there),
                ("assistant", "analysis", analysis, there & _is_long(analysis)),
                ("assistant", "analysis", thought, there & _is_long(thought)),
                ("assistant", "final", final, there),
            ]
        if lost:
            parts = [(*part, there & ~np.isin(np.arange(len(columns)), list(lost))) for *part, there in parts]
        reasons = [(row, error.reason, error.detail) for row, error in sorted(lost.items())]
        return Conversations(messages_of(parts, len(columns)), lost=reasons)


def _add_exchanges(turns: Turns, exchanges: Sequence[tuple[str | None, str | None, str | None]]) -> None:
    calls = Calls()
    for number, (question, analysis, final) in enumerate(exchanges):
        if number == 0 or (question or "").strip() or (final or "").strip():
            turns.add("user", question or "")
            if analysis:
                turns.add("assistant", analysis, "analysis")
            add_message(turns, "call" if _is_calls(final) else "assistant", {}, final or "", calls)


def _is_calls(text: str | None) -> bool:
    """Whether a text is the JSON of one call or of several."""
    if text is None or text.lstrip()[:1] not in ("[", "{"):
        return False
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    calls = found if isinstance(found, list) else [found]
    return bool(calls) and all(isinstance(call, dict) and {"name", "arguments"} <= call.keys() for call in calls)


Part = tuple[str, str | None, pa.Array, Bools]
"""Role, channel, content and presence of one message of every row."""


def has_text(column: pa.Array) -> Bools:
    """bool [rows]: neither null nor blank."""
    blank = pc.fill_null(pc.match_substring_regex(column, r"^\s*$"), True)
    return ~blank.to_numpy(zero_copy_only=False)


def _split_thinking(final: pa.Array) -> tuple[pa.Array, pa.Array, dict[int, Unfit]]:
    """Reasoning in tags at the start of answers, the answers behind it, and the rows in which it does not end."""
    data, offsets = binary_buffers(final)
    text = data[offsets[0] : offsets[-1]].tobytes()
    # One search of all rows takes a quarter of the time of one in each.
    if b"think>" not in text and b"_of_thought|>" not in text:
        return pa.nulls(len(final), pa.string()), final, {}
    tagged = pc.or_(pc.match_substring(final, "think>"), pc.match_substring(final, "_of_thought|>"))
    rows = np.flatnonzero(pc.fill_null(tagged, False).to_numpy(zero_copy_only=False)).tolist()
    thoughts: list[str | None] = [None] * len(final)
    answers, lost = final.to_pylist(), {}
    for row in rows:
        try:
            thoughts[row], answers[row] = split_thinking(answers[row])
        except Unfit as error:
            lost[row] = error
    return pa.array(thoughts, pa.string()), pa.array(answers, pa.string()), lost


def _is_long(column: pa.Array) -> Bools:
    return pc.greater(pc.fill_null(pc.binary_length(column), 0), 0).to_numpy(zero_copy_only=False)


def messages_of(parts: list[Part], size: int) -> pa.Array:
    """list<MESSAGE> [rows] of parts that every row has in one order, those that are not there left out."""
    used = [part for part in parts if part[3].any()] or parts[:1]
    present = np.stack([there for *_, there in used], axis=1)
    order = (np.arange(size)[:, None] + size * np.arange(len(used))[None, :])[present]
    kind = pa.array(np.broadcast_to(np.arange(len(used)), present.shape)[present])
    contents = pa.concat_arrays([pc.fill_null(content, "") for _, _, content, _ in used]).take(pa.array(order))
    made = {
        "role": pa.array([role for role, *_ in used], pa.string()).take(kind),
        "channel": pa.array([channel for _, channel, *_ in used], pa.string()).take(kind),
        "content": contents,
    }
    values = structs(made)
    offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(MESSAGE))
