"""A recipe that is killed again and again inside one process, at operations on storage drawn from a seed.

Each run takes up the work of the last and is killed a few operations later, until one comes to its end: so every stage
is interrupted in many states, and hundreds of kills cost little more than one run.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from etl.recipe import Recipe
from etl.storage.location import Location
from tests.engines.inprocess import KilledError
from tests.faults.kills import Moment, Operation, reaping
from tests.faults.readers import committed
from tests.faults.recipes import plain_rows, run_here, stage_of

_MOST_OPERATIONS = 8
_STALLED = 400
"""Kills after which a chain has surely stopped to make progress."""


@dataclass
class Kills:
    """What was killed, and what a plain reader saw then."""

    by_stage: Counter[str] = field(default_factory=Counter)
    by_operation: Counter[str] = field(default_factory=Counter)
    half_written: list[str] = field(default_factory=list)
    """Datasets whose manifest and rows disagreed at that moment."""


def killed_again_and_again(recipe: Recipe, output: Location, seed: int) -> Kills:
    """Run the recipe to its end through as many kills as come; none in a run that has little left to do."""
    draw = random.Random(seed)
    kills = Kills()
    with reaping() as reaper:
        while kills.by_stage.total() < _STALLED:
            reaper.arm(draw.randrange(_MOST_OPERATIONS), draw.choice(list(Moment)))
            try:
                run_here(recipe)
            except KilledError:
                operation = reaper.killed_at
                reaper.disarm()
                assert operation is not None
                record(kills, output, operation)
            else:
                return kills
    raise AssertionError(f"no end after {_STALLED} kills: {kills}")


def record(kills: Kills, output: Location, operation: Operation) -> None:
    """Count a kill and look at the dataset that it hit as a plain reader would."""
    path = operation.url.removeprefix(f"{output.url}/")
    stage = stage_of(path)
    kills.by_stage[stage] += 1
    kills.by_operation[operation.name] += 1
    folder = output / _dataset_of(path)
    dataset = committed(folder)
    if dataset is not None and plain_rows(folder).total() != sum(
        part.rows for part in dataset.manifest.parts if part.path.endswith(".parquet")
    ):
        kills.half_written.append(folder.url)


def _dataset_of(path: str) -> str:
    """The folder of a dataset in the path of one of its objects: everything before names of ours, parts, partitions."""
    pieces = path.split("/")
    ends = [n for n, piece in enumerate(pieces) if piece.startswith(("_", "part-")) or "=" in piece]
    return "/".join(pieces[: min(ends, default=len(pieces))])


Progress = Callable[[str], None]
