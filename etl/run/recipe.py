"""A recipe: one YAML file with the sources and the stages in their order, each with its own configuration.

A stage is written out in the list, or only named there by its kind, with its configuration in a section beside it:

    stages: [{kind: dedup, near: {threshold: 0.8}}, {kind: tokenize}, {kind: dedup, name: late}]
    stages: [dedup, tokenize]        with        dedup: {near: {threshold: 0.8}}

Both make the same fingerprints. A new kind is one file with a class, and one line in `AnyStage`; it is written out.
Where things lie and how finely work is cut (`output`, `run`, paths of sources) never enters a fingerprint.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Any, ClassVar, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from etl.config import Config
from etl.errors import ConfigError
from etl.foreign import Foreign
from etl.harmony.step import HarmonyStep
from etl.mixture.buckets import CtxBucketStep
from etl.sources.hub import Revisions
from etl.sources.row_groups import MAX_ROW_BYTES
from etl.sources.spec import Source
from etl.stages import ingest
from etl.stages.context import Cutting
from etl.stages.dedup.semantic import Semantic
from etl.stages.dedup.split import Split
from etl.stages.dedup.stage import Dedup
from etl.stages.filter import Filter
from etl.stages.kenlm import Kenlm
from etl.stages.layout import Layout
from etl.stages.score import Score
from etl.stages.stage import Stage
from etl.stages.tokens import Tokenize
from etl.storage.location import Location
from etl.storage.remote import Storage, check_storage, scheme_of

AnyStage = Annotated[
    Filter
    | Dedup
    | Kenlm
    | Score
    | Tokenize
    | Semantic
    | Split
    | Layout,
    Field(discriminator="kind"),
    Foreign(Stage, "run"),
]  # fmt: skip

STAGES: tuple[type[Stage], ...] = get_args(get_args(AnyStage)[0])
"""The kinds of stages that come with the package."""
DROPPED_FOLDER = "dropped"


class Recipe(Config):
    """Everything that a run does."""

    located: ClassVar[frozenset[str]] = frozenset({"output", "storage", "single_writer", "run"})

    name: str
    """Name of the run in messages, manifests and Spark's job list."""
    output: str = Field(min_length=1)
    """Folder or URL; every stage's dataset is a folder below it."""
    storage: Storage = Field(default={}, repr=False)
    """fsspec options by scheme (s3, gs, az, hdfs, hf), such as endpoint_url; they hold for the output, for sources
    without options of their own, and for models. Never stored, printed or part of a fingerprint."""
    single_writer: bool = False
    """Allow a store that cannot create objects conditionally. Nothing then prevents a second run from writing there at
    the same time."""
    sources: dict[str, Source] = Field(min_length=1)
    """The data to read; choose a name for each source."""
    revisions: Revisions = {}
    """Commits by `hf://datasets/OWNER/NAME@REVISION`, which replace the hub's current ones. A run keeps those that it
    finds in `_run.json`, and the next run in this output takes them."""
    max_bad_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of a source's rows that may be quarantined before the run fails. For a source without any row see its
    `may_be_empty`."""
    max_row_bytes: int = Field(default=MAX_ROW_BYTES, ge=1, lt=1 << 30)
    """Bytes of a line, or of the text columns of a Parquet row, above which a row is quarantined as `too_long`. Reading
    a row takes about four times its length in memory."""
    run: Cutting = Cutting()
    """How work is split, and its price; does not change the result."""

    # What the names in `stages` stand for. `stages` comes after them: it takes what they are.
    filter: Filter | None = Field(default=None, exclude=True, repr=False)
    """Section of the stage `filter`."""
    dedup: Dedup = Field(default=Dedup(), exclude=True, repr=False)
    """Section of the stage `dedup`."""
    kenlm: Kenlm = Field(default=Kenlm(), exclude=True, repr=False)
    """Section of the stage `kenlm`."""
    score: Score | None = Field(default=None, exclude=True, repr=False)
    """Section of the stage `score`."""
    harmony: HarmonyStep = Field(default=HarmonyStep(), exclude=True, repr=False)
    """How the stage `tokenize` renders conversations."""
    ctx: CtxBucketStep = Field(default=CtxBucketStep(), exclude=True, repr=False)
    """How the stage `tokenize` assigns context buckets."""
    semantic: Semantic = Field(default=Semantic(), exclude=True, repr=False)
    """Section of the stage `semantic`."""
    layout: Layout = Field(default=Layout(), exclude=True, repr=False)
    """Section of the stages `split` and `layout`."""
    stages: tuple[AnyStage, ...]
    """What to do, in order. An entry is the name of a kind (configured by the section of that name) or a whole stage,
    `{kind: …}`."""

    @property
    def place(self) -> Location:
        """The output folder with its options."""
        place = Location.of(self.output, self.storage.get(scheme_of(self.output), {}))
        return replace(place, single_writer=self.single_writer)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of ingest and of every stage, in their order."""
        return (ingest.STEP, *(stage.label for stage in self.stages))

    @field_validator("storage")
    @classmethod
    def _schemes_exist(cls, storage: Storage) -> Storage:
        try:
            return check_storage(storage)
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @field_validator("stages", mode="before")
    @classmethod
    def _read_sections(cls, stages: Any, info: ValidationInfo) -> Any:
        if not isinstance(stages, list | tuple):
            return stages
        read = [_of_sections(stage, info.data) if isinstance(stage, str) else stage for stage in stages]
        # A wrong section has its own error.
        return [stage for stage in read if stage is not None]

    @model_validator(mode="after")
    def _stages_make_sense(self) -> "Recipe":
        _refuse_repeated("stages lists", self.labels, "give all but one of a kind a `name`")
        outputs = [stage.label for stage in self.stages if stage.is_output]
        last = self.stages[len(self.stages) - len(outputs) :]
        if [stage.label for stage in last] != outputs:
            raise ValueError(f"stages: {outputs} must come last, as they write the rows that all other stages leave")
        offered: set[str] = set()
        for stage in self.stages:
            for asked in stage.asks():
                if asked not in offered:
                    raise ValueError(
                        f"{stage.label} uses the model 'run:{asked}', so stages must list '{asked}' before "
                        f"'{stage.label}'"
                    )
            offered |= set(stage.offers())
            stage.check_sources(self.sources)
        return self

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "Recipe":
        cuts = [cut for stage in self.stages for cut in stage.cut_names()]
        taken = sorted(reserved_names().intersection(cuts))
        if taken:
            raise ValueError(f"cuts are named {taken}, which are folders or steps of a run; give them other names")
        steps = [*ingest.TABLES, *(step for stage in self.stages for step in stage.step_labels())]
        _refuse_repeated("the steps", steps, "accounting is by step, so give all but one of them a `name`")
        folders = [*ingest.TABLES, DROPPED_FOLDER, *(folder for stage in self.stages for folder in stage.folders())]
        _refuse_repeated("the folders", folders, "give the stages or cuts that write them other names")
        return self

    @model_validator(mode="after")
    def _sides_agree(self) -> "Recipe":
        sides = {stage.label: stage.sides() for stage in self.stages if isinstance(stage, Split | Layout)}
        if any(side != next(iter(sides.values())) for side in sides.values()):
            raise ValueError(
                f"stages hold out different rows: {sides}; give them the same validation_fraction and seed"
            )
        return self


def _of_sections(kind: str, sections: dict[str, Any]) -> Any:
    """The stage that a name in `stages` stands for; None where its section is wrong."""
    needed = _SECTIONS.get(kind, ())
    if not set(needed) <= sections.keys():
        return None
    parts = [sections[name] for name in needed]
    if None in parts:
        raise ValueError(f"stages lists '{kind}', but its section `{kind}:` is missing")
    if not parts:
        return {"kind": kind}
    stage: Stage
    match kind:
        case "tokenize":
            stage = Tokenize(harmony=parts[0], ctx=parts[1])
        case "split":
            stage = Split.model_validate(parts[0].sides())
        case _:
            stage = parts[0]
    # The kind is set as if it was given, so that a dump without defaults can be read again.
    return stage.model_copy(update={"kind": kind})


_SECTIONS: dict[str, tuple[str, ...]] = {
    "filter": ("filter",), "dedup": ("dedup",), "kenlm": ("kenlm",), "score": ("score",),
    "tokenize": ("harmony", "ctx"), "semantic": ("semantic",), "split": ("layout",), "layout": ("layout",),
}  # fmt: skip
"""Kind of a stage -> the sections that it is made of."""


def reserved_names() -> frozenset[str]:
    """Folders and steps of the built-in kinds of stages. No cut may have these names, listed or not."""
    folders = {folder.partition("/")[0] for stage in STAGES for folder in stage.tables}
    steps = {step for stage in STAGES for step in stage.own_steps}
    return frozenset({*ingest.TABLES, *folders, *steps, DROPPED_FOLDER, "rounds", "tables"})


def _refuse_repeated(what: str, names: Iterable[str], remedy: str) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"{what} {twice} more than once; {remedy}")
