import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import ConfigError, DataError
from etl.storage.manifest import Part
from training.data.plan import (
    DocumentIndex,
    LanePlan,
    StreamConfig,
    deal_lanes,
    first_decision,
    left_out,
    split_parts,
    turns,
    uniform,
)


def part(path, row_groups, tokens):
    rows = sum(row_groups)
    return Part(split=0, path=path, rows=rows, bytes=1, tokens=tokens, sha256=path, row_groups=tuple(row_groups))


def stream(**changes):
    values = {"corpus": "c", "pack_tokens": 100, "global_batch_packs": 2, "lanes": 2, "lookahead_docs": 4}
    return StreamConfig(**{**values, **changes})


def index_of(num_tokens, weight=None, clusters=None):
    """Documents; `clusters` are (size, rank) of each."""
    size = len(num_tokens)
    clusters = np.array([(1, 0)] * size if clusters is None else clusters, np.int32).reshape(size, 2)
    return DocumentIndex(
        part=np.zeros(size, np.int32),
        row_group=np.zeros(size, np.int32),
        row=np.arange(size, dtype=np.int32),
        num_tokens=np.array(num_tokens, np.int64),
        weight=np.ones(size) if weight is None else np.array(weight, np.float64),
        id_hash=np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        cluster_size=clusters[:, 0],
        cluster_rank=clusters[:, 1],
    )


@given(
    st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_lanes_own_every_row_exactly_once(parts, lanes, seed):
    parts = [part(f"split=train/{i}", groups, 17 * sum(groups)) for i, groups in enumerate(parts)]
    owned = [
        (unit.part, unit.row_group, row)
        for lane in deal_lanes(parts, lanes, seed)
        for unit in lane
        for row in range(unit.offset, parts[unit.part].row_groups[unit.row_group], unit.stride)
    ]
    expected = [(i, g, row) for i, p in enumerate(parts) for g, rows in enumerate(p.row_groups) for row in range(rows)]
    assert sorted(owned) == expected


def test_lanes_are_balanced_and_large_corpora_keep_row_groups_whole():
    parts = [part(f"split=train/{i}", [100] * 50, 5_000_000 + 10_000 * i) for i in range(8)]
    lanes = deal_lanes(parts, 16, seed=0)
    loads = [sum(unit.num_tokens for unit in lane) for lane in lanes]
    assert max(loads) / min(loads) < 1.1
    assert {unit.stride for lane in lanes for unit in lane} == {1}
    small = deal_lanes([part("split=train/0", [200], 9000), part("split=train/1", [7], 300)], 16, seed=0)
    loads = [sum(unit.num_tokens for unit in lane) for lane in small]
    assert max(loads) / min(loads) < 1.25


def test_lanes_depend_on_the_seed_and_not_on_the_order_of_parts():
    parts = [part(f"split=train/{i}", [10, 10], 1000) for i in range(8)]
    assert deal_lanes(split_parts(parts, "train"), 4, 0) == deal_lanes(split_parts(parts[::-1], "train"), 4, 0)
    assert deal_lanes(parts, 4, 0) != deal_lanes(parts, 4, 1)


def test_a_split_without_parts_is_refused():
    with pytest.raises(DataError, match="split=validation"):
        split_parts([part("split=train/0", [1], 1)], "validation")


def test_documents_that_can_never_be_trained_on_are_counted_by_reason():
    out, counts = left_out(index_of([101, 100, 1, 50, 2, 200], [1, 1, 1, 0, 1, -1]), 100)
    assert out.tolist() == [True, False, True, True, False, True]
    assert counts == {"longer than pack_tokens": 2, "fewer than 2 tokens": 1, "weight is not positive": 1}


def test_uniform_is_uniform_and_differs_by_seed_epoch_and_segment():
    ids = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    u = uniform(ids, 1, 2, 3)
    assert 0 < u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.01
    for other in ((9, 2, 3), (1, 9, 3), (1, 2, 9)):
        assert abs(np.corrcoef(u, uniform(ids, *other))[0, 1]) < 0.03


def test_heavier_documents_come_first_in_proportion_to_their_weight():
    # Each document fills a pack, so the first pack is the first of the ranking: 3 of 4 times the one of weight 3.
    first = [
        int(LanePlan(index_of([100, 100], [1, 3]), stream(), seed).segment(0, 1).packs[0][0]) for seed in range(800)
    ]
    assert abs(np.mean(first) - 0.75) < 0.04


@pytest.mark.parametrize("num_packs", [1, 3, 8])
def test_each_epoch_reads_every_document_once_over_segments_of_any_length(num_packs):
    config = stream(on_exhausted="repeat", pack_tokens=10, lookahead_docs=3)
    plan = LanePlan(index_of([10] * 6), config, 0)
    read = [int(packed[0]) for number in range(24) for packed in plan.segment(number, num_packs).packs]
    times = np.bincount(read[: len(read) // 6 * 6], minlength=6)
    assert times.max() - times.min() <= 1 + (num_packs > 1)
    assert sum(times) == len(read) // 6 * 6


def test_a_lane_that_stops_reads_every_document_once_and_says_when_it_is_done():
    generator = np.random.default_rng(1)
    plan = LanePlan(index_of(generator.integers(2, 60, 50)), stream(), 0)
    read, number = [], 0
    while True:
        segment = plan.segment(number, 3)
        read += np.concatenate(segment.packs).tolist()
        number += 1
        if not segment.documents_left:
            break
    assert sorted(read) == list(range(50))
    assert plan.segment(number, 3).packs == ()


def test_a_cluster_gives_an_epoch_no_more_than_its_cap_whatever_lanes_it_lies_in():
    """Clusters of 7, 3 and 1 documents dealt to two lanes; each document fills a pack, so reads come epoch by epoch."""
    sizes = (7, 3, 1)
    places = [(cluster, rank) for cluster, size in enumerate(sizes) for rank in range(size)]
    reads = {}
    for lane in range(2):
        mine = places[lane::2]
        config = stream(on_exhausted="repeat", pack_tokens=10, clusters={"cap": 2})
        plan = LanePlan(index_of([10] * len(mine), clusters=[(sizes[c], r) for c, r in mine]), config, 0)
        reads[lane] = [mine[int(p[0])] for number in range(6) for p in plan.segment(number, 7).packs]
    for epoch in range(4):
        due = {(c, r) for c, r in places if (r - 2 * epoch) % sizes[c] < 2}
        assert all(sum(c == cluster for c, _ in due) == min(2, size) for cluster, size in enumerate(sizes))
        for lane in range(2):
            count = len([place for place in places[lane::2] if place in due])
            now, reads[lane] = reads[lane][:count], reads[lane][count:]
            assert sorted(now) == sorted(place for place in places[lane::2] if place in due)


def test_one_epoch_stops_at_the_cap():
    plan = LanePlan(index_of([10] * 9, clusters=[(9, rank) for rank in range(9)]), stream(clusters={"cap": 4}), 0)
    segment = plan.segment(0, 9)
    assert sorted(np.concatenate(segment.packs)) == [0, 1, 2, 3]
    assert not segment.documents_left
    assert plan.segment(1, 9).packs == ()


def test_rare_clusters_have_their_share_from_the_start():
    clusters = [(1000, rank) for rank in range(1000)] + [(1, 0)] * 100
    config = stream(pack_tokens=100, lookahead_docs=20, clusters={"tail_share": 0.25})
    segment = LanePlan(index_of([10] * 1100, clusters=clusters), config, 0).segment(0, 30)
    rare = [np.mean(np.concatenate(segment.packs[start : start + 10]) >= 1000) for start in (0, 10, 20)]
    assert np.allclose(rare, 0.25, atol=0.03)
    plain = LanePlan(index_of([10] * 1100, clusters=clusters), stream(pack_tokens=100, lookahead_docs=20), 0)
    assert np.mean(np.concatenate(plain.segment(0, 30).packs) >= 1000) < 0.15


def test_segments_are_whole_steps():
    assert stream(segment_tokens=1).segment_packs == 2
    assert stream(segment_tokens=401).segment_packs == 6


@given(st.integers(1, 9), st.integers(0, 40), st.integers(0, 40))
def test_turns_counts_the_packs_of_a_lane(lanes, start, size):
    for lane in range(lanes):
        assert turns(lane, lanes, start, start + size) == sum(p % lanes == lane for p in range(start, start + size))


def test_the_first_decision_covers_recipe_seed_and_corpus_but_not_where_it_lies():
    parts = [part("split=train/0", [10], 100)]
    digest = first_decision(stream(), 0, parts).digest
    assert first_decision(stream(corpus="elsewhere"), 0, parts).digest == digest
    assert first_decision(stream(lookahead_docs=5), 0, parts).digest != digest
    assert first_decision(stream(), 1, parts).digest != digest
    assert first_decision(stream(clusters={"cap": 3}), 0, parts).digest != digest
    assert first_decision(stream(), 0, [part("split=train/1", [10], 100)]).digest != digest


def test_a_world_that_cannot_share_evenly_is_refused():
    stream().check_world(2)
    with pytest.raises(ConfigError, match=r"data\.global_batch_packs is 2, which 4 processes"):
        stream().check_world(4)
