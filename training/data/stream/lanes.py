"""One rank's view of the stream: it owns some lanes, reads only those, and gives its packs of every global step.

At the start of a segment the rank plans its lanes from their index (cursor.py) and reads, in one sweep, the documents
that its packs from here on need; a resumed rank so never reads what is behind it. When half of a segment has been given
out, a thread begins the next one (its decision record is taken then), so that a step does not wait for the store.
Memory: the index of the own lanes, about 150 bytes a document, and the documents of two segments at most, 2 x 4 x
segment_tokens / world bytes of tokens and less for their spans. How the lanes are dealt, ordered and packed is the
business of plan.py and the files beside it.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from etl.arrays import I64
from training.data.collate import Pack, collate
from training.data.documents import Documents
from training.data.reader import CorpusReader
from training.data.stream.cursor import NO_DOCUMENTS, CursorPlan, PlannedSegment, PlannedStep, PlannedStream, Supply
from training.data.stream.plan import DocumentIndex, StreamConfig, StreamState

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
class _Read:
    """The documents of the own packs of a segment, from some pack of it on."""

    documents: Sequence[Documents]
    """Of each class."""
    packs: Sequence[I64]
    """Of each own slot of the segment: numbers in the documents of its class; none for what was not read."""


class RankStream:
    """The stream of one rank; it owns its readers."""

    def __init__(self, plan: CursorPlan, readers: Sequence[CorpusReader]) -> None:
        """Reads nothing yet.

        Args:
            plan: which documents each step is of.
            readers: of each class of the plan.
        """
        self._planned = PlannedStream(plan)
        self._readers = readers
        self._micro_steps = self.config.micro_steps(plan.own.world)
        self._documents: _Read | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="next-segment")
        self._ahead: Future[_Read] | None = None

    @property
    def config(self) -> StreamConfig:
        """What is read, with numbers for what depends on the corpus."""
        return self._planned.plan.config

    @property
    def state(self) -> StreamState:
        """Position of the stream: everything before it has been returned."""
        return self._planned.state

    @property
    def global_batch_packs(self) -> int:
        """Packs of a global step over all ranks, fillers left out."""
        return self._planned.global_batch_packs

    def labels(self, class_: int = 0) -> Sequence[tuple[str | None, ...]]:
        """What `Pack.label` numbers in the steps of a class: source, buckets and licence."""
        return self._readers[class_].labels

    def supply(self, class_: int = 0) -> Supply:
        """What a class can be trained on of the own lanes, under the shares that hold now."""
        return self._planned.supply(class_)

    def seek(self, state: StreamState) -> None:
        """Resume from a state of any rank of a run over the same log; for a stream that has given out nothing.

        Raises:
            ConfigError: the log up to there is another one.
        """
        self._planned.seek(state)
        if state.pack:
            assert self._planned.current is not None, "it was sought inside of one"
            self._documents = self._read(self._planned.current, state.pack)

    def next_step(self) -> LocalStep:
        """The packs of the next global step."""
        if self._planned.at_border:
            ahead, self._ahead, self._documents = self._ahead, None, None
            self._documents = ahead.result() if ahead else self._read(self._planned.plan_ahead(), 0)
        step = self._planned.next_step()
        if 2 * step.stop >= self.config.segment_packs:
            self._begin_next(step.segment)
        missing = self._micro_steps - len(step.positions)
        packs = (*self._packs(step), *(self._pack(step.class_, NO_DOCUMENTS) for _ in range(missing)))
        return LocalStep(packs, (*step.slots, *[FILLER] * missing), step.lanes_left)

    def close(self) -> None:
        """End the thread after its current work, and close the readers."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        for reader in self._readers:
            reader.close()

    def _packs(self, step: PlannedStep) -> Sequence[Pack]:
        assert self._documents is not None, "read with the segment"
        return [self._pack(step.class_, self._documents.packs[position]) for position in step.positions]

    def _pack(self, class_: int, numbers: I64) -> Pack:
        assert self._documents is not None, "read with the segment"
        return collate(self._documents.documents[class_].select(numbers), self.config.pack_tokens)

    def _begin_next(self, segment: PlannedSegment) -> None:
        """Plan and read the next segment beside the rest of this one, if own lanes have more."""
        if self._ahead is None and segment.left.any():
            self._ahead = self._thread.submit(lambda: self._read(self._planned.plan_ahead(), 0))

    def _read(self, segment: PlannedSegment, start: int) -> _Read:
        """The own packs of a segment from `start` on, the documents of a class in one sweep over the row groups."""
        packs = [NO_DOCUMENTS] * len(segment.slots)
        of_class = []
        for class_, reader in enumerate(self._readers):
            indexes: list[DocumentIndex] = []
            num_documents = 0
            for lane, index in self._planned.plan.own.index.items():
                chosen = (segment.slots >= start) & (segment.lane == lane) & (segment.slot_class == class_)
                positions = np.flatnonzero(chosen).tolist()
                own = [segment.packs[position] for position in positions]
                unique, numbers = np.unique(np.concatenate([NO_DOCUMENTS, *own]), return_inverse=True)
                ends = np.cumsum([0, *(len(documents) for documents in own)])
                for place, position in enumerate(positions):
                    packs[position] = num_documents + numbers[ends[place] : ends[place + 1]]
                indexes.append(index.take(unique))
                num_documents += len(unique)
            of_class.append(reader.gather(DocumentIndex.concatenate(indexes), np.arange(num_documents)))
        return _Read(of_class, packs)
