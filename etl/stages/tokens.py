"""The stage `tokenize`: Harmony tokens with their spans, and the context bucket that they fit in."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from etl.harmony.step import HarmonyStep
from etl.mixture.buckets import CtxBucketStep
from etl.pipeline import Pipeline
from etl.stages.steps import StepsStage


class Tokenize(StepsStage):
    """Writes DIR/tokenize. In a named stage the columns are NAME_input_ids and so on."""

    kind: Literal["tokenize"] = "tokenize"
    purpose: ClassVar[str] = "Render Harmony tokens and assign context buckets."
    example: ClassVar[str] = "{kind: tokenize, harmony: {reasoning_effort: medium}}"
    tables: ClassVar[Mapping[str, str]] = {"tokenize": "TOKENIZED"}
    own_steps: ClassVar[tuple[str, ...]] = ("harmony", "ctx_bucket")

    harmony: HarmonyStep = HarmonyStep()
    """How examples are rendered."""
    ctx: CtxBucketStep = CtxBucketStep()
    """The longest example to keep."""

    @model_validator(mode="after")
    def _all_rows_have_tokens(self) -> "Tokenize":
        limited = [key for key, step in (("harmony", self.harmony), ("ctx", self.ctx)) if step.selects_by]
        if limited and self.name is None:
            raise ValueError(
                f"{' and '.join(limited)} cannot be limited to sources or skill_buckets, as the corpus has tokens "
                "of every row; remove them, or give the stage a `name`, so that its columns are added to the "
                "corpus's own"
            )
        return self

    def pipeline(self) -> Pipeline:
        steps = (self.harmony, self.ctx)
        return Pipeline(steps=tuple(step.model_copy(update={"name": step.name or self.name}) for step in steps))
