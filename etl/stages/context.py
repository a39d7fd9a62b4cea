"""What every stage needs of its run: the engine, where datasets go, how finely work is cut, and its own name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pydantic import Field

from etl.columns import right
from etl.config import Config
from etl.engine import DEFAULT, Engine, Exchange, MapFn, ReduceFn, Resources, nothing
from etl.laws import LIVE_ROWS, Growth, Law, Pieces, With
from etl.rows import Rows
from etl.schema import REMOVED
from etl.sources.row_groups import MAX_ROW_GROUP_BYTES
from etl.step import Offer, prefixed
from etl.storage.build import Job, SplitWriter
from etl.storage.dataset import Dataset, DatasetLike
from etl.storage.location import Location
from etl.storage.manifest import totals
from etl.storage.remote import Storage
from etl.text import UNICODE_VERSION


class Cutting(Config):
    """How finely work is split, and its price. Does not change any row."""

    split_bytes: int | None = Field(default=None, ge=1 << 10)
    """Stored bytes of input per task; null: 1/24 of the input, but 4 to 128 MiB."""
    bucket_bytes: int = Field(default=256 << 20, ge=1 << 10)
    """Bytes per bucket of a shuffle."""
    max_row_group_bytes: int = Field(default=MAX_ROW_GROUP_BYTES, ge=1 << 10)
    """Largest decoded size of a row group of Parquet input; a larger one is an error. Memory is not the reason (some
    tens of MB are held at a time): the limit keeps a small file from filling the disk."""
    max_component_edges: int = Field(default=50_000_000, ge=0, lt=1 << 30)
    """Largest number of duplicate pairs whose components one task computes (at most 4 GB at the default). More are
    contracted in rounds of shuffles, with the same result."""
    price_per_core_hour: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Price of one core for an hour, in any currency; a run and `plan --sample` then report the cost."""


def named_folder(name: str | None, base: str) -> str:
    """NAME-FOLDER of a stage that has a name (rounds/NAME-FOLDER below `rounds`), the folder itself of one without."""
    if name is None:
        return base
    parent, slash, last = base.rpartition("/")
    return f"{parent}{slash}{name}-{last}"


@dataclass(frozen=True)
class Context:
    """One run, as the stage at work sees it."""

    engine: Engine
    output: Location
    sources: tuple[str, ...]
    """Names of the sources, sorted."""
    cutting: Cutting
    storage: Storage
    """Options for the models that steps load."""
    report: Callable[[str], None]
    """Gets one line for the user at a time."""
    name: str | None = None
    """Of the stage at work."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Of the stage at work, where it is from outside the package: in the fingerprint of each of its datasets."""
    offers: dict[str, Offer] = field(default_factory=dict)
    """What stages of this run have made for steps after them, such as a model, by the name after `run:`."""
    outputs: dict[str, Dataset] = field(default_factory=dict)
    """The datasets that a run is for, by their folder: the corpus."""
    always: Callable[[str], None] | None = None
    """Gets the lines that a run says even where it has nothing to do; None for `report`, which may hold lines back."""
    watch: Callable[[Dataset], None] = nothing
    """Gets every dataset once it is committed, or found so."""

    def of_stage(self, name: str | None, identity: dict[str, Any]) -> "Context":
        """The same run for the stage of a name, and of an identity where it is from outside the package."""
        return replace(self, name=name, identity=identity)

    def unnamed(self) -> "Context":
        """The same run and stage, for folders that are called as they are."""
        return replace(self, name=None)

    def folder(self, base: str) -> str:
        """A folder of the stage at work, or the label of a step of it: NAME-BASE where the stage has a name."""
        return named_folder(self.name, base)

    def columns(self, schema: pa.Schema) -> pa.Schema:
        """Columns that the stage at work adds, called NAME_COLUMN where it has a name; readers look for `removed`."""
        named = prefixed(self.name, schema)
        return pa.schema([old if old.name == REMOVED.name else new for old, new in zip(schema, named, strict=True)])

    def job(
        self,
        stage: str,
        table: str,
        schema: pa.Schema,
        semantic: dict[str, Any],
        inputs: tuple[DatasetLike, ...] = (),
        base: Rows | None = None,
        version: int = 1,
        grows: Growth = LIVE_ROWS,
    ) -> Job:
        """A dataset of this run: its folder is <output>/<stage>, with the name of the stage at work before it.

        Args:
            stage: name of the folder, as it is without a name.
            table: name of the table.
            schema: of its rows.
            semantic: what decides the rows, beside the inputs.
            inputs: the datasets that it is made from.
            base: the rows that it is aligned with or whose row keys it holds; None where it stands alone.
            version: of what the job does; raised when the same work would give other rows, a schema or a default
                changes. In the fingerprint from 2 on.
            grows: how it grows with the input, for `stillhouse plan --sample`.
        """
        folder = self.folder(stage)
        versions = {"unicode": UNICODE_VERSION, **({"job": version} if version > 1 else {})}
        semantic = {**semantic, **({"stage": self.identity} if self.identity else {}), "versions": versions}
        of = base.base if base else None
        return Job(self.output / folder, folder, table, schema, semantic, inputs, of, grows=grows)

    def map(
        self,
        job: Job,
        splits: Iterable[Any],
        fn: MapFn,
        resources: Resources = DEFAULT,
        then: Callable[[Dataset], None] = nothing,
    ) -> DatasetLike:
        """Engine.map; the user is told when the dataset is committed, and `then` is called."""

        def committed(dataset: Dataset) -> None:
            self._tell(dataset)
            then(dataset)

        return self.engine.map(job, splits, fn, resources, committed)

    def shuffle(self, job: Job, exchange: Exchange, fn: ReduceFn) -> Dataset:
        """Engine.shuffle, the user told when the dataset is committed."""
        dataset = self.engine.shuffle(job, exchange, fn)
        self._tell(dataset)
        return dataset

    def gather(self, job: Job, exchange: Exchange, fn: ReduceFn) -> DatasetLike:
        """Engine.gather, the user told when the dataset is committed."""
        return self.engine.gather(job, exchange, fn, self._tell)

    def drive(self, job: Job, fn: Callable[[SplitWriter], None]) -> Dataset:
        """Engine.drive, the user told when the dataset is committed."""
        dataset = self.engine.drive(job, fn)
        self._tell(dataset)
        return dataset

    def buckets(self, total_bytes: int, grow: Law = With.INPUT) -> Pieces:
        """The buckets of a shuffle that moves so many bytes, and how these grow with the input."""
        return Pieces((total_bytes,), self.cutting.bucket_bytes, grow)

    def tell(self, what: str, line: str) -> None:
        """One line for the user about a folder or step of the stage at work."""
        self.report(f"{right(self.folder(what), 24)}  {line}")

    def tell_always(self, what: str, line: str) -> None:
        """As `tell`, also in a run that has nothing to do."""
        (self.always or self.report)(f"{right(what, 24)}  {line}")

    def _tell(self, dataset: Dataset) -> None:
        self.watch(dataset)
        manifest = dataset.manifest
        told = f"{manifest.rows_out:>10,} rows"
        if manifest.accounts_rows and manifest.accounting:
            entered, lost, left = totals(manifest.accounting)
            told = f"{entered:>10,} in {lost:>10,} lost {left:>10,} left"
        self.report(f"{right(manifest.stage, 24)}  {told}  {dataset.folder}")
