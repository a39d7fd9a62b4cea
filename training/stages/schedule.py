"""The schedule of a run, in one YAML: stages in sequence, and arms that alternate within a stage.

A *stage* (warm start, rescored, SFT, DPO) has a target in trained tokens and may end before it by a stop rule. An
*arm* is a share of a stage's optimizer steps that has a loss and a stream of documents of its own; a step is of one
arm, never of two. Which arm a step belongs to is a pure function of (seed, stage, step): the fractional part of
offset + step / golden ratio, a low-discrepancy sequence, so that after n steps each arm has its share of them to
within a few steps, and a resumed run needs no counter.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar

from pydantic import Field, field_validator

from etl.conf import check
from etl.config import Config
from etl.errors import ConfigError
from etl.hashing import xxh64
from training.data.stream.plan import StreamConfig
from training.data.teacher_table import TeacherTable
from training.engine.optimizer import OptimizerConfig
from training.losses.objective import AnyObjective, CrossEntropy, TopKDivergence
from training.stages.state import Evaluation, StageState

_INVERSE_GOLDEN_RATIO = 0.6180339887498949


class ArmConfig(Config):
    """The steps of a stage that share data and a loss."""

    name: str = "main"
    """Name of the arm in metrics and logs."""
    share: float = Field(default=1.0, gt=0)
    """Share of the stage's optimizer steps, relative to the sum of all arms' shares."""
    objective: AnyObjective = CrossEntropy()
    """The loss."""
    data: dict[str, Any] = {}
    """Keys of `data` that this arm overrides, e.g. `teacher` or `corpus`."""


class StopRule(Config):
    """Ends a stage before its target, when the held-out loss is flat, training is stable and the format is right."""

    after_tokens: int = Field(default=0, ge=0)
    """Tokens that the stage trains on at least."""
    flat_evaluations: int = Field(default=3, ge=1)
    """Number of latest held-out evaluations that must all have improved the best loss before them by less than
    `min_improvement`."""
    min_improvement: float = Field(default=0.005, ge=0)
    """Improvement that counts, as a fraction of that best loss."""
    max_skipped_steps: int = Field(default=0, ge=0)
    """Largest number of steps skipped (loss or gradient not finite) during those evaluations for training to count as
    stable."""
    min_format: float | None = Field(default=None, gt=0, le=1)
    """Smallest held-out `format` (see training/stages/held_out.py) of the last evaluation; null: not required."""

    def holds(self, stage_tokens: int, evaluations: list[Evaluation]) -> bool:
        """Whether the stage is over, from what its evaluations found, oldest first.

        Raises:
            ConfigError: `min_format` is set, but the validation split has no control token.
        """
        if stage_tokens < self.after_tokens or len(evaluations) <= self.flat_evaluations:
            return False
        before, last = evaluations[: -self.flat_evaluations], evaluations[-self.flat_evaluations :]
        best = min(found.loss for found in before)
        flat = min(found.loss for found in last) > best * (1 - self.min_improvement)
        stable = last[-1].skipped_steps - before[-1].skipped_steps <= self.max_skipped_steps
        return flat and stable and self._has_format(last[-1].format)

    def _has_format(self, found: float | None) -> bool:
        if self.min_format is None:
            return True
        if found is None:
            raise ConfigError(
                "stop.min_format is set, but no supervised token of the validation split is a Harmony control token; "
                "leave it out"
            )
        return found >= self.min_format


class StageConfig(Config):
    """One part of the run."""

    name: str = "train"
    """Name of the stage in metrics and logs."""
    tokens: int = Field(ge=1)
    """Trained tokens (without padding) after which the stage ends. It ends earlier if its documents run out."""
    arms: tuple[ArmConfig, ...] = Field(default=(ArmConfig(),), min_length=1)
    """Parts of the stage that are trained alternately, each with its data and loss."""
    data: dict[str, Any] = {}
    """Keys of `data` that this stage overrides."""
    optimizer: dict[str, Any] = {}
    """Keys of `optimizer` that this stage overrides; `schedule.warmup` decides whether it warms up again."""
    reset: bool = False
    """Start with fresh optimizer moments instead of the previous stage's."""
    stop: StopRule | None = None
    """When to end the stage before its target; null: never."""

    @field_validator("arms")
    @classmethod
    def _names_differ(cls, arms: tuple[ArmConfig, ...]) -> tuple[ArmConfig, ...]:
        names = [arm.name for arm in arms]
        if len(set(names)) < len(names):
            raise ValueError(f"two arms of a stage share a name: {names}; name each differently")
        return arms

    def is_over(self, state: StageState) -> bool:
        """Whether the stage has nothing more to do."""
        return self.end_reason(state) is not None

    def end_reason(self, state: StageState) -> str | None:
        """Why the stage has nothing more to do: "target", "documents" or "stop rule"; None while it has."""
        if state.tokens >= self.tokens:
            return "target"
        if state.is_exhausted:
            return "documents"
        stops = self.stop is not None and self.stop.holds(state.tokens, state.evaluations)
        return "stop rule" if stops else None

    def arm_named(self, name: str | None) -> ArmConfig:
        """An arm; the first for None.

        Raises:
            ConfigError: there is none of that name.
        """
        return named(self.arms, name, "arm")

    def arm_of(self, step: int, seed: int) -> ArmConfig:
        """The arm of a step of the stage, counted from 0."""
        if len(self.arms) == 1:
            return self.arms[0]
        offset = xxh64(f"{seed}:{self.name}".encode()) / 2.0**64
        position = (offset + (step + 1) * _INVERSE_GOLDEN_RATIO) % 1.0
        borders = list(accumulate(arm.share for arm in self.arms))
        return self.arms[min(bisect_right(borders, position * borders[-1]), len(self.arms) - 1)]


Named = TypeVar("Named", ArmConfig, StageConfig)


def named(items: Sequence[Named], name: str | None, what: str) -> Named:
    """The one of that name; the first for None.

    Raises:
        ConfigError: there is none.
    """
    for item in items:
        if name in (None, item.name):
            return item
    raise ConfigError(f"there is no {what} '{name}'; the configuration has: {', '.join(item.name for item in items)}")


def stream_of(data: StreamConfig, stage: StageConfig, arm: ArmConfig) -> StreamConfig:
    """The stream of an arm: the run's `data`, what the stage changes, what the arm changes.

    Raises:
        ConfigError: a key or a value is wrong; says in which stage and arm.
    """
    return check(
        StreamConfig, {**_given(data), **stage.data, **arm.data}, f"data of stage '{stage.name}', arm '{arm.name}'"
    )


def optimizer_of(optimizer: OptimizerConfig, stage: StageConfig) -> OptimizerConfig:
    """The optimizer's settings in a stage.

    Raises:
        ConfigError: a key or a value is wrong; says in which stage.
    """
    return check(OptimizerConfig, {**_given(optimizer), **stage.optimizer}, f"optimizer of stage '{stage.name}'")


def _given(section: Config) -> dict[str, Any]:
    """What the user has set; the defaults are the business of the model that takes them."""
    return section.model_dump(exclude_unset=True)


def check_stages(stages: tuple[StageConfig, ...]) -> None:
    """Refuse stages that could not be distinguished in the run's folder.

    Raises:
        ConfigError: two stages share a name.
    """
    names = [stage.name for stage in stages]
    if len(set(names)) < len(names):
        raise ConfigError(f"two stages share a name: {names}; name each differently, it names their decision logs")


def check_arm(arm: ArmConfig, stream: StreamConfig, has_teacher: bool) -> None:
    """Refuse an arm that lacks what its objective needs.

    Raises:
        ConfigError: naming the key that is missing.
    """
    missing = {
        "teacher_logp": ("data.teacher, a folder that `stillhouse rescore` wrote", stream.teacher is not None),
        "reference_logp": ("data.reference, the reference model's scores of both sides", stream.reference is not None),
        "topk": ("data.teacher, scores with top-k", stream.teacher is not None),
        "teacher_model": ("`teacher`, the model to compare with", has_teacher),
    }
    if isinstance(arm.objective, TopKDivergence) and stream.teacher is not None:
        table = TeacherTable(stream.teacher)
        arm.objective.check_stored(table.temperature, table.topk)
    for need, (what, is_there) in missing.items():
        if need in arm.objective.needs and not is_there:
            raise ConfigError(f"the objective '{arm.objective.kind}' of arm '{arm.name}' needs {what}; it is not set")
