"""Rows that are prompts already: those of a committed dataset, which etl/sources/formats/dataset.py reads."""

from typing import Literal

from etl.sources.shapes.described import Described, SkillRule


class DatasetShape(Described):
    """Rows that are prompts already and need no description."""

    shape: Literal["dataset"] = "dataset"
    skill_bucket: SkillRule = SkillRule(default="B4")
    """Ignored: the rows have their own."""
