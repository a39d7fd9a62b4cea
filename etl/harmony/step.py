"""The Harmony step: adds the TOKENIZED columns to rows with `messages`.

The columns are built from flat numpy buffers; etl/harmony/render.py describes what is rendered. It renders 40 to 50 MB
of fresh text per CPU-second on two busy cores and spends five sixths of the time in the BPE. That is 4 times as fast as
tiktoken on rows of at least 3.5 kB in batches of megabytes, and 40 times as fast as openai-harmony on rows of 500
characters (tests/benchmarks/bench_harmony.py). A batch costs 3 ms whatever it contains.
"""

import datetime
import functools
import re
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator, BeforeValidator

from etl.arrays import Bools
from etl.harmony.history import with_last_turn_alone, without_history_analysis
from etl.harmony.render import Effort, Messages, Preamble, Rendered, Renderer
from etl.harmony.vocabulary import CONTROL_MARK, DEFAULT_VOCABULARY, VOCABULARY_SHA256, vocabulary_file
from etl.hashing import hash_array, signed
from etl.schema import SPAN, SPAN_KINDS, TOKENIZED_COLUMNS
from etl.step import BatchFn, Step, append, column, drop, live


def _iso(value: object) -> object:
    """YAML reads an unquoted 2026-01-01 as a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


def _date(text: str) -> str:
    """A year, a month or a day."""
    found = re.fullmatch(r"(\d{4})(-\d\d)?(-\d\d)?", text, re.ASCII)
    try:
        year, month, day = found.groups() if found else ("", "", "")
        datetime.date.fromisoformat(f"{year}{month or '-01'}{day or '-01'}")
    except ValueError as error:
        raise ValueError(f"{text!r} is not a date; write 2025-06-28, 2025-06 or 2025, or null for none") from error
    return text


def _no_marks(text: str) -> str:
    """Text that gives the same tokens in the corpus and in the chat template of a model trained on it."""
    if mark := CONTROL_MARK.search(text):
        raise ValueError(f"{mark[0]} is a control token; write it differently")
    return text


def _one_line(text: str) -> str:
    """Each line of the system message has a meaning, so a value must not add lines."""
    if text.splitlines() not in ([], [text]):
        raise ValueError(f"{text!r} has a line break; give one line, and put longer instructions into `developer`")
    return text


DateText = Annotated[str, BeforeValidator(_iso), AfterValidator(_date)]
Instructions = Annotated[str, AfterValidator(_no_marks)]
Line = Annotated[str, AfterValidator(_one_line), AfterValidator(_no_marks)]

PREAMBLES: Final = "preambles"
"""Key of `findings` in the manifests of datasets with tokens: column of tokens -> the fields of PREAMBLE_FIELDS."""
PREAMBLE_FIELDS: Final = ("system", "developer", "reasoning_effort", "conversation_start_date", "knowledge_cutoff")


@functools.lru_cache(maxsize=8)
def _renderer(preamble: Preamble, vocabulary: str) -> Renderer:
    """One renderer for all tasks of a process, so that they share the headers it has made."""
    return Renderer(preamble, vocabulary)


class HarmonyStep(Step):
    """Renders `messages`, and `tools` if there are any, to `input_ids` and spans.

    A live row gets verdict `unrenderable` (value: why) if a message has an unknown role or channel, a tool's message
    answers no call, the tools are no list of functions, or a raw document comes with other messages or tools. It gets
    `no_supervised_tokens` (value: number of messages) if no assistant speaks in it or a raw document is empty.
    `reasoning_effort` is null for raw documents, as no constant message precedes them.
    """

    kind: Literal["harmony"] = "harmony"
    purpose: ClassVar[str] = "Render conversations as Harmony tokens, with a span for every supervised message."
    example: ClassVar[str] = "{kind: harmony, reasoning_effort: high}"
    version: ClassVar[int] = 4
    reads: ClassVar[tuple[str, ...]] = ("messages",)
    may_read: ClassVar[tuple[str, ...]] = ("tools", "conversation_id")
    adds: ClassVar[pa.Schema] = TOKENIZED_COLUMNS
    located: ClassVar[frozenset[str]] = frozenset({"vocabulary"})

    system: Line = "You are ChatGPT, a large language model trained by OpenAI."
    """Identity: the first line of the system message."""
    developer: Instructions | None = None
    """Text of a constant developer message, of any number of lines; null: no such message."""
    reasoning_effort: Effort = "medium"
    """Reasoning effort that the system message states."""
    conversation_start_date: DateText | None = None
    """`Current date` of the system message: a day, a month or a year; null: no such line."""
    knowledge_cutoff: DateText | None = "2024-06"
    """`Knowledge cutoff` of the system message: a day, a month or a year; null: no such line."""
    history_analysis: Literal["drop", "keep"] = "drop"
    """In rows that are turns of one conversation (`rows: turn`): leave out the reasoning of earlier turns, as at
    inference, or render it. Only the last turn of such a row is supervised. Other rows keep all reasoning."""
    vocabulary: str = DEFAULT_VOCABULARY
    """URI of o200k_base.tiktoken, from any place; its digest is checked."""

    def artefacts(self) -> dict[str, str]:
        """The vocabulary's digest (checked here, before a row is read) and the renderer's version."""
        vocabulary_file(self.vocabulary)
        return {"o200k_base": VOCABULARY_SHA256, "openai-harmony": version("openai-harmony")}

    def preamble(self) -> Preamble:
        """The contents of the constant messages."""
        return Preamble(
            identity=self.system,
            developer=self.developer,
            effort=self.reasoning_effort,
            start_date=self.conversation_start_date,
            knowledge_cutoff=self.knowledge_cutoff,
        )

    def findings(self) -> dict[str, dict[str, Any]]:
        """The preamble of its conversations by their column of tokens; an export needs it for the chat template."""
        said = self.model_dump(mode="json", include=set(PREAMBLE_FIELDS))
        return {PREAMBLES: {column(self.name, "input_ids"): said}}

    def open(self) -> BatchFn:
        """Load both tokenizers (about 0.8 CPU seconds, once a process)."""
        renderer = _renderer(self.preamble(), self.vocabulary)

        def render(batch: pa.RecordBatch) -> pa.RecordBatch:
            turns = _turns(batch)
            batch, messages = self._judge(batch, turns)
            is_live = live(batch)
            rendered = renderer.render(messages)
            if turns.any():
                rendered = with_last_turn_alone(rendered, turns[is_live.to_numpy(zero_copy_only=False)])
            columns = _columns(rendered, is_live.to_numpy(zero_copy_only=False), self.reasoning_effort)
            return append(batch, TOKENIZED_COLUMNS, columns)

        return render

    def _judge(self, batch: pa.RecordBatch, turns: Bools) -> tuple[pa.RecordBatch, Messages]:
        """The batch with verdicts on rows that cannot be rendered or teach nothing, and the messages of live rows."""
        column, was_live = batch.column("messages"), live(batch)
        if self.history_analysis == "drop" and turns.any():
            column = without_history_analysis(column, turns)
        tools = batch.column("tools") if "tools" in batch.schema.names else pa.nulls(batch.num_rows, pa.string())
        messages = Messages.of(*_of_live(was_live, column, tools))
        number = _numbers(was_live)
        problems = messages.problems().take(number)
        batch = drop(batch, self.label, problems.is_valid(), "unrenderable", problems)
        answers = np.array([key.role == "assistant" for key in messages.keys], bool)[messages.key]
        documents = messages.is_text & (pc.binary_length(messages.content).to_numpy(zero_copy_only=False) > 0)
        silent = ~messages.rows_with(answers | documents)
        num_messages = pa.array(np.diff(messages.offsets)).take(number)
        batch = drop(batch, self.label, pa.array(silent).take(number), "no_supervised_tokens", num_messages)
        is_live = live(batch)
        if not is_live.equals(was_live):
            messages = Messages.of(*_of_live(is_live, column, tools))
        return batch, messages


def _turns(batch: pa.RecordBatch) -> Bools:
    """bool [rows]: which rows are turns of one conversation."""
    if "conversation_id" not in batch.schema.names:
        return np.zeros(batch.num_rows, np.bool_)
    return batch.column("conversation_id").is_valid().to_numpy(zero_copy_only=False)


def _of_live(is_live: pa.BooleanArray, *columns: pa.Array) -> Iterator[pa.Array]:
    """The columns without dropped rows."""
    return (column.filter(is_live) if is_live.false_count else column for column in columns)


def _numbers(is_live: pa.BooleanArray) -> pa.Array:
    """int64 [rows]: the number of each live row among the live ones, null for the others."""
    flags = is_live.to_numpy(zero_copy_only=False)
    return pa.array(np.cumsum(flags) - 1, mask=~flags)


def _columns(rendered: Rendered, is_live: npt.NDArray[np.bool_], effort: str) -> list[pa.Array]:
    """The arrays of TOKENIZED_COLUMNS for all rows: `rendered` has the live rows, the others are null."""
    spans, num_rows = rendered.spans, len(rendered.offsets) - 1
    lengths = np.diff(rendered.offsets)
    num_spans = np.bincount(spans.row, minlength=num_rows)
    first_span = np.cumsum(num_spans) - num_spans
    cell = spans.row * len(SPAN_KINDS) + spans.kind
    cells = num_rows, len(SPAN_KINDS)
    per_kind = np.bincount(cell, spans.end - spans.start, np.prod(cells)).reshape(cells)
    has_effort = is_live.copy()
    has_effort[is_live] = per_kind[:, SPAN_KINDS.index("text")] == 0
    names = pa.array(SPAN_KINDS).take(pa.array(spans.kind))
    positions = (pa.array(a, pa.int32()) for a in (spans.turn, spans.start, spans.content_start, spans.end))
    return [
        _lists(pa.array(rendered.tokens), lengths, is_live),
        _scattered(lengths, is_live),
        _scattered(spans.start[first_span], is_live),
        *(_scattered(counts, is_live) for counts in per_kind.T),
        _lists(pa.StructArray.from_arrays([names, *positions], fields=list(SPAN)), num_spans, is_live),
        pc.if_else(pa.array(has_effort), effort, pa.scalar(None, pa.string())),
        _scattered(signed(_row_hashes(rendered)).to_numpy(), is_live),
    ]


def _row_hashes(rendered: Rendered) -> npt.NDArray[np.uint64]:
    """XXH64 of each row's tokens as little-endian int32 bytes."""
    buffers = [None, pa.py_buffer(rendered.offsets * 4), pa.py_buffer(rendered.tokens)]
    return hash_array(pa.Array.from_buffers(pa.large_binary(), len(rendered.offsets) - 1, buffers))


def _scattered(values: npt.NDArray[np.generic], is_live: npt.NDArray[np.bool_]) -> pa.Array:
    """Values of the live rows at their places, null elsewhere."""
    out = np.zeros(len(is_live), np.int64)
    out[is_live] = values
    return pa.array(out, mask=~is_live)


def _lists(values: pa.Array, lengths: npt.NDArray[np.int64], is_live: npt.NDArray[np.bool_]) -> pa.Array:
    """Lists of the live rows over flat values, null elsewhere."""
    offsets = np.zeros(len(is_live) + 1, np.int64)
    offsets[1:][is_live] = lengths
    np.cumsum(offsets, out=offsets)
    assert offsets[-1] < 2**31, "a record batch holds at most 2^31 tokens"
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=pa.array(~is_live))
