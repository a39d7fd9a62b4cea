"""Inputs of public bug reports through the command line, as their README writes it: the exit code and the message.

Other cases are beside the code that they are about: tests/conf/test_field_inputs.py, tests/etl/sources/test_read.py,
tests/engines/test_spark_types.py.
"""

import math

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from tests.etl.stages.toys import read, stage, verdicts


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
    result = ran("synth", tmp_path / "out", f"sources.synth.path={cases / case}", "max_bad_fraction=0.5")
    assert result.exit_code == 0, result.output
    assert len(read(stage(tmp_path / "out", "corpus"))) == kept
    assert [row["reason"] for row in read(stage(tmp_path / "out", "quarantine"))] == quarantined


def test_rows_that_an_n_gram_model_was_trained_on_have_small_perplexities(cases, tmp_path):
    result = ran(cases / "ken.yaml", tmp_path / "out", f"sources.text.path={cases / 'kenlm_tiny'}")
    assert result.exit_code == 0, result.output
    found = [row["perplexity"] for row in read(stage(tmp_path / "out", "score"))]
    assert len(found) == len((cases / "kenlm_tiny" / "a.jsonl").read_text("utf-8").splitlines())
    assert all(math.isfinite(value) and 1 < value < 42 for value in found)


MATHS = "{shape: text, example_id: id, text: text, skill_bucket: {default: B3}}"


def lost(output, dataset):
    """The rows' own names of those that a part of dedup marked."""
    names = {row["id"]: row["source_example_id"] for row in read(stage(output, "ingest"))}
    return {names[key] for key in verdicts(output, dataset)}


def pairs(output):
    return {frozenset((row["a"], row["b"])) for row in read(stage(output, "pairs"))}


def test_texts_without_a_word_are_no_duplicates(cases, tmp_path):
    result = ran("dedup_text", tmp_path / "out", f"sources.text.path={cases / 'noword'}")
    assert result.exit_code == 0, result.output
    assert len(read(stage(tmp_path / "out", "near"))) == 10
    assert lost(tmp_path / "out", "near") == set()


@pytest.mark.parametrize("said", ["unit", "description"])
def test_texts_that_differ_in_signs_alone_are_kept_where_signs_count(cases, tmp_path, said):
    (tmp_path / "maths.yaml").write_text(MATHS, "utf-8")
    sets = {"unit": "dedup.near.unit=token", "description": f"sources.text.spec={tmp_path / 'maths.yaml'}"}
    result = ran("dedup_text", tmp_path / "out", f"sources.text.path={cases / 'ops'}", sets[said])
    assert result.exit_code == 0, result.output
    assert len(read(stage(tmp_path / "out", "near"))) == 10
    assert lost(tmp_path / "out", "near") == set()


def test_chinese_texts_without_spaces_are_found_at_the_default_unit(cases, tmp_path):
    result = ran("dedup_text", tmp_path / "out", f"sources.text.path={cases / 'zh_small'}")
    assert result.exit_code == 0, result.output
    assert pairs(tmp_path / "out") == {frozenset((f"o{number}", f"e{number}")) for number in range(10)}


def test_functions_of_other_indentation_are_no_exact_duplicates(cases, tmp_path):
    result = ran(cases / "exact.yaml", tmp_path / "out", f"sources.text.path={cases / 'indent'}")
    assert result.exit_code == 0, result.output
    assert len(read(stage(tmp_path / "out", "exact"))) == 4
    assert lost(tmp_path / "out", "exact") in ({"ws1"}, {"ws2"})


def test_end_marks_do_not_hide_the_language_of_what_follows(cases, tmp_path):
    result = ran(cases / "lang.yaml", tmp_path / "out", f"sources.text.path={cases / 'eos'}")
    assert result.exit_code == 0, result.output
    rows = read(stage(tmp_path / "out", "filter"))
    assert [row["detected_language"] for row in rows] == ["de"] * 6
    assert [row["verdict"] for row in rows] == [None] * 6
