"""Datasets: a committed folder of one table or of opaque files, as drivers and workers read it.

Readers use only `_manifest.json`; a folder without one is not a dataset. etl/storage/build.py commits it.

A worker gets a `DatasetRef` and never reads a manifest: it asks for the receipt of its split by name, so its cost does
not grow with the number of splits. The driver reads receipts with `NUM_READERS` threads: one small GET each.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import pyarrow as pa

from etl.errors import DataError
from etl.storage.location import Location
from etl.storage.manifest import Manifest, Part, Receipt
from etl.storage.untrusted import read_object

T = TypeVar("T")
R = TypeVar("R")

MANIFEST = "_manifest.json"
PLAN = "_plan.json"
RECEIPTS = "_receipts"
CHECKPOINTS = "_checkpoints"
TASK_COSTS = "_task_costs"
CLOSED = "_closed"
"""Names of abandoned builds, so that their stragglers know."""
NUM_READERS = 16
_FEW = 64
"""Number of objects on a disk that are read without threads."""


@dataclass(frozen=True)
class DatasetRef:
    """A dataset as a worker reads it, split by split, from the receipts; pickles small.

    What it names is committed, or its splits are written by the tasks that read them.
    """

    folder: Location
    stage: str
    num_splits: int
    receipts: str
    """Name of the build that wrote it, and of the folder of its receipts."""

    def parts_of(self, split: int) -> tuple[Part, ...]:
        """The parts that a split wrote, in order.

        Raises:
            DataError: its receipt is gone or damaged.
        """
        receipt = read_receipt(self.folder, self.receipts, split)
        if receipt is None:
            raise DataError(
                f"{self.folder / receipt_path(self.receipts, split)} is missing; remove {self.folder / MANIFEST} "
                "and run the recipe again"
            )
        return receipt.parts

    def part_location(self, part: Part) -> Location:
        return self.folder / part.path

    def open(self) -> "Dataset":
        """The dataset with its manifest, once it is committed: one GET."""
        return Dataset.open(self.folder)

    def read_split(self, split: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of one split, one batch a row group."""
        for part in self.parts_of(split):
            yield from read_part(self.part_location(part), columns)


@dataclass(frozen=True)
class Dataset:
    """A committed dataset."""

    ref: DatasetRef
    manifest: Manifest

    @classmethod
    def open(cls, url: str | Location) -> "Dataset":
        """The dataset in a folder.

        Raises:
            DataError: there is no committed manifest, or it is damaged.
        """
        folder = Location.of(url)
        return cls.of(folder, _read_manifest(folder))

    @classmethod
    def of(cls, folder: Location, manifest: Manifest) -> "Dataset":
        """The dataset that a manifest describes."""
        return cls(DatasetRef(folder, manifest.stage, manifest.splits, manifest.receipts), manifest)

    @property
    def folder(self) -> Location:
        return self.ref.folder

    def done(self) -> bool:
        """As `Pending.done`: there is nothing to wait for."""
        return True

    def result(self) -> "Dataset":
        """As `Pending.result`: the dataset itself."""
        return self

    def part_location(self, part: Part) -> Location:
        return self.ref.part_location(part)

    def check_part(self, part: Part) -> None:
        """Check that a part exists with the manifest's size: one HEAD.

        Raises:
            DataError: it is missing, or of another size.
        """
        size = self.part_location(part).size()
        if size != part.bytes:
            found = "is gone" if size is None else f"has {size:,} bytes"
            raise DataError(
                f"{self.part_location(part)} {found}, but the manifest says {part.bytes:,} bytes; run `stillhouse "
                f"verify {self.folder}`, then the recipe that writes it"
            )

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the parts; empty for a dataset without rows."""
        if not self.manifest.parts:
            return pa.schema([])
        return self.part_location(self.manifest.parts[0]).open_parquet().schema_arrow.remove_metadata()

    def read(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Every row, one batch a row group, in the order of the manifest."""
        for part in self.manifest.parts:
            yield from read_part(self.part_location(part), columns)


class Pending:
    """A future of a dataset whose work an engine has delayed. Stays on the driver; a worker gets `ref`."""

    def __init__(self, ref: DatasetRef, settle: Callable[[], None]) -> None:
        """A dataset that `settle` will write by running and committing delayed maps."""
        self.ref = ref
        self._settle = settle
        self._dataset: Dataset | None = None

    def set_result(self, dataset: Dataset) -> None:
        """Called by the engine once the dataset is committed."""
        self._dataset = dataset

    def done(self) -> bool:
        """Whether it is committed, so that asking for the result runs nothing."""
        return self._dataset is not None

    def result(self) -> Dataset:
        """The committed dataset; the first call is a barrier.

        Raises:
            StillhouseError: what a task raised, now or when the engine ran it before.
        """
        if self._dataset is None:
            self._settle()
        if self._dataset is None:
            raise DataError(f"{self.ref.folder} was not committed; run again to resume")
        return self._dataset


DatasetLike = Dataset | Pending
"""Passed from stage to stage on the driver: `ref` is always available, `result()` gives the manifest."""


_CORPUS = "corpus"
"""The folder of a run's output that users most often need."""


def _read_manifest(folder: Location) -> Manifest:
    try:
        return read_object(folder / MANIFEST, Manifest, "remove it and run the recipe")
    except (FileNotFoundError, NotADirectoryError) as error:
        is_run = (folder / _CORPUS / MANIFEST).exists()
        what = (
            f"name {folder / _CORPUS}" if is_run else "name a run's folder 'corpus', or run the recipe that writes it"
        )
        raise DataError(f"{folder} is not a committed dataset (no {MANIFEST}); {what}") from error


def receipt_path(receipts: str, split: int) -> str:
    """Where a build's receipt of a split lies, below the folder of the dataset."""
    return f"{RECEIPTS}/{receipts}/{split:05d}.json"


def read_receipt(folder: Location, receipts: str, split: int) -> Receipt | None:
    """The receipt of a split, read by name (a listing may be outdated); None if there is none yet.

    Raises:
        DataError: the receipt is damaged.
    """
    location, remedy = folder / receipt_path(receipts, split), "remove it and run the recipe again"
    try:
        receipt = read_object(location, Receipt, remedy)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if receipt.split != split:
        raise DataError(f"{location} is damaged: it belongs to split {receipt.split}; {remedy}")
    return receipt


def read_receipts(folder: Location, receipts: str, num_splits: int) -> list[Receipt | None]:
    """The receipts of all splits of a build, several read at a time; None for a split that has none yet.

    Raises:
        DataError: a receipt is damaged.
    """
    return read_all(folder, lambda split: read_receipt(folder, receipts, split), range(num_splits))


def read_all(folder: Location, read: Callable[[T], R], names: Sequence[T]) -> list[R]:
    """What `read` gives for each of some small objects of a folder, in order, several read at a time.

    A few on a disk are read in sequence, as starting threads would take longer.
    """
    if folder.is_local and len(names) <= _FEW:
        return [read(name) for name in names]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        return list(pool.map(read, names))


def is_ours(path: str) -> bool:
    """True for objects of the protocol, which readers of a dataset skip."""
    return any(piece.startswith("_") for piece in path.split("/"))


def read_part(location: Location, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """One batch per row group of a Parquet file, with the columns in the given order."""
    with location.open_parquet() as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns).combine_chunks()
            if columns is not None:
                table = table.select(columns)
            batches = table.to_batches()
            if batches:
                yield batches[0].replace_schema_metadata(None)
