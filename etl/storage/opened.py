"""Reads the output of a run: `Run.open(DIR)`.

DIR is a run's output, a folder above several of them, or a single dataset. Opening reads nothing; each property is read
once, when it is needed:

    record, stages           one GET
    committed, started       one LIST of the folder
    state of a folder        one HEAD or two
    a dataset                one GET, of its manifest
    datasets, accounts …     the LIST, and one GET a dataset, several at a time
    progress of a build      one GET, of its plan, and one LIST of its receipts; no receipt is read

An output without `_run.json`, from an early version, can be opened too: its datasets are known, its stages are not.
"""

import posixpath
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from etl.errors import DataError
from etl.storage.dataset import MANIFEST, NUM_READERS, PLAN, RECEIPTS, Dataset
from etl.storage.location import Entry, Location
from etl.storage.manifest import Accounting, Plan, add_counts
from etl.storage.record import RECORD, RunRecord, StageRecord, read_record
from etl.storage.untrusted import read_object

CORPUS = "CORPUS"
"""The table of a corpus, which repeats the accounts of all stages before it."""


State = Literal["committed", "started", "absent"]
"""Of a folder: a dataset, a build that did not end, or none of ours."""


def dataset_folders(paths: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of a listing, the folders with a manifest, and those with a plan but no manifest; "" is the listing's root."""
    names = {MANIFEST: set[str](), PLAN: set[str]()}
    for path in paths:
        folder, name = posixpath.split(path)
        if name in names:
            names[name].add(folder)
    return tuple(sorted(names[MANIFEST])), tuple(sorted(names[PLAN] - names[MANIFEST]))


@dataclass(frozen=True)
class Progress:
    """Progress of an unfinished build."""

    done: int
    """Splits that have a receipt."""
    splits: int


@dataclass(frozen=True)
class Run:
    """The output of a run. Folders are named by their path below `root`; "" if `root` is the dataset."""

    root: Location
    _opened: dict[str, Dataset] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, place: str | Path | Location | Self) -> Self:
        """The run in a folder; reads nothing yet, so the folder need not be there. A run is taken as it is."""
        return place if isinstance(place, Run) else cls(Location.of(place))

    def place(self, folder: str) -> Location:
        """Where a folder lies."""
        return self.root / folder if folder else self.root

    # --- what the run says of itself ---

    @cached_property
    def record(self) -> RunRecord | None:
        """The run's record; None if there is none.

        Raises:
            DataError: it is damaged, or has the format of another version.
        """
        return read_record(self.root / RECORD)

    @property
    def recipe(self) -> dict[str, Any] | None:
        """The recipe in JSON types, without places; None if there is no record."""
        return self.record.recipe if self.record else None

    @property
    def stages(self) -> tuple[StageRecord, ...]:
        """The stages in their order; none where there is no record."""
        return self.record.stages if self.record else ()

    # --- what is there ---

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every object at or below the folder, sorted by path."""
        return tuple(self.root.entries())

    def sizes(self, folder: str) -> dict[str, int]:
        """Path below a folder -> bytes, of every object in it."""
        prefix = f"{folder}/" if folder else ""
        return {entry.path.removeprefix(prefix): entry.bytes for entry in self.entries if entry.path.startswith(prefix)}

    @cached_property
    def _folders(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return dataset_folders(entry.path for entry in self.entries)

    @property
    def committed(self) -> tuple[str, ...]:
        """Folders with a manifest, sorted."""
        return self._folders[0]

    @property
    def started(self) -> tuple[str, ...]:
        """Folders of builds that did not end: with a plan but no manifest; sorted."""
        return self._folders[1]

    @property
    def recorded(self) -> tuple[str, ...]:
        """Folders of runs that left a record, sorted: "" for this one, and those of others further down."""
        places = (posixpath.split(entry.path) for entry in self.entries)
        return tuple(sorted(folder for folder, name in places if name == RECORD))

    def dataset_of(self, path: str) -> str | None:
        """The folder of the dataset, or of the build, that an object lies in; None for one outside all of them."""
        while path:
            path = posixpath.dirname(path)
            if path in self._all_folders:
                return path
        return None

    @cached_property
    def _all_folders(self) -> frozenset[str]:
        return frozenset((*self.committed, *self.started))

    def state(self, folder: str) -> State:
        """What is in one folder, without a listing: one HEAD, or two."""
        place = self.place(folder)
        if (place / MANIFEST).exists():
            return "committed"
        return "started" if (place / PLAN).exists() else "absent"

    def dataset(self, folder: str) -> Dataset:
        """A committed dataset.

        Raises:
            DataError: there is none, or its manifest is damaged.
        """
        if folder not in self._opened:
            self._opened[folder] = Dataset.open(self.place(folder))
        return self._opened[folder]

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """Every committed dataset by its folder, sorted.

        Raises:
            DataError: a manifest is damaged.
        """
        with ThreadPoolExecutor(NUM_READERS) as pool:
            return dict(zip(self.committed, pool.map(self.dataset, self.committed), strict=True))

    def plan(self, folder: str) -> Plan:
        """What a build that did not end was to do.

        Raises:
            DataError: there is no plan, or it is damaged.
        """
        place = self.place(folder) / PLAN
        try:
            return read_object(place, Plan, "look at the folder, and remove it if nobody needs it")
        except FileNotFoundError as error:
            raise DataError(f"there is no {place}; run the recipe") from error

    def progress(self, folder: str) -> Progress:
        """How far a build came that did not end, by the names of its receipts.

        Raises:
            DataError: there is no plan, or it is damaged.
        """
        plan = self.plan(folder)
        receipts = self.place(folder) / RECEIPTS / plan.name
        return Progress(sum(1 for _ in receipts.walk()), len(plan.splits))

    # --- what its manifests say, together ---

    @cached_property
    def own(self) -> dict[str, Dataset]:
        """The committed datasets of the stages of the record; all of them where there is no record."""
        record = self.record
        return {folder: found for folder, found in self.datasets.items() if record is None or record.owns(folder)}

    @cached_property
    def corpus(self) -> Dataset | None:
        """The corpus; None if none is committed."""
        found = [dataset for dataset in self.own.values() if dataset.manifest.table == CORPUS]
        return found[-1] if found else None

    @cached_property
    def accounts(self) -> Accounting:
        """Source -> step -> reason -> rows over the whole run, closed or not; the steps in the order of the run.

        Of the corpus where there is one, since its manifest holds every step; before that, what the stages have written
        so far. Without a record the order of steps is told by their rows.
        """
        if self.corpus is not None:
            found = self.corpus.manifest.accounting
        else:
            found = {}
            for dataset in self.own.values():
                if dataset.manifest.accounts_rows:
                    found = add_counts(found, dataset.manifest.accounting)
        order = self.record.steps if self.record else _by_rows(found)
        return {source: _in_order(steps, order) for source, steps in sorted(found.items())}

    @cached_property
    def thresholds(self) -> dict[str, dict[str, Any]]:
        """Folder -> group -> threshold, of every cut."""
        found = {folder: dataset.manifest.thresholds for folder, dataset in self.own.items()}
        return {folder: thresholds for folder, thresholds in found.items() if thresholds}

    @cached_property
    def findings(self) -> dict[str, dict[str, Any]]:
        """Folder -> what the run measured of itself there."""
        found = {folder: dataset.manifest.findings for folder, dataset in self.own.items()}
        return {folder: findings for folder, findings in found.items() if findings}


def _by_rows(accounting: Accounting) -> tuple[str, ...]:
    """The steps of accounts in an order in which each gets what the one before it kept.

    Rows only become fewer, so that is the order of rows that come in; of two steps that get the same number, the one
    that kept them all was first.
    """
    totals: dict[str, list[int]] = {}
    for steps in accounting.values():
        for step, counts in steps.items():
            total = totals.setdefault(step, [0, 0])
            total[0] += counts.get("in", 0)
            total[1] += counts.get("kept", 0)
    return tuple(sorted(totals, key=lambda step: (-totals[step][0], -totals[step][1], step != "ingest", step)))


def _in_order(steps: dict[str, dict[str, int]], order: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """The steps in an order; those that it does not know come last."""
    known = [step for step in order if step in steps]
    return {step: steps[step] for step in (*known, *sorted(steps.keys() - set(known)))}
