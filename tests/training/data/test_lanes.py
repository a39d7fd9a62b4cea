import numpy as np
import pytest

from etl.errors import ConfigError
from etl.mixture.cluster_caps import ClusterCaps
from etl.storage.location import Location
from tests.training.corpora import write_corpus
from training.data import decisions
from training.data.lanes import RankStream
from training.data.plan import StreamConfig, StreamState, first_decision
from training.data.reader import CorpusReader


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "corpus")
    return CorpusReader(str(folder / "corpus"), "train")


def config_of(on_exhausted="stop"):
    return StreamConfig(
        corpus="c",
        pack_tokens=48,
        global_batch_packs=4,
        lanes=8,
        segment_tokens=600,
        lookahead_docs=8,
        on_exhausted=on_exhausted,
    )


def rank_stream(reader, config, rank=0, world=1, seed=7):
    return RankStream(reader, config, seed, first_decision(config, seed, reader.parts), rank, world)


def global_steps(reader, config, world, num_steps, seed=7):
    """The packs of each global step in slot order, and the lanes left, put together from all ranks."""
    streams = [rank_stream(reader, config, rank, world, seed) for rank in range(world)]
    steps = []
    for _ in range(num_steps):
        locals_ = [stream.next_step() for stream in streams]
        slots = [pack for packs in zip(*(local.packs for local in locals_), strict=True) for pack in packs]
        steps.append((slots, sum(local.lanes_left for local in locals_)))
    return steps


def content(steps):
    return [
        ([(p.input_ids.tolist(), p.target_kind.tolist(), p.id_hash.tolist()) for p in slots], left)
        for slots, left in steps
    ]


@pytest.mark.parametrize("on_exhausted", ["stop", "repeat"])
def test_the_stream_is_the_same_for_any_number_of_ranks(reader, on_exhausted):
    one, two, four = (content(global_steps(reader, config_of(on_exhausted), world, 20)) for world in (1, 2, 4))
    assert one == two == four


def test_a_stream_that_stops_gives_every_document_once_then_only_empty_packs(reader):
    steps = global_steps(reader, config_of(), 2, 40)
    ids = np.concatenate([pack.id_hash for slots, _ in steps for pack in slots])
    assert len(ids) == len(np.unique(ids)) == 120
    over = [number for number, (_, left) in enumerate(steps) if left == 0]
    assert over == list(range(over[0], 40))
    last_full = max(number for number, (slots, _) in enumerate(steps) if any(len(pack.id_hash) for pack in slots))
    assert over[0] == last_full + 1


def times_given(packs):
    """How often each document that is in some packs was given."""
    return np.unique(np.concatenate([pack.id_hash for pack in packs]), return_counts=True)[1]


@pytest.mark.parametrize("seed", range(8))
def test_a_stream_that_repeats_never_ends_and_a_lane_gives_its_documents_evenly(reader, seed):
    """However they are dealt: a lane goes round once an epoch, and look-ahead packing lets a document wait for one."""
    steps = global_steps(reader, config_of("repeat"), 1, 60, seed)
    assert all(left == 8 for _, left in steps)
    packs = [pack for slots, _ in steps for pack in slots]
    lanes = [times_given(packs[lane::8]) for lane in range(8)]
    assert sum(map(len, lanes)) == 120
    assert all(times.max() - times.min() <= 2 for times in lanes)


def test_lanes_of_about_one_length_give_documents_evenly(reader):
    # Lanes go round by themselves; how far they drift apart follows from the dealing, so from the seed.
    times = times_given([pack for slots, _ in global_steps(reader, config_of("repeat"), 1, 60, 3) for pack in slots])
    assert len(times) == 120
    assert times.max() - times.min() <= 3


@pytest.mark.parametrize("on_exhausted", ["stop", "repeat"])
@pytest.mark.parametrize("at", [1, 3, 4, 9])
def test_a_stream_goes_on_exactly_from_any_step_with_any_number_of_ranks(reader, on_exhausted, at):
    config = config_of(on_exhausted)
    whole = content(global_steps(reader, config, 1, 14))
    stream = rank_stream(reader, config)
    for _ in range(at):
        stream.next_step()
    resumed = [rank_stream(reader, config, rank, 2) for rank in range(2)]
    for other in resumed:
        other.seek(stream.state)
        assert other.state == stream.state
    rest = []
    for _ in range(at, 14):
        first, second = (other.next_step() for other in resumed)
        slots = [pack for pair in zip(first.packs, second.packs, strict=True) for pack in pair]
        rest.append((slots, first.lanes_left + second.lanes_left))
    assert content(rest) == whole[at:]


def test_the_state_is_the_segment_and_the_pack(reader):
    config = config_of()
    assert config.segment_packs == 16
    stream = rank_stream(reader, config)
    digest = first_decision(config, 7, reader.parts).digest
    states = [stream.state]
    for _ in range(5):
        stream.next_step()
        states.append(stream.state)
    expected = [(0, 0), (0, 4), (0, 8), (0, 12), (1, 0), (1, 4)]
    assert states == [StreamState(digest, segment, pack) for segment, pack in expected]


def test_another_stream_in_the_same_folder_is_refused_naming_what_differs(reader, tmp_path):
    folder = Location.of(tmp_path)
    decisions.commit(folder, first_decision(config_of(), 7, reader.parts))
    decisions.commit(folder, first_decision(config_of(), 7, reader.parts))
    with pytest.raises(ConfigError, match="seed was 7 and is 8"):
        decisions.commit(folder, first_decision(config_of(), 8, reader.parts))


def test_limits_of_clusters_need_a_corpus_with_clusters(reader):
    assert not reader.has_clusters
    with pytest.raises(ConfigError, match="no semantic clusters; list 'semantic'"):
        rank_stream(reader, config_of().model_copy(update={"clusters": ClusterCaps(cap=2)}))
