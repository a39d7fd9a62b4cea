"""Reading sources: MB of raw bytes a CPU-second, by format, shape and length of row. Prints, never gates.

    make bench-read [BENCH="--base ../before --rounds 5 --sources messages-500,columns-parquet-2000"]
    python -m tests.benchmarks.bench_read [--base CHECKOUT] [--mb 24] [--rounds 3] [--text FILE.parquet]

`read` is the reader and the shape, which also makes ids; `ingest` is all that a task of the stage does: blank rows, the
content digest, and the part, which is written, hashed and put in its place. Each source is a file of --mb
megabytes whose texts are cut from the benchmark corpus beside the checkout, or from the embedded sample. --base names
a checkout to compare with, as `git worktree add` makes one. Each checkout is a process of its own and they take turns,
so that a shared machine slows both alike: quote the ratios. Medians after a round that compiles and warms up.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from etl.sources.sample import sample_folder

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT.parent / "shared" / "data" / "bench_corpus" / "corpus.parquet"
WAYS = ("read", "ingest")
_GLYPHS = "äöüßéèçñøåабвгдежзийклмнпрстуфхцч中文字符日本語한국어🙂🚀"

Row = dict[str, Any]
Texts = Callable[[int], str]
"""The next text of about so many characters."""


@dataclass(frozen=True)
class Corpus:
    """A kind of file that is read.

    Attributes:
        row: makes the next row of about this many bytes, given its number.
        description: of the source, as YAML or its JSON.
        row_bytes: how long a row is.
        suffix: of the file, which is its format.
        ascii_only: whether JSON writes other characters as escapes.
    """

    row: Callable[[int, int, Texts], Row]
    description: dict[str, Any]
    row_bytes: int
    suffix: str = ".jsonl"
    ascii_only: bool = False


# --- rows ----------------------------------------------------------------------------------------------------------


def _chat(number: int, size: int, texts: Texts) -> Row:
    turns = (2, 2, 2, 4, 6)[number % 5] if size >= 500 else 2
    length = size // turns - 40
    return {
        "messages": [
            {"role": ("user", "assistant")[turn % 2], "content": texts(length)} for turn in range(turns)
        ]
    }  # fmt: skip


def _swapped(number: int, size: int, texts: Texts) -> Row:
    """A row with more columns, the keys of its messages in another order, and instructions."""
    said = [{"content": m["content"], "role": m["role"]} for m in _chat(number, size, texts)["messages"]]
    system = {"content": "You are a helpful assistant.", "role": "system"}
    return {"id": f"row-{number}", "source": "made", "score": number / 7, "messages": [system, *said]}


def _reasoned(number: int, size: int, texts: Texts) -> Row:
    answer = {"role": "assistant", "reasoning_content": texts(size // 2), "content": texts(size // 4)}
    return {"messages": [{"role": "user", "content": texts(size // 4)}, answer]}


def _tagged(number: int, size: int, texts: Texts) -> Row:
    answer = {"role": "assistant", "content": f"<think>\n{texts(size // 2)}\n</think>\n\n{texts(size // 4)}"}
    return {"messages": [{"role": "user", "content": texts(size // 4)}, answer]}


def _calling(number: int, size: int, texts: Texts) -> Row:
    call = {"id": f"call_{number}", "type": "function", "function": {"name": "look_up", "arguments": '{"n": 1}'}}
    return {
        "messages": [
            {"role": "user", "content": texts(size // 3)},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"call_{number}", "content": texts(size // 4)},
            {"role": "assistant", "content": texts(size // 4)},
        ],
        "tools": [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}],
    }


def _columns(number: int, size: int, texts: Texts) -> Row:
    prose = {"question": texts(size // 4), "thought": texts(size // 4), "answer": texts(size // 2)}
    return {"id": f"row-{number}", **prose, "topic": f"topic {number % 40}", "grade": number % 9 + 0.5}


def _document(number: int, size: int, texts: Texts) -> Row:
    return {"id": f"row-{number}", "text": texts(size)}


_BUCKET = {"skill_bucket": {"default": "B4"}}
_CHAT = {"shape": "messages", **_BUCKET}
_META = {"shape": "messages", "example_id": "id", "meta": ["source", "score"], **_BUCKET}
_COLUMNS = {
    "shape": "columns", "example_id": "id", "user": "question", "analysis": "thought", "final": "answer",
    "meta": ["topic", "grade"], **_BUCKET,
}  # fmt: skip
_TEXT = {"shape": "text", "example_id": "id", "text": "text", **_BUCKET}

CORPORA = {
    "messages-500": Corpus(_chat, _CHAT, 500),
    "messages-2000": Corpus(_chat, _CHAT, 2000),
    "messages-meta-500": Corpus(_swapped, _META, 500),
    "messages-meta-2000": Corpus(_swapped, _META, 2000),
    "messages-escaped-500": Corpus(_chat, _CHAT, 500, ascii_only=True),
    "messages-escaped-2000": Corpus(_chat, _CHAT, 2000, ascii_only=True),
    "messages-reasoning-2000": Corpus(_reasoned, _CHAT, 2000),
    "messages-tags-2000": Corpus(_tagged, _CHAT, 2000),
    "messages-tools-2000": Corpus(_calling, _CHAT, 2000),
    "columns-jsonl-500": Corpus(_columns, _COLUMNS, 500),
    "columns-jsonl-2000": Corpus(_columns, _COLUMNS, 2000),
    "columns-parquet-500": Corpus(_columns, _COLUMNS, 500, ".parquet"),
    "columns-parquet-2000": Corpus(_columns, _COLUMNS, 2000, ".parquet"),
    "columns-csv-2000": Corpus(_columns, _COLUMNS, 2000, ".csv"),
    "text-jsonl-2000": Corpus(_document, _TEXT, 2000),
}


def _pool(path: Path | None) -> str:
    """Prose to cut texts from, 40 MB of it at most."""
    if path is None:
        return "\n\n".join(file.read_text() for file in sorted(sample_folder().rglob("*.jsonl")))
    texts, size = [], 0
    for batch in pq.ParquetFile(path).iter_batches(1000, columns=["text"]):
        texts += batch.column("text").to_pylist()
        size += batch.nbytes
        if size > 40 << 20:
            break
    return "\n\n".join(texts)


def _cutter(pool: str, ascii_only: bool) -> Texts:
    """Texts from prose, in sequence; where escapes are wanted, with other letters and quotes among them."""
    rng = np.random.default_rng(1)
    at = 0

    def text(length: int) -> str:
        nonlocal at
        size = max(8, int(length * rng.uniform(0.4, 1.6)))
        at = at + size if at + 2 * size < len(pool) else 0
        cut = pool[at : at + size]
        if ascii_only:
            return "".join(_GLYPHS[ord(c) % len(_GLYPHS)] if place % 10 == 0 else c for place, c in enumerate(cut))
        return cut

    return text


def write_corpus(folder: Path, name: str, corpus: Corpus, pool: str, num_bytes: int) -> None:
    """The file of a corpus and its description; raw bytes are those of the texts where the file is compressed."""
    texts = _cutter(pool, corpus.ascii_only)
    rows = [corpus.row(number, corpus.row_bytes, texts) for number in range(num_bytes // corpus.row_bytes)]
    path = folder / f"{name}{corpus.suffix}"
    if corpus.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10_000, compression="zstd")
    elif corpus.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=corpus.ascii_only) + "\n" for row in rows))
    (folder / f"{name}.yaml").write_text(json.dumps(corpus.description))


def raw_bytes(path: Path) -> int:
    """Of a file; of Parquet those of its columns when they are decoded."""
    if path.suffix != ".parquet":
        return path.stat().st_size
    return sum(batch.nbytes for batch in pq.ParquetFile(path).iter_batches())


# --- runs ----------------------------------------------------------------------------------------------------------


class Checkout:
    """A process that reads with the code of one checkout."""

    def __init__(self, root: Path, folder: Path) -> None:
        script = Path(__file__).with_name("read_runs.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(folder)],
            env={**os.environ, "PYTHONPATH": str(root)},
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def cpu_s(self, name: str, how: str) -> float | None:
        """What one read of a source takes; None where it cannot be read.

        Raises:
            RuntimeError: the process has ended.
        """
        told, answers = self._pipes()
        told.write(f"{name} {how}\n")
        told.flush()
        answer = answers.readline().strip()
        if not answer:
            raise RuntimeError(f"the process ended, reading {name}; its messages are above")
        return None if answer == "none" else float(answer)

    def close(self) -> None:
        """End the process."""
        told, _ = self._pipes()
        told.close()
        self._process.wait()

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


def measure(checkouts: Sequence[Checkout], name: str, how: str, rounds: int) -> list[float | None]:
    """Median CPU-seconds of each checkout, a warm-up and then turn by turn."""
    found = [[checkout.cpu_s(name, how) for checkout in checkouts] for _ in range(rounds + 1)][1:]
    return [_median(times) for times in zip(*found, strict=True)]


def _median(times: Sequence[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return statistics.median(known) if known else None


def lines(
    names: Sequence[str], sizes: dict[str, int], times: dict[tuple[str, str], list[float | None]]
) -> Iterator[str]:
    """The table: this checkout, and beside it the base."""
    yield "| source | " + " | ".join(f"{how}, MB/CPU-s | base | ratio" for how in WAYS) + " |"
    yield "|---" * (1 + 3 * len(WAYS)) + "|"
    for name in names:
        cells = []
        for how in WAYS:
            ours, *base = times[name, how]
            before = base[0] if base else None
            cells += [_rate(sizes[name], ours), _rate(sizes[name], before)]
            cells.append("" if ours is None or before is None else f"{before / ours:.2f}")
        yield f"| {name} | " + " | ".join(cells) + " |"


def _rate(size: int, cpu_s: float | None) -> str:
    return "" if cpu_s is None else f"{size / 1e6 / cpu_s:.1f}"


def main() -> None:
    """Make the files, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a checkout to compare with")
    parser.add_argument("--mb", type=int, default=24, help="megabytes of each file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", type=Path, help="Parquet whose column `text` the rows are cut from")
    parser.add_argument("--sources", default=",".join(CORPORA), help="names, with commas between them")
    parser.add_argument("--folder", type=Path, help="keep the files here")
    args = parser.parse_args()
    names = args.sources.split(",")
    with tempfile.TemporaryDirectory(prefix="stillhouse-bench-") as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        missing = [name for name in names if not (folder / f"{name}.yaml").exists()]
        if missing:
            pool = _pool(args.text or (CORPUS if CORPUS.exists() else None))
            for name in missing:
                write_corpus(folder, name, CORPORA[name], pool, args.mb << 20)
        sizes = {name: raw_bytes(folder / f"{name}{CORPORA[name].suffix}") for name in names}
        checkouts = [Checkout(root, folder) for root in (ROOT, *([args.base.resolve()] if args.base else []))]
        times = {(name, how): measure(checkouts, name, how, args.rounds) for name in names for how in WAYS}
        for checkout in checkouts:
            checkout.close()
    sys.stdout.write("".join(f"{line}\n" for line in lines(names, sizes, times)))


if __name__ == "__main__":
    main()
