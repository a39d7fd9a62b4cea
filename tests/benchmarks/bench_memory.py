"""Peak memory of a worker, stage by stage, over sizes of the input: it must not grow with them. Prints, never gates.

    python -m tests.benchmarks.bench_memory [--engine spark|beam] [--sizes 100,400,2000] [--skew none,band,cell,content]

The two bare verbs and a recipe of language filter, exact and near dedup, tokens, split and layout run on corpora of
`bench_corpora`, each size in a process of its own. While a stage runs, the high-water mark of the resident set (VmHWM,
reset at its start) of every process below is read 20 times a second; a row is the largest of a kind: `python`, a Spark
Python worker; `jvm`, the executor (bounded by its heap, --heap-mb); `driver`, the process that runs the recipe, which
on Beam's direct runner is also the worker. Splits and buckets are cut small (--split-mb, --bucket-mb), so that even the
smallest input has several of each, and any growth is due to the input. Linux only. Scratch files are written to
--folder and kept.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from etl.engine import Engine, Exchange, Reduce, Task, Work
from etl.hashing import hash_array
from etl.rows import Rows, RowsRef
from etl.run.estimate import estimate
from etl.run.recipe import Recipe
from etl.run.run import context_of, run_recipe
from etl.stages.context import Context
from etl.stages.keyed import buckets_of, live_rows, recut
from etl.storage.build import Chunk
from etl.storage.dataset import Dataset
from tests.benchmarks.bench_corpora import SKEWS, write_corpus
from tests.benchmarks.process_tree import descendants, read_process, read_processes

POLL_S = 0.05


# --- what processes hold -------------------------------------------------------------------------------------------


def processes() -> dict[int, str]:
    """Every process below this one and this one, by kind."""
    table, own = read_processes(), os.getpid()
    kinds = {pid: "jvm" if table[pid].name == "java" else "python" for pid in descendants(table, {own})}
    return kinds | {own: "driver"}


def high_water_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


class Watch:
    """Context manager: what each kind of process took while it is open.

    Attributes:
        peak: kind to the largest high-water mark of its processes, bytes.
        cpu: process to (CPU-seconds when it was first seen, and last).
    """

    def __init__(self) -> None:
        self.peak: dict[str, int] = {}
        self.cpu: dict[int, tuple[float, float]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        for pid in processes():
            try:
                self.cpu[pid] = (read_process(pid).cpu_s,) * 2
                Path(f"/proc/{pid}/clear_refs").write_text("5")
            except OSError:
                continue
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._done.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        for pid, kind in processes().items():
            try:
                self.peak[kind] = max(self.peak.get(kind, 0), high_water_bytes(pid))
                self.cpu[pid] = (self.cpu.get(pid, (0.0, 0.0))[0], read_process(pid).cpu_s)
            except (FileNotFoundError, ProcessLookupError):
                continue


class Measured(Engine):
    """Another engine, with a record of every stage's peak memory and time."""

    def __init__(self, inner: Engine) -> None:
        super().__init__()
        self.inner = inner
        self.stages: dict[str, dict[str, float]] = {}

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        with self._stage(work):
            self.inner.run_splits(work, items, task)

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        with self._stage(work):
            self.inner.run_buckets(work, buckets, exchange, reduce)

    def close(self) -> None:
        self.inner.close()

    def _stage(self, work: Work) -> "_Stage":
        return _Stage(self, work)


class _Stage(Watch):
    def __init__(self, engine: Measured, work: Work) -> None:
        super().__init__()
        self._engine, self._work = engine, work
        self._began = time.monotonic()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        found = {kind: round(size / 1e6, 1) for kind, size in self.peak.items()}
        cpu = sum(last - first for first, last in self.cpu.values())
        taken = {
            "seconds": round(time.monotonic() - self._began, 1), "cpu_s": round(cpu, 1), "tasks": self._work.num_tasks,
        }  # fmt: skip
        self._engine.stages[self._work.stage] = found | taken


def shuffled_bytes(folder: Path) -> dict[str, int]:
    """Stage to the bytes that its tasks wrote to Spark's shuffle (compressed), from the event logs in a folder."""
    found: dict[str, int] = {}
    names: dict[int, str] = {}
    for path in sorted(folder.rglob("events_*")):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            if event["Event"] == "SparkListenerJobStart":
                title = event["Properties"].get("spark.job.description", "")
                names |= dict.fromkeys(event["Stage IDs"], title)
            elif event["Event"] == "SparkListenerTaskEnd" and "Task Metrics" in event:
                written = event["Task Metrics"]["Shuffle Write Metrics"]["Shuffle Bytes Written"]
                title = names.get(event["Stage ID"], "")
                found[title] = found.get(title, 0) + written
    return {title: total for title, total in found.items() if total}


# --- the bare verbs ------------------------------------------------------------------------------------------------

KEYED = pa.schema([("bucket", pa.int32()), ("key", pa.int64()), ("row", pa.int64())])


@dataclass(frozen=True)
class Copy:
    """Read a split and write it again: what `map` itself holds."""

    rows: RowsRef

    def __call__(self, split: int) -> Iterator[Chunk]:
        for batch in self.rows.read(split, ["id", "messages"]):
            yield Chunk(batch, batch.num_rows)


@dataclass(frozen=True)
class EmitKeys:
    """Fourteen keys a row, as near dedup has."""

    rows: RowsRef
    num_buckets: int

    def __call__(self, split: int) -> Iterator[pa.RecordBatch]:
        for batch, rows in live_rows(self.rows, split, ["id"]):
            for seed in range(14):
                keys = hash_array(batch.column("id"), seed)
                columns = [buckets_of(keys, self.num_buckets), pa.array(keys.view(np.int64)), pa.array(rows)]
                yield pa.RecordBatch.from_arrays(columns, schema=KEYED)


def write_keys(bucket: int, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
    """The rows of a bucket as they come: what `shuffle` itself holds."""
    yield from recut(batches)


def run_verbs(context: Context) -> None:
    base = Dataset.open(context.output / "ingest")
    rows = Rows.of(base)
    schema = pa.schema([base.schema.field("id"), base.schema.field("messages")])
    context.engine.map(context.job("verb_map", "COPY", schema, {}, (), rows), rows.splits, Copy(rows.ref))
    buckets = context.buckets(rows.num_rows * 14 * 20).count()
    exchange = Exchange(tuple(rows.splits), EmitKeys(rows.ref, buckets), KEYED, ("key", "row"), buckets)
    context.engine.shuffle(context.job("verb_shuffle", "KEYS", KEYED, {}, (), rows), exchange, write_keys)


# --- a run ---------------------------------------------------------------------------------------------------------


def recipe_for(folder: Path, source: Path, args: argparse.Namespace) -> Recipe:
    return Recipe.model_validate({
        "name": "memory", "output": str(folder), "sources": {"docs": {"spec": "synth", "path": str(source)}},
        "stages": [] if args.verbs_only else ["filter", "dedup", "tokenize", "split", "layout"],
        "filter": {"steps": [{"kind": "language"}]},
        "layout": {"target_bytes": args.bucket_mb << 20},
        "run": {"split_bytes": args.split_mb << 20, "bucket_bytes": args.bucket_mb << 20},
    })  # fmt: skip


def make_engine(args: argparse.Namespace, folder: Path) -> Engine:
    if args.engine == "beam":
        from etl.engines.beam import BeamEngine

        return BeamEngine(["--runner=DirectRunner"])
    from etl.engines.spark import SparkEngine

    options = f"--name bench --master local[{args.cores}] --driver-memory {args.heap_mb}m"
    (folder / "events").mkdir(parents=True, exist_ok=True)
    options += f" --conf spark.eventLog.enabled=true --conf spark.eventLog.dir=file://{(folder / 'events').resolve()}"
    options += " --conf spark.eventLog.compress=false"
    options += f" --conf spark.local.dir={folder}/spark --conf spark.ui.showConsoleProgress=false"
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"{options} pyspark-shell"
    return SparkEngine(report=lambda line: None)


def run_one(args: argparse.Namespace, megabytes: int, skew: str) -> dict[str, Any]:
    """One recipe over one corpus, and the verbs over its rows."""
    folder = Path(args.folder)
    source = Path(args.source or write_corpus(folder / f"corpus-{megabytes}-{skew}.parquet", megabytes, skew))
    output = folder / f"out-{args.engine}-{megabytes}-{skew}-{time.time_ns()}"
    recipe = recipe_for(output, source, args)
    predicted = predict(recipe, args.predict_mb) if args.predict_mb else {}
    engine = Measured(make_engine(args, output.with_name(f"{output.name}-spark")))
    began = time.monotonic()
    try:
        run_recipe(recipe, engine, lambda line: None)
        run_verbs(context_of(recipe, engine))
    finally:
        engine.close()
    shuffled = shuffled_bytes(output.with_name(f"{output.name}-spark"))
    seconds = round(time.monotonic() - began, 1)
    found = {"output": str(output), "seconds": seconds, "stages": engine.stages, "shuffled": shuffled}
    return found | ({"predicted": predicted, "compared": compare(predicted, output, found)} if predicted else {})


def predict(recipe: Recipe, megabytes: int) -> dict[str, dict[str, float]]:
    """Job to what a sample of the input predicts for it."""
    costs = estimate(recipe, megabytes << 20).stages
    return {cost.stage: {name: value for name, value in vars(cost).items() if name != "stage"} for cost in costs}


def compare(predicted: dict[str, dict[str, float]], output: Path, found: dict[str, Any]) -> list[list[Any]]:
    """Job, quantity, predicted, measured, ratio."""
    lines: list[list[Any]] = []
    for job, cost in predicted.items():
        manifests = [Dataset.open(str(output / stage)).manifest for stage in job.split("+")]
        spark = sum(size for title, size in found["shuffled"].items() if title.split(": ")[1].split(",")[0] == job)
        measured = {
            "rows": max(manifest.rows_out for manifest in manifests),
            "written_bytes": sum(part.bytes for manifest in manifests for part in manifest.parts),
            "shuffle_bytes": spark,
            "tasks": found["stages"].get(job, {}).get("tasks", 0),
            "cpu_s": found["stages"].get(job, {}).get("cpu_s", 0.0),
        }
        for name, value in measured.items():
            if value or cost[name]:
                lines.append([job, name, cost[name], value, round(cost[name] / value, 2) if value else 0.0])
    return lines


def print_table(title: str, kind: str, found: dict[str, dict[str, Any]]) -> None:
    """Stage by column, peak MB of a kind of process, and the ratio of the last column to the first."""
    columns = list(found)
    print(f"\n{title}, {kind}: peak MB")  # noqa: T201
    print("stage".ljust(26) + "".join(column.rjust(12) for column in columns) + "last/first".rjust(12))  # noqa: T201
    for stage in dict.fromkeys(stage for run in found.values() for stage in run["stages"]):
        peaks = [found[column]["stages"].get(stage, {}).get(kind, float("nan")) for column in columns]
        cells = "".join(f"{peak:12.0f}" for peak in peaks)
        print(stage.ljust(26) + cells + f"{peaks[-1] / peaks[0]:12.2f}")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("spark", "beam"), default="spark")
    parser.add_argument("--sizes", default="100,400,2000", help="MB of text")
    parser.add_argument("--skew", default="none", help=f"some of {','.join(SKEWS)}")
    parser.add_argument("--split-mb", type=int, default=16)
    parser.add_argument("--bucket-mb", type=int, default=32)
    parser.add_argument("--heap-mb", type=int, default=1024)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", default="build/bench")
    parser.add_argument("--source", default="", help="Parquet in the SYNTH schema, in place of a generated corpus")
    parser.add_argument("--verbs-only", action="store_true", help="ingest and the two bare verbs")
    parser.add_argument("--predict-mb", type=int, default=0, help="predict the run from so many MB of its input, too")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes, skews = [int(size) for size in args.sizes.split(",")], args.skew.split(",")
    if args.one:
        print(json.dumps(run_one(args, sizes[0], skews[0])))  # noqa: T201
        return
    found = {}
    for size in sizes:
        for skew in skews:
            command = [sys.executable, "-m", "tests.benchmarks.bench_memory", *sys.argv[1:]]
            command += ["--sizes", str(size), "--skew", skew, "--one"]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
            run = found[f"{size} {skew}"] = json.loads(done.stdout.splitlines()[-1])
            print(f"{size} MB, {skew}: {run['seconds']} s in {run['output']}", flush=True)  # noqa: T201
            for job, name, cost, value, ratio in run.get("compared", []):
                print(f"{job[:40]:<42}{name:<16}{cost:>16,.1f}{value:>16,.1f}{ratio:>8.2f}")  # noqa: T201
    for kind in ("python", "jvm", "driver"):
        if any(kind in stage for run in found.values() for stage in run["stages"].values()):
            print_table(args.engine, kind, found)
    (Path(args.folder) / f"memory-{args.engine}-{args.skew}-{args.sizes}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
