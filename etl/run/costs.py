"""The cost of a run: summed by stage, stored in `_costs.json`, shown as a table, compared with a plan.

    costs        CPU s  wall s  peak MB  rows/CPU s  MB/CPU s  predicted
    ingest         3.1     2.4      310      22,300      16.7        2.9
    …
    engine         9.0
    total         31.4    20.8      640       2,200       1.6       24.0
    core-hours: 0.00872, which cost 0.000349; predicted: 0.00667, which cost 0.000267

Each dataset stores its cost when it is made (etl/storage/costs.py), so a run that keeps a dataset shows its cost again.
Rows and MB are those of the run's input for every stage, so that rates can be compared and their inverses added. Costs
a GET for each folder of the recipe, and a LIST of `rounds`.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from etl.columns import left, width
from etl.run.recipe import Recipe
from etl.run.record import record_of
from etl.stages import ingest
from etl.storage.costs import (
    COSTS,
    ESTIMATE,
    CostSum,
    DatasetCosts,
    RunCosts,
    StageCosts,
    StoredEstimate,
    read_dataset_costs,
    read_estimate,
    total_s,
)
from etl.storage.dataset import MANIFEST, NUM_READERS, Dataset
from etl.storage.location import Location
from etl.storage.manifest import fingerprint_of, leave, to_json
from etl.storage.record import RunRecord
from etl.storage.stale import folders_in

_S_PER_HOUR = 3600
_MAX_NAME = 18
_TITLE, _ENGINE, _TOTAL = "costs", "engine", "total"
_HEADS = ("CPU s", "wall s", "peak MB", "rows/CPU s", "MB/CPU s", "predicted")
_MOST_NAMED = 3


# --- adding up -----------------------------------------------------------------------------------------------------


def run_costs(recipe: Recipe) -> RunCosts | None:
    """The cost of a recipe's datasets in its output; None if no dataset has stored its cost.

    Raises:
        DataError: ingest is not committed, or stored costs or a stored prediction are damaged.
    """
    record, output = record_of(recipe), recipe.place
    found = _dataset_costs(record, output)
    if not found:
        return None
    input_rows, input_bytes = _input(recipe)
    predicted = _prediction(record, output, input_bytes)
    stages = []
    for stage in record.stages:
        datasets = {folder: CostSum.of(costs) for folder, costs in found.items() if stage.owns(folder)}
        if datasets:
            cpu_s = None if predicted is None else total_s(predicted[one] for one in predicted if stage.owns(one))
            total = CostSum.total(datasets.values())
            stages.append(StageCosts(label=stage.label, sum=total, datasets=datasets, predicted_cpu_s=cpu_s))
    total = CostSum.total(stage.sum for stage in stages)
    sure = [folder for stage in record.stages for folder in stage.folders]
    return RunCosts(
        input_rows=input_rows,
        input_bytes=input_bytes,
        stages=tuple(stages),
        total=total,
        unmeasured=tuple(one for one in sure if one not in found and (output / one / MANIFEST).exists()),
        core_hours=round(total.all_cpu_s / _S_PER_HOUR, 9),
        predicted_cpu_s=None if predicted is None else total_s(predicted.values()),
    )


def _dataset_costs(record: RunRecord, output: Location) -> dict[str, DatasetCosts]:
    """The stored costs of the datasets by folder, in the order of the run."""
    rounds = [f"rounds/{name}" for name in folders_in(output / "rounds")]
    folders: dict[str, None] = {}
    for stage in record.stages:
        own = (*filter(stage.owns, rounds), *stage.folders_by_rows, *stage.folders)
        folders |= dict.fromkeys(own)
    with ThreadPoolExecutor(NUM_READERS) as pool:
        found = zip(folders, pool.map(lambda folder: read_dataset_costs(output / folder), folders), strict=True)
        return {folder: costs for folder, costs in found if costs is not None}


def _input(recipe: Recipe) -> tuple[int, int | None]:
    """Rows and stored bytes that ingest read; no bytes where a source is a table."""
    manifest = Dataset.open(recipe.place / ingest.STEP).manifest
    sizes = [files.get("bytes") for files in manifest.findings_by_column("inputs").values()]
    known = [size for size in sizes if type(size) is int and size >= 0]
    return manifest.rows_in, sum(known) if len(known) == len(recipe.sources) else None


# --- what was predicted --------------------------------------------------------------------------------------------


def keep_estimate(recipe: Recipe, input_bytes: int, sample_bytes: int, cpu_s: Mapping[str, float]) -> None:
    """Store the prediction of a sample in an output, for the run to compare with.

    Args:
        recipe: the recipe of the prediction.
        input_bytes: stored bytes of its input.
        sample_bytes: stored bytes of the sample.
        cpu_s: predicted CPU-seconds by folder.

    Raises:
        StillhouseError: the output may not be written.
    """
    estimate = StoredEstimate(
        recipe=_digest(record_of(recipe)),
        input_bytes=input_bytes,
        sample_bytes=sample_bytes,
        cpu_s={folder: round(seconds, 6) for folder, seconds in cpu_s.items()},
    )
    (recipe.place / ESTIMATE).replace(to_json(estimate))


def _digest(record: RunRecord) -> str:
    """Digest of the recipe without the commits that it reads, which only the run itself finds."""
    recipe = {key: value for key, value in record.recipe.items() if key != "revisions"}
    return fingerprint_of(record.model_copy(update={"recipe": recipe}).model_dump(mode="json"))


def _prediction(record: RunRecord, output: Location, input_bytes: int | None) -> dict[str, float] | None:
    """CPU-seconds by folder, if they were predicted for this recipe and this input."""
    estimate = read_estimate(output)
    if estimate is None or (estimate.recipe, estimate.input_bytes) != (_digest(record), input_bytes):
        return None
    return estimate.cpu_s


# --- storing and showing -------------------------------------------------------------------------------------------


def keep_costs(output: Location, costs: RunCosts) -> None:
    """Write `_costs.json` into an output, unless it is there already."""
    leave(output / COSTS, costs)


def cost_lines(costs: RunCosts, price: float | None) -> Iterator[str]:
    """A table for a terminal: a line per stage, one for the engine beyond the tasks, and the total.

    Args:
        costs: the costs of a run.
        price: price of a core-hour, in any currency; None if none is stated.
    """
    rows = [(stage.label, _cells(costs, stage.sum, stage.sum.cpu_s, stage.predicted_cpu_s)) for stage in costs.stages]
    rows.append((_ENGINE, [f"{costs.total.engine_cpu_s:,.1f}"]))
    rows.append((_TOTAL, _cells(costs, costs.total, costs.total.all_cpu_s, costs.predicted_cpu_s)))
    heads = _HEADS if costs.predicted_cpu_s is not None else _HEADS[:-1]
    first = max(width(name) for name, _ in [(_TITLE, []), *rows] if width(name) <= _MAX_NAME)
    columns = itertools.zip_longest(heads, *(cells for _, cells in rows), fillvalue="")
    widths = [max(map(len, column)) for column in columns]
    for name, cells in [(_TITLE, heads), *rows]:
        if width(name) > first:
            yield name
            name = ""
        yield "  ".join([left(name, first), *(f"{cell:>{n}}" for cell, n in zip(cells, widths, strict=False))])
    yield core_hours_line(costs.total.all_cpu_s, price, costs.predicted_cpu_s)
    if costs.total.unmeasured:
        yield f"not included: {costs.total.unmeasured:,} of {costs.total.tasks:,} tasks, whose cost is unknown"
    if costs.unmeasured:
        named, more = costs.unmeasured[:_MOST_NAMED], len(costs.unmeasured) - _MOST_NAMED
        yield f"not included: {', '.join(named)}{f' and {more:,} more' if more > 0 else ''}, made by an earlier version"


def _cells(costs: RunCosts, total: CostSum, cpu_s: float, predicted_cpu_s: float | None) -> list[str]:
    megabytes = None if costs.input_bytes is None else costs.input_bytes / 1e6
    cells = [
        f"{cpu_s:,.1f}",
        f"{total.wall_s:,.1f}",
        f"{total.peak_bytes / 1e6:,.0f}",
        _rate(costs.input_rows, cpu_s, 0),
        _rate(megabytes, cpu_s, 2),
    ]
    return cells if predicted_cpu_s is None else [*cells, f"{predicted_cpu_s:,.1f}"]


def _rate(amount: float | None, cpu_s: float, digits: int) -> str:
    return "-" if amount is None or cpu_s <= 0 else f"{amount / cpu_s:,.{digits}f}"


def core_hours_line(cpu_s: float, price: float | None, predicted_cpu_s: float | None = None) -> str:
    """CPU-seconds as core-hours, and their price.

    Args:
        cpu_s: CPU-seconds used or predicted.
        price: price of a core-hour; None if none is stated.
        predicted_cpu_s: the prediction for `cpu_s`; None if there is none.
    """
    told = f"core-hours: {_told(cpu_s, price)}"
    return told if predicted_cpu_s is None else f"{told}; predicted: {_told(predicted_cpu_s, price)}"


def _told(cpu_s: float, price: float | None) -> str:
    hours = cpu_s / _S_PER_HOUR
    return _short(hours) if price is None else f"{_short(hours)}, which cost {_short(hours * price)}"


def _short(number: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 0 if number == 0 else max(0, 2 - math.floor(math.log10(number)))
    return f"{number:,.{digits}f}"
