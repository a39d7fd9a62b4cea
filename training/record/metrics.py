"""Measurements of training: time by phase of a step, speed, use of experts, spikes, teacher scores.

`StepClock`, `throughput`, `router_metrics`, `SpikeWatch` and `TeacherLogps` give plain data of one rank, or of the
whole run where the caller has summed or gathered them. Fields that differ between two equal runs are those of MEASURED.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from etl.config import Config
from etl.schema import SPAN_KINDS
from training.data.collate import Pack
from training.record.flops import mfu

MEASURED = frozenset({"seconds", "tokens_per_s", "supervised_tokens_per_s", "flops_per_s", "mfu", "time", "hardware"})
"""Fields of a record that differ in a second or resumed run; all others are the same."""

PHASES = ("data", "forward_backward", "optimizer", "checkpoint", "evaluation")

Record = dict[str, Any]


class MetricsConfig(Config):
    """What to record, and how often."""

    log_every_steps: int = Field(default=1, ge=1)
    """Record every this many steps. A record is of its own step, not a mean since the last one."""
    tensorboard: bool = True
    """Whether to write event files for TensorBoard."""
    wandb_project: str | None = None
    """Project on Weights & Biases (needs the package `wandb`); null: none."""
    peak_flops: float | None = Field(default=None, gt=0)
    """FLOP/s of one device, for the MFU. null: the datasheet's bf16 value if the device is a known NVIDIA one, else no
    MFU."""
    spike_window: int = Field(default=128, ge=16)
    """Number of earlier losses that a step's loss is compared with."""
    spike_z: float = Field(default=6.0, gt=0)
    """A loss is a spike if it is at least this many robust standard deviations above their median."""

    def logs(self, step: int) -> bool:
        """Whether a step is written down; what only a record needs is not measured for others."""
        return step % self.log_every_steps == 0


class StepClock:
    """Seconds in each phase since the last record. Phases may nest: the time of an inner one is not the outer one's."""

    def __init__(
        self,
        device: torch.device,
        on_phase: Callable[[str], None] = lambda _: None,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`on_phase` is called with each phase that begins or continues (a watchdog's sign of life)."""
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
