"""Toy runs that evaluate and save often, so that whatever ends them has something to spoil, and what they leave."""

import json

from etl.storage.location import Location
from tests.training import toy_runs
from training.checkpoint.store import check, complete_tags, read_manifest

OFTEN = ["evaluate={every_tokens: 500, max_packs: 1}", "checkpoint.every_steps=2", "checkpoint.keep=2"]
STEP_TOKENS = 256
"""What a step can hold."""


def settings(corpus, output, *more):
    return toy_runs.settings(corpus, output, *OFTEN, *more)


def configuration(corpus, output, *more):
    return toy_runs.configuration(corpus, output, *OFTEN, *more)


def arguments(values):
    """Of `python -m training.train`."""
    return ["--conf", "demo", *(word for value in values for word in ("--set", value))]


def ledger(output):
    return json.loads((output / "ledger.json").read_text())


def checked_steps(output):
    """Steps of the complete checkpoints, once every file has been read and found to match its receipt."""
    root = Location.of(output / "checkpoints")
    steps = []
    for tag in complete_tags(root):
        manifest = read_manifest(root / tag)
        for file in (file for receipt in manifest.receipts for file in receipt.files):
            check(root / f"{tag}/{file.name}", file)
        steps.append(manifest.step)
    return steps
