"""The Harmony step against openai-harmony: MB of text per CPU-second and their ratio, one interleaved run.

`python -m tests.benchmarks.bench_harmony ROWS.jsonl.gz` with rows of query, synthetic_reasoning and
synthetic_answer (by default the golden rows of the shared test data). Two shapes: the rows as they are, and
the same text cut into conversations of about 500 characters, where headers weigh more. Each slice of the
rows is fresh to both sides, which take turns at being first; the first slice warms up. Outputs are
compared. About 15 s.
"""

import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from openai_harmony import Conversation, Message, RenderConversationConfig, Role

from etl.harmony.render import preamble_messages
from etl.harmony.step import HarmonyStep
from etl.harmony.vocabulary import load_encoding
from tests.conftest import SHARED_DATA
from tests.etl.harmony.conversations import batch, message

Row = list[dict[str, Any]]

GOLDEN_ROWS = SHARED_DATA / "synth_harmony_golden" / "rows.jsonl.gz"
NUM_SLICES = 6
SHORT_CHARS = 170
STEP = HarmonyStep(reasoning_effort="high")


def conversation(query: str, reasoning: str, answer: str) -> Row:
    return [
        message("user", query),
        message("assistant", reasoning, "analysis"),
        message("assistant", answer, "final"),
    ]


def cut(rows: list[Row]) -> list[Row]:
    """The same text as conversations of three pieces of SHORT_CHARS characters."""
    text = "".join(m["content"] for row in rows for m in row)
    pieces = [text[i : i + SHORT_CHARS] for i in range(0, len(text), SHORT_CHARS)]
    return [conversation(*pieces[i : i + 3]) for i in range(0, len(pieces) - 2, 3)]


def objects(rows: list[Row]) -> list[Conversation]:
    """openai-harmony's objects for some rows."""
    constant, made = preamble_messages(STEP.preamble()), []
    for row in rows:
        messages = list(constant)
        for m in row:
            said = Message.from_role_and_content(Role(m["role"]), m["content"])
            messages.append(said.with_channel(m["channel"]) if m["channel"] else said)
        made.append(Conversation.from_messages(messages))
    return made


def render_all(conversations: list[Conversation]) -> list[list[int]]:
    """openai-harmony's tokens, analysis kept."""
    config, encoding = RenderConversationConfig(auto_drop_analysis=False), load_encoding()
    return [encoding.render_conversation_for_training(c, config) for c in conversations]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of this process that some work takes, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def measure(slices: list[list[Row]]) -> Iterator[tuple[float, float, float, float]]:
    """Of each slice: megabytes; CPU-seconds of the step, of openai-harmony, and of making its objects."""
    step = STEP.open()
    for i, rows in enumerate(slices):
        made = batch(rows)
        making, theirs = timed(partial(objects, rows))
        works = [partial(step, made), partial(render_all, theirs)]
        order = (0, 1) if i % 2 else (1, 0)
        done = {k: timed(works[k]) for k in order}
        assert done[0][1].column("input_ids").to_pylist() == done[1][1]
        megabytes = sum(len(m["content"].encode()) for row in rows for m in row) / 1e6
        yield megabytes, done[0][0], done[1][0], making


def report(name: str, slices: list[list[Row]]) -> None:
    """Print rates, and the median ratio with and without the making of objects."""
    measured = list(measure(slices))[1:]
    megabytes, ours, theirs, making = (sum(column) for column in zip(*measured, strict=True))
    ratio = statistics.median(b / a for _, a, b, _ in measured)
    ratio_objects = statistics.median((b + c) / a for _, a, b, c in measured)
    rates = [f"{megabytes / seconds:.1f}" for seconds in (ours, theirs, theirs + making)]
    sys.stdout.write(
        f"{name}: step {rates[0]} MB/CPU-s, openai-harmony {rates[1]} (with its objects {rates[2]}): "
        f"{ratio:.1f} times, {ratio_objects:.1f} with objects\n"
    )


def main() -> None:
    """Measure both shapes, on two halves of the rows so that no text is seen twice."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN_ROWS
    with gzip.open(path, "rt", encoding="utf-8") as file:
        read = [json.loads(line) for line in file]
    rows = [conversation(r["query"], r["synthetic_reasoning"], r["synthetic_answer"]) for r in read]
    slices = [rows[i :: 2 * NUM_SLICES] for i in range(2 * NUM_SLICES)]
    report("whole rows", slices[:NUM_SLICES])
    report("500 characters", [cut(part) for part in slices[NUM_SLICES:]])


if __name__ == "__main__":
    main()
