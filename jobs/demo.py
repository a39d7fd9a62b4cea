"""`make demo`: the recipe `demo` on the embedded sample, then a tiny student trained on the corpus just written.

Everything is written below out/demo. Run again, it finds the committed results and reports them, without Spark and
torch; after a stop it resumes. A corpus of other rows, or another training configuration, makes another student.
`--engine local` and `--engine beam` make the same corpus without a JVM. `stillhouse warm`, which `make venv` runs, has
compiled and converted what a first run needs.
"""

import hashlib
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from etl import conf
from etl.console import OUT, Verbose, command, report, run_command
from etl.live import duration
from etl.run.run import RunResult
from etl.voice import voice_of
from jobs.engines import EngineName, run_on

_NAME = "demo"
"""Of the recipe and of the training configuration."""
_ENGINES: dict[EngineName, str] = {"spark": "Spark", "local": "this machine's processes", "beam": "Beam"}
_STARTED, _FINISHED = "started.json", "finished.json"
"""In the student's folder: its inputs and, at the end, its result."""


def main(argv: list[str]) -> int:
    """Exit code of the demo."""
    return run_command(_job, argv, "python -m jobs.demo")


@command
def _job(
    output: Annotated[Path, typer.Option(help="Folder for all output.")] = Path("out/demo"),
    engine: Annotated[EngineName, typer.Option(help="Engine that makes the corpus.")] = "spark",
    verbose: Verbose = False,
) -> int:
    """Make a corpus from the embedded sample, then train a student on it."""
    began = time.monotonic()
    report(f"Part 1 of 2: a corpus from the embedded sample, made on {_ENGINES[engine]}, in {output}")
    result = run_on(engine, _NAME, [f"output={output}"], voice=voice_of(verbose))
    assert result.corpus is not None, "the recipe has a layout"
    report("")
    report("Part 2 of 2: a tiny student, trained on that corpus")
    made_from = _made_from(result.corpus.manifest.content_digest)
    finished = _finished(output / "student", made_from)
    if finished is None:
        trained = _train(result.corpus.folder.url, output / "student", made_from)
        if isinstance(trained, int):
            return trained
        finished = trained
    else:
        report(f"nothing to do: {output / 'student'} holds the student of this corpus")
    _show(result, output, finished)
    report("")
    report(f"done in {duration(time.monotonic() - began)}")
    return 0


def _made_from(corpus: str) -> dict[str, str]:
    """The inputs of a student: digests of the corpus's rows and of the training configuration."""
    text = conf.find(_NAME, "training")
    deepspeed = conf.find(conf.parse_yaml(text, _NAME)["deepspeed"], "deepspeed")
    return {"corpus": corpus, "training": hashlib.sha256(f"{text}\0{deepspeed}".encode()).hexdigest()}


def _finished(student: Path, made_from: dict[str, str]) -> dict[str, Any] | None:
    """The result of an existing student with the same inputs."""
    found = _read(student / _FINISHED)
    if found.get("made_from") != made_from:
        return None
    if "said" not in found:  # of an earlier version
        return None
    places = (found["checkpoint"], found["student"], found["metrics"])
    return found if all(Path(place).exists() for place in places) else None


def _read(path: Path) -> dict[str, Any]:
    """Digest of a file of ours; empty if it is missing."""
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), "utf-8")
    temporary.replace(path)


def _train(corpus: str, student: Path, made_from: dict[str, str]) -> dict[str, Any] | int:
    """Train the student to its end and export it; returns its result, or the exit code after a request to stop."""
    from training.config import TrainConfig
    from training.export.export import export
    from training.train import train

    if _read(student / _STARTED) != made_from:
        # A checkpoint of another corpus or configuration cannot be resumed; the demo starts a new student.
        shutil.rmtree(student, ignore_errors=True)
        _write(student / _STARTED, made_from)
    trained = train(conf.load(TrainConfig, _NAME, "training", [f"data.corpus={corpus}", f"output={student}"]))
    if not trained.complete:
        report(trained.told())
        return 128 + signal.Signals[trained.stopped_by or "SIGINT"]
    held_out = f"held-out {trained.first_held_out:.3f} -> {trained.last_held_out:.3f}"
    finished = {
        "made_from": made_from,
        "said": [
            f"{trained.steps} steps, {trained.supervised_tokens:,} supervised tokens",
            f"loss {trained.first_loss:.3f} -> {trained.last_loss:.3f}, {held_out}",
        ],
        "metrics": trained.metrics,
        "checkpoint": trained.checkpoint,
        "student": str(export(str(student), str(student / "export"))),
    }
    _write(student / _FINISHED, finished)
    return finished


def _show(result: RunResult, output: Path, finished: dict[str, Any]) -> None:
    assert result.corpus is not None
    _show_cells(result)
    report("")
    for line in finished["said"]:
        report(line)
    report("")
    where = {
        "corpus": result.corpus.folder,
        "dropped rows": result.dropped.folder,
        "every stage": output,
        **{name: finished[name] for name in ("metrics", "checkpoint", "student")},
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
