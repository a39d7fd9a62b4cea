"""A recipe that is killed again and again inside one process, at operations on storage.

Each run takes up the work of the last and is killed some operations later, until one comes to its end: so every stage
is interrupted in many states, and hundreds of kills cost little more than one run. `at_random` draws the operations
from a seed, `everywhere` takes each once at each moment.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from etl.engine import Engine
from etl.run.recipe import Recipe
from etl.storage.location import Location
from tests.engines.inprocess import InProcessEngine, KilledError
from tests.faults.kills import MANY_OBJECTS, Choose, Moment, Operation, reaping
from tests.faults.readers import committed
from tests.faults.recipes import plain_rows, run_here, stage_of

_MOST_OPERATIONS = (8, 8, 8, 64)
"""Of a run; one in four gets past the clearing of a large folder, which begins anew after each kill."""
_STALLED = 3000
"""Kills after which a chain has surely stopped to make progress."""


@dataclass
class Kills:
    """What was killed, and what a plain reader saw then."""

    by_stage: Counter[str] = field(default_factory=Counter)
    by_operation: Counter[str] = field(default_factory=Counter)
    half_written: list[str] = field(default_factory=list)
    """Datasets whose manifest and rows disagreed at that moment."""


Draw = Callable[[], Choose]
"""Called before each run: where it is killed."""


def at_random(seed: int) -> Draw:
    """Some operations after the run has begun, at any moment."""
    draw = random.Random(seed)

    def next_run() -> Choose:
        due, moment = draw.randrange(draw.choice(_MOST_OPERATIONS)), draw.choice(list(Moment))
        return lambda number, operation: moment if number == due else None

    return next_run


def everywhere() -> Draw:
    """At the first operation that was not killed before, amid and after yet."""
    done: set[tuple[Operation, Moment]] = set()

    def choose(number: int, operation: Operation) -> Moment | None:
        for moment in Moment if operation.name in MANY_OBJECTS else (Moment.BEFORE, Moment.AFTER):
            if (operation, moment) not in done:
                done.add((operation, moment))
                return moment
        return None

    return lambda: choose


def killed_again_and_again(
    recipe: Recipe, output: Location, next_run: Draw, new_engine: Callable[[], Engine] = InProcessEngine
) -> Kills:
    """Run the recipe to its end through as many kills as come."""
    kills = Kills()
    with reaping() as reaper:
        while kills.by_stage.total() < _STALLED:
            reaper.arm_by(next_run())
            try:
                run_here(recipe, new_engine())
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
