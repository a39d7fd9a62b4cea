"""The recipe that is killed: every stage that needs no neural model, over a few toy rows; and what a right run leaves.

60 rows and a few splits: one run in this process takes 1.5 s and changes storage about 350 times.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow.dataset as pds

from etl.engine import Engine
from etl.run.recipe import Recipe
from etl.run.run import context_of, run_stages
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.opened import Run
from etl.storage.remote import storage_options
from etl.storage.verify import verify
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, scores, write_jsonl, write_parquet

STAGES = ("ingest", "filter", "dedup", "kenlm", "score", "tokenize", "split", "layout")
_FOLDERS = {
    "ingest": ("ingest", "quarantine"),
    "filter": ("filter", "english_share"),
    "dedup": (
        "exact_hits",
        "exact",
        "candidates",
        "edges",
        "sets",
        "pairs",
        "components",
        "near_hits",
        "near",
        "clusters",
    ),
    "kenlm": ("kenlm_sample", "kenlm"),
    "score": ("score", "strange"),
    "tokenize": ("tokenize",),
    "split": ("split_hits", "split"),
    "layout": ("dropped", "cells", "corpus"),
}
_STAGE_OF = {folder: stage for stage, folders in _FOLDERS.items() for folder in folders}


def stage_of(folder: str) -> str:
    """The stage of the recipe that writes a dataset, named by its path below the output."""
    first, _, rest = folder.partition("/")
    cut = rest.partition("/")[0].rpartition("-")[0]
    return _STAGE_OF[cut if first == "rounds" else first]


def write_sources(folder: Path, more_rows: int = 0) -> dict[str, Path]:
    """Two files of toy rows, one of them with a line that is no row; with `more_rows` nothing of an output holds."""
    lines = write_jsonl(folder / "b.jsonl", mixed_rows(20 + more_rows, seed=1))
    with lines.open("ab") as file:
        file.write(b"not a row\n")
    return {"a": write_parquet(folder / "a.parquet", mixed_rows(40 + more_rows), row_group_size=20), "b": lines}


def recipe_at(output: Location, sources: dict[str, Path], cutting_bytes: int = 8192) -> Recipe:
    """The recipe with an output; neither that and its options nor the bytes of a split or bucket decide its rows."""
    return make_recipe(
        output.url,
        sources,
        stages=STAGES[1:],
        filter=FILTER,
        kenlm={"order": 2, "fraction": 0.6, "seed": 1},
        score=scores("run:kenlm"),
        storage={"s3": output.options} if output.scheme == "s3" else {},
        run={"split_bytes": cutting_bytes, "bucket_bytes": cutting_bytes},
    )


def run_here(recipe: Recipe, engine: Engine | None = None) -> None:
    """A run in this process, without its lock: a kill that is an exception would leave it to a process that lives."""
    with storage_options(recipe.storage):
        run_stages(recipe, context_of(recipe, engine or InProcessEngine()))


def write_conf(recipe: Recipe, path: Path) -> Path:
    """The recipe as a file for the command line; JSON is YAML."""
    path.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)))
    return path


Rows = Counter[str]
"""Rows of a dataset, as text, and how often each is there."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with an output, by stage; a stage of which nothing is said is right."""

    lost: Counter[str]
    """Rows that a plain reader misses."""
    doubled: Counter[str]
    """Rows that it sees too often, or that should not be there."""
    differences: dict[str, list[str]]
    """Datasets with another content digest than the undisturbed run's, or that only one of the runs has; and what
    `verify` tells."""

    @property
    def stages(self) -> set[str]:
        """Those that are not right."""
        return {*+self.lost, *+self.doubled, *self.differences}


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run with the same cut left: dataset (path below the output) to content digest, and rows."""

    digests: dict[str, str]
    rows: dict[str, Rows]

    @classmethod
    def of(cls, output: Location) -> "Reference":
        datasets = {name: Dataset.open(place) for name, place in folders_of(output).items()}
        digests = {name: dataset.manifest.content_digest for name, dataset in datasets.items()}
        return cls(digests, {name: manifest_rows(dataset) for name, dataset in datasets.items()})

    def check(self, output: Location) -> Finding:
        """Compare an output with this one: digests, plain readers, `verify`."""
        datasets = {name: Dataset.open(place) for name, place in folders_of(output).items()}
        lost, doubled = Counter[str](), Counter[str]()
        differences: dict[str, list[str]] = {}
        for name, wanted in self.rows.items():
            seen = plain_rows(output / name)
            lost[stage_of(name)] += (wanted - seen).total()
            doubled[stage_of(name)] += (seen - wanted).total()
        digests = {name: dataset.manifest.content_digest for name, dataset in datasets.items()}
        for name, _ in digests.items() ^ self.digests.items():
            differences.setdefault(stage_of(name), []).append(f"unequal {name}")
        for item in verify(output):
            name = item.dataset.removeprefix(f"{output.url}/")
            differences.setdefault(stage_of(name), []).append(f"{item.kind} {name}/{item.path}")
        return Finding(lost, doubled, differences)


def folders_of(output: Location) -> dict[str, Location]:
    """Path below the output to folder, of every committed dataset."""
    run = Run.open(output)
    return {folder: run.place(folder) for folder in run.committed}


def manifest_rows(dataset: Dataset) -> Rows:
    """The rows that a manifest names; none for files that are no tables."""
    if dataset.manifest.holds_files:
        return Counter()
    return Counter(repr(row) for batch in dataset.read() for row in batch.to_pylist())


def plain_rows(folder: Location) -> Rows:
    """The rows that pyarrow finds in a folder without knowing of manifests."""
    folder.fs.invalidate_cache()
    files = [path for path in folder.fs.find(folder.path) if path.endswith(".parquet")]
    shown = [path for path in files if "/_" not in path.removeprefix(folder.path)]
    table = pds.dataset(shown, filesystem=folder.fs, format="parquet").to_table() if shown else None
    return Counter(repr(row) for row in table.to_pylist()) if table is not None else Counter()
