"""The command line `stillhouse`, one function a command; those that train are in cli_training.py."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from etl.console import AllowCode, Overrides, command, report, run_app
from etl.library_log import libraries_aside
from etl.storage.catalog import Dialect, statements
from etl.storage.location import Location
from etl.storage.opened import Run
from etl.storage.stale import remedy
from etl.storage.sweep import find_leftovers, find_stale, parse_age, remove_leftovers
from etl.storage.verify import verify
from jobs import cli_training
from jobs.engines import EngineName, run_on

if TYPE_CHECKING:
    from etl.run.recipe import Recipe

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Raw text to a corpus to a trained student.",
)

app.add_typer(cli_training.app)

RecipeName = Annotated[str, typer.Argument(help="A shipped recipe's name, a path or a URI.")]


def _recipe(name: str, overrides: list[str], allow_code: bool) -> "Recipe":
    from etl import conf
    from etl.run.recipe import Recipe

    return conf.load(Recipe, name, "recipes", overrides, allow_code)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@app.command("run")
@command
def run_command(
    recipe: RecipeName,
    set_: Overrides,
    engine: Annotated[EngineName, typer.Option(help="local: processes of this machine, no JVM.")] = "spark",
    processes: Annotated[
        int | None, typer.Option(min=1, help="Of the local engine.", show_default="the CPUs of this process")
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """Run a recipe; what is committed with the same fingerprint is not done again."""
    run_on(engine, recipe, set_, processes, allow_code)


@app.command("plan")
@command
def plan_command(
    recipe: RecipeName,
    set_: Overrides,
    sample: Annotated[bool, typer.Option("--sample", help="Predict rows, bytes, shuffles and CPU time, too.")] = False,
    sample_mb: Annotated[int, typer.Option(min=1, help="Stored MB of input to predict from.")] = 16,
    allow_code: AllowCode = False,
) -> None:
    """Say what a run would do, stage by stage, and which field makes a stage run again; nothing runs.

    With --sample the recipe also runs on a sample of its input, in a temporary folder of this machine.
    """
    from etl.run.plan import describe, plan_recipe

    loaded = _recipe(recipe, set_, allow_code)
    for line in describe(plan_recipe(loaded)):
        report(line)
    if sample:
        from etl.run.estimate import estimate

        with libraries_aside():
            found = estimate(loaded, sample_mb << 20)
        for line in found.lines():
            report(line)


@app.command("adopt")
@command
def adopt_command(
    recipe: RecipeName,
    stage: Annotated[str, typer.Argument(help="A stage that `stillhouse plan` would run again.")],
    set_: Overrides,
    allow_code: AllowCode = False,
) -> None:
    """Accept what is committed for a stage as this recipe's own; its manifest records what differs."""
    from etl.run.plan import adopt

    for reason in adopt(_recipe(recipe, set_, allow_code), stage):
        report(f"adopted {stage} although {reason}")


@app.command("verify")
@command
def verify_command(path: Annotated[str, typer.Argument(help="A run's output or one dataset.")]) -> int:
    """Check every manifest below a folder against its objects; exit code 1 on any difference.

    Datasets that an earlier recipe left are named as stale, which is no difference.
    """
    run = Run.open(path)
    differences = list(verify(run))
    for item in differences:
        report(f"{item.kind:>11}  {item.dataset}/{item.path}: {item.detail.splitlines()[0]}")
    damages = sum(item.is_damage for item in differences)
    num_stale = len(differences) - damages
    stale = f", {num_stale:,} stale; {remedy(run.root)} removes what is stale" if num_stale else ""
    report(f"{_counted(len(run.committed), 'dataset')}, {_counted(damages, 'difference')}{stale}")
    return 1 if damages else 0


@app.command("sweep")
@command
def sweep_command(
    path: Annotated[str, typer.Argument(help="A run's output or one dataset.")],
    older_than: Annotated[str, typer.Option(help="Age below which nothing goes: 90s, 30m, 24h, 7d.")] = "24h",
    stale: Annotated[
        bool, typer.Option("--stale", help="In place of that, datasets that an earlier recipe left, of any age.")
    ] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this, only say what would go.")] = False,
) -> None:
    """Remove what dead attempts have left below a folder; refuses while a run is at work there."""
    root, age_s = Location.of(path), parse_age(older_than)
    leftovers = find_stale(root, time.time()) if stale else find_leftovers(root, age_s, time.time())
    for item in leftovers:
        report(f"{item.bytes:>14,} bytes  {item.age_s / 3600:>8.1f} h  {item.path}: {item.why}")
    if delete:
        remove_leftovers(root, leftovers)
    done = "removed" if delete else "would go; --delete removes them"
    found = _counted(len(leftovers), "stale object" if stale else "leftover")
    report(f"{found}, {sum(item.bytes for item in leftovers):,} bytes: {done}")


@app.command("catalog")
@command
def catalog_command(
    path: Annotated[str, typer.Argument(help="A run's output or one dataset.")],
    dialect: Annotated[Dialect, typer.Option(help="spark and hive: external tables; duckdb: views.")] = "spark",
) -> None:
    """Print the SQL that makes every dataset below a folder a table: `stillhouse catalog DIR > tables.sql`."""
    for statement in statements(Location.of(path), dialect):
        for line in statement.splitlines():
            report(line)


@app.command("sample")
@command
def sample_command(folder: Annotated[Path, typer.Argument(help="Folder to write to.")]) -> None:
    """Write the embedded sample: real text of this installation as files in the SYNTH schema."""
    from etl.sources.sample import write_sample

    for name, path in write_sample(folder).items():
        report(f"{name:>12}  {path}")


def main() -> int:
    """Console script `stillhouse`."""
    return run_app(app, sys.argv[1:], "stillhouse")


if __name__ == "__main__":
    sys.exit(main())
