import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.data.packing import pack


def packs_of(lengths, capacity, lookahead, block=7):
    lengths = np.array(lengths, np.int64)
    numbers = np.arange(len(lengths))
    blocks = (numbers[start : start + block] for start in range(0, len(numbers), block))
    return [found.tolist() for found in pack(blocks, lengths, capacity, lookahead)]


@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 50), st.integers(1, 12))
def test_every_document_lies_whole_in_exactly_one_pack_and_none_overflows(lengths, capacity, lookahead):
    packs = packs_of(lengths, capacity, lookahead)
    assert sorted(itertools.chain(*packs)) == list(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in found) <= capacity for found in packs)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(1, 12), st.integers(1, 9))
def test_packs_do_not_depend_on_how_the_stream_is_cut_into_blocks(lengths, lookahead, block):
    assert packs_of(lengths, 30, lookahead, block) == packs_of(lengths, 30, lookahead, 1000)


@given(st.lists(st.integers(1, 20), min_size=20, max_size=60), st.integers(1, 10))
def test_a_pack_depends_only_on_the_documents_seen_so_far(lengths, lookahead):
    first = packs_of(lengths, 30, lookahead)[0]
    assert packs_of(lengths[:lookahead], 30, lookahead)[0] == first


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(1, 12))
def test_the_oldest_waiting_document_opens_each_pack(lengths, lookahead):
    waiting = set(range(len(lengths)))
    for found in packs_of(lengths, 30, lookahead):
        assert found[0] == min(waiting)
        waiting -= set(found)


def test_the_gap_is_filled_by_the_pair_that_fits_best():
    # 10 opens; of the rest 7 + 13 fills the gap of 20 exactly, where the largest single one, 18, leaves 2.
    assert packs_of([10, 18, 7, 13, 3], capacity=30, lookahead=5) == [[0, 3, 2], [1, 4]]


def test_an_endless_stream_is_packed_lazily():
    blocks = (np.array([0, 1]) for _ in itertools.count())
    stream = pack(blocks, np.array([6, 4]), 10, 2)
    assert [next(stream).tolist() for _ in range(3)] == [[0, 1]] * 3
