"""The signature of every public name, as text: what docs/ names for Python, and the factories of configurations.

Module paths are left out of annotations: where a type is defined is no promise.
"""

import importlib
import inspect
import re
from typing import Any

import pyarrow as pa

NAMES = (
    "etl.dedup.in_memory:NearDuplicates",
    "etl.dedup.in_memory:near_duplicates",
    "etl.dedup.near:NearDedup",
    "etl.engines.beam:ApplySteps",
    "etl.engines.beam:BeamEngine",
    "etl.engines.beam:ToArrow",
    "etl.engines.spark:apply",
    "etl.engines.spark:read",
    "etl.filters.answers:AnswerStep",
    "etl.filters.contamination:ContaminationStep",
    "etl.filters.language:LanguageStep",
    "etl.harmony.step:HarmonyStep",
    "etl.mixture.cluster_caps:in_turn",
    "etl.mixture.cluster_caps:with_tail",
    "etl.schema:PROMPT",
    "etl.stages.layout:SCHEMA_V0",
    "etl.stages.run:run_recipe",
    "etl.storage.location:Location",
    "training.data.teacher_table:TeacherTable",
    "training.data.teacher_table:TeacherTable.gather",
    "training.data.teacher_table:TeacherTable.has",
    "training.models.causal_lm:build",
    "training.models.gpt_oss:build",
    "training.models.upcycle:build",
)


def table() -> dict[str, Any]:
    """Public name -> its signature; of a schema, its fields."""
    return {name: _describe(named(name)) for name in NAMES}


def named(name: str) -> Any:
    """The object that `module:name` or `module:Class.method` names."""
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _describe(value: Any) -> Any:
    if isinstance(value, pa.Schema):
        return [str(field) for field in value]
    text = str(inspect.signature(value))
    return re.sub(r"<function (\w+) at 0x\w+>", r"\1", re.sub(r"\b(?:[A-Za-z_]\w*\.)+([A-Za-z_]\w*)", r"\1", text))
