"""What an installation warms, for the tests: `stillhouse warm` into a cache of its own, linked into that of the tests.

It costs 120 s of CPU time where the cache is empty and 3 s where it is not. `make test` does it beside the linters and
before the processes of pytest, each of which would compile the same kernels. The cache of its own is kept as `warm`
left it, so that tests/jobs/test_warm.py can check what was missed.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.environment import PROJECT, set_environment

WARMED: Final = PROJECT / "build" / "warm-cache"


def warm() -> Path:
    """Warm the cache of its own where that is still to be done; its folder."""
    command = [sys.executable, "-m", "jobs.warm"]
    subprocess.run(command, cwd=PROJECT, env={**os.environ, "STILLHOUSE_CACHE": str(WARMED)}, check=True)
    return WARMED


def link(source: Path, target: Path) -> None:
    """Link the files of a cache into another, too; a later write replaces a file in one and leaves the other's."""
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)


def main() -> None:
    """Warm, and link into the cache of the tests."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-kernels-") as home:
        set_environment(Path(home))
        link(warm(), Path(os.environ["STILLHOUSE_CACHE"]))


if __name__ == "__main__":
    main()
