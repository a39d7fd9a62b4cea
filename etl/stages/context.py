"""What every stage needs: the engine, the recipe, and where its dataset goes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from etl.engine import DEFAULT, Engine, Exchange, MapFn, ReduceFn, Resources, nothing
from etl.recipe import Recipe
from etl.rows import Rows
from etl.storage.build import Job, SplitWriter
from etl.storage.dataset import Dataset, DatasetLike
from etl.storage.location import Location
from etl.text import UNICODE_VERSION


@dataclass(frozen=True)
class Context:
    """One run of a recipe."""

    engine: Engine
    recipe: Recipe
    report: Callable[[str], None]
    """Gets one line for the user at a time."""

    @property
    def output(self) -> Location:
        return self.recipe.place

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, sorted."""
        return tuple(sorted(self.recipe.sources))

    def job(
        self,
        stage: str,
        table: str,
        schema: pa.Schema,
        semantic: dict[str, Any],
        inputs: tuple[DatasetLike, ...] = (),
        base: Rows | None = None,
        version: int = 1,
    ) -> Job:
        """A dataset of this run: its folder is <output>/<stage>.

        Args:
            stage: name of the folder.
            table: name of the table.
            schema: of its rows.
            semantic: what decides the rows, beside the inputs.
            inputs: the datasets that it is made from.
            base: the rows that it is aligned with or whose row keys it holds; None where it stands alone.
            version: of what the job does; raised when the same work would give other rows, a schema or a default
                changes. In the fingerprint from 2 on.
        """
        versions = {"unicode": UNICODE_VERSION, **({"job": version} if version > 1 else {})}
        semantic = {**semantic, "versions": versions}
        return Job(self.output / stage, stage, table, schema, semantic, inputs, base.base if base else None)

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

    def drive(self, job: Job, fn: Callable[[SplitWriter], None]) -> Dataset:
        """Engine.drive, the user told when the dataset is committed."""
        dataset = self.engine.drive(job, fn)
        self._tell(dataset)
        return dataset

    def num_buckets(self, total_bytes: int) -> int:
        """Buckets of a shuffle that moves so many bytes."""
        return max(1, -(-total_bytes // self.recipe.run.bucket_bytes))

    def _tell(self, dataset: Dataset) -> None:
        manifest = dataset.manifest
        self.report(f"{manifest.stage:>24}  {manifest.rows_out:>10,} rows  {dataset.folder}")
