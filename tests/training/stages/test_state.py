import json
from dataclasses import replace

from training.data.stream.plan import StreamState
from training.stages.state import EndedStage, Evaluation, StageState, TrainState

STATE = TrainState(
    stage=StageState(
        index=1,
        steps=7,
        tokens=900,
        streams={"main": StreamState("digest", 2, 5)},
        evaluations=[Evaluation(2.5, None, 0), Evaluation(2.0, 0.5, 1)],
    ),
    ended=(EndedStage("first", 10, 1100, {"main": StreamState("before", 1, 3)}, "target", 1e-4, 1050),),
    step=17,
    tokens=2000,
    first_loss=3.0,
    last_loss=2.0,
    teacher_mean={"main": -1.5},
    spikes={"losses": [2.0], "spikes": 0},
    ledger=[{"source_dataset": "a", "tokens": 5}],
)


def test_a_state_comes_back_from_json():
    assert TrainState.from_json(json.loads(json.dumps(STATE.to_json()))) == STATE


def test_a_state_from_before_ended_stages_were_kept_comes_back():
    old = {key: value for key, value in STATE.to_json().items() if key != "ended"}
    assert TrainState.from_json(json.loads(json.dumps(old))) == replace(STATE, ended=())


def test_losses_of_the_earlier_kind_are_compared_with_none():
    old = {key: value for key, value in replace(STATE, last_held_out=2.0).to_json().items() if key != "losses"}
    found = TrainState.from_json(json.loads(json.dumps(old)))
    stage = replace(STATE.stage, evaluations=[])
    assert found == replace(STATE, stage=stage, spikes={"losses": [], "spikes": 0}, last_held_out=None)


def test_the_next_stage_begins_at_its_start_and_keeps_the_totals_and_what_has_ended():
    ended = STATE.end_of_stage("second", "documents", 3e-5, 950)
    assert ended == EndedStage("second", 7, 900, STATE.stage.streams, "documents", 3e-5, 950)
    found = STATE.next_stage(ended)
    assert found.stage == StageState(index=2)
    assert (found.step, found.tokens, found.teacher_mean, found.ledger) == (17, 2000, {}, STATE.ledger)
    assert found.ended == (*STATE.ended, ended)
