"""What a run would do, found without training: steps, packs, passes, tokens by cell, memory by ZeRO stage, the JSON.

The stream is planned as the run would plan it, with the decisions that already lie in its output, from the narrow
index columns alone; nothing is written. Planning costs about 0.1 ms a pack, so an arm is planned for at most
MAX_PLANNED_PACKS packs and scaled up from there, which the report says.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import count as count_up
from typing import Any

import numpy as np
import torch

from training.data.stream.decisions import DecisionLog
from training.data.stream.lanes import RankStream
from training.data.stream.plan import StreamConfig
from training.engine.deepspeed_json import deepspeed_config, is_bf16, read_deepspeed_json
from training.engine.memory import StudentSize, by_zero_stage
from training.engine.optimizer import OptimizerConfig
from training.models.config import ModelConfig
from training.models.factory import build_student
from training.stages.schedule import ArmConfig, StageConfig
from training.stages.stream import RunStreams, check_corpora

MAX_PLANNED_PACKS = 100_000


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
    packs: int
    tokens: int
    fill: float
    """Part of the packs' room that is tokens."""
    passes: float
    """Tokens trained on / tokens available."""
    cells: dict[str, int]
    """Tokens by cell."""
    planned_packs: int
    """Packs that were really planned; the rest is scaled from them."""
    runs_out: bool
    """Whether its documents end before its part of the stage's target, and with them the stage."""

    def summary(self) -> dict[str, Any]:
        """All of it but the cells, in one level."""
        flat = {name: value for name, value in asdict(self).items() if name not in ("cells", "left_out")}
        return {**flat, **{f"left out: {reason}": count for reason, count in self.left_out.items()}}

    def of_steps(self, steps: int) -> "ArmPlan":
        """The same arm when the stage ends after so many of its steps, if that is before it would end by itself."""
        part = min(steps / max(self.steps, 1), 1.0)
        return replace(
            self,
            steps=round(self.steps * part),
            packs=round(self.packs * part),
            tokens=round(self.tokens * part),
            passes=self.passes * part,
            cells={cell: round(count * part) for cell, count in self.cells.items()},
        )


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


def plan_arm(streams: RunStreams, stage: StageConfig, arm: ArmConfig) -> ArmPlan:
    """What an arm would train on in its stage.

    Raises:
        ConfigError, DataError, SchemaError: as the run itself would.
    """
    data = streams.config_of(stage, arm)
    target = int(stage.tokens * arm.share / sum(other.share for other in stage.arms))
    with closing(streams.open_arm(stage, arm, (0, 1), DecisionLog.preview)) as stream:
        cells, packs = _planned(stream, data, target)
        tokens = sum(cells.values())
        scale = max(1.0, target / tokens) if packs >= MAX_PLANNED_PACKS else 1.0
        available = stream.index
        steps = -(-round(packs * scale) // data.global_batch_packs)
        return ArmPlan(
            stage=stage.name,
            arm=arm.name,
            objective=arm.objective.kind,
            available_documents=len(available),
            available_tokens=int(available.num_tokens.sum()),
            left_out={reason: count for reason, count in stream.left_out().items() if count},
            steps=steps,
            packs=steps * data.global_batch_packs,
            tokens=round(tokens * scale),
            fill=tokens / max(packs * data.pack_tokens, 1),
            passes=tokens * scale / max(int(available.num_tokens.sum()), 1),
            cells={cell: round(count * scale) for cell, count in sorted(cells.items())},
            planned_packs=packs,
            runs_out=tokens < target and packs < MAX_PLANNED_PACKS,
        )


def plan_stage(streams: RunStreams, stage: StageConfig) -> tuple[ArmPlan, ...]:
    """What the arms of a stage would train on together: it is over when a step is due to one that has run out.

    Raises:
        ConfigError, DataError, SchemaError: as the run itself would.
    """
    plans = {arm.name: plan_arm(streams, stage, arm) for arm in stage.arms}
    if not any(plan.runs_out for plan in plans.values()):
        return tuple(plans.values())
    taken: Counter[str] = Counter()
    for step in count_up():
        plan = plans[stage.arm_of(step, streams.seed).name]
        if plan.runs_out and taken[plan.arm] == plan.steps:
            break
        taken[plan.arm] += 1
    return tuple(plan.of_steps(taken[name]) for name, plan in plans.items())


def _planned(stream: RankStream, data: StreamConfig, target: int) -> tuple[Counter[str], int]:
    """Tokens by cell and packs up to the target, the end of the documents or MAX_PLANNED_PACKS."""
    cells: Counter[str] = Counter()
    packs = segment = 0
    while True:
        lanes = stream.plan(segment)
        for lane, planned in lanes.items():
            index = stream.index_of(lane)
            numbers = np.concatenate([np.empty(0, np.int64), *planned.packs])
            tokens = np.bincount(index.cell[numbers], weights=index.num_tokens[numbers], minlength=1)
            cells.update({stream.reader.cells[code]: int(count) for code, count in enumerate(tokens) if count})
            packs += len(planned.packs)
        segment += 1
        over = not any(planned.documents_left for planned in lanes.values())
        total = sum(cells.values())
        if total > target:
            # A segment is longer than what is left of the stage; the part of it that is trained on is like the whole.
            part = target / total
            return Counter({cell: round(count * part) for cell, count in cells.items()}), round(packs * part)
        if over or packs >= MAX_PLANNED_PACKS:
            return cells, packs


def dry_run(
    streams: RunStreams,
    stages: Sequence[StageConfig],
    model: ModelConfig,
    optimizer: OptimizerConfig,
    deepspeed: str,
    world_size: int,
) -> DryRun:
    """The plan of every arm of every stage, and what a rank of so many needs. Corpora are looked for first.

    Raises:
        ConfigError, DataError, SchemaError: as the run itself would.
    """
    for stage in stages:
        for arm in stage.arms:
            streams.config_of(stage, arm).check_world(world_size)
    check_corpora(streams, stages)
    deepspeed_json = read_deepspeed_json(deepspeed)
    arms = tuple(plan for stage in stages for plan in plan_stage(streams, stage))
    student = _student_size(model, streams.seed)
    return DryRun(
        arms=arms,
        memory={} if student is None else _memory(student, streams.data, model, world_size, is_bf16(deepspeed_json)),
        deepspeed=deepspeed_config(deepspeed_json, optimizer, streams.data.micro_steps(world_size)),
    )


def _student_size(model: ModelConfig, seed: int) -> StudentSize | None:
    """The sizes in the student's transformers configuration; it is built without storage. None where it has none."""
    with torch.device("meta"):
        student = build_student(model, seed)
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
