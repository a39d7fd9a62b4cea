"""The plan of a cursor: one sequence of steps over a corpus, taken in turn by the arms that share it.

Arms that join other side tables (a teacher's, say, that has scored a part of the corpus) read other documents; such
arms are *classes* of the cursor. Inside a segment a lane's packs are planned class by class, the one that can read the
fewest of its documents first, each for the lane's turns in the steps of the class, and all over one count of visits: no
document is read twice before every one has been read once that the class whose turn it is can read.

A stage that continues begins with the visits of the stages before it. They are found by planning those again up to
where they stopped, from lengths alone, as a resumed stream plans its own segments: nothing but the logs and the
positions of the stages has to be kept. Cost: that of planning (lane.py), and 4 bytes a document.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from etl.arrays import I32, I64, Bools
from etl.errors import ConfigError
from training.data.stream.decisions import DecisionLog
from training.data.stream.lane import LanePlan, LaneSegment
from training.data.stream.order import lane_of_packs
from training.data.stream.plan import LEFT_OUT, StreamConfig, StreamState
from training.data.stream.rank_lanes import RankLanes, Tables, Visits

NO_DOCUMENTS: I64 = np.empty(0, np.int64)


@dataclass(frozen=True)
class Classes:
    """Which documents the steps of a cursor are of."""

    tables: tuple[Tables, ...]
    """Of each class."""
    of_steps: Callable[[int, int], I64]
    """The class of each step of the cursor from one number to another: int64 [steps]."""


@dataclass(frozen=True)
class Supply:
    """What a class can be trained on of a rank's lanes; the sum over all ranks is what it has."""

    documents: int
    tokens: int
    left_out: dict[str, int]
    """Documents that are never trained on, for each reason of LEFT_OUT."""


ONE_CLASS = Classes((frozenset(),), lambda start, stop: np.zeros(stop - start, np.int64))
"""Every step reads every document."""


@dataclass(frozen=True)
class PlannedSegment:
    """The packs that a rank's lanes give in a segment."""

    number: int
    global_batch_packs: int
    step_class: I64
    """[steps of the segment]"""
    slots: I64
    """Packs of the segment that own lanes give, ascending."""
    lane: I64
    """[slots]"""
    packs: Sequence[I64]
    """Of each slot: documents of its lane; none where the lane has run out."""
    left: Bools
    """[own lanes, classes]: whether the lane has more of the class for the next segment."""
    last: I64
    """[own lanes, classes]: slot of the lane's last pack of the class that has documents; -1 for none."""

    @cached_property
    def slot_class(self) -> I64:
        """[slots]: class of the step that a slot is in."""
        return self.step_class[self.slots // self.global_batch_packs]

    def between(self, start: int, stop: int) -> range:
        """Positions in `slots` of the packs from `start` to `stop`."""
        first, last = np.searchsorted(self.slots, [start, stop])
        return range(int(first), int(last))

    def lanes_left(self, class_: int, start: int) -> int:
        """Own lanes that have a document of a class at `start` or after it."""
        return int((self.left[:, class_] | (self.last[:, class_] >= start)).sum())


class CursorPlan:
    """The packs of a cursor in a rank's lanes, segment after segment."""

    def __init__(
        self,
        own: RankLanes,
        config: StreamConfig,
        seed: int,
        log: DecisionLog,
        classes: Classes = ONE_CLASS,
        visits: Visits | None = None,
    ) -> None:
        """Plans nothing yet.

        Args:
            own: the lanes.
            config: what is read.
            seed: of the ranking.
            log: what was decided about it.
            classes: which documents each step may read.
            visits: how often each document was read before; nobody else may change them. None for never.

        Raises:
            ConfigError: there are more ranks than lanes, clusters are limited and the corpus has none, or a lane has
                no document of something that has a share, and `on_exhausted` does not say that others take it.
        """
        config.check_world(own.world)
        if config.clusters is not None and not own.has_clusters:
            raise ConfigError(
                f"data.clusters is set, but the rows of {config.corpus} have no semantic clusters; list 'semantic' "
                "in the recipe's stages, or remove data.clusters"
            )
        self.config = config = config.resolved(own.parts)
        self.own = own
        self.log = log
        self.classes = classes
        self._visits = own.unread() if visits is None else dict(visits)
        self._plans = {
            lane: [
                LanePlan(documents, config, seed)
                for documents in own.of_classes(lane, classes.tables, self._visits[lane])
            ]
            for lane in own.lanes
        }
        self._next_segment = 0
        self._check_shares()

    @property
    def steps_of_segment(self) -> int:
        """Global steps of a segment."""
        return self.config.segment_packs // self.config.global_batch_packs

    def segment(self, number: int) -> PlannedSegment:
        """Plan the next segment, using only lengths; segments come in order, from 0."""
        assert number == self._next_segment, "segments are planned in order"
        self._next_segment += 1
        size, batch = self.config.segment_packs, self.config.global_batch_packs
        step_class = self.classes.of_steps(number * self.steps_of_segment, (number + 1) * self.steps_of_segment)
        slots = np.arange(size)
        lane_of = lane_of_packs(number * size + slots, self.config.lanes)
        own = np.flatnonzero((lane_of >= self.own.lanes.start) & (lane_of < self.own.lanes.stop))
        packs = [NO_DOCUMENTS] * size
        shape = len(self.own.lanes), len(self.classes.tables)
        left, last = np.zeros(shape, bool), np.full(shape, -1, np.int64)
        policy = self.log.start(number)
        for row, (lane, plans) in enumerate(self._plans.items()):
            turns = own[lane_of[own] == lane]
            for class_ in sorted(range(len(plans)), key=lambda one: len(plans[one])):
                mine = turns[step_class[turns // batch] == class_]
                found: LaneSegment = plans[class_].segment(number, len(mine), policy)
                left[row, class_] = found.documents_left
                # The lane's own turns; where it has run out, it has fewer packs than turns.
                for slot, documents in zip(mine.tolist(), found.packs, strict=False):
                    packs[slot] = documents
                    last[row, class_] = slot
        return PlannedSegment(
            number, batch, step_class, own, lane_of[own], [packs[slot] for slot in own.tolist()], left, last
        )

    def begun(self, state: StreamState) -> int:
        """The segment that was begun last before a state; its decisions and those before it are taken.

        Raises:
            ConfigError: the log up to there is another one.
        """
        begun = max(state.segment if state.pack else state.segment - 1, 0)
        self.log.start(begun)
        if self.log.digest_at(begun) != state.log_digest:
            raise ConfigError(
                f"the decisions up to segment {begun} are not those of the checkpoint; restore the decision log "
                "that was beside it, or start in another `output`"
            )
        return begun

    def visits_at(self, state: StreamState) -> dict[int, I32]:
        """How often each document was read when the cursor stood at a state, those that were read before included.

        For a plan of which nothing was asked.

        Raises:
            ConfigError: as `begun`.
        """
        self.begun(state)
        for number in range(state.segment):
            self.segment(number)
        visits = {lane: found.copy() for lane, found in self._visits.items()}
        if state.pack:
            planned = self.segment(state.segment)
            for position in planned.between(0, state.pack):
                np.add.at(visits[int(planned.lane[position])], planned.packs[position], 1)
        return visits

    def supply(self, class_: int = 0, segment: int = 0) -> Supply:
        """What a class can be trained on, whatever was read before; left out under the shares of a segment."""
        plans = [plans[class_] for plans in self._plans.values()]
        policy = self.log.policy_at(segment)
        left_out = [plan.left_out(policy) for plan in plans]
        usable = [plan.usable().num_tokens for plan in plans]
        return Supply(
            sum(map(len, usable)),
            sum(int(tokens.sum()) for tokens in usable),
            {reason: sum(counts[reason] for counts in left_out) for reason in LEFT_OUT},
        )

    def _check_shares(self) -> None:
        if self.config.shares is None or self.config.on_exhausted == "redistribute":
            return
        policy = self.log.policy_at(0)
        for lane, plans in self._plans.items():
            for class_, plan in enumerate(plans):
                for pattern in plan.groups_without_documents(policy):
                    reasons = {reason: count for reason, count in self.supply(class_).left_out.items() if count}
                    raise ConfigError(
                        f"data.shares gives '{pattern}' a share, but lane {lane} has no such document to train on "
                        f"(dropped in this rank's lanes: {reasons or 'none'}); lower data.lanes, raise "
                        "data.pack_tokens for longer documents, or set data.on_exhausted to redistribute"
                    )


@dataclass(frozen=True)
class PlannedStep:
    """One rank's share of a global step, its documents not read."""

    segment: PlannedSegment
    class_: int
    stop: int
    """Pack of the segment that the next step begins with."""
    positions: range
    """Of its packs in the segment."""
    slots: tuple[int, ...]
    """Place of each pack in the global step."""
    lanes_left: int
    """Own lanes that have a document at or after this step; the stream is over when no rank has one."""


class PlannedStream:
    """The steps of a cursor in order, from lengths only: what they would read, and the position of the stream."""

    def __init__(self, plan: CursorPlan) -> None:
        self.plan = plan
        self.current: PlannedSegment | None = None
        self._ahead: PlannedSegment | None = None
        self._segment = -1
        self._pack = plan.config.segment_packs

    @property
    def state(self) -> StreamState:
        """Position of the stream: everything before it has been returned."""
        digest = self.plan.log.digest_at(max(self._segment, 0))
        if self.at_border:
            return StreamState(digest, self._segment + 1, 0)
        return StreamState(digest, self._segment, self._pack)

    @property
    def at_border(self) -> bool:
        """Whether the next step begins a segment."""
        return self._pack == self.plan.config.segment_packs

    @property
    def global_batch_packs(self) -> int:
        """Packs of a global step over all ranks, fillers left out."""
        return self.plan.config.global_batch_packs

    def seek(self, state: StreamState) -> None:
        """Resume from a state of any rank of a run over the same log; for a stream that has given out nothing.

        Raises:
            ConfigError: the log up to there is another one.
        """
        assert self._segment == -1, "a stream does not go back; open another one"
        if (state.segment, state.pack) == (0, 0):
            self.plan.begun(state)
            return
        for number in range(self.plan.begun(state) + 1):
            self.current = self.plan.segment(number)
            self._segment = number
        self._pack = state.pack or self.plan.config.segment_packs

    def plan_ahead(self) -> PlannedSegment:
        """Plan the segment after the current one, once."""
        if self._ahead is None:
            self._ahead = self.plan.segment(self._segment + 1)
        return self._ahead

    def next_step(self) -> PlannedStep:
        """What the next global step reads."""
        if self.at_border:
            self.current, self._ahead = self.plan_ahead(), None
            self._segment += 1
            self._pack = 0
        segment = self.current
        assert segment is not None, "a pack of it was given out"
        start, stop = self._pack, self._pack + self.global_batch_packs
        class_ = int(segment.step_class[start // self.global_batch_packs])
        positions = segment.between(start, stop)
        slots = tuple(int(segment.slots[position]) - start for position in positions)
        self._pack = stop
        return PlannedStep(segment, class_, stop, positions, slots, segment.lanes_left(class_, start))

    def supply(self, class_: int = 0) -> Supply:
        """What a class can be trained on of the own lanes, under the shares that hold now."""
        return self.plan.supply(class_, max(self._segment, 0))

    def close(self) -> None:
        """Nothing is held."""
