"""The view that a stage has of its run: the engine, the place of datasets, the size of splits, and its own name."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pydantic import Field

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
    """NAME-FOLDER for a stage with a name (rounds/NAME-FOLDER below `rounds`), the folder itself for one without."""
    if name is None:
        return base
    parent, slash, last = base.rpartition("/")
    return f"{parent}{slash}{name}-{last}"


class Telling:
    """Receives the messages of stages for the user; this base class shows nothing."""

    def enter(self, label: str) -> None:
        """The stage with a label begins; the previous one begins no more datasets."""

    def began(self, label: str, folder: str) -> None:
        """A stage has begun a dataset."""

    def ended(self, label: str, dataset: Dataset) -> None:
        """A dataset that a stage has begun is committed, or was already."""

    def note(self, label: str, line: str, always: bool = False) -> None:
        """A line for the user about a stage; with `always`, also in a run that has nothing to do."""

    def detail(self, line: str) -> None:
        """A line about internals, for a user who asks for them."""


@dataclass(frozen=True)
class Context:
    """One run, from the view of the current stage."""

    engine: Engine
    output: Location
    sources: tuple[str, ...]
    """Names of the sources, sorted."""
    cutting: Cutting
    storage: Storage
    """Options for the models that steps load."""
    telling: Telling = field(default_factory=Telling)
    """Where messages to the user are sent."""
    label: str = ""
    """Label of the current stage."""
    name: str | None = None
    """Name of the current stage."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Identity of the current stage if it is from outside the package; part of the fingerprint of its datasets."""
    offers: dict[str, Offer] = field(default_factory=dict)
    """Artefacts, such as a model, that stages of this run have made for later steps, by the name after `run:`."""
    outputs: dict[str, Dataset] = field(default_factory=dict)
    """The datasets that are the purpose of the run, by folder: the corpus."""
    watch: Callable[[Dataset], None] = nothing
    """Called with every dataset when it is committed, or found committed."""

    def of_stage(self, label: str, name: str | None, identity: dict[str, Any]) -> "Context":
        """The same run for the stage with this label and name, and this identity if it is from outside the package."""
        return replace(self, label=label, name=name, identity=identity)

    def unnamed(self) -> "Context":
        """The same run and stage, for folders without the stage's name."""
        return replace(self, name=None)

    def folder(self, base: str) -> str:
        """A folder of the current stage, or the label of one of its steps: NAME-BASE if the stage has a name."""
        return named_folder(self.name, base)

    def columns(self, schema: pa.Schema) -> pa.Schema:
        """Columns that the current stage adds, called NAME_COLUMN if it has a name; readers look for `removed`."""
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
        """A dataset of this run: its folder is <output>/<stage>, prefixed with the name of the current stage.

        Args:
            stage: name of the folder, without the stage's name.
            table: name of the table.
            schema: of its rows.
            semantic: everything that decides the rows, besides the inputs.
            inputs: the datasets that it is made from.
            base: the rows that it is aligned with or whose row keys it holds; None if there are none.
            version: of the job; increased when the same work would give other rows, or a schema or a default changes.
                In the fingerprint from 2 on.
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
        """Engine.map; reports the dataset to the user when it is committed, and calls `then`."""
        self.telling.began(self.label, job.stage)

        def committed(dataset: Dataset) -> None:
            self.watch(dataset)
            then(dataset)
            self.telling.ended(self.label, dataset)

        return self.engine.map(job, splits, fn, resources, committed)

    def shuffle(self, job: Job, exchange: Exchange, fn: ReduceFn) -> Dataset:
        """Engine.shuffle; reports the dataset to the user when it is committed."""
        self.telling.began(self.label, job.stage)
        dataset = self.engine.shuffle(job, exchange, fn)
        self._ended(dataset)
        return dataset

    def gather(self, job: Job, exchange: Exchange, fn: ReduceFn) -> DatasetLike:
        """Engine.gather; reports the dataset to the user when it is committed."""
        self.telling.began(self.label, job.stage)
        return self.engine.gather(job, exchange, fn, self._ended)

    def drive(self, job: Job, fn: Callable[[SplitWriter], None]) -> Dataset:
        """Engine.drive; reports the dataset to the user when it is committed."""
        self.telling.began(self.label, job.stage)
        dataset = self.engine.drive(job, fn)
        self._ended(dataset)
        return dataset

    def buckets(self, total_bytes: int, grow: Law = With.INPUT) -> Pieces:
        """The buckets of a shuffle that moves this many bytes, and how the bytes grow with the input."""
        return Pieces((total_bytes,), self.cutting.bucket_bytes, grow)

    def tell(self, what: str, line: str, always: bool = False) -> None:
        """Show the user one line about a folder, step or source of the current stage.

        Args:
            what: its subject; the name of a folder or step is without the stage's name.
            line: of prose.
            always: also in a run that has nothing to do.
        """
        self.telling.note(self.label, f"{self.folder(what)}: {line}", always)

    def detail(self, what: str, line: str) -> None:
        """As `tell`, but about internals of a stage: for a user who asks for them."""
        self.telling.detail(f"{self.folder(what)}: {line}")

    def _ended(self, dataset: Dataset) -> None:
        self.watch(dataset)
        self.telling.ended(self.label, dataset)
