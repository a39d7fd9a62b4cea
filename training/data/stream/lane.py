"""One lane's packs for one class of arms, segment after segment: ranking, token shares, passes, packing.

What is ranked and packed is an *item*: a document, or the two sides of a preference pair, which go into one pack side
by side. Inside a segment the unread items of each group (shares.py) rank by -log u(id, seed, epoch, segment) /
weight (Efraimidis and Spirakis 2006), u a hash. The groups are merged by the key (tokens of the group before the item +
phase · its own tokens) / share, tokens counted since the shares were last changed: at every place of the merged order,
over segments too, each group has had its share of the tokens to within one item. The packer looks ahead in that order;
what it saw and did not pack goes back at the end of a segment. With `clusters`, an epoch has only the items whose turn
in their cluster it is, and rare clusters keep a share of each group's tokens (etl/mixture/cluster_caps.py).

How often each document was read is kept in `visits`, which the classes of a lane share and which a stage takes over
from those before it. What was read least comes first, and among that what fewest other classes can read: a class that
reads a part of the corpus so finds that part unread for as long as the others have something else to read.

Cost of a segment: 0.1 µs for each unread item of the lane and 0.1 ms a pack at most; no tokens are read.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from etl.arrays import F64, I8, I32, I64, Bools
from etl.hashing import xxh64
from etl.mixture.cluster_caps import first_epoch, next_epoch, with_tail
from training.data.stream.decisions import Policy
from training.data.stream.packing import pack
from training.data.stream.plan import (
    INCOMPLETE,
    LEFT_OUT,
    NO_SHARE,
    NOT_SCORED,
    READ_BEFORE,
    DocumentIndex,
    StreamConfig,
    left_out,
    uniform,
    uniforms,
)
from training.data.stream.shares import Groups

_FIRST_PIECE = 1 << 14
"""Items that are sorted at first: most segments of a lane need no more."""
_EPOCHS_PIECE = 1 << 12
"""Items of epochs that are ranked at once."""


# --- items ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Items:
    """What is ranked and packed as one; parallel arrays."""

    documents: I64
    """[items, 2]: document numbers, chosen before rejected; -1 in the second place without a pair."""
    num_tokens: I64
    """Of both sides together."""
    chosen: I64
    """documents[:, 0]: weight, id, cell and cluster of an item are those of this document."""

    @classmethod
    def readable(cls, index: DocumentIndex, mask: Bools, pack_tokens: int) -> tuple["Items", dict[str, int]]:
        """The items of the documents in a mask, and how many are left out for each reason of LEFT_OUT."""
        numbers = np.flatnonzero(mask)
        items, counts = cls.of(index.take(numbers), pack_tokens)
        documents = np.where(items.documents < 0, -1, numbers[np.maximum(items.documents, 0)])
        return cls(documents, items.num_tokens, documents[:, 0]), counts | {NOT_SCORED: len(mask) - len(numbers)}

    @classmethod
    def of(cls, index: DocumentIndex, pack_tokens: int) -> tuple["Items", dict[str, int]]:
        """The items that can be trained on, and how many documents are left out for each reason of LEFT_OUT.

        A pair is as long as both its sides. It is left out with both where one of them is, the other as incomplete.
        """
        pairs, incomplete = _pairs(index)
        sizes = index.num_tokens.copy()
        sizes[pairs] = index.num_tokens[pairs].sum(axis=1, keepdims=True)
        out, unusable = left_out(index, sizes, pack_tokens)
        counts = dict.fromkeys(LEFT_OUT, 0) | unusable
        counts[INCOMPLETE] = int((incomplete & ~out).sum())
        one_bad = out[pairs].any(axis=1)
        counts[INCOMPLETE] += int((one_bad & ~out[pairs].all(axis=1)).sum())
        pairs = pairs[~one_bad]
        single = np.flatnonzero(~out & (index.pair == 0))
        documents = np.concatenate([np.stack([single, np.full(len(single), -1)], axis=1), pairs])
        num_tokens = np.concatenate([index.num_tokens[single], sizes[pairs[:, 0]]])
        return cls(documents, num_tokens, documents[:, 0]), counts

    def __len__(self) -> int:
        return len(self.chosen)

    def expanded(self, items: I64) -> I64:
        """The documents of some items, in order, the sides of a pair beside each other."""
        flat = self.documents[items].ravel()
        return flat[flat >= 0]


def _pairs(index: DocumentIndex) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Complete pairs (chosen, rejected) int64 [pairs, 2], and the documents of all others: bool [documents]."""
    members = np.flatnonzero(index.pair != 0)
    members = members[np.lexsort((index.side[members], index.pair[members]))]
    pair, side = index.pair[members], index.side[members]
    starts = np.flatnonzero(np.diff(pair, prepend=0) != 0)
    sizes = np.diff(starts, append=len(members))
    whole = starts[sizes == 2]
    whole = whole[(side[whole] == 0) & (side[whole + 1] == 1)]
    found = np.stack([members[whole], members[whole + 1]], axis=1)
    incomplete = index.pair != 0
    incomplete[found.ravel()] = False
    return found, incomplete


# --- the plan of a lane --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LaneSegment:
    """A lane's packs of one segment: document numbers of the lane, fewer packs than asked for when it ran out."""

    packs: tuple[I64, ...]
    documents_left: bool
    """Whether the lane has more for the next segment, the shares staying as they are."""


@dataclass(frozen=True)
class LaneDocuments:
    """The documents of a lane as a class of arms finds them; arrays over the documents of the lane."""

    lane: int
    """Number of the lane; lanes take groups in different phases."""
    index: DocumentIndex
    cells: Sequence[str]
    """Names that `index.cell` counts."""
    visits: I32
    """How often each document was read; changed by every plan that shares it."""
    readable: Bools
    """Which of them the class reads."""
    others: I8
    """How many other classes read each."""

    @classmethod
    def of(cls, lane: int, index: DocumentIndex, cells: Sequence[str]) -> "LaneDocuments":
        """All documents of a lane, unread, for the only class."""
        size = len(index)
        return cls(lane, index, cells, np.zeros(size, np.int32), np.ones(size, bool), np.zeros(size, np.int8))


class LanePlan:
    """The packs of one class of a lane, segment after segment."""

    def __init__(self, documents: LaneDocuments, config: StreamConfig, seed: int) -> None:
        """Plans nothing yet.

        Args:
            documents: of the lane.
            config: `epochs` must be a number here.
            seed: of the ranking.
        """
        assert config.epochs != "auto", "the caller knows the rows of the corpus"
        self.index = documents.index
        self._lane = documents.lane
        self._cells = documents.cells
        self._visits = documents.visits
        self._config = config
        self._seed = seed
        self._epochs = None if config.on_exhausted == "repeat" else config.epochs
        self._items, self._left_out = Items.readable(documents.index, documents.readable, config.pack_tokens)
        chosen = self._items.chosen
        self._others = documents.others[chosen]
        cap = config.clusters.cap if config.clusters else None
        self._turns = _Turns(
            self.index.cluster_size[chosen].astype(np.int64), self.index.cluster_rank[chosen].astype(np.int64), cap
        )
        self._due = self._turns.first()
        """The epoch in which each item is read next."""
        self._counted = np.zeros(len(chosen), np.int32)
        """The visits that `_due` stands for."""
        self._groups: Groups | None = None
        self._given: F64 = np.zeros(0)
        """Tokens of each group that were packed since the shares were set."""
        self._next_segment = 0
        self._count_visits()
        if self._epochs is not None:
            done = (self._due >= self._epochs) & (self._counted > 0)
            self._left_out[READ_BEFORE] = len(self._items.expanded(np.flatnonzero(done)))

    def __len__(self) -> int:
        """Items that can be read."""
        return len(self._items)

    def left_out(self, policy: Policy) -> dict[str, int]:
        """Documents that are never trained on as long as the shares stay as they are, by reason."""
        no_share = self._group_of_items(Groups.of(policy.shares, self._cells)) < 0
        return self._left_out | {NO_SHARE: len(self._items.expanded(np.flatnonzero(no_share)))}

    def usable(self) -> DocumentIndex:
        """The documents that can be trained on, regardless of shares."""
        return self.index.take(self._items.expanded(np.arange(len(self._items))))

    def groups_without_documents(self, policy: Policy) -> tuple[str, ...]:
        """Patterns with a share of which the lane has no document that can be trained on."""
        groups = Groups.of(policy.shares, self._cells)
        counts = np.bincount(self._group_of_items(groups) + 1, minlength=len(groups.patterns) + 1)[1:]
        return tuple(pattern for pattern, count in zip(groups.patterns, counts, strict=True) if count == 0)

    def segment(self, number: int, num_packs: int, policy: Policy) -> LaneSegment:
        """Plan the next segment; they must be asked for in order, from 0."""
        assert number == self._next_segment, "segments are planned in order"
        self._next_segment += 1
        self._count_visits()
        groups = Groups.of(policy.shares, self._cells)
        self._set_groups(groups)
        stream = pack(
            self._merged(number, policy),
            self._items.num_tokens,
            self._config.pack_tokens,
            self._config.lookahead_docs,
            num_passes=2 * len(groups.patterns),
        )
        packs = list(islice(stream, num_packs))
        left = next(stream, None) is not None
        self._read(packs)
        return LaneSegment(tuple(self._items.expanded(packed) for packed in packs), left)

    def _set_groups(self, groups: Groups) -> None:
        before = self._groups
        if before is None or (before.patterns, before.shares) != (groups.patterns, groups.shares):
            self._given = np.zeros(len(groups.patterns))
            self._group = self._group_of_items(groups)
        self._groups = groups

    def _group_of_items(self, groups: Groups) -> I64:
        return groups.of_cell[self.index.cell[self._items.chosen]]

    def _read(self, packs: Sequence[I64]) -> None:
        """Note what was packed; a small lane packs an item several times, once an epoch."""
        packed = np.concatenate([np.empty(0, np.int64), *packs])
        self._given += np.bincount(self._group[packed], self._items.num_tokens[packed], len(self._given))
        np.add.at(self._visits, self._items.expanded(packed), 1)

    def _count_visits(self) -> None:
        """Move each item on by what was read of it, by this plan or another one, since the last time."""
        visits = self._visits[self._items.chosen]
        items = np.flatnonzero(visits != self._counted)
        self._due[items] = self._turns.after_times(items, self._due[items], (visits - self._counted)[items])
        self._counted = visits

    def _merged(self, segment: int, policy: Policy) -> Iterator[I64]:
        """Blocks of items in the order in which they are packed, with their passes (packing.pack)."""
        assert self._groups is not None, "set by segment()"
        queues = []
        for group, (pattern, share) in enumerate(zip(self._groups.patterns, self._groups.shares, strict=True)):
            members = np.flatnonzero(self._group == group)
            # A group of which the lane has nothing leaves its share to the lane's other groups.
            if len(members):
                phase = xxh64(f"{self._lane}:{pattern}".encode(), self._seed) / 2.0**64
                passes = self._passes(members, 2 * group, segment, policy)
                queues.append(_Queue(passes, self._items.num_tokens, self._given[group], share, phase))
        return _merge(queues, stop=self._config.on_exhausted == "stop")

    def _passes(self, members: I64, first_pass: int, segment: int, policy: Policy) -> Iterator[I64]:
        """The unread items of a group, epoch after epoch, those that fewer classes read first, each by rank.

        Yields blocks of int64 [n, 2]: items, and `first_pass` or the number after it in turns, so that the packer's
        look-ahead takes none of an epoch, or of what more classes read, too early.
        """
        due, others = self._due[members], self._others[members]
        ids = self.index.id_hash[self._items.chosen[members]]
        weights = self._weights(members, policy)
        turn = 0
        while self._epochs is None or due.min() < self._epochs:
            epoch = int(due.min())
            unread = np.flatnonzero(due == epoch)
            alike = len(unread) == len(members) and others.min() == others.max()
            ahead = self._epochs_at_once(epoch, len(members)) if alike else range(0)
            if len(ahead) > 1:
                scores = -np.log(uniforms(ids, self._seed, ahead, segment)) / weights
                turns = (turn + np.arange(len(ahead))) % 2
                ranked = members[np.argsort(scores, axis=1, kind="stable")].ravel()
                yield np.stack([ranked, first_pass + np.repeat(turns, len(members))], axis=1)
                due += len(ahead)
                turn = (turn + len(ahead)) % 2
                continue
            for shared in np.flatnonzero(np.bincount(others[unread])):
                now = unread[others[unread] == shared]
                score = -np.log(uniform(ids[now], self._seed, epoch, segment)) / weights[now]
                for ranked in self._ranked(members[now], score):
                    yield np.stack([ranked, np.full(len(ranked), first_pass + turn)], axis=1)
                turn = 1 - turn
            due[unread] = self._turns.after(members[unread], due[unread])

    def _epochs_at_once(self, epoch: int, num_members: int) -> range:
        """Epochs from this one on that are ranked together: a small group would go round and round by single calls."""
        if self._config.clusters is not None:
            return range(epoch, epoch + 1)
        stop = epoch + max(_EPOCHS_PIECE // num_members, 1)
        return range(epoch, stop if self._epochs is None else min(stop, self._epochs))

    def _weights(self, items: I64, policy: Policy) -> F64:
        if policy.weights == "uniform":
            return np.ones(len(items))
        return self.index.weight[self._items.chosen[items]]

    def _ranked(self, items: I64, score: F64) -> Iterator[I64]:
        """The items by score, smallest first, rare clusters as far ahead as their share asks."""
        clusters = self._config.clusters
        if clusters is None or clusters.tail_share == 0:
            yield from (items[piece] for piece in sorted_pieces(score, _FIRST_PIECE))
        else:
            rare = self._turns.size <= clusters.rare_size
            ranked = items[np.argsort(score, kind="stable")]
            yield with_tail(ranked, self._items.num_tokens, rare, clusters.tail_share)


def sorted_pieces(score: F64, size: int) -> Iterator[I64]:
    """The order of some scores, smallest first, in pieces of growing length, the first of `size`."""
    left = np.arange(len(score))
    while len(left) > size:
        parted = left[np.argpartition(score[left], size)]
        piece, left = parted[:size], parted[size:]
        yield piece[np.argsort(score[piece], kind="stable")]
        size *= 4
    yield left[np.argsort(score[left], kind="stable")]


@dataclass(frozen=True)
class _Turns:
    """In which epochs each item is read."""

    size: I64
    rank: I64
    cap: int | None

    def first(self) -> I64:
        if self.cap is None:
            return np.zeros(len(self.rank), np.int64)
        return first_epoch(self.rank, self.cap).astype(np.int64)

    def after(self, items: I64, epochs: I64) -> I64:
        """The next epoch of some items after that in which each was read."""
        if self.cap is None:
            return epochs + 1
        return next_epoch(self.size[items], self.rank[items], epochs, self.cap)

    def after_times(self, items: I64, epochs: I64, times: I64) -> I64:
        """The same after each was read so many times."""
        if self.cap is None:
            return epochs + times
        for time in range(int(times.max(initial=0))):
            epochs = np.where(times > time, self.after(items, epochs), epochs)
        return epochs


# --- merging groups by their shares --------------------------------------------------------------------------------


class _Queue:
    """The items of one group with their keys, as far as they are known."""

    def __init__(self, passes: Iterator[I64], num_tokens: I64, given: float, share: float, phase: float) -> None:
        self._passes = passes
        self._num_tokens = num_tokens
        self._given = given
        self._share = share
        self._phase = phase
        self.items = np.empty((0, 2), np.int64)
        """Items and their passes."""
        self.keys: F64 = np.empty(0)

    @property
    def horizon(self) -> float:
        """No item that is not yet known has a smaller key; after the last one, where the group ends."""
        return self._given / self._share

    def refill(self) -> bool:
        """Learn the items of the next pass when all known ones were taken; False when there is none."""
        while len(self.keys) == 0:
            items = next(self._passes, None)
            if items is None:
                return False
            sizes = self._num_tokens[items[:, 0]]
            before = self._given + np.cumsum(sizes) - sizes
            self.items, self.keys = items, (before + self._phase * sizes) / self._share
            self._given += int(sizes.sum())
        return True

    def take(self, end: float) -> tuple[I64, F64]:
        """The known items with a key below `end`; all of them where that is the horizon, whatever was rounded."""
        count = len(self.keys) if end >= self.horizon else int(np.searchsorted(self.keys, end))
        taken = self.items[:count], self.keys[:count]
        self.items, self.keys = self.items[count:], self.keys[count:]
        return taken


def _merge(queues: Sequence[_Queue], stop: bool) -> Iterator[I64]:
    """The items of all queues by key, block by block; with `stop`, only as far as the queue that ends first."""
    known = list(queues)
    end = math.inf
    while known:
        ended = [queue for queue in known if not queue.refill()]
        known = [queue for queue in known if queue not in ended]
        if stop:
            end = min([end, *(queue.horizon for queue in ended)])
        until = min([end, *(queue.horizon for queue in known)])
        taken = [queue.take(until) for queue in known]
        items = np.concatenate([np.empty((0, 2), np.int64), *(items for items, _ in taken)])
        keys = np.concatenate([np.empty(0), *(keys for _, keys in taken)])
        yield items[np.argsort(keys, kind="stable")]
        if until == end:
            return
