"""What one rank sees of the stream: it owns some lanes, reads only those, and gives its packs of every global step.

At the start of a segment the rank plans its lanes from their index and reads, in one sweep, the documents that its
packs from here on need; a resumed rank so never reads what is behind it. When half of a segment has been given out, a
thread begins the next one (its decision record is taken then), so that a step does not wait for the store. Memory: the
index of the own lanes, about 150 bytes a document, and the documents of two segments at most, 2 x 4 x segment_tokens /
world bytes of tokens and less for their spans. How the lanes are dealt, ordered and packed is the business of plan.py
and the files beside it.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from etl.errors import ConfigError
from training.data.collate import Pack, collate
from training.data.documents import Documents
from training.data.reader import CorpusReader
from training.data.stream.deal import deal_lanes, documents_of_lanes, lanes_of_pairs, whole_units
from training.data.stream.decisions import DecisionLog
from training.data.stream.lane import LanePlan, LaneSegment
from training.data.stream.order import lane_of_packs, lane_order, own_lanes, turns
from training.data.stream.plan import LEFT_OUT, NOT_SCORED, DocumentIndex, StreamConfig, StreamState

if TYPE_CHECKING:
    from etl.arrays import I64

NO_DOCUMENTS = np.empty(0, np.int64)
FILLER = -1


@dataclass(frozen=True)
class LocalStep:
    """One rank's share of a global step."""

    packs: tuple[Pack, ...]
    """As many in every step (StreamConfig.micro_steps): those of the own lanes in slot order, one without documents
    where a lane ran out, then as many without documents as are missing."""
    slots: tuple[int, ...]
    """Place of each pack in the global step, 0 … global_batch_packs − 1; FILLER for one that is in no lane's turn."""
    lanes_left: int
    """Own lanes that have a document at or after this step; the stream is over when no rank has one."""


@dataclass(frozen=True)
class _Segment:
    """The own packs of a segment, from some pack of it on."""

    number: int
    lanes: dict[int, LaneSegment]
    slots: "I64"
    """Packs of the segment that own lanes give, ascending."""
    documents: Documents
    packs: Sequence["I64"]
    """Of each slot: numbers in `documents`; none where its lane has run out."""

    def between(self, start: int, stop: int) -> range:
        """Positions in `slots` of the packs from `start` to `stop`."""
        first, last = np.searchsorted(self.slots, [start, stop])
        return range(int(first), int(last))


class RankStream:
    """The stream of one rank; it owns its reader."""

    def __init__(
        self, reader: CorpusReader, config: StreamConfig, seed: int, log: DecisionLog, rank: int, world: int
    ) -> None:
        """Reads the index of the rank's lanes.

        Raises:
            ConfigError: there are more ranks than lanes, clusters are limited and the corpus has none, or a lane has
                no document of something that has a share, and `on_exhausted` does not say that others take it.
        """
        config.check_world(world)
        if config.clusters is not None and not reader.has_clusters:
            raise ConfigError(
                f"data.clusters is set, but the rows of {config.corpus} have no semantic clusters; list 'semantic' in "
                "the recipe's stages, or leave data.clusters out"
            )
        self.config = config = config.resolved(reader.parts)
        self.reader = reader
        self._log = log
        self._own = own_lanes(rank, world, config.lanes)
        self._micro_steps = config.micro_steps(world)
        order = lane_order(config.lanes)
        self._place = {lane: order.index(lane) for lane in self._own}
        self._num_unscored = 0
        indexes = zip(self._own, self._read_indexes(seed), strict=True)
        self._plans = {lane: LanePlan(lane, index, reader.cells, self.config, seed) for lane, index in indexes}
        self._current: _Segment | None = None
        self._segment = -1
        self._pack = config.segment_packs
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next-segment")
        self._ahead: Future[_Segment] | None = None
        self._check_shares()

    @property
    def state(self) -> StreamState:
        """Where the stream stands: everything before it has been given out."""
        digest = self._log.digest_at(max(self._segment, 0))
        if self._pack == self.config.segment_packs:
            return StreamState(digest, self._segment + 1, 0)
        return StreamState(digest, self._segment, self._pack)

    @property
    def global_batch_packs(self) -> int:
        """Packs of a global step over all ranks, fillers left out."""
        return self.config.global_batch_packs

    @property
    def labels(self) -> Sequence[tuple[str | None, ...]]:
        """What `Pack.label` numbers: source, buckets and licence."""
        return self.reader.labels

    @property
    def index(self) -> DocumentIndex:
        """The documents of the own lanes that can be trained on, whatever the shares."""
        return DocumentIndex.concatenate([plan.usable() for plan in self._plans.values()])

    def index_of(self, lane: int) -> DocumentIndex:
        """The documents that the packs of an own lane number."""
        return self._plans[lane].index

    def left_out(self) -> dict[str, int]:
        """Documents of the own lanes that are never trained on under the shares that hold now, by reason."""
        policy = self._log.policy_at(max(self._segment, 0))
        found = [{NOT_SCORED: self._num_unscored}, *(plan.left_out(policy) for plan in self._plans.values())]
        return {reason: sum(counts.get(reason, 0) for counts in found) for reason in LEFT_OUT}

    def seek(self, state: StreamState) -> None:
        """Resume from a state of any rank of a run over the same log; for a stream that has given out nothing.

        Raises:
            ConfigError: the log up to there is another one.
        """
        assert self._segment == -1, "a stream does not go back; open another one"
        begun = state.segment if state.pack else state.segment - 1
        self._log.start(max(begun, 0))
        if self._log.digest_at(max(begun, 0)) != state.log_digest:
            raise ConfigError(
                f"the decisions up to segment {max(begun, 0)} are not those that the checkpoint was made with; put "
                "back the decision log that lay beside it, or start in another `output`"
            )
        for number in range(begun):
            self.plan(number)
        if begun >= 0:
            planned = self.plan(begun)
            self._segment = begun
            if state.pack:
                self._current = self._read(begun, planned, state.pack)
                self._pack = state.pack

    def plan(self, number: int) -> dict[int, LaneSegment]:
        """The packs of each own lane in a segment, from lengths alone; segments come in order, from 0.

        For who wants to know what a run would read; a stream that was planned by hand gives out no step.
        """
        policy = self._log.start(number)
        sizes = {lane: self._turn(number, lane, self.config.segment_packs) for lane in self._own}
        return {lane: plan.segment(number, sizes[lane], policy) for lane, plan in self._plans.items()}

    def next_step(self) -> LocalStep:
        """The packs of the next global step."""
        segment = self._segment_of_step()
        start, stop = self._pack, self._pack + self.config.global_batch_packs
        own = segment.between(start, stop)
        missing = self._micro_steps - len(own)
        numbers = [*(segment.packs[position] for position in own), *[NO_DOCUMENTS] * missing]
        packs = tuple(collate(segment.documents.select(chosen), self.config.pack_tokens) for chosen in numbers)
        slots = (*(int(segment.slots[position]) - start for position in own), *[FILLER] * missing)
        left = sum(
            planned.documents_left or len(planned.packs) > self._turn(segment.number, lane, start)
            for lane, planned in segment.lanes.items()
        )
        self._pack = stop
        if 2 * stop >= self.config.segment_packs:
            self._begin_next(segment)
        return LocalStep(packs, slots, left)

    def close(self) -> None:
        """End the thread, behind what it has begun, and close the reader."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self.reader.close()

    def _read_indexes(self, seed: int) -> list[DocumentIndex]:
        """The index of each own lane; each row group is read once."""
        if self.reader.has_pairs:
            index = self.reader.read_index(self.reader.whole, seed)
            lane_of = lanes_of_pairs(index, self.config.lanes, seed)
            numbers = [np.flatnonzero(lane_of == lane) for lane in self._own]
        else:
            lanes = deal_lanes(self.reader.parts, self.config.lanes, seed)[self._own.start : self._own.stop]
            units = whole_units(lanes)
            index = self.reader.read_index(units, seed)
            numbers = documents_of_lanes(units, lanes)
        if self.reader.side_tables:
            scored = self.reader.scored_mask(index)
            self._num_unscored = sum(int((~scored[own]).sum()) for own in numbers)
            numbers = [own[scored[own]] for own in numbers]
        return [index.take(own) for own in numbers]

    def _check_shares(self) -> None:
        if self.config.shares is None or self.config.on_exhausted == "redistribute":
            return
        for lane, plan in self._plans.items():
            for pattern in plan.groups_without_documents(self._log.policy_at(0)):
                reasons = {reason: count for reason, count in self.left_out().items() if count}
                raise ConfigError(
                    f"data.shares gives '{pattern}' a share, but lane {lane} has no document of it that can be trained "
                    f"on (left out in this rank's lanes: {reasons or 'none'}); lower data.lanes, raise "
                    "data.pack_tokens for longer documents, or set data.on_exhausted to redistribute"
                )

    def _segment_of_step(self) -> _Segment:
        """The segment that the next step is in; the next one when this one has been given out."""
        if self._pack < self.config.segment_packs:
            assert self._current is not None, "a pack of it was given out"
            return self._current
        self._current = None
        ahead, self._ahead = self._ahead, None
        following = self._segment + 1
        self._current = ahead.result() if ahead else self._read(following, self.plan(following), 0)
        self._segment = following
        self._pack = 0
        return self._current

    def _begin_next(self, segment: _Segment) -> None:
        """Plan and read the next segment beside the rest of this one, if own lanes have more."""
        if self._ahead is None and any(lane.documents_left for lane in segment.lanes.values()):
            number = segment.number + 1
            self._ahead = self._thread.submit(lambda: self._read(number, self.plan(number), 0))

    def _turn(self, segment: int, lane: int, pack: int) -> int:
        """Turns that a lane has had in a segment before pack `pack` of it."""
        first = segment * self.config.segment_packs
        return turns(self._place[lane], self.config.lanes, first, first + pack)

    def _read(self, number: int, planned: dict[int, LaneSegment], start: int) -> _Segment:
        """The own packs of a segment from `start` on, their documents read in one sweep over the row groups."""
        packs: dict[int, list[I64]] = {}
        indexes = []
        num_documents = 0
        for lane, segment in planned.items():
            left = segment.packs[self._turn(number, lane, start) :]
            unique, numbers = np.unique(np.concatenate([NO_DOCUMENTS, *left]), return_inverse=True)
            packs[lane] = np.split(num_documents + numbers, np.cumsum([len(p) for p in left])[:-1]) if left else []
            indexes.append(self._plans[lane].index.take(unique))
            num_documents += len(unique)
        documents = self.reader.gather(DocumentIndex.concatenate(indexes), np.arange(num_documents))
        slots = np.arange(start, self.config.segment_packs)
        lanes = lane_of_packs(number * self.config.segment_packs + slots, self.config.lanes)
        own = np.flatnonzero((lanes >= self._own.start) & (lanes < self._own.stop))
        turn = {lane: iter(own_packs) for lane, own_packs in packs.items()}
        ordered = [next(turn[lane], NO_DOCUMENTS) for lane in lanes[own].tolist()]
        return _Segment(number, planned, slots[own], documents, ordered)
