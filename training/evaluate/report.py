"""Compares a model with local baselines: each suite on each folder, one report as JSON and as a table.

    OUTPUT/evaluation.json    {"models": {name: folder}, "results": {suite: {model: {metric: value}}}, …}
    OUTPUT/evaluation.md      the same as a table: a row a metric, a column a model

One process on one device. The same folders and configuration give the same numbers on the same machine. A suite whose
prompts or losses are token ids of the corpus is skipped, with the reason, for a model of another tokenizer.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from etl.config import Config
from etl.errors import ConfigError
from etl.storage.location import Location
from training.evaluate.models import Models
from training.evaluate.suites import Metrics, Suite
from training.models.tokenizer import check_tokenizer

MODEL = "model"
"""Name of the model that is evaluated, beside those of the baselines."""


class EvaluateConfig(Config):
    """One evaluation."""

    model: str
    """Folder of a transformers model, e.g. an export."""
    baselines: dict[str, str] = {}
    """Folders of models to compare with, by name."""
    suites: dict[str, Suite] = Field(min_length=1)
    """What to measure, by name."""
    output: str
    """Folder or URL of the report."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of weights and activations."""
    device: str | None = None
    """cpu, cuda, cuda:1; null: a GPU if there is one."""
    seed: int = 0
    """Seed of every random choice."""

    @field_validator("baselines")
    @classmethod
    def _no_second_model(cls, baselines: dict[str, str]) -> dict[str, str]:
        if MODEL in baselines:
            raise ValueError(f"a baseline cannot be named '{MODEL}', which is the evaluated model; choose another name")
        return baselines


@dataclass(frozen=True)
class Report:
    """What an evaluation found."""

    models: dict[str, str]
    """Folder by name."""
    results: dict[str, dict[str, Metrics]]
    """Suite, model, metric."""
    skipped: dict[str, dict[str, str]]
    """Suite, model, reason."""
    seed: int
    dtype: str

    def to_json(self) -> str:
        """The report as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def to_markdown(self) -> str:
        """The report as a table; – where a suite was skipped or has no such metric."""
        names = list(self.models)
        lines = [["suite", "metric", *names], ["---"] * 2 + ["---:"] * len(names)]
        for suite, by_model in self.results.items():
            metrics = dict.fromkeys(metric for found in by_model.values() for metric in found)
            for metric in metrics:
                values = [by_model.get(name, {}).get(metric) for name in names]
                lines.append([suite, metric, *("–" if value is None else f"{value:.4g}" for value in values)])
        table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
        reasons = [
            f"\n{suite} was skipped for {name}: {reason}\n"
            for suite, by_model in self.skipped.items()
            for name, reason in by_model.items()
        ]
        return table + "".join(reasons)


def evaluate_conf(config: EvaluateConfig) -> Report:
    """Run every suite on every model and write the report.

    Raises:
        ConfigError: a folder is no causal LM, or a suite's settings or files are wrong.
        DataError: a corpus or a file of questions is damaged.
    """
    folders = {MODEL: config.model, **config.baselines}
    strangers = {name: reason for name, folder in folders.items() if (reason := _other_tokenizer(folder)) is not None}
    results: dict[str, dict[str, Metrics]] = {name: {} for name in config.suites}
    skipped: dict[str, dict[str, str]] = {}
    models = Models(config.dtype, config.device)
    for name, folder in folders.items():
        for suite_name, suite in config.suites.items():
            if suite.needs_harmony and name in strangers:
                skipped.setdefault(suite_name, {})[name] = strangers[name]
                continue
            results[suite_name][name] = suite.run(models, folder, config.seed)
    report = Report(folders, results, skipped, config.seed, config.dtype)
    output = Location.of(config.output)
    (output / "evaluation.json").replace(report.to_json().encode())
    (output / "evaluation.md").replace(report.to_markdown().encode())
    return report


def _other_tokenizer(folder: str) -> str | None:
    """Why the token ids of a corpus mean nothing to a model; None where they are its own.

    Raises:
        ConfigError: there is no model.
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json; give the local folder of a transformers model")
    try:
        check_tokenizer(path)
    except ConfigError as error:
        return str(error)
    return None
