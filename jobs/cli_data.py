"""The commands of `stillhouse` for raw data, before there is a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from etl.console import Json, command, examples

app = typer.Typer()


@app.command(
    "probe",
    epilog=examples(
        "stillhouse probe data.jsonl",
        "stillhouse probe 'data/**/*.parquet' --rows 20000",
        "stillhouse probe data.jsonl --output .",
    ),
)
@command
def probe_command(
    path: Annotated[str, typer.Argument(help="A file, glob, folder or URL, as `sources.NAME.path` takes it.")],
    rows: Annotated[int, typer.Option(min=1, help="Number of rows to read, to see which would be rejected.")] = 1000,
    output: Annotated[
        Path | None, typer.Option(help="Folder to write mine.yaml and recipe.yaml to; existing files are not replaced.")
    ] = None,
    json_: Json = False,
) -> None:
    """Show what files contain, which description fits their rows, and which rows would be rejected.

    Prints the formats, the columns with their types, three rows as conversations, the rejected rows with reasons, and
    the YAML of a description and a recipe that are ready to run. The exit code is 2 if no description fits.
    """
    from jobs.probe import probe

    probe(path, rows, output, json_)
