"""`--json`: one object on standard output, with the fields that the contract lists; all else on standard error."""

import json
import re
from pathlib import Path

import pytest

from etl.console import run_app
from jobs.cli import app
from tests.environment import PROJECT
from tests.etl.stages.toys import FILTER, make_recipe, mixed_rows, write_parquet
from tests.faults.recipes import write_conf

CONTRACT = (PROJECT / "docs" / "reference" / "contract.md").read_text("utf-8")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("json")
    source = write_parquet(folder / "in.parquet", mixed_rows(30))
    recipe = make_recipe("out", {"toy": source}, stages=["filter", "tokenize", "layout"], filter=FILTER)
    return write_conf(recipe, folder / "toy.yaml"), folder / "out"


def fields_of(command):
    """The words of code in the contract's row of a command."""
    (row,) = re.findall(rf"^\| `{command}` \| (.*) \|$", CONTRACT, re.MULTILINE)
    return set(re.findall(r"`([a-z_]+)`", row))


def answer(capsys, *words):
    """What a command prints, and what it says beside it."""
    code = run_app(app, [str(word) for word in words], "stillhouse")
    found = capsys.readouterr()
    (line,) = found.out.splitlines()
    return code, json.loads(line), found.err


def test_a_run_twice_and_what_looks_at_it(places, capsys):
    recipe, output = places
    run = ["run", recipe, "--set", f"output={output}", "--engine", "local", "--processes", "1", "--json"]
    code, first, said = answer(capsys, *run)
    assert (code, first["nothing_to_do"]) == (0, False)
    assert [line.split()[1] for line in said.splitlines() if re.match(r"\d/4 ", line)] == [
        "ingest", "filter", "tokenize", "layout"
    ]  # fmt: skip
    for stage in first["stages"]:
        assert stage["rows_in"] + stage["made"] == stage["left"] + stage["assembled"] + sum(stage["lost"].values())
        assert set(stage) <= fields_of("run")
    assert first["stages"][-1]["left"] == first["corpus"]["rows"] == 30 - first["dropped"]["rows"]
    assert set(first) | set(first["corpus"]) <= fields_of("run")

    code, again, said = answer(capsys, *run)
    assert (code, again["nothing_to_do"], again["corpus"]) == (0, True, first["corpus"])
    assert "nothing to do: " in said

    code, plan, _ = answer(capsys, "plan", recipe, "--set", f"output={output}", "--json")
    assert (code, {one["action"] for one in plan["datasets"]}, plan["predicted"]) == (0, {"keep"}, None)
    assert set(plan) | set(plan["inputs"][0]) | set(plan["datasets"][0]) <= fields_of("plan")

    code, verified, _ = answer(capsys, "verify", output, "--json")
    assert (code, verified["num_damages"], verified["differences"]) == (0, 0, [])
    assert "corpus" in verified["datasets"]
    assert set(verified) <= fields_of("verify")

    code, catalog, _ = answer(capsys, "catalog", output, "--dialect", "duckdb", "--json")
    assert (code, catalog["dialect"]) == (0, "duckdb")
    assert any("corpus" in statement for statement in catalog["statements"])
    assert set(catalog) <= fields_of("catalog")


def test_what_is_damaged_and_what_may_go(places, capsys, tmp_path):
    recipe, output = places
    run_app(app, ["run", str(recipe), "--set", f"output={tmp_path}/out", "--engine", "local", "--processes", "1"], "x")
    capsys.readouterr()
    output = tmp_path / "out"
    part = next((output / "ingest").glob("part-*.parquet"))
    part.rename(part.with_name("part-00000-0123456789abcdef.parquet"))
    code, verified, _ = answer(capsys, "verify", output, "--json")
    assert (code, verified["num_damages"]) == (1, 2)
    assert {one["kind"] for one in verified["differences"]} == {"missing", "orphan"}
    assert set(verified["differences"][0]) <= fields_of("verify")
    code, swept, _ = answer(capsys, "sweep", output, "--older-than", "0s", "--json")
    (leftover,) = swept["leftovers"]
    assert (code, swept["removed"], Path(leftover["path"]).parent.name) == (0, False, "ingest")
    assert swept["bytes"] == leftover["bytes"] == (output / leftover["path"]).stat().st_size
    assert set(swept) | set(leftover) <= fields_of("sweep")


def test_an_error_is_no_object(capsys):
    assert run_app(app, ["run", "demo", "--json"], "stillhouse") == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert "output: is missing" in found.err


def test_training_commands_print_what_they_made(monkeypatch, capsys):
    from training.evaluate import report
    from training.export import export

    monkeypatch.setattr(export, "export", lambda run, target, allow_code: Path(target))
    assert answer(capsys, "export", "student", "/exported", "--json")[:2] == (0, {"folder": "/exported"})
    found = report.Report({"model": "m"}, {"corpus": {"model": {"loss": 2.0}}}, {}, 0, "float32")
    monkeypatch.setattr(report, "evaluate_conf", lambda config: found)
    code, said, _ = answer(capsys, "evaluate", "demo", "--json", "--set", "model=m")
    assert (code, said["results"]) == (0, {"corpus": {"model": {"loss": 2.0}}})
    assert set(said) <= fields_of("evaluate")
