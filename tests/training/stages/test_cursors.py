"""Where stages and arms begin in a corpus that others have read: every document is counted. No model."""

import json
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import ConfigError
from etl.hashing import hash_array
from tests.training.corpora import write_corpus
from tests.training.data.streams import small_stream
from tests.training.teacher_tables import rows_of, write_teacher
from training.data.digest import stream_digest
from training.data.reader import ReadConfig
from training.data.stream.decisions import DecisionLog
from training.stages.cursors import FinishedStage, cursors_of, finished_stages
from training.stages.dry_run import plan_stages
from training.stages.schedule import ArmConfig, StageConfig
from training.stages.state import EndedStage
from training.stages.stream import RunStreams, check_corpora


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """400 documents to train on, and tables of scores over all of them and over 60 %."""
    folder = tmp_path_factory.mktemp("large")
    write_corpus(folder / "corpus", num_train=400)
    rows = rows_of(folder / "corpus")
    write_teacher(folder / "all", rows)
    write_teacher(folder / "part", [row for number, row in enumerate(rows) if number % 5 < 3])
    return folder


def num_tokens(folder, table=None):
    """Tokens of the training split, or of the documents that a table has."""
    rows = rows_of(folder / "corpus")
    return sum(row["n_tokens"] for number, row in enumerate(rows) if table != "part" or number % 5 < 3)


def streams_of(folder, output, **data):
    config = small_stream(corpus=str(folder / "corpus"), **{"lanes": 4, "segment_tokens": 400, **data})
    return RunStreams(config, ReadConfig(workers=1), 0, output / "decisions")


def stage_of(name, tokens, *arms, **data):
    return StageConfig(name=name, tokens=tokens, data=data, arms=arms or (ArmConfig(),))


def rescored(name, tokens, table=None, share=0.65):
    """The second stage of conf/training/distill.yaml."""
    data = {} if table is None else {"teacher": str(table)}
    arms = ArmConfig(name="weighted", share=share, data=data), ArmConfig(name="vanilla", share=1 - share)
    return stage_of(name, tokens, *arms)


def walk(streams, stages, world=1, cut=(), resize=None):
    """Train without a model: (stage, arm, ids of a pack) in order, as `world` ranks.

    `cut` are numbers of steps after which the run is stopped and begun again, then as `resize` ranks.
    """
    found, finished, step = [], [], 0
    for stage in stages:
        state, tokens, over = (0, {}), 0, False
        while not over:
            with ExitStack() as stack:
                ranks = [
                    streams.open_stage(stage, rank, world, DecisionLog.open, finished=finished) for rank in range(world)
                ]
                opened = [stack.enter_context(closing(one)) for one in ranks]
                for one in opened:
                    one.seek(state)
                while not over:
                    steps = [one.next_step() for one in opened]
                    assert len({drawn.arm.name for drawn in steps}) == 1
                    assert len({json.dumps(str(one.state)) for one in opened}) == 1
                    if sum(drawn.lanes_left for drawn in steps) == 0:
                        over = True
                        break
                    state = opened[0].state
                    slots = sorted(
                        (slot, pack.id_hash.tolist())
                        for drawn in steps
                        for slot, pack in zip(drawn.slots, drawn.packs, strict=True)
                        if len(pack.id_hash)
                    )
                    found += [(stage.name, steps[0].arm.name, ids) for _, ids in slots]
                    tokens += sum(pack.num_tokens for drawn in steps for pack in drawn.packs)
                    over, step = tokens >= stage.tokens, step + 1
                    if step in cut:
                        world = resize or world
                        break
        finished.append(FinishedStage(stage, state[1]))
    return found


def times(found):
    """How often each document was read."""
    return Counter(number for _, _, ids in found for number in ids)


# --- one after the other ---------------------------------------------------------------------------------------------


def test_three_stages_of_one_arm_cover_a_corpus_before_any_document_comes_twice(large, tmp_path):
    third = num_tokens(large) // 3
    stages = [stage_of("a", third), stage_of("b", third), stage_of("c", 3 * third)]
    found = walk(streams_of(large, tmp_path, on_exhausted="repeat", lookahead_docs=1024), stages)
    firsts, seen = [], Counter()
    for stage, _, ids in found:
        firsts += [stage] * sum(seen[number] == 0 for number in ids)
        seen.update(ids)
    assert set(firsts) == {"a", "b", "c"}
    assert len(seen) == 400
    # Lanes go round by themselves: of one, a document comes twice only when all of it has been read.
    first_two = times([one for one in found if one[0] != "c"])
    assert set(first_two.values()) == {1}
    assert max(seen.values()) - min(seen.values()) <= 1


def test_stages_read_every_document_exactly_once_until_there_is_none(large, tmp_path):
    third = num_tokens(large) // 3
    stages = [stage_of("a", third), stage_of("b", third, pack_tokens=64), stage_of("c", 10**9)]
    found = walk(streams_of(large, tmp_path), stages)
    assert times(found) == dict.fromkeys(times(found), 1)
    assert len(times(found)) == 400


@pytest.mark.parametrize("table", [None, "all", "part"])
def test_stages_of_the_shape_of_distill_read_every_document_exactly_once(large, tmp_path, table):
    total = num_tokens(large)
    middle = int(0.5 * total)
    stages = [
        stage_of("warm_start", int(0.3 * total)),
        rescored("rescored", middle, large / table if table else None),
        stage_of("anneal", total),
    ]
    found = walk(streams_of(large, tmp_path), stages)
    assert times(found) == dict.fromkeys(times(found), 1)
    assert len(times(found)) == 400
    tokens = Counter(stage for stage, _, _ in found)
    assert set(tokens) == {"warm_start", "rescored", "anneal"}
    arms = Counter(arm for stage, arm, _ in found if stage == "rescored")
    assert arms["weighted"] / sum(arms.values()) == pytest.approx(0.65, abs=0.07)


def test_no_document_comes_twice_before_all_have_come_that_the_arm_whose_turn_it_is_can_read(large, tmp_path):
    """Nor does the arm that reads all take what the other one will need, while there is something else."""
    stage = rescored("mix", 2 * num_tokens(large), large / "part", share=0.5)
    found = walk(streams_of(large, tmp_path, on_exhausted="repeat", lanes=1, lookahead_docs=1024), [stage])
    ids = [row["id"] for number, row in enumerate(rows_of(large / "corpus")) if number % 5 < 3]
    scored = set(hash_array(pa.array(ids), 0).tolist())
    assert times([one for one in found if one[1] == "weighted"]).keys() <= scored
    seen = Counter()
    for _, arm, ids in found:
        readable = scored if arm == "weighted" else times(found).keys()
        # What waits in the packer's look-ahead or for the other arm's turns in the segment, 12 packs, comes later.
        assert not any(seen[number] for number in ids) or len(readable - seen.keys()) <= 24
        seen.update(ids)
    vanilla = times([one for one in found[: len(found) // 8] if one[1] == "vanilla"])
    assert len(vanilla) > 20
    assert not vanilla.keys() & scored


# --- arms side by side -----------------------------------------------------------------------------------------------


def test_two_arms_of_equal_data_take_the_packs_of_a_single_arm_in_turn(large, tmp_path):
    tokens = num_tokens(large)
    single = walk(streams_of(large, tmp_path / "one"), [stage_of("mix", tokens)])
    double = walk(streams_of(large, tmp_path / "two"), [rescored("mix", tokens)])
    assert [ids for _, _, ids in double] == [ids for _, _, ids in single]
    assert {arm for _, arm, _ in double} == {"weighted", "vanilla"}


def test_arms_with_other_keys_have_cursors_of_their_own_from_where_the_stage_began(large, tmp_path):
    other = ArmConfig(name="long", data={"pack_tokens": 64})
    stages = [stage_of("first", 2000), stage_of("both", 4000, ArmConfig(), other), stage_of("last", 10**9)]
    found = walk(streams_of(large, tmp_path), stages)
    of_arm = {(stage, arm): times([one for one in found if one[:2] == (stage, arm)]) for stage, arm, _ in found}
    first, main, long, last = of_arm.values()
    assert not first.keys() & (main.keys() | long.keys())
    # Both read on from there, so they meet; the stage after them has what neither has read.
    assert main.keys() & long.keys()
    assert last.keys() == times(found).keys() - first.keys() - main.keys() - long.keys()


def test_arms_of_one_corpus_in_two_places_share_a_cursor(large, tmp_path):
    (tmp_path / "link").symlink_to(large / "corpus")
    data = [small_stream(corpus=str(large / "corpus")), small_stream(corpus=str(tmp_path / "link"))]
    stage = rescored("mix", 1000)
    assert [cursor.name for cursor in cursors_of(stage, data)] == ["weighted"]
    apart = [data[0], data[1].model_copy(update={"lanes": 2})]
    assert [cursor.name for cursor in cursors_of(stage, apart)] == ["weighted", "vanilla"]


# --- fresh -----------------------------------------------------------------------------------------------------------


def test_fresh_arms_begin_anew_each_in_an_order_of_its_own_and_count_for_nobody(large, tmp_path):
    tokens = num_tokens(large) // 4
    both = stage_of("both", 2 * tokens, ArmConfig(name="a"), ArmConfig(name="b"), order="fresh")
    stages = [stage_of("first", tokens), both, stage_of("second", 2 * tokens, order="fresh"), stage_of("last", 10**9)]
    found = walk(streams_of(large, tmp_path), stages)
    first_packs = [
        [ids for stage, arm, ids in found if (stage, arm) == key][:8]
        for key in (("first", "main"), ("both", "a"), ("both", "b"), ("second", "main"))
    ]
    assert all(one != other for number, one in enumerate(first_packs) for other in first_packs[:number])
    continued = times([one for one in found if one[0] in ("first", "last")])
    assert continued == dict.fromkeys(continued, 1)
    assert len(continued) == 400


# --- ranks, resuming -------------------------------------------------------------------------------------------------


KINDS = ("one", "two", "all", "part")
"""Of a stage: a single arm, or two arms with equal data, with a table over the corpus, with one over a part of it."""


@settings(max_examples=8, deadline=None)
@given(
    parts=st.lists(st.tuples(st.floats(0.05, 0.5), st.sampled_from(KINDS)), min_size=1, max_size=3),
    ranks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    cut=st.sets(st.integers(1, 40), max_size=2),
    on_exhausted=st.sampled_from(["stop", "repeat"]),
)
def test_stages_are_the_same_for_any_ranks_stopped_anywhere(large, tmp_path_factory, parts, ranks, cut, on_exhausted):
    total = num_tokens(large)
    stages = [
        stage_of(f"s{number}", int(part * total))
        if kind == "one"
        else rescored(f"s{number}", int(part * total), None if kind == "two" else large / kind)
        for number, (part, kind) in enumerate(parts)
    ]
    streams = [streams_of(large, tmp_path_factory.mktemp("run"), on_exhausted=on_exhausted) for _ in range(2)]
    whole = walk(streams[0], stages)
    assert walk(streams[1], stages, ranks[0], cut, ranks[1]) == whole
    assert on_exhausted == "repeat" or max(times(whole).values()) == 1


def test_the_order_of_a_first_stage_of_one_arm_is_the_one_of_all_versions(corpus, tmp_path):
    streams = RunStreams(small_stream(corpus=str(corpus)), ReadConfig(workers=1), 3, tmp_path / "decisions")

    def open_stage(rank, world):
        return streams.open_stage(stage_of("train", 1), rank, world, DecisionLog.open)

    assert stream_digest(open_stage, 2, 12) == "ab142e4bc8d70defeffb4a762f9ce72670462d9618d9fa2f39493de7bcba1c1b"
    record = json.loads((tmp_path / "decisions/train/main/000000.json").read_text())
    assert set(record["value"]) == {"recipe", "seed", "corpus", "cells"}


# --- what is refused -------------------------------------------------------------------------------------------------


def test_stages_of_unequal_lanes_are_refused_with_both_remedies_unless_one_is_fresh(large, tmp_path):
    streams = streams_of(large, tmp_path)
    first = stage_of("first", 100)
    with pytest.raises(ConfigError, match=r"lanes is 2 and the other's 4; give both the same, or .*order: fresh"):
        check_corpora(streams, [first, stage_of("second", 100, lanes=2)])
    check_corpora(streams, [first, stage_of("second", 100, lanes=2, order="fresh")])


OLD = r"`continue` .*`fresh` .*train again in another `output`"


def test_a_checkpoint_of_the_old_order_in_a_later_stage_is_refused():
    stages = [stage_of("first", 100), stage_of("second", 100)]
    with pytest.raises(ConfigError, match=f"is in stage 2, and .*{OLD}"):
        finished_stages(stages, 1, ())
    assert finished_stages(stages, 0, ()) == ()
    ended = EndedStage("first", 3, 110, {}, "target", 0.1, 100)
    assert finished_stages(stages, 1, (ended,)) == (FinishedStage(stages[0], {}),)


def test_a_checkpoint_of_the_old_order_in_a_stage_of_two_arms_is_refused(large, tmp_path):
    streams, stage = streams_of(large, tmp_path), rescored("mix", 1000, large / "part")
    with closing(streams.open_stage(stage, 0, 1, DecisionLog.open)) as opened:
        opened.next_step()
        _, states = opened.state
    with (
        closing(streams.open_stage(stage, 0, 1, DecisionLog.open)) as opened,
        pytest.raises(ConfigError, match=f"place of its own for arm 'vanilla' of stage 'mix'.*{OLD}"),
    ):
        opened.seek((2, {**states, "vanilla": replace(states["weighted"], pack=4)}))


def test_a_log_of_the_old_order_is_refused(large, tmp_path):
    streams, stage = streams_of(large, tmp_path), rescored("mix", 1000, large / "part")
    alone = StageConfig(name="mix", tokens=1000, arms=stage.arms[:1])
    for one, error in ((alone, None), (stage, f"started with another stream .*{OLD}")):
        with closing(streams.open_stage(one, 0, 1, DecisionLog.open)) as opened:
            if error is None:
                opened.next_step()
            else:
                with pytest.raises(ConfigError, match=error):
                    opened.next_step()


def test_a_log_of_another_beginning_is_refused(large, tmp_path):
    streams = streams_of(large, tmp_path)
    first, second = stage_of("first", 500), stage_of("second", 500)
    walk(streams, [first, second])
    longer = plan_stages(streams, [stage_of("first", 900)])[0].finished
    with (
        closing(streams.open_stage(second, 0, 1, DecisionLog.open, finished=[longer])) as opened,
        pytest.raises(ConfigError, match=r"after was .* and is "),
    ):
        opened.next_step()
