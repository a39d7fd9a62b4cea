"""Stage 2A: a teacher's log-probabilities of a corpus, as a TEACHER_LOGP dataset at <output>/teacher_logp.

    python -m jobs.rescore --conf demo --set corpus=DIR/corpus --set teacher.model=FOLDER --set output=DIR/rescored

A subset of the rows is chosen from narrow columns (training/teacher/subset.py); each chosen row's prompt is rendered
for a reasoning effort (training/teacher/prompt.py), the teacher passes over prompt and completion once, and the
log-probabilities of the supervised tokens are stored, one file a split of the corpus, by the storage protocol. What has
been scored is kept every 60 s or 1,000 rows, so a killed run goes on where it stood and gives the same dataset.

`workers` processes share the splits: on GPUs one for each, on a CPU one for each core. The cost is the teacher's.
"""

import contextlib
import itertools
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from etl import conf
from etl.arrays import I32
from etl.config import Config
from etl.console import ConfFlag, Overrides, command, report, run_command
from etl.errors import ConfigError, DataError, SchemaError
from etl.harmony.render import Effort
from etl.harmony.vocabulary import VOCABULARY_SHA256
from etl.hashing import hash_array
from etl.mixture.sampling import purpose_seed
from etl.models.causal_lm import folder_digest
from etl.schema import SPAN_KINDS, TEACHER_LOGP
from etl.storage.batches import load_batch, store_batch
from etl.storage.dataset import CHECKPOINTS, Build, Chunk, Dataset, Job, SplitWriter, read_receipts
from etl.storage.location import Location
from etl.storage.lock import RunLock
from etl.storage.manifest import Part, sum_counts
from training.data.teacher_table import TABLE, completion_digests, digest_bytes
from training.models.tokenizer import check_tokenizer
from training.teacher.prompt import EFFORTS, PromptRenderer, with_effort
from training.teacher.server import ServerTeacher, ServerTeacherConfig
from training.teacher.stats import distributions, findings
from training.teacher.subset import Cell, RowColumns, SubsetConfig, choose, chosen
from training.teacher.teacher import LocalTeacherConfig, Request, Scores, Teacher, local_folder

STAGE = "teacher_logp"
VERSION = 1
CHECKPOINT_ROWS = 1000
CHECKPOINT_S = 60.0
_ORDER_SEED = 0x746561636865
_SUPERVISED = tuple(f"n_{kind}" for kind in SPAN_KINDS)
_NEEDED = ("id", "source_dataset", "n_tokens", *_SUPERVISED, "input_ids", "spans")

AnyTeacher = Annotated[LocalTeacherConfig | ServerTeacherConfig, Field(discriminator="kind")]


class RescoreConfig(Config):
    """One rescoring."""

    corpus: str
    """Folder or URL of a committed corpus."""
    split: str = "train"
    output: str
    """Folder or URL; the dataset is <output>/teacher_logp."""
    teacher: AnyTeacher
    subset: SubsetConfig = SubsetConfig()
    modes: dict[Effort, float] = {"medium": 1.0}
    """Share of the rows that the teacher sees with each reasoning effort; chosen by id. They must add up to 1."""
    mode_column: str | None = None
    """A text column whose value (low, medium or high) is the effort of its row; null values go by `modes`."""
    temperature: float = Field(default=1.0, gt=0)
    """Log-probabilities are of logits divided by it."""
    topk: int = Field(default=0, ge=0)
    """Most likely tokens that are stored for each supervised token, too."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of efforts."""
    workers: int = Field(default=1, ge=1)
    """Processes that share the work."""
    split_tokens: int = Field(default=16_000_000, ge=1)
    """About how many tokens of the corpus one file of the output is made from."""

    @model_validator(mode="after")
    def _consistent(self) -> "RescoreConfig":
        if min(self.modes.values(), default=-1.0) < 0 or abs(sum(self.modes.values()) - 1.0) > 1e-6:
            raise ValueError(f"modes {self.modes} must be shares, none below 0, that add up to 1")
        if self.teacher.kind == "server" and self.temperature != 1.0:
            raise ValueError(f"a server tells log-probabilities at temperature 1, not {self.temperature}")
        return self


# --- the corpus ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The rows of a corpus that may be scored."""

    dataset: Dataset
    parts: tuple[Part, ...]
    cell_columns: tuple[str, ...]
    difficulty: str | None
    """The column; None where the corpus has none with a value."""
    mode_column: str | None

    @classmethod
    def open(cls, config: RescoreConfig) -> "Source":
        """The source of a configuration.

        Raises:
            DataError: no committed corpus, or no row in the split.
            SchemaError: it lacks a column.
        """
        dataset = Dataset.open(config.corpus)
        parts = tuple(part for part in dataset.manifest.parts if part.path.startswith(f"split={config.split}/"))
        if not parts:
            raise DataError(f"{config.corpus} has no row in split={config.split}; correct `corpus` or `split`")
        folders = _folders(parts[0])
        more = [name for name in config.subset.cells if name not in folders]
        wanted = [*_NEEDED, *more, *([config.mode_column] if config.mode_column else [])]
        missing = [name for name in wanted if name not in dataset.schema.names]
        if missing:
            raise SchemaError(f"{config.corpus} has no column {missing}; rescoring reads the corpus that layout writes")
        known = [name for name in config.subset.difficulty if name in dataset.schema.names]
        source = cls(dataset, parts, config.subset.cells, None, config.mode_column)
        found = next((name for name in known if source._has_value(name)), None)
        return cls(dataset, parts, config.subset.cells, found, config.mode_column)

    def _has_value(self, column: str) -> bool:
        for part in self.parts:
            for group in range(len(part.row_groups)):
                if self.read(part, group, [column]).column(column).null_count < part.row_groups[group]:
                    return True
        return False

    def read(self, part: Part, group: int, columns: list[str]) -> pa.RecordBatch:
        """Some columns of one row group."""
        with self.dataset.part_location(part).open_parquet() as file:
            table = file.read_row_group(group, columns=columns).select(columns)
        return table.combine_chunks().to_batches()[0].replace_schema_metadata(None)

    @property
    def narrow(self) -> list[str]:
        """Columns that the choice of rows needs, and the accounts."""
        inside = [name for name in self.cell_columns if name not in _folders(self.parts[0])]
        chosen_by = [self.difficulty] if self.difficulty else []
        more = [*inside, *chosen_by, *([self.mode_column] if self.mode_column else [])]
        return list(dict.fromkeys(["id", "source_dataset", "n_tokens", *_SUPERVISED, *more]))

    def labels(self, part: Part, batch: pa.RecordBatch) -> pa.Array:
        """The cell of each row, as text."""
        folders = _folders(part)
        pieces = [
            pa.repeat(folders[name], batch.num_rows) if name in folders else pc.fill_null(batch.column(name), "")
            for name in self.cell_columns
        ]
        return pc.binary_join_element_wise(*pieces, "/") if pieces else pa.repeat("all", batch.num_rows)

    def rows(self, part: Part, batch: pa.RecordBatch, cells: dict[str, int]) -> RowColumns:
        """What the choice needs of a row group; new cells get the next number."""
        labels = self.labels(part, batch).dictionary_encode()
        numbers = np.array([cells.setdefault(label, len(cells)) for label in labels.dictionary.to_pylist()], np.int32)
        supervised = sum(_numbers(batch, name) for name in _SUPERVISED)
        hard = np.full(batch.num_rows, np.nan, np.float32)
        if self.difficulty:
            hard = batch.column(self.difficulty).cast(pa.float32()).to_numpy(zero_copy_only=False)
        return RowColumns(
            hash_array(batch.column("id"), _ORDER_SEED),
            numbers[labels.indices.to_numpy()],
            _numbers(batch, "n_tokens"),
            np.asarray(supervised, np.int32),
            hard,
        )

    def splits(self, split_tokens: int) -> list[tuple[int, list[int]]]:
        """(part, row groups) of each split: row groups of one part in order, about `split_tokens` tokens."""
        out: list[tuple[int, list[int]]] = []
        for number, part in enumerate(self.parts):
            tokens_a_row = (part.tokens or 0) / max(1, part.rows)
            sums = np.cumsum(np.array(part.row_groups) * tokens_a_row) - 1
            names = (sums // split_tokens).astype(np.int64)
            borders = [0, *(np.flatnonzero(np.diff(names)) + 1).tolist(), len(names)]
            out += [(number, list(range(start, end))) for start, end in itertools.pairwise(borders) if start < end]
        return out


def _folders(part: Part) -> dict[str, str]:
    """Hive folders of a part: name to value."""
    pairs = [piece.partition("=") for piece in part.path.split("/")[:-1]]
    return {name: value for name, _, value in pairs}


def _numbers(batch: pa.RecordBatch, name: str) -> I32:
    return pc.fill_null(batch.column(name), 0).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)


def choose_rows(source: Source, config: SubsetConfig) -> dict[str, Cell]:
    """Read the narrow columns of the whole corpus and cut every cell.

    Raises:
        DataError: no row is chosen.
    """
    cells: dict[str, int] = {}
    pieces = [
        source.rows(part, source.read(part, group, source.narrow), cells)
        for part in source.parts
        for group in range(len(part.row_groups))
    ]
    names = sorted(cells)
    number = np.array([names.index(name) for name in cells], np.int32)
    rows = RowColumns.concatenate(pieces)
    rows = RowColumns(rows.id_hash, number[rows.cell], rows.num_tokens, rows.supervised, rows.difficulty)
    cuts = choose(rows, names, config)
    if not any(cut.chosen_rows for cut in cuts.values()):
        raise DataError(
            f"subset.fraction={config.fraction} of {int(rows.num_tokens.sum()):,} tokens chooses no row with "
            f"{config.min_supervised_tokens} supervised tokens; take a larger fraction"
        )
    return cuts


# --- one split -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChosenRow:
    """A row that is going to be scored."""

    id: str
    input_ids: I32
    """As the teacher sees it."""
    positions: npt.NDArray[np.int64]
    """Of its supervised tokens in `input_ids`."""
    kinds: npt.NDArray[np.int8]
    """Span kind of each."""
    mode: Effort | None
    prompt_ids: I32
    """Its other tokens, without the line of the effort."""


@dataclass(frozen=True)
class ScoreSplit:
    """Scores one split of the corpus. Pickles small."""

    config: RescoreConfig
    source: Source
    cuts: dict[str, Cell]
    teacher_digest: str
    checkpoints: Location

    def chunks(self, teacher: Teacher, number: int, split: tuple[int, list[int]]) -> Iterator[Chunk]:
        """One chunk for each row group."""
        part = self.source.parts[split[0]]
        for group in split[1]:
            narrow = self.source.read(part, group, self.source.narrow)
            rows, reasons = self._rows(part, group, narrow, teacher.max_tokens)
            place = self.checkpoints / f"{number:05d}/{group:06d}"
            batches = list(self._ranges(teacher, rows, place))
            batch = pa.Table.from_batches(batches, TEACHER_LOGP).combine_chunks().to_batches()
            told = distributions(batch[0], [row.kinds for row in rows]) if batch else {}
            yield Chunk(batch[0] if batch else None, narrow.num_rows, _account(narrow, reasons), told)

    def _rows(
        self, part: Part, group: int, narrow: pa.RecordBatch, max_tokens: int
    ) -> tuple[list[ChosenRow], list[str]]:
        """The rows of a row group that are scored, and for every row why not ("" where it is)."""
        cells: dict[str, int] = {}
        columns = self.source.rows(part, narrow, cells)
        mask = chosen(columns, list(cells), self.cuts, self.config.subset)
        reasons = np.where(columns.supervised > 0, "not_in_the_subset", "no_supervised_token").astype(object)
        numbers = np.flatnonzero(mask)
        if not len(numbers):
            return [], reasons.tolist()
        modes = self._modes(narrow)
        wide = self.source.read(part, group, ["input_ids", "spans"]).take(pa.array(numbers))
        ids = narrow.column("id").take(pa.array(numbers)).to_pylist()
        rows = []
        for place, row in enumerate(numbers.tolist()):
            input_ids = wide.column("input_ids")[place].values.to_numpy(zero_copy_only=False).astype(np.int32)
            found = self._row(ids[place], input_ids, wide.column("spans")[place], modes[row])
            if isinstance(found, ChosenRow) and len(found.input_ids) > max_tokens:
                found = "longer_than_the_teacher_takes"
            reasons[row] = "" if isinstance(found, ChosenRow) else found
            if isinstance(found, ChosenRow):
                rows.append(found)
        return rows, reasons.tolist()

    @cached_property
    def _prompts(self) -> PromptRenderer:
        return PromptRenderer()

    def _row(self, name: str, input_ids: I32, spans: pa.ListScalar, mode: Effort) -> ChosenRow | str:
        """A row for the teacher, or why it cannot be scored."""
        listed = [(span["start"], span["end"], span["kind"]) for span in spans.as_py() or ()]
        at = [np.arange(max(start, 1), end) for start, end, _ in listed]
        positions = np.concatenate([np.empty(0, np.int64), *at]).astype(np.int64)
        if not len(positions):
            return "no_supervised_token"
        kinds = np.repeat([SPAN_KINDS.index(kind) for _, _, kind in listed], [len(some) for some in at]).astype(np.int8)
        others = np.ones(len(input_ids), bool)
        others[positions] = False
        if listed[0][2] == "text":
            return ChosenRow(name, input_ids, positions, kinds, None, input_ids[others])
        system = self._prompts.system(input_ids)
        if system is None or positions[0] < system.num_tokens:
            return "no_reasoning_line"
        prompt = with_effort(input_ids, system, mode)
        shifted = positions + prompt.shift
        if not np.array_equal(prompt.input_ids[shifted], input_ids[positions]):
            raise DataError(f"row {name}: the completion has other tokens after rendering the prompt for '{mode}'")
        rest = input_ids[system.num_tokens :][others[system.num_tokens :]]
        stripped = np.concatenate([system.without_effort, rest])
        return ChosenRow(name, prompt.input_ids, shifted, kinds, mode, stripped)

    def _modes(self, narrow: pa.RecordBatch) -> list[Effort]:
        """The effort of each row."""
        hashes = hash_array(narrow.column("id"), purpose_seed("teacher mode", self.config.seed))
        shares = np.cumsum([self.config.modes.get(effort, 0.0) for effort in EFFORTS])
        drawn = np.searchsorted(shares, (hashes >> np.uint64(11)) * 2.0**-53, side="right")
        modes = [EFFORTS[min(int(number), len(EFFORTS) - 1)] for number in drawn]
        if self.config.mode_column is None:
            return modes
        given = narrow.column(self.config.mode_column).to_pylist()
        wrong = next((value for value in given if value is not None and value not in EFFORTS), None)
        if wrong is not None:
            raise DataError(
                f"column {self.config.mode_column} has the value {wrong!r}; it must be {', '.join(EFFORTS)} or null"
            )
        return [mode if value is None else value for mode, value in zip(modes, given, strict=True)]

    # A slice is what the teacher gets at once. It is cut by the rows alone, never by the clock: scores depend a little
    # on what else is in a forward pass, and a run that was killed must give what an unbroken one gives.

    def _ranges(self, teacher: Teacher, rows: list[ChosenRow], place: Location) -> Iterator[pa.RecordBatch]:
        """The scored rows, range by range; a range that an earlier attempt stored is not scored again."""
        slices = _slices(rows, teacher.batch_tokens)
        at = 0
        while at < len(slices):
            stored = place / f"{at:06d}.arrow"
            batch = load_batch(stored)
            if batch is None:
                batch = self._score_range(teacher, slices[at:])
                store_batch(stored, batch)
            yield batch
            sums = np.cumsum([len(some) for some in slices[at:]])
            at += int(np.searchsorted(sums, batch.num_rows)) + 1

    def _score_range(self, teacher: Teacher, slices: list[list[ChosenRow]]) -> pa.RecordBatch:
        """The first slices, as many as a checkpoint holds."""
        began = time.monotonic()
        done: list[pa.RecordBatch] = []
        for rows in slices:
            full = sum(batch.num_rows for batch in done) + len(rows) > CHECKPOINT_ROWS
            if done and (full or time.monotonic() - began >= CHECKPOINT_S):
                break
            scores = teacher.score([Request(row.input_ids, row.positions) for row in rows])
            done.append(self._batch(rows, scores))
        return pa.Table.from_batches(done).combine_chunks().to_batches()[0]

    def _batch(self, rows: list[ChosenRow], scores: list[Scores]) -> pa.RecordBatch:
        """TEACHER_LOGP rows."""
        completions = [row.input_ids[row.positions] for row in rows]
        config, size = self.config, len(rows)
        top = [pa.nulls(size, TEACHER_LOGP.field(name).type) for name in ("topk_ids", "topk_logp")]
        if config.topk:
            top = [
                _lists([score.topk_ids.reshape(-1) for score in scores]),
                _lists([_rounded(score.topk_logp.reshape(-1)) for score in scores]),
            ]
        columns = [
            pa.array([row.id for row in rows], pa.string()),
            _digests(completions),
            _digests([row.prompt_ids for row in rows]),
            pa.repeat(self.teacher_digest, size),
            pa.array([row.mode for row in rows], pa.string()),
            pa.repeat(config.temperature, size),
            pa.array([row.positions[0] for row in rows], pa.int32()),
            _lists([_rounded(score.logp) for score in scores]),
            *top,
        ]
        return pa.RecordBatch.from_arrays(columns, schema=TEACHER_LOGP)


def _slices(rows: list[ChosenRow], batch_tokens: int) -> list[list[ChosenRow]]:
    """Consecutive rows, at most so many tokens and CHECKPOINT_ROWS rows together; a longer row is alone."""
    out: list[list[ChosenRow]] = []
    held = batch_tokens
    for row in rows:
        if held + len(row.input_ids) > batch_tokens or len(out[-1]) == CHECKPOINT_ROWS:
            out.append([])
            held = 0
        out[-1].append(row)
        held += len(row.input_ids)
    return out


def _rounded(logp: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The nearest float16 values.

    Raises:
        DataError: a log-probability is not finite.
    """
    # A sum that is rounded can pass 1 by a hair.
    rounded = np.minimum(logp, 0.0).astype(np.float16).astype(np.float32)
    if not np.isfinite(rounded).all():
        raise DataError(f"the teacher gives a log-probability of {logp[~np.isfinite(rounded)][0]}; it is broken")
    return rounded


def _lists(arrays: list[npt.NDArray[Any]]) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(array) for array in arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))


def _digests(sequences: list[I32]) -> pa.Array:
    offsets = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    return digest_bytes(completion_digests(np.concatenate(sequences), offsets))


def _account(narrow: pa.RecordBatch, reasons: list[str]) -> dict[str, dict[str, dict[str, int]]]:
    """in = kept + what was left out, by source."""
    counts = pa.table({"source": narrow.column("source_dataset"), "reason": pa.array(reasons, pa.string())})
    out: dict[str, dict[str, dict[str, int]]] = {}
    for row in counts.group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist():
        account = out.setdefault(row["source"], {STAGE: {"in": 0, "made": 0, "kept": 0}})[STAGE]
        account["in"] += row["count_all"]
        account[row["reason"] or "kept"] = row["count_all"]
    return out


# --- the run -------------------------------------------------------------------------------------------------------


def open_teacher(config: RescoreConfig, worker: int) -> Teacher:
    """The teacher of a configuration, on the worker's own device."""
    if config.teacher.kind == "server":
        return ServerTeacher(config.teacher, config.topk)
    import torch

    from training.teacher.local import LocalTeacher

    gpus = torch.cuda.device_count()
    return LocalTeacher(config.teacher, config.temperature, config.topk, f"cuda:{worker % gpus}" if gpus else "cpu")


def _identity(config: RescoreConfig) -> dict[str, Any]:
    """What decides a teacher's answers."""
    if config.teacher.kind == "server":
        return {"kind": "server", "digest": config.teacher.digest}
    folder = local_folder(config.teacher)
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"teacher.model={config.teacher.model} is not a folder with a config.json; give a local transformers model"
        )
    check_tokenizer(folder)
    return {"kind": "local", "digest": folder_digest(folder), "dtype": config.teacher.dtype}


def _job_of(config: RescoreConfig, source: Source, identity: dict[str, Any]) -> Job:
    semantic = {
        "version": VERSION,
        "teacher": identity,
        "split": config.split,
        "subset": config.subset.fingerprinted(),
        "difficulty": source.difficulty,
        "modes": {mode: share for mode, share in sorted(config.modes.items()) if share > 0},
        "mode_column": config.mode_column,
        "temperature": config.temperature,
        "topk": config.topk,
        "seed": config.seed,
        "vocabulary": VOCABULARY_SHA256,
    }
    return Job(Location.of(config.output) / STAGE, STAGE, TABLE, TEACHER_LOGP, semantic, (source.dataset,))


def rescore(config: RescoreConfig) -> Dataset:
    """Score a corpus, or go on with it, or find it done.

    Raises:
        ConfigError: the teacher is absent or of another tokenizer.
        SchemaError: the corpus lacks a column.
        SourceError: a server does not answer.
        DataError: no corpus, no row chosen, another run at work, or a worker that died.
    """
    identity = _identity(config)
    source = Source.open(config)
    job = _job_of(config, source, identity)
    with RunLock(Location.of(config.output)) as lock:
        build = Build(job)
        done = build.reopen()
        if done is not None:
            return done
        cuts = choose_rows(source, config.subset)
        thresholds = {name: cut.model_dump(mode="json") for name, cut in sorted(cuts.items())}
        build = Build(job.with_thresholds({"subset": thresholds}))
        lock.check()
        plan = build.plan(source.splits(config.split_tokens))
        work = ScoreSplit(config, source, cuts, identity["digest"], job.folder / CHECKPOINTS / job.plan_fingerprint)
        _score_splits(work, build.writer(plan), [(number, plan.splits[number]) for number in build.missing(plan)])
        receipts = read_receipts(job.folder, plan.name, len(plan.splits))
        told = sum_counts(receipt.distributions for receipt in receipts if receipt is not None)
        found = {**findings(told), "temperature": config.temperature, "topk": config.topk}
        lock.check()
        return Build(build.job.with_findings(found)).commit(plan)


def _score_splits(work: ScoreSplit, writer: SplitWriter, todo: list[tuple[int, Any]]) -> None:
    """Score the splits, here or in several processes."""
    if work.config.workers == 1 or len(todo) < 2:
        if todo:
            with contextlib.closing(_Worker(work, writer, 0)) as worker:
                worker.run(todo)
        return
    context = multiprocessing.get_context("spawn")
    count = min(work.config.workers, len(todo))
    numbers = context.Queue()
    for number in range(count):
        numbers.put(number)
    try:
        with ProcessPoolExecutor(count, context, _start_worker, (work, writer, numbers)) as pool:
            for done in [pool.submit(_run_in_worker, item) for item in todo]:
                done.result()
    except BrokenProcessPool as error:
        raise DataError("a worker died (out of memory?); run again, which goes on from here") from error


class _Worker:
    """One process's teacher, to be closed."""

    def __init__(self, work: ScoreSplit, writer: SplitWriter, number: int) -> None:
        self._work, self._writer = work, writer
        self._teacher = open_teacher(work.config, number)

    def run(self, todo: Sequence[tuple[int, Any]]) -> None:
        for number, split in todo:
            self._writer.write(number, self._work.chunks(self._teacher, number, split))

    def close(self) -> None:
        self._teacher.close()


_of_this_process: list[_Worker] = []
"""The worker of a spawned process, which gets its splits one by one."""


def _start_worker(work: ScoreSplit, writer: SplitWriter, numbers: Any) -> None:
    _of_this_process.append(_Worker(work, writer, numbers.get()))


def _run_in_worker(item: tuple[int, Any]) -> None:
    _of_this_process[0].run([item])


def run(name: str, overrides: list[str]) -> Dataset:
    """Rescore by a configuration: a shipped name, a path or a URI; says what came out."""
    dataset = rescore(conf.load(RescoreConfig, name, "rescore", overrides))
    manifest = dataset.manifest
    for cell, cut in manifest.thresholds["subset"].items():
        report(
            f"{cell:>24}  {cut['chosen_rows']:>9,} of {cut['rows']:,} rows  {cut['chosen_tokens']:>12,} of "
            f"{cut['tokens']:,} tokens (budget {cut['budget_tokens']:,})"
        )
    for kind, told in manifest.findings["spans"].items():
        report(f"{kind:>24}  {told['tokens']:>12,} tokens, mean logp {told['mean_logp']:.4f}")
    report(f"{manifest.rows_out:,} rows, mean logp {manifest.findings['mean_logp']:.4f}: {dataset.folder}")
    return dataset


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 for what the user can mend."""
    return run_command(_job, argv, "python -m jobs.rescore")


@command
def _job(name: ConfFlag, set_: Overrides) -> None:
    """Score a part of a corpus by a teacher; what is committed or checkpointed is not scored again."""
    run(name, set_)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
