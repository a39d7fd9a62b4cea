from contextlib import ExitStack, closing

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import ConfigError, DataError
from etl.hashing import hash_array
from etl.mixture.cluster_caps import ClusterCaps
from etl.storage.location import Location
from tests.datasets import write_dataset
from tests.services.process import wait_until
from tests.training.corpora import documents
from tests.training.data.streams import SEED, opener, pair_table, plan_of, small_stream, write_row_groups
from tests.training.teacher_tables import rows_of, write_teacher
from training.data.reader import CorpusReader, ReadConfig
from training.data.stream.cursor import PlannedStream
from training.data.stream.decisions import DecisionLog
from training.data.stream.lanes import FILLER, RankStream
from training.data.stream.plan import StreamState, initial_value

WORLDS = (1, 2, 3, 4, 5, 7, 8)
SHARES = {"B1/*": 0.4, "B3/*": 0.6}


def global_steps(open_stream, world, num_steps, state=None):
    """Of each global step: the packs by slot and the lanes left, put together from all ranks."""
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(open_stream(rank, world))) for rank in range(world)]
        for stream in streams:
            if state is not None:
                stream.seek(state)
                assert stream.state == state
        steps = []
        for _ in range(num_steps):
            found = [stream.next_step() for stream in streams]
            assert len({stream.state for stream in streams}) == 1
            assert {len(local.packs) for local in found} == {streams[0].config.micro_steps(world)}
            slots = [pair for local in found for pair in zip(local.slots, local.packs, strict=True)]
            assert all(len(pack.id_hash) == 0 for slot, pack in slots if slot == FILLER)
            own = sorted(((s, p) for s, p in slots if s != FILLER), key=lambda pair: pair[0])
            assert [slot for slot, _ in own] == list(range(streams[0].config.global_batch_packs))
            steps.append(([pack for _, pack in own], sum(local.lanes_left for local in found)))
        return steps


def content(steps):
    return [
        ([(p.input_ids.tolist(), p.target_kind.tolist(), p.id_hash.tolist()) for p in slots], left)
        for slots, left in steps
    ]


def ids_of(steps):
    return np.concatenate([pack.id_hash for slots, _ in steps for pack in slots])


@pytest.mark.parametrize("shares", [None, SHARES])
@pytest.mark.parametrize("on_exhausted", ["stop", "repeat", "redistribute"])
def test_the_stream_is_the_same_for_any_number_of_ranks(corpus, on_exhausted, shares):
    open_stream = opener(corpus, small_stream(on_exhausted=on_exhausted, shares=shares))
    first, *others = (content(global_steps(open_stream, world, 15)) for world in WORLDS)
    assert all(other == first for other in others)
    assert sum(len(pack[2]) for slots, _ in first for pack in slots) > 40


def test_a_stream_that_stops_gives_every_document_once_then_only_empty_packs(corpus):
    steps = global_steps(opener(corpus, small_stream()), 3, 40)
    ids = ids_of(steps)
    assert len(ids) == len(np.unique(ids)) == 120
    over = [number for number, (_, left) in enumerate(steps) if left == 0]
    assert over == list(range(over[0], 40))
    last_full = max(number for number, (slots, _) in enumerate(steps) if any(len(pack.id_hash) for pack in slots))
    assert over[0] == last_full + 1


@pytest.mark.parametrize("changes", [{"epochs": 3}, {"on_exhausted": "redistribute", "shares": SHARES, "epochs": 2}])
def test_every_document_is_given_once_an_epoch(corpus, changes):
    steps = global_steps(opener(corpus, small_stream(**changes)), 2, 100)
    assert steps[-1][1] == 0
    times = np.unique(ids_of(steps), return_counts=True)[1]
    assert times.tolist() == [changes["epochs"]] * 120


@pytest.mark.parametrize("lookahead_docs", [8, 1024])
def test_a_stream_that_repeats_never_ends_and_a_lane_gives_its_documents_evenly(corpus, lookahead_docs):
    open_stream = opener(corpus, small_stream(on_exhausted="repeat", lookahead_docs=lookahead_docs))
    steps = global_steps(open_stream, 1, 60)
    assert all(left == 8 for _, left in steps)
    packs = [pack for slots, _ in steps for pack in slots]
    given_times = [
        np.unique(np.concatenate([pack.id_hash for pack in packs[lane::8]]), return_counts=True)[1] for lane in range(8)
    ]
    assert sum(map(len, given_times)) == 120
    assert all(times.max() - times.min() <= 1 for times in given_times)


def tokens_of_cells(corpus, steps):
    """[cells]: tokens that some steps have of each cell."""
    with closing(CorpusReader(str(corpus), "train")) as reader:
        index = reader.read_index(reader.whole, SEED)
    order = np.argsort(index.id_hash)
    found = order[np.searchsorted(index.id_hash[order], ids_of(steps))]
    return np.bincount(index.cell[found], index.num_tokens[found])


def test_token_shares_hold_at_every_step(tmp_path):
    write_dataset(
        str(tmp_path), "layout", "corpus",
        {f"split=train/skill_bucket={cell}/ctx_bucket=C1": documents(num, seed)
         for seed, (cell, num) in enumerate({"B1": 900, "B2": 500, "B3": 400}.items())},
    )  # fmt: skip
    shares = {"B1/C1": 0.1, "B2/C1": 0.3, "B3/C1": 0.6}
    steps = global_steps(opener(tmp_path, small_stream(shares=shares, lookahead_docs=16)), 2, 40)
    exact = np.array(list(shares.values()))
    for number in range(1, 41):
        tokens = tokens_of_cells(tmp_path, steps[:number])
        # A lane is off by a document and by what waits in its packer; eight lanes' phases differ.
        assert np.abs(tokens - tokens.sum() * exact).max() < 8 * 40
    assert np.abs(tokens / tokens.sum() - exact).max() < 0.03


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"on_exhausted": "repeat", "shares": SHARES}])
def test_a_stream_goes_on_exactly_from_every_step_with_another_number_of_ranks(corpus, changes):
    open_stream = opener(corpus, small_stream(**changes))
    whole = content(global_steps(open_stream, 1, 12))
    with closing(open_stream(0, 1)) as stream:
        states = [stream.state]
        for _ in range(11):
            stream.next_step()
            states.append(stream.state)
    for at, state in enumerate(states):
        world = WORLDS[at % len(WORLDS)]
        assert content(global_steps(open_stream, world, 12 - at, state)) == whole[at:]


def test_the_state_is_the_segment_and_the_pack(corpus):
    config = small_stream()
    assert config.segment_packs == 16
    with closing(opener(corpus, config)(0, 1)) as stream:
        states = [stream.state]
        for _ in range(5):
            stream.next_step()
            states.append(stream.state)
    assert [(state.segment, state.pack) for state in states] == [(0, 0), (0, 4), (0, 8), (0, 12), (1, 0), (1, 4)]
    assert len({state.log_digest for state in states[:5]}) == 1
    assert states[5].log_digest != states[4].log_digest


def log_in(folder, corpus, config):
    with closing(CorpusReader(str(corpus), "train")) as reader:
        return DecisionLog.open(Location.of(folder), initial_value(config, SEED, reader.parts))


def test_a_decision_changes_the_stream_from_its_segment_on_and_nothing_before(corpus, tmp_path):
    config = small_stream(on_exhausted="repeat")
    plain = content(global_steps(opener(corpus, config), 1, 12))
    log_in(tmp_path, corpus, config).append(2, "phase", {"shares": {"B3/*": 1.0}})
    decided = [
        global_steps(opener(corpus, config, log=log_in(tmp_path, corpus, config)), world, 12) for world in (1, 3)
    ]
    assert content(decided[0]) == content(decided[1])
    assert content(decided[0])[:8] == plain[:8]
    assert tokens_of_cells(corpus, decided[0][8:])[0] == 0
    assert tokens_of_cells(corpus, global_steps(opener(corpus, config), 1, 12)[8:])[0] > 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"{segment:06d}.json" for segment in range(len(names))]


def test_a_checkpoint_of_another_log_is_refused(corpus, tmp_path):
    config = small_stream(on_exhausted="repeat")
    log_in(tmp_path, corpus, config).append(1, "weights", {"weights": "uniform"})
    with closing(opener(corpus, config)(0, 1)) as stream:
        for _ in range(6):
            stream.next_step()
        state = stream.state
    other = opener(corpus, config, log=log_in(tmp_path, corpus, config))(0, 1)
    with closing(other), pytest.raises(ConfigError, match="decisions up to segment 1 are not those"):
        other.seek(state)
    other = opener(corpus, config)(0, 1)
    with closing(other), pytest.raises(ConfigError, match="not those of the checkpoint"):
        other.seek(StreamState("0" * 32, 0, 0))


# --- the next segment ---------------------------------------------------------------------------------------------


def test_the_record_of_the_next_segment_is_taken_when_half_of_one_is_given_out(corpus, tmp_path):
    config = small_stream(on_exhausted="repeat")
    with closing(opener(corpus, config, log=log_in(tmp_path, corpus, config))(0, 1)) as stream:
        stream.next_step()
        assert len(list(tmp_path.iterdir())) == 1
        stream.next_step()
        wait_until((tmp_path / "000001.json").exists, "the record of the next segment", 30)
        assert (stream.state.segment, stream.state.pack) == (0, 8)


class FailingReader(CorpusReader):
    """Cannot read the second time."""

    times = 0

    def gather(self, index, chosen):
        self.times += 1
        if self.times == 2:
            raise DataError("the store is gone")
        return super().gather(index, chosen)


def test_an_error_of_the_next_segment_is_raised_when_that_is_asked_for(corpus):
    config = small_stream(on_exhausted="repeat")
    reader = FailingReader(str(corpus), "train", ReadConfig(workers=1))
    log = DecisionLog.preview(None, initial_value(config, SEED, reader.parts))
    with closing(RankStream(plan_of(reader, config, SEED, log), [reader])) as stream:
        for _ in range(4):
            stream.next_step()
        with pytest.raises(DataError, match="the store is gone"):
            stream.next_step()
        assert stream.state.segment == 1


# --- what is left out ------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_once_over_all_ranks(corpus):
    config = small_stream(pack_tokens=24, shares={"B1/*": 1.0})
    totals = []
    for world in (1, 3):
        with ExitStack() as stack:
            opened = [stack.enter_context(closing(opener(corpus, config)(rank, world))) for rank in range(world)]
            found = [stream.supply().left_out for stream in opened]
        totals.append({reason: sum(counts[reason] for counts in found) for reason in found[0]})
    assert totals[0] == totals[1]
    assert totals[0]["longer than pack_tokens"] > 20
    assert 5 < totals[0]["no share"] < 30


def planned_ids(plan, num_steps):
    """Hashes of the documents that some steps of a plan read, step by step."""
    stream, found = PlannedStream(plan), []
    for _ in range(num_steps):
        step = stream.next_step()
        packs = [(int(step.segment.lane[at]), step.segment.packs[at]) for at in step.positions]
        found.append([plan.own.index[lane].id_hash[documents].tolist() for lane, documents in packs])
    return found


def test_a_planned_stream_says_what_a_run_reads_without_reading_it(corpus):
    config = small_stream(epochs=2, pack_tokens=30)
    with closing(CorpusReader(str(corpus), "train")) as reader:
        plan = plan_of(reader, config, SEED, DecisionLog.preview(None, initial_value(config, SEED, reader.parts)))
    read = [[pack.id_hash.tolist() for pack in slots] for slots, _ in global_steps(opener(corpus, config), 1, 100)]
    assert planned_ids(plan, 100) == read
    supply = plan.supply()
    assert sum(len(pack) for step in read for pack in step) == 2 * supply.documents
    assert supply.documents + supply.left_out["longer than pack_tokens"] == 120


@pytest.mark.parametrize("world", [1, 3])
def test_with_a_teacher_only_documents_that_it_has_scored_are_read(corpus, tmp_path, world):
    scored = rows_of(corpus)[::2]
    write_teacher(tmp_path / "scores", scored)
    config = small_stream(teacher=str(tmp_path / "scores"))
    left_out, planned = 0, []
    for rank in range(world):
        with closing(CorpusReader(str(corpus), "train", teacher=config.teacher)) as reader:
            log = DecisionLog.preview(None, initial_value(config, SEED, reader.parts))
            plan = plan_of(reader, config, SEED, log, (rank, world))
        left_out += plan.supply().left_out["not scored by the teacher"]
        planned += [number for step in planned_ids(plan, 40) for pack in step for number in pack]
    assert sorted(planned) == sorted(hash_array(pa.array([row["id"] for row in scored]), SEED).tolist())
    assert left_out == 60


def test_limits_of_clusters_need_a_corpus_with_clusters(corpus):
    with pytest.raises(ConfigError, match="no semantic clusters; list 'semantic'"):
        opener(corpus, small_stream(clusters=ClusterCaps(cap=2)))(0, 1)


def test_a_share_of_documents_that_cannot_be_trained_on_is_refused_before_the_first_step(tmp_path):
    short, long = documents(200, 1, 20), documents(200, 2, 40)
    long = long.filter([row > 24 for row in long.column("n_tokens").to_pylist()])
    write_row_groups(tmp_path, {"B1/C1": short, "B3/C1": long}, 50)
    config = small_stream(pack_tokens=24, shares={"B1/*": 1, "B3/*": 1})
    with pytest.raises(
        ConfigError, match=r"'B3/\*' a share, but lane 0 has no such document.*'longer than pack_tokens': \d+"
    ):
        opener(tmp_path, config)(0, 2)
    with closing(opener(tmp_path, config.model_copy(update={"on_exhausted": "redistribute"}))(0, 2)) as stream:
        assert stream.next_step().lanes_left


def test_more_ranks_than_lanes_are_refused(corpus):
    with pytest.raises(ConfigError, match="fewer than the 9 processes"):
        opener(corpus, small_stream())(0, 9)


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_both_sides_of_a_pair_are_in_one_pack_for_any_number_of_ranks(tmp_path):
    write_row_groups(tmp_path, {"B1/C1": pair_table(60, 1), "B3/C1": pair_table(20, 2)}, 9)
    open_stream = opener(tmp_path, small_stream(pack_tokens=100))
    first, *others = (global_steps(open_stream, world, 30) for world in (1, 2, 3))
    assert all(content(other) == content(first) for other in others)
    assert first[-1][1] == 0
    assert len(ids_of(first)) == len(np.unique(ids_of(first))) == 160
    for pack in (pack for slots, _ in first for pack in slots if len(pack.id_hash)):
        assert pack.side.tolist() == [0, 1] * (len(pack.side) // 2)
        assert (pack.pair[::2] == pack.pair[1::2]).all()


# --- what is read ----------------------------------------------------------------------------------------------------


class CountingReader(CorpusReader):
    """Counts the row groups whose tokens are asked for."""

    def gather(self, index, chosen):
        self.groups |= set(zip(index.part[chosen].tolist(), index.row_group[chosen].tolist(), strict=True))
        return super().gather(index, chosen)


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 100))
def test_ranks_together_read_few_row_groups_twice(many_row_groups, seed):
    for world in (1, 2, 4):
        read = 0
        for rank in range(world):
            config = small_stream(segment_tokens=100_000, global_batch_packs=8)
            with closing(opener(many_row_groups, config, seed)(rank, world)) as stream:
                (reader,) = stream._readers
                reader.__class__ = CountingReader
                reader.groups = set()
                stream.next_step()
                read += len(reader.groups)
        assert 32 <= read <= 1.3 * 32


@pytest.fixture(scope="module")
def many_row_groups(tmp_path_factory):
    """Two cells of 16 row groups each."""
    folder = tmp_path_factory.mktemp("groups")
    write_row_groups(folder, {"B1/C1": documents(160, 1), "B3/C1": documents(320, 2).slice(0, 160)}, 10)
    return folder
