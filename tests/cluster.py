"""`make test-cluster`: one recipe on every engine and store, with equal content digests at the end.

Starts SeaweedFS (S3), a GCS emulator, a Spark standalone cluster of a master and two workers, and a Beam job service on
this machine, runs the recipe `demo` through the entry points that users have, compares the digests of what each run
committed, and stops the servers. Takes about ten minutes on two cores, most of it IFD; `--set` passes overrides on.

    python -m tests.cluster [--set score.steps.1.fraction=0] [--folder DIR]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.services.beam import beam_job_service
from tests.services.gcs import Gcs, gcs_server
from tests.services.s3 import S3, s3_server
from tests.services.spark import Cluster, spark_environment, standalone_cluster

PROJECT = Path(__file__).resolve().parents[1]
DATASETS = (
    "ingest", "filter", "english_share", "exact", "near", "kenlm", "score", "perplexity_percentile", "tokenize",
    "split", "dropped", "corpus",
)  # fmt: skip
"""What does not hold row keys, which name places in a cut."""
OUT = Console(width=150)  # a whole digest on a line, also in a log


@dataclass(frozen=True)
class Run:
    """One way to run the recipe: a command before `--conf`, one after the overrides, and where it writes."""

    engine: str
    store: str
    output: Location
    command: tuple[str, ...]
    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def overrides(self) -> Iterator[str]:
        yield f"output={self.output}"
        scheme = self.output.url.partition("://")[0]
        for key, value in self.output.options.items():
            yield f"storage.{scheme}.{key}={value}"

    def execute(self, sets: list[str], folder: Path) -> float:
        """Seconds of wall time.

        Raises:
            AssertionError: the run failed.
        """
        given = [item for override in (*self.overrides(), *sets) for item in ("--set", override)]
        command = [*self.command, "--conf", "demo", *given, *self.flags]
        environment = {**os.environ, **dict(self.environment)}
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return time.monotonic() - began

    def digests(self) -> dict[str, str]:
        return {name: Dataset.open(self.output / name).manifest.content_digest for name in DATASETS}


def runs(folder: Path, archive: Path, s3: S3, gcs: Gcs, cluster: Cluster, beam: str) -> list[Run]:
    """The ways, each engine with another store."""
    local = tuple(spark_environment(folder).items())
    bucket = Location(f"{s3.bucket('cluster')}/spark", s3.options)
    portable = Location(f"{s3.bucket('cluster')}/beam", s3.options)
    emulated = Location(f"{gcs.bucket('cluster')}/beam", gcs.options)
    recipe = str(PROJECT / "jobs" / "run_recipe.py")
    submit = (str(Path(sys.executable).parent / "spark-submit"), "--py-files", str(archive), "--master")
    run_beam = (sys.executable, "-m", "jobs.run_beam")
    code = (("PYTHONPATH", str(PROJECT)),)
    service = ("--", "--runner=PortableRunner", f"--job_endpoint={beam}", "--environment_type=LOOPBACK")
    return [
        Run("Spark local[2]", "disk", Location.of(folder / "spark"), (*submit, "local[2]", recipe), (), local),
        Run("Spark standalone, 2 workers", "S3", bucket, (*submit, cluster.url, recipe), (), local),
        Run("Beam direct", "GCS emulator", emulated, run_beam, (), code),
        Run("Beam portable, job service", "S3", portable, run_beam, service, code),
    ]


def compare(ways: list[Run], sets: list[str], folder: Path) -> bool:
    """Run all, print the table; True when every digest is equal and every output verifies."""
    table = Table("engine", "store", "rows", "seconds", "corpus", "12 datasets", title="the demo recipe")
    first: dict[str, str] = {}
    good = True
    for way in ways:
        OUT.print(f"{way.engine} on {way.store} …")
        seconds = way.execute(sets, folder)
        digests = way.digests()
        first = first or digests
        differing = [name for name in DATASETS if digests[name] != first[name]]
        differences = list(verify(way.output))
        good = good and not differing and not differences
        rows = Dataset.open(way.output / "corpus").manifest.rows_out
        verdict = "equal" if not differing else f"differ: {', '.join(differing)}"
        if differences:
            verdict += f"; {len(differences)} differences, the first: {differences[0]}"
        table.add_row(way.engine, way.store, f"{rows:,}", f"{seconds:.0f}", digests["corpus"], verdict)
    OUT.print(table)
    return good


def main(argv: list[str]) -> int:
    """0 when all agree."""
    parser = argparse.ArgumentParser(prog="tests.cluster", description="One recipe on every engine and store.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override for the recipe")
    parser.add_argument("--archive", type=Path, default=PROJECT / "dist" / "stillhouse.zip", help="made by `make dist`")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="stillhouse-cluster-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        places = [folder / name for name in ("s3", "gcs", "spark-cluster", "beam", "work")]
        for place in places:
            place.mkdir()
        s3 = stack.enter_context(s3_server(places[0]))
        gcs = stack.enter_context(gcs_server(places[1]))
        cluster = stack.enter_context(standalone_cluster(places[2]))
        beam = stack.enter_context(beam_job_service(places[3]))
        OUT.print(f"S3 {s3.endpoint_url}, GCS {gcs.endpoint_url}, Spark {cluster.url}, Beam {beam}")
        ways = runs(folder, options.archive, s3, gcs, cluster, beam)
        return 0 if compare(ways, options.set, places[4]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
