from pathlib import Path

import pytest

from etl import conf
from etl.errors import ConfigError
from etl.storage.location import Location
from training.config import ModelSection, TrainConfig
from training.stages.state import StageState, TrainState


def demo(**changes):
    return conf.load(TrainConfig, "demo", "training", [f"{key}={value}" for key, value in changes.items()])


def two_stages(**changes):
    arm = "{name: scored, objective: {kind: weighted_ce}, data: {corpus: b, teacher: t}}"
    second = f"{{name: second, tokens: 10, optimizer: {{lr: 0.5}}, arms: [{{}}, {arm}]}}"
    stages = f"[{{name: first, tokens: 20}}, {second}]"
    return demo(stages=stages, **{"data.corpus": "a", "data.reference": "r"}, **changes)


def test_the_students_section_knows_the_keys_of_all_others():
    assert set(ModelSection.model_fields) == set(TrainConfig.model_fields)


def test_corpora_and_tables_are_those_of_all_arms_and_held_out_sets():
    config = two_stages(evaluate="{sets: {canaries: {corpus: c}}}")
    assert config.corpora() == {"a", "b", "c"}
    assert config.teacher_tables() == {"t", "r"}


def test_streams_are_of_the_runs_sections_and_log_below_its_output():
    config = two_stages()
    second = config.stages[1]
    streams = config.streams
    assert (streams.data, streams.read, streams.seed) == (config.data, config.read, config.seed)
    assert [streams.config_of(second, arm).corpus for arm in second.arms] == ["a", "b"]
    folder = Path(config.output) / "decisions" / "first" / "main"
    assert streams.log_folder(config.stages[0], config.stages[0].arms[0]).url == Location.of(folder).url


def test_a_stage_changes_single_keys_of_the_optimizer():
    config = two_stages()
    assert [config.optimizer_in(stage).lr for stage in config.stages] == [0.01, 0.5]
    assert config.optimizer_in(config.stages[1]).weight_decay == config.optimizer.weight_decay


def test_an_early_end_is_told_with_both_rates_and_what_to_do():
    config = two_stages(**{"optimizer.schedule": "{kind: cosine, final_fraction: 0.1}"})
    state = TrainState(stage=StageState(tokens=10, is_exhausted=True))
    ended = config.ended(state)
    assert config.early_end(ended) == (
        "stage 'first' ended after 10 of 20 tokens: its documents are read. The rate was 0.0055, the schedule would "
        "have ended at 0.001; set tokens to 10, data.epochs, or data.on_exhausted to repeat"
    )
    assert config.ended(TrainState(stage=StageState(tokens=10))) is None
    assert config.ended(TrainState(stage=StageState(tokens=20))).reason == "target"
    assert config.ended(TrainState(stage=StageState(index=2))) is None


def test_a_later_stage_does_not_warm_up_where_the_first_alone_does():
    schedule = "{kind: constant, warmup_tokens: 10, warmup: first_stage}"
    first, second = (config := two_stages(**{"optimizer.schedule": schedule})).stages
    assert (config.learning_rate(first, 5), config.learning_rate(second, 5)) == (0.005, 0.5)


@pytest.mark.parametrize(
    ("state", "complete", "over"),
    [
        (TrainState(stage=StageState(index=0, tokens=20), step=3), False, False),
        (TrainState(stage=StageState(index=1, tokens=9), step=3), False, False),
        (TrainState(stage=StageState(index=1, tokens=9), step=5), False, True),
        (TrainState(stage=StageState(index=1, tokens=10), step=4), True, True),
    ],
)
def test_a_run_is_over_with_its_last_stage_or_at_max_steps(state, complete, over):
    config = two_stages().model_copy(update={"max_steps": 5})
    assert (config.is_complete(state), config.is_over(state)) == (complete, over)


def test_an_arm_that_lacks_what_its_objective_needs_is_refused_before_a_file_is_opened():
    with pytest.raises(ConfigError, match=r"'weighted_ce' of arm 'main' needs data\.teacher"):
        demo(stages="[{tokens: 1, arms: [{objective: {kind: weighted_ce}}]}]").check()


def test_a_stage_is_found_by_name():
    config = two_stages()
    assert [config.stage_named(name).name for name in (None, "second")] == ["first", "second"]
    with pytest.raises(ConfigError, match="there is no stage 'third'; the configuration has: first, second"):
        config.stage_named("third")
