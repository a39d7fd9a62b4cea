import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.mixture.cluster_caps import ClusterCaps, first_epoch, in_turn, next_epoch, with_tail

CLUSTERS = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def rows_of(sizes):
    size = np.repeat(sizes, sizes).astype(np.int64)
    rank = np.concatenate([np.arange(n) for n in sizes]).astype(np.int64)
    return np.repeat(np.arange(len(sizes)), sizes), size, rank


@given(CLUSTERS, st.integers(1, 14))
def test_an_epoch_uses_exactly_the_cap_of_a_cluster_and_all_rows_have_their_turn(sizes, cap):
    cluster, size, rank = rows_of(sizes)
    uses = np.stack([in_turn(size, rank, epoch, cap) for epoch in range(13)])
    for epoch in range(13):
        used = np.bincount(cluster[uses[epoch]], minlength=len(sizes))
        assert used.tolist() == [min(cap, n) for n in sizes]
    assert all(uses[: -(-n // cap), cluster == k].any(axis=0).all() for k, n in enumerate(sizes))


@given(CLUSTERS, st.integers(1, 14))
def test_next_epoch_skips_to_the_next_turn(sizes, cap):
    _, size, rank = rows_of(sizes)
    uses = np.stack([in_turn(size, rank, epoch, cap) for epoch in range(40)])
    assert first_epoch(rank, cap).tolist() == uses.argmax(axis=0).tolist()
    for epoch in range(20):
        mine = np.flatnonzero(uses[epoch])
        expected = epoch + 1 + uses[epoch + 1 :, mine].argmax(axis=0)
        assert next_epoch(size[mine], rank[mine], epoch, cap).tolist() == expected.tolist()


def test_the_best_ranks_come_first():
    assert in_turn(np.full(5, 5), np.arange(5), 0, 2).tolist() == [True, True, False, False, False]
    assert in_turn(np.full(5, 5), np.arange(5), 2, 2).tolist() == [True, False, False, False, True]


@given(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=60),
    st.floats(0.01, 0.9),
    st.randoms(use_true_random=False),
)
def test_rare_rows_have_their_share_at_every_common_row(rows, share, random):
    tokens = np.array([size for size, _ in rows], np.int64)
    rare = np.array([is_rare for _, is_rare in rows])
    order = np.array(random.sample(range(len(rows)), len(rows)), np.int64)
    found = with_tail(order, tokens, rare, share)
    for kind in (rare, ~rare):
        assert found[kind[found]].tolist() == order[kind[order]].tolist()
    so_far, total = np.cumsum(np.where(rare[found], tokens[found], 0)), np.cumsum(tokens[found])
    for place, row in enumerate(found):
        if not rare[row] and rare[found[place:]].any():
            before = total[place] - tokens[row]
            assert so_far[place] >= share * before - 1e-6


def test_order_stays_where_rare_rows_have_enough():
    order = np.array([3, 0, 2, 1])
    rare = np.array([True, False, False, True])
    assert with_tail(order, np.full(4, 10), rare, 0.3).tolist() == [3, 0, 2, 1]
    assert with_tail(order, np.full(4, 10), rare, 0.0).tolist() == [3, 0, 2, 1]


def test_rare_rows_are_moved_no_further_than_needed():
    """Common rows first by rank; with a quarter reserved, every fourth row is a rare one."""
    order = np.arange(9)
    rare = np.arange(9) >= 6
    assert with_tail(order, np.full(9, 10), rare, 0.25).tolist() == [6, 0, 1, 2, 7, 3, 4, 5, 8]


def test_a_section_that_does_nothing_is_refused():
    with pytest.raises(ValueError, match="neither cap nor tail_share"):
        ClusterCaps()
