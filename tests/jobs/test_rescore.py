"""`python -m jobs.rescore`: what it prints, exit codes, and workers that are killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from etl.storage.dataset import Dataset
from jobs.rescore import main
from tests.services.process import wait_until
from tests.training.teachers import save_teacher, write_corpus

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher and a corpus."""
    root = tmp_path_factory.mktemp("rescore")
    save_teacher(root / "teacher")
    write_corpus(root / "corpus")
    return root


def flags(folder, output, *more):
    values = [
        f"corpus={folder}/corpus", f"teacher.model={folder}/teacher", f"output={output}", "teacher.batch_tokens=600",
        "topk=2", *more,
    ]  # fmt: skip
    return ["--conf", "demo", *(word for value in values for word in ("--set", value))]


@pytest.fixture(scope="module")
def output(folder, tmp_path_factory):
    """Of a run in this process."""
    output = tmp_path_factory.mktemp("whole")
    assert main(flags(folder, output)) == 0
    return output


def test_a_summary_is_printed_also_of_a_run_that_is_done(folder, output, capsys):
    assert main(flags(folder, output)) == 0
    said = capsys.readouterr().out
    manifest = Dataset.open(str(output / "teacher_logp")).manifest
    assert f"{manifest.rows_out} rows, mean logp {manifest.findings['mean_logp']:.4f}" in said
    assert "B1/C1" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "subset.fracton=1"], "did you mean 'fraction'"),
        (["--set", "workers=0"], "workers"),
        (["--engine", "beam"], "--engine"),
    ],
)
def test_bad_input_is_exit_code_2(folder, output, capsys, more, message):
    assert main([*flags(folder, output), *more]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ConfigError: ")
    assert message in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_workers_of_a_run_that_was_killed_give_the_same_dataset(folder, output, tmp_path):
    """kill -9 of the whole process group while the workers are at work, then again to the end."""
    command = [sys.executable, "-m", "jobs.rescore", *flags(folder, tmp_path, "workers=2")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    first = subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: bool(list(tmp_path.rglob("*.arrow"))) or first.poll() is not None, "a checkpoint", 240)
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "teacher_logp" / "_manifest.json").exists()
    again = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    found, expected = (Dataset.open(str(place / "teacher_logp")).manifest for place in (tmp_path, output))
    assert found == expected
