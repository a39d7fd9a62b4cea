"""What a process loads by importing: the command line starts without torch, an engine or a JVM."""

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "deepspeed", "pyspark", "apache_beam"}


@pytest.mark.parametrize("module", ["jobs.cli", "etl.stages", "etl.pipeline", "etl.sources.sample"])
def test_importing_loads_no_engine_and_no_torch(module):
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
