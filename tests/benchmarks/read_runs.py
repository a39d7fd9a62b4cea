"""One checkout's side of bench_read: reads a source over and over on demand, and says what each time took.

    python read_runs.py FOLDER NAME...

Run as a file with the checkout on PYTHONPATH, so it needs nothing of this package. Each line of its input is the name
of a source, FOLDER/NAME.* with the description FOLDER/NAME.yaml, and `read` (the reader and what the shape makes of it)
or `ingest` (the tasks of the stage). It answers with the CPU-seconds, or with `none` where the checkout cannot read
such a source.
"""

import gc
import json
import shutil
import sys
import time
from pathlib import Path

from etl.engines.local import LocalEngine
from etl.errors import StillhouseError
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.sources.files import cut, list_files
from etl.sources.read import read_split
from etl.sources.row_groups import Limits
from etl.sources.spec import Source


def read(source: Source) -> None:
    """Read all rows as PROMPT and let them go."""
    shape, files = source.shape(), list_files("x", source, {})
    for split in cut("x", source, files, 1 << 30, {}):
        for _ in read_split(source, shape, split, {}, Limits()):
            pass


def ingest(source: Source, folder: Path) -> float:
    """Run the stage on one split, and remove what it wrote; the CPU-seconds of its task."""
    tree = {
        "name": "x",
        "output": str(folder),
        "sources": {"x": source.model_dump(exclude_defaults=True)},
        "stages": [],
        "run": {"split_bytes": 1 << 30},
    }
    run_recipe(Recipe.model_validate(tree), LocalEngine(), lambda _: None)
    costs = json.loads((folder / "ingest/_task_costs.json").read_text())
    shutil.rmtree(folder)
    return float(sum(costs["tasks"]["cpu_s"]))


def measured(folder: Path, name: str, how: str) -> str:
    """CPU-seconds of this process for one source."""
    (path,) = (path for path in folder.glob(f"{name}.*") if path.suffix != ".yaml")
    source = Source(spec=str(folder / f"{name}.yaml"), path=str(path))
    gc.collect()
    start = time.process_time()
    try:
        if how == "ingest":
            return str(ingest(source, folder / f"out-{name}-{time.time_ns()}"))
        read(source)
    except StillhouseError:
        return "none"
    return str(time.process_time() - start)


for line in sys.stdin:
    sys.stdout.write(f"{measured(Path(sys.argv[1]), *line.split())}\n")
    sys.stdout.flush()
