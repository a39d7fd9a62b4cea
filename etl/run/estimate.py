"""What a recipe would cost on its whole input, predicted from a seeded sample of that input.

The recipe runs on the sample in this process, in a temporary folder, through an engine that counts CPU-seconds and the
bytes that would cross a shuffle. What it counted is then scaled up, each thing by the law that it follows, where L is
the input's bytes over the sample's:

    rows, text, tokens          L
    duplicate pairs             L within a piece of the sample, L^2 between two pieces: a pair of far rows is in a
                                sample only if both are. Unbiased, but few pairs in the sample make a rough number
    pairs of a hot band         a band with 8 or more rows of the sample grows as rows do, each with max_partners pairs
    rows that have duplicates   from the pairs, over the partners that a row has (`partners_of`)
    per-split tables, receipts  number of splits

A sample is some dozens of pieces, each a stretch of one file at a random place; of a compressed file only
the start can be read. Costs the sample's run (about 10 s for 16 MB without a model) and one listing of the input.
"""

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.utils import infer_compression
from scipy.special import gammaln

from etl.arrays import F64, I64
from etl.dedup.canaries import bases, which_canaries
from etl.engine import Engine, Exchange, Reduce, Task, Work
from etl.errors import ConfigError
from etl.recipe import Cutting, Dedup, Recipe
from etl.rows import ROW_BITS
from etl.run.run import check, run_stages
from etl.sources.files import COMPRESSIONS, InputFile, list_files, row_group_bytes
from etl.sources.spec import Source
from etl.stages.context import Context
from etl.stages.dedup.bands import BAND, PAIR_BLOCK, band_bytes
from etl.stages.dedup.exact import CONTENT_BYTES
from etl.stages.keyed import distinct
from etl.stages.layout import BYTES_PER_TOKEN
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.remote import Storage, storage_options

SAMPLE_BYTES = 16 << 20
_PIECES = 48
_LEAST_PIECE = 1 << 16
_HOT_ROWS = 8
"""Rows of the sample in one group from which on it is taken to grow with the input."""
_FEW_PAIRS = 50
_EM_STEPS = 100
WORKER_BYTES = 900 << 20
"""Peak of a Python worker at the default split and bucket sizes, whatever the input: docs/scaling.md."""
JOIN_BYTES_PER_ROW = 40
"""Of the one task that joins the rows of all candidate pairs."""
DRIVER_BYTES_PER_TASK = 12_000
"""Of plan, receipts and manifest of one dataset on the driver."""


# --- a sample of the input -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A recipe over pieces of the input, each of which is one split."""

    recipe: Recipe
    input_bytes: int
    sample_bytes: int
    input_splits: int
    """Splits that the whole input would have."""

    @property
    def scale(self) -> float:
        return max(1.0, self.input_bytes / max(1, self.sample_bytes))


def write_sample(recipe: Recipe, folder: Path, sample_bytes: int, seed: int) -> Sample:
    """Copy pieces of every source below a folder; an input that is no larger than the sample is taken as it is.

    Raises:
        ConfigError: a source is a table of a catalog.
        SourceError: an input is absent or damaged.
    """
    files = {name: _listed(name, source, recipe.storage) for name, source in recipe.sources.items()}
    total = sum(file.bytes for found in files.values() for file in found)
    splits = sum(
        1 if file.relative.endswith(COMPRESSIONS) else -(-file.bytes // recipe.run.split_bytes)
        for found in files.values()
        for file in found
    )
    output = {"output": str(folder / "out"), "storage": {}}
    if sample_bytes >= total:
        return Sample(recipe.model_copy(update=output), total, total, splits)
    rng = np.random.default_rng(seed)
    sources, taken = {}, 0
    for name, source in recipe.sources.items():
        wanted = sample_bytes * sum(file.bytes for file in files[name]) / total
        (folder / name).mkdir(parents=True)
        pieces = max(1, min(_PIECES, int(wanted // _LEAST_PIECE)))
        size = int(wanted / pieces)
        for number, (file, offset) in enumerate(_places(files[name], pieces, size, rng)):
            location = source.locate(file.url, recipe.storage)
            taken += _copy_piece(location, file, offset, size, folder / name / f"{number:03d}")
        sources[name] = source.model_copy(update={"path": str(folder / name), "options": {}})
    run = Cutting(split_bytes=1 << 40, bucket_bytes=recipe.run.bucket_bytes)
    changed = {"sources": sources, "run": run, "dedup": _fewer_canaries(recipe, taken / total), **output}
    return Sample(recipe.model_copy(update=changed), total, taken, splits)


def _fewer_canaries(recipe: Recipe, share: float) -> Dedup:
    """A run has so many canaries, whatever its rows; scaled up again, those of the sample must come to as many."""
    near = recipe.dedup.near
    if near is None:
        return recipe.dedup
    fewer = near.model_copy(update={"num_canaries": math.ceil(near.num_canaries * share)})
    return recipe.dedup.model_copy(update={"near": fewer})


def _listed(name: str, source: Source, storage: Storage) -> list[InputFile]:
    if source.table is not None:
        raise ConfigError(f"sources.{name}.table={source.table}: a sample can only be taken of files, not of a table")
    return list_files(name, source, storage)


def _places(
    files: list[InputFile], pieces: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[InputFile, int]]:
    """Files and byte offsets of pieces that do not overlap, drawn evenly from all files laid end to end.

    Drawn at random, not one in each stretch: else two rows of one stretch could never come from two pieces, and the
    pairs that lie near each other would be missed.
    """
    ends = np.cumsum([file.bytes for file in files])
    slots = max(pieces, int(ends[-1]) // size)
    for slot in np.sort(rng.choice(slots, pieces, replace=False)).tolist():
        at = slot * size
        place = min(int(np.searchsorted(ends, at, "right")), len(files) - 1)
        yield files[place], at - int(ends[place] - files[place].bytes)


def _copy_piece(location: Location, file: InputFile, offset: int, size: int, target: Path) -> int:
    """Write about `size` stored bytes from an offset of a file; the number of stored bytes that they stand for."""
    if file.format == "parquet":
        return _copy_rows(location, offset / file.bytes, size, target.with_suffix(".parquet"))
    with location.open() as raw:
        compression = infer_compression(file.url)
        if compression is not None:
            data = fsspec.compression.compr[compression](raw, mode="rb").read(size)
            target.with_suffix(".jsonl").write_bytes(data[: data.rfind(b"\n") + 1])
            return int(raw.tell())
        raw.seek(max(0, offset - 1))
        if offset:
            raw.readline()
        start = raw.tell()
        data = raw.read(max(0, offset + size - start)) + raw.readline()
        target.with_suffix(".jsonl").write_bytes(data)
        return int(raw.tell() - start)


def _copy_rows(location: Location, place: float, size: int, target: Path) -> int:
    """Rows of the Parquet row group that lies `place` of the way into a file, at most up to its end."""
    with location.open_parquet() as file:
        sizes = row_group_bytes(file)
        ends = np.cumsum(sizes)
        group = min(int(np.searchsorted(ends, place * ends[-1], "right")), len(sizes) - 1)
        num_rows, num_bytes = file.metadata.row_group(group).num_rows, sizes[group]
        start = (place * ends[-1] - ends[group] + num_bytes) / num_bytes * num_rows
        first, last = int(start), min(num_rows, int(start + size / num_bytes * num_rows))
        first = min(first, num_rows - 1)
        table = file.read_row_group(group).slice(first, max(1, last - first))
    pq.write_table(table, target)
    return round(num_bytes * len(table) / num_rows)


# --- running it ----------------------------------------------------------------------------------------------------


@dataclass
class Taken:
    """What a stage took on the sample."""

    cpu_s: float
    tasks: int
    shuffle_bytes: int = 0
    """Arrow bytes that the map side emitted."""


class SampleEngine(Engine):
    """Both verbs as loops in this process, with an account of each job; a shuffle is held in memory.

    Attributes:
        taken: job to what it took. The name of several maps that ran as one job joins theirs with "+".
        bands: what the map side of `candidates` emitted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken: dict[str, Taken] = {}
        self.bands = BAND.empty_table()

    def run_splits(self, work: Work, items: Sequence[tuple[int, Any]], task: Task) -> None:
        began = time.process_time()
        for number, value in items:
            task(number, value)
        self.taken[work.stage] = Taken(time.process_time() - began, len(items))

    def run_buckets(self, work: Work, buckets: Sequence[int], exchange: Exchange, reduce: Reduce) -> None:
        began = time.process_time()
        emitted = [batch.cast(exchange.schema) for split in exchange.splits for batch in exchange.emit(split)]
        table = pa.Table.from_batches(emitted, exchange.schema)
        if work.stage == "candidates":
            self.bands = table
        keys = [(name, "ascending", "at_start") for name in exchange.order]
        for bucket in buckets:
            rows = table.filter(pc.equal(table["bucket"], bucket))
            if len(rows):
                rows = rows.take(pc.sort_indices(rows, keys))
            reduce(bucket, iter(rows.combine_chunks().to_batches()))
        num_tasks = len(exchange.splits) + len(buckets)
        self.taken[work.stage] = Taken(time.process_time() - began, num_tasks, table.nbytes)

    def close(self) -> None:
        """Nothing is held."""


# --- how duplicates grow -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grown:
    """Duplicates of the whole input."""

    pairs: float
    rows: float
    """Rows that have a duplicate."""
    removed: float
    """Rows that would be dropped as copies of another."""
    seen: int
    """Pairs in the sample."""


def grow(left: I64, right: I64, weights: F64, scale: float, most_rows: float) -> Grown:
    """Duplicates of the whole input from the distinct pairs of a sample.

    Args:
        left: row keys, int64 [pairs].
        right: row keys, int64 [pairs].
        weights: pairs of the input that each stands for, from `scale` to `scale`^2, float64 [pairs].
        scale: rows of the input that a row of the sample stands for.
        most_rows: rows of the input.
    """
    far = weights > scale
    _, partners = np.unique(np.concatenate([left[~far], right[~far]]), return_counts=True)
    rows, removed = len(partners) * scale, float((partners / (1 + partners)).sum()) * scale
    if far.any():
        _, node, degree = np.unique(np.concatenate([left[far], right[far]]), return_inverse=True, return_counts=True)
        numbers, shares = partners_of(degree[node] - 1, 1 / scale)
        ends = 2 * float(weights[far].sum())
        rows += ends * float((shares / numbers).sum())
        removed += ends * float((shares / (numbers + 1)).sum())
    fits = min(1.0, most_rows / rows) if rows else 1.0
    return Grown(float(weights.sum()), rows * fits, removed * fits, len(left))


def partners_of(others: I64, fraction: float) -> tuple[F64, F64]:
    """How many partners the rows of a pair have in the whole input, from how many others they have in a sample.

    Of a row's partners beyond the one in the pair, each is in the sample with probability `fraction`: the mixture of
    binomials of greatest likelihood, over about 80 numbers of partners, by expectation maximisation.

    Args:
        others: partners beyond the pair's own, int64 [ends of pairs].
        fraction: chance of a row to be in the sample.

    Returns:
        numbers of partners, float64 [n], and the share of the ends of pairs that have so many, float64 [n].
    """
    most = max(2.0, 4 * (1 + others.max(initial=0)) / fraction)
    numbers = np.unique(np.round(np.geomspace(1.0, most, 80))).astype(np.float64)
    seen, counts = np.unique(others, return_counts=True)
    if fraction >= 1:
        return (seen + 1).astype(np.float64), counts / counts.sum()
    likelihood = np.exp(
        gammaln(numbers) - gammaln(np.maximum(numbers - seen[:, None], 1)) - gammaln(seen[:, None] + 1)
        + seen[:, None] * math.log(fraction) + (numbers - 1 - seen[:, None]) * math.log1p(-fraction)
    )  # fmt: skip
    likelihood[numbers - 1 < seen[:, None]] = 0.0
    shares = np.full(len(numbers), 1 / len(numbers))
    for _ in range(_EM_STEPS):
        posterior = likelihood * shares
        posterior /= posterior.sum(axis=1, keepdims=True)
        shares = counts @ posterior / counts.sum()
    return numbers, shares


def pair_weights(left: I64, right: I64, scale: float) -> F64:
    """`scale` for two rows of one piece, `scale`^2 for two of different pieces: float64 [pairs]."""
    return np.where(left >> ROW_BITS == right >> ROW_BITS, scale, scale**2)


def capped_pairs(rows: F64, max_partners: int) -> F64:
    """Candidate pairs of groups of equal bands: each row with the `max_partners` before it."""
    few = rows * (rows - 1) / 2
    many = max_partners * rows - max_partners * (max_partners + 1) / 2
    return np.where(rows <= max_partners, few, many)


@dataclass(frozen=True)
class Met:
    """The distinct candidate pairs of a sample."""

    left: I64
    right: I64
    weights: F64
    """Pairs of the input that each stands for."""
    num_bands: I64
    """Bands in which each pair meets."""

    @classmethod
    def of(cls, bands: pa.Table, candidates: tuple[I64, I64], max_partners: int, scale: float) -> "Met":
        """Pair up rows as the candidates stage does; a band of _HOT_ROWS rows or more grows as rows do.

        Args:
            bands: with int64 `band`, `key` and `row`.
            candidates: row keys of the pairs that the stage let through, the smaller one first.
            max_partners: rows before it that a row of a band is paired with.
            scale: rows of the input that a row of the sample stands for.
        """
        band, key, row = (bands[name].to_numpy() for name in ("band", "key", "row"))
        real = ~which_canaries(row)
        band, key, row = band[real], key[real], row[real]
        order = np.lexsort((row, key, band))
        band, row = band[order], row[order]
        left, right = _window(band, max_partners)
        met = np.isin(_codes(row[left], row[right]), _codes(*candidates))
        left, right = left[met], right[met]
        _, group, size = np.unique(band, return_inverse=True, return_counts=True)
        sizes = size[group][left].astype(np.float64)
        growth = capped_pairs(sizes * scale, max_partners) / capped_pairs(sizes, max_partners)
        far = np.where(sizes >= _HOT_ROWS, np.minimum(growth, scale**2), scale**2)
        a, b = np.minimum(row[left], row[right]), np.maximum(row[left], row[right])
        weights = np.minimum(pair_weights(a, b, scale), far)
        order = np.lexsort((b, a))
        starts = np.flatnonzero(np.concatenate([[True], (np.diff(a[order]) != 0) | (np.diff(b[order]) != 0)]))
        if not len(a):
            return cls(a, b, weights, a)
        highest = np.maximum.reduceat(weights[order], starts)
        return cls(a[order][starts], b[order][starts], highest, np.diff(np.append(starts, len(a))))

    def weights_of(self, left: I64, right: I64) -> F64:
        """Weights of some of the pairs, smaller row key first."""
        if not len(left):
            return np.empty(0)
        known = np.rec.fromarrays([self.left, self.right])
        return self.weights[np.searchsorted(known, np.rec.fromarrays([left, right]))]

    def stored(self, num_buckets: int) -> float:
        """Rows of `candidates`: a pair comes once from each bucket, and each PAIR_BLOCK of one, in which it meets."""
        pieces = max(num_buckets, math.ceil(float((self.weights * self.num_bands).sum()) / PAIR_BLOCK))
        return float((self.weights * pieces * (1 - (1 - 1 / pieces) ** self.num_bands)).sum())


def _window(band: I64, max_partners: int) -> tuple[I64, I64]:
    """Places of each row and of the rows before it that have its band, at most `max_partners`."""
    starts = np.flatnonzero(np.concatenate([[True], np.diff(band) != 0])) if len(band) else np.empty(0, np.int64)
    position = np.arange(len(band)) - np.repeat(starts, np.diff(np.append(starts, len(band))))
    partners = np.minimum(position, max_partners)
    right = np.repeat(np.arange(len(band)), partners)
    first = np.repeat(np.cumsum(partners) - partners, partners)
    return right - 1 - (np.arange(len(right)) - first), right


def _codes(left: I64, right: I64) -> npt.NDArray[np.void]:
    """Pairs as single values, the smaller number first."""
    return np.rec.fromarrays([np.minimum(left, right), np.maximum(left, right)])


def _columns(dataset: Dataset, *names: str) -> list[I64]:
    batches = list(dataset.read(list(names)))
    empty = [np.empty(0, np.int64)]
    return [np.concatenate([*empty, *(batch.column(name).to_numpy() for batch in batches)]) for name in names]


# --- the estimate --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageCost:
    """One job over the whole input."""

    stage: str
    rows: int
    """Rows of its largest dataset."""
    written_bytes: int
    """Parquet bytes of its datasets."""
    shuffle_bytes: int
    """Arrow bytes that cross the shuffle; what Spark writes of them is compressed."""
    tasks: int
    objects: int
    cpu_s: float


@dataclass(frozen=True)
class Estimate:
    """What a recipe would cost on its whole input."""

    input_bytes: int
    sample_bytes: int
    stages: tuple[StageCost, ...]
    worker_bytes: int
    """Memory of a worker, at the default split and bucket sizes."""
    join_bytes: int
    """Memory of the one task that joins the candidate pairs."""
    driver_bytes: int
    notes: tuple[str, ...] = field(default=())

    def total(self, name: str) -> float:
        """Sum of a field over the stages."""
        return float(sum(getattr(cost, name) for cost in self.stages))

    def lines(self) -> Iterator[str]:
        """A table for a terminal."""
        yield f"{self.sample_bytes / 1e6:,.1f} MB sampled of {self.input_bytes / 1e6:,.1f} MB"
        names = ("rows", "written MB", "shuffled MB", "tasks", "objects", "CPU s")
        yield f"{'job':<28}" + "".join(f"{name:>14}" for name in names)
        sums = [self.total(name) for name in ("written_bytes", "shuffle_bytes", "tasks", "objects", "cpu_s")]
        total = StageCost("total", 0, int(sums[0]), int(sums[1]), int(sums[2]), int(sums[3]), sums[4])
        for cost in (*self.stages, total):
            yield (
                f"{cost.stage[:27]:<28}{cost.rows:>14,}{cost.written_bytes / 1e6:>14,.1f}"
                f"{cost.shuffle_bytes / 1e6:>14,.1f}{cost.tasks:>14,}{cost.objects:>14,}{cost.cpu_s:>14,.1f}"
            )
        yield (
            f"memory: {self.worker_bytes / 1e9:.2f} GB a worker, {self.join_bytes / 1e9:.2f} GB for the task that joins"
            f" candidate pairs, {self.driver_bytes / 1e9:.2f} GB on the driver"
        )
        yield from self.notes


def estimate(
    recipe: Recipe,
    sample_bytes: int = SAMPLE_BYTES,
    report: Callable[[str], None] = lambda line: None,
    seed: int = 0,
) -> Estimate:
    """Run a recipe on a sample of its input and predict the cost of the whole.

    Args:
        recipe: what would run; nothing is read from or written to its output.
        sample_bytes: stored bytes of input to sample. Slow steps (IFD) run on every row of it.
        report: gets one line for each dataset of the sample's run.
        seed: of the places that are sampled.

    Raises:
        StillhouseError: what a run of the recipe would raise.
    """
    with tempfile.TemporaryDirectory(prefix="stillhouse-sample-") as folder:
        with storage_options(recipe.storage):
            check(recipe)
            warm = write_sample(recipe, Path(folder) / "warm", _LEAST_PIECE, seed)
            sample = write_sample(recipe, Path(folder) / "sample", sample_bytes, seed)
        # Models load and kernels compile once a worker, not once a row: they are not to be scaled up.
        run_stages(Context(SampleEngine(), warm.recipe, lambda line: None))
        engine = SampleEngine()
        run_stages(Context(engine, sample.recipe, report))
        return _Prediction(sample, engine).estimate()


class _Prediction:
    """From what a sample's run left behind to the cost of the whole."""

    def __init__(self, sample: Sample, engine: SampleEngine) -> None:
        self._sample = sample
        self._engine = engine
        self._scale = sample.scale
        self._recipe = sample.recipe
        self._rows = self._dataset("ingest").manifest.rows_out
        self._stored_candidates = 0.0
        self._canary_rows = 0.0
        self._exact = self._exact_duplicates()
        self._candidates, self._pairs = self._near_duplicates()
        self._alive = self._survivors()

    def _dataset(self, stage: str) -> Dataset:
        return Dataset.open(f"{self._recipe.output}/{stage}")

    def _has(self, stage: str) -> bool:
        return any(stage in job.split("+") for job in self._engine.taken)

    def _exact_duplicates(self) -> Grown:
        if not self._has("exact_hits"):
            return Grown(0.0, 0.0, 0.0, 0)
        by_survivor: dict[bytes, list[int]] = {}
        for batch in self._dataset("exact_hits").read():
            for row, survivor in zip(batch["row"].to_pylist(), batch["survivor"].to_pylist(), strict=True):
                by_survivor.setdefault(survivor, []).append(row)
        groups = list(by_survivor.values())
        small = [group for group in groups if len(group) < _HOT_ROWS]
        hot = sum(len(group) for group in groups if len(group) >= _HOT_ROWS) * self._scale
        # The survivor's own row is not in the table; it stands in for a far row of a key of its own.
        pairs = [pair for n, rows in enumerate(small) for pair in itertools.combinations([-1 - n, *rows], 2)]
        left, right = np.array(pairs, np.int64).reshape(-1, 2).T
        weights = pair_weights(left, right, self._scale)
        grown = grow(left, right, weights, self._scale, self._rows * self._scale)
        return Grown(grown.pairs + hot, grown.rows + hot, grown.removed + hot, grown.seen)

    def _near_duplicates(self) -> tuple[Grown, Grown]:
        near = self._recipe.dedup.near
        if near is None or not self._has("edges"):
            return Grown(0.0, 0.0, 0.0, 0), Grown(0.0, 0.0, 0.0, 0)
        most = self._rows * self._scale
        a, b = _columns(self._dataset("candidates"), "a", "b")
        real = ~which_canaries(b)
        candidates = distinct(a[real], b[real])
        met = Met.of(self._engine.bands, (candidates[0], candidates[1]), near.max_partners, self._scale)
        one, other = _columns(self._dataset("pairs"), "a_row", "b_row")
        left, right = np.minimum(one, other), np.maximum(one, other)
        self._stored_candidates = met.stored(self._tasks("candidates")) + float((~real).sum()) * self._scale
        copied = np.setdiff1d(bases(b[~real]), np.concatenate(candidates))
        self._canary_rows = (len(np.unique(b[~real])) + len(copied)) * self._scale
        return (
            grow(met.left, met.right, met.weights, self._scale, most),
            grow(left, right, met.weights_of(left, right), self._scale, most),
        )

    def _survivors(self) -> float:
        """Rows of the whole input over rows of the sample that are alive at the end."""
        entered = max(1, self._rows)
        now = 1 - self._lost / entered
        later = 1 - min(0.99, (self._exact.removed + self._pairs.removed) / (entered * self._scale))
        return self._scale * later / max(now, 0.01)

    @cached_property
    def _lost(self) -> int:
        """Rows of the sample that were dropped as duplicates."""
        lost = 0
        for stage, step in (("exact", "exact"), ("near", "near")):
            if self._has(stage):
                accounting = self._dataset(stage).manifest.accounting
                lost += sum(steps[step]["in"] - steps[step]["kept"] for steps in accounting.values())
        return lost

    def _factor(self, stage: str) -> float:
        """How much more of a dataset the whole input gives."""
        sample = {
            "candidates": self._ratio("candidates", self._stored_candidates),
            "edges": self._ratio("edges", self._stored_candidates),
            "sets": self._ratio("sets", self._candidates.rows + self._canary_rows),
            "pairs": self._pairs.pairs / max(1, self._pairs.seen),
            "components": self._ratio("components", self._pairs.rows),
            "near_hits": self._ratio("near_hits", self._pairs.rows),
            "exact_hits": self._ratio("exact_hits", self._exact.removed),
            "dropped": self._dropped() / max(1, self._dataset("dropped").manifest.rows_out),
            "tokenize": self._alive, "score": self._alive, "corpus": self._alive, "split_hits": self._alive,
        }  # fmt: skip
        if stage == "cells" or stage.startswith("rounds/"):
            return self._sample.input_splits / max(1, self._dataset(stage).manifest.splits)
        return sample.get(stage, self._scale)

    def _row_factor(self, stage: str) -> float:
        """As `_factor`, of rows: a row that has a verdict stays in an aligned table, with nothing beside it."""
        return self._scale if stage in ("tokenize", "score") else self._factor(stage)

    def _dropped(self) -> float:
        """Rows of the whole input that a step drops."""
        others = self._dataset("dropped").manifest.rows_out - self._lost
        return others * self._scale + self._exact.removed + self._pairs.removed

    def _ratio(self, stage: str, rows: float) -> float:
        return rows / max(1, self._dataset(stage).manifest.rows_out) if self._has(stage) else 1.0

    def _shuffle_factor(self, job: str) -> float:
        by_hits = {"exact": "exact_hits", "near": "near_hits", "split": "split_hits"}
        if job in ("exact_hits", "candidates"):
            return self._scale
        if job == "pairs":
            return self._factor("sets")
        return self._factor(by_hits.get(job, job))

    @cached_property
    def _task_cpu_s(self) -> float:
        """CPU-seconds of a task that has next to nothing to do."""
        return min(taken.cpu_s / taken.tasks for taken in self._engine.taken.values())

    def _cpu_s(self, job: str) -> float:
        """Every task costs the same to begin; the rest grows with what the job works on."""
        taken = self._engine.taken[job]
        work = max(0.0, taken.cpu_s - taken.tasks * self._task_cpu_s)
        start = self._tasks(job) * self._task_cpu_s
        if job == "sets":
            each = self._engine.taken["candidates"].cpu_s / max(1, self._rows)
            more = self._candidates.rows - self._scale * self._dataset("sets").manifest.rows_out
            return start + self._scale * work + max(0.0, more) * each
        if job in ("edges", "pairs", "components", "near_hits", "corpus"):
            return start + work * self._shuffle_factor(job)
        after = "dedup" in self._recipe.stages and job.split("+")[0] in ("tokenize", "score")
        return start + work * (self._alive if after else self._scale)

    def _tasks(self, job: str) -> int:
        if job in ("edges", "components"):
            return 1
        if job == "corpus":
            return self._files()
        if job in ("exact_hits", "split_hits", "candidates", "pairs", "near_hits"):
            return max(1, math.ceil(self._bucketed_bytes(job) / self._recipe.run.bucket_bytes))
        return self._sample.input_splits

    def _bucketed_bytes(self, job: str) -> float:
        """What the stage takes for the bytes of its shuffle when it chooses the number of buckets."""
        if job in ("pairs", "near_hits"):
            return 2 * self._written("sets")
        near = self._recipe.dedup.near
        row_bytes = {"exact_hits": CONTENT_BYTES, "candidates": band_bytes(near) if near else 0}
        return self._rows * self._scale * row_bytes.get(job, 56)

    def _files(self) -> int:
        tokens: dict[tuple[str, ...], int] = {}
        for batch in self._dataset("cells").read():
            for row in batch.to_pylist():
                cell = (row["split"], row["skill_bucket"], row["ctx_bucket"])
                tokens[cell] = tokens.get(cell, 0) + row["tokens"]
        target = self._recipe.layout.target_bytes
        return sum(max(1, math.ceil(count * self._alive * BYTES_PER_TOKEN / target)) for count in tokens.values())

    def _written(self, stage: str) -> float:
        return sum(part.bytes for part in self._dataset(stage).manifest.parts) * self._factor(stage)

    def _cost(self, job: str) -> StageCost:
        stages = job.split("+")
        taken = self._engine.taken[job]
        tasks = self._tasks(job)
        rows = max(self._dataset(stage).manifest.rows_out * self._row_factor(stage) for stage in stages)
        return StageCost(
            stage=job,
            rows=round(rows),
            written_bytes=round(sum(self._written(stage) for stage in stages)),
            shuffle_bytes=round(taken.shuffle_bytes * self._shuffle_factor(job)),
            tasks=tasks,
            objects=len(stages) * (2 * tasks + 2),
            cpu_s=self._cpu_s(job),
        )

    def estimate(self) -> Estimate:
        stages = tuple(self._cost(job) for job in self._engine.taken)
        return Estimate(
            input_bytes=self._sample.input_bytes,
            sample_bytes=self._sample.sample_bytes,
            stages=stages,
            worker_bytes=WORKER_BYTES,
            join_bytes=round(self._candidates.rows * JOIN_BYTES_PER_ROW),
            driver_bytes=DRIVER_BYTES_PER_TASK * max((cost.tasks for cost in stages), default=0),
            notes=tuple(self._notes()),
        )

    def _notes(self) -> Iterator[str]:
        if self._has("edges"):
            pairs = self._candidates.pairs
            yield (
                f"near duplicates: {pairs:,.0f} candidate pairs from {self._candidates.seen:,} in the sample, "
                f"{self._pairs.removed:,.0f} rows dropped"
            )
            if self._scale > 1 and self._pairs.seen < _FEW_PAIRS:
                yield (
                    f"only {self._pairs.seen} near-duplicate pairs are in the sample: the numbers of edges, sets, pairs"
                    " and clusters may be wrong by a factor of several; take a larger sample"
                )
