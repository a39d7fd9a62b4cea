"""The documents of one rank's lanes, and which of them each side table has; read once for all plans.

A stage that goes on where others stopped plans the streams of those again (cursor.py); all of these plans are over the
same lanes. Memory: about 60 bytes a document, and one byte for each table.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from etl.arrays import I8, I32, I64, Bools
from etl.storage.manifest import Part
from training.data.reader import CorpusReader
from training.data.stream.deal import deal_lanes, documents_of_lanes, lanes_of_pairs, whole_units
from training.data.stream.lane import LaneDocuments
from training.data.stream.order import own_lanes
from training.data.stream.plan import DocumentIndex
from training.data.teacher_table import TeacherTable

Tables = frozenset[str]
"""Where the side tables lie that some arms join to their documents, of which they read those that all have."""
Visits = Mapping[int, I32]
"""Of each lane: how often each of its documents was read."""


@dataclass(frozen=True)
class RankLanes:
    """The lanes of a rank."""

    num_lanes: int
    """Of the corpus, over all ranks."""
    world: int
    lanes: range
    """The rank's."""
    parts: tuple[Part, ...]
    cells: tuple[str, ...]
    has_clusters: bool
    index: Mapping[int, DocumentIndex]
    """The documents of each lane."""
    in_table: Mapping[str, Mapping[int, Bools]]
    """Of each side table and lane: which of the documents it has."""

    @classmethod
    def read(
        cls,
        reader: CorpusReader,
        num_lanes: int,
        seed: int,
        ranks: tuple[int, int],
        tables: Mapping[str, TeacherTable],
    ) -> "RankLanes":
        """Read the index of the lanes of `ranks`, (rank, number of ranks); each row group is read once.

        Args:
            reader: of the corpus.
            num_lanes: over all ranks.
            seed: by which documents are dealt to lanes.
            ranks: which lanes.
            tables: side tables by where they lie.

        Raises:
            ConfigError, DataError: as for CorpusReader.read_index.
        """
        own = own_lanes(*ranks, num_lanes)
        if reader.has_pairs:
            index, scored = reader.read_scored_index(reader.whole, seed, list(tables.values()))
            lane_of = lanes_of_pairs(index, num_lanes, seed)
            numbers = [np.flatnonzero(lane_of == lane) for lane in own]
        else:
            lanes = deal_lanes(reader.parts, num_lanes, seed)[own.start : own.stop]
            units = whole_units(lanes)
            index, scored = reader.read_scored_index(units, seed, list(tables.values()))
            numbers = documents_of_lanes(units, lanes)
        of_lane = dict(zip(own, numbers, strict=True))
        return cls(
            num_lanes=num_lanes,
            world=ranks[1],
            lanes=own,
            parts=reader.parts,
            cells=reader.cells,
            has_clusters=reader.has_clusters,
            index={lane: index.take(chosen) for lane, chosen in of_lane.items()},
            in_table={
                place: {lane: mask[chosen] for lane, chosen in of_lane.items()}
                for place, mask in zip(tables, scored, strict=True)
            },
        )

    def unread(self) -> dict[int, I32]:
        """The visits before the first step of a run."""
        return {lane: np.zeros(len(index), np.int32) for lane, index in self.index.items()}

    def of_classes(self, lane: int, classes: Iterable[Tables], visits: I32) -> list[LaneDocuments]:
        """The documents of a lane as each class finds them, over the same visits."""
        index = self.index[lane]
        masks = [self._readable(lane, tables) for tables in classes]
        by_all: I64 = np.sum(masks, axis=0)
        return [LaneDocuments(lane, index, self.cells, visits, mask, _fewer(by_all, mask)) for mask in masks]

    def _readable(self, lane: int, tables: Tables) -> Bools:
        everything = np.ones(len(self.index[lane]), bool)
        return np.logical_and.reduce([everything, *(self.in_table[place][lane] for place in sorted(tables))])


def _fewer(by_all: I64, mask: Bools) -> I8:
    """How many other classes read each document."""
    return (by_all - mask).astype(np.int8)
