"""The protocol that commits a dataset: `Build` on the driver, `SplitWriter` on the workers.

A build adopts or writes the plan, workers write parts and create-only receipts, and the build commits the parts that
the receipts name. A killed build leaves parts, a plan and some receipts. The next build with the same plan writes only
the splits without a receipt; any other build closes the old one and clears the folder. A commit costs a GET per split
and a LIST of the folder. The file is long because the protocol is a whole: what plan, part, receipt and commit may
assume of each other can be read here from top to bottom.
"""

import contextlib
import itertools
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import pyarrow as pa

from etl.errors import DataError
from etl.hashing import ContentDigest
from etl.laws import LIVE_ROWS, Growth
from etl.schema import Digested
from etl.storage.costs import (
    DATASET_COSTS,
    BuildCosts,
    DatasetCosts,
    EngineCost,
    TaskCosts,
    split_task,
    write_cost,
)
from etl.storage.dataset import (
    CHECKPOINTS,
    CLOSED,
    MANIFEST,
    NUM_READERS,
    PLAN,
    TASK_COSTS,
    Dataset,
    DatasetLike,
    DatasetRef,
    is_ours,
    read_receipt,
    read_receipts,
    receipt_path,
)
from etl.storage.local_files import linked_folder
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
from etl.storage.parts import PartWriter, file_content, upload_files
from etl.storage.untrusted import MAX_OBJECT_BYTES, NotOursError, parse_object, read_object
from etl.usage import TaskMeter, look_at_memory

_HASHED_TABLES = {"TOKENIZED": "TOKENIZE"}
"""Names that fingerprints hash in place of a table's name. TOKENIZED was TOKENIZE in the first manifests; a different
fingerprint would tokenize all of it again."""


@dataclass(frozen=True)
class Chunk:
    """A task's output for the writer: one row group and its counts."""

    batch: pa.RecordBatch | None
    """None for counts only."""
    rows_in: int = 0
    accounting: Accounting = field(default_factory=dict)
    distributions: dict[str, Any] = field(default_factory=dict)
    partition: str = ""
    """Hive folders below the dataset's, e.g. split=train/skill_bucket=B1/ctx_bucket=C1."""


def _is_no_piece(_: Any) -> bool:
    return False


@dataclass(frozen=True)
class Job:
    """The identity of a dataset to be written."""

    folder: Location
    stage: str
    table: str
    schema: pa.Schema
    semantic: dict[str, Any]
    """Everything but the inputs that decides the rows: step configurations and versions, artefact digests."""
    inputs: tuple[DatasetLike, ...] = ()
    base: DatasetLike | None = None
    """The dataset that it is aligned with or whose row keys it holds. Its cut is not in the fingerprint, which says
    what the rows are and not how they are cut; but a dataset of another cut is none of ours."""
    places_of: DatasetLike | None = None
    """In the place of a base, the dataset whose files and positions it repeats. They are no content either, so it is
    made again where that is made from other files."""
    thresholds: dict[str, Any] = field(default_factory=dict)
    inherited: Accounting = field(default_factory=dict)
    """Accounting of earlier stages that the manifest repeats, so that the last manifest has all of it."""
    findings: dict[str, Any] = field(default_factory=dict)
    findings_of: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """Makes the findings from the distributions of all splits; None where `findings` are all."""
    num_buckets: int = 0
    """Of the shuffle that writes it, 0 for a map. Rows are dealt by it, so a plan of another number is not resumed."""
    grows: Growth = LIVE_ROWS
    """How it grows with the input; not part of the fingerprint."""
    is_piece: Callable[[Any], bool] = _is_no_piece
    """Whether a split of a stored plan, which anybody may have written, is a piece of this work, where the work may be
    cut in more than one way. Where it may not, only this run's own splits are resumed."""

    def with_thresholds(self, thresholds: dict[str, Any]) -> "Job":
        """The same job, with the applied thresholds in its manifest."""
        return replace(self, thresholds=thresholds)

    def with_inherited(self, accounting: Accounting) -> "Job":
        """The same job, with the accounting of earlier stages in its manifest."""
        return replace(self, inherited=accounting)

    def with_findings(self, findings: dict[str, Any]) -> "Job":
        """The same job, with findings in its manifest; they are not part of the fingerprint."""
        return replace(self, findings=findings)

    def with_findings_of(self, fn: Callable[[dict[str, Any]], dict[str, Any]]) -> "Job":
        """The same job, with findings that `fn` makes from the distributions of all splits."""
        return replace(self, findings_of=fn)

    def with_pieces(self, is_piece: Callable[[Any], bool]) -> "Job":
        """The same job, whose interrupted build may have other splits."""
        return replace(self, is_piece=is_piece)

    def with_places_of(self, dataset: DatasetLike) -> "Job":
        """The same job, whose dataset repeats the files and positions of another one."""
        return replace(self, places_of=dataset)

    def with_buckets(self, num_buckets: int) -> "Job":
        """The same job as a shuffle into this many buckets."""
        return replace(self, num_buckets=num_buckets)

    @property
    def waits(self) -> bool:
        """True while an input is not committed and the fingerprint is therefore unknown."""
        return not all(dataset.done() for dataset in self.needed)

    @property
    def needed(self) -> tuple[DatasetLike, ...]:
        """Datasets that have to be committed before this one can be made."""
        return (*self.inputs, *(dataset for dataset in (self.base, self.places_of) if dataset is not None))

    @property
    def made_from(self) -> dict[str, Any]:
        """Everything that the fingerprint is a hash of."""
        inputs = {dataset.ref.stage: dataset.result().manifest.content_digest for dataset in self.inputs}
        return {**self.semantic, "inputs": inputs} if inputs else self.semantic

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({"stage": self.stage, "table": self._hashed_table, **self.made_from})

    @property
    def _hashed_table(self) -> str:
        return _HASHED_TABLES.get(self.table, self.table)

    @property
    def belongs_to(self) -> str:
        """`Manifest.base` of the dataset."""
        if self.places_of is not None:
            return self.places_of.result().manifest.fingerprint
        return self.base.result().manifest.cut if self.base is not None else ""

    def is_base_of(self, old: Manifest) -> bool:
        """Whether a committed dataset has the row keys, the order of rows or the places that this one is to have."""
        if self.base is not None:
            return old.is_cut_as(self.base.result().manifest)
        return old.base == self.belongs_to

    @property
    def plan_fingerprint(self) -> str:
        """What a plan is resumed by: inputs by the build that writes them, so it is known before they are committed."""
        inputs = {dataset.ref.stage: dataset.ref.receipts for dataset in self.inputs}
        of = self.base or self.places_of
        base = of.ref.receipts if of is not None else ""
        return fingerprint_of(
            {
                "stage": self.stage,
                "table": self._hashed_table,
                "semantic": self.semantic,
                "inputs": inputs,
                "base": base,
                "num_buckets": self.num_buckets,
            }
        )


class _Tally:
    """The sums over the chunks of a split."""

    def __init__(self, digested: Digested) -> None:
        self.rows_in = 0
        self.digest = ContentDigest(digested=digested)
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
                look_at_memory()
                yield chunk.partition, chunk.batch


@dataclass(frozen=True)
class SplitWriter:
    """A build as its workers see it: writes the parts and the receipt of one split. Pickles small."""

    folder: Location
    name: str
    """The build's."""
    schema: pa.Schema
    table: str

    @contextlib.contextmanager
    def measured(self, split: int) -> Iterator[None]:
        """Context manager around a task's work on a split: stores its cost beside the receipt."""
        with TaskMeter() as meter:
            yield
        write_cost(self.folder, self.name, split_task(split), meter.usage())

    def write(self, split: int, chunks: Iterable[Chunk]) -> Receipt:
        """Write a split's chunks as parts, then its receipt; returns the receipt of the first attempt.

        Raises:
            DataError: the build was abandoned in the meantime.
        """
        tally = _Tally(Digested.of(self.schema))
        parts = []
        for partition, rows in itertools.groupby(tally.batches(chunks), key=operator.itemgetter(0)):
            with PartWriter(self.folder, split, self.schema, self.table, partition, self.name) as writer:
                for _, batch in rows:
                    writer.write(batch)
                parts.append(writer.finish())
        receipt = Receipt(
            split=split,
            rows_in=tally.rows_in,
            rows_out=sum(part.rows for part in parts),
            content_digest=str(tally.digest),
            sequence=tally.digest.sequence,
            parts=tuple(parts),
            accounting=sum_counts([tally.accounting]),
            distributions=sum_counts([tally.distributions]),
        )
        return self._receive(receipt)

    def write_files(
        self, split: int, stem: str, files: Mapping[str, Path], rows_in: int, distributions: dict[str, Any]
    ) -> Receipt:
        """As `write`, with finished local files as the parts: no rows, named `<stem>-<16 hex><suffix>`.

        Args:
            split: that they are the parts of.
            stem: how their names begin.
            files: by the suffix of its name, which is not that of Parquet.
            rows_in: rows that they were made from.
            distributions: counts for the manifest.

        Raises:
            DataError: no room for them, or the build was abandoned in the meantime.
        """
        parts = upload_files(self.folder, split, stem, files)
        receipt = Receipt(
            split=split,
            rows_in=rows_in,
            rows_out=0,
            content_digest=file_content(parts),
            parts=parts,
            distributions=distributions,
        )
        return self._receive(receipt)

    def _receive(self, receipt: Receipt) -> Receipt:
        """Store what an attempt wrote; when another attempt of its split was first, delete what only this one wrote.

        The parts are there already, and a build is closed before its folder is listed and cleared. So whoever clears
        either sees them or has closed the build before the look at `_closed` here: no part stays behind.

        Raises:
            DataError: the build was abandoned in the meantime.
        """
        if (self.folder / CLOSED / self.name).exists():
            self._remove(receipt.parts, keep=())
            raise DataError(f"the build {self.name} of {self.folder} was abandoned for another one; nothing is written")
        if (self.folder / receipt_path(self.name, receipt.split)).create(to_json(receipt)):
            return receipt
        first = read_receipt(self.folder, self.name, receipt.split)
        if first is None:
            raise DataError(
                f"the receipt of split {receipt.split} of {self.folder} was removed while it was read; run again "
                "to resume"
            )
        self._remove(receipt.parts, keep=first.parts)
        return first

    def _remove(self, parts: tuple[Part, ...], keep: tuple[Part, ...]) -> None:
        kept = {part.path for part in keep}
        for part in parts:
            if part.path not in kept:
                (self.folder / part.path).remove()


class Build:
    """One dataset on its way to its manifest, on the driver."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.folder = job.folder
        self._fresh: Plan | None = None
        """A plan that was just written, so no writer exists yet."""

    def committed(self) -> Dataset | None:
        """The dataset, if it is committed with this fingerprint.

        A missing or damaged manifest counts as none. One that may not be read is an error, as the dataset may be good
        and must not be cleared.
        """
        try:
            manifest = parse_object((self.folder / MANIFEST).read_at_most(MAX_OBJECT_BYTES), Manifest)
        except (FileNotFoundError, NotADirectoryError, NotOursError):
            return None
        if manifest.fingerprint != self.job.fingerprint or not self.job.is_base_of(manifest):
            return None
        return Dataset.of(self.folder, manifest)

    def reopen(self) -> Dataset | None:
        """The committed dataset, after removing parts that a late, killed attempt left beside it."""
        dataset = self.committed()
        if dataset is not None:
            self._refuse_links()
            self._remove_losers(dataset.manifest)
        return dataset

    def is_occupied(self) -> bool:
        """True if the folder has a committed dataset, ours or not."""
        return (self.folder / MANIFEST).exists()

    def plan(self, splits: Iterable[Any]) -> Plan:
        """The plan of an interrupted build of the same work, or a new one after clearing the folder.

        Raises:
            DataError: the folder contains something that no build of ours has written.
        """
        self._refuse_links()
        fresh = self.fresh_plan(splits)
        stored = self._stored_plan()
        if self._resumes(stored, fresh):
            return stored
        self._clear(stored)
        (self.folder / CLOSED / fresh.name).remove()
        if not (self.folder / PLAN).create(to_json(fresh)):
            raise DataError(f"another run is writing {self.folder}; wait until it ends")
        self._fresh = fresh
        return fresh

    def fresh_plan(self, splits: Iterable[Any]) -> Plan:
        """The plan of a new build, not written anywhere."""
        return Plan(fingerprint=self.job.plan_fingerprint, splits=tuple(json.loads(json.dumps(list(splits)))))

    def resumable(self, splits: Iterable[Any]) -> Plan | None:
        """The plan of an interrupted build of the same work.

        Raises:
            DataError: the object in place of a plan is not a plan.
        """
        stored = self._stored_plan()
        return stored if self._resumes(stored, self.fresh_plan(splits)) else None

    def _resumes(self, stored: Plan | None, fresh: Plan) -> TypeGuard[Plan]:
        """Whether a plan and each of its splits belong to this work, as tasks do what their split says."""
        if stored is None or stored.fingerprint != fresh.fingerprint:
            return False
        return stored.splits == fresh.splits or (bool(stored.splits) and all(map(self.job.is_piece, stored.splits)))

    def _stored_plan(self) -> Plan | None:
        try:
            return read_object(
                self.folder / PLAN,
                Plan,
                "so the folder may not belong to a run; look at its content, then remove it or choose another output",
            )
        except (FileNotFoundError, NotADirectoryError):
            return None

    def give_up(self) -> None:
        """Clear an earlier build, finished or not, so that `plan` starts from scratch.

        Raises:
            DataError: the folder contains something that no build of ours has written.
        """
        self._refuse_links()
        self._clear(self._stored_plan())

    def _refuse_links(self) -> None:
        """Raise if the folder, or one in it, is a link to another place on this disk, which is not ours to change."""
        if not self.folder.is_local:
            return
        path, stage = self.folder.path, self.job.stage
        below = stage if path.endswith(f"/{stage}") else self.folder.name
        if (link := linked_folder(path.removesuffix(f"/{below}"), below)) is not None:
            raise DataError(
                f"{link} is a link to a folder, and a run does not write or remove anything behind links; remove "
                "the link, or give its target as the output"
            )

    def _clear(self, old: Plan | None) -> None:
        """Empty the folder of an earlier build.

        The manifest goes first, so that nobody takes what is being removed for a dataset; then the build is closed, so
        that its stragglers write nothing more; and the plan goes last, so that a kill meanwhile leaves a folder that is
        known to be ours.
        """
        names = [name for name, _ in self.folder.walk()]
        # A listing may be outdated, so its objects are checked: one that is gone does not count.
        # A straggler may store its cost after its build was cleared.
        strays = (CLOSED, TASK_COSTS)
        others = (name for name in names if name.split("/")[0] not in strays and (self.folder / name).exists())
        if old is None and (other := next(others, None)) is not None:
            raise DataError(
                f"{self.folder} contains files (such as {other}) but no {PLAN}, so no run of ours wrote it; choose "
                "another output, or remove that folder yourself"
            )
        (self.folder / MANIFEST).remove()
        if old is not None:
            (self.folder / CLOSED / old.name).replace(b"")
            # By name, since a listing may lag behind what was written a moment ago; parts before their receipts, so
            # that a kill meanwhile leaves the names of those that are still there.
            receipts = [receipt for receipt in self._receipts(old) if receipt is not None]
            self.folder.remove_all([part.path for receipt in receipts for part in receipt.parts])
            self.folder.remove_all([receipt_path(old.name, receipt.split) for receipt in receipts])
        self.folder.remove_children(keep=(PLAN, CLOSED))
        (self.folder / PLAN).remove()

    def writer(self, plan: Plan) -> SplitWriter:
        """The part that workers get."""
        self._fresh = None
        return SplitWriter(self.folder, plan.name, self.job.schema, self.job.table)

    def ref(self, plan: Plan) -> DatasetRef:
        """The dataset that this build will commit."""
        return DatasetRef(self.folder, self.job.stage, len(plan.splits), plan.name)

    def _receipts(self, plan: Plan) -> list[Receipt | None]:
        return read_receipts(self.folder, plan.name, len(plan.splits))

    def missing(self, plan: Plan) -> list[int]:
        """The splits without a receipt, or with missing or truncated parts; the receipts of the latter are deleted.

        Costs a GET per split and a HEAD per part; nothing for a plan that was just written.
        """
        splits = range(len(plan.splits))
        if plan is self._fresh:
            return list(splits)
        with ThreadPoolExecutor(NUM_READERS) as pool:
            done = list(pool.map(lambda split: self._is_done(plan, split), splits))
        return [split for split in splits if not done[split]]

    def _is_done(self, plan: Plan, split: int) -> bool:
        receipt = read_receipt(self.folder, plan.name, split)
        if receipt is None:
            return False
        is_whole = all((self.folder / part.path).size() == part.bytes for part in receipt.parts)
        if not is_whole:
            (self.folder / receipt_path(plan.name, split)).remove()
        return is_whole

    def costs(self, plan: Plan, num_map_tasks: int) -> BuildCosts:
        """The costs that the tasks have stored: a GET each.

        Raises:
            DataError: one is damaged.
        """
        return BuildCosts.read(self.folder, plan.name, len(plan.splits), num_map_tasks)

    def commit(self, plan: Plan, costs: BuildCosts | None = None, engine: EngineCost | None = None) -> Dataset:
        """Delete the parts of losing attempts, write the costs, then the manifest from the receipts.

        In this order a kill between the two leaves an uncommitted dataset, which the next run commits, and never a
        committed one with foreign parts beside its own.

        Args:
            plan: of the build.
            costs: of its tasks; None if they were not measured.
            engine: the engine's cost beyond the tasks.

        Raises:
            DataError: a split has no receipt (its task failed), or the accounting does not add up.
        """
        receipts = []
        for split, receipt in enumerate(self._receipts(plan)):
            if receipt is None:
                raise DataError(f"split {split} of {self.folder} was not written; run again to resume")
            receipts.append(receipt)
        accounting = sum_counts([self.job.inherited, *(receipt.accounting for receipt in receipts)])
        gaps = accounting_gaps(accounting)
        if gaps:
            raise DataError(f"the accounting of {self.folder} does not add up: {'; '.join(gaps)}")
        counts = sum_counts(receipt.distributions for receipt in receipts)
        manifest = Manifest(
            stage=self.job.stage,
            table=self.job.table,
            fingerprint=self.job.fingerprint,
            base=self.job.belongs_to,
            receipts=plan.name,
            made_from=self.job.made_from,
            content_digest=ContentDigest.total(receipt.content_digest for receipt in receipts),
            sequence=fingerprint_of({"splits": [receipt.sequence for receipt in receipts]}),
            rows_in=sum(receipt.rows_in for receipt in receipts),
            rows_out=sum(receipt.rows_out for receipt in receipts),
            accounting=accounting,
            thresholds=self.job.thresholds,
            distributions=counts,
            findings=self.job.findings_of(counts) if self.job.findings_of else self.job.findings,
            splits=len(plan.splits),
            parts=tuple(part for receipt in receipts for part in receipt.parts),
        )
        self._remove_losers(manifest)
        (self.folder / CHECKPOINTS).remove_tree()
        if costs is not None:
            self._write_costs(manifest, costs, costs.engine + (engine or EngineCost()))
        (self.folder / MANIFEST).replace(to_json(manifest))
        if costs is not None:
            # Not earlier: after a kill the next commit would lack them.
            (self.folder / TASK_COSTS).remove_tree()
        return Dataset.of(self.folder, manifest)

    def _write_costs(self, manifest: Manifest, costs: BuildCosts, engine: EngineCost) -> None:
        found = DatasetCosts(
            stage=manifest.stage,
            receipts=manifest.receipts,
            rows_in=manifest.rows_in,
            rows_out=manifest.rows_out,
            written_bytes=sum(part.bytes for part in manifest.parts),
            splits=manifest.splits,
            tasks=TaskCosts.of(costs.splits.items()),
            map_side=TaskCosts.of(costs.map_side.items()),
            engine=engine,
        )
        (self.folder / DATASET_COSTS).replace(to_json(found))

    def _remove_losers(self, manifest: Manifest) -> None:
        kept = {part.path for part in manifest.parts}
        for path, _ in self.folder.walk():
            if path not in kept and not is_ours(path):
                (self.folder / path).remove()
