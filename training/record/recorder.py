"""Writes the records of a run: logged steps, skipped steps, evaluations, the ledger.

One of these a rank; rank 0 alone writes. The numbers are the business of metrics.py, flops.py, hardware.py and
ledger.py; here they are brought together. A record costs two small collectives and a pass over the optimizer's states
(the update ratio), so `metrics.log_every_steps` decides how often there is one.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch

from training.engine.engine import Engine, StepTaken
from training.record import ledger, metrics
from training.record.flops import ModelShape, device_peak_flops
from training.record.hardware import Hardware, over_ranks
from training.record.journal import Journal, Place, open_journal
from training.record.ledger import Label, Ledger
from training.record.metrics import MetricsConfig, Record, SpikeWatch, StepClock, StepWork, TeacherLogps
from training.record.profiling import profiled
from training.record.watchdog import Watchdog, WatchdogConfig, write_nan
from training.stages.state import TrainState
from training.stages.stream import GlobalStep

PROFILED_STEPS = 4


class Recorder:
    """The records of one rank."""

    def __init__(
        self,
        engine: Engine,
        shape: ModelShape,
        output: Path,
        config: MetricsConfig,
        watchdog: WatchdogConfig,
        place: Place,
        state: TrainState,
    ) -> None:
        """`place` is where the run stands as this process starts, in tokens; `state` what its checkpoint holds."""
        self._config = config
        self._watchdog = watchdog
        self._world = engine.world
        self._engine = engine
        self._shape = shape
        self._output = output
        self._peak_flops = config.peak_flops or device_peak_flops(engine.world.device)
        self._first = engine.world.rank == 0
        self._place = place
        self._spikes = SpikeWatch(config, state.spikes)
        self._ledger = Ledger(state.ledger if self._first else [])
        self._work = torch.zeros(3, dtype=torch.float64)
        """Tokens and supervised tokens of all ranks and FLOPs of this one since the last record."""
        self._stack = ExitStack()

    def start(self, stream: TextIO | None, profile: bool) -> "Recorder":
        """Open files and start the watch; used as a context manager.

        Args:
            stream: gets one JSON line a logged step.
            profile: whether to record some steps with torch's profiler.
        """
        enter = self._stack.enter_context
        self._journal = Journal()
        if self._first:
            self._journal = open_journal(self._output, self._config, self._place, stream)
        enter(self._journal)
        folder = self._output / "watchdog"
        self.watchdog = enter(Watchdog(self._watchdog, folder, self._world.rank, self._world.size))
        self.clock = StepClock(self._world.device, self.watchdog.phase)
        self._engine.phase = self.clock.phase
        self._engine.on_progress(self.watchdog.progress)
        self._hardware = enter(Hardware(self._world.device))
        self._profiles = profile and self._first
        if self._profiles:
            self._profile_step = enter(profiled(self._output / "profile", PROFILED_STEPS))
        return self

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def took(self, batch: GlobalStep, labels: Sequence[Label], loss: float) -> Record:
        """A step was taken: what it adds to the totals; `loss_z` and `spikes` of its loss."""
        self._ledger.add(batch.packs, labels)
        self._work += torch.tensor([batch.num_tokens, batch.num_supervised, self._shape.flops_of(batch.packs)])
        if self._profiles:
            self._profile_step()
        return self._spikes.see(loss)

    def step(self, state: TrainState, batch: GlobalStep, taken: StepTaken, known: Record) -> Record:
        """Write the record of the step that was just taken. `known` is what the caller knows of it."""
        record = {
            "step": state.step,
            **known,
            "grad_norm": self._engine.gradient_norm(),
            "update_ratio": self._engine.update_ratio(),
            "tokens": batch.num_tokens,
            "supervised_tokens": batch.num_supervised,
            "total_tokens": state.tokens,
            "skipped_steps": state.skipped,
            "fill": batch.num_tokens / batch.capacity,
            "router": metrics.router_metrics(taken.router.load),
            **self._measured(batch),
        }
        self._journal.step(record, state.tokens)
        return record

    def _measured(self, batch: GlobalStep) -> Record:
        """Speed and time by phase since the last record, memory, the teacher's log-probabilities of this step."""
        split = self.clock.take()
        mine = (float(self._work[2]), self._hardware.read(), TeacherLogps.of(batch.packs))
        flops, readings, logps = zip(*self._world.gather(mine), strict=True)
        work = StepWork(int(self._work[0]), int(self._work[1]), sum(flops), metrics.training_seconds(split))
        self._work.zero_()
        teacher = TeacherLogps.merge(logps).report()
        return {
            **metrics.throughput(work, self._world.size, self._peak_flops),
            "time": split,
            "hardware": over_ranks(readings),
            **({"teacher_logp": teacher} if teacher else {}),
        }

    def skipped(self, state: TrainState, batch: GlobalStep, fault: str) -> None:
        """A step changed nothing because a loss or a gradient was not finite; every rank keeps what it came with."""
        record = {"step": state.step, "fault": fault, "skipped_steps": state.skipped}
        self._journal.write(record)
        write_nan(self._output / "watchdog", self._world.rank, record, batch.packs)

    def held_out(self, state: TrainState, found: dict[str, Record]) -> None:
        """An evaluation (HeldOut.losses)."""
        total = found["all"]
        cells = {cell: values["loss"] for cell, values in found.items() if cell != "all"}
        self._journal.write(
            {
                "step": state.step,
                "held_out": total["loss"],
                "held_out_span_loss": total["span_loss"],
                "held_out_format": total["format"],
                "held_out_cells": cells,
            }
        )

    @property
    def spikes(self) -> dict[str, Any]:
        """State of the spike watch, for the checkpoint."""
        return self._spikes.state

    def ledger_rows(self) -> ledger.Rows:
        """The ledger over all ranks, for the checkpoint; also written to ledger.json. Every rank must call it."""
        rows = ledger.merge(self._world.gather(self._ledger.rows()))
        if self._first:
            ledger.write(self._output / "ledger.json", rows)
        return rows
