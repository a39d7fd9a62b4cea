"""The wheel of `make dist`, for tests of what is installed or shipped elsewhere; it takes some seconds to build."""

import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def build_wheel(copy: Path) -> Path:
    """The wheel, built from a copy of the sources in an empty folder so that the checkout is not changed."""
    for name in ("etl", "jobs", "training", "conf"):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (wheel,) = (copy / "dist").glob("stillhouse-*.whl")
    return wheel
