"""Rescoring: argv in, exit code out. The work is training/teacher/rescore.py.

python -m jobs.rescore --conf demo --set corpus=DIR/corpus --set teacher.model=FOLDER --set output=DIR/rescored
spark-submit --py-files dist/stillhouse.zip jobs/rescore.py --engine spark --conf CONF --set KEY=VALUE ...
"""

import sys
from typing import Annotated, Literal

import typer

from etl import conf
from etl.console import ConfFlag, Overrides, command, report, run_command
from etl.engine import Engine
from etl.storage.dataset import Dataset
from training.teacher.rescore import RescoreConfig, rescore

EngineName = Literal["local", "spark"]


def run(name: str, overrides: list[str], engine_name: EngineName = "local") -> None:
    """Rescore by a configuration (a shipped name, a path or a URI), and say what came out."""
    config = conf.load(RescoreConfig, name, "rescore", overrides)
    engine = _engine(engine_name, config.workers)
    try:
        _summarize(rescore(config, engine))
    finally:
        engine.close()


def _engine(name: EngineName, workers: int) -> Engine:
    if name == "spark":
        from etl.engines.spark import SparkEngine

        return SparkEngine(report=report)
    from etl.engines.local import LocalEngine

    return LocalEngine(workers)


def _summarize(dataset: Dataset) -> None:
    manifest = dataset.manifest
    for cell, cut in manifest.thresholds["subset"].items():
        report(
            f"{cell:>24}  {cut['chosen_rows']:>9,} of {cut['rows']:,} rows  {cut['chosen_tokens']:>12,} of "
            f"{cut['tokens']:,} tokens (budget {cut['budget_tokens']:,})"
        )
    for kind, found in manifest.findings["spans"].items():
        report(f"{kind:>24}  {found['tokens']:>12,} tokens, mean logp {found['mean_logp']:.4f}")
    report(f"{manifest.rows_out:,} rows, mean logp {manifest.findings['mean_logp']:.4f}: {dataset.folder}")


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 for what the user can mend."""
    return run_command(_job, argv, "python -m jobs.rescore")


@command
def _job(
    name: ConfFlag,
    set_: Overrides,
    engine: Annotated[EngineName, typer.Option(help="local: `workers` processes of this machine.")] = "local",
) -> None:
    """Score a part of a corpus by a teacher; what is committed or checkpointed is not scored again."""
    run(name, set_, engine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
