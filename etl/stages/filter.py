"""The stage `filter`: steps that judge rows by their text, and cuts."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from etl.pipeline import Pipeline
from etl.stages.steps import StepsStage


class Filter(Pipeline, StepsStage):
    """Writes DIR/filter, and DIR/<cut> for each cut."""

    kind: Literal["filter"] = "filter"
    purpose: ClassVar[str] = "Run steps over every row in one pass, then cuts."
    example: ClassVar[str] = "{kind: filter, steps: [{kind: language, keep: [en]}]}"
    tables: ClassVar[Mapping[str, str]] = {"filter": "FILTER"}

    def pipeline(self) -> Pipeline:
        return self
