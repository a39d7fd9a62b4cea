"""Compiles the kernels of every stage into the cache of the tests: one small run of every stage in this process.

It costs 40 s of CPU time where the cache is empty and 5 s where it is not. `make test` does it beside the linters and
before the processes of pytest, each of which would compile the same kernels.
"""

import tempfile
from pathlib import Path

from tests.environment import set_environment


def main() -> None:
    """Run the recipe of the grid."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-kernels-") as name:
        folder = Path(name)
        set_environment(folder)
        # numba takes the folder of its cache at import.
        from tests.engines.grid import run_and_digest, write_inputs
        from tests.engines.inprocess import InProcessEngine

        write_inputs(folder)
        run_and_digest(folder, 1, str(folder / "out"), InProcessEngine())


if __name__ == "__main__":
    main()
