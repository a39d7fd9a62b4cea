"""Training runs of a toy student in this process, and what they leave behind."""

import json
from pathlib import Path

import torch

from etl import conf
from training.config import TrainConfig
from training.record.metrics import MEASURED

TINY = [
    "model.params.vocab=97", "model.params.layers=1", "model.params.hidden=16", "model.params.heads=2",
    "model.params.kv_heads=1", "model.params.head_dim=8", "model.params.intermediate=8",
    "data.pack_tokens=64", "data.global_batch_packs=4", "data.lanes=4", "data.segment_tokens=512",
    "stages.0.tokens=1400", "evaluate=null", "checkpoint.every_steps=100", "metrics.tensorboard=false",
    "router.aux_coefficient=0", "optimizer={lr: 0.01, schedule: {kind: constant, warmup_tokens: 512}}",
]  # fmt: skip
"""Changes to conf/training/demo.yaml: about 200 tokens a step."""


class PulledPlugError(Exception):
    """Ends a run as a crash would."""


def pull_the_plug_at(step):
    """For train(): raises when the record of that step comes."""

    def on_step(record):
        if record["step"] == step:
            raise PulledPlugError

    return on_step


def settings(corpus, output, *more, **sections):
    """Overrides, the last ones win; `sections` are JSON values of whole keys."""
    given = [f"{key}={json.dumps(value)}" for key, value in sections.items()]
    return [*TINY, f"data.corpus={corpus}", f"output={output}", *given, *more]


def configuration(corpus, output, *more, **sections):
    return conf.load(TrainConfig, "demo", "training", settings(corpus, output, *more, **sections))


def records(output):
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def steps_of(output):
    """The records of steps."""
    return [record for record in records(output) if "loss" in record]


def deterministic(found):
    """The records without what a second run measures anew."""
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in found]


def manifest(result):
    """Of the checkpoint that a run ended with."""
    return json.loads((Path(result.checkpoint) / "manifest.json").read_text())


def weights(result):
    """Of the student in that checkpoint, by name."""
    (path,) = Path(result.checkpoint).glob("**/mp_rank_00_model_states.pt")
    return torch.load(path, weights_only=False)["module"]
