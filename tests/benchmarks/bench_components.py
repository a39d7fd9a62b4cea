"""Connected components: CPU-seconds beside scipy, peak memory of the one task, and the rounds of star contraction.

    python -m tests.benchmarks.bench_components [--edges 1000000] [--rounds 5]
    python -m tests.benchmarks.bench_components --task random,chain,apart --edges 50000000
    python -m tests.benchmarks.bench_components --stars random --edges 5000000 [--engine beam|spark]

The first table takes row keys to labels, in turn with scipy.sparse.csgraph.connected_components on the same graph:
once on nodes that are numbered already (from pairs, and from a finished CSR matrix), and once with the numbering by
np.unique that row keys need. Sides take turns, so that a shared or throttled machine slows all alike; medians of
--rounds. The first round compiles and is not counted. --task writes a dataset of pairs to --folder and runs the two
single tasks of etl/stages/dedup/components.py on it, each in a process of its own; --stars labels the same pairs by
shuffles and compares the labels. Linux only. Scratch files are written to --folder and kept.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from etl.arrays import I64
from etl.dedup.blocks import CLASS_BITS
from etl.dedup.components import Components
from etl.rows import Rows
from etl.run.recipe import Recipe
from etl.run.run import context_of
from etl.stages.dedup.bands import CANDIDATE
from etl.stages.dedup.blocks import EDGE, CutCandidates
from etl.stages.dedup.components import LabelRows, label_components
from etl.stages.dedup.stars import LABEL
from etl.storage.build import Build, Chunk, Job
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from tests.benchmarks.bench_memory import Measured, Watch, make_engine

NUM_SPLITS = 10
BATCH_ROWS = 1 << 16


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# --- speed ---------------------------------------------------------------------------------------------------------


def row_keys(nodes: I64) -> I64:
    """Row keys of 64 splits, a run of 1,000 nodes each in turn."""
    return (nodes // 1000 % 64 << 32) | (nodes // 64_000 * 1000 + nodes % 1000)


def sparse(num_edges: int, rng: np.random.Generator) -> tuple[I64, I64]:
    """Random pairs of 0.8 nodes an edge: one giant component and many small ones."""
    one, other = rng.integers(0, num_edges * 4 // 5, (2, num_edges))
    return row_keys(one), row_keys(other)


def scattered(num_edges: int, rng: np.random.Generator) -> tuple[I64, I64]:
    """The same graph, its keys anywhere among int64."""
    names = rng.integers(0, 1 << 62, num_edges * 4 // 5)
    one, other = rng.integers(0, len(names), (2, num_edges))
    return names[one], names[other]


def cliques(num_edges: int, rng: np.random.Generator) -> tuple[I64, I64]:
    """What duplicates look like: all pairs of groups of 2 and more rows, in any order."""
    size = rng.geometric(0.3, num_edges) + 1
    size = size[: np.searchsorted(np.cumsum(size * (size - 1) // 2), num_edges)]
    start = np.cumsum(size) - size
    pieces = []
    for k in np.unique(size):
        low, high = np.triu_indices(k, 1)
        at = start[size == k][:, None]
        pieces.append(np.stack([(at + low).ravel(), (at + high).ravel()]))
    pairs = rng.permutation(np.concatenate(pieces, axis=1), axis=1)
    one, other = row_keys(rng.permutation(size.sum())[pairs])
    return one, other


def ours(one: I64, other: I64) -> tuple[I64, I64]:
    graph = Components(2 * len(one))
    graph.join(graph.number(one), graph.number(other))
    (labels,) = graph.labels(2 * len(one))
    return labels


def scipy_alone(one: I64, other: I64, num_nodes: int) -> Any:
    matrix = coo_array((np.ones(len(one), np.int8), (one, other)), (num_nodes, num_nodes))
    return connected_components(matrix, directed=False)


def scipy_of_keys(one: I64, other: I64) -> Any:
    nodes, numbers = np.unique(np.concatenate([one, other]), return_inverse=True)
    numbers = numbers.astype(np.int32)
    return scipy_alone(numbers[: len(one)], numbers[len(one) :], len(nodes))


def cpu_seconds(work: Callable[..., Any], *args: Any) -> float:
    start = time.process_time()
    work(*args)
    return time.process_time() - start


def check(one: I64, other: I64, numbers: I64, nodes: I64) -> None:
    _, member = scipy_alone(numbers[: len(one)], numbers[len(one) :], len(nodes))
    smallest = np.full(member.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(smallest, member, nodes)
    found, labels = ours(one, other)
    assert np.array_equal(found, nodes)
    assert np.array_equal(labels, smallest[member])


def speed(num_edges: int, rounds: int) -> None:
    heads = ("ours", "scipy", "of CSR", "of keys", "ours/scipy")
    say(f"{'CPU-seconds':12}{'edges':>11}{'nodes':>11}" + "".join(f"{head:>12}" for head in heads))
    for make in (sparse, scattered, cliques):
        one, other = make(num_edges, np.random.default_rng(0))
        nodes, numbers = np.unique(np.concatenate([one, other]), return_inverse=True)
        numbers = numbers.astype(np.int32)
        check(one, other, numbers, nodes)
        left, right = numbers[: len(one)], numbers[len(one) :]
        matrix = csr_array((np.ones(len(one), np.int8), (left, right)), (len(nodes), len(nodes)))
        sides: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (ours, (one, other)),
            (scipy_alone, (left, right, len(nodes))),
            (lambda graph: connected_components(graph, directed=False), (matrix,)),
            (scipy_of_keys, (one, other)),
        ]
        taken: list[list[float]] = [[] for _ in sides]
        for turn in range(rounds + 1):
            for place in np.roll(np.arange(len(sides)), turn).tolist():
                work, args = sides[place]
                taken[place].append(cpu_seconds(work, *args))
        cells = [statistics.median(seconds[1:]) for seconds in taken]
        figures = "".join(f"{cell:12.3f}" for cell in cells)
        say(f"{make.__name__:12}{len(one):11,}{len(nodes):11,}{figures}{cells[0] / cells[1]:12.2f}")


# --- memory --------------------------------------------------------------------------------------------------------


def ends_of(kind: str, num_edges: int, split: int) -> tuple[I64, I64]:
    """Node numbers of one split's pairs: random (0.6 nodes an edge), one scattered chain, or pairs apart."""
    rng = np.random.default_rng(split)
    edge = rng.permutation(np.arange(split, num_edges, NUM_SPLITS))
    if kind == "random":
        one, other = rng.integers(0, num_edges * 3 // 5, (2, len(edge)))
        return one, other
    # An odd factor permutes the numbers below a power of two.
    first, second = (edge, edge + 1) if kind == "chain" else (2 * edge, 2 * edge + 1)
    size = 1 << (2 * num_edges).bit_length()
    return first * 7_368_787 % size, second * 7_368_787 % size


def met(kind: str, num_edges: int, split: int) -> Iterator[Chunk]:
    ends = ends_of(kind, num_edges, split)
    for start in range(0, len(ends[0]), BATCH_ROWS):
        a, b = np.sort(row_keys(np.stack([end[start : start + BATCH_ROWS] for end in ends])), axis=0)
        keys = [(rows * np.int64(0x4F1BBCDCBFA53E0B) >> CLASS_BITS << CLASS_BITS) | 20 for rows in (a, b)]
        columns = [pa.array(column) for column in (a, b, *keys, np.zeros_like(a), np.ones_like(a))]
        yield Chunk(pa.RecordBatch.from_arrays(columns, schema=CANDIDATE), len(a))


def write_pairs(folder: Location, kind: str, num_edges: int) -> Dataset:
    build = Build(Job(folder, "candidates", "MET", CANDIDATE, {"kind": kind, "num_edges": num_edges}))
    done = build.reopen()
    if done is not None:
        return done
    plan = build.plan(range(NUM_SPLITS))
    writer = build.writer(plan)
    for split in range(NUM_SPLITS):
        writer.write(split, met(kind, num_edges, split))
    return build.commit(plan)


def task(pairs: Dataset, output: Location, name: str) -> None:
    """One of the two tasks, by itself in this process."""
    work: LabelRows | CutCandidates
    schema, work = (
        (LABEL, LabelRows(pairs.ref, ("a", "b"))) if name == "labels" else (EDGE, CutCandidates(pairs.ref, 32 << 20))
    )
    build = Build(Job(output, name, name, schema, {}, (pairs,)))
    writer = build.writer(build.plan([0]))
    with Watch() as watch:
        receipt = writer.write(0, work(0))
    peak_gb = watch.peak["driver"] / 1e9
    say(f"{name:12}{receipt.rows_in:12,}{receipt.rows_out:12,}{time.process_time():9.0f}{peak_gb:9.2f}")


def memory(folder: Path, kinds: list[str], num_edges: int) -> None:
    say(f"{'one task':12}{'pairs':>12}{'rows out':>12}{'CPU s':>9}{'peak GB':>9}")
    for kind in kinds:
        pairs = write_pairs(Location.of(str(folder / f"{kind}-{num_edges}")), kind, num_edges)
        say(kind)
        for name in ("labels", "blocks"):
            output = Location.of(str(folder / f"{name}-{time.time_ns()}"))
            process = multiprocessing.get_context("spawn").Process(target=task, args=(pairs, output, name))
            process.start()
            process.join()
            assert process.exitcode == 0, process.exitcode


def stars(args: argparse.Namespace, folder: Path, kind: str) -> None:
    pairs = write_pairs(Location.of(str(folder / f"{kind}-{args.edges}")), kind, args.edges)
    output = folder / f"stars-{kind}-{time.time_ns()}"
    recipe = Recipe.model_validate({
        "name": "stars", "output": str(output), "sources": {"none": {"spec": "synth", "path": str(output)}},
        "stages": [], "run": {"bucket_bytes": args.bucket_mb << 20, "max_component_edges": 0},
    })  # fmt: skip
    engine = Measured(make_engine(args, output.with_name(f"{output.name}-spark")))
    try:
        labels = label_components(context_of(recipe, engine), Rows.of(pairs), "components", pairs, ("a", "b")).result()
    finally:
        engine.close()
    kinds_of = ("python", "jvm", "driver")
    say(f"{'round':26}" + "".join(f"{f'{name} MB':>12}" for name in kinds_of) + f"{'seconds':>9}{'CPU s':>9}")
    for name, found in engine.stages.items():
        peaks = "".join(f"{found.get(column, float('nan')):12.0f}" for column in kinds_of)
        say(f"{name:26}{peaks}{found['seconds']:9.1f}{found['cpu_s']:9.1f}")
    graph = Components(2 * args.edges)
    for batch in pairs.read(["a", "b"]):
        graph.join(*(graph.number(column.to_numpy()) for column in batch.columns))
    expected = np.concatenate([np.stack(found) for found in graph.labels(BATCH_ROWS)], axis=1)
    table = pa.Table.from_batches(labels.read()).sort_by("row")
    assert np.array_equal(np.stack([column.to_numpy() for column in table.columns]), expected)
    say(f"{len(table):,} labels, equal to those of the one task")


def main() -> None:
    """Print the table that the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the table of speeds")
    parser.add_argument("--task", default="", help="some of random,chain,apart")
    parser.add_argument("--stars", default="", help="some of random,chain,apart")
    parser.add_argument("--engine", choices=("spark", "beam"), default="beam")
    parser.add_argument("--bucket-mb", type=int, default=64)
    parser.add_argument("--heap-mb", type=int, default=1024)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    if args.task:
        memory(args.folder, args.task.split(","), args.edges)
    for kind in args.stars.split(",") if args.stars else ():
        stars(args, args.folder, kind)
    if not args.task and not args.stars:
        speed(args.edges, args.rounds)


if __name__ == "__main__":
    main()
