"""A sequence of steps, then cuts, read from YAML; the output schema is known before any row is read.

A new step is one class and one entry in `AnyStep`, a new cut one in `AnyCut`. The unions are visible tables: "find
usages" works on them.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Self

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
from etl.mixture.cuts import Cut, PercentileCut, ShareCut
from etl.mixture.threshold import ThresholdCut
from etl.schema import PROMPT
from etl.scoring.ifd import IfdStep
from etl.scoring.perplexity import PerplexityStep
from etl.step import BatchFn, Offer, Step, on_selected

AnyStep = Annotated[
    AnswerStep | LanguageStep | PerplexityStep | IfdStep | HarmonyStep | CtxBucketStep | EmbedStep | ContaminationStep,
    Field(discriminator="kind"),
    Foreign(Step, "open"),
]

AnyCut = Annotated[ShareCut | PercentileCut | ThresholdCut, Field(discriminator="kind"), Foreign(Cut)]


class Pipeline(Config):
    """Steps that share one pass over the text, then cuts by the columns that these or earlier steps measured."""

    steps: tuple[AnyStep, ...] = ()
    """Steps to run on each row; may be empty if there are cuts."""
    cuts: tuple[AnyCut, ...] = ()
    """Rules that drop rows by the measured columns, applied after the steps."""
    task_cpus: int = Field(default=0, ge=0)
    """CPU cores per task; 0 keeps the engine's setting."""
    task_gpus: int = Field(default=0, ge=0)
    """GPUs per task; 0 keeps the engine's setting."""
    task_memory_bytes: int = Field(default=0, ge=0)
    """Bytes of memory per task; 0 keeps the engine's setting."""

    @model_validator(mode="after")
    def _distinct(self) -> "Pipeline":
        if not self.steps and not self.cuts:
            raise ValueError("a pass needs at least 1 of `steps` or `cuts`; give one, or leave the stage out")
        twice = sorted({label for label in self.labels if self.labels.count(label) > 1})
        if twice:
            raise ValueError(f"{twice} occur more than once; accounting is by step, so give each a different `name`")
        return self

    @property
    def labels(self) -> tuple[str, ...]:
        """Names, as in verdicts, of the steps and cuts that can drop a row, in order."""
        return tuple(each.label for each in (*self.steps, *self.cuts))

    @property
    def added(self) -> pa.Schema:
        """The columns that the steps append."""
        return pa.schema([field for step in self.steps for field in step.added])

    def reads(self) -> list[str]:
        """The columns read that no step adds, for rows with all columns of PROMPT."""
        made: set[str] = set()
        needed: dict[str, None] = {}
        for step in self.steps:
            needed |= dict.fromkeys(name for name in (*step.needed, *step.may_read) if name not in made)
            made |= set(step.added.names)
        return list(needed)

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema after all steps; cuts are checked against it.

        Raises:
            SchemaError: a step or a cut reads a column that does not exist at that point, or a cut cannot use its type.
        """
        for step in self.steps:
            schema = step.output_schema(schema)
        for cut in self.cuts:
            cut.check(schema)
        return schema

    def check_sources(self, known: Collection[str]) -> None:
        """Raises ValueError if a step or a cut is limited to a source that is not one of these."""
        for each in (*self.steps, *self.cuts):
            each.check_sources(known)

    def asks(self) -> tuple[str, ...]:
        """Names of the artefacts that the steps need from other stages of the run."""
        return tuple(dict.fromkeys(name for step in self.steps for name in step.asks()))

    def given(self, offered: Mapping[str, Offer]) -> Self:
        """The pipeline with the artefacts that its steps need."""
        return self.model_copy(update={"steps": tuple(step.given(offered) for step in self.steps)})

    def findings(self) -> dict[str, dict[str, Any]]:
        """Findings for the manifest: key -> column -> description."""
        told: dict[str, dict[str, Any]] = {}
        for key, columns in (item for step in self.steps for item in step.findings().items()):
            told[key] = {**told.get(key, {}), **columns}
        return told

    def identity(self) -> list[dict[str, Any]]:
        """Everything that decides the output of the steps, for the fingerprint."""
        return [step.identity() for step in self.steps]

    def digest(self) -> str:
        """16 hex digits that change when the output could."""
        return digest_of(self.identity())

    @property
    def slow(self) -> bool:
        return any(step.slow for step in self.steps)


def open_steps(steps: Iterable[Step]) -> BatchFn:
    """Load every step on this worker and return their composition.

    Each step's function gets a batch of `id` (if there is one), `verdict` and the columns that it reads; the columns it
    appends are renamed as in `Step.added`. That copies no column. A step limited to some rows copies the verdicts and
    its added columns.
    """
    functions = [_open(step) for step in steps]

    def run(batch: pa.RecordBatch) -> pa.RecordBatch:
        for function in functions:
            batch = function(batch)
        return batch

    return run


def _open(step: Step) -> BatchFn:
    function, added = step.open(), step.added
    shown = {"id": "id", "verdict": "verdict", **step.inputs, **{name: name for name in step.may_read}}
    optional = {"id", *step.may_read}

    def run(batch: pa.RecordBatch) -> pa.RecordBatch:
        names = {name: known for name, known in shown.items() if name not in optional or name in batch.schema.names}
        narrow = batch.select(list(names)).rename_columns(list(names.values()))
        for name in step.may_read:
            if name not in names:
                narrow = narrow.append_column(PROMPT.field(name), pa.nulls(batch.num_rows, PROMPT.field(name).type))
        done = on_selected(step, function, batch, narrow)
        _check_columns(step, narrow.schema, done.schema)
        place = batch.schema.get_field_index("verdict")
        batch = batch.set_column(place, batch.schema.field(place), done.column("verdict"))
        for field, name in zip(added, step.adds.names, strict=True):
            batch = batch.append_column(field, done.column(name))
        return batch

    return run


def _check_columns(step: Step, shown: pa.Schema, found: pa.Schema) -> None:
    """Check that the step's function has appended exactly the declared columns."""
    for field in (*step.adds, shown.field("verdict")):
        if field.name not in found.names or found.field(field.name).type != field.type:
            got = f"as {found.field(field.name).type}" if field.name in found.names else "without it"
            raise SchemaError(
                f"step '{step.label}' must return '{field.name}' as {field.type} but returned a batch {got}; "
                "append its columns to the batch with etl.step.append(batch, self.adds, arrays)"
            )
    more = [name for name in found.names if name not in shown.names and name not in step.adds.names]
    if more:
        raise SchemaError(
            f"step '{step.label}' returned columns {more}, which it does not declare; add them to its `adds`"
        )


def apply(steps: Iterable[Step], batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Run steps over batches that have a `verdict` column."""
    run = open_steps(steps)
    for batch in batches:
        yield run(batch)
