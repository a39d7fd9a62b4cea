"""What a run would do, on a toy corpus and without a student that has storage."""

from contextlib import closing
from dataclasses import replace

import pytest
import torch
from torch import nn

from etl.errors import ConfigError, DataError
from tests.training.data.streams import small_stream
from training.config import TrainConfig
from training.data.reader import ReadConfig
from training.data.stream.decisions import DecisionLog
from training.engine.optimizer import OptimizerConfig
from training.models.config import ModelConfig, student_factory
from training.models.factory import build_student
from training.stages import dry_run as dry_run_module
from training.stages.cursors import FinishedStage
from training.stages.dry_run import dry_run, plan_stage, plan_stages
from training.stages.schedule import ArmConfig, StageConfig
from training.stages.stream import RunStreams

OPTIMIZER = OptimizerConfig(lr=0.01)
DEEPSPEED = "conf/deepspeed/zero1_fp32.json"


class Users(nn.Module):
    """A user's student, of which no sizes are known."""

    head_weight = "embed.weight"

    def __init__(self, vocab):
        super().__init__()
        self.embed = nn.Embedding(vocab, 8)


@student_factory
def build(params):
    return Users(params.get("vocab", 97))


MODEL = ModelConfig(factory=f"{__name__}:build", params={})


@pytest.fixture
def streams(corpus, tmp_path):
    data = small_stream(corpus=str(corpus))
    return RunStreams(data, ReadConfig(workers=1), 0, tmp_path / "decisions")


def stage_of(tokens, *arms, name="train", **data):
    return StageConfig(name=name, tokens=tokens, arms=arms or (ArmConfig(),), data=data)


def run_of(streams, *stages, **more):
    """A configuration of a run."""
    values = {"data": streams.data, "model": MODEL, "optimizer": OPTIMIZER, "output": str(streams.decisions.parent)}
    return TrainConfig(**{**values, "stages": stages, "deepspeed": DEEPSPEED, **more})


def stepped(streams, stages):
    """Optimizer steps, packs and tokens of each arm, by reading every stage to its end."""
    found, finished = {}, []
    for stage in stages:
        of_arm = {arm.name: [0, 0, 0] for arm in stage.arms}
        tokens, state = 0, {}
        with closing(streams.open_stage(stage, 0, 1, DecisionLog.preview, finished=finished)) as stream:
            while tokens < stage.tokens and (step := stream.next_step()).lanes_left:
                packs = [pack.num_tokens for pack in step.packs if pack.num_tokens]
                counted = of_arm[step.arm.name]
                counted[:] = counted[0] + bool(packs), counted[1] + len(packs), counted[2] + sum(packs)
                tokens += sum(packs)
                _, state = stream.state
        finished.append(FinishedStage(stage, state))
        found |= {(stage.name, name): tuple(counts) for name, counts in of_arm.items()}
    return found


def planned(plans):
    return {(arm.stage, arm.arm): (arm.steps, arm.packs, arm.tokens) for plan in plans for arm in plan.arms}


def test_a_short_stage_is_planned_to_its_target(streams):
    (plan,) = plan_stage(streams, stage_of(1000)).arms
    assert plan.tokens == sum(plan.cells.values())
    assert 1000 <= plan.tokens < 1000 + 4 * 48
    assert plan.available_documents == 120
    assert plan.passes == plan.tokens / plan.available_tokens
    assert plan.packs == plan.planned_packs == 4 * plan.steps
    assert 0.5 < plan.fill == plan.tokens / (48 * plan.packs) <= 1
    assert plan.stage_ends == "at its target of 1,000 tokens"


def test_a_stage_longer_than_its_corpus_ends_after_one_pass(streams):
    (plan,) = plan_stage(streams, stage_of(10**9)).arms
    assert (plan.tokens, plan.passes) == (plan.available_tokens, 1.0)
    assert plan.stage_ends == f"where its documents do, after {plan.tokens:,} of 1,000,000,000 tokens"
    assert set(plan.cells) == {"B1/C1", "B3/C1"}
    assert plan.fill <= 1


def test_an_arm_that_runs_out_ends_the_stage_for_the_others(streams):
    arms = (ArmConfig(name="long"), ArmConfig(name="short", data={"shares": {"B3/*": 1.0}}))
    long, short = plan_stage(streams, stage_of(10**9, *arms)).arms
    assert long.stage_ends == short.stage_ends
    assert long.stage_ends.startswith("where its documents do, after ")
    assert abs(long.steps - short.steps) <= 2
    assert long.passes < 1


ALIKE = (ArmConfig(name="a", share=0.65), ArmConfig(name="b", share=0.35))
APART = (ArmConfig(name="a"), ArmConfig(name="b", data={"pack_tokens": 40}))


@pytest.mark.parametrize("on_exhausted", ["stop", "repeat"])
@pytest.mark.parametrize(
    "stages",
    [
        (stage_of(700), stage_of(900, *ALIKE, name="mix"), stage_of(1000, name="last")),
        (stage_of(800, *APART), stage_of(500, name="fresh", order="fresh"), stage_of(1200, name="last")),
    ],
)
def test_steps_packs_and_tokens_of_every_arm_are_those_of_a_run(streams, stages, on_exhausted):
    data = streams.data.model_copy(update={"on_exhausted": on_exhausted})
    streams = replace(streams, data=data)
    plans = plan_stages(streams, stages)
    assert planned(plans) == stepped(streams, stages)
    assert all(arm.fill <= 1 for plan in plans for arm in plan.arms)
    assert not streams.decisions.exists()


def test_a_run_that_pauses_is_planned_to_there(streams):
    plans = plan_stages(
        streams, [stage_of(700), stage_of(900, name="second"), stage_of(900, name="third")], max_steps=9
    )
    assert sum(plan.steps for plan in plans) == 9
    assert len(plans) == 2
    assert plans[1].arms[0].stage_ends.startswith("not yet: the run pauses at `max_steps`, after ")


def test_a_stage_that_finds_all_documents_read_is_refused_with_what_to_do(streams):
    stages = [stage_of(10**9), stage_of(1000, name="again")]
    with pytest.raises(DataError, match=r"'again' has no document .*in the stages before': 120.*`order: fresh`"):
        plan_stages(streams, stages)
    assert len(plan_stages(streams, [stages[0], stage_of(1000, name="again", order="fresh")])) == 2


def test_a_long_stage_is_planned_in_part_and_scaled(streams, monkeypatch):
    whole = plan_stage(streams, stage_of(2000)).arms[0]
    monkeypatch.setattr(dry_run_module, "MAX_PLANNED_PACKS", 1)
    found = plan_stage(streams, stage_of(2000)).arms[0]
    assert found.planned_packs == 4 < whole.planned_packs
    assert found.tokens == 2000
    assert found.stage_ends == "at its target of 2,000 tokens; 4 packs were planned, the rest is taken to be like them"
    assert "cells" not in found.summary()


def test_a_student_of_unknown_sizes_has_no_memory_and_deepspeed_gets_its_packs(streams, tmp_path):
    found = dry_run(run_of(streams, stage_of(500)), world_size=2)
    assert found.memory == {}
    assert found.deepspeed["gradient_accumulation_steps"] == streams.data.micro_steps(2)
    assert [plan.stage for plan in found.arms] == ["train"]
    assert not (tmp_path / "decisions").exists()


def test_the_corpus_is_looked_for_before_the_student_is_built(streams, tmp_path):
    data = small_stream(corpus=str(tmp_path / "none"))
    never = ModelConfig(factory="no.such.module:build", params={})
    with pytest.raises(DataError, match="is not a committed dataset"):
        dry_run(run_of(streams, stage_of(500), data=data, model=never), world_size=1)


def test_more_ranks_than_lanes_are_refused(streams):
    with pytest.raises(ConfigError, match="lanes"):
        dry_run(run_of(streams, stage_of(500)), world_size=9)


def test_token_ids_beyond_a_vocabulary_are_refused(streams):
    small = ModelConfig(factory=f"{__name__}:build", params={"vocab": 90})
    with pytest.raises(ConfigError, match=r"has the token id 96, .* but the student has 90"):
        dry_run(run_of(streams, stage_of(500), model=small), world_size=1)
    with pytest.raises(ConfigError, match=r"but the teacher has 90"):
        dry_run(run_of(streams, stage_of(500), teacher=small), world_size=1)


def test_a_teacher_with_another_head_is_refused(streams):
    other = ModelConfig(factory=f"{__name__}:build", params={"vocab": 101})
    with pytest.raises(ConfigError, match=r"student's head has 97 rows and the teacher's 101"):
        dry_run(run_of(streams, stage_of(500, {"objective": {"kind": "kl"}}), teacher=other), world_size=1)


def test_a_student_is_built_without_storage(streams, monkeypatch):
    seen = []

    def building(config, seed):
        seen.append(torch.empty(0).device.type)
        return build_student(config, seed)

    monkeypatch.setattr(dry_run_module, "build_student", building)
    dry_run(run_of(streams, stage_of(500)), world_size=1)
    assert seen == ["meta"]
