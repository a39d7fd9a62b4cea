"""Datasets: a committed folder of one table, and the protocol that commits it.

Reading trusts `_manifest.json` alone; a folder without one is not a dataset. Writing is `Build`: it adopts or writes
the plan, lets workers write parts and create-only receipts, and commits what the receipts name. A killed build leaves
parts, a plan and some receipts; the next build with the same fingerprint does only the splits that have no receipt,
one with another fingerprint clears the folder first.
"""

import itertools
import json
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from etl.errors import DataError
from etl.hashing import ContentDigest
from etl.storage.location import Location
from etl.storage.manifest import (
    Accounting,
    Manifest,
    Part,
    Plan,
    Receipt,
    accounting_gaps,
    add_counts,
    fingerprint_of,
    sum_counts,
    to_json,
)
from etl.storage.parts import PartWriter

MANIFEST = "_manifest.json"
PLAN = "_plan.json"
RECEIPTS = "_receipts"
CHECKPOINTS = "_checkpoints"


@dataclass(frozen=True)
class Dataset:
    """A committed dataset. Pickles small: a worker reads the manifest again when it needs it."""

    folder: Location

    @classmethod
    def open(cls, url: str | Location) -> "Dataset":
        """The dataset in a folder.

        Raises:
            DataError: there is no committed manifest, or it is damaged.
        """
        dataset = cls(Location.of(url))
        dataset.manifest  # noqa: B018  # read now, so that an absent dataset fails here
        return dataset

    @cached_property
    def manifest(self) -> Manifest:
        try:
            return Manifest.model_validate_json((self.folder / MANIFEST).read())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(
                f"{self.folder} is not a committed dataset (no {MANIFEST}); run the recipe that writes it"
            ) from error
        except ValidationError as error:
            raise DataError(f"{self.folder / MANIFEST} is damaged: {error}; remove it and run the recipe") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    @cached_property
    def _by_split(self) -> dict[int, list[Part]]:
        parts: dict[int, list[Part]] = {}
        for part in self.manifest.parts:
            parts.setdefault(part.split, []).append(part)
        return parts

    def parts_of(self, split: int) -> list[Part]:
        """The parts that a split wrote, in order."""
        return self._by_split.get(split, [])

    def part_location(self, part: Part) -> Location:
        return self.folder / part.path

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

    def read_split(self, split: int, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows of one split, one batch a row group."""
        for part in self.parts_of(split):
            yield from read_part(self.part_location(part), columns)


def read_part(location: Location, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """One batch for each row group of a Parquet file, the columns in the order asked for."""
    with location.open_parquet() as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns).combine_chunks()
            if columns is not None:
                table = table.select(columns)
            batches = table.to_batches()
            if batches:
                yield batches[0].replace_schema_metadata(None)


@dataclass(frozen=True)
class Chunk:
    """What a task hands to the writer: one row group and what it counts for."""

    batch: pa.RecordBatch | None
    """None for counts alone."""
    rows_in: int = 0
    accounting: Accounting = field(default_factory=dict)
    distributions: dict[str, Any] = field(default_factory=dict)
    partition: str = ""
    """Hive folders below the dataset's, e.g. split=train/skill_bucket=B1/ctx_bucket=C1."""


@dataclass(frozen=True)
class Job:
    """The identity of a dataset to be written."""

    folder: Location
    stage: str
    table: str
    schema: pa.Schema
    made_from: dict[str, Any]
    """Everything that decides the rows: step configurations and versions, artefact digests, inputs' digests."""
    base: str = ""
    """Digest of the parts that the dataset is aligned with or whose row keys it holds. Not in the fingerprint, which
    says what the rows are and not how they are cut; but a dataset of another cut is none of ours."""
    thresholds: dict[str, Any] = field(default_factory=dict)
    inherited: Accounting = field(default_factory=dict)
    """Accounts of earlier stages that the manifest repeats, so that the last one tells the whole story."""

    def with_thresholds(self, thresholds: dict[str, Any]) -> "Job":
        """The same job, its manifest recording the thresholds that were applied."""
        return replace(self, thresholds=thresholds)

    def with_inherited(self, accounting: Accounting) -> "Job":
        """The same job, its manifest beginning with the accounts of earlier stages."""
        return replace(self, inherited=accounting)

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({"stage": self.stage, "table": self.table, **self.made_from})


class _Tally:
    """What the chunks of a split add up to."""

    def __init__(self) -> None:
        self.rows_in = 0
        self.digest = ContentDigest()
        self.accounting: Accounting = {}
        self.distributions: dict[str, Any] = {}

    def batches(self, chunks: Iterable[Chunk]) -> Iterator[tuple[str, pa.RecordBatch]]:
        """(partition, batch) of the chunks that have rows; every chunk is counted as it goes by."""
        for chunk in chunks:
            self.rows_in += chunk.rows_in
            self.accounting = add_counts(self.accounting, chunk.accounting)
            self.distributions = add_counts(self.distributions, chunk.distributions)
            if chunk.batch is not None and chunk.batch.num_rows:
                self.digest.add(chunk.batch)
                yield chunk.partition, chunk.batch


class Build:
    """One dataset on its way to its manifest; pickles to the workers, who call `write`."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = job.folder
        self.fingerprint = job.fingerprint

    def committed(self) -> Dataset | None:
        """The dataset, if it is there with this fingerprint."""
        try:
            dataset = Dataset.open(self.folder)
        except DataError:
            return None
        manifest = dataset.manifest
        return dataset if (manifest.fingerprint, manifest.base) == (self.fingerprint, self.job.base) else None

    def run(self, splits: Iterable[Any], work: Callable[[Plan, list[int]], None]) -> Dataset:
        """The dataset: as it is committed, or after `work` has done the splits of the plan that are missing."""
        done = self.committed()
        if done is not None:
            return done
        plan = self.plan(splits)
        missing = self.missing(plan)
        if missing:
            work(plan, missing)
        return self.commit(plan)

    def plan(self, splits: Iterable[Any]) -> Plan:
        """The plan of an interrupted build of the same fingerprint, or a new one after clearing the folder.

        Raises:
            DataError: the folder holds something that no build of ours has left there.
        """
        location = self.folder / PLAN
        plan = self._stored_plan()
        if plan is not None and (plan.fingerprint, plan.base) == (self.fingerprint, self.job.base):
            return plan
        self._clear()
        fresh = Plan(
            fingerprint=self.fingerprint, base=self.job.base, splits=tuple(json.loads(json.dumps(list(splits))))
        )
        if not location.create(to_json(fresh)):
            raise DataError(f"another run is writing {self.folder}; wait for it to end")
        return fresh

    def _stored_plan(self) -> Plan | None:
        try:
            return Plan.model_validate_json((self.folder / PLAN).read())
        except (FileNotFoundError, ValidationError):
            return None

    def _clear(self) -> None:
        """Empty the folder of an earlier build.

        The manifest goes first, so that nobody takes what is being removed for a dataset, and the plan last, so that a
        kill meanwhile leaves a folder that is known to be ours.
        """
        names = [name for name, _ in self.folder.walk()]
        if names and PLAN not in names:
            raise DataError(
                f"{self.folder} holds files (such as {names[0]}) but no {PLAN}, so no run of ours wrote it; "
                "choose another output, or remove that folder yourself"
            )
        (self.folder / MANIFEST).remove()
        self.folder.remove_children(keep=PLAN)
        (self.folder / PLAN).remove()

    def _receipt_location(self, split: int) -> Location:
        return self.folder / f"{RECEIPTS}/{self.fingerprint}/{split:05d}.json"

    def receipt(self, split: int) -> Receipt | None:
        """What a split wrote, asked for by name (a listing may lag behind).

        Raises:
            DataError: the receipt is damaged.
        """
        location = self._receipt_location(split)
        try:
            return Receipt.model_validate_json(location.read())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise DataError(f"{location} is damaged: {error}; remove it and run the recipe again") from error

    def missing(self, plan: Plan) -> list[int]:
        """The splits that have no receipt yet, or whose parts are gone or short; such a receipt is taken back."""
        splits = []
        for split in range(len(plan.splits)):
            receipt = self.receipt(split)
            if receipt is not None and not self._whole(receipt):
                self._receipt_location(split).remove()
                receipt = None
            if receipt is None:
                splits.append(split)
        return splits

    def _whole(self, receipt: Receipt) -> bool:
        return all((self.folder / part.path).size() == part.bytes for part in receipt.parts)

    def write(self, split: int, chunks: Iterable[Chunk]) -> Receipt:
        """Write a split's chunks as parts, then its receipt; a later attempt leaves the first one's receipt."""
        tally = _Tally()
        parts = []
        for partition, rows in itertools.groupby(tally.batches(chunks), key=operator.itemgetter(0)):
            with PartWriter(self.folder, split, self.job.schema, self.job.table, partition) as writer:
                for _, batch in rows:
                    writer.write(batch)
                parts.append(writer.finish())
        receipt = Receipt(
            split=split,
            rows_in=tally.rows_in,
            rows_out=sum(part.rows for part in parts),
            content_digest=str(tally.digest),
            parts=tuple(parts),
            accounting=sum_counts([tally.accounting]),
            distributions=sum_counts([tally.distributions]),
        )
        self.receive(receipt)
        return receipt

    def receive(self, receipt: Receipt) -> None:
        """Store what an attempt wrote, unless another attempt of its split was first."""
        self._receipt_location(receipt.split).create(to_json(receipt))

    def commit(self, plan: Plan) -> Dataset:
        """Delete the parts that lost, then write the manifest from the receipts.

        In this order a kill between the two leaves an uncommitted dataset, which the next run commits, and never a
        committed one with foreign parts beside its own.

        Raises:
            DataError: a split has no receipt (its task failed), or the accounts do not close.
        """
        receipts = []
        for split in range(len(plan.splits)):
            receipt = self.receipt(split)
            if receipt is None:
                raise DataError(f"split {split} of {self.folder} was not written; run again to resume")
            receipts.append(receipt)
        accounting = sum_counts([self.job.inherited, *(receipt.accounting for receipt in receipts)])
        gaps = accounting_gaps(accounting)
        if gaps:
            raise DataError(f"the accounts of {self.folder} do not close: {'; '.join(gaps)}")
        manifest = Manifest(
            stage=self.job.stage,
            table=self.job.table,
            fingerprint=self.fingerprint,
            base=self.job.base,
            made_from=self.job.made_from,
            content_digest=ContentDigest.total(receipt.content_digest for receipt in receipts),
            rows_in=sum(receipt.rows_in for receipt in receipts),
            rows_out=sum(receipt.rows_out for receipt in receipts),
            accounting=accounting,
            thresholds=self.job.thresholds,
            distributions=sum_counts(receipt.distributions for receipt in receipts),
            splits=len(plan.splits),
            parts=tuple(part for receipt in receipts for part in receipt.parts),
        )
        kept = {part.path for part in manifest.parts}
        for path, _ in self.folder.walk():
            if path not in kept and not any(piece.startswith("_") for piece in path.split("/")):
                (self.folder / path).remove()
        (self.folder / CHECKPOINTS).remove_tree()
        (self.folder / MANIFEST).replace(to_json(manifest))
        return Dataset.open(self.folder)


def write_dataset(url: str | Location, stage: str, table: str, tables: dict[str, pa.Table]) -> Dataset:
    """Commit some in-memory tables, one part in each named partition folder ("" for none); for tests and tools."""
    schema = next(iter(tables.values())).schema
    build = Build(Job(Location.of(url), stage, table, schema, {"parts": sorted(tables)}))
    plan = build.plan(sorted(tables))
    for split, partition in enumerate(plan.splits):
        batches = tables[partition].combine_chunks().to_batches()
        build.write(split, (Chunk(batch, batch.num_rows, partition=partition) for batch in batches))
    return build.commit(plan)
