"""What a run has cost: beside its receipts, by stage, beside a prediction; kept, resumed, forged, and in no digest."""

import json
import shutil
from pathlib import Path

import pytest

from etl.run import costs as told
from etl.run.costs import cost_lines, keep_costs, keep_estimate, run_costs
from etl.run.run import run_recipe, run_stage
from etl.storage.costs import (
    COSTS,
    DATASET_COSTS,
    ESTIMATE,
    CostSum,
    RunCosts,
    StageCosts,
    TaskCosts,
    read_dataset_costs,
    read_run_costs,
)
from etl.storage.location import Location
from etl.storage.manifest import to_json
from etl.storage.verify import verify
from tests.engines.inprocess import DyingEngine, IdleEngine, InProcessEngine, KilledError
from tests.etl.stages.toys import FILTER, files, make_recipe, mixed_rows, run, stage, write_jsonl

STAGES = ["filter", "dedup", "tokenize", "layout"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("in") / "in.jsonl", mixed_rows(30))


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    """A finished run."""
    recipe = make_recipe(tmp_path_factory.mktemp("made") / "out", {"a": source}, stages=STAGES, filter=FILTER)
    run(recipe)
    return recipe


@pytest.fixture
def copied(made, source, tmp_path):
    """The finished run in a folder that a test may change."""
    shutil.copytree(made.output, tmp_path / "out")
    return recipe_of(source, tmp_path / "out")


def recipe_of(source, output, **sections):
    return make_recipe(output, {"a": source}, **({"stages": STAGES, "filter": FILTER} | sections))


def lines_of(recipe, engine):
    lines = []
    run_recipe(recipe, engine, lines.append)
    return lines


# --- what is written -----------------------------------------------------------------------------------------------


def test_every_task_of_every_dataset_says_what_it_took(made):
    for folder in Path(made.output).rglob("_manifest.json"):
        dataset, costs = stage(folder.parent, ""), read_dataset_costs(Location.of(folder.parent))
        assert (costs.stage, costs.receipts) == (dataset.manifest.stage, dataset.manifest.receipts)
        assert costs.tasks.task == tuple(range(dataset.manifest.splits))
        assert all(seconds > 0 for side in (costs.tasks, costs.map_side) for seconds in (*side.cpu_s, *side.wall_s))
        assert all(peak > 1 << 20 for peak in costs.tasks.peak_bytes)
        assert (costs.rows_in, costs.rows_out) == (dataset.manifest.rows_in, dataset.manifest.rows_out)
        assert costs.written_bytes == sum(part.bytes for part in dataset.manifest.parts)
        assert costs.engine.wall_s > 0
    assert not list(Path(made.output).rglob("_task_costs"))


def test_the_map_side_of_a_shuffle_is_measured_by_the_split_that_it_reads(made):
    num_splits = stage(made.output, "ingest").manifest.splits
    assert num_splits > 1
    for folder in ("exact_hits", "corpus"):
        assert read_dataset_costs(made.place / folder).map_side.task == tuple(range(num_splits))
    assert read_dataset_costs(made.place / "filter").map_side.task == ()


def test_the_sums_are_those_of_the_tasks(made):
    found = read_run_costs(made.place)
    assert [one.label for one in found.stages] == ["ingest", "filter", "dedup", "tokenize", "dropped", "layout"]
    folders = [folder for one in found.stages for folder in one.datasets]
    written = [path.parent.relative_to(made.output).as_posix() for path in Path(made.output).rglob(DATASET_COSTS)]
    assert sorted(folders) == sorted(written)
    for one in found.stages:
        costs = [read_dataset_costs(made.place / folder) for folder in one.datasets]
        sides = [side for cost in costs for side in (cost.tasks, cost.map_side)]
        assert one.sum.cpu_s == pytest.approx(sum(seconds for side in sides for seconds in side.cpu_s), abs=1e-6)
        assert one.sum.task_s == pytest.approx(sum(seconds for side in sides for seconds in side.wall_s), abs=1e-6)
        assert one.sum.engine_cpu_s == pytest.approx(sum(cost.engine.cpu_s for cost in costs), abs=1e-6)
        assert one.sum.wall_s == pytest.approx(sum(cost.engine.wall_s for cost in costs), abs=1e-6)
        assert one.sum.peak_bytes == max(peak for side in sides for peak in side.peak_bytes)
        assert one.sum.tasks == sum(len(side.task) for side in sides)
    assert found.total == CostSum.total(one.sum for one in found.stages)
    assert found.total.unmeasured == 0
    assert found.unmeasured == ()
    assert found.core_hours == pytest.approx((found.total.cpu_s + found.total.engine_cpu_s) / 3600, abs=1e-9)
    assert found.input_rows == 30
    assert found.input_bytes == stage(made.output, "ingest").manifest.findings["inputs"]["a"]["bytes"]


def test_nothing_else_knows_of_it(made, source, tmp_path):
    """Another run has other costs, and every other byte is the same."""
    again = recipe_of(source, tmp_path / "out")
    run(again, InProcessEngine(seed=5))
    assert files(tmp_path / "out") == files(Path(made.output))
    for name in ("filter", "corpus"):
        assert read_dataset_costs(again.place / name) != read_dataset_costs(made.place / name)
    assert not any(b"cpu_s" in data for data in files(Path(made.output)).values())


# --- kept, resumed, killed -----------------------------------------------------------------------------------------


def test_a_second_run_shows_what_the_outputs_cost_when_they_were_made(made):
    path = Path(made.output, COSTS)
    before = path.read_bytes(), path.stat().st_mtime_ns
    lines = lines_of(made, IdleEngine())
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert set(cost_lines(read_run_costs(made.place), None)) <= set(lines)


def killed_in_ingest(recipe):
    """The costs of the tasks that a run has ended before it was killed."""
    with pytest.raises(KilledError):
        run(recipe, DyingEngine(2))
    paths = sorted(Path(recipe.output, "ingest").glob("_task_costs/*/*.json"))
    assert len(paths) == 2
    return paths


def test_tasks_of_a_run_that_was_killed_are_counted_and_not_measured_again(source, tmp_path):
    recipe = recipe_of(source, tmp_path / "out", stages=["filter"])
    kept, _ = killed_in_ingest(recipe)
    forged = {"cpu_s": 7.5, "wall_s": 8.5, "peak_bytes": 1 << 40}
    kept.write_text(json.dumps(forged))
    run(recipe)
    tasks, split = read_dataset_costs(recipe.place / "ingest").tasks, int(kept.stem)
    assert (tasks.cpu_s[split], tasks.wall_s[split], tasks.peak_bytes[split]) == tuple(forged.values())
    assert read_run_costs(recipe.place).stages[0].sum.peak_bytes == 1 << 40


def test_a_task_without_a_cost_is_counted_as_such(source, tmp_path):
    recipe = recipe_of(source, tmp_path / "out", stages=["filter"])
    gone, _ = killed_in_ingest(recipe)
    gone.unlink()
    lines = lines_of(recipe, InProcessEngine())
    assert int(gone.stem) not in read_dataset_costs(recipe.place / "ingest").tasks.task
    total = read_run_costs(recipe.place).total
    assert total.unmeasured == 1
    assert f"not included: 1 of {total.tasks} tasks, whose cost is unknown" in lines


def test_datasets_of_an_earlier_version_are_named(copied):
    recipe = copied
    for name in ("filter", "tokenize"):
        Path(recipe.output, name, DATASET_COSTS).unlink()
    lines = lines_of(recipe, IdleEngine())
    assert "not included: filter, tokenize, made by an earlier version" in lines
    for path in Path(recipe.output).rglob(DATASET_COSTS):
        path.unlink()
    assert run_costs(recipe) is None
    assert not [line for line in lines_of(recipe, IdleEngine()) if line.startswith(("costs", "core-hours"))]


def test_a_dataset_that_is_made_again_has_new_costs(copied, source):
    recipe = copied
    before = {name: read_dataset_costs(recipe.place / name) for name in ("ingest", "filter")}
    run(recipe_of(source, recipe.output, filter={"steps": [{"kind": "answer"}]}, stages=["filter"]))
    after = {name: read_dataset_costs(recipe.place / name) for name in before}
    assert after["ingest"] == before["ingest"]
    assert after["filter"].receipts != before["filter"].receipts
    assert after["filter"].tasks != before["filter"].tasks


def test_stages_one_by_one_leave_the_costs_of_all(source, tmp_path):
    recipe = recipe_of(source, tmp_path / "out", stages=["filter", "dedup"], filter={"steps": [{"kind": "answer"}]})
    for label in ("ingest", "filter"):
        run_stage(recipe, InProcessEngine(), lambda line: None, label)
        assert [one.label for one in read_run_costs(recipe.place).stages][-1] == label


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [COSTS, f"filter/{DATASET_COSTS}", ESTIMATE])
def test_what_is_damaged_is_named_and_stops_nothing(copied, tmp_path, name):
    recipe = copied
    (tmp_path / "out" / name).write_text('{"format": 1, "cpu_s": -1}')
    (found,) = verify(recipe.place)
    assert (f"{found.dataset}/{found.path}", found.kind) == (f"{tmp_path}/out/{name}", "changed")
    assert "remove it: only costs are lost" in found.detail
    lines = lines_of(recipe, IdleEngine())
    if name == COSTS:
        assert list(verify(recipe.place)) == []
    else:
        (line,) = [line for line in lines if "not known" in line]
        assert f"{tmp_path}/out/{name} is damaged" in line
        (tmp_path / "out" / name).unlink()
        assert list(verify(recipe.place)) == []


def test_columns_of_other_lengths_are_damage():
    with pytest.raises(ValueError, match="must have one length"):
        TaskCosts(task=(0, 1), cpu_s=(1.0,), wall_s=(1.0, 2.0), peak_bytes=(1, 2))


# --- the table -----------------------------------------------------------------------------------------------------


def costs_of(predicted=None, **changes):
    sums = [
        CostSum(tasks=3, cpu_s=2.0, task_s=2.5, peak_bytes=150_000_000, engine_cpu_s=0.5, wall_s=4.0),
        CostSum(tasks=1, cpu_s=7_200.0, task_s=9_000.0, peak_bytes=90_000_000, engine_cpu_s=1.5, wall_s=1_000.0),
    ]
    each = (None, None) if predicted is None else predicted
    stages = [
        StageCosts(label=label, sum=one, datasets={label: one}, predicted_cpu_s=seconds)
        for label, one, seconds in zip(("ingest", "a-very-long-name-filter"), sums, each, strict=True)
    ]
    total = CostSum.total(sums)
    found = {"input_rows": 1_000, "input_bytes": 5_000_000, "stages": tuple(stages), "total": total}
    found |= {"core_hours": 2.001, "predicted_cpu_s": None if predicted is None else sum(predicted)}
    return RunCosts(**(found | changes))


def test_the_table():
    assert list(cost_lines(costs_of(), None)) == [
        "costs     CPU s   wall s  peak MB  rows/CPU s  MB/CPU s",
        "ingest      2.0      4.0      150         500      2.50",
        "a-very-long-name-filter",
        "        7,200.0  1,000.0       90           0      0.00",
        "engine      2.0",
        "total   7,204.0  1,004.0      150           0      0.00",
        "core-hours: 2.00",
    ]


def test_the_table_with_a_prediction_and_a_price():
    assert list(cost_lines(costs_of((1.5, 6_000.0)), 0.05)) == [
        "costs     CPU s   wall s  peak MB  rows/CPU s  MB/CPU s  predicted",
        "ingest      2.0      4.0      150         500      2.50        1.5",
        "a-very-long-name-filter",
        "        7,200.0  1,000.0       90           0      0.00    6,000.0",
        "engine      2.0",
        "total   7,204.0  1,004.0      150           0      0.00    6,001.5",
        "core-hours: 2.00, which cost 0.100; predicted: 1.67, which cost 0.0834",
    ]


def test_without_a_size_there_is_no_rate_by_size():
    table = list(cost_lines(costs_of(input_bytes=None), None))
    assert table[1] == "ingest      2.0      4.0      150         500         -"


@pytest.mark.parametrize(
    ("number", "short"), [(0, "0"), (0.000123456, "0.000123"), (1.5, "1.50"), (99.96, "100.0"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits(number, short):
    assert told._short(number) == short


# --- beside a prediction -------------------------------------------------------------------------------------------


def test_a_run_is_compared_with_what_was_predicted_of_it(made, copied, source, tmp_path):
    recipe = copied.model_copy(update={"run": copied.run.model_copy(update={"price_per_core_hour": 2.0})})
    size = source.stat().st_size
    keep_estimate(recipe, size, 10, {"ingest": 1.0, "filter": 2.0, "corpus": 4.0, "rounds/english_share-0": 0.5})
    lines = lines_of(recipe, IdleEngine())
    found = read_run_costs(recipe.place)
    predicted = {one.label: one.predicted_cpu_s for one in found.stages}
    assert predicted == {"ingest": 1.0, "filter": 2.5, "dedup": 0.0, "tokenize": 0.0, "dropped": 0.0, "layout": 4.0}
    assert found.predicted_cpu_s == 7.5
    assert any(line.endswith("predicted: 0.00208, which cost 0.00417") for line in lines)
    assert {**files(tmp_path / "out"), ESTIMATE: b""} == {**files(Path(made.output)), ESTIMATE: b""}


@pytest.mark.parametrize(("changes", "size"), [({"filter": {"steps": [{"kind": "answer"}]}}, 0), ({}, 1)])
def test_what_was_predicted_of_another_recipe_or_input_is_no_prediction(made, source, changes, size, tmp_path):
    other = recipe_of(source, made.output, **changes)
    keep_estimate(other, source.stat().st_size + size, 10, {"ingest": 1.0})
    try:
        assert run_costs(made).predicted_cpu_s is None
    finally:
        Path(made.output, ESTIMATE).unlink()


def test_costs_are_written_where_they_differ(tmp_path):
    keep_costs(Location.of(tmp_path), costs_of())
    before = (tmp_path / COSTS).stat().st_mtime_ns
    keep_costs(Location.of(tmp_path), costs_of())
    assert (tmp_path / COSTS).stat().st_mtime_ns == before
    keep_costs(Location.of(tmp_path), costs_of(input_rows=7))
    assert (tmp_path / COSTS).read_bytes() == to_json(costs_of(input_rows=7))
