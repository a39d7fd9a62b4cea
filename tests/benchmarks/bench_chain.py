"""The whole chain on every engine beside datatrove: CPU-seconds of the process tree, peak memory. Prints, never gates.

    make bench-chain [BENCH="--rounds 1 --sizes 51.6"]
    python -m tests.benchmarks.bench_chain [--corpus FILE.parquet] [--peers PYTHON] [--demo]
    python -m tests.benchmarks.bench_chain --quick       # one run on 20 documents, to see that it works

Ours is one recipe, text -> language -> exact and near dedup -> Harmony tokens -> corpus, by `stillhouse run` on Spark
local[2], Beam's direct runner and the local engine with two processes. datatrove's is in peers/datatrove_chain.py, with
two workers. Each run is a process tree of its own, from the start of the interpreter to the end of the last process.
Runs take turns in each round, so that a shared machine slows all alike: quote the ratios. Each of ours first runs once,
uncounted, on the first of --sizes; this compiles kernels and fills caches.

Inputs (chain_corpora.py) are cut from the benchmark corpus beside the checkout, or from --corpus, Parquet with a column
text: --fixed documents for the cost of any run whatever its input, then each of --sizes. A size beyond the corpus is
made of copies with another order of words; it runs once, and without datatrove, whose last rate is used. The parts
`language`, `bpe` and `near` run the benchmarks of those kernels on the same corpus. --demo also runs the command of
`make demo`, twice. With the benchmark corpus the chain takes about 40 minutes on two idle cores, two thirds of them
datatrove's. Inputs and outputs go to --folder, up to 5 GB.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from etl.artefacts import fetch
from etl.filters.language import MODEL_SHA256, MODEL_URI
from etl.storage.costs import RunCosts, read_run_costs
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from tests.benchmarks.bench_dedup import ROOT, SHARED, full_path, in_turn, print_table, say
from tests.benchmarks.chain_corpora import Input, input_of_rows, input_of_size
from tests.benchmarks.process_tree import TreeUse, run_measured
from training.export.harmony_tokenizer import tokenizer_json

ENGINES = ("spark", "beam", "local")
PARTS = ("chain", "language", "bpe", "near")
PEER = "datatrove 0.10.1"
WORKERS = 2
EXACT, EXACT_FOLDERS = "exact dedup", ("exact_hits", "exact")
NAMES = {
    "ingest": "reading",
    "filter": "language",
    "dedup": "near dedup",
    "tokenize": "tokens",
    "dropped": "layout",
    "cells": "layout",
}
"""Of stages, as the table calls them."""
RECIPE: dict[str, Any] = {
    "name": "chain",
    "stages": ["filter", "dedup", "tokenize", "layout"],
    "filter": {"steps": [{"kind": "language", "keep": ["en"], "min_score": 0.65}]},
    "dedup": {"exact": {}, "near": {"threshold": 0.8}},
}

NOTES = f"""\
CPU s: user and system time of the process tree, sampled 10 times a second (tests/benchmarks/process_tree.py), imports
and the JVM included. x datatrove: its CPU-seconds at this size over ours; at sizes that it does not run, by its rate at
its largest one. s a MB more: CPU-seconds without those of the smallest input, per MB. Peak GB: the largest sum of
resident sets; of it own: of proportional sets, in which pages that processes share count once. datatrove does no exact
dedup, no verification of pairs and writes no manifests; its words are spaCy's, so it keeps other near duplicates.
Everybody has {WORKERS} workers; Beam's direct runner is one process."""


@dataclass(frozen=True)
class Outcome:
    """What a chain has left: documents after language and after dedup, and their tokens.

    Attributes:
        stage_cpu_s: CPU-seconds of each stage where the chain reports them, the engine around its tasks included.
    """

    language: int
    dedup: int
    tokens: int
    stage_cpu_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """A chain that is measured.

    Attributes:
        name: as tables call it.
        command: the command that reads an input and writes below a folder, which is not there yet.
        outcome: what that command has left in the folder, by its files and its output.
        is_ours: runs at all sizes.
    """

    name: str
    command: Callable[[Input, Path], list[str]]
    outcome: Callable[[Path, str], Outcome]
    is_ours: bool = True


@dataclass(frozen=True)
class Run:
    """One run: what it took and what it left."""

    use: TreeUse
    outcome: Outcome


Runs = dict[tuple[str, int], list[Run]]
"""Contestant and number of the input -> its rounds."""


# --- contestants ---------------------------------------------------------------------------------------------------


def our_chain(engine: str, processes: int) -> Contestant:
    """`stillhouse run` on an engine; `processes` is for the local one."""

    def command(source: Input, folder: Path) -> list[str]:
        recipe = folder.with_suffix(".yaml")
        text = {"spec": "text", "path": str(source.folder), "id_column": "id", "text_column": "text"}
        recipe.write_text(json.dumps({**RECIPE, "output": str(folder), "sources": {"text": text}}))
        local = ["--processes", str(processes)] if engine == "local" else []
        return [sys.executable, "-m", "jobs.cli", "run", str(recipe), "--engine", engine, *local]

    names = {"spark": f"Spark local[{WORKERS}]", "beam": "Beam direct", "local": f"local, {processes} processes"}
    return Contestant(f"Stillhouse, {names[engine]}", command, our_outcome)


def our_outcome(folder: Path, said: str) -> Outcome:
    """From the manifests and `_costs.json` of a run."""

    def kept(dataset: str, step: str) -> int:
        accounting = Dataset.open(str(folder / dataset)).manifest.accounting
        return sum(of_source[step]["kept"] for of_source in accounting.values())

    tokens = Dataset.open(str(folder / "corpus")).manifest.num_tokens
    costs = read_run_costs(Location.of(folder))
    assert costs is not None, "every run leaves them"
    return Outcome(kept("filter", "language"), kept("near", "near"), tokens, by_stage(costs))


def by_stage(costs: RunCosts) -> dict[str, float]:
    """CPU-seconds by stage, the two passes of dedup apart and in their order."""
    found: dict[str, float] = {}
    for stage in costs.stages:
        for folder, cost in sorted(stage.datasets.items(), key=lambda item: item[0] not in EXACT_FOLDERS):
            name = EXACT if folder in EXACT_FOLDERS else NAMES.get(stage.label, stage.label)
            found[name] = found.get(name, 0.0) + cost.all_cpu_s
    return found


def datatrove_chain(python: Path, folder: Path) -> Contestant:
    """datatrove in its environment, with our files of the model and, made of our ranks, the tokenizer."""
    module = [str(python), "-m", "tests.benchmarks.peers.datatrove_chain"]
    tokenizer = folder / "o200k_base.json"
    if not tokenizer.exists():
        # Without added tokens: text that looks like a control token remains text, as it does with us.
        tokenizer.write_bytes(tokenizer_json({}))
    model = fetch(MODEL_URI, MODEL_SHA256)

    def command(source: Input, output: Path) -> list[str]:
        return [*module, str(source.folder), str(model), str(tokenizer), str(output)]

    def outcome(output: Path, said: str) -> Outcome:
        return Outcome(**json.loads(said.splitlines()[-1]))

    return Contestant(PEER, command, outcome, is_ours=False)


# --- the race ------------------------------------------------------------------------------------------------------


def run(contestant: Contestant, source: Input, folder: Path) -> Run:
    """One run; its output is removed when it has been read."""
    output, log, answers = folder / "output", folder / "chain.log", folder / "chain.answers"
    shutil.rmtree(output, ignore_errors=True)
    with log.open("w") as messages, answers.open("w") as said:
        use = run_measured(contestant.command(source, output), messages, said)
    if use.exit_code:
        sys.exit(f"{contestant.name} failed:\n{log.read_text()[-3000:]}\n{answers.read_text()[-1000:]}")
    found = Run(use, contestant.outcome(output, answers.read_text()))
    shutil.rmtree(output)
    return found


def race(contestants: Sequence[Contestant], inputs: Sequence[Input], rounds: int, folder: Path) -> Runs:
    """Everybody on every input, in turn. Inputs of several copies are run once, and only by ours."""
    found: Runs = {}
    for place, source in enumerate(inputs):
        entrants = [contestant for contestant in contestants if contestant.is_ours or source.copies == 1]
        for turn in range(rounds if source.copies == 1 else 1):
            for contestant in in_turn(entrants, turn):
                done = run(contestant, source, folder)
                found.setdefault((contestant.name, place), []).append(done)
                progress(contestant, source, done)
    return found


def progress(contestant: Contestant, source: Input, done: Run) -> None:
    """A line on stderr, for whoever waits and for a run that is broken off."""
    kinds = ", ".join(f"{kind} {cpu_s:.1f}" for kind, cpu_s in done.use.cpu_s_by_kind.items())
    size = f"{source.megabytes:.1f} MB"
    sys.stderr.write(f"{contestant.name}, {size}: {done.use.cpu_s:.1f} CPU s ({kinds}), {done.use.wall_s:.0f} s\n")


def cpu_s(runs: Sequence[Run]) -> float:
    """The median of the rounds."""
    return statistics.median(one.use.cpu_s for one in runs)


def chain_rows(inputs: Sequence[Input], runs: Runs) -> list[list[str]]:
    """The lines of the table, by input and contestant."""
    rows = []
    for (name, place), own in sorted(runs.items(), key=lambda item: item[0][1]):
        source, taken, kept = inputs[place], cpu_s(own), own[0].outcome
        peer = peer_cpu_s(inputs, runs, place)
        by_kind = own[0].use.cpu_s_by_kind
        more = f"{marginal(inputs, runs, name, place):.4f}" if place else ""
        rows.append([
            f"{source.megabytes:.1f} MB, {name}", f"{taken:.1f}", f"{by_kind.get('jvm', 0.0):.1f}",
            f"{statistics.median(one.use.wall_s for one in own):.1f}", f"{source.megabytes / taken:.2f}",
            "?" if peer is None else f"{peer / taken:.1f}", more,
            f"{max(one.use.peak_bytes for one in own) / 1e9:.2f}",
            f"{max(one.use.peak_pss_bytes for one in own) / 1e9:.2f}",
            f"{kept.language:,} / {kept.dedup:,}", f"{kept.tokens / 1e6:.2f}",
        ])  # fmt: skip
    return rows


def peer_cpu_s(inputs: Sequence[Input], runs: Runs, place: int) -> float | None:
    """datatrove's CPU-seconds on an input: measured, or from its rate on the largest one that it ran."""
    measured = [other for name, other in runs if name == PEER]
    if not measured:
        return None
    if place in measured:
        return cpu_s(runs[PEER, place])
    largest = max(measured)
    return cpu_s(runs[PEER, largest]) * inputs[place].num_bytes / inputs[largest].num_bytes


def marginal(inputs: Sequence[Input], runs: Runs, name: str, place: int) -> float:
    """CPU-seconds beyond those of the smallest input, per MB beyond it."""
    more = inputs[place].num_bytes - inputs[0].num_bytes
    return (cpu_s(runs[name, place]) - cpu_s(runs[name, 0])) / more * 1e6


def growth_lines(contestants: Sequence[Contestant], inputs: Sequence[Input], runs: Runs) -> list[str]:
    """How far the cost per MB more differs between sizes, of each contestant that ran several."""
    lines = []
    for name in [contestant.name for contestant in contestants]:
        places = [place for place in range(1, len(inputs)) if (name, place) in runs]
        costs = [marginal(inputs, runs, name, place) for place in places]
        if len(costs) > 1:
            ratios = ", ".join(f"{cost / costs[0]:.2f}" for cost in costs)
            lines.append(f"- {name}: s a MB more, relative to the first size: {ratios}.")
    return lines


def stage_rows(source: Input, of_engine: Sequence[Sequence[Run]]) -> list[list[str]]:
    """CPU-seconds and MB per CPU-second of each stage, by engine: medians of the rounds."""
    rows = []
    for name in of_engine[0][0].outcome.stage_cpu_s:
        taken = [statistics.median(one.outcome.stage_cpu_s[name] for one in own) for own in of_engine]
        rows.append([name, *(f"{seconds:.2f} ({source.megabytes / max(seconds, 0.01):.1f})" for seconds in taken)])
    return rows


# --- the parts -----------------------------------------------------------------------------------------------------


def chain(args: argparse.Namespace, peers: Path | None) -> None:
    """Race the chains and print the table."""
    inputs = [input_of_rows(args.corpus, args.fixed, args.folder / "inputs" / "fixed")]
    inputs += [input_of_size(args.corpus, size, args.folder / "inputs" / f"{size:g}") for size in sorted(args.sizes)]
    contestants = [our_chain(engine, 1 if args.quick else WORKERS) for engine in args.engines]
    if not args.quick:
        for contestant in contestants:
            run(contestant, inputs[min(1, len(inputs) - 1)], args.folder)
    if peers:
        contestants.append(datatrove_chain(peers, args.folder))
    runs = race(contestants, inputs, args.rounds, args.folder)
    sizes = ", ".join(f"{source.num_rows:,}" for source in inputs)
    say(f"\n## The chain: {sizes} documents of {args.corpus.name}; medians of {args.rounds} rounds, one of copies\n")
    heads = ("", "CPU s", "of it JVM", "s", "MB per CPU s", "x datatrove", "s a MB more", "peak GB", "of it own")
    print_table((*heads, "kept by language / dedup", "M tokens"), chain_rows(inputs, runs))
    say()
    for line in growth_lines(contestants, inputs, runs):
        say(line)
    place = max(place for place, source in enumerate(inputs) if source.copies == 1)
    ours = [contestant.name for contestant in contestants if contestant.is_ours]
    say(f"\n### Stages at {inputs[place].megabytes:.1f} MB: CPU s, engine included (MB of the input per CPU s)\n")
    print_table(("", *ours), stage_rows(inputs[place], [runs[name, place] for name in ours]))
    say(f"\n{NOTES}")


def kernels(args: argparse.Namespace, peers: Path | None) -> None:
    """Run the benchmarks of single kernels, which print their own tables."""
    modules = {
        "language": ["bench_language", str(args.corpus)],
        "bpe": ["bench_harmony", str(args.corpus)],
        "near": ["bench_dedup", "--parts", "near", "--rounds", str(args.rounds)],
    }
    if args.corpus != default_corpus():
        modules["near"] += ["--corpus", str(args.corpus)]
    if peers:
        modules["near"] += ["--peers", str(peers)]
    for part, (module, *options) in modules.items():
        if part in args.parts:
            say(f"\n## {part}: {module}\n")
            subprocess.run([sys.executable, "-m", f"tests.benchmarks.{module}", *options], cwd=ROOT, check=True)


def demo(folder: Path) -> None:
    """The command of `make demo`, twice: from nothing, and when all is done."""
    say("\n## The demo\n")
    rows = []
    output = folder / "demo"
    shutil.rmtree(output, ignore_errors=True)
    for name in ("first", "again"):
        with (folder / "demo.log").open("w") as messages:
            use = run_measured([sys.executable, "-m", "jobs.demo", "--output", str(output)], messages)
        if use.exit_code:
            sys.exit(f"the demo failed:\n{(folder / 'demo.log').read_text()[-3000:]}")
        rows.append([name, f"{use.wall_s:.0f}", f"{use.cpu_s:.0f}", f"{use.peak_bytes / 1e9:.2f}"])
    print_table(("make demo", "s", "CPU s", "peak GB"), rows)


def default_corpus() -> Path:
    """The benchmark corpus beside the checkout."""
    return SHARED / "bench_corpus" / "corpus.parquet"


def numbers(text: str) -> list[float]:
    """Of an option: numbers with commas between them."""
    return [float(item) for item in text.split(",")]


def options(argv: Sequence[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=full_path, default=default_corpus(), help="Parquet with a column text")
    parser.add_argument("--peers", type=full_path, default=ROOT / "build" / "peers" / "bin" / "python")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS, help=f"some of {','.join(PARTS)}")
    parser.add_argument("--engines", type=lambda text: text.split(","), default=ENGINES)
    parser.add_argument("--sizes", type=numbers, default=[51.6, 205.0, 1000.0], help="MB of text")
    parser.add_argument("--fixed", type=int, default=200, help="documents of the smallest input")
    parser.add_argument("--rounds", type=int, default=3, help="at sizes that the corpus has")
    parser.add_argument("--folder", type=full_path, default=ROOT / "build" / "bench" / "chain")
    parser.add_argument("--demo", action="store_true", help="run the demo, too")
    parser.add_argument("--quick", action="store_true", help="one run of the local engine on 20 documents")
    args = parser.parse_args(argv)
    if args.quick:
        args.parts, args.engines, args.peers = ("chain",), ("local",), Path("none")
        args.sizes, args.fixed, args.rounds = [], 20, 1
    for name, known in (("parts", PARTS), ("engines", ENGINES)):
        unknown = sorted(set(getattr(args, name)) - set(known))
        if unknown:
            parser.error(f"--{name}: {','.join(unknown)} is not among {','.join(known)}")
    if not args.corpus.exists():
        parser.error(f"--corpus: there is no {args.corpus}; name a Parquet file with a column text")
    columns = pq.read_schema(args.corpus).names
    if "text" not in columns:
        parser.error(f"--corpus: {args.corpus} has no column text, but {', '.join(columns)}")
    return args


def main(argv: Sequence[str]) -> None:
    """Print the tables that the options ask for."""
    args = options(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ["MASTER"] = f"local[{WORKERS}]"
    peers = args.peers if args.peers.exists() else None
    if peers is None:
        say(f"There is no {args.peers}: only ours is measured. `make bench-chain` makes it.")
    say(f"Load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.")
    if "chain" in args.parts:
        chain(args, peers)
    kernels(args, peers)
    if args.demo:
        demo(args.folder)
    say(f"\nLoad of the machine: {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main(sys.argv[1:])
