"""What a run of every recipe leaves behind, dataset by dataset, as the stored tables hold it.

The shipped recipes and those of tests/frozen/recipes run on the oracle engine, over the rows of tests/frozen/inputs
(JSON lines: bytes that no library's version changes). One thing is not run: the causal LM of the IFD step. Its identity
is frozen, model digest included, but every row counts as one outside its sample. KenLM is trained by kaldingram
whatever is on PATH. A run of all recipes costs about 10 s.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa

from etl import conf
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.scoring.ifd import IfdStep
from etl.step import BatchFn, append
from etl.storage.build import Job
from etl.storage.dataset import Dataset
from tests.engines.inprocess import InProcessEngine

HERE = Path(__file__).parent
_ROWS = {"a": HERE / "inputs" / "rows_a.jsonl", "b": HERE / "inputs" / "rows_b.jsonl"}
_DOCUMENTS = HERE / "inputs" / "documents.jsonl"
SETTINGS = {
    "demo": [
        f"sources.synth.path={_ROWS['a']}", f"sources.stdlib.path={_ROWS['b']}", f"sources.licences.path={_ROWS['b']}",
        f"sources.dialogue.path={_ROWS['b']}",
    ],
    "twice": [f"sources.a.path={_ROWS['a']}", f"sources.b.path={_ROWS['b']}"],
    # Each file is a split of its own: the digest of the dataset `cells` follows the cut.
    "synth": [f"sources.synth.path={HERE / 'inputs' / 'rows_*.jsonl'}", "run.split_bytes=50000"],
    "dedup_text": [f"sources.text.path={_DOCUMENTS}"],
    "every_stage": [
        f"sources.a.path={_ROWS['a']}", f"sources.b.path={_ROWS['b']}",
        f"filter.steps.2.benchmarks.toy.path={HERE / 'inputs' / 'benchmark.jsonl'}",
    ],
    "raw_text": [f"sources.text.path={_DOCUMENTS}"],
    "rounds": [f"sources.text.path={_DOCUMENTS}"],
}  # fmt: skip
"""Overrides by recipe: where its input lies."""


def load(name: str, output: Path) -> Recipe:
    """A shipped recipe, or one of tests/frozen/recipes, over the stored inputs."""
    path = HERE / "recipes" / f"{name}.yaml"
    return conf.load(Recipe, str(path) if path.exists() else name, "recipes", [*SETTINGS[name], f"output={output}"])


def run(name: str, output: Path) -> dict[str, dict[str, Any]]:
    """Run a recipe and describe each dataset that it commits: folder -> fields of the stored table."""
    jobs: dict[str, Job] = {}
    engine = InProcessEngine()
    engine.permit = lambda job: jobs.update({job.stage: job})
    with _without_slow_parts():
        run_recipe(load(name, output), engine, lambda line: None)
    return {stage: _describe(job) for stage, job in sorted(jobs.items())}


def _describe(job: Job) -> dict[str, Any]:
    manifest = Dataset.open(job.folder).manifest
    return {
        "table": manifest.table,
        "schema": [str(field) for field in job.schema],
        "made_from": manifest.made_from,
        "fingerprint": manifest.fingerprint,
        "content_digest": manifest.content_digest,
        "rows": manifest.rows_out,
    }


@contextlib.contextmanager
def _without_slow_parts() -> Iterator[None]:
    with mock.patch.object(IfdStep, "open", _open_outside_the_sample), mock.patch.dict(os.environ, PATH=""):
        yield


def _open_outside_the_sample(step: IfdStep) -> BatchFn:
    """The IFD step for rows that its sample leaves out: nulls, no verdict."""
    return lambda batch: append(batch, step.adds, [pa.nulls(batch.num_rows, kind) for kind in step.adds.types])
