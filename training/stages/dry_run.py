"""Shows what a run would do, without training: steps, packs, passes, tokens by cell, memory by ZeRO stage, the JSON.

Every stage is gone through step by step as the run goes through it, each from where the one before it ended, with the
decisions that already lie in the output; only no token is read and nothing is written. What a run refuses before its
first step, and before the first step of a stage, is refused here too. A stop rule depends on what is learnt, so a stage
that has one may end earlier than is said here.

Planning costs about 0.1 ms a pack. A stage is planned for at most MAX_PLANNED_PACKS packs and scaled up from there,
which the report says; the stages after it then begin where the planning stopped.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from training.data.stream.cursor import PlannedStep
from training.data.stream.plan import StreamConfig, StreamState
from training.engine.deepspeed_json import deepspeed_config, is_bf16, read_deepspeed_json
from training.engine.memory import StudentSize, by_zero_stage
from training.engine.optimizer import OptimizerConfig
from training.models.config import ModelConfig
from training.models.factory import Student, build_student
from training.stages.cursors import FinishedStage
from training.stages.preflight import Heads, Preflight
from training.stages.schedule import ArmConfig, StageConfig
from training.stages.stream import PlannedStage, RunStreams, check_corpora, nothing_to_read
from training.stages.survey import check_left_out, survey_stages

MAX_PLANNED_PACKS = 500_000


class RunConfig(Protocol):
    """What is asked of a run's configuration (training/config.py)."""

    @property
    def model(self) -> ModelConfig: ...
    @property
    def teacher(self) -> ModelConfig | None: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def stages(self) -> tuple[StageConfig, ...]: ...
    @property
    def streams(self) -> RunStreams: ...
    @property
    def seed(self) -> int: ...
    @property
    def max_steps(self) -> int | None: ...
    @property
    def deepspeed(self) -> str: ...

    def held_out_sets(self) -> list[tuple[str, str]]:
        """Corpus and split of everything that is evaluated."""

    def check(self) -> None:
        """Refuse what can be known to be wrong before a file is opened."""


@dataclass(frozen=True)
class ArmPlan:
    """What an arm would train on."""

    stage: str
    arm: str
    objective: str
    available_documents: int
    available_tokens: int
    left_out: dict[str, int]
    """Documents that are never trained on, by reason."""
    steps: int
    """Optimizer steps."""
    packs: int
    """Of those steps, without those of lanes that have run out."""
    tokens: int
    fill: float
    """Part of the steps' room that is tokens."""
    passes: float
    """Tokens trained on / tokens available."""
    cells: dict[str, int]
    """Tokens by cell."""
    planned_packs: int
    """Packs that were really planned; the rest is scaled from them."""
    stage_ends: str
    """What ends the stage, in words."""

    def summary(self) -> dict[str, Any]:
        """All of it but the cells, in one level."""
        flat = {name: value for name, value in asdict(self).items() if name not in ("cells", "left_out")}
        return {**flat, **{f"left out: {reason}": count for reason, count in self.left_out.items()}}


@dataclass(frozen=True)
class StagePlan:
    """What the arms of a stage would train on together, and where it would leave the stage after it."""

    arms: tuple[ArmPlan, ...]
    finished: FinishedStage
    steps: int
    """Optimizer steps."""
    is_paused: bool
    """Whether the run would pause in it, at `max_steps`."""


@dataclass(frozen=True)
class DryRun:
    """What a run would do."""

    arms: tuple[ArmPlan, ...]
    memory: dict[int, dict[str, int]]
    """Bytes of a rank by ZeRO stage; none for a student whose sizes are not known."""
    deepspeed: dict[str, Any]
    """What DeepSpeed is initialised with."""

    def to_json(self) -> dict[str, Any]:
        """In JSON types."""
        return asdict(self)


@dataclass
class _Taken:
    """What the steps of an arm have read."""

    steps: int = 0
    packs: int = 0
    cells: Counter[int] = field(default_factory=Counter)
    """Tokens by number of the cell."""


def plan_stage(
    streams: RunStreams,
    stage: StageConfig,
    finished: Sequence[FinishedStage] = (),
    vocab_sizes: Mapping[str, int] = {},  # never changed
    max_steps: int | None = None,
) -> StagePlan:
    """What the arms of a stage would train on.

    Args:
        streams: of the run.
        stage: which.
        finished: the stages before it.
        vocab_sizes: rows of each model's head.
        max_steps: optimizer steps after which the run pauses; None for never.

    Raises:
        ConfigError, DataError, SchemaError: as the run itself would.
    """
    with closing(streams.plan_stage(stage, vocab_sizes, finished)) as planned:
        taken = {arm.name: _Taken() for arm in stage.arms}
        tokens, state, ends = _walk(planned, stage, taken, max_steps)
        if tokens == 0:
            raise nothing_to_read(stage, planned.left_out())
        packs = sum(found.packs for found in taken.values())
        scale = max(1.0, stage.tokens / tokens) if packs >= MAX_PLANNED_PACKS else 1.0
        if scale > 1:
            ends += f"; {packs:,} packs were planned, the rest is taken to be like them"
        arms = tuple(_arm_plan(planned, stage, arm, taken[arm.name], scale, ends) for arm in stage.arms)
        steps = sum(plan.steps for plan in arms)
        return StagePlan(arms, FinishedStage(stage, state), steps, max_steps is not None and steps >= max_steps)


def _walk(
    planned: PlannedStage, stage: StageConfig, taken: dict[str, _Taken], max_steps: int | None
) -> tuple[int, dict[str, StreamState], str]:
    """Take the steps of a stage as the trainer does: its tokens, where its cursors stop, and what ends it."""
    tokens = 0
    _, state = planned.state
    while tokens < stage.tokens:
        arm, step = planned.next_step()
        if step.lanes_left == 0:
            return tokens, state, f"where its documents do, after {tokens:,} of {stage.tokens:,} tokens"
        _, state = planned.state
        tokens += _take(planned, arm, step, taken[arm.name])
        if max_steps is not None and sum(found.steps for found in taken.values()) >= max_steps:
            return tokens, state, f"not yet: the run pauses at `max_steps`, after {tokens:,} of {stage.tokens:,} tokens"
        if sum(found.packs for found in taken.values()) >= MAX_PLANNED_PACKS:
            break
    return tokens, state, f"at its target of {stage.tokens:,} tokens"


def _take(planned: PlannedStage, arm: ArmConfig, step: PlannedStep, taken: _Taken) -> int:
    """Count what a step reads; its tokens."""
    index = planned.plan_of(arm)[0].own.index
    tokens = 0
    for position in step.positions:
        documents = step.segment.packs[position]
        if len(documents):
            of_lane = index[int(step.segment.lane[position])]
            sizes = of_lane.num_tokens[documents]
            found = np.bincount(of_lane.cell[documents], weights=sizes)
            taken.cells.update({cell: int(count) for cell, count in enumerate(found.tolist()) if count})
            taken.packs += 1
            tokens += int(sizes.sum())
    # The trainer takes no optimizer step on a batch without a token, which lanes that have run out may give.
    taken.steps += tokens > 0
    return tokens


def _arm_plan(
    planned: PlannedStage, stage: StageConfig, arm: ArmConfig, taken: _Taken, scale: float, ends: str
) -> ArmPlan:
    plan, class_ = planned.plan_of(arm)
    supply = plan.supply(class_)
    tokens = sum(taken.cells.values())
    room = taken.steps * plan.config.global_batch_packs * plan.config.pack_tokens
    return ArmPlan(
        stage=stage.name,
        arm=arm.name,
        objective=arm.objective.kind,
        available_documents=supply.documents,
        available_tokens=supply.tokens,
        left_out={reason: count for reason, count in supply.left_out.items() if count},
        steps=round(taken.steps * scale),
        packs=round(taken.packs * scale),
        tokens=round(tokens * scale),
        fill=tokens / max(room, 1),
        passes=tokens * scale / max(supply.tokens, 1),
        cells={plan.own.cells[cell]: round(count * scale) for cell, count in sorted(taken.cells.items())},
        planned_packs=taken.packs,
        stage_ends=ends,
    )


def plan_stages(
    streams: RunStreams,
    stages: Sequence[StageConfig],
    vocab_sizes: Mapping[str, int] = {},  # never changed
    max_steps: int | None = None,
) -> list[StagePlan]:
    """The stages one after the other, each from where the one before it ended, to the one in which the run pauses.

    Raises:
        ConfigError, DataError, SchemaError: as the run itself would.
    """
    plans: list[StagePlan] = []
    for stage in stages:
        left = None if max_steps is None else max_steps - sum(plan.steps for plan in plans)
        if left == 0:
            break
        plans.append(plan_stage(streams, stage, [plan.finished for plan in plans], vocab_sizes, left))
        if plans[-1].is_paused:
            break
    return plans


def dry_run(config: RunConfig, world_size: int) -> DryRun:
    """The plan of every arm of every stage, and what a rank of so many needs. Corpora are looked for first.

    Raises:
        ConfigError, DataError, SchemaError: as the run itself would.
    """
    config.check()
    streams = config.streams
    for stage in config.stages:
        for arm in stage.arms:
            streams.config_of(stage, arm).check_world(world_size)
    check_corpora(streams, config.stages)
    deepspeed_json = read_deepspeed_json(config.deepspeed)
    with torch.device("meta"):
        student = build_student(config.model, config.seed)
        teacher = None if config.teacher is None else build_student(config.teacher, config.seed)
    heads = Heads(len(student.lm_head.weight), None if teacher is None else len(teacher.lm_head.weight))
    Preflight(streams, config.stages).check_sizes(heads, config.held_out_sets())
    check_left_out(survey_stages(streams, config.stages))
    plans = plan_stages(streams, config.stages, heads.sizes, config.max_steps)
    size = _size_of(student)
    return DryRun(
        arms=tuple(arm for plan in plans for arm in plan.arms),
        memory={} if size is None else _memory(size, streams.data, config.model, world_size, is_bf16(deepspeed_json)),
        deepspeed=deepspeed_config(deepspeed_json, config.optimizer, streams.data.micro_steps(world_size)),
    )


def _size_of(student: Student) -> StudentSize | None:
    """The sizes in the student's transformers configuration; None where it has none."""
    found = student.hf_config
    if found is None:
        return None
    heads = found.num_attention_heads
    active = max(student.experts_per_token, 1)
    return StudentSize(
        parameters=sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad),
        hidden=found.hidden_size,
        layers=found.num_hidden_layers,
        heads=heads,
        head_dim=getattr(found, "head_dim", None) or found.hidden_size // heads,
        kv_heads=getattr(found, "num_key_value_heads", None) or heads,
        mlp_width=active * (getattr(found, "moe_intermediate_size", None) or found.intermediate_size),
        vocab=found.vocab_size,
    )


def _memory(
    size: StudentSize, data: StreamConfig, model: ModelConfig, world_size: int, bf16: bool
) -> dict[int, dict[str, int]]:
    found = by_zero_stage(size, world_size, data.pack_tokens, bf16=bf16, checkpointing=model.gradient_checkpointing)
    return {zero_stage: {**asdict(memory), "total": memory.total} for zero_stage, memory in found}
