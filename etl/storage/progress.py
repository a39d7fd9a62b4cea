"""How far a job is, from what its tasks have left beside the dataset that they write; the same on every engine.

    _receipts/<build>/<split>.json                   a split that is written: its rows, tokens and losses
    _task_costs/<build>/map-<split>.json             a task of a shuffle's map side that is over
    _checkpoints/<plan>/<split>/<row>.arrow          how far a slow step is in a split that is not written yet

So a driver on a cluster sees what its workers do, whichever engine runs them. It is for people alone: a listing may lag
behind, and nothing that is committed rests on it. A look costs up to three LISTs a dataset, and a GET for each receipt
that is new.
"""

import posixpath
from dataclasses import astuple, dataclass

from etl.storage.costs import is_map_task
from etl.storage.dataset import CHECKPOINTS, RECEIPTS, TASK_COSTS, DatasetRef, read_all, read_receipt
from etl.storage.location import Location
from etl.storage.manifest import Receipt, losses


@dataclass(frozen=True)
class Writing:
    """A dataset that a job is about to write."""

    ref: DatasetRef
    work: str
    """Fingerprint of its plan, which names its checkpoints."""
    done: frozenset[int] = frozenset()
    """Splits that an earlier run wrote."""
    num_map_tasks: int = 0


@dataclass(frozen=True)
class Counts:
    """What one task did, or several: for people who watch; the dataset's own accounts come from receipts alone."""

    rows_in: int = 0
    rows_out: int = 0
    tokens: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, receipt: Receipt) -> "Counts":
        lost = sum(losses(steps).total() for steps in receipt.accounting.values())
        tokens = sum(part.tokens or 0 for part in receipt.parts)
        return cls(receipt.rows_in, receipt.rows_out, tokens, lost)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        return f"{self.rows_in:,} rows in, {self.rows_out:,} out, {self.dropped:,} dropped, {self.tokens:,} tokens"


@dataclass(frozen=True)
class Seen:
    """How far a dataset is."""

    tasks: int
    """That are to run, those of the map side among them."""
    tasks_done: int
    counts: Counts
    """Of the splits that were written since the job began."""
    rows_in_checkpoints: int = 0
    """Of splits that are not written yet; a little less than there are, since a checkpoint says where it begins."""


class Watched:
    """A dataset under construction, looked at now and then."""

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        self._seen: set[int] = set()
        self._counts = Counts()
        # Of an interrupted run, which this one may do again. A fresh build has none, however late this looks.
        self._old_map_tasks = self._map_tasks() if writing.done else set()

    def look(self) -> Seen:
        """How far it is now.

        Raises:
            StillhouseError: the store cannot be listed or read, or a receipt is damaged.
        """
        ref = self._writing.ref
        self._read_receipts()
        map_tasks = self._map_tasks() - self._old_map_tasks
        to_map = self._writing.num_map_tasks - len(self._old_map_tasks)
        to_write = ref.num_splits - len(self._writing.done)
        return Seen(to_write + to_map, len(self._seen) + len(map_tasks), self._counts, self._rows_in_checkpoints())

    def _read_receipts(self) -> None:
        ref = self._writing.ref
        found = _names(ref.folder / RECEIPTS / ref.receipts)
        there = {int(stem) for name in found if (stem := name.removesuffix(".json")).isdecimal()}
        new = sorted(there - self._seen - self._writing.done)
        receipts = read_all(ref.folder, lambda split: read_receipt(ref.folder, ref.receipts, split), new)
        for split, receipt in zip(new, receipts, strict=True):
            if receipt is not None:
                self._seen.add(split)
                self._counts += Counts.of(receipt)

    def _map_tasks(self) -> set[str]:
        ref = self._writing.ref
        if not self._writing.num_map_tasks:
            return set()
        return {name for name in _names(ref.folder / TASK_COSTS / ref.receipts) if is_map_task(name)}

    def _rows_in_checkpoints(self) -> int:
        rows: dict[int, int] = {}
        for path in _names(self._writing.ref.folder / CHECKPOINTS / self._writing.work):
            split, name = posixpath.split(path)
            row = name.removesuffix(".arrow")
            if split.isdecimal() and row.isdecimal():
                rows[int(split)] = max(rows.get(int(split), 0), int(row))
        return sum(begins for split, begins in rows.items() if split not in self._seen)


def _names(folder: Location) -> list[str]:
    return [path for path, _ in folder.walk()]
