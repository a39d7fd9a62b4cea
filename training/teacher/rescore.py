"""Rescoring: a teacher's log-probabilities of a corpus, as a TEACHER_LOGP dataset at <output>/teacher_logp.

A subset of the rows is chosen from narrow columns (subset.py). Each chosen row's prompt is rendered for a reasoning
effort (prompt.py), the teacher passes over prompt and completion once, and the log-probabilities of the supervised
tokens are stored, one file a split of the corpus. It is one `map` of an engine: a task scores one split, and a killed
run resumes at its last checkpoint (60 s or 1,000 rows) and gives the same dataset.

A process opens its teacher once, on a GPU of its own where it finds some, and keeps it from split to split. The cost is
the teacher's; the driver reads the narrow columns once.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from etl.accounting import account
from etl.arrays import I32
from etl.config import Config
from etl.digests import folder_digest
from etl.engine import Engine, sole_writer, worker_number
from etl.errors import ConfigError, DataError
from etl.harmony.render import Effort
from etl.harmony.vocabulary import VOCABULARY_SHA256
from etl.hashing import hash_array
from etl.mixture.sampling import purpose_seed
from etl.schema import SPAN_KINDS, TEACHER_LOGP, VERDICT
from etl.storage.batches import LIMITS, Limits, checkpointed
from etl.storage.build import Build, Chunk, Job
from etl.storage.dataset import CHECKPOINTS, Dataset
from etl.storage.location import Location
from etl.storage.manifest import FLOW, Accounting, Part
from training.data.teacher_table import LOGP_ROUNDING, TABLE, completion_digests, digest_bytes
from training.models.tokenizer import check_tokenizer
from training.teacher.corpus_rows import CorpusRows, choose_rows
from training.teacher.prompt import EFFORTS, PromptRenderer, with_effort
from training.teacher.server import ServerTeacher, ServerTeacherConfig
from training.teacher.stats import LEAST_LOGP, distributions, findings
from training.teacher.subset import Cell, SubsetConfig, chosen
from training.teacher.teacher import LocalTeacherConfig, Request, Teacher, local_folder

STAGE = "teacher_logp"
VERSION = 1

AnyTeacher = Annotated[LocalTeacherConfig | ServerTeacherConfig, Field(discriminator="kind")]


class RescoreConfig(Config):
    """One rescoring."""

    corpus: str
    """Folder or URL of a committed corpus."""
    split: str = "train"
    """Split of the corpus to score."""
    output: str
    """Folder or URL; the dataset is <output>/teacher_logp."""
    teacher: AnyTeacher
    """The scoring model, local or behind a server."""
    subset: SubsetConfig = SubsetConfig()
    """Which rows to score."""
    modes: dict[Effort, float] = {"medium": 1.0}
    """Share of the rows scored with each reasoning effort, chosen by id. The shares must add up to 1."""
    mode_column: str | None = None
    """Text column with the effort (low, medium or high) of each row; null values are assigned by `modes`."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it."""
    topk: int = Field(default=0, ge=0)
    """Number of most likely tokens to store for each supervised token as well."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice of efforts."""
    workers: int = Field(default=1, ge=1)
    """Number of processes on this machine; on a cluster the engine decides."""
    split_tokens: int = Field(default=16_000_000, ge=1)
    """Approximate number of corpus tokens per output file."""

    @model_validator(mode="after")
    def _consistent(self) -> "RescoreConfig":
        if min(self.modes.values(), default=-1.0) < 0 or abs(sum(self.modes.values()) - 1.0) > 1e-6:
            raise ValueError(f"modes {self.modes} must be shares, none below 0, that add up to 1")
        if self.teacher.kind == "server" and self.temperature != 1.0:
            raise ValueError(
                f"a server returns log-probabilities at temperature 1 only, not {self.temperature}; leave "
                "`temperature` out, or use a local teacher"
            )
        return self


# --- the teacher ---------------------------------------------------------------------------------------------------


def open_teacher(config: RescoreConfig) -> Teacher:
    """The teacher of a configuration. A process opens it once and keeps it for the next split."""
    return _opened(config.teacher, config.temperature, config.topk)


@functools.lru_cache(maxsize=1)
def _opened(config: AnyTeacher, temperature: float, topk: int) -> Teacher:
    if config.kind == "server":
        return ServerTeacher(config, topk)
    import torch

    from training.teacher.local import LocalTeacher

    gpus = torch.cuda.device_count()
    device = f"cuda:{worker_number() % gpus}" if gpus else "cpu"
    return LocalTeacher(config, temperature, topk, device)


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
    unpredicted: int
    """Supervised tokens that get no score: 1 where its first token, which nothing predicts, is one."""


@dataclass(frozen=True)
class ScoreSplit:
    """Scores one split of the corpus. Pickles small."""

    config: RescoreConfig
    corpus: CorpusRows
    cuts: dict[str, Cell]
    teacher_digest: str
    checkpoints: Location
    open_teacher: Callable[[RescoreConfig], Teacher]
    limits: Limits

    def __call__(self, split: tuple[int, list[int]]) -> Iterator[Chunk]:
        """One chunk for each row group of the split: (number of the part, its row groups)."""
        teacher = self.open_teacher(self.config)
        number, groups = split
        part = self.corpus.parts[number]
        for group in groups:
            narrow = self.corpus.read(part, group, self.corpus.narrow)
            rows, reasons = self._rows(part, group, narrow, teacher.max_tokens)
            # The teacher gets a slice at a time. Slices depend only on the rows, never on time: scores depend
            # a little on what else is in a forward pass, and a resumed run must give what an unbroken one gives.
            slices = _slices(rows, teacher.batch_tokens, self.limits.rows)
            score = functools.partial(self._score, teacher)
            folder = self.checkpoints / f"part-{number:05d}/{group:06d}"
            batches = list(checkpointed(folder, slices, score, self.limits))
            accounting = _account(narrow, reasons)
            counts: dict[str, Any] = {"left_out": dict(Counter(reason for reason in reasons if reason))}
            if not batches:
                yield Chunk(None, narrow.num_rows, accounting, counts)
                continue
            batch = pa.Table.from_batches(batches, TEACHER_LOGP).combine_chunks().to_batches()[0]
            counts["unpredicted"] = sum(row.unpredicted for row in rows)
            counts |= distributions(batch, [row.kinds for row in rows])
            yield Chunk(batch, narrow.num_rows, accounting, counts)

    def _rows(
        self, part: Part, group: int, narrow: pa.RecordBatch, max_tokens: int
    ) -> tuple[list[ChosenRow], list[str]]:
        """The rows of a row group that are scored, and for every row why not ("" where it is)."""
        cells: dict[str, int] = {}
        columns = self.corpus.columns(part, narrow, cells)
        mask = chosen(columns, list(cells), self.cuts, self.config.subset)
        least = self.config.subset.min_supervised_tokens
        reasons = np.where(columns.supervised < least, "too_few_supervised_tokens", "not_in_the_subset").astype(object)
        reasons[columns.supervised == 0] = "no_supervised_token"
        numbers = np.flatnonzero(mask)
        if not len(numbers):
            return [], reasons.tolist()
        modes = self._modes(narrow)
        wide = self.corpus.read(part, group, ["input_ids", "spans"]).take(pa.array(numbers))
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
        unpredicted = int(any(start == 0 for start, _, _ in listed))
        others = np.ones(len(input_ids), bool)
        others[positions] = False
        if listed[0][2] == "text":
            return ChosenRow(name, input_ids, positions, kinds, None, input_ids[others], unpredicted)
        system = self._prompts.system(input_ids)
        if system is None or positions[0] < system.num_tokens:
            return "no_reasoning_line"
        prompt = with_effort(input_ids, system, mode)
        shifted = positions + prompt.shift
        if not np.array_equal(prompt.input_ids[shifted], input_ids[positions]):
            raise DataError(f"row {name}: the completion has other tokens after rendering the prompt for '{mode}'")
        rest = input_ids[system.num_tokens :][others[system.num_tokens :]]
        stripped = np.concatenate([system.without_effort, rest])
        return ChosenRow(name, prompt.input_ids, shifted, kinds, mode, stripped, unpredicted)

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

    def _score(self, teacher: Teacher, rows: list[ChosenRow]) -> pa.RecordBatch:
        """TEACHER_LOGP rows."""
        scores = teacher.score([Request(row.input_ids, row.positions) for row in rows])
        completions = [row.input_ids[row.positions] for row in rows]
        config, size = self.config, len(rows)
        top = [pa.nulls(size, TEACHER_LOGP.field(name).type) for name in ("topk_ids", "topk_logp")]
        if config.topk:
            best = [_rounded(score.topk_logp.reshape(-1), row.id) for score, row in zip(scores, rows, strict=True)]
            top = [_lists([score.topk_ids.reshape(-1) for score in scores]), _lists(best)]
        columns = [
            pa.array([row.id for row in rows], pa.string()),
            _digests(completions),
            _digests([row.prompt_ids for row in rows]),
            pa.repeat(self.teacher_digest, size),
            pa.array([row.mode for row in rows], pa.string()),
            pa.repeat(config.temperature, size),
            pa.array([row.positions[0] for row in rows], pa.int32()),
            _lists([_rounded(score.logp, row.id) for score, row in zip(scores, rows, strict=True)]),
            *top,
        ]
        return pa.RecordBatch.from_arrays(columns, schema=TEACHER_LOGP)


def _slices(rows: list[ChosenRow], batch_tokens: int, max_rows: int) -> list[list[ChosenRow]]:
    """Consecutive rows, together at most `batch_tokens` tokens and `max_rows` rows; a longer row is separate."""
    out: list[list[ChosenRow]] = []
    held = batch_tokens
    for row in rows:
        if held + len(row.input_ids) > batch_tokens or len(out[-1]) == max_rows:
            out.append([])
            held = 0
        out[-1].append(row)
        held += len(row.input_ids)
    return out


def _rounded(logp: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    """The nearest float16 values of the row `name`.

    Raises:
        DataError: a log-probability is above 0, or not finite.
    """
    # A sum that is rounded can pass 1 by a hair.
    rounded = np.minimum(logp, 0.0).astype(np.float16).astype(np.float32)
    bad = ~np.isfinite(rounded) | (logp > LOGP_ROUNDING)
    if bad.any():
        raise DataError(
            f"row {name}: the teacher gives a log-probability of {logp[bad][0]:g}, which is not a finite number up to "
            "0; it is broken"
        )
    return rounded


def _lists(arrays: list[npt.NDArray[Any]]) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(array) for array in arrays)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(arrays)))


def _digests(sequences: list[I32]) -> pa.Array:
    offsets = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    return digest_bytes(completion_digests(np.concatenate(sequences), offsets))


def _account(narrow: pa.RecordBatch, reasons: list[str]) -> Accounting:
    """in = kept + what was left out, by source; the reason "" is a row that is kept."""
    num_rows = narrow.num_rows
    verdict = pa.StructArray.from_arrays(
        [pa.repeat(STAGE, num_rows), pa.array(reasons, pa.string()), pa.nulls(num_rows, pa.string())],
        fields=list(VERDICT),
        mask=pa.array([reason == "" for reason in reasons], pa.bool_()),
    )
    return account([STAGE], narrow.column("source_dataset"), pa.nulls(num_rows, VERDICT), verdict)


# --- the run -------------------------------------------------------------------------------------------------------


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


def _job(config: RescoreConfig, corpus: Dataset, difficulty: str | None, identity: dict[str, Any]) -> Job:
    semantic = {
        "version": VERSION,
        "teacher": identity,
        "split": config.split,
        "subset": config.subset.fingerprinted(),
        "difficulty": difficulty,
        "modes": {mode: share for mode, share in sorted(config.modes.items()) if share > 0},
        "mode_column": config.mode_column,
        "temperature": config.temperature,
        "topk": config.topk,
        "seed": config.seed,
        "vocabulary": VOCABULARY_SHA256,
    }
    return Job(Location.of(config.output) / STAGE, STAGE, TABLE, TEACHER_LOGP, semantic, (corpus,))


def rescore(
    config: RescoreConfig,
    engine: Engine,
    open_teacher: Callable[[RescoreConfig], Teacher] = open_teacher,
    limits: Limits = LIMITS,
) -> Dataset:
    """Score a corpus, resume scoring it, or return what is already committed.

    Args:
        config: what is scored, by which teacher, and where the dataset goes.
        engine: runs the splits.
        open_teacher: called by a task for the teacher of its process. It must pickle for an engine of other processes.
        limits: when a task stores a checkpoint.

    Raises:
        ConfigError: the teacher is absent or of another tokenizer.
        SchemaError: the corpus lacks a column.
        SourceError: a server does not answer.
        DataError: no corpus, no row chosen, another run is active, or a worker died.
    """
    identity = _identity(config)
    corpus = Dataset.open(config.corpus)
    rows = CorpusRows.of(corpus, config.split, config.subset, config.mode_column)
    job = _job(config, corpus, rows.difficulty, identity)
    with sole_writer(engine, Location.of(config.output)):
        done = Build(job).reopen()
        if done is not None:
            return done
        cuts = choose_rows(rows, config.subset)
        thresholds = {name: cut.model_dump(mode="json") for name, cut in sorted(cuts.items())}
        job = job.with_thresholds({"subset": thresholds}).with_findings_of(functools.partial(_found, config))
        checkpoints = job.folder / CHECKPOINTS / job.plan_fingerprint
        work = ScoreSplit(config, rows, cuts, identity["digest"], checkpoints, open_teacher, limits)
        try:
            return engine.map(job, rows.splits(config.split_tokens), work).result()
        finally:
            _opened.cache_clear()


def _found(config: RescoreConfig, counts: dict[str, Any]) -> dict[str, Any]:
    """The findings of the whole dataset."""
    return {**findings(counts), "temperature": config.temperature, "topk": config.topk}


def summary(dataset: Dataset) -> Iterator[str]:
    """A report about a rescored dataset: lines for cells, span kinds and reasons, then the totals."""
    manifest = dataset.manifest
    for cell, cut in manifest.thresholds["subset"].items():
        yield (
            f"{cell:>24}  {cut['chosen_rows']:>9,} of {cut['rows']:,} rows  {cut['chosen_tokens']:>12,} of "
            f"{cut['tokens']:,} tokens (budget {cut['budget_tokens']:,})"
        )
    for kind, found in manifest.findings["spans"].items():
        yield f"{kind:>24}  {found['tokens']:>12,} tokens, mean logp {found['mean_logp']:.4f}"
    left_out = Counter[str]()
    for steps in manifest.accounting.values():
        left_out.update({reason: rows for reason, rows in steps[STAGE].items() if reason not in FLOW})
    for reason, rows in sorted(left_out.items()):
        yield f"{reason:>32}  {rows:>9,} of {manifest.rows_in:,} rows left out"
    for name, meaning in (
        ("unpredicted", "have no score: nothing predicts a row's first token"),
        ("floored", f"had a probability of 0: {LEAST_LOGP:g} is stored"),
    ):
        if tokens := manifest.findings.get(name, 0):
            yield f"{tokens:,} tokens {meaning}"
    yield f"{manifest.rows_out:,} rows, mean logp {manifest.findings['mean_logp']:.4f}: {dataset.folder}"
