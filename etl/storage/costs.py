"""The costs of tasks, datasets and runs, stored beside their output; not part of any digest, fingerprint or comparison.

    _task_costs/<build>/<split>.json         of the task that wrote a split, while its build is at work
    _task_costs/<build>/map-<split>.json     of a shuffle's map side, by the split that it reads
    _task_costs.json                         all of them, of a committed dataset; written just before its manifest
    _costs.json                              of an output: their sums by stage and dataset, written at the end of a run
    _estimate.json                           of an output: what `plan --sample` predicted

A task writes its cost after its receipt, so a killed attempt has none; of several attempts the last one counts. A
missing cost never makes a task run again. Each task costs a small PUT, and at the commit a GET and a DELETE.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from etl.config import Config
from etl.storage.dataset import TASK_COSTS, read_all
from etl.storage.location import Location
from etl.storage.manifest import to_json
from etl.storage.untrusted import MAX_SPLITS, Count, Hex32, RelativePath, SplitNumber, read_object
from etl.usage import Usage

DATASET_COSTS = f"{TASK_COSTS}.json"
COSTS = "_costs.json"
ESTIMATE = "_estimate.json"
_MAP = "map-"
_REMEDY = "remove it: only costs are lost"

C = TypeVar("C", bound=Config)

Duration = Annotated[float, Field(ge=0, lt=1e12, allow_inf_nan=False)]
"""Seconds, of a CPU or by the clock."""


class TaskCost(Config):
    """Cost of the last attempt at one task."""

    cpu_s: Duration
    wall_s: Duration
    peak_bytes: Count
    """Resident memory of the process that ran it (etl/usage.py)."""

    @classmethod
    def of(cls, usage: Usage) -> "TaskCost":
        return cls(cpu_s=round(usage.cpu_s, 6), wall_s=round(usage.wall_s, 6), peak_bytes=usage.peak_bytes)


class TaskCosts(Config):
    """Those of several tasks, as columns."""

    task: tuple[SplitNumber, ...] = Field(default=(), max_length=MAX_SPLITS)
    """Number of the split, rising; a task that was not measured is left out."""
    cpu_s: tuple[Duration, ...] = ()
    wall_s: tuple[Duration, ...] = ()
    peak_bytes: tuple[Count, ...] = ()

    @classmethod
    def of(cls, costs: Iterable[tuple[int, TaskCost]]) -> "TaskCosts":
        found = list(costs)
        return cls(
            task=tuple(task for task, _ in found),
            cpu_s=tuple(cost.cpu_s for _, cost in found),
            wall_s=tuple(cost.wall_s for _, cost in found),
            peak_bytes=tuple(cost.peak_bytes for _, cost in found),
        )

    @model_validator(mode="after")
    def _columns_are_of_one_length(self) -> "TaskCosts":
        if not len(self.task) == len(self.cpu_s) == len(self.wall_s) == len(self.peak_bytes):
            raise ValueError("task, cpu_s, wall_s and peak_bytes must have one length")
        return self

    def items(self) -> Iterator[tuple[int, TaskCost]]:
        """(number of the split, cost) of each task."""
        for task, cpu_s, wall_s, peak in zip(self.task, self.cpu_s, self.wall_s, self.peak_bytes, strict=True):
            yield task, TaskCost(cpu_s=cpu_s, wall_s=wall_s, peak_bytes=peak)


class EngineCost(Config):
    """What the driver's process tree took beside the tasks, from the commit before to that of this dataset."""

    cpu_s: Duration = 0.0
    """Of the driver, of a JVM and of workers outside of their tasks; of workers elsewhere nothing is known."""
    wall_s: Duration = 0.0
    """By the clock of the driver, tasks included."""

    def __add__(self, more: "EngineCost") -> "EngineCost":
        return EngineCost(cpu_s=total_s((self.cpu_s, more.cpu_s)), wall_s=total_s((self.wall_s, more.wall_s)))


class DatasetCosts(Config):
    """The whole of `_task_costs.json`."""

    format: Literal[1] = 1
    stage: RelativePath
    """The folder, as in the manifest."""
    receipts: Hex32
    """Name of the build, as in the manifest."""
    rows_in: Count
    rows_out: Count
    written_bytes: Count
    """Of its parts."""
    splits: int = Field(ge=0, le=MAX_SPLITS, strict=True)
    """Tasks that wrote it, measured or not."""
    tasks: TaskCosts = TaskCosts()
    map_side: TaskCosts = TaskCosts()
    """Of the shuffle that it comes from."""
    engine: EngineCost = EngineCost()


def cost_path(build: str, task: str) -> str:
    """Where a build keeps what a task took, below the folder of the dataset."""
    return f"{TASK_COSTS}/{build}/{task}.json"


def split_task(split: int) -> str:
    """The name of the task that writes a split."""
    return f"{split:05d}"


def map_task(split: int) -> str:
    """The name of the task on the map side that reads a split."""
    return f"{_MAP}{split:05d}"


def is_map_task(name: str) -> bool:
    """Whether an object among the costs of a build's tasks is of the map side."""
    return name.startswith(_MAP)


def write_cost(folder: Location, build: str, task: str, usage: Usage) -> None:
    """Store a task's cost, replacing that of an earlier attempt."""
    (folder / cost_path(build, task)).replace(to_json(TaskCost.of(usage)))


@dataclass(frozen=True)
class BuildCosts:
    """The costs that the tasks of one build have stored."""

    splits: dict[int, TaskCost]
    """By number, rising."""
    map_side: dict[int, TaskCost]
    engine: EngineCost = field(default_factory=EngineCost)
    """At an earlier commit, whose manifest somebody has removed or a kill has kept back."""

    @classmethod
    def read(cls, folder: Location, build: str, num_splits: int, num_map_tasks: int) -> "BuildCosts":
        """Ask for every task by name: a GET each, several at a time; one that has nothing may be in `_task_costs.json`.

        Raises:
            DataError: one is damaged.
        """
        earlier = read_dataset_costs(folder)
        if earlier is not None and earlier.receipts != build:
            earlier = None

        def read(names: Sequence[str], before: TaskCosts) -> dict[int, TaskCost]:
            found = read_all(folder, lambda name: _read(folder / cost_path(build, name), TaskCost), names)
            now = {number: cost for number, cost in enumerate(found) if cost is not None}
            kept = {number: cost for number, cost in before.items() if number < len(names)}
            return dict(sorted((kept | now).items()))

        tasks, map_side = (earlier.tasks, earlier.map_side) if earlier else (TaskCosts(), TaskCosts())
        return cls(
            read([split_task(number) for number in range(num_splits)], tasks),
            read([map_task(number) for number in range(num_map_tasks)], map_side),
            earlier.engine if earlier else EngineCost(),
        )

    def cpu_s(self, splits: Iterable[int]) -> float:
        """Of the tasks of some splits, and of the map side that ran for them."""
        ran = [self.splits[split] for split in splits if split in self.splits]
        return sum(cost.cpu_s for cost in (*ran, *(self.map_side.values() if ran else ())))


def read_dataset_costs(folder: Location) -> DatasetCosts | None:
    """The costs of the tasks of a committed dataset; None if they are unknown.

    Raises:
        DataError: the file with the costs is damaged.
    """
    return _read(folder / DATASET_COSTS, DatasetCosts)


def _read(place: Location, model: type[C]) -> C | None:
    try:
        return read_object(place, model, _REMEDY)
    except (FileNotFoundError, NotADirectoryError):
        return None


# --- of a run ------------------------------------------------------------------------------------------------------


class CostSum(Config):
    """Cost of a dataset, a stage or a run."""

    tasks: Count = 0
    """That wrote a split, and of the map sides of shuffles."""
    unmeasured: Count = 0
    """Tasks among them that wrote a split and left no cost, so that it is in none of the numbers."""
    cpu_s: Duration = 0.0
    """Of the tasks."""
    task_s: Duration = 0.0
    """By the clock, summed over the tasks."""
    peak_bytes: Count = 0
    """Resident memory of a process that ran one of the tasks, at most."""
    engine_cpu_s: Duration = 0.0
    """As EngineCost.cpu_s."""
    wall_s: Duration = 0.0
    """As EngineCost.wall_s."""

    @classmethod
    def of(cls, costs: DatasetCosts) -> "CostSum":
        sides = (costs.tasks, costs.map_side)
        return cls(
            tasks=costs.splits + len(costs.map_side.task),
            unmeasured=max(0, costs.splits - len(costs.tasks.task)),
            cpu_s=total_s(second for side in sides for second in side.cpu_s),
            task_s=total_s(second for side in sides for second in side.wall_s),
            peak_bytes=max((peak for side in sides for peak in side.peak_bytes), default=0),
            engine_cpu_s=costs.engine.cpu_s,
            wall_s=costs.engine.wall_s,
        )

    @classmethod
    def total(cls, sums: Iterable["CostSum"]) -> "CostSum":
        """Of several datasets or stages."""
        found = list(sums)
        return cls(
            tasks=sum(one.tasks for one in found),
            unmeasured=sum(one.unmeasured for one in found),
            cpu_s=total_s(one.cpu_s for one in found),
            task_s=total_s(one.task_s for one in found),
            peak_bytes=max((one.peak_bytes for one in found), default=0),
            engine_cpu_s=total_s(one.engine_cpu_s for one in found),
            wall_s=total_s(one.wall_s for one in found),
        )

    @property
    def all_cpu_s(self) -> float:
        """CPU-seconds of the tasks and of the engine around them."""
        return self.cpu_s + self.engine_cpu_s


def total_s(values: Iterable[float]) -> float:
    """The sum of some seconds, to a microsecond."""
    return round(math.fsum(values), 6)


class StageCosts(Config):
    """Cost of one stage of the recipe."""

    label: RelativePath
    sum: CostSum
    datasets: dict[RelativePath, CostSum]
    """By folder, in the order of the run."""
    predicted_cpu_s: Duration | None = None
    """By `plan --sample`; null where it predicted nothing, or of another recipe or input."""


class RunCosts(Config):
    """The whole of `_costs.json`."""

    format: Literal[1] = 1
    input_rows: Count
    """Rows that ingest read."""
    input_bytes: Count | None = None
    """Of the sources' files, as they are stored; null where a source is a table of a catalog."""
    stages: tuple[StageCosts, ...]
    total: CostSum
    unmeasured: tuple[RelativePath, ...] = ()
    """Folders of datasets without costs, such as those of earlier versions."""
    core_hours: Duration
    """CPU-seconds of tasks and engine / 3600."""
    predicted_cpu_s: Duration | None = None


class StoredEstimate(Config):
    """The whole of `_estimate.json`: what `plan --sample` predicted, for the run to compare with."""

    format: Literal[1] = 1
    recipe: Hex32
    """Digest of what `_run.json` says of the recipe that it is of."""
    input_bytes: Count
    sample_bytes: Count
    cpu_s: dict[RelativePath, Duration]
    """By folder: of the tasks and the local engine around them."""


def read_run_costs(output: Location) -> RunCosts | None:
    """The cost of an output as the last run recorded it; None if there is no record.

    Raises:
        DataError: it is damaged.
    """
    return _read(output / COSTS, RunCosts)


def read_estimate(output: Location) -> StoredEstimate | None:
    """The last prediction of `plan --sample` for an output; None if there is none.

    Raises:
        DataError: it is damaged.
    """
    return _read(output / ESTIMATE, StoredEstimate)


def check_costs(place: Location) -> None:
    """Check that one of the objects of this file can be read, by its name.

    Raises:
        DataError: it is damaged.
    """
    models: dict[str, type[Config]] = {DATASET_COSTS: DatasetCosts, COSTS: RunCosts, ESTIMATE: StoredEstimate}
    _read(place, models[place.name])
