"""The Harmony step against tiktoken and openai-harmony: MB of text per CPU-second and ratios, one interleaved run.

`python -m tests.benchmarks.bench_harmony ROWS.jsonl.gz` with rows of query, synthetic_reasoning and
synthetic_answer, or `CORPUS.parquet` with a column text (26 languages, code and prose; the first SAMPLE_BYTES of a
shuffle), by default both of the shared test data. Two shapes: whole rows (of a corpus the documents of 3,500
characters and more, in three parts), and the same text cut into conversations of about 500 characters, where headers
weigh more. Each slice of the rows is fresh to all sides, which take turns at being first; the first slice warms up.
tiktoken encodes only the contents, on one thread, without headers or columns. Outputs are compared with
openai-harmony's. Batches are 0.3 MB for the golden rows and 2 MB for the corpus; a run has 16. About 2 min.
"""

import bisect
import gzip
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import tiktoken
from openai_harmony import Conversation, Message, RenderConversationConfig, Role

from etl.harmony.render import preamble_messages
from etl.harmony.step import HarmonyStep
from etl.harmony.vocabulary import load_encoding
from tests.conftest import SHARED_DATA
from tests.etl.harmony.conversations import batch, message
from tests.etl.harmony.oracles import load_tiktoken

Row = list[dict[str, Any]]

GOLDEN_ROWS = SHARED_DATA / "synth_harmony_golden" / "rows.jsonl.gz"
CORPUS = SHARED_DATA / "bench_corpus" / "corpus.parquet"
SAMPLE_BYTES = 40_000_000
LONG_CHARS = 3_500
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


def encode_all(rows: list[Row], oracle: tiktoken.Encoding) -> None:
    """tiktoken's tokens of every message."""
    for row in rows:
        for m in row:
            oracle.encode_ordinary(m["content"])


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of this process that some work takes, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def measure(slices: list[list[Row]]) -> Iterator[tuple[float, float, float, float, float]]:
    """Of each slice: megabytes; CPU-seconds of the step, of openai-harmony, of tiktoken, and of making objects."""
    step, oracle = STEP.open(), load_tiktoken()
    for i, rows in enumerate(slices):
        made = batch(rows)
        making, theirs = timed(partial(objects, rows))
        works = [partial(step, made), partial(render_all, theirs), partial(encode_all, rows, oracle)]
        done = {k % 3: timed(works[k % 3]) for k in range(i, i + 3)}
        assert done[0][1].column("input_ids").to_pylist() == done[1][1]
        megabytes = sum(len(m["content"].encode()) for row in rows for m in row) / 1e6
        yield megabytes, done[0][0], done[1][0], done[2][0], making


def report(name: str, slices: list[list[Row]]) -> None:
    """Print rates, and the median ratios; openai-harmony's with and without the making of objects."""
    measured = list(measure(slices))[1:]
    megabytes, ours, theirs, oracle, making = (sum(column) for column in zip(*measured, strict=True))
    per_tiktoken = statistics.median(c / a for _, a, _, c, _ in measured)
    ratio = statistics.median(b / a for _, a, b, _, _ in measured)
    ratio_objects = statistics.median((b + d) / a for _, a, b, _, d in measured)
    rates = [f"{megabytes / seconds:.1f}" for seconds in (ours, oracle, theirs, theirs + making)]
    sys.stdout.write(
        f"{name}, {megabytes:.1f} MB: step {rates[0]} MB/CPU-s, tiktoken {rates[1]}: {per_tiktoken:.1f} times; "
        f"openai-harmony {rates[2]} (with its objects {rates[3]}): {ratio:.1f} times, {ratio_objects:.1f} with them\n"
    )
    sys.stdout.flush()


def read_rows(path: Path) -> list[Row]:
    """Whole rows of a file."""
    if path.suffix == ".parquet":
        texts = pq.read_table(path, columns=["text"]).column("text").to_pylist()
        random.Random(0).shuffle(texts)
        total = list(itertools.accumulate(len(text.encode()) for text in texts))
        long = [text for text in texts[: bisect.bisect(total, SAMPLE_BYTES)] if len(text) >= LONG_CHARS]
        cuts = [(text, len(text) // 6, len(text) // 2) for text in long]
        return [conversation(text[:start], text[start:end], text[end:]) for text, start, end in cuts]
    with gzip.open(path, "rt", encoding="utf-8") as file:
        read = [json.loads(line) for line in file]
    return [conversation(r["query"], r["synthetic_reasoning"], r["synthetic_answer"]) for r in read]


def main() -> None:
    """Measure both shapes, on two halves of the rows so that no text is seen twice."""
    for path in [Path(name) for name in sys.argv[1:]] or [GOLDEN_ROWS, CORPUS]:
        rows = read_rows(path)
        slices = [rows[i :: 2 * NUM_SLICES] for i in range(2 * NUM_SLICES)]
        report(f"{path.name}, whole rows", slices[:NUM_SLICES])
        report(f"{path.name}, 500 characters", [cut(part) for part in slices[NUM_SLICES:]])


if __name__ == "__main__":
    main()
