"""Inputs of public bug reports through the command line, as their README writes it: the exit code and what is said.

Other cases stand beside the code that they are about: tests/conf/test_field_inputs.py, tests/etl/sources/test_read.py,
tests/engines/test_spark_types.py.
"""

import math

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from tests.etl.stages.toys import read, stage


@pytest.fixture
def cases(shared_data):
    return shared_data / "field_cases"


def ran(recipe, output, *sets):
    words = [word for item in (f"output={output}", *sets) for word in ("--set", item)]
    result = CliRunner().invoke(app, ["run", str(recipe), "--engine", "local", "--processes", "1", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("zst_cut", "zst_cut/a.jsonl.zst cannot be read"),
        ("zst_plain", "zst_plain/a.jsonl.zst cannot be read"),
        ("array", "array/a.json is a JSON array"),
        ("arrayl", "arrayl/a.json is a JSON array"),
        ("pretty", "pretty/a.json is a JSON array"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_exit_code_2(cases, tmp_path, case, said):
    result = ran("dedup_text", tmp_path / "out", f"sources.text.path={cases / case}")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("SourceError: ")
    assert said in line
    assert not (tmp_path / "out" / "ingest" / "_manifest.json").exists()


@pytest.mark.parametrize(("case", "kept", "quarantined"), [("date", 3, []), ("deep", 1, ["too_deep"])])
def test_a_value_that_python_cannot_hold_does_not_end_the_run(cases, tmp_path, case, kept, quarantined):
    result = ran("synth", tmp_path / "out", f"sources.synth.path={cases / case}")
    assert result.exit_code == 0, result.output
    assert len(read(stage(tmp_path / "out", "corpus"))) == kept
    assert [row["reason"] for row in read(stage(tmp_path / "out", "quarantine"))] == quarantined


def test_rows_that_an_n_gram_model_was_trained_on_have_small_perplexities(cases, tmp_path):
    result = ran(cases / "ken.yaml", tmp_path / "out", f"sources.text.path={cases / 'kenlm_tiny'}")
    assert result.exit_code == 0, result.output
    found = [row["perplexity"] for row in read(stage(tmp_path / "out", "score"))]
    assert len(found) == len((cases / "kenlm_tiny" / "a.jsonl").read_text("utf-8").splitlines())
    assert all(math.isfinite(value) and 1 < value < 42 for value in found)
