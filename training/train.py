"""The training run: corpora in, checkpoints and metrics out.

    stillhouse train CONF --nproc 8 --set data.corpus=DIR/corpus --set output=DIR/student
    python -m training.train --conf demo --set data.corpus=DIR/corpus --set output=DIR/student
    deepspeed --num_gpus 8 --module training.train --conf CONF

Run again, it goes on from the newest whole checkpoint exactly where it stood (bit for bit on CPU with the same
processes and threads; with others, from converted states), and does nothing when the run is complete. Each step makes
two small all-reduces: the counts of the global batch before the forward passes, the sums of losses after them.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TextIO

import numpy as np
import torch
from rich.console import Console

from etl import conf
from etl.errors import DataError, StillhouseError
from etl.storage.location import Location
from training import ledger, metrics
from training.checkpoint import Checkpoints
from training.config import TrainConfig
from training.data.collate import Pack
from training.data.decisions import DecisionLog
from training.data.lanes import RankStream
from training.data.plan import initial_value
from training.data.reader import CorpusReader
from training.data.teacher_table import TeacherTable
from training.deepspeed_json import is_bf16, read_deepspeed_json
from training.engine import Engine, Faults, FrozenTeacher, StepTaken, TrainingModule, World, world
from training.flops import ModelShape, device_peak_flops
from training.hardware import Hardware, over_ranks
from training.held_out import HeldOut
from training.ledger import Ledger
from training.losses.objective import StepContext, WeightedCrossEntropy
from training.metrics import Journal, Place, Record, SpikeWatch, StepClock, StepWork, TeacherLogps
from training.models.factory import build_student
from training.profiling import profiled
from training.schedule import ArmConfig, StageConfig
from training.stage_stream import ArmStep, StageStream
from training.state import TrainState
from training.supervisor import Stop
from training.watchdog import Watchdog, write_nan

PROFILED_STEPS = 4


@dataclass(frozen=True)
class RunOptions:
    """How this start of a run is looked at; nothing of it changes what is trained, but for `overfit`."""

    json_lines: TextIO | None = None
    """Gets one JSON line a logged step."""
    profile: bool = False
    """Record some steps with torch's profiler below output/profile."""
    overfit: bool = False
    """Train on the first global batch again and again, to see that the student can learn it; saves nothing."""


@dataclass(frozen=True)
class TrainResult:
    """What a run came to."""

    steps: int
    first_loss: float
    last_loss: float
    first_held_out: float | None
    last_held_out: float | None
    tokens: int
    supervised_tokens: int
    skipped_steps: int
    complete: bool
    """All stages are over; False for a run that was stopped or paused."""
    metrics: str
    checkpoint: str | None


def train(
    config: TrainConfig, on_step: Callable[[Record], None] = lambda _: None, options: RunOptions = RunOptions()
) -> TrainResult:
    """Train to the end of the stages, from the newest checkpoint in the output if there is one.

    `on_step` gets the record of each logged step. Every process of the run calls this.

    Raises:
        ConfigError: the configuration, the checkpoint or the run in `output` do not fit together.
        DataError: a dataset is damaged, or the loss was not finite for several steps one after the other.
    """
    config.check()
    deepspeed_json = read_deepspeed_json(config.deepspeed)
    output = Path(config.output).absolute()
    with world() as here:
        checkpoints = open_checkpoints(config, output, here)
        found = None if options.overfit else checkpoints.newest()
        state = TrainState() if found is None else TrainState.from_json(found.payload)
        if not config.is_over(state):
            student = build_student(config.model, config.seed)
            shape = ModelShape.of_model(student, student.lm_head.weight, student.experts_per_token)
            module = TrainingModule(student, config.router)
            engine = Engine(module, config.optimizer, deepspeed_json, here, config.data.micro_steps(here.size))
            if found is not None:
                checkpoints.load(engine, found, config.seed)
            teacher = None
            if config.teacher is not None:
                dtype = torch.bfloat16 if is_bf16(deepspeed_json) else torch.float32
                teacher = FrozenTeacher(build_student(config.teacher, config.seed), here.device, dtype)
            with Trainer(config, options, here, engine, teacher, checkpoints, shape, state) as trainer:
                state = trainer.run(on_step)
            engine.close()
        return _result(config, output, state, checkpoints)


def open_checkpoints(config: TrainConfig, output: Path, here: World) -> Checkpoints:
    """The checkpoints of a run; `output` is where they and their scratch lie if the configuration says nothing else."""
    root = Location.of(config.checkpoint.root or output / "checkpoints")
    scratch = Path(config.checkpoint.scratch or output / "scratch").absolute()
    return Checkpoints(root, scratch, config.checkpoint, here, config.model.model_dump(mode="json"))


def _result(config: TrainConfig, output: Path, state: TrainState, checkpoints: Checkpoints) -> TrainResult:
    if state.first_loss is None or state.last_loss is None:
        raise DataError(f"the run in {output} was stopped before its first step; start it again")
    newest = checkpoints.newest()
    return TrainResult(
        steps=state.step,
        first_loss=state.first_loss,
        last_loss=state.last_loss,
        first_held_out=state.first_held_out,
        last_held_out=state.last_held_out,
        tokens=state.tokens,
        supervised_tokens=state.supervised_tokens,
        skipped_steps=state.skipped,
        complete=state.stage.index == len(config.stages),
        metrics=str(output / "metrics.jsonl"),
        checkpoint=None if newest is None else str(checkpoints.root / newest.tag),
    )


@dataclass(frozen=True)
class GlobalStep:
    """A global step: its arm, this rank's packs, and what all ranks together have."""

    arm: ArmConfig
    packs: tuple[Pack, ...]
    counts: torch.Tensor
    """float64: the objective's counts."""
    num_tokens: int
    num_supervised: int
    lanes_left: int
    """0 when the arm's stream is over."""
    stops: bool
    """Whether some rank was asked to stop."""


class Trainer:
    """The loop of one process."""

    def __init__(
        self,
        config: TrainConfig,
        options: RunOptions,
        here: World,
        engine: Engine,
        teacher: FrozenTeacher | None,
        checkpoints: Checkpoints,
        shape: ModelShape,
        state: TrainState,
    ) -> None:
        self.config = config
        self.options = options
        self.world = here
        self.engine = engine
        self.teacher = teacher
        self.checkpoints = checkpoints
        self.shape = shape
        self.state = state
        self.output = Path(config.output).absolute()
        self.held_out = None
        if config.evaluate is not None and not options.overfit:
            self.held_out = HeldOut(config.data, config.evaluate, config.seed, here)
        self._saved = state
        self._peak_flops = config.metrics.peak_flops or device_peak_flops(here.device)
        self._faults = Faults(config.optimizer.max_skipped_in_a_row)
        self._stack = ExitStack()

    def __enter__(self) -> "Trainer":
        state, config, enter = self.state, self.config, self._stack.enter_context
        first = self.world.rank == 0
        total = sum(stage.tokens for stage in config.stages)
        place = Place(state.step, state.tokens, total)
        stream = self.options.json_lines
        self.journal = enter(metrics.open_journal(self.output, config.metrics, place, stream) if first else Journal())
        self.watchdog = enter(Watchdog(config.watchdog, self.output / "watchdog", self.world.rank, self.world.size))
        self.hardware = enter(Hardware(self.world.device))
        self.stop = enter(Stop().listening())
        self.clock = StepClock(self.world.device, self.watchdog.phase)
        self.spikes = SpikeWatch(config.metrics, state.spikes)
        self.ledger = Ledger(state.ledger if first else [])
        self._profile_step: Callable[[], None] = lambda: None
        if self.options.profile and first:
            self._profile_step = enter(profiled(self.output / "profile", PROFILED_STEPS))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def run(self, on_step: Callable[[Record], None]) -> TrainState:
        """Train to the end of the stages, to `max_steps` or to a request to stop; the last state is saved."""
        if self.state.step == 0:
            self._evaluate()
        pauses = False
        while not pauses and not self.config.is_over(self.state):
            pauses = self._run_stage(on_step)
        if self.state.stage.index == len(self.config.stages) and self.state.evaluated_tokens < self.state.tokens:
            self._evaluate()
        if self.state.step > 0:
            self._save()
        with self.clock.phase("checkpoint"):
            self.checkpoints.wait()
        return self.state

    # --- a stage

    def _run_stage(self, on_step: Callable[[Record], None]) -> bool:
        """Train to the end of the current stage; whether the run pauses inside it, by a request or `max_steps`."""
        index = self.state.stage.index
        stage = self.config.stages[index]
        self.engine.configure(self.config.optimizer_in(stage))
        if index > 0 and self.state.stage.steps == 0 and stage.reset:
            self.engine.reset_optimizer()
        streams = StageStream(stage, self.config.seed, lambda arm: self._open_stream(stage, arm))
        streams.seek(self.state.stage.steps, self.state.stage.streams)
        draw = streams.next_step
        if self.options.overfit:
            first = streams.next_step()
            draw = lambda: first  # noqa: E731  # a stream of one step
        try:
            while self.state.stage.index == index:
                with self.clock.phase("data"):
                    batch = self._gather(draw())
                if batch.lanes_left == 0:
                    self._refuse_if_empty(stage, streams)
                    self.state = self.state.next_stage()
                    break
                record = self._train_on(stage, streams, batch)
                if record is not None:
                    on_step(record)
                self._after_step(stage)
                if batch.stops or self.config.is_over(self.state):
                    return True
            return False
        finally:
            streams.close()

    def _stage_is_over(self, stage: StageConfig) -> bool:
        here = self.state.stage
        flat = stage.stop is not None and stage.stop.holds(here.tokens, here.held_out, here.skipped_steps)
        return here.tokens >= stage.tokens or flat

    def _open_stream(self, stage: StageConfig, arm: ArmConfig) -> RankStream:
        return open_stream(self.config, stage, arm, self.world.rank, self.world.size)

    def _refuse_if_empty(self, stage: StageConfig, streams: StageStream) -> None:
        if self.state.stage.tokens > 0:
            return
        found = streams.left_out()
        total = self.world.sum(torch.tensor(list(found.values()), dtype=torch.float64)).int().tolist()
        raise DataError(
            f"stage '{stage.name}' has no document to train on ({dict(zip(found, total, strict=True))} were left out); "
            "see data.pack_tokens, data.shares and the corpus's spans and sampling weights"
        )

    # --- a step

    def _gather(self, drawn: ArmStep) -> GlobalStep:
        """What all ranks together have in a step, in one all-reduce."""
        objective, packs = drawn.arm.objective, drawn.local.packs
        counts = np.sum([objective.counts(pack) for pack in packs], axis=0)
        tokens = sum(pack.num_tokens for pack in packs)
        supervised = sum(int(pack.span_counts().sum()) for pack in packs)
        mine = [*counts, tokens, supervised, drawn.local.lanes_left, float(self.stop.is_set)]
        total = self.world.sum(torch.tensor(mine, dtype=torch.float64))
        tokens, supervised, left, stops = (int(value) for value in total[-4:])
        return GlobalStep(drawn.arm, packs, total[:-4], tokens, supervised, left, stops > 0)

    def _train_on(self, stage: StageConfig, streams: StageStream, batch: GlobalStep) -> Record | None:
        """One optimizer step and the state after it; its record where it is written down."""
        arm, objective = batch.arm, batch.arm.objective
        here = replace(
            self.state.stage,
            steps=streams.steps,
            tokens=self.state.stage.tokens + batch.num_tokens,
            streams=streams.states,
        )
        self.state = replace(self.state, stage=here)
        if batch.num_supervised == 0:
            return None
        self.watchdog.beat(self.state.step + 1, "forward_backward")
        learning_rate = self.config.optimizer_in(stage).learning_rate(here.tokens, stage.tokens)
        context = self._context(stage, batch)
        with self.clock.phase("forward_backward"):
            packs = [pack.tensors(self.world.device) for pack in batch.packs]
            taken = self.engine.step(packs, objective, context, learning_rate)
        self._faults.note(self.state.step + 1, taken.fault, learning_rate)
        if taken.skipped:
            self.state = replace(self.state, skipped=self.state.skipped + 1)
            self._note_skipped(batch, taken)
            return None
        labels = streams.stream(arm).reader.labels
        self.ledger.add(batch.packs, labels)
        return self._note_step(stage, batch, taken, learning_rate)

    def _context(self, stage: StageConfig, batch: GlobalStep) -> StepContext:
        arm, mean = batch.arm, None
        if isinstance(arm.objective, WeightedCrossEntropy):
            if arm.name not in self.state.teacher_mean:
                folder = self.config.stream(stage, arm).teacher
                assert folder is not None, "TrainConfig.check looks"
                self._set_teacher_mean(arm, TeacherTable(folder).mean_logp)
            mean = torch.tensor(self.state.teacher_mean[arm.name], dtype=torch.float64, device=self.world.device)
        return StepContext(batch.counts.to(self.world.device), teacher_mean=mean, teacher=self.teacher)

    def _set_teacher_mean(self, arm: ArmConfig, mean: float) -> None:
        self.state = replace(self.state, teacher_mean={**self.state.teacher_mean, arm.name: mean})

    def _note_step(
        self, stage: StageConfig, batch: GlobalStep, taken: StepTaken, learning_rate: float
    ) -> Record | None:
        """The state after a step, and its record where it is written down."""
        step, objective = self.state.step + 1, batch.arm.objective
        found = objective.report(batch.counts, taken.sums)
        if isinstance(objective, WeightedCrossEntropy):
            mean = self.state.teacher_mean[batch.arm.name]
            self._set_teacher_mean(batch.arm, objective.next_teacher_mean(mean, batch.counts, taken.sums))
        loss = found["loss"]
        spikes = self.spikes.see(loss)
        self.state = replace(
            self.state,
            step=step,
            tokens=self.state.tokens + batch.num_tokens,
            supervised_tokens=self.state.supervised_tokens + batch.num_supervised,
            first_loss=loss if self.state.first_loss is None else self.state.first_loss,
            last_loss=loss,
            spikes=self.spikes.state,
        )
        self._profile_step()
        if not self.config.metrics.logs(step):
            return None
        record = {
            "step": step,
            "stage": stage.name,
            "arm": batch.arm.name,
            **found,
            **spikes,
            "lr": learning_rate,
            "grad_norm": self.engine.gradient_norm(),
            "update_ratio": self.engine.update_ratio(),
            "tokens": batch.num_tokens,
            "supervised_tokens": batch.num_supervised,
            "total_tokens": self.state.tokens,
            "skipped_steps": self.state.skipped,
            "fill": batch.num_tokens / (self.config.data.global_batch_packs * len(batch.packs[0].input_ids)),
            "router": metrics.router_metrics(taken.router.load),
            **self._measured(batch),
        }
        self.journal.step(record, self.state.tokens)
        return record

    def _measured(self, batch: GlobalStep) -> Record:
        """What the ranks have to say about a step: speed, time by phase, memory, the teacher's log-probabilities."""
        split = self.clock.take()
        flops = self.world.sum(torch.tensor([self.shape.flops_of(batch.packs)], dtype=torch.float64))
        work = StepWork(batch.num_tokens, batch.num_supervised, float(flops), split["total_s"])
        mine = (self.hardware.read(), TeacherLogps.of(batch.packs))
        readings, logps = zip(*self.world.gather(mine), strict=True)
        teacher = TeacherLogps.merge(logps).report()
        return {
            **metrics.throughput(work, self.world.size, self._peak_flops),
            "time": split,
            "hardware": over_ranks(readings),
            **({"teacher_logp": teacher} if teacher else {}),
        }

    def _note_skipped(self, batch: GlobalStep, taken: StepTaken) -> None:
        """A step that changed nothing because a loss or a gradient was not finite."""
        record = {"step": self.state.step + 1, "fault": taken.fault, "skipped_steps": self.state.skipped}
        self.journal.write({**record, "step": self.state.step})
        write_nan(self.output / "watchdog", self.world.rank, record, batch.packs)

    # --- between steps

    def _after_step(self, stage: StageConfig) -> None:
        """Evaluate and save where it is time, and go on to the next stage where this one is over."""
        evaluate = self.config.evaluate
        if evaluate is not None and self.state.tokens - self.state.evaluated_tokens >= evaluate.every_tokens:
            self._evaluate()
        if self._stage_is_over(stage):
            self.state = self.state.next_stage()
        is_last = self.config.is_over(self.state)
        if not is_last and self.state.step - self._saved.step >= self.config.checkpoint.every_steps:
            self._save()

    def _evaluate(self) -> None:
        if self.held_out is None:
            return
        with self.clock.phase("evaluation"):
            found = self.held_out.losses(self.engine)
        loss = found["all"]["loss"]
        self.journal.write(
            {
                "step": self.state.step,
                "held_out": loss,
                "held_out_span_loss": found["all"]["span_loss"],
                "held_out_cells": {cell: values["loss"] for cell, values in found.items() if cell != "all"},
            }
        )
        here = self.state.stage
        here = replace(here, held_out=[*here.held_out, loss], skipped_steps=[*here.skipped_steps, self.state.skipped])
        first = loss if self.state.first_held_out is None else self.state.first_held_out
        self.state = replace(
            self.state, stage=here, first_held_out=first, last_held_out=loss, evaluated_tokens=self.state.tokens
        )

    def _save(self) -> None:
        if self.options.overfit or self.state == self._saved:
            return
        with self.clock.phase("checkpoint"):
            rows = ledger.merge(self.world.gather(self.ledger.rows()))
            payload = replace(self.state, ledger=rows).to_json()
            self.checkpoints.save(self.engine, payload, self.state.last_held_out)
            if self.world.rank == 0:
                ledger.write(self.output / "ledger.json", rows)
        self._saved = self.state


def open_stream(config: TrainConfig, stage: StageConfig, arm: ArmConfig, rank: int, num_ranks: int) -> RankStream:
    """The stream of an arm as a run has it; its decision log is begun, or gone on with."""
    data = config.stream(stage, arm)
    reader = CorpusReader(data.corpus, "train", config.read)
    initial = initial_value(data, config.seed, reader.parts)
    log = DecisionLog.open(Location.of(config.decisions(stage, arm)), initial)
    return RankStream(reader, data, config.seed, log, rank, num_ranks)


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, or 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="training.train", description="Train a student on a corpus.")
    parser.add_argument("--conf", required=True, help="training configuration: a shipped name, a path or a URI")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key")
    parser.add_argument("--json", action="store_true", help="print one JSON line a logged step")
    parser.add_argument("--profile", action="store_true", help="record some steps with torch's profiler")
    parser.add_argument("--overfit-one-batch", action="store_true", help="train on the first batch only; saves nothing")
    parser.add_argument("--local_rank", type=int, help="given by the deepspeed launcher; LOCAL_RANK is what counts")
    given = parser.parse_args(argv)
    first = os.environ.get("RANK", "0") == "0"
    options = RunOptions(sys.stdout if given.json and first else None, given.profile, given.overfit_one_batch)
    try:
        result = train(conf.load(TrainConfig, given.conf, "training", given.set), options=options)
    except StillhouseError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", markup=False, highlight=False)
        return 2
    if first:
        sys.stdout.write(json.dumps(asdict(result)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
