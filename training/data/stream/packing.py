"""Streaming packing with look-ahead: the oldest document opens a pack, and the last two fill it completely.

A buffer of the next `lookahead` documents is kept sorted by length. Each pack takes the oldest document, so that none
waits for ever, and goes on with the oldest ones for as long as no two can reach the end of the pack; then the one or
two documents whose lengths come nearest to the gap. Nothing is split and nothing is cut.

Where packs hold few documents, filling a gap with short documents wastes them: three documents of a quarter to a half
of a pack make a full one only if they are of a third on average, so the longest are better off two by two. Documents
above a threshold are then kept for one another. Its candidates follow from the lengths in the first buffer (the m
shortest shares fill a pack m at a time), and the one that packs them in least room is taken; so again when the stream
has ended, for what is left. The k-th pack depends only on what came before the buffer's end, so a stream can be
stopped and replayed. All arithmetic is in integers: any machine gives the same packs.

Documents that come again come in *passes*. One of a pass waits outside the buffer until the last one of the pass before
it is in a pack, of which it may fill the rest; so no document is in a pack twice before every other one was in one.

Cost at 1,024 documents: 5 to 25 µs a pack of 2 to 11 documents. docs/reference/loader_benchmark.md has the fill rates.
"""

from collections.abc import Iterator

import numpy as np

from etl.arrays import I64
from etl.jit import njit

TRIAL_STRIDE = 4
"""Every so many documents of a full buffer, in the order of their lengths, stand for all of them in a trial."""
_AT_ONCE = 256
"""Documents that one call of a kernel reads from the stream; more costs what is packed behind a segment's end."""
_MOST_PER_PACK = 5
"""Thresholds are tried that let 2 to this many documents fill a pack; above, gaps are small in any case."""


def once(documents: I64) -> I64:
    """Documents as a block for `pack`, all of one pass."""
    return np.stack([documents, np.zeros(len(documents), np.int64)], axis=1)


def pack(blocks: Iterator[I64], lengths: I64, capacity: int, lookahead: int, num_passes: int = 2) -> Iterator[I64]:
    """Packs of documents, each an array of document numbers in the order in which they lie in the pack.

    Args:
        blocks: int64 [n, 2]: document numbers in stream order, and the pass that each is of. Pass p follows on pass
            p ^ 1: its documents wait for those of the other.
        lengths: tokens of each document number, each from 1 to `capacity`.
        capacity: tokens that a pack holds.
        lookahead: documents that are seen ahead; more packs tighter and waits longer for the last of them.
        num_passes: passes are numbered below this even number.
    """
    source = _Takes(blocks)
    buffer = np.empty((4, lookahead), np.int64)
    """Lengths in ascending order, ages, numbers and passes of the documents that wait."""
    waiting = np.zeros(num_passes, np.int64)
    """Documents of each pass in the buffer."""
    reserve = max(lookahead, _AT_ONCE)
    fresh = source.take(reserve)
    has_ended = len(fresh) < reserve
    num_seen = count = _admit(fresh, waiting, lookahead)
    if count == 0:
        return
    _insert(buffer, 0, fresh[:count], lengths, 0)
    threshold = best_threshold(buffer[:2, :count], capacity, TRIAL_STRIDE if count == lookahead else 1)
    fresh = fresh[count:]
    while True:
        chosen, ends, count, used = _fill_many(
            buffer, count, fresh, lengths, num_seen, capacity, threshold, waiting, has_ended
        )
        yield from np.split(chosen, ends)[:-1]
        num_seen += used
        fresh = fresh[used:]
        if has_ended:
            break
        more = source.take(_AT_ONCE)
        has_ended = len(more) < _AT_ONCE
        fresh = np.concatenate([fresh, more])
    admitted = _admit(fresh, waiting, lookahead - count)
    count = _insert(buffer, count, fresh[:admitted], lengths, num_seen)
    num_seen, fresh = num_seen + admitted, fresh[admitted:]
    if count > 0:
        threshold = best_threshold(buffer[:2, :count], capacity, 1)
    while count > 0:
        chosen, num_chosen, count, used = _next_pack(
            buffer, count, fresh, lengths, num_seen, capacity, threshold, waiting
        )
        num_seen += used
        fresh = fresh[used:]
        yield chosen[:num_chosen].copy()


class _Takes:
    """Blocks of any size, handed out in takes of a wanted size."""

    def __init__(self, blocks: Iterator[I64]) -> None:
        self.blocks = blocks
        self.rest = np.empty((0, 2), np.int64)

    def take(self, count: int) -> I64:
        """The next `count` documents and their passes; fewer only at the end."""
        pieces = [self.rest[:count]]
        missing = count - len(pieces[0])
        self.rest = self.rest[count:]
        while missing > 0:
            block = next(self.blocks, None)
            if block is None:
                break
            pieces.append(block[:missing])
            self.rest = block[missing:]
            missing -= len(pieces[-1])
        return np.concatenate(pieces)


@njit
def _at_most(sizes: I64, count: int, limit: int) -> int:
    """How many of the first `count` ascending sizes are <= limit."""
    low, high = 0, count
    while low < high:
        middle = (low + high) >> 1
        if sizes[middle] <= limit:
            low = middle + 1
        else:
            high = middle
    return low


@njit
def _admit(fresh: I64, waiting: I64, most: int) -> int:
    """How many of the next documents may wait in the buffer now, at most `most`; they are counted in `waiting`."""
    for at in range(min(most, len(fresh))):
        if waiting[fresh[at, 1] ^ 1] > 0:
            return at
        waiting[fresh[at, 1]] += 1
    return min(most, len(fresh))


@njit
def _insert(buffer: I64, count: int, fresh: I64, lengths: I64, age: int) -> int:
    """Merge documents into the sorted buffer, the younger behind those of the same length; how many are in it then."""
    sizes = lengths[fresh[:, 0]]
    order = np.argsort(sizes, kind="mergesort")
    total = count + len(sizes)
    at = total - 1
    for place in order[::-1]:
        while count > 0 and buffer[0, count - 1] > sizes[place]:
            count -= 1
            for row in range(4):
                buffer[row, at] = buffer[row, count]
            at -= 1
        buffer[0, at], buffer[1, at], buffer[2, at], buffer[3, at] = (
            sizes[place],
            age + place,
            fresh[place, 0],
            fresh[place, 1],
        )
        at -= 1
    return total


@njit
def _remove(buffer: I64, count: int, place: int, waiting: I64) -> int:
    waiting[buffer[3, place]] -= 1
    for row in range(4):
        for at in range(place, count - 1):
            buffer[row, at] = buffer[row, at + 1]
    return count - 1


@njit
def _oldest(ages: I64, count: int) -> int:
    place = 0
    for at in range(1, count):
        if ages[at] < ages[place]:
            place = at
    return place


@njit
def _best_pair(sizes: I64, count: int, gap: int) -> tuple[int, int, int]:
    """Largest sum <= gap of two of the ascending sizes (0 where there is none), and the places of the two."""
    best, low, high = 0, -1, -1
    partner = count - 1
    for at in range(count):
        while partner > at and sizes[at] + sizes[partner] > gap:
            partner -= 1
        if partner <= at:
            break
        if sizes[at] + sizes[partner] > best:
            best, low, high = sizes[at] + sizes[partner], at, partner
            if best == gap:
                break
    return best, low, high


@njit
def _fill(
    buffer: I64, count: int, gap: int, is_short: bool, threshold: int, chosen: I64, num_chosen: int, waiting: I64
) -> tuple[int, int, int]:
    """Put documents of the buffer into the rest of a pack; how many it has then, what gap is left, how many wait.

    `is_short`: whether the pack's first document is one of those that the threshold keeps together.
    """
    sizes, ages, numbers = buffer[0], buffer[1], buffer[2]
    while gap > 0 and count > 0:
        num_fit = _at_most(sizes, count, gap)
        if num_fit == 0:
            break
        place, partner = num_fit - 1, -1
        if num_fit > 1 and sizes[num_fit - 1] + sizes[num_fit - 2] < gap:
            # No two can fill it: take what is next, so that the buffer keeps the mixture of the stream.
            place = _oldest(ages, num_fit)
        elif is_short and sizes[place] < gap:
            best, low, high = _best_pair(sizes, _at_most(sizes, num_fit, threshold), gap)
            if best > sizes[place]:
                place, partner = high, low
        chosen[num_chosen] = numbers[place]
        num_chosen += 1
        gap -= sizes[place]
        count = _remove(buffer, count, place, waiting)
        if partner >= 0:
            chosen[num_chosen] = numbers[partner]
            num_chosen += 1
            gap -= sizes[partner]
            count = _remove(buffer, count, partner, waiting)
    return num_chosen, gap, count


@njit
def _next_pack(
    buffer: I64, count: int, fresh: I64, lengths: I64, age: int, capacity: int, threshold: int, waiting: I64
) -> tuple[I64, int, int, int]:
    """One pack, opened by the oldest document that waits.

    Where it takes the last of a pass, the documents of `fresh` that waited for that come into the buffer and fill it.

    Returns the documents (of a larger array) and their number, how many wait then, and how many of `fresh` came in.
    """
    chosen = np.empty(count + len(fresh), np.int64)
    is_held_up = count < buffer.shape[1] and len(fresh) > 0
    place = _oldest(buffer[1], count)
    chosen[0] = buffer[2, place]
    gap = capacity - buffer[0, place]
    is_short = buffer[0, place] <= threshold
    count = _remove(buffer, count, place, waiting)
    num_chosen, used = 1, 0
    while True:
        num_chosen, gap, count = _fill(buffer, count, gap, is_short, threshold, chosen, num_chosen, waiting)
        if not is_held_up or gap == 0 or count > 0 or used == len(fresh):
            break
        admitted = _admit(fresh[used:], waiting, buffer.shape[1])
        count = _insert(buffer, 0, fresh[used : used + admitted], lengths, age + used)
        used += admitted
    return chosen, num_chosen, count, used


@njit
def _fill_many(
    buffer: I64,
    count: int,
    fresh: I64,
    lengths: I64,
    age: int,
    capacity: int,
    threshold: int,
    waiting: I64,
    has_ended: bool,
) -> tuple[I64, I64, int, int]:
    """Take packs out of a buffer that is filled up again before each, for as long as `fresh` has enough for that.

    With `has_ended` nothing comes after `fresh`, and enough is what fills the buffer up.

    Returns the documents of all packs, where each pack ends, how many documents wait then, and how many of `fresh` were
    put into the buffer.
    """
    lookahead = buffer.shape[1]
    chosen = np.empty(count + len(fresh), np.int64)
    ends = np.empty(count + len(fresh), np.int64)
    used = num_packs = num_chosen = 0
    while len(fresh) - used >= (lookahead - count if has_ended else max(lookahead, _AT_ONCE)):
        admitted = _admit(fresh[used:], waiting, lookahead - count)
        count = _insert(buffer, count, fresh[used : used + admitted], lengths, age + used)
        used += admitted
        if count == 0:
            break
        packed, in_pack, count, more = _next_pack(
            buffer, count, fresh[used:], lengths, age + used, capacity, threshold, waiting
        )
        used += more
        chosen[num_chosen : num_chosen + in_pack] = packed[:in_pack]
        num_chosen += in_pack
        ends[num_packs] = num_chosen
        num_packs += 1
    return chosen[:num_chosen], ends[:num_packs], count, used


@njit
def _threshold(sizes: I64, capacity: int, per_pack: int) -> int:
    """The length up to which documents are short enough to fill packs by so many; `capacity` where all are."""
    total = 0
    for at in range(len(sizes)):
        total += sizes[at]
        if total * per_pack > capacity * (at + 1):
            return sizes[at] - 1
    return capacity


@njit
def _num_packs(trial: I64, capacity: int, threshold: int) -> int:
    """In how many packs documents go, given by length and age, when no more come."""
    count = trial.shape[1]
    buffer = np.zeros((4, count), np.int64)
    buffer[:2] = trial
    waiting = np.full(1, count)
    chosen = np.empty(count, np.int64)
    num_packs = 0
    while count > 0:
        place = _oldest(buffer[1], count)
        gap, is_short = capacity - buffer[0, place], buffer[0, place] <= threshold
        count = _remove(buffer, count, place, waiting)
        count = _fill(buffer, count, gap, is_short, threshold, chosen, 0, waiting)[2]
        num_packs += 1
    return num_packs


@njit
def best_threshold(waiting: I64, capacity: int, stride: int) -> int:
    """The length above which documents are best kept for one another; `capacity` where that gains nothing.

    Args:
        waiting: lengths, ascending, and ages of documents, int64 [2, documents].
        capacity: tokens that a pack holds.
        stride: every so many documents are packed to find out.
    """
    trial = np.ascontiguousarray(waiting[:, ::stride])
    best = capacity
    fewest = _num_packs(trial, capacity, capacity)
    for per_pack in range(2, _MOST_PER_PACK + 1):
        threshold = _threshold(waiting[0], capacity, per_pack)
        if threshold < capacity and waiting[0, 0] <= threshold:
            num_packs = _num_packs(trial, capacity, threshold)
            if num_packs < fewest:
                fewest, best = num_packs, threshold
    return best
