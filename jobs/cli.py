"""The command line `stillhouse`, one function per command; the training commands are in cli_training.py."""

import importlib.metadata
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from etl.console import AllowCode, Json, Overrides, Verbose, command, examples, note, report, report_json, run_app
from etl.errors import StillhouseError
from etl.library_log import libraries_aside
from etl.storage.catalog import Dialect, statements
from etl.storage.location import Location
from etl.storage.opened import Run
from etl.storage.stale import remedy
from etl.storage.sweep import find_leftovers, find_stale, parse_age, remove_leftovers
from etl.storage.verify import verify
from etl.voice import voice_of
from jobs import cli_data, cli_ingest, cli_json, cli_lists, cli_training
from jobs.engines import EngineName, run_on

if TYPE_CHECKING:
    from etl.run.estimate import Estimate
    from etl.run.recipe import Recipe

COMPLETE = "_STILLHOUSE_COMPLETE"
"""Environment variable with which a shell asks for completions."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_show_locals=False)

app.add_typer(cli_ingest.app)
app.add_typer(cli_training.app)
app.add_typer(cli_lists.app)
app.add_typer(cli_data.app)


def _version(asked: bool) -> None:
    if asked:
        report(f"stillhouse {importlib.metadata.version('stillhouse')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Raw text to a corpus to a trained student."""


RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name, a path or a URI.")]


def _recipe(name: str, overrides: list[str], allow_code: bool) -> "Recipe":
    from etl import conf
    from etl.run.recipe import Recipe

    return conf.load(Recipe, name, "recipes", overrides, allow_code)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@app.command(
    "run",
    epilog=examples(
        "stillhouse run demo --engine local --set output=out",
        "stillhouse run mine.yaml --set output=s3://team/corpus --set 'sources.mine.path=s3://team/raw/*.jsonl'",
    ),
)
@command
def run_command(
    recipe: RecipeName,
    set_: Overrides,
    engine: Annotated[
        EngineName, typer.Option(help="Engine that runs it. local: processes on this machine, without a JVM.")
    ] = "spark",
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="Number of processes of the local engine.", show_default="the CPUs of this process"),
    ] = None,
    allow_code: AllowCode = False,
    verbose: Verbose = False,
    json_: Json = False,
) -> None:
    """Run a recipe. Finished stages are skipped; an interrupted stage is resumed."""
    result = run_on(engine, recipe, set_, processes, allow_code, voice_of(verbose, to_stderr=json_))
    if json_:
        report_json(cli_json.of_run(result))


@app.command("plan", epilog=examples("stillhouse plan demo --set output=out --sample"))
@command
def plan_command(
    recipe: RecipeName,
    set_: Overrides,
    sample: Annotated[bool, typer.Option("--sample", help="Also predict rows, bytes, shuffles and CPU time.")] = False,
    sample_mb: Annotated[int, typer.Option(min=1, help="Size of the sample, in MB of stored input.")] = 16,
    allow_code: AllowCode = False,
    json_: Json = False,
) -> None:
    """Show what a run would do, stage by stage, and which changed setting causes it. Runs nothing.

    With --sample, it runs the recipe on a sample of the input, in a temporary folder on this machine, to predict costs.
    """
    from etl.run.plan import describe, plan_recipe

    loaded = _recipe(recipe, set_, allow_code)
    planned = plan_recipe(loaded)
    if not json_:
        for line in describe(planned):
            report(line)
    found = _predicted(loaded, sample_mb, json_) if sample else None
    if json_:
        report_json(cli_json.of_plan(planned, found))


def _predicted(recipe: "Recipe", sample_mb: int, as_json: bool) -> "Estimate":
    from etl.run.costs import core_hours_line, keep_estimate
    from etl.run.estimate import estimate

    with libraries_aside():
        found = estimate(recipe, sample_mb << 20)
    if not as_json:
        for line in found.lines():
            report(line)
        report(core_hours_line(found.total("cpu_s"), recipe.run.price_per_core_hour))
    try:
        keep_estimate(recipe, found.input_bytes, found.sample_bytes, found.folder_cpu_s)
    except StillhouseError as error:
        note(f"the estimate was not saved, so a run cannot be compared with it: {error}")
    return found


@app.command("adopt", epilog=examples("stillhouse adopt mine.yaml tokenize --set output=out"))
@command
def adopt_command(
    recipe: RecipeName,
    stage: Annotated[str, typer.Argument(help="A stage that `stillhouse plan` would re-run.")],
    set_: Overrides,
    allow_code: AllowCode = False,
) -> None:
    """Keep the committed result of a stage although the recipe has changed; its manifest records the difference."""
    from etl.run.plan import adopt

    for reason in adopt(_recipe(recipe, set_, allow_code), stage):
        report(f"adopted {stage} although {reason}")


@app.command("verify", epilog=examples("stillhouse verify out"))
@command
def verify_command(
    path: Annotated[str, typer.Argument(help="A run's output or one dataset.")], json_: Json = False
) -> int:
    """Check that every file listed in the manifests exists and has the right checksum; exit code 1 if not.

    Datasets left by an earlier recipe are listed as stale, which is not an error.
    """
    run = Run.open(path)
    differences = list(verify(run))
    damages = sum(item.is_damage for item in differences)
    if json_:
        report_json(cli_json.of_verify(run, differences))
        return 1 if damages else 0
    for item in differences:
        report(f"{item.kind:>11}  {item.dataset}/{item.path}: {item.detail.splitlines()[0]}")
    num_stale = len(differences) - damages
    stale = f", {num_stale:,} stale; {remedy(run.root)} removes what is stale" if num_stale else ""
    report(f"{_counted(len(run.committed), 'dataset')}, {_counted(damages, 'difference')}{stale}")
    return 1 if damages else 0


@app.command("sweep", epilog=examples("stillhouse sweep out --older-than 7d", "stillhouse sweep out --stale --delete"))
@command
def sweep_command(
    path: Annotated[str, typer.Argument(help="A run's output or one dataset.")],
    older_than: Annotated[str, typer.Option(help="Only remove leftovers older than this: 90s, 30m, 24h, 7d.")] = "24h",
    stale: Annotated[
        bool, typer.Option("--stale", help="Instead, remove datasets left by an earlier recipe, of any age.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them. Without this, only list them.")] = False,
    json_: Json = False,
) -> None:
    """Remove leftovers of failed attempts below a folder. Refuses while a run is active there."""
    root, age_s = Location.of(path), parse_age(older_than)
    leftovers = find_stale(root, time.time()) if stale else find_leftovers(root, age_s, time.time())
    if not json_:
        for item in leftovers:
            report(f"{item.bytes:>14,} bytes  {item.age_s / 3600:>8.1f} h  {item.path}: {item.why}")
    if delete:
        remove_leftovers(root, leftovers)
    if json_:
        report_json(cli_json.of_sweep(root, leftovers, delete))
        return
    if not leftovers:
        report(f"nothing {'stale' if stale else 'left over'} below {root}")
        return
    found = _counted(len(leftovers), "stale object" if stale else "leftover")
    done = "removed" if delete else "nothing was removed yet; add --delete to remove them"
    report(f"{found}, {sum(item.bytes for item in leftovers):,} bytes: {done}")


@app.command("catalog", epilog=examples("stillhouse catalog out --dialect duckdb > tables.sql"))
@command
def catalog_command(
    path: Annotated[str, typer.Argument(help="A run's output or one dataset.")],
    dialect: Annotated[Dialect, typer.Option(help="spark and hive: external tables; duckdb: views.")] = "spark",
    json_: Json = False,
) -> None:
    """Print SQL that registers every dataset of a run as a table."""
    if json_:
        report_json({"dialect": dialect, "statements": list(statements(Location.of(path), dialect))})
        return
    for statement in statements(Location.of(path), dialect):
        for line in statement.splitlines():
            report(line)


@app.command("sample", epilog=examples("stillhouse sample sample"))
@command
def sample_command(folder: Annotated[Path, typer.Argument(help="Folder to write to.")]) -> None:
    """Write the embedded sample: real text from installed packages, as files with SYNTH's columns."""
    from etl.sources.sample import copy_sample

    for name, path in copy_sample(folder).items():
        report(f"{name:>12}  {path}")


@app.command("warm", epilog=examples("stillhouse warm"))
@command
def warm_command() -> None:
    """Compile kernels and convert models now, so that the first run does not have to."""
    from jobs.warm import warm

    warm()


def main() -> int:
    """Console script `stillhouse`; a shell asks it for completions with an environment variable."""
    if COMPLETE in os.environ:
        app(prog_name="stillhouse")
    return run_app(app, sys.argv[1:], "stillhouse")


if __name__ == "__main__":
    sys.exit(main())
