"""Decides which arms of a stage share a cursor over a corpus, where a cursor starts, and which arm has each step.

Arms of a stage that read the same corpus with the same keys of `data` share one sequence of steps (a *cursor*), so that
none reads what another has just read. Where a table of scores lies is no such key: arms with other tables are classes
of one cursor (training/data/stream/cursor.py). With `order: continue` a cursor begins where those of its corpus in the
stages before have stopped; their logs and positions say where that is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from etl.arrays import I64
from etl.errors import ConfigError
from etl.hashing import xxh64
from etl.storage.dataset import Dataset
from training.data.stream.cursor import ONE_CLASS, Classes
from training.data.stream.plan import OLD_ORDER, StreamConfig, StreamState, corpus_digest, split_parts
from training.data.stream.rank_lanes import Tables
from training.stages.schedule import ArmConfig, StageConfig, named
from training.stages.state import EndedStage


@dataclass(frozen=True)
class Cursor:
    """One sequence of steps that some arms of a stage take in turn."""

    stage: StageConfig
    arms: tuple[ArmConfig, ...]
    data: tuple[StreamConfig, ...]
    """Of each arm; they differ only in where things lie."""

    @property
    def name(self) -> str:
        """That of its first arm: of its folder of decisions, and of its place in a checkpoint."""
        return self.arms[0].name

    @property
    def config(self) -> StreamConfig:
        """What is read; of the first arm."""
        return self.data[0]

    @property
    def tables(self) -> tuple[Tables, ...]:
        """The side tables of each class, in the order of the arms."""
        return tuple(dict.fromkeys(map(tables_of, self.data)))

    def data_of_class(self, class_: int) -> StreamConfig:
        """The place of a class's data."""
        return next(data for data in self.data if tables_of(data) == self.tables[class_])

    def class_of(self, arm: ArmConfig) -> int:
        """The class of one of its arms."""
        return self.tables.index(tables_of(self.data[self.arms.index(arm)]))

    def classes(self, seed: int) -> Classes:
        """The class of each of its steps, in a run of this seed."""
        if len(self.tables) == 1:
            return Classes(self.tables, ONE_CLASS.of_steps)
        return Classes(self.tables, _ClassOfSteps(self, seed))

    def ranking_seed(self, seed: int) -> int:
        """What documents are ranked by, in a run of this seed."""
        if self.config.order == "continue":
            return seed
        return xxh64(f"{self.stage.name}:{self.name}".encode(), seed)


def tables_of(data: StreamConfig) -> Tables:
    """Where the side tables of an arm lie."""
    return frozenset(place for place in (data.teacher, data.reference) if place is not None)


class _ClassOfSteps:
    """Follows the steps of a stage, as far as was asked."""

    def __init__(self, cursor: Cursor, seed: int) -> None:
        self._stage = cursor.stage
        self._seed = seed
        self._class_of = {arm.name: cursor.class_of(arm) for arm in cursor.arms}
        self._found: list[int] = []
        self._stage_step = 0

    def __call__(self, start: int, stop: int) -> I64:
        while len(self._found) < stop:
            arm = self._stage.arm_of(self._stage_step, self._seed)
            self._stage_step += 1
            if arm.name in self._class_of:
                self._found.append(self._class_of[arm.name])
        return np.array(self._found[start:stop], np.int64)


def cursors_of(stage: StageConfig, data: Sequence[StreamConfig]) -> tuple[Cursor, ...]:
    """The cursors of a stage, in the order of their first arms.

    Args:
        stage: whose arms.
        data: what each arm is trained on.

    Raises:
        DataError: two arms differ in their corpus, and there is none.
    """
    groups: list[list[int]] = []
    for number, mine in enumerate(data):
        for group in groups:
            if shares_cursor(data[group[0]], mine):
                group.append(number)
                break
        else:
            groups.append([number])
    return tuple(Cursor(stage, tuple(stage.arms[n] for n in group), tuple(data[n] for n in group)) for group in groups)


def shares_cursor(one: StreamConfig, other: StreamConfig) -> bool:
    """Whether two arms of a stage take turns in one sequence of steps."""
    if one.order == "fresh" or one.fingerprinted() != other.fingerprinted():
        return False
    return same_corpus(one.corpus, other.corpus)


def same_corpus(one: str, other: str) -> bool:
    """Whether two folders or URLs hold the same training documents."""
    return one == other or _digest(one) == _digest(other)


def _digest(corpus: str) -> str:
    return corpus_digest(split_parts(Dataset.open(corpus).manifest.parts, "train"))


# --- where a cursor begins -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishedStage:
    """An earlier stage, and where its cursors stopped."""

    stage: StageConfig
    streams: Mapping[str, StreamState]
    """Of each cursor that has had a step, by its name."""


def finished_stages(
    stages: Sequence[StageConfig], index: int, ended: Sequence[EndedStage]
) -> tuple[FinishedStage, ...]:
    """The stages behind the one at `index`, from what a checkpoint says of how they ended.

    Raises:
        ConfigError: the checkpoint is of the old order, so it does not say.
    """
    if len(ended) != index:
        raise ConfigError(f"the checkpoint is in stage {index + 1}, and {OLD_ORDER}")
    return tuple(FinishedStage(named(stages, one.name, "stage"), one.streams) for one in ended)


@dataclass(frozen=True)
class Leg:
    """A cursor of an earlier stage that another one continues, and where it stopped."""

    cursor: Cursor
    state: StreamState
    stage: int
    """Number of its stage among the finished ones."""


def position_of(legs: Sequence[Leg], stage: int) -> list[Any]:
    """What the log of a cursor of a stage says of where it began: the states of the legs in the stages before."""
    return [list(asdict(leg.state).values()) for leg in legs if leg.stage < stage]


def continues(before: Cursor, cursor: Cursor) -> bool:
    """Whether a cursor continues in the corpus of an earlier stage's cursor.

    Raises:
        ConfigError: it does, but its documents were dealt to another number of lanes; with both remedies.
        DataError: their corpora differ, and there is none.
    """
    if "fresh" in (before.config.order, cursor.config.order):
        return False
    if not same_corpus(before.config.corpus, cursor.config.corpus):
        return False
    if before.config.lanes != cursor.config.lanes:
        raise ConfigError(
            f"stage '{cursor.stage.name}' continues in {cursor.config.corpus} where stage '{before.stage.name}' "
            f"stops, but its data.lanes is {cursor.config.lanes} and the other's {before.config.lanes}; give both "
            f"the same, or set `order: fresh` in the data of stage '{cursor.stage.name}', which then reads the "
            "corpus from the start"
        )
    return True
