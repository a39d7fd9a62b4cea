"""The interface of a stream to the trainer: global steps in order, a state to resume from, an end.

`RankStream` (lanes.py beside this file) draws documents from a corpus; training/stages/stream.py deals the steps of a
stage to one `DocumentStream` a cursor and is itself a `Stream`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from training.data.stream.plan import StreamState

if TYPE_CHECKING:
    from training.data.collate import Pack
    from training.data.stream.cursor import Supply


class Step(Protocol):
    """One rank's share of a global step."""

    @property
    def packs(self) -> "tuple[Pack, ...]":
        """The same number on every rank; fillers have no document."""
        ...

    @property
    def slots(self) -> tuple[int, ...]:
        """The place of each pack among those of the global step."""
        ...

    @property
    def lanes_left(self) -> int:
        """Of this rank's lanes, those that have a document left; 0 on every rank where the stream is over."""
        ...


class Stream(Protocol):
    """The steps that one rank sees."""

    @property
    def state(self) -> Any:
        """Its position: everything before it has been returned."""
        ...

    def seek(self, state: Any) -> None:
        """Resume from a state of any rank; before the first step only."""
        ...

    def next_step(self) -> Step:
        """The next global step."""
        ...

    def close(self) -> None:
        """Release the stream's resources."""
        ...


class DocumentStream(Stream, Protocol):
    """A stream of one cursor."""

    @property
    def state(self) -> StreamState: ...

    @property
    def global_batch_packs(self) -> int:
        """Packs of a global step over all ranks, fillers left out."""
        ...

    def labels(self, class_: int) -> Sequence[tuple[str | None, ...]]:
        """What `Pack.label` numbers in the steps of a class: what training/record/ledger.py's KEYS are, in order."""
        ...

    def supply(self, class_: int) -> "Supply":
        """What a class can be trained on of this rank's lanes."""
        ...
