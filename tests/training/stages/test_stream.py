"""The steps of a stage on toy streams; no model."""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from etl.errors import ConfigError, DataError
from etl.storage.location import Location
from etl.storage.record import RunRecord, write_record
from tests.training.corpora import write_corpus
from tests.training.data.streams import small_stream
from tests.training.packs import toy_pack
from training.data.reader import ReadConfig
from training.data.stream.cursor import Supply
from training.data.stream.decisions import DecisionLog
from training.data.stream.plan import StreamState
from training.stages.cursors import cursors_of
from training.stages.schedule import ArmConfig, StageConfig
from training.stages.stream import RunStreams, StageStream, check_corpora, outdated_corpora, over_all_ranks

STAGE = StageConfig(tokens=1000, arms=(ArmConfig(name="a", share=3), ArmConfig(name="b", share=1)))
TWO_CURSORS = cursors_of(STAGE, [small_stream(), small_stream(pack_tokens=40)])


@dataclass(frozen=True)
class ToyStep:
    packs: tuple = ()
    slots: tuple = (0,)
    lanes_left: int = 1


@dataclass
class ToyStream:
    """Counts its steps; its state is the number of steps given out."""

    name: str
    opened: list
    global_batch_packs: int = 4
    steps: int = 0
    closed: list = field(default_factory=list)

    def __post_init__(self):
        self.opened.append(self.name)

    @property
    def state(self):
        return StreamState("log", 0, self.steps)

    def seek(self, state):
        self.steps = state.pack

    def next_step(self):
        self.steps += 1
        return ToyStep()

    def labels(self, class_):
        return ((self.name, class_),)

    def supply(self, class_):
        return Supply(1, 10, {"too long": 2, "weight 0": self.name == "b"})

    def close(self):
        self.closed.append(self.name)


def toy_stage():
    opened = []
    return StageStream(STAGE, 0, TWO_CURSORS, lambda cursor: ToyStream(cursor.name, opened)), opened


def arms(stream, steps):
    return [stream.next_step().arm.name for _ in range(steps)]


def test_steps_are_dealt_to_the_arms_by_their_shares_and_streams_open_with_their_first_step():
    stream, opened = toy_stage()
    assert opened == []
    first = arms(stream, 1)
    assert opened == first
    dealt = first + arms(stream, 39)
    assert [STAGE.arm_of(step, 0).name for step in range(40)] == dealt
    assert abs(dealt.count("a") - 30) <= 2
    assert sorted(opened) == ["a", "b"]


def test_a_stage_resumes_where_it_was_with_the_steps_of_each_arm():
    whole, _ = toy_stage()
    expected = arms(whole, 30)
    first, _ = toy_stage()
    assert arms(first, 11) == expected[:11]
    again, opened = toy_stage()
    again.seek(first.state)
    assert again.state == first.state
    assert opened == []
    assert arms(again, 19) == expected[11:]
    assert again.state == whole.state


def test_an_arm_without_a_step_since_the_resume_keeps_its_place():
    stream, opened = toy_stage()
    first = STAGE.arm_of(0, 0).name
    other = ({"a", "b"} - {first}).pop()
    stream.seek((0, {other: StreamState("log", 3, 5)}))
    stream.next_step()
    assert opened == [first]
    assert stream.state == (1, {other: StreamState("log", 3, 5), first: StreamState("log", 0, 1)})


def test_labels_and_documents_left_out_are_those_of_the_streams():
    stream, _ = toy_stage()
    assert [stream.labels(arm) for arm in STAGE.arms] == [(("a", 0),), (("b", 0),)]
    assert stream.left_out() == {"too long": 4, "weight 0": 1}


def test_closing_closes_every_open_stream():
    opened, streams = [], []

    def open_stream(cursor):
        streams.append(ToyStream(cursor.name, opened))
        return streams[-1]

    with closing(StageStream(STAGE, 0, TWO_CURSORS, open_stream)) as stream:
        arms(stream, 10)
    assert sorted(one.closed for one in streams) == [["a"], ["b"]]


class ToyWorld:
    """Two ranks; the other one has given the same, and was asked to stop."""

    def sum(self, values):
        return 2 * values + torch.tensor([0.0] * (len(values) - 1) + [1.0])


def test_a_global_step_is_the_sum_over_the_ranks():
    arm = ArmConfig()
    packs = (toy_pack([4, 6], 16, {1: 0, 2: 0, 7: 1}), toy_pack([], 16, {}))
    stage = StageConfig(tokens=1)
    one = type("One", (ToyStream,), {"next_step": lambda s: ToyStep(packs)})
    streams = StageStream(stage, 0, cursors_of(stage, [small_stream()]), lambda _: one("x", []))
    step = over_all_ranks(streams.next_step(), ToyWorld(), stops=False)
    assert (step.num_tokens, step.num_supervised, step.capacity) == (20, 6, 4 * 16)
    assert torch.equal(step.counts, 2 * torch.from_numpy(arm.objective.counts(packs[0])))
    assert (step.is_over, step.stops) == (False, True)


# --- of a run


def run_streams(corpus, folder, **data):
    return RunStreams(small_stream(corpus=str(corpus), **data), ReadConfig(workers=1), 0, folder / "decisions")


def test_a_stage_of_a_run_reads_every_document_of_the_training_split_once(corpus, tmp_path):
    stage = StageConfig(tokens=1)
    seen = []
    with closing(run_streams(corpus, tmp_path).open_stage(stage, 0, 1, DecisionLog.preview)) as stream:
        while (step := stream.next_step()).lanes_left:
            seen += [number for pack in step.packs for number in pack.id_hash.tolist()]
    assert len(seen) == len(set(seen)) == 120
    assert not (tmp_path / "decisions").exists()


def test_the_log_of_an_arm_lies_in_the_folder_of_its_cursor(corpus, tmp_path):
    streams = run_streams(corpus, tmp_path)
    other = ArmConfig(name="c", data={"pack_tokens": 40})
    stage = STAGE.model_copy(update={"arms": (*STAGE.arms, other)})
    with closing(streams.open_stage(stage, 0, 1, DecisionLog.open)) as stream:
        stream.supply()
    folders = {path.parent for path in (tmp_path / "decisions").rglob("000000.json")}
    assert folders == {tmp_path / "decisions" / "train" / name for name in ("a", "c")}
    assert [Path(str(streams.log_folder(stage, arm))).name for arm in stage.arms] == ["a", "a", "c"]


def test_a_corpus_that_is_not_committed_is_missed(tmp_path):
    with pytest.raises(DataError, match="is not a committed dataset"):
        check_corpora(run_streams(tmp_path / "none", tmp_path), [STAGE])


def test_each_corpus_that_an_earlier_recipe_left_is_told_once(corpus, tmp_path):
    write_corpus(tmp_path / "out" / "layout", num_train=24)
    other = ArmConfig(name="b", data={"corpus": str(corpus)})
    streams = run_streams(tmp_path / "out" / "layout", tmp_path)
    stages = [STAGE, StageConfig(tokens=1, arms=(ArmConfig(), other))]
    assert list(outdated_corpora(streams, stages)) == []
    write_record(Location.of(tmp_path / "out"), RunRecord(name="toy", stages=(), recipe={}))
    (line,) = outdated_corpora(streams, stages)
    assert line.startswith(f"{tmp_path / 'out' / 'layout'} may be out of date: no stage of the recipe")


def test_an_objective_of_pairs_needs_a_corpus_of_pairs(corpus, tmp_path):
    stage = StageConfig(name="preferences", tokens=1, arms=({"objective": {"kind": "dpo"}},))
    with pytest.raises(
        ConfigError, match=r"'dpo' of stage 'preferences' needs preference pairs, but .* has no columns"
    ):
        check_corpora(run_streams(corpus, tmp_path), [stage])


def test_a_cell_with_fewer_documents_than_lanes_is_refused_unless_others_take_its_share(tmp_path):
    write_corpus(tmp_path / "small", num_train=24)
    shares = {"shares": {"B3/*": 0.5, "*": 0.5}}
    with pytest.raises(ConfigError, match="6"):
        check_corpora(run_streams(tmp_path / "small", tmp_path, **shares), [STAGE])
    check_corpora(run_streams(tmp_path / "small", tmp_path, **shares, on_exhausted="redistribute"), [STAGE])


def test_an_arm_may_change_the_corpus(corpus, tmp_path):
    stage = StageConfig(tokens=1, arms=(ArmConfig(), ArmConfig(name="more", data={"corpus": str(tmp_path / "none")})))
    streams = run_streams(corpus, tmp_path)
    assert [streams.config_of(stage, arm).corpus for arm in stage.arms] == [str(corpus), str(tmp_path / "none")]
    with pytest.raises(DataError, match="none is not a committed dataset"):
        check_corpora(streams, [stage])
