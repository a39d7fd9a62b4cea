"""What every stage needs: the engine, the recipe, and where its dataset goes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from etl.engine import Engine
from etl.recipe import Recipe
from etl.storage.aligned import Rows
from etl.storage.dataset import Dataset, Job
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
        return Location.of(self.recipe.output)

    def job(self, stage: str, table: str, schema: pa.Schema, semantic: dict[str, Any], base: Rows | None) -> Job:
        """A dataset of this run: its folder is <output>/<stage>.

        Args:
            stage: name of the folder.
            table: name of the table.
            schema: of its rows.
            semantic: what decides them.
            base: the rows that it is aligned with or whose row keys it holds; None where it stands alone.
        """
        versions = {"unicode": UNICODE_VERSION}
        cut = base.base.manifest.cut if base is not None else ""
        return Job(self.output / stage, stage, table, schema, {**semantic, "versions": versions}, cut)

    def num_buckets(self, total_bytes: int) -> int:
        """Buckets of a shuffle that moves so many bytes."""
        return max(1, -(-total_bytes // self.recipe.run.bucket_bytes))

    def committed(self, dataset: Dataset) -> Dataset:
        """Tell the user about a dataset and hand it on."""
        manifest = dataset.manifest
        self.report(f"{manifest.stage:>24}  {manifest.rows_out:>10,} rows  {dataset.folder}")
        return dataset
