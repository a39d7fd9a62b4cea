"""`stillhouse ingest`: the line of JSON and the exit code."""

import json

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from tests.etl.stages.test_intake import ALPACA
from tests.etl.stages.toys import read, stage, write_jsonl


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """A run that starts no workers."""
    monkeypatch.setattr("etl.machine.usable_cpus", lambda: 1)


@pytest.fixture
def source(tmp_path):
    """20 good rows, one without an answer, and one that cannot be read."""
    path = write_jsonl(tmp_path / "in" / "a.jsonl", [*ALPACA, ALPACA[0] | {"output": " "}])
    with path.open("a") as file:
        file.write("oops\n")
    return path


def ingest(*arguments):
    """(Exit code, what the line says, standard error)."""
    result = CliRunner().invoke(app, ["ingest", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    (line,) = result.stdout.splitlines()
    said = json.loads(line)
    assert said["rows_in"] + said["made"] == said["kept"] + said["dropped"] + said["quarantined"] + said["assembled"]
    assert said["dropped"] == sum(said["dropped_by_reason"].values())
    assert said["quarantined"] == sum(said["quarantined_by_reason"].values())
    return result.exit_code, said, result.stderr


def counts(said):
    return [said[name] for name in ("rows_in", "made", "kept", "dropped", "quarantined")]


def test_ingest_says_what_it_made_and_does_it_once(tmp_path, source):
    code, said, told = ingest("alpaca", "--path", source.parent, "--output", tmp_path / "out")
    assert (code, said["source"], counts(said)) == (0, "alpaca", [22, 0, 20, 1, 1])
    assert (said["dropped_by_reason"], said["quarantined_by_reason"]) == ({"blank_answer": 1}, {"invalid_json": 1})
    assert "22 rows in 1 file" in told
    assert len(read(stage(tmp_path / "out", "ingest"))) == 21
    again = ingest("alpaca", "--path", source.parent, "--output", tmp_path / "out")
    assert again[:2] == (code, said)
    assert "nothing to do" in again[2]


def test_another_description_and_another_path_into_the_same_output(tmp_path, source):
    other = write_jsonl(tmp_path / "other.jsonl", [{"q": "1 + 1", "a": "2"}])
    (tmp_path / "my.own.yaml").write_text("{shape: columns, user: q, final: a, skill_bucket: math}")
    assert ingest("alpaca", "--path", source, "--output", tmp_path / "out")[0] == 0
    code, said, _ = ingest(tmp_path / "my.own.yaml", "--path", other, "--output", tmp_path / "out")
    assert (code, said["source"], counts(said)) == (0, "my_own", [1, 0, 1, 0, 0])
    both = ("--path", other, "--path", tmp_path / "more.jsonl")
    write_jsonl(tmp_path / "more.jsonl", [{"q": "1 + 2", "a": "3"}])
    assert ingest(tmp_path / "my.own.yaml", *both, "--output", tmp_path / "out")[1]["kept"] == 2


def test_too_many_bad_rows_are_told_and_can_be_let_go(tmp_path, source):
    with source.open("a") as file:
        file.write("oops\n")
    words = ("alpaca", "--path", source, "--output", tmp_path / "out")
    code, said, told = ingest(*words)
    assert (code, counts(said)) == (2, [23, 0, 20, 1, 2])
    assert told.splitlines()[-1].startswith("SourceError: source 'alpaca': 2 of 23 rows (8.7%) could not be read")
    assert ingest(*words, "--set", "max_bad_fraction=0.1")[:2] == (0, said)


def test_a_source_that_gives_no_row_is_told(tmp_path, source):
    code, said, told = ingest("verifiable", "--path", source, "--output", tmp_path / "out")
    assert (code, counts(said)) == (2, [22, 0, 0, 0, 22])
    assert "'verifiable' gives no row" in told


def test_a_limit_reads_the_first_rows(tmp_path, source):
    words = ("alpaca", "--path", source, "--output", tmp_path / "out")
    assert ingest(*words)[0] == 0
    code, said, told = ingest(*words, "--limit", 3)
    assert (code, counts(said)) == (0, [3, 0, 3, 0, 0])
    assert "3 rows in 1 file" in told
    assert "; limit 3; columns not used: note\n" in told
    assert [row["position"] for row in read(stage(tmp_path / "out", "ingest"))] == [
        sum(len(line) for line in source.read_bytes().splitlines(keepends=True)[:number]) for number in range(3)
    ]
    assert ingest(*words, "--limit", 100)[1]["rows_in"] == 22


@pytest.mark.parametrize(
    ("name", "path", "output", "told"),
    [
        ("nosuch", "a.jsonl", "out", "ConfigError: there is no configuration 'nosuch'"),
        ("./nosuch.yaml", "a.jsonl", "out", "ConfigError: there is no file ./nosuch.yaml"),
        ("shape.yaml", "a.jsonl", "out", "ConfigError: shape.yaml:"),
        ("alpaca", "b.jsonl", "out", "SourceError: source 'alpaca': no file of"),
        ("alpaca", "a.jsonl", "a.jsonl/out", "DataError: cannot write"),
    ],
)
def test_what_a_user_gets_wrong_is_told_beside_zeros(tmp_path, monkeypatch, source, name, path, output, told):
    monkeypatch.chdir(source.parent)
    (source.parent / "shape.yaml").write_text("{shape: sheet}")
    code, said, error = ingest(name, "--path", path, "--output", output)
    assert (code, counts(said)) == (2, [0, 0, 0, 0, 0])
    assert error.startswith(told)


@pytest.mark.parametrize(
    "words", [["alpaca", "--path", "x"], ["alpaca", "--path", "x", "--output", "y", "--limit", "0"]]
)
def test_options_that_are_wrong_read_nothing(words):
    result = CliRunner().invoke(app, ["ingest", *words])
    assert result.exit_code == 2
