"""`make demo` again: what it finds, what it does not load, and what makes it train anew."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from etl import conf
from etl.run.run import run_recipe
from jobs import demo
from tests.engines.inprocess import InProcessEngine
from tests.environment import PROJECT
from tests.frozen import runs
from training import train as training
from training.export import export as exporting
from training.record.result import TrainResult

DONE = TrainResult(
    steps=3, first_loss=5.0, last_loss=4.0, first_held_out=6.0, last_held_out=5.5, tokens=100, supervised_tokens=60,
    skipped_steps=0, complete=True, ended=[], left_out={}, metrics="", checkpoint=None,
)  # fmt: skip
AGAIN = """
import json, sys
from jobs import demo

settings, names = json.loads(sys.argv[1]), ("pyspark", "py4j", "torch", "transformers", "deepspeed", "apache_beam")
run_on = demo.run_on
demo.run_on = lambda engine, name, given, **more: run_on(engine, name, [*given, *settings], **more)
code = demo.main(["--output", sys.argv[2]])
print(sorted(set(names) & set(sys.modules)))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The demo's recipe over few rows."""
    output = tmp_path_factory.mktemp("demo")
    with runs._without_slow_parts():
        return run_recipe(runs.load("demo", output), InProcessEngine(), lambda line: None)


def digest_of(result):
    return result.corpus.manifest.content_digest


@pytest.fixture
def trained(monkeypatch, tmp_path, result):
    """Calls the demo, whose trainer leaves files; gives what it was asked with the calls' exit codes."""
    student, asked = tmp_path / "student", []

    def train(config):
        asked.append((config.data.corpus, sorted(path.name for path in student.iterdir())))
        for name in ("checkpoints", "metrics.jsonl"):
            (student / name).mkdir(exist_ok=True)
        return replace(DONE, metrics=str(student / "metrics.jsonl"), checkpoint=str(student / "checkpoints"))

    def export(run, target):
        Path(target).mkdir(exist_ok=True)
        return target

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(exporting, "export", export)
    monkeypatch.setattr(demo, "run_on", lambda engine, name, given, **more: result)
    return lambda: (demo.main(["--output", str(tmp_path)]), asked)


def test_a_second_run_says_that_there_was_nothing_to_do_and_what_there_is(trained, capsys, result, tmp_path):
    assert trained() == (0, [(result.corpus.folder.url, ["started.json"])])
    first = capsys.readouterr().out
    assert "3 steps, 60 supervised tokens\nloss 5.000 -> 4.000, held-out 6.000 -> 5.500\n" in first
    assert trained() == (0, [(result.corpus.folder.url, ["started.json"])])
    second = capsys.readouterr().out
    told = f"nothing to do: {tmp_path / 'student'} holds the student of this corpus"
    assert [line for line in second.splitlines() if line not in first.splitlines()] == [told]


@pytest.mark.parametrize("gone", ["export", "checkpoints", "metrics.jsonl"])
def test_a_student_that_is_not_whole_is_trained_on_and_exported_again(trained, tmp_path, gone):
    trained()
    (tmp_path / "student" / gone).rmdir()
    code, asked = trained()
    assert (code, len(asked)) == (0, 2)
    assert {"started.json", "finished.json"} <= set(asked[1][1])


@pytest.mark.parametrize("changed", ["corpus", "training", "deepspeed"])
def test_another_corpus_or_configuration_makes_another_student(trained, monkeypatch, changed, result):
    trained()
    if changed == "corpus":
        monkeypatch.setattr(demo, "_made_from", lambda corpus: {"corpus": "other"})
    else:
        find = conf.find

        def more(name, folder, changed=changed):
            return find(name, folder) + ("\n" if folder == changed else "")

        monkeypatch.setattr(conf, "find", more)
    code, asked = trained()
    assert (code, [names for _, names in asked]) == (0, [["started.json"], ["started.json"]])


def test_after_ctrl_c_the_same_student_is_gone_on_with(trained, monkeypatch, capsys):
    train = training.train
    monkeypatch.setattr(training, "train", lambda config: replace(train(config), complete=False, stopped_by="SIGINT"))
    assert trained()[0] == 128 + signal.SIGINT
    assert "stopped before its end; run it again to resume" in capsys.readouterr().out
    monkeypatch.setattr(training, "train", train)
    code, asked = trained()
    assert (code, asked[1][1]) == (0, ["checkpoints", "metrics.jsonl", "started.json"])


def test_a_second_run_starts_no_spark_and_loads_no_torch(tmp_path, result):
    output = Path(result.corpus.folder.path).parent
    student = output / "student"
    made = {name: str(student) for name in ("metrics", "checkpoint", "student")}
    demo._write(student / "finished.json", {"made_from": demo._made_from(digest_of(result)), "said": ["fine"], **made})
    command = [sys.executable, "-c", AGAIN, json.dumps(runs.SETTINGS["demo"]), str(output)]
    environment = {**os.environ, "JAVA_HOME": "/nonexistent", "PATH": "", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert sum(line.startswith("nothing to do: ") for line in lines) == 2
