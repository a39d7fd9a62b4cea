"""Rescoring: argv in, exit code out. The work is training/teacher/rescore.py.

    python -m jobs.rescore --conf demo --set corpus=DIR/corpus --set teacher.model=FOLDER --set output=DIR/rescored
    spark-submit --py-files dist/stillhouse.zip jobs/rescore.py --engine spark --conf CONF --set KEY=VALUE ...

On Spark each task has the number of GPUs in spark.task.resource.gpu.amount.
"""

import contextlib
import sys
from typing import Annotated, Literal

import typer

from etl import conf
from etl.console import ConfFlag, Overrides, command, report, run_command, warn
from etl.engine import Engine
from etl.engines.local import LocalEngine
from etl.library_log import libraries_aside
from etl.storage.stale import outdated
from jobs.engines import require_package
from training.teacher.rescore import RescoreConfig, rescore, summary
from training.teacher.server import ServerTeacherConfig

EngineName = Literal["local", "spark"]


def run(name: str, overrides: list[str], engine_name: EngineName = "local") -> None:
    """Rescore with a configuration (a shipped name, a path or a URI), and report the result."""
    config = conf.load(RescoreConfig, name, "rescore", overrides)
    if line := outdated(config.corpus):
        warn(line)
    for line in config.teacher.warnings() if isinstance(config.teacher, ServerTeacherConfig) else []:
        warn(line)
    with libraries_aside(), contextlib.closing(_engine(engine_name, config.workers)) as engine:
        dataset = rescore(config, engine)
    for line in summary(dataset):
        report(line)


def _engine(name: EngineName, workers: int) -> Engine:
    if name == "local":
        return LocalEngine(workers)
    require_package(name)
    from etl.engines.spark import SparkEngine

    return SparkEngine(report=report)


@command
def _job(
    name: ConfFlag,
    set_: Overrides,
    engine: Annotated[EngineName, typer.Option(help="local: `workers` processes on this machine.")] = "local",
) -> None:
    """Score part of a corpus with a teacher. Rows that are committed or checkpointed are not scored again."""
    run(name, set_, engine)


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 for an error that the user can fix."""
    return run_command(_job, argv, "python -m jobs.rescore")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
