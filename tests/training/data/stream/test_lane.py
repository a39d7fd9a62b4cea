import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data.streams import index_of, stream
from training.data.stream.decisions import Policy
from training.data.stream.lane import Items, LaneDocuments, LanePlan, sorted_pieces
from training.data.stream.plan import LEFT_OUT

CELLS = ("a", "b", "c")


def plan_of(index, config, seed=0, lane=0):
    return LanePlan(LaneDocuments.of(lane, index, CELLS), config, seed)


def policy_of(config):
    return Policy(weights=config.weights, shares=config.shares)


def segments(index, config, num_packs, most=100, seed=0):
    """The segments of a lane until it has no more documents."""
    plan, found = plan_of(index, config, seed), []
    while not found or (found[-1].documents_left and len(found) < most):
        found.append(plan.segment(len(found), num_packs, policy_of(config)))
    return found


def documents_of(found):
    return np.concatenate([np.empty(0, np.int64), *(packed for segment in found for packed in segment.packs)])


# --- ranking and passes ----------------------------------------------------------------------------------------------


def test_heavier_documents_come_first_in_proportion_to_their_weight():
    # Each document fills a pack, so the first pack is the first of the ranking: 3 of 4 times the one of weight 3.
    index = index_of([100, 100], [1, 3])
    for weights, expected in (("sampling_weight", 0.75), ("uniform", 0.5)):
        config = stream(weights=weights)
        first = [documents_of(segments(index, config, 1, 1, seed))[0] for seed in range(800)]
        assert abs(np.mean(first) - expected) < 0.05


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 5))
def test_pieces_are_the_order_of_all_scores(scores, size):
    pieces = list(sorted_pieces(np.array(scores), size))
    assert np.array(scores)[np.concatenate(pieces)].tolist() == sorted(scores)


@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from(["stop", "redistribute"]),
    st.sampled_from([None, {"*": 1.0}, {"a": 1.0, "b": 2.0, "c": 3.0}]),
    st.integers(0, 5),
)
def test_a_lane_that_ends_reads_every_document_once_an_epoch(size, num_packs, epochs, on_exhausted, shares, seed):
    generator = np.random.default_rng(seed)
    index = index_of(generator.integers(2, 60, size), generator.uniform(0.5, 2, size), cell=np.arange(size) % 3)
    config = stream(on_exhausted="redistribute" if shares else on_exhausted, epochs=epochs, shares=shares)
    found = segments(index, config, num_packs)
    assert np.bincount(documents_of(found), minlength=len(index)).tolist() == [epochs] * len(index)
    assert [len(segment.packs) for segment in found[:-1]] == [num_packs] * (len(found) - 1)


@pytest.mark.parametrize("num_packs", [1, 3, 8])
def test_a_lane_that_repeats_reads_every_document_once_an_epoch_over_segments_of_any_length(num_packs):
    config = stream(on_exhausted="repeat", pack_tokens=10, lookahead_docs=3)
    read = documents_of(segments(index_of([10] * 6), config, num_packs, most=24))
    times = np.bincount(read[: len(read) // 6 * 6], minlength=6)
    assert times.max() - times.min() <= 1 + (num_packs > 1)


@pytest.mark.parametrize("shares", [None, {"a": 1.0, "b": 3.0}])
def test_how_many_epochs_are_ranked_at_once_changes_nothing(shares, monkeypatch):
    index = index_of([30, 20, 40, 25, 50], [1, 2, 3, 1, 2], cell=[0, 0, 1, 1, 0])
    config = stream(on_exhausted="repeat", shares=shares)
    found = []
    for piece in (1, 12, 4096):
        monkeypatch.setattr("training.data.stream.lane._EPOCHS_PIECE", piece)
        found.append(documents_of(segments(index, config, 7, most=9)).tolist())
    assert found[0] == found[1] == found[2]
    assert len(found[0]) > 100


def test_a_lane_without_documents_is_over_at_once():
    for on_exhausted in ("stop", "repeat", "redistribute"):
        (only,) = segments(index_of([1, 101]), stream(on_exhausted=on_exhausted), 3)
        assert only.packs == ()
        assert not only.documents_left


# --- shares ----------------------------------------------------------------------------------------------------------

SHARES = {"a": 0.6, "b": 0.3, "c": 0.1}


def tokens_of_cells(index, documents):
    """[documents, cells]: tokens of each cell up to and with each document."""
    each = np.zeros((len(documents), len(CELLS)), np.int64)
    each[np.arange(len(documents)), index.cell[documents]] = index.num_tokens[documents]
    return np.cumsum(each, axis=0)


@given(st.integers(0, 20), st.sampled_from([1, 2, 7, 50]), st.sampled_from(["stop", "repeat", "redistribute"]))
def test_shares_hold_to_within_a_document_at_every_place_and_over_segments(seed, num_packs, on_exhausted):
    generator = np.random.default_rng(seed)
    size, longest = 600, 50
    index = index_of(generator.integers(2, longest + 1, size), cell=np.sort(np.arange(size) % 3))
    # With one document seen ahead, packs keep the merged order.
    config = stream(shares=SHARES, lookahead_docs=1, on_exhausted=on_exhausted, pack_tokens=60)
    found = documents_of(segments(index, config, num_packs, most=100 // num_packs))
    given_tokens = tokens_of_cells(index, found)
    # The group "a" has enough for the first half.
    given_tokens = given_tokens[given_tokens[:, 0] < 4000]
    assert len(given_tokens) > 60
    shares = given_tokens / [SHARES[cell] for cell in CELLS]
    spread = longest / np.array([SHARES[cell] for cell in CELLS])
    assert (shares.max(axis=1) - shares.min(axis=1) <= 2 * spread.max()).all()
    exact = given_tokens.sum(axis=1, keepdims=True) * [SHARES[cell] for cell in CELLS]
    assert (np.abs(given_tokens - exact) <= 1.5 * longest).all()


def uneven():
    """Ten documents of 10 tokens in a, 100 in b, which both get half of the tokens."""
    return index_of([10] * 110, cell=[0] * 10 + [1] * 100), {"a": 1.0, "b": 1.0}


def test_stop_ends_a_lane_with_the_first_group_that_runs_out():
    index, shares = uneven()
    for num_packs in (1, 3, 100):
        found = segments(index, stream(shares=shares, on_exhausted="stop", pack_tokens=20), num_packs)
        counts = np.bincount(index.cell[documents_of(found)], minlength=2)
        assert counts[0] == 10
        assert abs(counts[1] - 10) <= 1


def test_stop_counts_epochs():
    index, shares = uneven()
    found = segments(index, stream(shares=shares, on_exhausted="stop", epochs=3, pack_tokens=20), 7)
    times = np.bincount(documents_of(found), minlength=110)
    assert times[:10].tolist() == [3] * 10
    assert abs(times[10:].sum() - 30) <= 1
    assert times[10:].max() == 1


def test_redistribute_gives_the_rest_to_the_other_groups():
    index, shares = uneven()
    found = documents_of(segments(index, stream(shares=shares, on_exhausted="redistribute", pack_tokens=20), 5))
    assert sorted(found) == list(range(110))
    first = np.bincount(index.cell[found[:18]], minlength=2)
    assert abs(first[0] - first[1]) <= 2
    assert (found[22:] >= 10).all()


def test_repeat_goes_round_in_the_small_group_and_keeps_the_shares():
    index, shares = uneven()
    found = documents_of(segments(index, stream(shares=shares, on_exhausted="repeat", pack_tokens=20), 5, most=19))
    times = np.bincount(found, minlength=110)
    assert times[:10].min() >= 9
    assert times[10:].max() == 1
    assert abs(times[:10].sum() - times[10:].sum()) <= 2


def test_a_cell_without_a_share_is_left_out_and_counted():
    index = index_of([10, 20, 30, 1, 10], cell=[0, 1, 2, 2, 1])
    config = stream(shares={"a": 1.0, "b": 0.0}, on_exhausted="redistribute")
    plan = plan_of(index, config)
    assert documents_of([plan.segment(0, 5, policy_of(config))]).tolist() == [0]
    counts = plan.left_out(policy_of(config))
    assert counts == {**dict.fromkeys(LEFT_OUT, 0), "no share": 3, "fewer than 2 tokens": 1}


def test_a_group_of_which_a_lane_has_nothing_leaves_its_share_to_the_others():
    config = stream(shares=SHARES, pack_tokens=20)
    found = documents_of(segments(index_of([10] * 30, cell=[0] * 20 + [1] * 10), config, 4))
    assert len(found) == 30


def test_new_shares_count_from_where_they_begin():
    index = index_of([10] * 2000, cell=np.arange(2000) % 2)
    plan = plan_of(index, stream(pack_tokens=10, lookahead_docs=1))
    before = documents_of([plan.segment(0, 100, Policy(shares={"a": 0.9, "b": 0.1}))])
    after = documents_of([plan.segment(1, 100, Policy(shares={"a": 0.2, "b": 0.8}))])
    assert abs((index.cell[before] == 0).sum() - 90) <= 1
    assert abs((index.cell[after] == 0).sum() - 20) <= 1


def test_lanes_do_not_all_begin_with_the_same_group():
    index = index_of([10] * 200, cell=np.arange(200) % 2)
    config = stream(shares={"a": 0.9, "b": 0.1}, pack_tokens=10, lookahead_docs=1)
    place = []
    for lane in range(200):
        found = plan_of(index, config, lane=lane).segment(0, 20, policy_of(config)).packs
        place.append(next(number for number, packed in enumerate(found) if index.cell[packed[0]] == 1))
    assert np.histogram(place, bins=3, range=(0, 10))[0].min() > 30


# --- clusters --------------------------------------------------------------------------------------------------------


def test_a_cluster_gives_an_epoch_no_more_than_its_cap_whatever_lanes_it_lies_in():
    """Clusters of 7, 3 and 1 documents dealt to two lanes; each document fills a pack, so reads come epoch by epoch."""
    sizes = (7, 3, 1)
    places = [(cluster, rank) for cluster, size in enumerate(sizes) for rank in range(size)]
    reads = {}
    for lane in range(2):
        mine = places[lane::2]
        config = stream(on_exhausted="repeat", pack_tokens=10, clusters={"cap": 2})
        index = index_of([10] * len(mine), clusters=[(sizes[c], r) for c, r in mine])
        reads[lane] = [mine[number] for number in documents_of(segments(index, config, 7, most=6))]
    for epoch in range(4):
        due = {(c, r) for c, r in places if (r - 2 * epoch) % sizes[c] < 2}
        assert all(sum(c == cluster for c, _ in due) == min(2, size) for cluster, size in enumerate(sizes))
        for lane in range(2):
            count = len([place for place in places[lane::2] if place in due])
            now, reads[lane] = reads[lane][:count], reads[lane][count:]
            assert sorted(now) == sorted(place for place in places[lane::2] if place in due)


def test_one_epoch_stops_at_the_cap():
    index = index_of([10] * 9, clusters=[(9, rank) for rank in range(9)])
    assert sorted(documents_of(segments(index, stream(clusters={"cap": 4}), 9))) == [0, 1, 2, 3]


def test_rare_clusters_have_their_share_from_the_start():
    clusters = [(1000, rank) for rank in range(1000)] + [(1, 0)] * 100
    index = index_of([10] * 1100, clusters=clusters)
    (segment,) = segments(index, stream(lookahead_docs=20, clusters={"tail_share": 0.25}), 30, most=1)
    rare = [np.mean(np.concatenate(segment.packs[start : start + 10]) >= 1000) for start in (0, 10, 20)]
    assert np.allclose(rare, 0.25, atol=0.03)
    assert np.mean(documents_of(segments(index, stream(lookahead_docs=20), 30, most=1)) >= 1000) < 0.15


# --- pairs -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 9), st.sampled_from(["stop", "repeat"]))
def test_the_sides_of_a_pair_lie_beside_each_other_chosen_first(num_pairs, seed, on_exhausted):
    generator = np.random.default_rng(seed)
    sides = generator.permutation([(1 + number, side) for number in range(num_pairs) for side in (0, 1)])
    index = index_of(generator.integers(2, 40, 2 * num_pairs), pairs=sides)
    found = segments(index, stream(on_exhausted=on_exhausted), 3, most=8)
    for packed in (packed for segment in found for packed in segment.packs):
        assert index.num_tokens[packed].sum() <= 100
        assert len(packed) % 2 == 0
        assert (index.side[packed] == np.tile([0, 1], len(packed) // 2)).all()
        assert (index.pair[packed[::2]] == index.pair[packed[1::2]]).all()
    if on_exhausted == "stop" and not found[-1].documents_left:
        assert sorted(documents_of(found)) == list(range(2 * num_pairs))


def test_pairs_that_cannot_be_used_are_left_out_with_both_sides():
    rows = [  # pair, side, tokens, supervised
        (0, -1, 10, 5),  # without a pair: by itself
        (1, 0, 10, 5), (1, 1, 20, 5),  # good
        (2, 0, 10, 5),  # no other side
        (3, 1, 10, 5), (3, 1, 11, 5),  # twice one side
        (4, 0, 60, 5), (4, 1, 41, 5),  # together longer than a pack
        (5, 0, 10, 5), (5, 1, 101, 5),  # one side longer, so both together
        (6, 0, 10, 0), (6, 1, 10, 5),  # one side without a supervised token
        (7, 0, 10, 5), (7, 1, 10, 5), (7, 1, 10, 5),  # three
        (8, 0, 60, 5), (8, 1, 40, 5),  # good, exactly a pack
    ]  # fmt: skip
    pairs, tokens, supervised = [row[:2] for row in rows], [row[2] for row in rows], [row[3] for row in rows]
    items, counts = Items.of(index_of(tokens, pairs=pairs, supervised=supervised), 100)
    assert items.documents.tolist() == [[0, -1], [1, 2], [15, 16]]
    assert items.num_tokens.tolist() == [10, 30, 100]
    assert items.expanded(np.array([2, 0])).tolist() == [15, 16, 0]
    assert {reason: count for reason, count in counts.items() if count} == {
        "longer than pack_tokens": 2 + 2,
        "no supervised token": 1,
        "pair without both sides": 1 + 2 + 1 + 3,
    }
