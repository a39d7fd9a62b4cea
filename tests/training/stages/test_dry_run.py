"""What a run would do, on a toy corpus and without a student that has storage."""

import pytest
import torch
from torch import nn

from etl.errors import ConfigError, DataError
from tests.training.data.streams import small_stream
from training.data.reader import ReadConfig
from training.engine.optimizer import OptimizerConfig
from training.models.config import ModelConfig, student_factory
from training.stages import dry_run as dry_run_module
from training.stages.dry_run import dry_run, plan_arm, plan_stage
from training.stages.schedule import ArmConfig, StageConfig
from training.stages.stream import RunStreams

OPTIMIZER = OptimizerConfig(lr=0.01)
DEEPSPEED = "conf/deepspeed/zero1_fp32.json"


class Users(nn.Module):
    """A user's student, of which no sizes are known."""

    head_weight = "embed.weight"

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(97, 8)


@student_factory
def build(params):
    return Users()


MODEL = ModelConfig(factory=f"{__name__}:build", params={})


@pytest.fixture
def streams(corpus, tmp_path):
    data = small_stream(corpus=str(corpus))
    return RunStreams(data, ReadConfig(workers=1), 0, tmp_path / "decisions")


def stage_of(tokens, *arms):
    return StageConfig(tokens=tokens, arms=arms or (ArmConfig(),))


def test_a_short_stage_is_planned_to_its_target(streams):
    stage = stage_of(1000)
    (plan,) = plan_stage(streams, stage)
    assert plan == plan_arm(streams, stage, stage.arms[0])
    assert (plan.tokens, sum(plan.cells.values())) == (pytest.approx(1000, abs=2), pytest.approx(1000, abs=2))
    assert plan.available_documents == 120
    assert plan.passes == pytest.approx(1000 / plan.available_tokens, abs=0.01)
    assert (plan.packs, plan.runs_out) == (4 * plan.steps, False)
    assert 0.5 < plan.fill <= 1
    assert plan.fill == pytest.approx(plan.tokens / (48 * plan.packs), rel=0.2)


def test_a_stage_longer_than_its_corpus_runs_out_after_one_pass(streams):
    (plan,) = plan_stage(streams, stage_of(10**9))
    assert plan.runs_out
    assert (plan.tokens, plan.passes) == (plan.available_tokens, 1.0)
    assert set(plan.cells) == {"B1/C1", "B3/C1"}


def test_an_arm_that_runs_out_ends_the_stage_for_the_others(streams):
    arms = (ArmConfig(name="long"), ArmConfig(name="short", data={"shares": {"B3/*": 1.0}}))
    long, short = plan_stage(streams, stage_of(10**9, *arms))
    assert short.runs_out
    assert abs(long.steps - short.steps) <= 2
    assert long.passes < 1


def test_a_long_arm_is_planned_in_part_and_scaled(streams, monkeypatch):
    whole = plan_arm(streams, stage_of(2000), ArmConfig())
    monkeypatch.setattr(dry_run_module, "MAX_PLANNED_PACKS", 1)
    found = plan_arm(streams, stage_of(2000), ArmConfig())
    assert found.planned_packs < whole.planned_packs
    assert found.tokens == pytest.approx(2000, abs=2)
    assert not found.runs_out


def test_a_part_of_an_arm_has_that_part_of_everything(streams):
    plan = plan_arm(streams, stage_of(1000), ArmConfig())
    assert plan.of_steps(10 * plan.steps) == plan
    half = plan.of_steps(plan.steps // 2)
    assert half.steps == plan.steps // 2
    assert half.tokens == pytest.approx(plan.tokens * half.steps / plan.steps, abs=1)
    assert "cells" not in plan.summary()


def test_a_student_of_unknown_sizes_has_no_memory_and_deepspeed_gets_its_packs(streams, tmp_path):
    found = dry_run(streams, [stage_of(500)], MODEL, OPTIMIZER, DEEPSPEED, world_size=2)
    assert found.memory == {}
    assert found.deepspeed["gradient_accumulation_steps"] == streams.data.micro_steps(2)
    assert [plan.stage for plan in found.arms] == ["train"]
    assert not (tmp_path / "decisions").exists()


def test_the_corpus_is_looked_for_before_the_student_is_built(tmp_path):
    data = small_stream(corpus=str(tmp_path / "none"))
    streams = RunStreams(data, ReadConfig(), 0, tmp_path)
    never = ModelConfig(factory="no.such.module:build", params={})
    with pytest.raises(DataError, match="is not a committed dataset"):
        dry_run(streams, [stage_of(500)], never, OPTIMIZER, DEEPSPEED, world_size=1)


def test_more_ranks_than_lanes_are_refused(streams):
    with pytest.raises(ConfigError, match="lanes"):
        dry_run(streams, [stage_of(500)], MODEL, OPTIMIZER, DEEPSPEED, world_size=9)


def test_a_student_is_built_without_storage(streams, monkeypatch):
    seen = []

    def building(config, seed):
        seen.append(torch.empty(0).device.type)
        return type("Student", (), {"hf_config": None})()

    monkeypatch.setattr(dry_run_module, "build_student", building)
    dry_run(streams, [stage_of(500)], MODEL, OPTIMIZER, DEEPSPEED, world_size=1)
    assert seen == ["meta"]
