"""`stillhouse ingest`: ingests one source on this machine, to see how a description reads your files."""

import contextlib
import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from etl.console import Overrides, Verbose, command, examples, report
from etl.errors import StillhouseError
from etl.library_log import libraries_aside
from etl.voice import voice_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from etl.stages.intake import Intake
    from etl.storage.dataset import Dataset

app = typer.Typer()


@app.command(
    "ingest",
    epilog=examples(
        "stillhouse ingest alpaca --path 'data/*.jsonl' --output out",
        "stillhouse ingest synth --output out --limit 1000",
        "stillhouse ingest mine.yaml --path s3://team/raw --output out --limit 1000 --set max_bad_fraction=0.2",
    ),
)
@command
def ingest_command(
    name: Annotated[str, typer.Argument(metavar="NAME|YAML", help="A shipped description's name, a path or a URI.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="Folder or URL to write to.")],
    set_: Overrides,
    path: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="Files: a path, glob, folder or URL. May be given several times.",
            show_default="those of the description on the Hugging Face hub",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Read only the first N rows.", show_default="all")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Ingest files into DIR/ingest; unreadable rows are written to DIR/quarantine.

    Prints one line of JSON to standard output: rows_in, made, assembled, kept, dropped and quarantined, even if too few
    rows could be read (exit code 2). Everything else is printed to standard error.
    """
    from etl.stages.ingest import UNPARSED
    from etl.stages.intake import Intake

    source = _source_name(name)
    found = Intake.of(source, {"ingest": {"in": 0, "made": 0, "kept": 0}}, {})

    def watch(dataset: "Dataset") -> None:
        nonlocal found
        if dataset.manifest.stage == "ingest":
            unparsed = dataset.manifest.counts(UNPARSED, 2).get(source, {})
            found = Intake.of(source, dataset.manifest.accounting[source], unparsed)

    given = {"path": path or None, "limit": limit}
    entry = {"spec": name, **{key: value for key, value in given.items() if value is not None}}
    tree = {"name": "ingest", "output": output, "sources": {source: entry}, "stages": []}
    try:
        _run(tree, set_, watch, verbose)
    except StillhouseError:
        report(_json(found))
        raise
    report(_json(found))


def _run(tree: dict[str, Any], overrides: list[str], watch: "Callable[[Dataset], None]", verbose: bool) -> None:
    from etl import conf
    from etl.engines.local import LocalEngine
    from etl.machine import usable_cpus
    from etl.run.recipe import Recipe
    from etl.run.run import run_recipe

    with libraries_aside(), contextlib.closing(LocalEngine(usable_cpus())) as engine:
        engine.fork()
        recipe = conf.made(Recipe, tree, overrides, "ingest")
        run_recipe(recipe, engine, voice_of(verbose, to_stderr=True), watch)


def _source_name(name: str) -> str:
    """Name of the source: its description's file name, without characters that `--set` reads as a path of keys."""
    return PurePosixPath(name).stem.replace(".", "_") or "source"


def _json(found: "Intake") -> str:
    return json.dumps(
        {
            "source": found.source,
            "rows_in": found.rows_in,
            "made": found.made,
            "assembled": found.assembled,
            "kept": found.kept,
            "dropped": found.dropped,
            "quarantined": found.quarantined,
            "dropped_by_reason": found.dropped_by_reason,
            "quarantined_by_reason": found.quarantined_by_reason,
            "unparsed_by_field": found.unparsed_by_field,
        }
    )
