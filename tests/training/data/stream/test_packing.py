import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.lengths import bucket, efficiency, log_normal, seed_mix
from training.data.stream.packing import TRIAL_STRIDE, once, pack


def packs_of(lengths, capacity, lookahead, block=7):
    lengths = np.array(lengths, np.int64)
    numbers = np.arange(len(lengths))
    blocks = (once(numbers[start : start + block]) for start in range(0, len(numbers), block))
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
    blocks = (np.array([[0, turn], [1, turn]]) for turn in itertools.cycle([0, 1]))
    stream = pack(blocks, np.array([6, 4]), 10, 2)
    assert [next(stream).tolist() for _ in range(3)] == [[0, 1]] * 3


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 12), st.integers(2, 5), st.integers(1, 9))
def test_no_document_comes_again_before_every_other_one_came(lengths, lookahead, num_passes, block):
    rng = np.random.default_rng(len(lengths))
    passes = [
        np.stack([rng.permutation(len(lengths)), np.full(len(lengths), n % 2)], axis=1) for n in range(num_passes)
    ]
    stream = np.concatenate(passes)
    blocks = (stream[start : start + block] for start in range(0, len(stream), block))
    packs = [found.tolist() for found in pack(blocks, np.array(lengths), 30, lookahead)]
    assert all(sum(lengths[number] for number in found) <= 30 for found in packs)
    came = list(itertools.chain(*packs))
    for start in range(0, len(came), len(lengths)):
        assert sorted(came[start : start + len(lengths)]) == list(range(len(lengths)))


def test_the_next_pass_fills_the_pack_in_which_one_ends():
    stream = np.array([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1], [0, 0], [1, 0], [2, 0]])
    packs = [found.tolist() for found in pack(iter([stream]), np.array([3, 3, 3]), 15, 1024)]
    assert packs == [[0, 1, 2, 2, 0], [1, 0, 1, 2]]


def test_groups_go_round_each_on_their_own():
    # Passes 0 and 1 are of documents 0 and 1, pass 2 is of all others: those go on beside them.
    small = [[0, 0], [1, 0], [0, 1], [1, 1]]
    stream = np.array([row for n in range(8) for row in ([2 + n, 2], small[n % 4])])
    packs = [found.tolist() for found in pack(iter([stream]), np.ones(10, np.int64), 4, 6, num_passes=4)]
    came = list(itertools.chain(*packs))
    assert sorted(came[number] for number in range(len(came)) if came[number] > 1) == list(range(2, 10))
    of_small = [number for number in came if number < 2]
    assert [sorted(of_small[start : start + 2]) for start in range(0, 8, 2)] == [[0, 1]] * 4


# --- the same by lists ---------------------------------------------------------------------------------------------


def reference_fill(waiting, capacity, threshold):
    """Take one pack out of a list of (length, age, number); the documents of the pack in order."""
    taken = [min(waiting, key=lambda item: item[1])]
    waiting.remove(taken[0])
    while gap := capacity - sum(item[0] for item in taken):
        fits = sorted(item for item in waiting if item[0] <= gap)
        if not fits:
            break
        if len(fits) > 1 and fits[-1][0] + fits[-2][0] < gap:
            best = [min(fits, key=lambda item: item[1])]
        else:
            best = fits[-1:]
            pairs = [
                (low, high)
                for low, high in itertools.combinations([item for item in fits if item[0] <= threshold], 2)
                if low[0] + high[0] <= gap
            ]
            if taken[0][0] <= threshold and best[0][0] < gap and pairs:
                total = max(low[0] + high[0] for low, high in pairs)
                # Of the pairs with the best sum that with the shortest (oldest) one, and the youngest partner for it.
                low = min(low for low, high in pairs if low[0] + high[0] == total)
                high = max(high for other, high in pairs if other == low and low[0] + high[0] == total)
                if total > best[0][0]:
                    best = [high, low]
        taken += best
        for item in best:
            waiting.remove(item)
    return taken


def reference_threshold(waiting, capacity, stride):
    def num_packs(threshold):
        rest = waiting[::stride]
        return sum(1 for _ in iter(lambda: rest and reference_fill(rest, capacity, threshold), []))

    lengths = np.array([item[0] for item in waiting])
    means = np.cumsum(lengths) / np.arange(1, len(lengths) + 1)
    best = capacity
    for per_pack in (2, 3, 4, 5):
        too_long = np.flatnonzero(means * per_pack > capacity + 1e-9)
        threshold = int(lengths[too_long[0]]) - 1 if len(too_long) else capacity
        if lengths[0] <= threshold < capacity and num_packs(threshold) < num_packs(best):
            best = threshold
    return best


def reference_packs(lengths, capacity, lookahead):
    stream = [(length, age, age) for age, length in enumerate(lengths)]
    waiting: list = []
    threshold = None
    has_ended = False
    packs = []
    while True:
        fresh, stream = stream[: lookahead - len(waiting)], stream[lookahead - len(waiting) :]
        is_short = len(waiting) + len(fresh) < lookahead
        waiting = sorted(waiting + fresh)
        if not waiting:
            return packs
        if threshold is None or (is_short and not has_ended):
            has_ended = is_short
            threshold = reference_threshold(waiting, capacity, 1 if is_short else TRIAL_STRIDE)
        packs.append([item[2] for item in reference_fill(waiting, capacity, threshold)])


@given(st.lists(st.integers(1, 40), max_size=70), st.integers(40, 90), st.integers(1, 16))
def test_packs_are_those_of_a_simple_program(lengths, capacity, lookahead):
    assert packs_of(lengths, capacity, lookahead) == reference_packs(lengths, capacity, lookahead)


def test_packs_of_more_documents_than_are_read_at_a_time_are_those_of_a_simple_program():
    lengths = [1] * 1500
    assert packs_of(lengths, 700, 1024) == reference_packs(lengths, 700, 1024)
    assert packs_of(lengths, 2000, 1500) == [list(range(1500))]
    lengths = np.random.default_rng(0).integers(1, 40, 1200).tolist()
    assert packs_of(lengths, 90, 16) == reference_packs(lengths, 90, 16)


# --- how full packs are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("number", range(4))
def test_packs_of_twice_the_top_of_a_bucket_are_96_percent_full(seed, number):
    # 96.4 % is the most that any packer can reach on average: two in a pack, or three that are short.
    assert efficiency(bucket(np.random.default_rng(seed), number), 8192 << number) >= 0.96


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("times", [3, 4, 8])
def test_longer_packs_are_99_percent_full(seed, times):
    assert efficiency(bucket(np.random.default_rng(seed), 0), 4096 * times) >= 0.99


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("capacity", [32768, 65536])
def test_the_seed_mix_packs_to_99_percent(seed, capacity):
    assert efficiency(seed_mix(np.random.default_rng(seed)), capacity) >= 0.99


@pytest.mark.parametrize("seed", range(3))
def test_a_log_normal_mix_packs_to_99_percent(seed):
    assert efficiency(log_normal(np.random.default_rng(seed)), 8192) >= 0.99
