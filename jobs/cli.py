"""The command line: `stillhouse run | verify | train | sample`. torch and pyspark load only in the command that needs them."""

from pathlib import Path
from typing import Annotated

import typer

from etl.storage.location import Location
from etl.storage.verify import find_datasets, verify
from jobs.entry import main_of, report

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Raw text to a distillation-ready corpus to a student."
)

Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override; @FILE is the file's text.")]


@app.command("run")
def run_command(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, a path or a URI.")], set_: Overrides = []
) -> None:
    """Run a recipe on Spark; what is committed with the same fingerprint is not done again."""

    def job() -> int:
        from jobs.run_recipe import run

        run(recipe, set_)
        return 0

    raise typer.Exit(main_of(job))


@app.command("train")
def train_command(
    conf: Annotated[str, typer.Argument(help="A shipped training configuration's name, a path or a URI.")],
    set_: Overrides = [],
) -> None:
    """Train a student from a corpus in this process (`deepspeed --module training.train` starts several)."""

    def job() -> int:
        from training.train import run

        run(conf, set_)
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
