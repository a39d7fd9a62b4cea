"""The command line `stillhouse`, one function a command. torch and pyspark load where a command needs them."""

from pathlib import Path
from typing import Annotated

import typer

from etl.storage.location import Location
from etl.storage.verify import find_datasets, verify
from jobs.entry import main_of, report

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Raw text to a corpus to a trained student.")

Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override; @FILE is its text.")]


@app.command("run")
def run_command(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, a path or a URI.")], set_: Overrides = None
) -> None:
    """Run a recipe on Spark; what is committed with the same fingerprint is not done again."""

    def job() -> int:
        from jobs.run_recipe import run

        run(recipe, set_ or [])
        return 0

    raise typer.Exit(main_of(job))


@app.command("plan")
def plan_command(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, a path or a URI.")], set_: Overrides = None
) -> None:
    """Say what a run would do, stage by stage, and which field makes a stage run again; nothing runs."""

    def job() -> int:
        from etl import conf
        from etl.recipe import Recipe
        from etl.stages.plan import describe, plan_recipe

        for line in describe(plan_recipe(conf.load(Recipe, recipe, "recipes", set_ or []))):
            report(line)
        return 0

    raise typer.Exit(main_of(job))


@app.command("adopt")
def adopt_command(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, a path or a URI.")],
    stage: Annotated[str, typer.Argument(help="A stage that `stillhouse plan` would run again.")],
    set_: Overrides = None,
) -> None:
    """Accept what is committed for a stage as this recipe's own; its manifest records what differs."""

    def job() -> int:
        from etl import conf
        from etl.recipe import Recipe
        from etl.stages.plan import adopt

        for reason in adopt(conf.load(Recipe, recipe, "recipes", set_ or []), stage):
            report(f"adopted {stage} although {reason}")
        return 0

    raise typer.Exit(main_of(job))


@app.command("train")
def train_command(
    name: Annotated[str, typer.Argument(metavar="CONF", help="A shipped configuration's name, a path or a URI.")],
    set_: Overrides = None,
) -> None:
    """Train a student from a corpus in this process (`deepspeed --module training.train` starts several)."""

    def job() -> int:
        from etl import conf
        from training.train import TrainConfig, train

        result = train(conf.load(TrainConfig, name, "training", set_ or []))
        report(f"loss {result.first_loss:.4f} -> {result.last_loss:.4f} in {result.steps} steps")
        report(f"metrics {result.metrics}")
        report(f"checkpoint {result.checkpoint}")
        return 0

    raise typer.Exit(main_of(job))


@app.command("verify")
def verify_command(path: Annotated[str, typer.Argument(help="A run's output or one dataset.")]) -> None:
    """Check every manifest below a folder against its objects; exit code 1 on any difference."""

    def job() -> int:
        root = Location.of(path)
        differences = list(verify(root))
        for item in differences:
            report(f"{item.kind:>11}  {item.dataset}/{item.path}: {item.detail.splitlines()[0]}")
        committed, _ = find_datasets(root)
        report(f"{len(committed)} datasets, {len(differences)} differences")
        return 1 if differences else 0

    raise typer.Exit(main_of(job))


@app.command("sample")
def sample_command(folder: Annotated[Path, typer.Argument(help="Folder to write to.")]) -> None:
    """Write the embedded sample: real text of this installation as files in the SYNTH schema."""

    def job() -> int:
        from etl.sources.sample import write_sample

        for name, path in write_sample(folder).items():
            report(f"{name:>12}  {path}")
        return 0

    raise typer.Exit(main_of(job))


def main() -> None:
    """Console script `stillhouse`."""
    app()


if __name__ == "__main__":
    main()
