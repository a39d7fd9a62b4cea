"""`make demo`: the recipe `demo` on the embedded sample, then a tiny student trained on the corpus just written.

Takes about three minutes on two cores, of which IFD and the training are two thirds. Everything lands below out/demo;
run again, it finds what is committed and does nothing twice. `--engine local` and `--engine
beam` make the same corpus without a JVM.
"""

import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from etl import conf
from etl.console import OUT, command, report, run_command
from etl.run.run import RunResult
from jobs.engines import EngineName, run_on


def main(argv: list[str]) -> int:
    """Exit code of the demo."""
    return run_command(_job, argv, "python -m jobs.demo")


@command
def _job(
    output: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("out/demo"),
    engine: Annotated[EngineName, typer.Option(help="What makes the corpus.")] = "spark",
) -> None:
    """Make a corpus and a student from the embedded sample."""
    began = time.monotonic()
    report(f"1/2  a corpus from the embedded sample on {engine.capitalize()}, in {output}")
    result = run_on(engine, "demo", [f"output={output}"])
    report("2/2  a tiny student on that corpus")
    _train_and_show(result, output)
    report(f"done in {time.monotonic() - began:.0f} s")


def _train_and_show(result: RunResult, output: Path) -> None:
    from training.config import TrainConfig
    from training.export.export import export
    from training.train import train

    assert result.corpus is not None
    overrides = [f"data.corpus={result.corpus.folder}", f"output={output / 'student'}"]
    digest = output / "student" / "corpus_digest"
    trained_on = digest.read_text() if digest.exists() else None
    if trained_on != result.corpus.manifest.content_digest:
        # A checkpoint of another corpus cannot be gone on from; the demo starts its student anew.
        shutil.rmtree(output / "student", ignore_errors=True)
    trained = train(conf.load(TrainConfig, "demo", "training", overrides))
    digest.write_text(result.corpus.manifest.content_digest)
    _show_cells(result)
    OUT.print(
        f"loss {trained.first_loss:.3f} -> {trained.last_loss:.3f}   held-out {trained.first_held_out:.3f} -> "
        f"{trained.last_held_out:.3f}   {trained.steps} steps, {trained.supervised_tokens:,} supervised tokens"
    )
    where = {
        "corpus": result.corpus.folder,
        "dropped rows": result.dropped.folder,
        "every stage": output,
        "metrics": trained.metrics,
        "checkpoint": trained.checkpoint,
        "student": export(str(output / "student"), str(output / "student" / "export")),
    }
    for name, place in where.items():
        report(f"{name:>14}  {place}")


def _show_cells(result: RunResult) -> None:
    assert result.corpus is not None
    table = Table("split", "skill", "ctx", "rows", "tokens", "supervised", title="corpus", title_justify="left")
    for column in table.columns[3:]:
        column.justify = "right"
    for split, skills in result.corpus.manifest.distributions["cells"].items():
        for skill, contexts in skills.items():
            for ctx, counts in contexts.items():
                numbers = (f"{counts[name]:,}" for name in ("rows", "tokens", "supervised_tokens"))
                table.add_row(split, skill, ctx, *numbers)
    OUT.print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
