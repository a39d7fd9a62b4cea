"""The Harmony step: adds the TOKENIZED columns to rows with `messages`.

The columns are built from flat numpy buffers; etl/harmony/render.py says what is rendered. 20 to 30 MB of
fresh text per CPU-second, most of it the BPE's: 5 times openai-harmony on rows of 3.5 kB, 16 times on rows of
500 characters, where headers weigh more (tests/benchmarks/bench_harmony.py).
"""

import datetime
from importlib.metadata import version
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator

from etl.harmony.render import Effort, Messages, Preamble, Rendered, Renderer
from etl.harmony.vocabulary import DEFAULT_VOCABULARY, VOCABULARY_SHA256, vocabulary_file
from etl.hashing import hash_array, signed
from etl.schema import SPAN, SPAN_KINDS, TOKENIZED_COLUMNS
from etl.step import BatchFn, Step, append, drop, live


def _iso(value: object) -> object:
    """YAML reads an unquoted 2026-01-01 as a date."""
    return value.isoformat() if isinstance(value, datetime.date) else value


DateText = Annotated[str, BeforeValidator(_iso)]


class HarmonyStep(Step):
    """Renders `messages` to `input_ids` and spans.

    A live row gets verdict `unrenderable` (value: why) when a message has an unknown role or channel, a tool's
    message answers no call, or a raw document stands beside other messages; and `no_supervised_tokens` (value: number
    of messages) when no assistant speaks in it or a raw document is empty. `reasoning_effort` is null for raw
    documents, which no constant message precedes.
    """

    kind: Literal["harmony"] = "harmony"
    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("messages",)
    adds: ClassVar[pa.Schema] = TOKENIZED_COLUMNS
    located: ClassVar[frozenset[str]] = frozenset({"vocabulary"})

    system: str = "You are ChatGPT, a large language model trained by OpenAI."
    """Identity: the first line of the system message."""
    developer: str | None = None
    """Instructions of a constant developer message; no such message when null."""
    reasoning_effort: Effort = "medium"
    conversation_start_date: DateText | None = None
    """`Current date` of the system message; no such line when null."""
    knowledge_cutoff: DateText | None = "2024-06"
    vocabulary: str = DEFAULT_VOCABULARY
    """URI of o200k_base.tiktoken; any place is good, the content is checked."""

    def artefacts(self) -> dict[str, str]:
        """The vocabulary's digest (checked here, before a row is read) and the renderer's version."""
        vocabulary_file(self.vocabulary)
        return {"o200k_base": VOCABULARY_SHA256, "openai-harmony": version("openai-harmony")}

    def preamble(self) -> Preamble:
        """What the constant messages say."""
        return Preamble(
            identity=self.system,
            developer=self.developer,
            effort=self.reasoning_effort,
            start_date=self.conversation_start_date,
            knowledge_cutoff=self.knowledge_cutoff,
        )

    def open(self) -> BatchFn:
        """Load both tokenizers (about 1.3 CPU seconds, once a process)."""
        renderer = Renderer(self.preamble(), self.vocabulary)

        def render(batch: pa.RecordBatch) -> pa.RecordBatch:
            batch = self._judge(batch)
            is_live = live(batch)
            rendered = renderer.render(Messages.of(batch.column("messages").filter(is_live)))
            columns = _columns(rendered, is_live.to_numpy(zero_copy_only=False), self.reasoning_effort)
            return append(batch, TOKENIZED_COLUMNS, columns)

        return render

    def _judge(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Verdicts for the rows that cannot be rendered or teach nothing."""
        column = batch.column("messages")
        messages = Messages.of(pc.if_else(live(batch), column, pa.scalar([], column.type)))
        problems = messages.problems()
        batch = drop(batch, self.label, problems.is_valid(), "unrenderable", problems)
        answers = np.array([key.role == "assistant" for key in messages.keys], bool)[messages.key]
        documents = messages.is_text & (pc.binary_length(messages.content).to_numpy(zero_copy_only=False) > 0)
        silent = ~messages.rows_with(answers | documents)
        num_messages = pa.array(np.diff(messages.offsets))
        return drop(batch, self.label, pa.array(silent), "no_supervised_tokens", num_messages)


def _columns(rendered: Rendered, is_live: npt.NDArray[np.bool_], effort: str) -> list[pa.Array]:
    """The arrays of TOKENIZED_COLUMNS for all rows; `rendered` has the live ones, the others are null."""
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
