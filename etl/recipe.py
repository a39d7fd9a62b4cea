"""A recipe: one YAML file with the sources, the stages in their order, and what each of them does.

A stage's section is its configuration; a stage that `stages` does not list does not run. Where things lie and how
finely work is cut (`output`, `run`, paths of sources) never enters a fingerprint.
"""

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from etl.config import Config
from etl.dedup.near import NearDedup
from etl.dedup.semantic import SemanticDedup
from etl.dedup.survivor import Survivor
from etl.dedup.units import UnitDedup
from etl.errors import ConfigError
from etl.harmony.step import HarmonyStep
from etl.mixture.buckets import CtxBucketStep
from etl.pipeline import Pipeline
from etl.sources.spec import Source
from etl.storage.location import Location
from etl.storage.remote import Storage, check_storage, check_url, scheme_of

StageName = Literal["filter", "dedup", "kenlm", "score", "tokenize", "semantic", "split", "layout"]
STAGE_NAMES = frozenset({
    "ingest", "quarantine", "filter", "rounds", "exact_hits", "exact", "candidates", "candidate_components", "edges",
    "sets", "pairs", "components", "near_hits", "near", "clusters", "kenlm_sample", "kenlm", "score", "tokenize",
    "harmony", "ctx_bucket", "split_hits", "split", "dropped", "cells", "layout", "corpus", "tables", "semantic_cells",
    "semantic_terms", "embeddings", "embed", "semantic_centroids", "semantic_hits", "semantic", "paragraph_hits",
    "paragraph", "line_hits", "line", "sentence_hits", "sentence",
})  # fmt: skip
"""Folders and steps of the stages, which no cut may be called."""
RUN_KENLM = "run:kenlm"
"""As a perplexity step's `model`: the model that this run's kenlm stage trains."""


class ExactDedup(Config):
    """Rows whose content is equal; `dedup.survivor` says which one stays, then the smallest row digest."""

    by: Literal["content", "row"] = "content"
    """content: prompt and answer after normalisation. row: all messages as they are."""


class Dedup(Config):
    """What the dedup stage looks for; null leaves a kind out."""

    survivor: Survivor = Survivor()
    exact: ExactDedup | None = ExactDedup()
    units: tuple[UnitDedup, ...] = ()
    """Paragraphs, lines or sentences of raw documents, in this order, between exact and near."""
    near: NearDedup | None = NearDedup()

    @model_validator(mode="after")
    def _units_are_distinct(self) -> "Dedup":
        kinds = [units.unit for units in self.units]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise ValueError(f"units lists {twice} more than once; each kind of unit has one folder of its own")
        return self


class TrainKenlm(Config):
    """An n-gram model from a seeded sample of the rows that are alive at that point."""

    order: int = Field(default=3, ge=2, le=5)
    fraction: float = Field(default=0.1, gt=0, le=1)
    seed: int = Field(default=0, ge=0)
    max_words: int = Field(default=2_000_000, ge=1)
    """Corpus size above which lmplz is required."""


class Layout(Config):
    """How the corpus lies: one folder for each split, skill bucket and context bucket."""

    located: ClassVar[frozenset[str]] = frozenset({"target_bytes"})

    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Share of split keys that go to split=validation."""
    seed: int = Field(default=0, ge=0)
    target_bytes: int = Field(default=256 << 20, ge=1 << 16)
    """Size at which a folder gets another file."""


class Cutting(Config):
    """How finely work is cut; none of it changes a row."""

    split_bytes: int = Field(default=128 << 20, ge=1 << 10)
    """Input bytes that one task reads."""
    bucket_bytes: int = Field(default=256 << 20, ge=1 << 10)
    """Bytes that one bucket of a shuffle holds."""
    max_component_edges: int = Field(default=50_000_000, ge=0, lt=1 << 30)
    """Pairs of duplicates whose components one task finds, in at most 4 GB at the default; more are contracted in
    rounds of shuffles, to the same components."""


class Recipe(Config):
    """Everything that a run does."""

    # The values under `storage` must not come out in an error.
    model_config = ConfigDict(hide_input_in_errors=True)
    located: ClassVar[frozenset[str]] = frozenset({"output", "storage", "single_writer", "run"})

    name: str
    output: str = Field(min_length=1)
    """Folder or URL; every stage's dataset is a folder below it."""
    storage: Storage = Field(default={}, repr=False)
    """fsspec options by scheme (s3, gs, az, hdfs), such as endpoint_url; they hold for the output, for sources without
    options of their own, and for models. Never stored, printed or part of a fingerprint."""
    single_writer: bool = False
    """Write to a store that cannot create an object only where none is; then nobody guards against a second run."""
    sources: dict[str, Source] = Field(min_length=1)
    max_bad_fraction: float = Field(default=1.0, ge=0, le=1)
    """Share of a source's rows that may be quarantined before the run fails; 1 never fails."""
    stages: tuple[StageName, ...]
    filter: Pipeline | None = None
    dedup: Dedup = Dedup()
    kenlm: TrainKenlm = TrainKenlm()
    score: Pipeline | None = None
    harmony: HarmonyStep = HarmonyStep()
    ctx: CtxBucketStep = CtxBucketStep()
    semantic: SemanticDedup = SemanticDedup()
    layout: Layout = Layout()
    run: Cutting = Cutting()

    @property
    def place(self) -> Location:
        """The output folder with its options."""
        place = Location.of(self.output, self.storage.get(scheme_of(self.output), {}))
        return replace(place, single_writer=self.single_writer)

    @field_validator("storage")
    @classmethod
    def _schemes_exist(cls, storage: Storage) -> Storage:
        try:
            return check_storage(storage)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @field_validator("output")
    @classmethod
    def _output_can_be_printed(cls, output: str) -> str:
        try:
            check_url(output)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return output

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "Recipe":
        pipelines = [pipeline for pipeline in (self.filter, self.score) if pipeline is not None]
        names = [label for pipeline in pipelines for label in pipeline.labels]
        chosen = [each.label for pipeline in pipelines for each in (*pipeline.steps, *pipeline.cuts) if each.name]
        taken = sorted(STAGE_NAMES.intersection(chosen))
        if taken:
            raise ValueError(
                f"steps or cuts are called {taken}, which are folders or steps of a run; give them other names"
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"filter and score both have {twice}; accounts are kept by step, so names must differ")
        return self

    @model_validator(mode="after")
    def _priority_names_sources(self) -> "Recipe":
        unknown = sorted(set(self.dedup.survivor.sources) - set(self.sources))
        if unknown:
            raise ValueError(f"dedup.survivor.sources names {unknown}; the recipe's sources are {sorted(self.sources)}")
        return self

    @model_validator(mode="after")
    def _stages_make_sense(self) -> "Recipe":
        twice = sorted({stage for stage in self.stages if self.stages.count(stage) > 1})
        if twice:
            raise ValueError(f"stages lists {twice} more than once")
        for stage, section in (("filter", self.filter), ("score", self.score)):
            if stage in self.stages and section is None:
                raise ValueError(f"stages lists '{stage}', but the section `{stage}:` is missing")
        if "layout" in self.stages and (self.stages[-1] != "layout" or "tokenize" not in self.stages):
            raise ValueError("'layout' writes the corpus from tokens: list 'tokenize' before it and nothing after it")
        trained = self.score is not None and any(getattr(step, "model", None) == RUN_KENLM for step in self.score.steps)
        if trained and "score" in self.stages:
            before = self.stages[: self.stages.index("score")]
            if "kenlm" not in before:
                raise ValueError(f"score uses the model '{RUN_KENLM}', so stages must list 'kenlm' before 'score'")
        return self
