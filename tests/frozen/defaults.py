"""Defaults of every configuration, beside the version that a change of one has to raise.

`Config.fingerprinted()` leaves out fields at their defaults, so a changed default by itself would put other rows under
an old fingerprint. A step and a cut have a version of their own. Another section uses the versions that the jobs it
configures hold in their fingerprints, training uses `training.versions.DEFAULTS`, and stored objects use
`Manifest.format` and `RunRecord.format`.
A field that a class lists as located decides no row: its default is recorded and may change under the same version.
"""

import importlib
import re
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from etl.config import Config
from etl.mixture.cuts import Cut
from etl.step import Step
from etl.storage.costs import DatasetCosts, RunCosts, StoredEstimate
from etl.storage.manifest import Manifest
from etl.storage.record import RunRecord
from training.versions import DEFAULTS

PROJECT = Path(__file__).resolve().parents[2]
_CLASS = re.compile(r"^class (\w+)\(([^)]*)\):", re.MULTILINE)
_VERSIONS = ("version", "job", "text", "minhash", "units")
"""Keys of `made_from` under which a number is a version."""

OWNERS: dict[str, tuple[str, ...]] = {
    "Asked": ("ingest",),
    "Benchmark": ("ContaminationStep",),
    "ClusterCaps": ("training",),
    "ColumnsShape": ("ingest",),
    "CostSum": ("RunCosts",),
    "Constant": ("ingest",),
    "DatasetShape": ("ingest",),
    "Described": ("ingest",),
    "EngineCost": ("DatasetCosts",),
    "ExactDedup": ("exact_hits",),
    "Gather": ("ingest",),
    "Hub": ("ingest",),
    "InputFile": ("Manifest",),
    "InputPiece": ("Manifest",),
    "InputSplit": ("Manifest",),
    "Join": ("ingest",),
    "Kenlm": ("kenlm_sample", "kenlm"),
    "Layout": ("cells", "corpus"),
    "Marked": ("ingest",),
    "MessagesShape": ("ingest",),
    "NearDedup": ("candidates", "sets", "pairs"),
    "NearRule": ("ContaminationStep",),
    "NgramRule": ("ContaminationStep",),
    "NumbersRule": ("ContaminationStep",),
    "PairsShape": ("ingest",),
    "Part": ("Manifest",),
    "Plan": ("Manifest",),
    "PreferenceShape": ("ingest",),
    "PromptsShape": ("ingest",),
    "Question": ("ingest",),
    "RawRows": ("ingest",),
    "Receipt": ("Manifest",),
    "Section": ("ingest",),
    "Semantic": ("semantic_terms", "embeddings", "semantic_centroids", "semantic_hits"),
    "SemanticDedup": ("semantic_terms", "embeddings", "semantic_centroids", "semantic_hits"),
    "Sides": ("split_hits", "cells"),
    "SkillRule": ("ingest",),
    "SourceField": ("ingest",),
    "Source": ("ingest",),
    "Split": ("split_hits",),
    "StageCosts": ("RunCosts",),
    "Spoken": ("ingest",),
    "StageRecord": ("RunRecord",),
    "Survivor": ("exact_hits", "paragraph_hits", "sets", "semantic_hits"),
    "TaskCost": ("DatasetCosts",),
    "TaskCosts": ("DatasetCosts",),
    "TextShape": ("ingest",),
    "Threshold": ("Manifest",),
    "TranscriptShape": ("ingest",),
    "Tree": ("ingest",),
    "Turn": ("ingest",),
    "UnitDedup": ("paragraph_hits", "paragraph"),
    "VerifiableShape": ("ingest",),
}
"""Configurations of etl without a version of their own: the jobs, classes or `training` whose versions they go by."""
UNVERSIONED = {
    "Config", "Cutting", "Dedup", "Filter", "Kinded", "Pipeline", "Recipe", "Score", "Selected", "Stage", "StepsStage",
    "Tokenize",
}  # fmt: skip
"""Their fields say which jobs there are or how finely work is cut: another default is seen in the fingerprints.
Those of Selected are fields of every step and cut, which have a version."""


def table(made_from: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name of each configuration -> its version and its defaults, in JSON types.

    Args:
        made_from: of every job of the frozen runs, by stage.
    """
    classes = _classes()
    return {name: _describe(cls, classes, made_from) for name, cls in sorted(classes.items())}


def _describe(cls: type[Config], classes: dict[str, type[Config]], made_from: dict[str, Any]) -> dict[str, Any]:
    fields = {name: field for name, field in cls.model_fields.items() if not field.is_required()}
    defaults = {name: _json(field.get_default(call_default_factory=True)) for name, field in fields.items()}
    return {"version": _version(cls, classes, made_from), "defaults": defaults, "located": sorted(cls.located)}


def _version(cls: type[Config], classes: dict[str, type[Config]], made_from: dict[str, Any]) -> Any:
    if issubclass(cls, Step | Cut):
        return cls.version
    if cls in (Manifest, RunRecord, DatasetCosts, RunCosts, StoredEstimate):
        return cls.model_fields["format"].default
    name = cls.__name__
    if cls.__module__.startswith(("training.", "jobs.")):
        return DEFAULTS
    if name in UNVERSIONED:
        return None
    assert name in OWNERS, f"say in {__name__}.OWNERS which job's version '{name}' goes by"
    return {owner: _owners_version(owner, classes, made_from) for owner in OWNERS[name]}


def _owners_version(owner: str, classes: dict[str, type[Config]], made_from: dict[str, Any]) -> Any:
    if owner == "training":
        return DEFAULTS
    return _of_job(made_from[owner]) if owner in made_from else _version(_named(owner, classes), classes, made_from)


def _of_job(made_from: dict[str, Any]) -> dict[str, int]:
    """Each version that a job's fingerprint holds, by its path; the job's own is 1 where none is there."""
    found = {"versions.job": 1}

    def walk(tree: Any, path: str) -> None:
        if isinstance(tree, dict):
            for key, value in tree.items():
                walk(value, f"{path}.{key}".lstrip("."))
        elif path.rpartition(".")[2] in _VERSIONS and isinstance(tree, int):
            found[path] = tree

    walk({key: value for key, value in made_from.items() if key != "inputs"}, "")
    return found


def _named(name: str, classes: dict[str, type[Config]]) -> type[Config]:
    return classes[name] if name in classes else classes[f"etl.{name}"]


def _json(value: Any) -> Any:
    """A default; a configuration as what differs from its own defaults, which have their own entry."""
    if isinstance(value, Config):
        return {type(value).__name__: value.model_dump(mode="json", exclude_defaults=True)}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_json(item) for item in value]
    return to_jsonable_python(value)


def _classes() -> dict[str, type[Config]]:
    """Every configuration by its name, with the top package before it where two have one name."""
    modules = {module: vars(importlib.import_module(module)) for module in _modules()}
    found = [cls for module, names in modules.items() for cls in names.values() if _is_ours(cls, module)]
    names = [cls.__name__ for cls in found]
    named = {_label(cls, names): cls for cls in found}
    assert len(named) == len(found), sorted(names)
    return named


def _is_ours(value: Any, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, Config) and value.__module__ == module


def _label(cls: type, names: list[str]) -> str:
    name = cls.__name__
    return name if names.count(name) == 1 else f"{cls.__module__.partition('.')[0]}.{name}"


def _modules() -> list[str]:
    """The modules that define a configuration, by their text: importing all would load frameworks for nothing."""
    files = [path for top in ("etl", "training", "jobs") for path in sorted((PROJECT / top).rglob("*.py"))]
    classes = {path: _CLASS.findall(path.read_text("utf-8")) for path in files}
    names = {"Config"}
    while more := {name for found in classes.values() for name, bases in found if _below(bases, names)} - names:
        names |= more
    chosen = [path for path, found in classes.items() if any(name in names for name, _ in found)]
    return [".".join(path.relative_to(PROJECT).with_suffix("").parts) for path in chosen]


def _below(bases: str, names: set[str]) -> bool:
    return any(base.strip() in names for base in bases.split(","))
