"""Makes a run's record, `_run.json`, from its recipe; etl/storage/record.py stores it."""

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from etl.config import Config
from etl.run.recipe import DROPPED_FOLDER, Recipe
from etl.sources.spec import Source
from etl.stages import assemble, ingest
from etl.storage.record import RunRecord, StageRecord

_PLACE = re.compile(r"(/|~|[A-Za-z]:\\|[A-Za-z][A-Za-z0-9+.-]*://)\S*")
"""An absolute path or a URL, and nothing else."""


def record_of(recipe: Recipe) -> RunRecord:
    """The record of a recipe's run; it does not depend on the places of input, output and models."""
    return RunRecord(name=recipe.name, stages=stage_records(recipe), recipe=_without_places(recipe))


def stage_records(recipe: Recipe) -> tuple[StageRecord, ...]:
    """Everything that writes a dataset, in the order of the run: ingest, the recipe's stages, and DIR/dropped.

    The folders are those that are written in any case, in their order.
    """
    tables = {f"tables/{name}": "TABLE" for name, source in recipe.sources.items() if source.table is not None}
    made = {f"{assemble.FOLDER}/{name}": "ASSEMBLED" for name, one in recipe.sources.items() if _assembles(one)}
    steps = (*([assemble.STEP] if made else []), ingest.STEP)
    folders = {**tables, **made, **ingest.TABLES}
    first = StageRecord(label=ingest.STEP, kind=ingest.STEP, folders=folders, steps=steps)
    dropped = StageRecord(label=DROPPED_FOLDER, kind=DROPPED_FOLDER, folders={DROPPED_FOLDER: "DROPPED"})
    marks: list[StageRecord] = [first]
    outputs: list[StageRecord] = []
    for stage in recipe.stages:
        labels, owned, by_rows = stage.step_labels(), stage.folders(), stage.folders_by_rows()
        record = StageRecord(label=stage.label, kind=stage.kind, folders=owned, folders_by_rows=by_rows, steps=labels)
        (outputs if stage.is_output else marks).append(record)
    return (*marks, dropped, *outputs)


def _assembles(source: Source) -> bool:
    return source.shape().assemble is not None


def _without_places(value: Any) -> Any:
    """A configuration value in JSON types, without fields that have their default or only name a place."""
    if isinstance(value, Config):
        return {name: _without_places(getattr(value, name)) for name in _telling(value)}
    if isinstance(value, Mapping):
        return {str(key): _without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(item) for item in value]
    if isinstance(value, str) and _PLACE.fullmatch(value):
        return value.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return to_jsonable_python(value, inf_nan_mode="strings")


def _telling(config: Config) -> list[str]:
    """The fields of a configuration that a record holds; always its kind, which is a default in Python."""
    fields = type(config).model_fields
    return [
        name
        for name, field in fields.items()
        if name == "kind"
        or not (
            name in config.located
            or field.exclude
            or getattr(config, name) == field.get_default(call_default_factory=True, validated_data={})
        )
    ]
