"""Steps in a row: the union of all step kinds, read from YAML, with the output schema known before a row is read.

A new step is one class and one entry in `AnyStep`. The union is a visible table: "find usages" works on it.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field, model_validator

from etl.config import Config
from etl.dedup.semantic import EmbedStep
from etl.digests import digest_of
from etl.errors import SchemaError
from etl.filters.answers import AnswerStep
from etl.filters.contamination import ContaminationStep
from etl.filters.language import LanguageStep
from etl.foreign import Foreign
from etl.harmony.step import HarmonyStep
from etl.mixture.buckets import CtxBucketStep
from etl.mixture.cuts import AnyCut
from etl.scoring.ifd import IfdStep
from etl.scoring.perplexity import PerplexityStep
from etl.step import BatchFn, Step

AnyStep = Annotated[
    AnswerStep | LanguageStep | PerplexityStep | IfdStep | HarmonyStep | CtxBucketStep | EmbedStep | ContaminationStep,
    Field(discriminator="kind"),
    Foreign(Step, "open"),
]


class Pipeline(Config):
    """Steps that share one pass over the text, then cuts that look at what the steps measured."""

    steps: tuple[AnyStep, ...] = Field(min_length=1)
    cuts: tuple[AnyCut, ...] = ()
    task_cpus: int = Field(default=0, ge=0)
    """Cores, GPUs and bytes of memory that a task of this pass needs; 0 leaves it to the engine's own settings."""
    task_gpus: int = Field(default=0, ge=0)
    task_memory_bytes: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _distinct(self) -> "Pipeline":
        names = [*(step.kind for step in self.steps), *(cut.name for cut in self.cuts)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{twice} stand here more than once; accounts are kept by step, so names must differ")
        return self

    @property
    def added(self) -> pa.Schema:
        """The columns that the steps append."""
        return pa.schema([field for step in self.steps for field in step.adds])

    def reads(self) -> list[str]:
        """The columns that must be there before the first step."""
        made: set[str] = set()
        needed: dict[str, None] = {}
        for step in self.steps:
            needed |= dict.fromkeys(name for name in step.reads if name not in made)
            made |= set(step.adds.names)
        return list(needed)

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema after all steps; cuts are checked against it.

        Raises:
            SchemaError: a step or a cut reads a column that is not there at its point, or is of no use to a cut.
        """
        for step in self.steps:
            schema = step.output_schema(schema)
        for cut in self.cuts:
            cut.check(schema)
        return schema

    def identity(self) -> list[dict[str, Any]]:
        """What decides the output of the steps, for a fingerprint."""
        return [step.identity() for step in self.steps]

    def digest(self) -> str:
        """16 hex digits that change when the output could."""
        return digest_of(self.identity())

    @property
    def slow(self) -> bool:
        return any(step.slow for step in self.steps)


def open_steps(steps: Iterable[Step]) -> BatchFn:
    """Load every step on this worker and return their composition."""
    functions = [step.open() for step in steps]

    def run(batch: pa.RecordBatch) -> pa.RecordBatch:
        rows = batch.num_rows
        for function in functions:
            batch = function(batch)
            if batch.num_rows != rows:
                raise SchemaError(f"a step turned {rows} rows into {batch.num_rows}; steps mark rows, they never drop")
        return batch

    return run


def apply(steps: Iterable[Step], batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Run steps over batches that have a `verdict` column."""
    run = open_steps(steps)
    for batch in batches:
        yield run(batch)
