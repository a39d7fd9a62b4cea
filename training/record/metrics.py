"""What is measured of training, and where it is written down.

Numbers: `StepClock` (where the time of a step goes), `throughput`, `router_metrics`, `SpikeWatch`, `TeacherLogps`. They
are plain data of one rank, or of the whole run where the caller has summed or gathered them.

Places: `Journal` writes each record to metrics.jsonl, to TensorBoard (output/tensorboard) and to W&B where that is
asked for, one JSON line a logged step to a stream (`--json`), and moves the live line on standard error. One rank has a
journal. A run that resumes at step s first takes back what the interrupted run wrote about the steps after s: exactly
in metrics.jsonl, by TensorBoard's purge there. Every record has a `step`; fields that differ between two equal runs are
those of MEASURED. A record of 60 numbers costs 0.7 ms, and 5 ms with TensorBoard (2 busy cores).
"""

import importlib
import json
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from etl.config import Config
from etl.errors import ConfigError
from etl.schema import SPAN_KINDS
from training.data.collate import Pack
from training.record.flops import mfu

MEASURED = frozenset({"seconds", "tokens_per_s", "supervised_tokens_per_s", "flops_per_s", "mfu", "time", "hardware"})
"""Fields of a record that a second run, or a resumed one, measures anew; all others are the same."""

PHASES = ("data", "forward_backward", "optimizer", "checkpoint", "evaluation")

Record = dict[str, Any]


class MetricsConfig(Config):
    """What is written down, and how often."""

    log_every_steps: int = Field(default=1, ge=1)
    """Steps from one record of a step to the next. A record is of its own step, not a mean over those between."""
    tensorboard: bool = True
    wandb_project: str | None = None
    """Project on Weights & Biases; needs the package `wandb`. Null for none."""
    peak_flops: float | None = Field(default=None, gt=0)
    """FLOP/s of one device, for the MFU; null for the datasheet's bf16 value of a known NVIDIA device, else no MFU."""
    spike_window: int = Field(default=128, ge=16)
    """Losses before a step that it is compared with."""
    spike_z: float = Field(default=6.0, gt=0)
    """A loss is a spike from so many robust standard deviations above their median."""

    def logs(self, step: int) -> bool:
        """Whether a step is written down; what only a record needs is not measured for others."""
        return step % self.log_every_steps == 0


# Numbers


class StepClock:
    """Seconds in each phase since the last record. Phases may nest: the time of an inner one is not the outer one's."""

    def __init__(
        self,
        device: torch.device,
        on_phase: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`on_phase` is told each phase that begins or goes on (a watchdog's sign of life)."""
        self._synchronize = torch.cuda.synchronize if device.type == "cuda" else None
        self._on_phase = on_phase
        self._now = now
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []
        self._record_started = self._mark = now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Attribute the time of the block to one of PHASES. On a GPU it waits for the device at both ends."""
        assert name in PHASES, f"{name} is not one of {PHASES}"
        self._settle()
        self._open.append(name)
        self._on_phase(name)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()
            if self._open:
                self._on_phase(self._open[-1])

    def take(self) -> dict[str, float]:
        """`<phase>_s` of each phase and `other_s`, since the last call; they add up to `total_s`."""
        self._settle()
        seconds = {f"{name}_s": spent for name, spent in self._seconds.items()}
        total = self._mark - self._record_started
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._record_started = self._mark
        return {**seconds, "other_s": total - sum(seconds.values()), "total_s": total}

    def _settle(self) -> None:
        """Give the time since the last mark to the innermost open phase."""
        if self._synchronize is not None:
            self._synchronize()
        now = self._now()
        if self._open:
            self._seconds[self._open[-1]] += now - self._mark
        self._mark = now


def training_seconds(split: Mapping[str, float]) -> float:
    """Of what `StepClock.take` gave: without checkpoints and evaluations, for what is counted a second."""
    return split["total_s"] - split["checkpoint_s"] - split["evaluation_s"]


@dataclass(frozen=True)
class StepWork:
    """What all ranks together did in some seconds: of all steps since the last record, not of the last alone."""

    tokens: int
    supervised_tokens: int
    flops: float
    """Model FLOPs (training/record/flops.py)."""
    seconds: float


def throughput(work: StepWork, world_size: int, peak_flops: float | None) -> Record:
    """Tokens a second of the whole run, model FLOPs, and MFU where the peak of one device is known."""
    utilisation = {} if peak_flops is None else {"mfu": mfu(work.flops, work.seconds, world_size, peak_flops)}
    return {
        "seconds": work.seconds,
        "tokens_per_s": work.tokens / work.seconds,
        "supervised_tokens_per_s": work.supervised_tokens / work.seconds,
        "flops": work.flops,
        "flops_per_s": work.flops / work.seconds,
        **utilisation,
    }


def router_metrics(load: torch.Tensor) -> Record:
    """How evenly experts are used, from int64 [layers, experts] token counts over all ranks of a step.

    `entropy` is that of the load over log(experts): 1 is even, 0 is one expert. `max_violation` is the largest load
    over the mean, minus 1. Both are means over layers, `dead_experts` (without a token) is the sum. `layer_entropy`,
    `layer_max_load` (the largest load over the mean) and `layer_dead_experts` have one number a layer; `load` is the
    histogram itself. Empty for a dense student.
    """
    if load.numel() == 0:
        return {}
    share = load.double() / load.sum(dim=1, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(share).sum(dim=1) / math.log(max(load.shape[1], 2))
    max_load = share.amax(dim=1) * load.shape[1]
    dead = (load == 0).sum(dim=1)
    return {
        "entropy": float(entropy.mean()),
        "max_violation": float(max_load.mean()) - 1,
        "dead_experts": int(dead.sum()),
        "layer_entropy": entropy.tolist(),
        "layer_max_load": max_load.tolist(),
        "layer_dead_experts": dead.tolist(),
        "load": load.tolist(),
    }


class SpikeWatch:
    """Counts losses that stand out above those before them.

    The score of a loss is (loss - median) / (1.4826 x median absolute deviation) over the last `spike_window` losses,
    which is a standard deviation for normal noise and is not moved by the spikes themselves. The deviation counts as at
    least 0.1 % of the median, so that a flat loss does not make a spike of rounding. The first 16 losses have none.
    """

    MIN_LOSSES = 16

    def __init__(self, config: MetricsConfig, state: Mapping[str, Any] | None) -> None:
        """`state` is what `state` gave at the checkpoint, or None for a run that begins."""
        found: Mapping[str, Any] = {"losses": [], "spikes": 0} if state is None else state
        self._losses = deque[float](found["losses"], maxlen=config.spike_window)
        self._spikes = int(found["spikes"])
        self._threshold = config.spike_z

    @property
    def state(self) -> dict[str, Any]:
        """For the checkpoint, in JSON types."""
        return {"losses": list(self._losses), "spikes": self._spikes}

    def see(self, loss: float) -> Record:
        """The finite loss of the next step: its score `loss_z` (None while there are too few) and `spikes` so far."""
        score = None
        if len(self._losses) >= self.MIN_LOSSES:
            losses = np.array(self._losses)
            median = float(np.median(losses))
            deviation = 1.4826 * float(np.median(np.abs(losses - median)))
            score = (loss - median) / max(deviation, 1e-3 * abs(median), 1e-12)
            self._spikes += score >= self._threshold
        self._losses.append(loss)
        return {"loss_z": score, "spikes": self._spikes}


@dataclass(frozen=True)
class TeacherLogps:
    """Teacher log-probabilities of some packs: 4 bytes a supervised token, so gather them for logged steps only."""

    of_kind: tuple[npt.NDArray[np.float32], ...]
    """Of each supervised token that has one, by span kind in the order of SPAN_KINDS."""
    of_example: npt.NDArray[np.float32]
    """The mean of each document that has any."""

    @classmethod
    def of(cls, packs: Sequence[Pack]) -> "TeacherLogps":
        """Of one rank's packs; those without teacher_logp add nothing."""
        nothing = cls((np.empty(0, np.float32),) * len(SPAN_KINDS), np.empty(0, np.float32))
        return cls.merge([nothing, *(_teacher_logps(pack) for pack in packs if pack.teacher_logp is not None)])

    @classmethod
    def merge(cls, parts: Sequence["TeacherLogps"]) -> "TeacherLogps":
        """Those of several ranks as one."""
        kinds = zip(*(part.of_kind for part in parts), strict=True)
        return cls(tuple(map(np.concatenate, kinds)), np.concatenate([part.of_example for part in parts]))

    def report(self) -> Record:
        """`example` and `span` (by kind), each a `distribution`; what has no value is left out."""
        spans = {kind: distribution(found) for kind, found in zip(SPAN_KINDS, self.of_kind, strict=True) if len(found)}
        return {"example": distribution(self.of_example), "span": spans} if len(self.of_example) else {}


def _teacher_logps(pack: Pack) -> TeacherLogps:
    assert pack.teacher_logp is not None, "the caller looks"
    rows = np.flatnonzero((pack.target_kind >= 0) & np.isfinite(pack.teacher_logp))
    values, kinds, documents = pack.teacher_logp[rows], pack.target_kind[rows], pack.document[rows]
    counts = np.bincount(documents)
    means = np.bincount(documents, weights=values)[counts > 0] / counts[counts > 0]
    return TeacherLogps(tuple(values[kinds == kind] for kind in range(len(SPAN_KINDS))), means.astype(np.float32))


def distribution(values: npt.NDArray[np.floating[Any]]) -> Record:
    """Count, mean and quantiles of some values, at least one."""
    low, middle, high = np.quantile(values.astype(np.float64), [0.05, 0.5, 0.95]).tolist()
    return {"count": len(values), "mean": float(values.mean(dtype=np.float64)), "p5": low, "p50": middle, "p95": high}


# Places


class Sink(Protocol):
    """A place for records."""

    def write(self, record: Record) -> None:
        """Keep one record."""

    def close(self) -> None:
        """Nothing more comes."""


class JsonLines:
    """A file of one JSON object a line, flushed at every line."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Cuts off the lines after the step, and all lines where a run begins (step 0)."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("r+b") as file:
            file.truncate(_whole_bytes(file, resumed_step))
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        self._file.write(to_json(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _whole_bytes(lines: Iterator[bytes], step: int) -> int:
    """Bytes of the lines from the start that are whole and not after the step."""
    total = 0
    for line in lines:
        if step == 0 or not line.endswith(b"\n") or json.loads(line)["step"] > step:
            break
        total += len(line)
    return total


class JsonStream:
    """One JSON object a line on an open stream, which stays open."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, record: Record) -> None:
        self._stream.write(to_json(record) + "\n")
        self._stream.flush()

    def close(self) -> None:
        pass


class TensorBoard:
    """Scalars of each record as event files; histograms of experts stay in metrics.jsonl."""

    def __init__(self, folder: Path, resumed_step: int) -> None:
        # Here, because it takes a second to import and not every process has a journal.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1 if resumed_step else 0, flush_secs=10)

    def write(self, record: Record) -> None:
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Scalars of each record in a run on W&B, the same run when training goes on."""

    def __init__(self, folder: Path, project: str) -> None:
        """Raises ConfigError where the package is missing."""
        try:
            wandb = importlib.import_module("wandb")
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"metrics.wandb_project is '{project}', but the package wandb is not installed; "
                "install it or set metrics.wandb_project to null"
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        name = folder / "wandb_id.txt"
        if not name.exists():
            name.write_text(uuid.uuid4().hex)
        self._run = wandb.init(project=project, dir=str(folder), id=name.read_text(), resume="allow")

    def write(self, record: Record) -> None:
        self._run.log(scalars(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()


def to_json(record: Record) -> str:
    """One line of JSON; what is NaN or infinite is null."""
    return json.dumps(_finite(record), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(found) for name, found in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(found) for found in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by path ("span_loss/final", "router/layer_entropy/0"), without step and histograms."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= {f"{name}/{path}": number for path, number in scalars(value).items()}
        elif isinstance(value, list | tuple) and all(isinstance(part, int | float) for part in value):
            found |= {f"{name}/{place}": float(part) for place, part in enumerate(value)}
        elif isinstance(value, int | float) and name != "step":
            found[name] = float(value)
    return found


class ProgressLine:
    """The live line on standard error: how far, loss, rate, speed, MFU, time left."""

    def __init__(self, done: int, total: int) -> None:
        """`done` of `total` are in the unit of the run's target (steps or tokens)."""
        self._progress = Progress(
            TextColumn("train"),
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=total, completed=done)
        self._progress.start()

    def update(self, record: Record, done: int) -> None:
        self._progress.update(self._task, completed=done, description=live_text(record))

    def close(self) -> None:
        self._progress.stop()


def live_text(record: Record) -> str:
    """What the live line says of a step."""
    utilisation = f"  MFU {record['mfu']:.1%}" if "mfu" in record else ""
    return (
        f"step {record['step']}  loss {record['loss']:.3f}  lr {record['lr']:.2e}  "
        f"{record['tokens_per_s']:,.0f} tokens/s{utilisation}"
    )


@dataclass(frozen=True)
class Place:
    """Where a run stands as its journal opens."""

    step: int
    """Optimizer steps taken; 0 for a run that begins."""
    done: int
    """In the unit of `total`."""
    total: int
    """The run's target in steps or tokens."""


class Journal:
    """The records of a run, on the rank that writes them. A journal without sinks and line is what other ranks have."""

    def __init__(
        self, sinks: Sequence[Sink] = (), step_sinks: Sequence[Sink] = (), line: ProgressLine | None = None
    ) -> None:
        """`step_sinks` get the records of steps only."""
        self._sinks = sinks
        self._step_sinks = step_sinks
        self._line = line

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as stack:
            for sink in [*self._sinks, *self._step_sinks]:
                stack.callback(sink.close)
            if self._line is not None:
                stack.callback(self._line.close)

    def write(self, record: Record) -> None:
        """Keep a record of anything but a step."""
        for sink in self._sinks:
            sink.write(record)

    def step(self, record: Record, done: int) -> None:
        """Keep the record of an optimizer step and move the line to `done`."""
        for sink in [*self._sinks, *self._step_sinks]:
            sink.write(record)
        if self._line is not None:
            self._line.update(record, done)


def open_journal(output: Path, config: MetricsConfig, place: Place, stream: TextIO | None) -> Journal:
    """The journal of the rank that writes: metrics.jsonl and what the configuration asks for, in the run's folder.

    `stream` gets one JSON line a step as well (`--json`), and then there is no live line.

    Raises:
        ConfigError: W&B is asked for and not installed.
    """
    sinks: list[Sink] = [] if config.wandb_project is None else [WeightsAndBiases(output, config.wandb_project)]
    sinks.append(JsonLines(output / "metrics.jsonl", place.step))
    if config.tensorboard:
        sinks.append(TensorBoard(output / "tensorboard", place.step))
    if stream is not None:
        return Journal(sinks, [JsonStream(stream)])
    return Journal(sinks, line=ProgressLine(place.done, place.total))
