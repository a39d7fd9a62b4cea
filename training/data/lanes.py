"""What one rank sees of the stream: it owns some lanes, reads only those, and gives its packs of every global step.

At the start of a segment the rank plans its lanes from their index and reads, in one sweep, the documents that its
packs from here on need; a resumed rank so never reads what is behind it. How the lanes are dealt and ordered is
training/data/plan.py's business.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from etl.errors import ConfigError
from training.data.collate import Pack, collate
from training.data.plan import (
    Decision,
    DocumentIndex,
    LanePlan,
    LaneSegment,
    StreamConfig,
    StreamState,
    deal_lanes,
    turns,
)
from training.data.reader import CorpusReader

if TYPE_CHECKING:
    from training.data.packing import IntArray


@dataclass(frozen=True)
class LocalStep:
    """One rank's share of a global step."""

    packs: tuple[Pack, ...]
    """global_batch_packs / world packs; one without documents where a lane ran out."""
    lanes_left: int
    """Own lanes that have a document at or after this step; the stream is over when no rank has one."""


class RankStream:
    """The stream of one rank.

    Raises:
        ConfigError: the number of ranks divides neither packs nor lanes, or clusters are limited and there are none.
    """

    def __init__(self, reader: CorpusReader, config: StreamConfig, seed: int, log: Decision, rank: int, world: int):
        config.check_world(world)
        if config.clusters is not None and not reader.has_clusters:
            raise ConfigError(
                f"data.clusters is set, but the rows of {config.corpus} have no semantic clusters; list 'semantic' in "
                "the recipe's stages, or leave data.clusters out"
            )
        self.config = config
        self.reader = reader
        self.rank = rank
        self.world = world
        self._log = log
        self._own = range(rank, config.lanes, world)
        lanes = deal_lanes(reader.parts, config.lanes, seed)
        self._plans = {lane: LanePlan(reader.read_index(lanes[lane], seed), config, seed) for lane in self._own}
        self._segment = -1
        self._pack = config.segment_packs
        self._planned: dict[int, LaneSegment] = {}
        self._read_from = 0
        self._packs: dict[int, list[IntArray]] = {}

    @property
    def state(self) -> StreamState:
        """Where the stream stands: everything before it has been given out."""
        if self._pack == self.config.segment_packs:
            return StreamState(self._log.digest, self._segment + 1, 0)
        return StreamState(self._log.digest, self._segment, self._pack)

    def left_out(self) -> dict[str, int]:
        """Documents of the own lanes that are never trained on, by reason."""
        total: dict[str, int] = {}
        for plan in self._plans.values():
            for reason, count in plan.num_left_out.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def seek(self, state: StreamState) -> None:
        """Go on from a state of any rank of a run over the same log."""
        assert state.log_digest == self._log.digest, "the caller compares the logs"
        while self._segment < state.segment - 1:
            self._plan_next_segment()
        if state.pack:
            self._plan_next_segment()
            self._pack = state.pack
            self._read()
        else:
            self._pack = self.config.segment_packs

    def next_step(self) -> LocalStep:
        """The packs of the next global step, in slot order."""
        if self._pack == self.config.segment_packs:
            self._plan_next_segment()
            self._pack = 0
            self._read()
        slots = range(self._pack + self.rank, self._pack + self.config.global_batch_packs, self.world)
        left = sum(
            planned.documents_left or len(planned.packs) > self._turn(lane, self._pack)
            for lane, planned in self._planned.items()
        )
        packs = tuple(self._take(slot) for slot in slots)
        self._pack += self.config.global_batch_packs
        return LocalStep(packs, left)

    def _first_pack(self) -> int:
        return self._segment * self.config.segment_packs

    def _turn(self, lane: int, pack: int) -> int:
        """Turns that a lane has had in the segment before pack `pack` of it."""
        first = self._first_pack()
        return turns(lane, self.config.lanes, first, first + pack)

    def _plan_next_segment(self) -> None:
        self._segment += 1
        size = self.config.segment_packs
        self._planned = {
            lane: plan.segment(self._segment, self._turn(lane, size)) for lane, plan in self._plans.items()
        }

    def _read(self) -> None:
        """Read the documents of the own packs from the current one on: each row group once for all lanes."""
        self._read_from = self._pack
        self._packs = {}
        indexes = []
        num_documents = 0
        for lane, planned in self._planned.items():
            packs = planned.packs[self._turn(lane, self._pack) :]
            flat = np.concatenate([np.empty(0, np.int64), *packs])
            unique, numbers = np.unique(flat, return_inverse=True)
            self._packs[lane] = np.split(num_documents + numbers, np.cumsum([len(p) for p in packs])[:-1])
            indexes.append(self._plans[lane].index.take(unique))
            num_documents += len(unique)
        self._documents = self.reader.gather(DocumentIndex.concatenate(indexes), np.arange(num_documents))

    def _take(self, slot: int) -> Pack:
        """The pack of a slot of the segment; one without documents when its lane has run out."""
        lane = (self._first_pack() + slot) % self.config.lanes
        turn = self._turn(lane, slot) - self._turn(lane, self._read_from)
        packs = self._packs[lane]
        numbers = packs[turn] if turn < len(packs) else np.empty(0, np.int64)
        return collate(self._documents.select(numbers), self.config.pack_tokens)
