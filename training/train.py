"""The training run: corpora in, checkpoints and metrics out.

    stillhouse train CONF --nproc 8 --set data.corpus=DIR/corpus --set output=DIR/student
    python -m training.train --conf demo --set data.corpus=DIR/corpus --set output=DIR/student
    deepspeed --num_gpus 8 --module training.train --conf CONF

Run again, it resumes from the newest complete checkpoint exactly where it was (bit for bit on CPU with the same
processes and threads; with others, from converted states), and does nothing when the run is complete. Each step makes
two small all-reduces: the counts of the global batch before the forward passes, the sums of losses after them.
"""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TextIO

import torch
import typer

from etl import conf
from etl.console import AllowCode, ConfFlag, Overrides, command, note, report, run_command, warn
from etl.errors import ConfigError, DataError
from etl.storage.location import Location
from training.checkpoint.checkpoints import Checkpoint, Checkpoints
from training.config import TrainConfig
from training.data.span_rates import SpanRates
from training.data.stream.decisions import DecisionLog
from training.data.teacher_table import TeacherTable
from training.engine.deepspeed_json import is_bf16, read_deepspeed_json
from training.engine.engine import Engine, Faults, StepTaken, TrainingModule
from training.launch.process_group import deterministic_kernels, world
from training.launch.stop import Stop
from training.launch.world import World
from training.losses.objective import StepContext, WeightedCrossEntropy
from training.models.factory import build_student
from training.record import run_record
from training.record.flops import ModelShape
from training.record.journal import Place
from training.record.metrics import Record
from training.record.recorder import Recorder
from training.record.result import TrainResult
from training.stages import resume, survey
from training.stages.cursors import finished_stages
from training.stages.held_out import HeldOut
from training.stages.preflight import Heads, Preflight, expected
from training.stages.resume import RunOutline
from training.stages.schedule import ArmConfig, StageConfig
from training.stages.state import EndedStage, Evaluation, TrainState
from training.stages.stream import (
    GlobalStep,
    StageStream,
    check_corpora,
    nothing_to_read,
    outdated_corpora,
    over_all_ranks,
)
from training.teacher.frozen import FrozenTeacher
from training.versions import versioned


@dataclass(frozen=True)
class RunOptions:
    """How this start of a run is looked at; nothing of it changes what is trained, but for `overfit`."""

    json_lines: TextIO | None = None
    """Gets one JSON line a logged step."""
    profile: bool = False
    """Record some steps with torch's profiler below output/profile."""
    overfit: bool = False
    """Train on the first global batch again and again, to see that the student can learn it; saves nothing. Its
    records go to output/overfit, so that a run in `output` keeps its own."""


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
    if options.overfit:
        config = config.model_copy(update={"output": str(Path(config.output) / "overfit")})
    output = Path(config.output).absolute()
    with deterministic_kernels(config.deterministic), world(config.watchdog.collective_timeout_s) as here:
        checkpoints = open_checkpoints(config, output, here)
        found = None if options.overfit else checkpoints.newest()
        state = TrainState() if found is None else _resumed(config, found, here)
        stopped_by: str | None = None
        if not config.is_over(state):
            finished_stages(config.stages, state.stage.index, state.ended)
            check_corpora(config.streams, config.stages[state.stage.index :])
            if here.rank == 0:
                for line in outdated_corpora(config.streams, config.stages[state.stage.index :]):
                    warn(line)
            student = build_student(config.model, config.seed)
            teacher_model = None if config.teacher is None else build_student(config.teacher, config.seed)
            heads = Heads(
                len(student.lm_head.weight), None if teacher_model is None else len(teacher_model.lm_head.weight)
            )
            preflight = Preflight(config.streams, config.stages[state.stage.index :], here)
            preflight.check_sizes(heads, config.held_out_sets())
            rates = preflight.span_rates()
            state = replace(state, left_out=_surveyed(config, state, here))
            shape = ModelShape.of_model(student, student.lm_head.weight, student.experts_per_token)
            module = TrainingModule(student, config.router)
            engine = Engine(module, config.optimizer, deepspeed_json, here, config.data.micro_steps(here.size))
            if found is not None:
                checkpoints.load(engine, found, config.seed)
            teacher = None
            if teacher_model is not None:
                dtype = torch.bfloat16 if is_bf16(deepspeed_json) else torch.float32
                teacher = FrozenTeacher(teacher_model, here.device, dtype)
            if here.rank == 0:
                run_record.write(
                    config.output,
                    config.model_dump(mode="json"),
                    config.code(),
                    config.corpora(),
                    config.teacher_tables(),
                )
            names = tuple(stage.name for stage in config.stages)
            place = Place(state.step, state.tokens, sum(stage.tokens for stage in config.stages), names)
            recorder = Recorder(engine, shape, output, config.metrics, config.watchdog, place, state)
            with recorder.start(options.json_lines, options.profile):
                trainer = Trainer(config, here, engine, teacher, heads.sizes, rates, checkpoints, recorder, state)
                state = trainer.run(on_step, options.overfit)
            engine.close()
            stopped_by = trainer.stopped_by
        if stopped_by is not None and state.step == 0:
            # There is nothing to save: the signal does what it does before training has begun.
            signal.raise_signal(signal.Signals[stopped_by])
        return replace(_result(config, output, state, checkpoints), stopped_by=stopped_by)


def _resumed(config: TrainConfig, found: Checkpoint, here: World) -> TrainState:
    """The state of a checkpoint from which the configuration may resume; reports what has changed.

    Raises:
        ConfigError: the stages of the configuration cannot resume from those of the checkpoint.
    """
    now = config.outline()
    state, was = resume.of_payload(found.payload)
    lines = []
    if was is None:
        beside = here.from_rank_0(lambda: _run_json(config.output))
        was, line = resume.adopted(state, beside, now)
        lines = [line]
    lines += resume.compare(was, now, state)
    if here.rank == 0 and (lines or not config.is_over(state)):
        for line in [resume.place(was, state), *lines]:
            note(line)
    return state


def _surveyed(config: TrainConfig, state: TrainState, here: World) -> dict[str, dict[str, dict[str, int]]]:
    """What the stages leave out, those of the past as it was counted then; said, with the stages that end too early.

    Raises:
        ConfigError: more documents of an arm are longer than a pack than `data.max_left_out` allows.
    """
    over = {stage.name for stage in config.stages[: state.stage.index]}
    ranks = here.rank, here.size
    arms = survey.survey_stages(config.streams, config.stages[len(over) :], ranks, here.gather)
    survey.check_left_out(arms)
    if here.rank == 0:
        for line in survey.left_out_lines(arms):
            note(line)
        read_before = survey.read_in(config.streams, config.stages[: len(over)], state.ended)
        for line in survey.shortages(arms, config.learning_rate, read_before):
            warn(line)
    return {name: found for name, found in state.left_out.items() if name in over} | survey.left_out_counts(arms)


def _run_json(output: str) -> RunOutline | None:
    """What the last start of a run in `output` was made of; None where it was not written down."""
    location = Location.of(output)
    if not (location / run_record.NAME).exists():
        return None
    return RunOutline.of_run_json(run_record.read(location))


def open_checkpoints(config: TrainConfig, output: Path, here: World) -> Checkpoints:
    """The checkpoints of a run; `output` is where they and their scratch lie if the configuration says nothing else."""
    root = Location.of(config.checkpoint.root or output / "checkpoints")
    scratch = Path(config.checkpoint.scratch or output / "scratch").absolute()
    for key, path in (("scratch", scratch), *((("root", Path(root.path)),) if root.is_local else ())):
        if path.is_file():
            raise ConfigError(f"checkpoint.{key}: {path} is a file; name a folder, or move the file")
    return Checkpoints(root, scratch, config.checkpoint, here, versioned(config.model.fingerprinted()))


def _result(config: TrainConfig, output: Path, state: TrainState, checkpoints: Checkpoints) -> TrainResult:
    if state.first_loss is None or state.last_loss is None:
        raise DataError(f"the run in {output} was stopped before its first step; start it again")
    last = config.ended(state)
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
        complete=config.is_complete(state),
        ended=[_told(ended) for ended in (*state.ended, *([last] if last else []))],
        left_out=state.left_out,
        metrics=str(output / "metrics.jsonl"),
        checkpoint=None if newest is None else str(checkpoints.root / newest.tag),
    )


def _told(ended: EndedStage) -> dict[str, Any]:
    names = ("tokens", "target_tokens", "reason", "learning_rate")
    return {"stage": ended.name, **{name: getattr(ended, name) for name in names}}


class Trainer:
    """The loop of one process."""

    def __init__(
        self,
        config: TrainConfig,
        here: World,
        engine: Engine,
        teacher: FrozenTeacher | None,
        vocab_sizes: Mapping[str, int],
        rates: Mapping[tuple[str, str], SpanRates],
        checkpoints: Checkpoints,
        recorder: Recorder,
        state: TrainState,
    ) -> None:
        self.config = config
        self.world = here
        self.engine = engine
        self.teacher = teacher
        self.vocab_sizes = vocab_sizes
        self.rates = rates
        self.checkpoints = checkpoints
        self.recorder = recorder
        self.state = state
        self.held_out: HeldOut | None = None
        if config.evaluate is not None:
            self.held_out = HeldOut(config.data, config.evaluate, config.seed, here, vocab_sizes)
        self._saved = state
        self.stopped_by: str | None = None
        """Name of the signal that has asked any rank to stop, once `run` has returned."""
        self._faults = Faults(config.optimizer.max_skipped_in_a_row, self._newest_checkpoint)

    def run(self, on_step: Callable[[Record], None], overfit: bool) -> TrainState:
        """Train to the end of the stages, to `max_steps` or to a request to stop; the last state is saved.

        `overfit` trains on the first batch of each stage only and saves nothing.
        """
        with Stop().listening() as stop:
            if self.state.step == 0:
                self._evaluate()
            while not self.config.is_over(self.state) and not self._run_stage(on_step, overfit, stop):
                ended = self.config.ended(self.state)
                assert ended is not None, "the stage is over"
                if ended.reason != "target" and self.world.rank == 0:
                    warn(self.config.early_end(ended))
                if self.state.stage.index < len(self.config.stages) - 1:
                    self.state = self.state.next_stage(ended)
            if self.state.step == 0 and self.state.skipped > 0:
                raise DataError(
                    f"each of the {self.state.skipped} steps of the run was skipped, so nothing was trained: "
                    f"{self._faults.last}; lower optimizer.lr, or look at the documents in "
                    f"{Path(self.config.output) / 'watchdog'}"
                )
            if self.config.is_complete(self.state) and self.state.evaluated_tokens < self.state.tokens:
                self._evaluate()
            if self.state.step > 0 and not overfit:
                self._save()
            with self.recorder.clock.phase("checkpoint"):
                self.checkpoints.wait()
            number = int(self.world.max(torch.tensor(stop.number)))
        self.stopped_by = signal.Signals(number).name if number else None
        return self.state

    # --- a stage

    def _run_stage(self, on_step: Callable[[Record], None], overfit: bool, stop: Stop) -> bool:
        """Train to the end of the current stage; whether the run pauses inside it, by a request or `max_steps`."""
        index = self.state.stage.index
        stage = self.config.stages[index]
        self.engine.configure(self.config.optimizer_in(stage))
        if index > 0 and self.state.stage.steps == 0 and stage.reset:
            self.engine.reset_optimizer()
        here = self.world
        open_log = DecisionLog.preview if overfit else DecisionLog.open
        finished = finished_stages(self.config.stages, index, self.state.ended)
        streams = self.config.streams.open_stage(stage, here.rank, here.size, open_log, self.vocab_sizes, finished)
        streams.seek((self.state.stage.steps, self.state.stage.streams))
        with closing(streams):
            only = streams.next_step() if overfit else None
            while not stage.is_over(self.state.stage):
                self.recorder.watchdog.beat(self.state.step + 1, "data")
                with self.recorder.clock.phase("data"):
                    batch = over_all_ranks(only or streams.next_step(), here, stop.is_set)
                if batch.is_over:
                    self._refuse_if_empty(stage, streams)
                    self.state = replace(self.state, stage=replace(self.state.stage, is_exhausted=True))
                    break
                if batch.stops:
                    # The state does not know of this batch yet, so a resumed run draws it again.
                    return True
                record = self._train_on(stage, streams, batch)
                if record is not None:
                    on_step(record)
                self._after_step(saves=not overfit)
                if self.config.is_over(self.state):
                    return True
        return False

    def _refuse_if_empty(self, stage: StageConfig, streams: StageStream) -> None:
        if self.state.stage.tokens > 0:
            return
        found = streams.left_out()
        total = self.world.sum(torch.tensor(list(found.values()), dtype=torch.float64)).int().tolist()
        raise nothing_to_read(stage, dict(zip(found, total, strict=True)))

    # --- a step

    def _train_on(self, stage: StageConfig, streams: StageStream, batch: GlobalStep) -> Record | None:
        """One optimizer step and the state after it; its record where it is written down."""
        steps, states = streams.state
        stage_tokens = self.state.stage.tokens + batch.num_tokens
        stage_state = replace(self.state.stage, steps=steps, tokens=stage_tokens, streams=states)
        self.state = replace(self.state, stage=stage_state)
        if batch.num_supervised == 0:
            return None
        learning_rate = self.config.learning_rate(stage, stage_tokens)
        context = self._context(stage, batch)
        with self.recorder.clock.phase("forward_backward"):
            packs = [pack.tensors(self.world.device) for pack in batch.packs]
            taken = self.engine.step(packs, batch.arm.objective, context, learning_rate)
        if taken.fault is not None:
            self.state = replace(self.state, skipped=self.state.skipped + 1)
            self.recorder.skipped(self.state, batch, taken.fault)
        self._faults.note(self.state.step + 1, taken.fault, learning_rate)
        if taken.fault is not None:
            return None
        found = batch.arm.objective.report(batch.counts, taken.sums)
        spikes = self.recorder.took(batch, streams.labels(batch.arm), found["loss"])
        self._count(batch, taken, found["loss"])
        if not self.config.metrics.logs(self.state.step):
            return None
        known = {
            "stage": stage.name,
            "arm": batch.arm.name,
            **found,
            "objective": taken.objective,
            **spikes,
            "lr": learning_rate,
        }
        return self.recorder.step(self.state, batch, taken, known)

    def _context(self, stage: StageConfig, batch: GlobalStep) -> StepContext:
        arm, mean = batch.arm, None
        if isinstance(arm.objective, WeightedCrossEntropy):
            if arm.name not in self.state.teacher_mean:
                folder = self.config.streams.config_of(stage, arm).teacher
                assert folder is not None, "TrainConfig.check looks"
                self._set_teacher_mean(arm, TeacherTable(folder).mean_logp)
            mean = torch.tensor(self.state.teacher_mean[arm.name], dtype=torch.float64, device=self.world.device)
        rates = self.rates.get((stage.name, arm.name))
        floor = None if rates is None else expected(rates, batch.num_tokens).to(self.world.device)
        return StepContext(batch.counts.to(self.world.device), mean, self.teacher, floor)

    def _set_teacher_mean(self, arm: ArmConfig, mean: float) -> None:
        self.state = replace(self.state, teacher_mean={**self.state.teacher_mean, arm.name: mean})

    def _count(self, batch: GlobalStep, taken: StepTaken, loss: float) -> None:
        """The state after a step that was taken."""
        objective = batch.arm.objective
        if isinstance(objective, WeightedCrossEntropy):
            mean = self.state.teacher_mean[batch.arm.name]
            self._set_teacher_mean(batch.arm, objective.next_teacher_mean(mean, batch.counts, taken.sums))
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            tokens=self.state.tokens + batch.num_tokens,
            supervised_tokens=self.state.supervised_tokens + batch.num_supervised,
            first_loss=loss if self.state.first_loss is None else self.state.first_loss,
            last_loss=loss,
            spikes=self.recorder.spikes,
        )

    # --- between steps

    def _after_step(self, saves: bool) -> None:
        """Evaluate and save where it is time."""
        evaluate = self.config.evaluate
        if evaluate is not None and self.state.tokens - self.state.evaluated_tokens >= evaluate.every_tokens:
            self._evaluate()
        is_due = self.state.step - self._saved.step >= self.config.checkpoint.every_steps
        if saves and is_due and not self.config.is_over(self.state):
            self._save()

    def _evaluate(self) -> None:
        if self.held_out is None:
            return
        with self.recorder.clock.phase("evaluation"):
            found = self.held_out.losses(self.engine)
        self.recorder.held_out(self.state, found)
        loss, here = found["all"]["loss"], self.state.stage
        evaluation = Evaluation(loss, found["all"]["format"], self.state.skipped)
        here = replace(here, evaluations=[*here.evaluations, evaluation])
        first = loss if self.state.first_held_out is None else self.state.first_held_out
        self.state = replace(
            self.state, stage=here, first_held_out=first, last_held_out=loss, evaluated_tokens=self.state.tokens
        )

    def _newest_checkpoint(self) -> str | None:
        """The place of the newest complete checkpoint. Every rank must call it."""
        found = self.checkpoints.newest()
        return None if found is None else str(self.checkpoints.root / found.tag)

    def _save(self) -> None:
        if self.state == self._saved:
            return
        with self.recorder.clock.phase("checkpoint"):
            state = replace(self.state, ledger=self.recorder.ledger_rows())
            self.checkpoints.save(
                self.engine, resume.payload_of(state, self.config.outline()), self.state.last_held_out
            )
        self._saved = self.state


def main(argv: Sequence[str]) -> int:
    """Exit code: 0, 2 for an error that the user can fix, or 130 after Ctrl-C."""
    return run_command(_job, argv, "python -m training.train")


@command
def _job(
    name: ConfFlag,
    set_: Overrides,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON line a logged step, then the result.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Record some steps with torch's profiler.")] = False,
    overfit: Annotated[bool, typer.Option("--overfit-one-batch", help="Train on the first batch only.")] = False,
    allow_code: AllowCode = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True, help="DeepSpeed's; LOCAL_RANK counts.")] = 0,
) -> int:
    """Train a student on a corpus."""
    # DeepSpeed's own calls, which nobody who starts a run can change.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    first = os.environ.get("RANK", "0") == "0"
    options = RunOptions(sys.stdout if json_ and first else None, profile, overfit)
    result = train(conf.load(TrainConfig, name, "training", set_, allow_code), options=options)
    if first:
        report(json.dumps(asdict(result)) if json_ else result.told())
    return 128 + signal.SIGINT if result.stopped_by == "SIGINT" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
