"""The command line: exit codes, messages, and one run in a process of its own."""

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.cells import cell_len
from typer.testing import CliRunner

from etl.errors import DataError
from jobs.cli import app
from jobs.run_beam import main as run_beam_main
from jobs.run_recipe import main as run_recipe_main
from tests.etl.stages.toys import make_recipe, mixed_rows, run, stage, write_parquet
from tests.progress_lines import without_progress

PROJECT = Path(__file__).resolve().parents[2]


def call(*arguments):
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def made(tmp_path):
    source = write_parquet(tmp_path / "in.parquet", mixed_rows(40))
    run(make_recipe(tmp_path / "out", {"toy": source}, stages=["tokenize", "layout"]))
    return tmp_path / "out"


# --- verify --------------------------------------------------------------------------------------------------------


def test_verify_of_an_untouched_run(made):
    result = call("verify", made)
    assert result.exit_code == 0
    assert "0 differences" in result.output


def a_part(output):
    return output / "corpus" / stage(output, "corpus").manifest.parts[0].path


def delete(output):
    a_part(output).unlink()


def cut_short(output):
    a_part(output).write_bytes(a_part(output).read_bytes()[:-1])


def flip_a_bit(output):
    data = bytearray(a_part(output).read_bytes())
    data[len(data) // 2] ^= 1
    a_part(output).write_bytes(data)


def add_a_file(output):
    (output / "tokenize" / "part-more.parquet").write_bytes(b"PAR1")


def take_the_manifest_away(output):
    (output / "dropped" / "_manifest.json").unlink()


def change_a_count(output):
    path = output / "ingest" / "_manifest.json"
    path.write_text(path.read_text().replace('"kept":39', '"kept":40'))


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (delete, "missing"),
        (cut_short, "short"),
        (flip_a_bit, "changed"),
        (add_a_file, "orphan"),
        (take_the_manifest_away, "uncommitted"),
        (change_a_count, "account"),
    ],
)
def test_verify_exits_with_1_on_any_difference(made, harm, kind):
    harm(made)
    result = call("verify", made)
    assert result.exit_code == 1
    assert kind in result.output
    assert "1 difference\n" in result.output


def test_stale_datasets_are_named_and_swept_only_when_asked_for(made):
    run(make_recipe(made, {"toy": made.parent / "in.parquet"}, stages=[]))
    named = call("verify", made)
    assert named.exit_code == 0
    assert f"0 differences, 3 stale; `stillhouse sweep {made} --stale --delete`" in named.output
    assert f"stale  {made}/tokenize/_manifest.json: from an earlier recipe" in named.output
    assert call("sweep", made, "--older-than", "0s", "--delete").exit_code == 0
    listed = call("sweep", made, "--stale")
    assert "stale objects" in listed.output
    assert (made / "corpus").exists()
    assert call("sweep", made, "--stale", "--delete").exit_code == 0
    assert sorted(item.name for item in made.iterdir()) == [
        "_costs.json",
        "_run.json",
        "dropped",
        "ingest",
        "quarantine",
    ]
    assert "0 differences\n" in call("verify", made).output


def test_verify_where_nothing_is(tmp_path):
    result = call("verify", tmp_path)
    assert result.exit_code == 2
    assert f"DataError: there is no dataset at or below {tmp_path}" in result.output


# --- what a user gets wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("outptu=x", ["unknown key 'outptu'", "'output'"]),
        ("harmony.reasoning_efort=high", ["harmony", "unknown key 'reasoning_efort'", "'reasoning_effort'"]),
        ("dedup.near.treshold=0.9", ["dedup.near", "unknown key 'treshold'", "'threshold'"]),
        ("sources.synth.pth=x", ["sources.synth", "unknown key 'pth'", "'path'"]),
        ("filter.steps.1.kep=[en]", ["unknown key 'kep'", "'keep'"]),
        ("filter.cuts.0.shre=0.5", ["unknown key 'shre'", "'share'"]),
        ("run.split_byte=5000", ["run", "unknown key 'split_byte'", "'split_bytes'"]),
        ("stages=[filtr, layout]", ["stages.0", "'filtr'", "filter"]),
        ("dedup.near.threshold=2", ["dedup.near.threshold", "2"]),
        ("filter.steps.1.keep=[englsih]", ["filter.steps.1", "no language 'englsih'"]),
        ("filter.steps.7.keep=[en]", ["filter.steps.7.keep", "index"]),
        ("nonsense", ["KEY=VALUE"]),
    ],
)
@pytest.mark.parametrize("entry", ["stillhouse", "run_recipe"])
def test_a_wrong_key_or_value_fails_before_any_work(tmp_path, monkeypatch, capsys, entry, override, told):
    monkeypatch.chdir(tmp_path)
    output = f"output={tmp_path / 'out'}"
    if entry == "stillhouse":
        result = call("run", "demo", "--set", output, "--set", override)
        code, text = result.exit_code, result.output
    else:
        code = run_recipe_main(["--conf", "demo", "--set", output, "--set", override])
        text = capsys.readouterr().err
    assert code == 2
    assert text.startswith("ConfigError: ")
    assert all(words in text for words in told), text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("dmeo", ["'dmeo'", "demo, synth"]),
        ("conf/recipes/none.yaml", ["no file conf/recipes/none.yaml"]),
        ("synth", ["output: is missing", "--set output=VALUE"]),
    ],
)
def test_a_recipe_that_is_not_there_or_not_whole(tmp_path, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    result = call("run", name)
    assert result.exit_code == 2
    assert all(words in result.output for words in told), result.output
    assert list(tmp_path.iterdir()) == []


def test_input_that_is_not_there(tmp_path):
    result = call(
        "run", "synth", "--set", f"output={tmp_path / 'out'}", "--set", f"sources.synth.path={tmp_path}/no.jsonl"
    )
    assert result.exit_code == 2
    assert "SourceError: source 'synth': no file of" in result.output


@pytest.mark.parametrize("place", ["file", "file/out", "/proc/out", "/dev/null/out"])
def test_an_output_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    source = write_parquet(tmp_path / "in.parquet", mixed_rows(1))
    sets = [f"output={tmp_path / place}", f"sources.synth.path={source}"]
    result = call("run", "synth", "--engine", "local", *(word for item in sets for word in ("--set", item)))
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    assert result.output.startswith("DataError: cannot write ")


@pytest.mark.parametrize(("job", "package"), [(run_recipe_main, "pyspark"), (run_beam_main, "apache_beam")])
def test_a_job_whose_engine_is_not_installed(tmp_path, monkeypatch, capsys, job, package):
    for name in [name for name in sys.modules if name.startswith(("etl.engines.beam", f"{package}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    source = write_parquet(tmp_path / "in.parquet", mixed_rows(1))
    assert job(["--conf", "synth", "--set", f"output={tmp_path / 'out'}", "--set", f"sources.synth.path={source}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ConfigError: this needs the package {package}, which is not installed")
    assert said.count("\n") == 1


def test_no_command_shows_the_commands():
    assert "verify" in call().output


def test_sample_command_writes_the_sample(tmp_path):
    result = call("sample", tmp_path)
    assert result.exit_code == 0
    assert {"synth", "stdlib", "licences", "dialogue"} <= set(result.output.split())
    assert list(tmp_path.rglob("*.parquet"))


# --- a run of its own ----------------------------------------------------------------------------------------------


def in_a_process(folder, *arguments):
    command = [sys.executable, "-m", "jobs.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.spark
def test_run_then_run_again_then_verify(tmp_path):
    """From an empty working directory, with a recipe by name; the second time no JVM is started."""
    write_parquet(tmp_path / "in.parquet", mixed_rows(30))
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = ["run", "synth", "--set", "output=../out", "--set", "sources.synth.path=../in.parquet"]
    first = in_a_process(empty, *arguments, "-v")
    assert first.returncode == 0, first.stderr
    assert sum(line.startswith("Java ") for line in first.stdout.splitlines()) == 1
    assert "\ncorpus: 29 rows, " in first.stdout
    again = in_a_process(empty, *arguments)
    assert again.returncode == 0, again.stderr
    assert "Java" not in again.stdout
    assert again.stdout.splitlines()[1].startswith("nothing to do: ")
    assert (without_progress(first.stderr), again.stderr) == ([], "")
    assert call("verify", tmp_path / "out").exit_code == 0
    assert list(empty.iterdir()) == []


# --- plan --sample -------------------------------------------------------------------------------------------------


def test_a_run_is_compared_with_what_a_sample_predicted(tmp_path):
    """The prediction is all that plan leaves in the output."""
    source = write_parquet(tmp_path / "in.parquet", mixed_rows(40))
    items = [f"output={tmp_path / 'out'}", f"sources.synth.path={source}", "run.price_per_core_hour=2"]
    sets = [word for item in items for word in ("--set", item)]
    result = call("plan", "synth", *sets, "--sample", "--sample-mb", 1)
    assert result.exit_code == 0, result.output
    assert "shuffled MB" in result.output
    assert "corpus" in result.output
    assert result.output.splitlines()[-1].startswith("core-hours: 0.00")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_estimate.json"]
    ran = call("run", "synth", *sets, "--engine", "local", "--processes", 1)
    assert ran.exit_code == 0, ran.output
    (head,) = [line for line in ran.output.splitlines() if line.startswith("costs ")]
    assert head.split()[-1] == "predicted"
    assert re.search(
        r"^core-hours: 0\.\S+, which cost 0\.\S+; predicted: 0\.\S+, which cost 0\.\S+$", ran.output, re.MULTILINE
    )
    assert call("verify", tmp_path / "out").exit_code == 0


def test_a_prediction_that_cannot_be_kept_is_told(tmp_path, monkeypatch):
    source = write_parquet(tmp_path / "in.parquet", mixed_rows(40))
    sets = ["--set", f"output={tmp_path / 'out'}", "--set", f"sources.synth.path={source}"]

    def refuse(*_):
        raise DataError("may not write there")

    monkeypatch.setattr("etl.run.costs.keep_estimate", refuse)
    result = call("plan", "synth", *sets, "--sample", "--sample-mb", 1)
    assert result.exit_code == 0, result.output
    assert result.stderr == "the estimate was not saved, so a run cannot be compared with it: may not write there\n"


LONG = "source-" + "x" * 70
WIDE = "维基百科的文章"
NAMES_RECIPE = """
name: names
sources: {%s: {spec: text}, %s: {spec: text}}
stages: [{kind: dedup, name: %s, near: null}]
"""


def test_names_are_whole_in_every_table_of_80_columns(tmp_path, monkeypatch):
    """Of plan with a sample, run, plan of a later recipe, and verify, into a pipe."""
    monkeypatch.setenv("COLUMNS", "80")
    late = "a-late-" + "y" * 60
    (tmp_path / "names.yaml").write_text(NAMES_RECIPE % (LONG, WIDE, late), "utf-8")
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "Some text."}\n{"id": "b", "text": "More of it."}\n')
    paths = [f"sources.{name}.path={tmp_path / 'in.jsonl'}" for name in (LONG, WIDE)]
    sets = [word for item in (f"output={tmp_path / ':on:'}", *paths) for word in ("--set", item)]
    planned = call("plan", tmp_path / "names.yaml", *sets, "--sample", "--sample-mb", 1)
    assert planned.exit_code == 0, planned.output
    for name in (LONG, WIDE, f"{late}-dedup", f"{late}-exact"):
        assert name in planned.output
    assert "…" not in planned.output
    first, second, third = planned.output.splitlines()[:3]
    assert [first[:7], second[: len(LONG)], third[: len(WIDE)]] == ["source ", LONG, WIDE]
    assert cell_len(first) == cell_len(second) == cell_len(third)
    ran = call("run", tmp_path / "names.yaml", *sets, "--engine", "local", "--processes", 1)
    assert ran.exit_code == 0, ran.output
    assert f"(1) {LONG}" in ran.output
    assert f"{late}-exact\n" in ran.output
    assert f"{tmp_path}/:on:" in ran.output
    (tmp_path / "names.yaml").write_text(NAMES_RECIPE % (LONG, WIDE, "other"), "utf-8")
    assert f"  {late}-exact " in call("plan", tmp_path / "names.yaml", *sets).output
    (tmp_path / ":on:" / f"{late}-exact" / "_manifest.json").write_text("{}")
    checked = call("verify", tmp_path / ":on:")
    assert f"{tmp_path}/:on:/{late}-exact/_manifest.json" in checked.output


# --- the program itself ------------------------------------------------------------------------------------------


def program(words, **options):
    return subprocess.run([sys.executable, "-m", "jobs.cli", *words], text=True, capture_output=True, **options)


def test_the_version_is_that_of_the_package():
    assert call("--version").stdout == f"stillhouse {importlib.metadata.version('stillhouse')}\n"


def examples():
    """The last lines of each command's help."""
    for name, found in sorted(typer.main.get_command(app).commands.items()):
        lines = (found.epilog or "no example").split("\n\n")[1:]
        yield from ((name, line) for line in lines or ["no example"])


@pytest.mark.parametrize(("name", "line"), list(examples()))
def test_the_help_of_every_command_has_examples_that_it_takes(name, line):
    program, command, *words = shlex.split(line.partition(" > ")[0])
    assert (program, command) == ("stillhouse", name)
    typer.main.get_command(app).commands[name].make_context(name, words)


def test_a_shell_gets_completions(monkeypatch):
    for name, value in {"COMPLETE": "complete_bash", "WORDS": "stillhouse ver", "CWORD": "1"}.items():
        monkeypatch.setenv(f"_STILLHOUSE_{name}" if name == "COMPLETE" else f"COMP_{name}", value)
    assert program([]).stdout.split() == ["verify"]


def test_a_reader_that_leaves_ends_the_program_without_a_word():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        ended = subprocess.run([sys.executable, "-m", "jobs.cli", "--help"], stdout=nobody, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (1, b"")
