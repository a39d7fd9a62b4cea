import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import ConfigError
from training.data.stream.plan import StreamConfig
from training.engine.optimizer import OptimizerConfig
from training.stages.schedule import ArmConfig, StageConfig, StopRule, check_stages, optimizer_of, stream_of
from training.stages.state import Evaluation, StageState


def stage(*shares):
    return StageConfig(
        name="mixed", tokens=1, arms=tuple(ArmConfig(name=str(number), share=s) for number, s in enumerate(shares))
    )


@given(st.lists(st.floats(0.05, 1), min_size=1, max_size=4), st.integers(0, 2**31), st.integers(1, 400))
def test_every_prefix_has_each_arm_at_its_share_to_within_a_few_steps(shares, seed, num_steps):
    mixed = stage(*shares)
    drawn = [mixed.arm_of(step, seed).name for step in range(num_steps)]
    for number, share in enumerate(shares):
        expected = num_steps * share / sum(shares)
        assert abs(drawn.count(str(number)) - expected) <= 4.5


def test_the_arm_of_a_step_depends_on_seed_and_step_alone():
    mixed = stage(0.65, 0.35)
    drawn = [mixed.arm_of(step, 3).name for step in range(40)]
    assert [mixed.arm_of(step, 3).name for step in reversed(range(40))] == drawn[::-1]
    assert drawn != [mixed.arm_of(step, 4).name for step in range(40)]


def evaluations(losses, skipped=(0, 0, 0, 0), formats=(None, None, None, None)):
    return [Evaluation(*found) for found in zip(losses, formats, skipped, strict=False)]


def test_a_stage_stops_when_the_held_out_loss_is_flat_and_no_step_was_skipped():
    rule = StopRule(after_tokens=100, flat_evaluations=2, min_improvement=0.01)
    falling, flat = [3.0, 2.0, 1.5, 1.2], [3.0, 2.0, 1.995, 1.99]
    assert not rule.holds(200, evaluations(falling))
    assert rule.holds(200, evaluations(flat))
    assert not rule.holds(99, evaluations(flat))
    assert not rule.holds(200, evaluations(flat[:2]))
    assert not rule.holds(200, evaluations(flat, skipped=[0, 0, 0, 1]))
    assert rule.holds(200, evaluations(flat, skipped=[0, 1, 1, 1]))


def test_a_stage_stops_when_the_format_is_right_too():
    rule = StopRule(flat_evaluations=1, min_format=0.9)
    assert rule.holds(1, evaluations([2.0, 2.0], formats=[0.1, 0.9]))
    assert not rule.holds(1, evaluations([2.0, 2.0], formats=[0.95, 0.89]))
    with pytest.raises(ConfigError, match=r"stop\.min_format is set, but no supervised token"):
        rule.holds(1, evaluations([2.0, 2.0]))


def test_stages_and_arms_override_the_runs_settings():
    data = StreamConfig(corpus="a", pack_tokens=8, global_batch_packs=2)
    arm = ArmConfig(data={"corpus": "b"})
    mixed = StageConfig(tokens=1, data={"pack_tokens": 16}, optimizer={"lr": 0.5}, arms=(arm,))
    found = stream_of(data, mixed, arm)
    assert (found.corpus, found.pack_tokens, found.global_batch_packs) == ("b", 16, 2)
    assert optimizer_of(OptimizerConfig(lr=0.1, clip_norm=2.0), mixed).lr == 0.5
    with pytest.raises(ConfigError, match="stage 'train', arm 'main'"):
        stream_of(data, mixed, ArmConfig(data={"packs": 1}))


def test_names_must_differ():
    with pytest.raises(ValueError, match="share a name"):
        StageConfig(tokens=1, arms=(ArmConfig(), ArmConfig()))
    with pytest.raises(ConfigError, match="share a name"):
        check_stages((StageConfig(tokens=1), StageConfig(tokens=2)))


def test_a_stage_ends_by_its_target_its_documents_or_its_stop_rule():
    rule = StopRule(flat_evaluations=1)
    stage = StageConfig(tokens=100, stop=rule)
    flat = evaluations([2.0, 2.0])
    assert stage.end_reason(StageState(tokens=99)) is None
    assert stage.end_reason(StageState(tokens=100, is_exhausted=True, evaluations=flat)) == "target"
    assert stage.end_reason(StageState(tokens=99, is_exhausted=True, evaluations=flat)) == "documents"
    assert stage.end_reason(StageState(tokens=99, evaluations=flat)) == "stop rule"
