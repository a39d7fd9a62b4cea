"""How jobs say that they grow."""

import pytest

from etl.laws import AtMost, CandidatePairs, GroupCopies, GroupRows, Growth, Pieces, SameAs, With


@pytest.mark.parametrize(
    ("heaps", "factor", "tasks"),
    [
        ((0,), 1, 1),
        ((100,), 1, 1),
        ((101,), 1, 2),
        ((101,), 2, 3),
        ((1.0, 250.0), 1, 4),
        ((1, 250), 2.0, 6),
        ((), 1, 0),
    ],
)
def test_each_heap_has_a_task_for_so_many_bytes_and_at_least_one(heaps, factor, tasks):
    assert Pieces(heaps, 100).count(factor) == tasks


def test_a_count_of_whole_numbers_is_exact():
    """As a float, the quotient would be 1e15."""
    assert Pieces((3 * 10**17 + 1,), 300).count() == 10**15 + 1


@pytest.mark.parametrize(
    ("law", "columns"),
    [
        (GroupCopies("content"), ("content", "row")),
        (GroupRows("prompt"), ("prompt", "row")),
        (CandidatePairs(max_partners=4, block_pairs=10), ("band", "key", "row")),
        (With.LIVE, ()),
        (AtMost(3), ()),
    ],
)
def test_what_a_law_looks_at_is_kept_of_the_map_side(law, columns):
    assert Growth(law).looks_at == columns


def test_verdicts_have_all_rows_and_drop_by_a_law_of_their_own():
    assert Growth.of_marks("hits", With.LIVE) == Growth(With.INPUT, SameAs("hits"), With.INPUT, With.LIVE)
    assert Growth.all_by(AtMost(5), With.NOTHING) == Growth(AtMost(5), AtMost(5), AtMost(5), With.LIVE, With.NOTHING)
