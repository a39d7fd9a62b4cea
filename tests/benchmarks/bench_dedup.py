"""Near dedup beside rensa, datasketch and datatrove: CPU-seconds, memory, recall and precision. Prints, never gates.

    make bench-dedup [BENCH="--rounds 5 --parts signatures,near"]
    python -m tests.benchmarks.bench_dedup [--corpus FILE.parquet [--truth PAIRS.parquet]] [--peers PYTHON]

Parts, each a table: `signatures` from text, on a slice a round that nobody has seen before; `near`, the whole near
dedup of the corpus; `small`, the same of its first --documents, with datatrove; `licences`; `components`
(bench_components). Every contestant is a process of its own and their rounds take turns, so that a shared or throttled
machine slows all alike: quote the ratios. Without --corpus the benchmark corpus beside the checkout is taken, else one
is made of the embedded sample (tests/benchmarks/dedup_corpora.py). --peers names the interpreter that has the
packages of tests/benchmarks/peers/requirements.txt; where it is absent only ours is measured. Scratch goes to --folder.
With the benchmark corpus all of it takes about 10 minutes on two idle cores, half of them datatrove's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from etl.arrays import I64
from tests.benchmarks.dedup_corpora import (
    Corpus,
    first_documents,
    given,
    listed_licences,
    made,
    sample_licences,
)
from tests.benchmarks.dedup_runs import THRESHOLD

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
PARTS = ("signatures", "near", "small", "licences", "components")
OURS = "Stillhouse, in one process"

NOTES = """\
What a row includes. CPU s: user and system time of a process and its children, after imports and a warm-up on 300
documents, from the Parquet file to the result. With start-up: all of the process, interpreter, imports and warm-up
included. Peak GB: of the largest process. Recall: true pairs whose documents share a cluster. Precision: reported
pairs that are true. Pairs of hot bands are compared with 64 others at most, so a cluster of many equal documents
reports fewer pairs than it has.
- Stillhouse, in one process: etl.dedup.in_memory. Every reported pair is verified by the exact Jaccard of its sets.
- Stillhouse, stages: the recipe dedup_text, on Beam's in-process runner or the local engine. Verified; 1,000
  canaries; eight datasets written, committed and resumable; ranks and survivors. Ingest (ids, normalised Parquet) is
  counted apart.
- rensa + sorted bands: Python word 5-grams, 112 permutations, 14 bands of 8, scipy's components. Nothing is verified or
  written. `zip` is the fastest way to make the shingles in Python that we found, the other the usual one.
- datatrove: its four stages, 14 x 8, xxhash, two workers; its own words (spaCy). Nothing is verified; writes the
  remaining documents as JSON lines.
"""


@dataclass(frozen=True)
class Contestant:
    """A command that is measured.

    Attributes:
        name: as tables call it.
        command: of the process; the corpus and the number of slices or the file for the result are added.
        writes: whether near dedup also takes a scratch folder, which it makes.
    """

    name: str
    command: tuple[str, ...]
    writes: bool = False


@dataclass(frozen=True)
class Score:
    """How a result compares with the true pairs; shares, None where they are unknown."""

    num_pairs: int
    recall: float | None
    precision: float | None


def score(left: I64, right: I64, label: I64, truth: I64 | None) -> Score:
    """Judge a result.

    Args:
        left: smaller row of each reported pair, int64 [pairs].
        right: larger row of each.
        label: equal for rows that share a cluster, int64 [rows].
        truth: rows of the true pairs, the smaller first, int64 [true pairs, 2].
    """
    if truth is None:
        return Score(len(left), None, None)
    joined = label[truth[:, 0]] == label[truth[:, 1]]
    true = np.isin(left * len(label) + right, truth[:, 0] * len(label) + truth[:, 1])
    return Score(len(left), _share(joined), _share(true))


def _share(hits: npt.NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else 1.0


def say(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table in Markdown, its columns aligned."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
    lines.insert(1, ["-" * width for width in widths])
    for name, *cells in lines:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        say("| " + " | ".join([name.ljust(widths[0]), *aligned]) + " |")


def in_turn(contestants: Sequence[Any], turn: int) -> list[Any]:
    """All of them, another one first each time."""
    at = turn % len(contestants)
    return [*contestants[at:], *contestants[:at]]


# --- signatures ----------------------------------------------------------------------------------------------------


class Signer:
    """A process that signs the slice whose number it is given."""

    def __init__(self, contestant: Contestant, corpus: Corpus, num_slices: int, log: IO[str]) -> None:
        self.name = contestant.name
        command = [*contestant.command, str(corpus.path), str(num_slices)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        self.taken: list[float] = []
        self.megabytes = 0.0

    def sign(self, number: int) -> None:
        """The slice with this number; the first one warms up."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} failed; its messages are in the log in the scratch folder")
        found = json.loads(line)
        if number:
            self.taken.append(found["cpu_s"])
            self.megabytes += found["bytes"] / 1e6

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def signatures(corpus: Corpus, peers: Path | None, num_slices: int, folder: Path) -> None:
    """Race from text to 128 permutations."""
    ours = (sys.executable, "-m", "tests.benchmarks.dedup_runs", "sign")
    contestants = [
        Contestant("Stillhouse: 5-gram hashes, signatures", (*ours, "hashes")),
        Contestant("Stillhouse: sorted sets for verification, signatures", (*ours, "sets")),
    ]
    if peers:
        theirs = (str(peers), "-m", "tests.benchmarks.peers.python_shingles", "sign")
        contestants += [
            Contestant("rensa 0.5.0, Python shingles", (*theirs, "rensa")),
            Contestant("rensa 0.5.0, Python shingles by zip", (*theirs, "rensa_zip")),
            Contestant("datasketch 2.0.0 in bulk, Python shingles", (*theirs, "datasketch")),
        ]
    with (folder / "signatures.log").open("w") as log:
        signers = [Signer(contestant, corpus, num_slices, log) for contestant in contestants]
        for number in range(num_slices):
            for signer in in_turn(signers, number):
                signer.sign(number)
        for signer in signers:
            signer.close()
    first = signers[0]
    say(f"\n## Signatures from text: {num_slices - 1} fresh slices, {first.megabytes:.0f} MB of {corpus.name}\n")
    rows = []
    for signer in signers:
        ratios = [other / own for other, own in zip(signer.taken, first.taken, strict=True)]
        rate = signer.megabytes / sum(signer.taken)
        spread = f"{min(ratios):.1f} to {max(ratios):.1f}"
        rows.append((signer.name, f"{rate:.1f}", f"{statistics.median(ratios):.1f}", spread))
    print_table(("", "MB per CPU-second", "first row is faster, times (median of slices)", "all slices"), rows)


# --- near dedup ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One round of a contestant: its own figures, CPU-seconds of the whole process, and how good the result is."""

    figures: dict[str, float]
    total_cpu_s: float
    score: Score

    @property
    def cpu_s(self) -> float:
        return self.figures["cpu_s"]


def near_contestants(peers: Path | None, with_datatrove: bool) -> list[Contestant]:
    """Ours in one process comes first."""
    ours = (sys.executable, "-m", "tests.benchmarks.dedup_runs", "near")
    found = [
        Contestant(OURS, (*ours, "memory")),
        Contestant("Stillhouse, stages on Beam", (*ours, "beam"), writes=True),
        Contestant("Stillhouse, stages on the local engine", (*ours, "local"), writes=True),
    ]
    if peers:
        shingled = (str(peers), "-m", "tests.benchmarks.peers.python_shingles", "near")
        found += [
            Contestant("rensa + sorted bands", (*shingled, "rensa")),
            Contestant("rensa + sorted bands, zip", (*shingled, "rensa_zip")),
        ]
        if with_datatrove:
            stages = (str(peers), "-m", "tests.benchmarks.peers.datatrove_stages")
            found.append(Contestant("datatrove 0.10.1", stages, writes=True))
    return found


def run(contestant: Contestant, corpus: Corpus, folder: Path) -> Run:
    """Measure one round in a process of its own."""
    result, out, log = folder / "found.npz", folder / "answer.json", folder / "near.log"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [*contestant.command, str(corpus.path), str(result)]
        if contestant.writes:
            command.append(f"{scratch}/run")
        with out.open("w") as answers, log.open("w") as messages:
            process = subprocess.Popen(command, cwd=ROOT, stdout=answers, stderr=messages)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{contestant.name} failed:\n{log.read_text()[-2000:]}")
    figures = json.loads(out.read_text().splitlines()[-1])
    with np.load(result) as found:
        judged = score(found["left"], found["right"], found["label"], corpus.truth)
    return Run(figures, usage.ru_utime + usage.ru_stime, judged)


def near(corpus: Corpus, contestants: list[Contestant], rounds: int, folder: Path) -> None:
    """Measure the whole near dedup of a corpus."""
    runs: dict[str, list[Run]] = {contestant.name: [] for contestant in contestants}
    for turn in range(rounds):
        for contestant in in_turn(contestants, turn):
            found = run(contestant, corpus, folder)
            runs[contestant.name].append(found)
            sys.stderr.write(f"round {turn + 1} of {rounds}: {contestant.name}, {found.cpu_s:.2f} CPU s\n")
    known = "unknown" if corpus.truth is None else f"{len(corpus.truth):,}"
    size = f"{corpus.num_rows:,} documents, {corpus.num_bytes / 1e6:.1f} MB"
    say(f"\n## Near dedup at {THRESHOLD}: {corpus.name}; {size}, {known} true pairs; medians of {rounds} rounds\n")
    rows = []
    first, second = (runs[contestant.name] for contestant in contestants[:2])
    for name, rounds_of in runs.items():
        cpu = statistics.median(item.cpu_s for item in rounds_of)
        judged = rounds_of[0].score
        rows.append((
            name, f"{cpu:.2f}", f"{statistics.median(item.total_cpu_s for item in rounds_of):.1f}",
            f"{statistics.median(item.figures['wall_s'] for item in rounds_of):.1f}",
            f"{corpus.num_bytes / 1e6 / cpu:.1f}", f"{max(item.figures['peak_gb'] for item in rounds_of):.2f}",
            f"{judged.num_pairs:,}", share_text(judged.recall), share_text(judged.precision),
            f"{times(rounds_of, first):.2f}", f"{times(rounds_of, second):.2f}",
        ))  # fmt: skip
    heads = ("", "CPU s", "with start-up", "s", "MB per CPU s", "peak GB", "pairs", "recall", "precision")
    print_table((*heads, "x in one process", "x stages"), rows)
    ingest = [statistics.median(item.figures[name] for item in second) for name in ("ingest_cpu_s", "ingest_wall_s")]
    say(f"\nIngest before the stages: {ingest[0]:.2f} CPU s, {ingest[1]:.1f} s.")


def times(runs: list[Run], base: list[Run]) -> float:
    """How many times the CPU-seconds of the base a contestant took, the median of the rounds."""
    return statistics.median(one.cpu_s / other.cpu_s for one, other in zip(runs, base, strict=True))


def share_text(share: float | None) -> str:
    return "?" if share is None else f"{share:.5f}"


# --- all of it -----------------------------------------------------------------------------------------------------


def corpora(args: argparse.Namespace) -> tuple[Corpus, Corpus]:
    """The corpus and the licences."""
    listed = SHARED / "dedup_licences"
    licences = (
        listed_licences(listed, args.folder, THRESHOLD) if listed.is_dir() else sample_licences(args.folder, THRESHOLD)
    )
    if args.corpus:
        return given(args.corpus.stem, args.corpus, args.truth, THRESHOLD), licences
    shared = SHARED / "bench_corpus"
    if shared.is_dir():
        path, truth = shared / "corpus.parquet", shared / "exact_pairs.parquet"
        return given("the benchmark corpus", path, truth, THRESHOLD), licences
    return made(args.documents, args.folder, THRESHOLD), licences


def full_path(text: str) -> Path:
    """Contestants run at the checkout's root; links are kept, since that of a virtual environment leads out of it."""
    return Path(text).absolute()


def main() -> None:
    """Print the tables that the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=full_path, help="Parquet with the columns id and text")
    parser.add_argument("--truth", type=full_path, help="Parquet with the columns a and b: ids of all similar pairs")
    parser.add_argument("--peers", type=full_path, default=ROOT / "build" / "peers" / "bin" / "python")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3, help="of near dedup")
    parser.add_argument("--slices", type=int, default=11, help="of the corpus, for signatures; the first warms up")
    parser.add_argument(
        "--documents", type=int, default=20_000, help="of the part `small`, or of a corpus that is made"
    )
    parser.add_argument("--edges", type=int, default=1_000_000, help="of the part `components`")
    parser.add_argument("--folder", type=full_path, default=ROOT / "build" / "bench" / "dedup")
    args = parser.parse_args()
    parts = args.parts.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        parser.error(f"--parts: {unknown} is not among {','.join(PARTS)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    peers = args.peers if args.peers.exists() else None
    if peers is None:
        say(f"There is no {args.peers}: only ours is measured. `make bench-dedup` makes it.")
    say(f"Load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")
    corpus, licences = corpora(args)
    if "signatures" in parts:
        signatures(corpus, peers, args.slices, args.folder)
    if "near" in parts:
        near(corpus, near_contestants(peers, False), args.rounds, args.folder)
    if "small" in parts:
        small = first_documents(corpus, args.documents, args.folder, THRESHOLD)
        near(small, near_contestants(peers, True), args.rounds, args.folder)
    if "licences" in parts:
        near(licences, near_contestants(peers, False), args.rounds, args.folder)
    if "components" in parts:
        say(f"\n## Connected components of {args.edges:,} pairs\n")
        command = [sys.executable, "-m", "tests.benchmarks.bench_components", "--edges", str(args.edges)]
        subprocess.run(command, cwd=ROOT, check=True)
    say("\n" + NOTES)
    say(f"Load of the machine: {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
