"""What the package sets for libraries before they are loaded, and what they then print."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.launch.libraries import LIBRARY_LINES, defaults

PROJECT = Path(__file__).resolve().parents[3]
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
LOUD = {LIBRARY_LINES: "1"}


def test_threads_wait_passively_where_no_gpu_is_and_the_user_has_said_nothing():
    assert defaults(LOUD, has_gpu=False) == PASSIVE
    assert defaults(LOUD, has_gpu=True) == {}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_a_user_has_set_stays(name):
    assert defaults({**LOUD, name: "0"}, has_gpu=False) == {}


def test_libraries_are_quiet_unless_they_are_asked_to_speak():
    quiet = defaults({}, has_gpu=True)
    assert quiet["TRANSFORMERS_VERBOSITY"] == "error"
    assert defaults({"TRANSFORMERS_VERBOSITY": "info"}, has_gpu=True) == {
        name: value for name, value in quiet.items() if name != "TRANSFORMERS_VERBOSITY"
    }


def test_deepspeed_is_kept_from_the_screen_but_for_errors():
    deepspeed = logging.getLogger("DeepSpeed")
    record = deepspeed.makeRecord("DeepSpeed", logging.WARNING, "file", 1, "Setting accelerator to CPU", (), None)
    assert not deepspeed.filter(record)
    record.levelno = logging.ERROR
    assert deepspeed.filter(record)


def test_openmp_is_told_before_torch_is_loaded():
    """Its runtime shows what it has read when it is loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in PASSIVE}
    done = subprocess.run(
        [sys.executable, "-c", "import training.launch.world"],
        cwd=PROJECT,
        env={**environment, "OMP_DISPLAY_ENV": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    has_gpu = any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
    (line,) = [line for line in done.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    assert ("PASSIVE" in line) is not has_gpu, done.stderr
