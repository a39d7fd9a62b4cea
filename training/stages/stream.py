"""The global steps of one stage for one rank: each step's arm, and the packs that its cursor gives.

The arms that share a cursor (cursors.py) share its decision log in decisions/<stage>/<its first arm>; what an operator
decides for one cursor leaves the others alone. The stream of a cursor is opened with its first step. Memory is that of
the open streams together.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch

from etl.arrays import I32
from etl.errors import ConfigError, DataError
from etl.storage.location import Location
from etl.storage.manifest import Part
from etl.storage.stale import outdated
from training.data.collate import Pack
from training.data.reader import PAIR_COLUMNS, CorpusReader, ReadConfig, open_corpus
from training.data.stream.cursor import CursorPlan, PlannedStep, PlannedStream, Supply
from training.data.stream.decisions import DecisionLog
from training.data.stream.lanes import RankStream
from training.data.stream.plan import OLD_ORDER, StreamConfig, StreamState, initial_value, rows_of_cells, split_parts
from training.data.stream.rank_lanes import RankLanes
from training.data.stream.shares import Groups
from training.data.stream.stream import DocumentStream, Step
from training.data.teacher_table import TeacherTable
from training.launch.world import World
from training.stages.cursors import (
    Cursor,
    FinishedStage,
    Leg,
    continues,
    cursors_of,
    position_of,
)
from training.stages.schedule import ArmConfig, StageConfig, stream_of


@dataclass(frozen=True)
class ArmStep:
    """A global step of a stage: its arm and this rank's share of its packs."""

    arm: ArmConfig
    local: Step
    global_packs: int
    """Packs of the step over all ranks, fillers left out."""

    @property
    def packs(self) -> tuple[Pack, ...]:
        return self.local.packs

    @property
    def slots(self) -> tuple[int, ...]:
        return self.local.slots

    @property
    def lanes_left(self) -> int:
        return self.local.lanes_left


@dataclass(frozen=True)
class GlobalStep:
    """A global step as all ranks together know it."""

    arm: ArmConfig
    packs: tuple[Pack, ...]
    """This rank's."""
    counts: torch.Tensor
    """float64: the objective's counts."""
    num_tokens: int
    num_supervised: int
    capacity: int
    """Tokens that the step's packs could hold."""
    is_over: bool
    """Whether the arm's stream is exhausted."""
    stops: bool
    """Whether some rank was asked to stop."""


def over_all_ranks(drawn: ArmStep, here: World, stops: bool) -> GlobalStep:
    """What all ranks together have in a step, in one all-reduce. Every rank must call it."""
    packs, objective = drawn.packs, drawn.arm.objective
    counts = np.sum([objective.counts(pack) for pack in packs], axis=0)
    num_tokens = sum(pack.num_tokens for pack in packs)
    num_supervised = sum(int(pack.span_counts().sum()) for pack in packs)
    mine = [*counts, num_tokens, num_supervised, drawn.lanes_left, float(stops)]
    total = here.sum(torch.tensor(mine, dtype=torch.float64))
    num_tokens, num_supervised, lanes_left, num_stops = (int(value) for value in total[-4:])
    return GlobalStep(
        arm=drawn.arm,
        packs=packs,
        counts=total[:-4],
        num_tokens=num_tokens,
        num_supervised=num_supervised,
        capacity=drawn.global_packs * len(packs[0].input_ids),
        is_over=lanes_left == 0,
        stops=num_stops > 0,
    )


class CursorStream(Protocol):
    """The steps of a cursor, read or only planned."""

    @property
    def state(self) -> StreamState: ...

    def seek(self, state: StreamState) -> None: ...

    def supply(self, class_: int) -> Supply: ...

    def close(self) -> None: ...


OneStream = TypeVar("OneStream", bound=CursorStream)


class _StageCursors(Generic[OneStream]):
    """The streams of a stage's cursors, opened with their first step, and whose turn each step of the stage is."""

    def __init__(
        self, stage: StageConfig, seed: int, cursors: Sequence[Cursor], open_stream: Callable[[Cursor], OneStream]
    ) -> None:
        self._stage = stage
        self._seed = seed
        self._cursors = cursors
        self._open_stream = open_stream
        self._streams: dict[str, OneStream] = {}
        self._resumed: dict[str, StreamState] = {}
        self._steps = 0

    @property
    def state(self) -> tuple[int, dict[str, StreamState]]:
        """Number of global steps returned, and the position of each cursor that has had a step."""
        return self._steps, {**self._resumed, **{name: stream.state for name, stream in self._streams.items()}}

    def seek(self, state: tuple[int, dict[str, StreamState]]) -> None:
        """Resume from a state of any rank of any run of this stage.

        Raises:
            ConfigError: it is of the old order.
        """
        assert not self._streams, "a stream is sought before its first step"
        self._steps, resumed = state
        unknown = resumed.keys() - {cursor.name for cursor in self._cursors}
        if unknown:
            raise ConfigError(
                f"the checkpoint has a place of its own for arm '{min(unknown)}' of stage '{self._stage.name}', which "
                f"reads on where the stage's other arms stop: {OLD_ORDER}"
            )
        self._resumed = dict(resumed)

    def supply(self) -> dict[str, Supply]:
        """What each arm can be trained on of this rank's lanes, by the arm's name; opens all streams."""
        return {arm.name: stream.supply(class_) for arm in self._stage.arms for stream, class_ in [self._of(arm)]}

    def left_out(self) -> dict[str, int]:
        """Documents of this rank's lanes that some arm never trains on, by reason, added up over the arms."""
        found = [supply.left_out for supply in self.supply().values()]
        return {reason: sum(counts[reason] for counts in found) for reason in found[0]}

    def close(self) -> None:
        """Give back what the streams hold."""
        for stream in self._streams.values():
            stream.close()
        self._streams.clear()

    def _next_turn(self) -> tuple[ArmConfig, OneStream]:
        """The arm of the next global step, and the stream that has the step."""
        arm = self._stage.arm_of(self._steps, self._seed)
        stream, _ = self._of(arm)
        self._steps += 1
        return arm, stream

    def _of(self, arm: ArmConfig) -> tuple[OneStream, int]:
        """The stream that an arm's steps come from, opened and at its place, and the arm's class in it."""
        cursor = next(cursor for cursor in self._cursors if arm in cursor.arms)
        if cursor.name not in self._streams:
            stream = self._open_stream(cursor)
            if cursor.name in self._resumed:
                stream.seek(self._resumed[cursor.name])
            self._streams[cursor.name] = stream
        return self._streams[cursor.name], cursor.class_of(arm)


class StageStream(_StageCursors[DocumentStream]):
    """The steps of a stage, in order; the same for every number of ranks."""

    def next_step(self) -> ArmStep:
        """The next global step."""
        arm, stream = self._next_turn()
        return ArmStep(arm, stream.next_step(), stream.global_batch_packs)

    def labels(self, arm: ArmConfig) -> Sequence[tuple[str | None, ...]]:
        """What `Pack.label` numbers in the packs of an arm."""
        stream, class_ = self._of(arm)
        return stream.labels(class_)


class PlannedStage(_StageCursors[PlannedStream]):
    """The same steps, computed only from lengths."""

    def next_step(self) -> tuple[ArmConfig, PlannedStep]:
        """The arm of the next global step, and what it would read."""
        arm, stream = self._next_turn()
        return arm, stream.next_step()

    def plan_of(self, arm: ArmConfig) -> tuple[CursorPlan, int]:
        """The plan that an arm's steps come from, and the arm's class in it."""
        stream, class_ = self._of(arm)
        return stream.plan, class_


OpenLog = Callable[[Location, dict[str, Any]], DecisionLog]
"""DecisionLog.open, which begins or continues a run's log, or DecisionLog.preview, which writes nothing."""


@dataclass(frozen=True)
class RunStreams:
    """Opens the streams of a run's arms: what of its configuration decides which documents they give, and when."""

    data: StreamConfig
    """Of the run; stages and arms change single keys of it."""
    read: ReadConfig
    seed: int
    decisions: Path
    """Folder of the decision logs, <stage>/<first arm of the cursor> below it."""

    def config_of(self, stage: StageConfig, arm: ArmConfig) -> StreamConfig:
        """What an arm is trained on.

        Raises:
            ConfigError: a key or a value of the stage or the arm is wrong.
        """
        return stream_of(self.data, stage, arm)

    def cursors(self, stage: StageConfig) -> tuple[Cursor, ...]:
        """The cursors of a stage.

        Raises:
            ConfigError: as `config_of`.
            DataError: two arms differ in their corpus, and there is none.
        """
        return cursors_of(stage, [self.config_of(stage, arm) for arm in stage.arms])

    def log_folder(self, stage: StageConfig, arm: ArmConfig) -> Location:
        """Where the decisions of an arm lie: those of its cursor.

        Raises:
            ConfigError, DataError: as `cursors`.
        """
        return self._folder(next(cursor for cursor in self.cursors(stage) if arm in cursor.arms))

    def open_stage(
        self,
        stage: StageConfig,
        rank: int,
        num_ranks: int,
        open_log: OpenLog,
        vocab_sizes: Mapping[str, int] = MappingProxyType({}),
        finished: Sequence[FinishedStage] = (),
    ) -> StageStream:
        """The steps of a stage.

        Args:
            stage: which.
            rank: whose packs are read.
            num_ranks: over which the packs are dealt.
            open_log: what a decision log is opened by.
            vocab_sizes: of the models that the documents are for, by what each is called in an error.
            finished: the stages before it, in order.
        """
        opening = _Opening(self, (rank, num_ranks), open_log, self.read, vocab_sizes, finished)

        def open_stream(cursor: Cursor) -> RankStream:
            return RankStream(*opening.plan(cursor))

        return StageStream(stage, self.seed, self.cursors(stage), open_stream)

    def plan_stage(
        self,
        stage: StageConfig,
        vocab_sizes: Mapping[str, int] = MappingProxyType({}),
        finished: Sequence[FinishedStage] = (),
    ) -> PlannedStage:
        """What a stage would read as the only rank, with the existing decisions; reads only lengths and writes nothing.

        `vocab_sizes` and `finished` as for `open_stage`.
        """
        reading = self.read.model_copy(update={"cache_gib": 0})
        opening = _Opening(self, (0, 1), DecisionLog.preview, reading, vocab_sizes, finished)

        def open_stream(cursor: Cursor) -> PlannedStream:
            plan, readers = opening.plan(cursor)
            for reader in readers:
                reader.close()
            return PlannedStream(plan)

        return PlannedStage(stage, self.seed, self.cursors(stage), open_stream)

    def _folder(self, cursor: Cursor) -> Location:
        return Location.of(self.decisions / cursor.stage.name / cursor.name)


@dataclass(frozen=True)
class _Opening:
    """How the cursors of a stage are opened."""

    streams: RunStreams
    ranks: tuple[int, int]
    open_log: OpenLog
    reading: ReadConfig
    vocab_sizes: Mapping[str, int]
    finished: Sequence[FinishedStage]

    def plan(self, cursor: Cursor) -> tuple[CursorPlan, list[CorpusReader]]:
        """The plan of a cursor, from where it begins, and a reader for each of its classes."""
        with ExitStack() as stack:
            readers = []
            for class_ in range(len(cursor.tables)):
                data = cursor.data_of_class(class_)
                reader = CorpusReader(
                    data.corpus, "train", self.reading, data.teacher, data.reference, self.vocab_sizes
                )
                stack.callback(reader.close)
                readers.append(reader)
            legs = self._legs(cursor)
            tables = {place: table for reader in readers for place, table in reader.side_tables.items()}
            for place in sorted(frozenset().union(*(found for leg in legs for found in leg.cursor.tables))):
                tables[place] = tables.get(place) or TeacherTable(place)
            log = self._log(cursor, readers[0].parts, tables, position_of(legs, len(self.finished)))
            cursor.config.check_world(self.ranks[1])
            own = RankLanes.read(readers[0], cursor.config.lanes, self.streams.seed, self.ranks, tables)
            visits = self._visits(own, legs, tables)
            plan = self._cursor_plan(cursor, own, log, visits)
            stack.pop_all()
        return plan, readers

    def _cursor_plan(self, cursor: Cursor, own: RankLanes, log: DecisionLog, visits: Mapping[int, I32]) -> CursorPlan:
        seed = self.streams.seed
        return CursorPlan(own, cursor.config, cursor.ranking_seed(seed), log, cursor.classes(seed), visits)

    def _log(
        self, cursor: Cursor, parts: Sequence[Part], tables: Mapping[str, TeacherTable], after: Sequence[Any]
    ) -> DecisionLog:
        """The log of a cursor that began `after` some legs."""
        of_class = []
        for class_ in range(len(cursor.tables)):
            data = cursor.data_of_class(class_)
            places = [place for place in (data.teacher, data.reference) if place is not None]
            of_class.append([tables[place].dataset.manifest.content_digest for place in places])
        initial = initial_value(
            cursor.config,
            self.streams.seed,
            parts,
            side_tables=of_class[0] if len(of_class) == 1 else [],
            classes=of_class if len(of_class) > 1 else [],
            salt=[cursor.stage.name, cursor.name] if cursor.config.order == "fresh" else [],
            after=after,
        )
        return self.open_log(self.streams._folder(cursor), initial)

    def _legs(self, cursor: Cursor) -> list[Leg]:
        """The cursors of the stages before that one continues, in order."""
        if cursor.config.order == "fresh":
            return []
        return [
            Leg(other, past.streams[other.name], number)
            for number, past in enumerate(self.finished)
            for other in self.streams.cursors(past.stage)
            if other.name in past.streams and continues(other, cursor)
        ]

    def _visits(self, own: RankLanes, legs: Sequence[Leg], tables: Mapping[str, TeacherTable]) -> dict[int, I32]:
        """How often each document of the own lanes was read on some legs; those of one stage began from one count."""
        visits = own.unread()
        for number, of_stage in groupby(legs, key=lambda leg: leg.stage):
            before = visits
            for leg in of_stage:
                log = self._log(leg.cursor, own.parts, tables, position_of(legs, number))
                copies = {lane: found.copy() for lane, found in before.items()}
                stopped = self._cursor_plan(leg.cursor, own, log, copies).visits_at(leg.state)
                visits = {lane: found + stopped[lane] - before[lane] for lane, found in visits.items()}
        return visits


def nothing_to_read(stage: StageConfig, left_out: Mapping[str, int]) -> DataError:
    """The error of a stage that ends before its first token.

    Args:
        stage: which.
        left_out: documents over all ranks that are never trained on, by reason.
    """
    reasons = {reason: count for reason, count in left_out.items() if count}
    return DataError(
        f"stage '{stage.name}' has no document to train on ({reasons or 'none'} were left out); see data.pack_tokens, "
        "data.shares and the corpus's spans and sampling weights; for documents that stages before it have read, see "
        "data.epochs, `on_exhausted: repeat` and `order: fresh`"
    )


def outdated_corpora(streams: RunStreams, stages: Sequence[StageConfig]) -> Iterator[str]:
    """One line for each corpus of stages that is not what the run beside it makes any more.

    Such a corpus is sound, and a training run that has begun with it must be able to go on; so it is told, not refused.
    """
    corpora = {streams.config_of(stage, arm).corpus for stage in stages for arm in stage.arms}
    yield from filter(None, map(outdated, sorted(corpora)))


def check_corpora(streams: RunStreams, stages: Sequence[StageConfig]) -> None:
    """Refuse corpora of stages that lack cells of `data.shares` or pairs, by their manifests alone, and unequal lanes.

    A stage opens its streams when it begins; what it lacks is better known before the stages ahead of it are trained.

    Raises:
        ConfigError: a share names no cell, a cell has fewer documents than there are lanes, there are no pairs, or a
            stage continues a corpus that one before it reads in another number of lanes.
        DataError: there is no committed corpus, or none of its rows are in the training split.
    """
    for stage in stages:
        for arm in stage.arms:
            data = streams.config_of(stage, arm)
            corpus = open_corpus(data.corpus)
            if "pairs" in arm.objective.needs and not set(PAIR_COLUMNS) <= set(corpus.schema.names):
                raise ConfigError(
                    f"the objective '{arm.objective.kind}' of stage '{stage.name}' needs preference pairs, but "
                    f"{data.corpus} has no columns {', '.join(PAIR_COLUMNS)}; give a corpus of pairs"
                )
            rows = rows_of_cells(split_parts(corpus.manifest.parts, "train"))
            groups = Groups.of(data.shares, list(rows))
            if data.shares is not None and data.on_exhausted != "redistribute":
                groups.check_rows(rows, data.lanes)
    before: list[Cursor] = []
    for stage in stages:
        here = streams.cursors(stage)
        for cursor in here:
            for other in before:
                continues(other, cursor)
        before += here
