"""`python -m jobs.run_beam`: our flags and Beam's, exit codes, and a run in a process of its own without a JVM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from etl.errors import ConfigError
from jobs import demo, run_beam
from jobs.run_beam import main
from tests.etl.stages.toys import mixed_rows, stage, write_parquet
from tests.progress_lines import without_progress

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path):
    return write_parquet(tmp_path / "in.parquet", mixed_rows(30))


def sets(tmp_path, source):
    return ["--set", f"output={tmp_path / 'out'}", "--set", f"sources.synth.path={source}"]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--runner=DirectRunner", "--direct_num_workers", "1"],
        ["--", "--runner=FnApiRunner"],
        ["--runner", "FnApiRunner", "--", "--job_name=mine"],
    ],
)
def test_flags_of_beam_come_before_or_after_the_dashes(tmp_path, capsys, source, flags):
    assert main(["--conf", "conf/recipes/synth.yaml", *sets(tmp_path, source), *flags]) == 0
    assert "\ncorpus: 29 rows, " in capsys.readouterr().out
    assert stage(tmp_path / "out", "corpus").manifest.rows_out == 29


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--", "--runer=DirectRunner"], "Beam has no flag --runer=DirectRunner; did you mean --runner?"),
        (["--", "--direct_num_workers=two"], "--direct_num_workers: invalid int value: 'two'"),
        (["--", "--runner=SomeRunner"], "Unexpected pipeline runner: SomeRunner"),
        (["--", "--runner=DataflowRunner"], "Missing required option: project"),
        (["--set", "outptu=x"], "unknown key 'outptu'"),
        (["--sett", "a=b"], "Beam has no flag --sett"),
        (["--", "--runner=PortableRunner", "--job_endpoint=127.0.0.1:1", "--environment_type=DOCKER"], "output="),
    ],
)
def test_a_wrong_flag_or_key_fails_before_any_work(tmp_path, capsys, source, arguments, told):
    assert main(["--conf", "synth", *sets(tmp_path, source), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ConfigError: ")
    assert told in said
    assert not (tmp_path / "out").exists()


def test_a_recipe_must_be_named(capsys):
    assert main(["--", "--runner=DirectRunner"]) == 2
    assert capsys.readouterr().err.startswith("ConfigError: Missing option '--conf'")


def test_a_process_of_its_own_needs_no_java_and_says_only_what_is_ours(tmp_path, source):
    empty = tmp_path / "empty"
    empty.mkdir()
    probe = (
        "import sys; from etl.engines.beam_import import CLOUDS; from jobs.run_beam import main; "
        "code = main(sys.argv[1:]); "
        "print(sorted({'pyspark', 'py4j', 'torch', 'scipy.special', *CLOUDS} & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-W", "error::DeprecationWarning:etl", "-c", probe, "--conf", "synth"]
    environment = {**os.environ, "JAVA_HOME": "/nonexistent", "PATH": str(empty), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [*command, *sets(tmp_path, source)], capture_output=True, text=True, cwd=empty, env=environment, check=False
    )
    assert (done.returncode, without_progress(done.stderr)) == (0, [])
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    size = f"{source.stat().st_size:,} bytes"
    assert f"  synth: 30 rows in 1 file, {size}: 29 kept, 1 dropped (blank_answer 1)" in lines
    assert list(empty.iterdir()) == []


def test_the_demo_runs_on_the_engine_that_is_asked_for(tmp_path, monkeypatch, capsys):
    asked = []

    def run(*arguments):
        asked.append(arguments)
        raise ConfigError("enough")

    monkeypatch.setattr(run_beam, "run", run)
    assert demo.main(["--engine", "beam", "--output", str(tmp_path)]) == 2
    assert [arguments[:4] for arguments in asked] == [("demo", [f"output={tmp_path}"], [], False)]
    assert "on Beam" in capsys.readouterr().out
