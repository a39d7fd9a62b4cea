"""The configuration of a run: one YAML. The model of each section is in the file of the code that it configures."""

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from etl.config import Config
from training.checkpoint.config import CheckpointConfig
from training.data.reader import ReadConfig
from training.data.stream.plan import StreamConfig
from training.engine.optimizer import OptimizerConfig
from training.losses.router import RouterConfig
from training.models.config import ModelConfig
from training.record.metrics import MetricsConfig
from training.record.watchdog import WatchdogConfig
from training.stages.held_out import HeldOutConfig, HeldOutSet
from training.stages.resume import RunOutline
from training.stages.schedule import StageConfig, check_arm, check_stages, named, optimizer_of
from training.stages.state import EndedStage, TrainState
from training.stages.stream import RunStreams


class ModelSection(Config):
    """The part of a training configuration that describes the student; the other sections may be wrong or missing."""

    model: ModelConfig
    seed: int = 0
    data: Any = None
    read: Any = None
    teacher: Any = None
    optimizer: Any = None
    router: Any = None
    stages: Any = None
    output: Any = None
    max_steps: Any = None
    deterministic: Any = None
    deepspeed: Any = None
    evaluate: Any = None
    checkpoint: Any = None
    metrics: Any = None
    watchdog: Any = None


class TrainConfig(Config):
    """One training run."""

    data: StreamConfig
    """What to train on; stages and arms can override single keys."""
    read: ReadConfig = ReadConfig()
    """How to read the corpus."""
    model: ModelConfig
    """The student."""
    teacher: ModelConfig | None = None
    """Frozen teacher, for arms whose objective needs a teacher's logits."""
    optimizer: OptimizerConfig
    """The optimizer and its learning rates."""
    router: RouterConfig = RouterConfig()
    """Losses of a mixture-of-experts router."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    """The stages of the training, in sequence."""
    output: str
    """Folder on local disk for metrics, decisions and checkpoints; with several machines, on that of rank 0."""
    seed: int = 0
    """Seed of the stream's order, new weights and the choice of held-out documents."""
    max_steps: int | None = Field(default=None, ge=1)
    """Pause the run after this many optimizer steps, even within a stage; raise it to continue."""
    deterministic: bool = False
    """Use only GPU kernels that give the same bits each time, and fail if torch has none. CPU kernels always do."""
    deepspeed: str = "conf/deepspeed/zero1_fp32.json"
    """DeepSpeed's JSON with ZeRO stage, precision and offload, but without batch sizes, clipping and optimizer."""
    evaluate: HeldOutConfig | None = None
    """Held-out data, and when to evaluate the student on it."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When and where to write checkpoints."""
    metrics: MetricsConfig = MetricsConfig()
    """What to log, and where."""
    watchdog: WatchdogConfig = WatchdogConfig()
    """When to stop a run that hangs."""

    @field_validator("stages")
    @classmethod
    def _stages_differ(cls, stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
        check_stages(stages)
        return stages

    @property
    def streams(self) -> RunStreams:
        """What opens the streams of the arms."""
        return RunStreams(self.data, self.read, self.seed, Path(self.output) / "decisions")

    def optimizer_in(self, stage: StageConfig) -> OptimizerConfig:
        """The optimizer's settings in a stage."""
        return optimizer_of(self.optimizer, stage).in_stage(stage.name == self.stages[0].name)

    def corpora(self) -> set[str]:
        """Every corpus that the run trains on or evaluates with."""
        held_out = () if self.evaluate is None else self.evaluate.sets.values()
        return {self.data.corpus, *(data.corpus for data in self._arm_data()), *(one.corpus for one in held_out)}

    def held_out_sets(self) -> list[tuple[str, str]]:
        """Corpus and split of everything that is evaluated."""
        if self.evaluate is None:
            return []
        sets = (HeldOutSet(corpus=self.data.corpus), *self.evaluate.sets.values())
        return [(one.corpus, one.split) for one in sets]

    def teacher_tables(self) -> set[str]:
        """Every table of scores that an arm reads: a teacher's, or the reference model's of preference pairs."""
        found = {table for data in self._arm_data() for table in (data.teacher, data.reference)}
        return {table for table in found if table is not None}

    def code(self) -> dict[str, Any]:
        """Version and source digest of each objective from outside the package, by its `kind`."""
        objectives = [arm.objective for stage in self.stages for arm in stage.arms]
        return {objective.kind: found for objective in objectives if (found := objective.code())}

    def _arm_data(self) -> list[StreamConfig]:
        return [self.streams.config_of(stage, arm) for stage in self.stages for arm in stage.arms]

    def learning_rate(self, stage: StageConfig, tokens: int) -> float:
        """The rate of a stage at one of its tokens."""
        return self.optimizer_in(stage).learning_rate(tokens, stage.tokens)

    def ended(self, state: TrainState) -> EndedStage | None:
        """How the current stage ended; None where it is not over."""
        if state.stage.index >= len(self.stages):
            return None
        stage = self.stages[state.stage.index]
        reason = stage.end_reason(state.stage)
        if reason is None:
            return None
        return state.end_of_stage(stage.name, reason, self.learning_rate(stage, state.stage.tokens), stage.tokens)

    def early_end(self, ended: EndedStage) -> str:
        """What is said of a stage that ended before its target."""
        stage = self.stage_named(ended.name)
        why = {
            "documents": (
                "its documents are read",
                f"set tokens to {ended.tokens:,}, data.epochs, or data.on_exhausted to repeat",
            ),
            "stop rule": ("its stop rule applied", f"to end at the schedule's rate, set tokens to {ended.tokens:,}"),
        }
        reason, remedy = why[ended.reason]
        return (
            f"stage '{ended.name}' ended after {ended.tokens:,} of {ended.target_tokens:,} tokens: {reason}. The rate "
            f"was {ended.learning_rate:.3g}, the schedule would have ended at "
            f"{self.learning_rate(stage, ended.target_tokens):.3g}; {remedy}"
        )

    def outline(self) -> RunOutline:
        """What a checkpoint keeps of the stages, for the next start."""
        settings = {"teacher": self.teacher, "router": self.router}
        return RunOutline.of(self.stages, self.streams, self.optimizer, settings)

    def stage_named(self, name: str | None) -> StageConfig:
        """A stage; the first for None.

        Raises:
            ConfigError: there is none of that name.
        """
        return named(self.stages, name, "stage")

    def is_complete(self, state: TrainState) -> bool:
        """Whether the last stage is over. A run whose last stage is given more tokens resumes.

        A run that stands before a stage which was taken out of the list before it began is complete, too.
        """
        behind = state.stage.index - (len(self.stages) - 1)
        return behind > 0 or (behind == 0 and self.stages[-1].is_over(state.stage))

    def is_over(self, state: TrainState) -> bool:
        """Whether a run in this state has nothing to do: it is complete, or has taken `max_steps`."""
        return self.is_complete(state) or (self.max_steps is not None and state.step >= self.max_steps)

    def check(self) -> None:
        """Everything that can be known to be wrong before a file is opened.

        Raises:
            ConfigError: an override of a stage or an arm is wrong, or an arm lacks what its objective needs.
        """
        for stage in self.stages:
            self.optimizer_in(stage)
            for arm in stage.arms:
                check_arm(arm, self.streams.config_of(stage, arm), has_teacher=self.teacher is not None)
