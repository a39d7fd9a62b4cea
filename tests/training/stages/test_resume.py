"""A list of stages, edited between two starts: it is refused with both lists, or trains every stage once, in order."""

import json
from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import pytest

from etl import conf
from etl.errors import ConfigError, DataError
from training.config import TrainConfig
from training.data.stream.plan import StreamState
from training.stages import resume
from training.stages.schedule import StageConfig, StopRule
from training.stages.state import StageState, TrainState
from training.train import Trainer

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

STEP = 10
DEMO = conf.load(TrainConfig, "demo", "training", ["data.corpus=c", "output=o", "evaluate=null"])
NAMES = ("a", "b", "c")
NAMES_TOLD = r"'a' \(.*'b'.*'c'.*"


def stage(name, **more):
    return StageConfig.model_validate({"name": name, "tokens": 2 * STEP, **more})


def configured(*stages, **more):
    return DEMO.model_copy(update={"stages": stages, **more})


def of_names(names, **more):
    return configured(*map(stage, names), **more)


# --- every edit of the list ------------------------------------------------------------------------------------------


class PlannedTrainer(Trainer):
    """The loop over stages, each step counted and none taken."""

    def __init__(self, config, state):
        checkpoints = SimpleNamespace(
            wait=lambda: None, save=lambda _engine, payload, _score: self.saved.append(payload)
        )
        clock = SimpleNamespace(phase=lambda _: nullcontext())
        recorder = SimpleNamespace(clock=clock, ledger_rows=list)
        alone = SimpleNamespace(max=lambda values: values)
        super().__init__(config, alone, None, None, {}, {}, checkpoints, recorder, state)
        self.saved = []
        self.trained = []

    def _run_stage(self, on_step, overfit, stop):
        here = self.config.stages[self.state.stage.index]
        while not here.is_over(self.state.stage):
            self.trained.append(here.name)
            at = self.state.stage
            at = replace(
                at, steps=at.steps + 1, tokens=at.tokens + STEP, streams={"main": StreamState("d", 0, at.steps)}
            )
            self.state = replace(self.state, stage=at, step=self.state.step + 1, tokens=self.state.tokens + STEP)
            if self.config.is_over(self.state):
                return True
        return False


def start(config, payload):
    """One start of a run: the names of the stages of its steps, and what its checkpoint holds."""
    state = TrainState()
    if payload is not None:
        state, was = resume.of_payload(json.loads(json.dumps(payload)))
        resume.compare(was, config.outline(), state)
    trainer = PlannedTrainer(config, state)
    if not config.is_over(state):
        trainer.run(lambda _: None, overfit=False)
    return trainer.trained, trainer.saved[-1] if trainer.saved else payload


def edits(names):
    """Every list that one edit makes of some names."""
    yield list(names)
    for place in range(len(names) + 1):
        yield [*names[:place], "new", *names[place:]]
    for place in range(len(names)):
        yield [*names[:place], *names[place + 1 :]]
        yield [*names[:place], "new", *names[place + 1 :]]
    for one, other in combinations(range(len(names)), 2):
        swapped = list(names)
        swapped[one], swapped[other] = swapped[other], swapped[one]
        yield swapped


def twice_edited():
    once = {tuple(found) for found in edits(NAMES)}
    return sorted({tuple(found) for names in once for found in edits(names) if found and len(set(found)) == len(found)})


def after_steps(steps, behind):
    """A run paused after this many steps; `behind`: as if the next stage had been entered without a step."""
    trained, payload = start(of_names(NAMES, max_steps=steps), None)
    if behind:
        state, was = resume.of_payload(payload)
        ended = state.end_of_stage(NAMES[steps // 2 - 1], "target", 0.1, 2 * STEP)
        payload = resume.payload_of(state.next_stage(ended), was)
    return trained, payload


@pytest.mark.parametrize(("steps", "behind"), [*((n, False) for n in range(1, 7)), (2, True), (4, True)])
def test_an_edited_list_is_refused_with_both_or_trains_every_stage_once_and_in_order(steps, behind):
    trained, payload = after_steps(steps, behind)
    begun = tuple(dict.fromkeys(trained))
    for names in twice_edited():
        if names[: len(begun)] != begun:
            message = f"{NAMES_TOLD}; the configuration has {quoted(names)}.*begin with {quoted(begun)} "
            with pytest.raises(ConfigError, match=message):
                start(of_names(names), payload)
            continue
        more, after = start(of_names(names), payload)
        assert [*trained, *more] == [name for name in names for _ in range(2)]
        assert start(of_names(names), after) == ([], after)


def quoted(names):
    return ", ".join(f"'{name}'" for name in names)


# --- what may change, and is said ------------------------------------------------------------------------------------

LR = {"lr": 0.001, "schedule": {"kind": "cosine", "final_fraction": 0.1}}


def said(old, new, state):
    return resume.compare(old.outline(), new.outline(), state)


def standing(index, tokens=STEP):
    """In the stage of that index, after a step, the ones before it over."""
    state = TrainState()
    for name in NAMES[:index]:
        state = state.next_stage(state.end_of_stage(name, "target", 0.1, 2 * STEP))
    return replace(state, step=9, stage=replace(state.stage, steps=1, tokens=tokens))


def test_an_unchanged_configuration_says_nothing():
    assert said(of_names(NAMES), of_names(NAMES), standing(1)) == []


def test_what_changes_of_the_stage_that_has_begun_is_said():
    new = stage(
        "b",
        tokens=40,
        stop={"flat_evaluations": 2},
        reset=True,
        optimizer={"clip_norm": 2.0},
        arms=[{"objective": {"kind": "ce", "span_weights": {"final": 2.0}}, "data": {"corpus": "moved"}}],
    )
    lines = said(of_names(NAMES), configured(stage("a"), new, stage("c")), standing(1))
    assert all(line.startswith("stage 'b': ") for line in lines)
    found = [line.removeprefix("stage 'b': ") for line in lines]
    assert "tokens changed from 20 to 40" in found
    assert "optimizer.clip_norm changed from 1.0 to 2.0" in found
    assert "data.corpus changed from c to moved" in found
    assert any(line.startswith("objective.span_weights") and "2.0" in line for line in found)
    assert any(line.startswith("stop changed from null to {") for line in found)
    assert any(line.startswith("reset changed from False to True, without effect") for line in found)


def test_a_rate_that_jumps_is_said_with_both_rates_and_the_reason():
    def config(tokens, **optimizer):
        return configured(stage("a", tokens=tokens, optimizer={**LR, **optimizer}))

    ended = standing(0, tokens=1000)
    lines = said(config(1000), config(100_000), ended)
    assert lines[-1] == (
        "stage 'a': the rate at its token 1,000 was 0.0001 and is 0.001, since tokens changed from 1,000 to 100,000"
    )
    (change,) = said(config(1000), config(1000, weight_decay=0.5), ended)
    assert change == "stage 'a': optimizer.weight_decay changed from 0.01 to 0.5"
    lines = said(config(1000), config(1000, lr=0.01), ended)
    assert lines[-1].endswith("was 0.0001 and is 0.001, since optimizer.lr changed from 0.001 to 0.01")


def test_other_arms_of_a_stage_that_has_begun_are_refused_with_both_lists():
    def config(*arms):
        return configured(stage("a", arms=[{"name": name, "share": share} for name, share in arms]))

    old = config(("x", 0.5), ("y", 0.5))
    for new in (config(("y", 0.5), ("x", 0.5)), config(("x", 0.5)), config(("x", 0.6), ("y", 0.4)), config(("z", 1))):
        with pytest.raises(ConfigError, match=r"were 'x' \(share 0\.5\), 'y' \(share 0\.5\) and are '[xyz]'"):
            said(old, new, standing(0))
        (line, *_) = said(old, new, TrainState())
        assert line.startswith("stage 'a', which has not begun: ")


@pytest.mark.parametrize("index", [0, 1])
def test_other_documents_of_a_stage_that_has_begun_or_is_over_are_refused_by_name(index):
    new = configured(stage("a", data={"pack_tokens": 128}), stage("b"))
    message = r"stage 'a', arm 'main' began with another stream: data\.pack_tokens changed from 1,?\d* to 128"
    with pytest.raises(ConfigError, match=message):
        said(of_names(("a", "b")), new, standing(index))
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        said(of_names(("a", "b")), of_names(("a", "b"), seed=1), standing(index))


def test_of_a_stage_that_another_followed_nothing_has_an_effect_and_a_higher_target_is_refused():
    old = of_names(NAMES)
    with pytest.raises(ConfigError, match=r"tokens of stage 'a' was raised from 20 to 21, but that stage is over"):
        said(old, configured(stage("a", tokens=21), stage("b"), stage("c")), standing(1))
    (line,) = said(old, configured(stage("a", tokens=15, reset=True), stage("b"), stage("c")), standing(1))
    assert line == (
        "stage 'a' is over, so this has no effect: tokens changed from 20 to 15, reset changed from false to true"
    )


def test_stages_that_have_not_begun_are_free_and_it_is_said():
    lines = said(of_names(NAMES), configured(stage("a"), stage("c", tokens=5), stage("d")), standing(0))
    assert lines == [
        "the stages that have not begun were 'b', 'c' and are 'c', 'd'",
        "stage 'c', which has not begun: tokens changed from 20 to 5",
    ]


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_payload_comes_back_and_a_damaged_record_is_refused():
    state, outline = standing(1), of_names(NAMES).outline()
    payload = json.loads(json.dumps(resume.payload_of(state, outline)))
    assert resume.of_payload(payload) == (state, outline)
    payload["run"]["stages"] = 3
    with pytest.raises(DataError, match="the checkpoint of step 9 says of its stages is damaged"):
        resume.of_payload(payload)


def run_json(config):
    """As training/record/run_record.py writes and reads it."""
    return json.loads(json.dumps({"config": config.model_dump(mode="json"), "code": config.code()}))


def test_a_checkpoint_without_a_record_takes_the_run_json_beside_it():
    arm = {"name": "m", "share": 2, "objective": {"kind": "topk_kl", "temperature": 2.0}, "data": {"teacher": "t"}}
    config = configured(stage("a", optimizer=LR, stop=StopRule().model_dump()), stage("b", arms=[arm]))
    beside = resume.RunOutline.of_run_json(run_json(config))
    assert beside.stages == config.outline().stages
    old = TrainState(stage=StageState(index=1, steps=3, tokens=5), step=8)
    was, line = resume.adopted(old, beside, of_names(("z",)).outline())
    assert was == beside
    assert "taken from the run.json" in line
    with pytest.raises(
        ConfigError, match=r"has 'a' \(done\), 'b' \(begun: 5 of 20 tokens\); the configuration has 'b'"
    ):
        resume.compare(was, of_names("b").outline(), old)


def test_a_checkpoint_without_any_record_is_taken_in_its_first_stage_only():
    now = of_names(NAMES).outline()
    first = TrainState(stage=StageState(steps=3), step=3)
    was, line = resume.adopted(first, None, now)
    assert was == now
    assert "taken for 'a'" in line
    behind = replace(first, stage=StageState(index=7, steps=3))
    for beside in (None, now):
        with pytest.raises(ConfigError, match=r"stands in stage 8 of its list.*'a', 'b', 'c'; restore run\.json"):
            resume.adopted(behind, beside, now)


def test_code_from_outside_the_package_is_known_by_its_digest_and_not_imported():
    tree = run_json(of_names("a"))
    tree["config"]["stages"][0]["arms"][0]["objective"] = {"kind": "nobody.has_it:Loss", "beta": 0.5}
    tree["code"] = {"nobody.has_it:Loss": {"version": 1, "code": "1234"}}
    (arm,) = resume.RunOutline.of_run_json(tree).stages[0].arms
    assert arm.objective == {"kind": "nobody.has_it:Loss", "beta": 0.5, "version": 1, "code": "1234"}
