"""The commands of `stillhouse` that show what is available: a list per group, and `describe` for one entry."""

from collections.abc import Callable
from typing import Annotated

import typer

from etl.console import Json, command, examples, report, report_json

app = typer.Typer()


def _list(group: str) -> Callable[..., None]:
    """A command that prints a list."""

    @command
    def run(json_: Json = False) -> None:
        from jobs.lists import listed

        found = listed(group)
        if json_:
            trees = [
                {"name": item.name, "purpose": item.purpose, **({"hub": item.hub} if item.hub else {})}
                for item in found
            ]
            report_json(trees)
            return
        width = max(len(item.name) for item in found)
        hub_width = max(len(item.hub) for item in found)
        for item in found:
            hub = f"{item.hub:<{hub_width}}  " if hub_width else ""
            report(f"{item.name:<{width}}  {hub}{item.purpose}")

    return run


for name, told in {
    "recipes": "List the recipes that ship with the package.",
    "sources": "List the descriptions of data sets that ship with the package.",
    "stages": "List the stages that a recipe can have.",
    "steps": "List the steps that a stage can run.",
    "cuts": "List the cuts that a stage can apply after its steps.",
}.items():
    app.command(name, help=told, epilog=examples(f"stillhouse {name}"))(_list(name))


@app.command("describe", epilog=examples("stillhouse describe language"))
@command
def describe_command(
    name: Annotated[str, typer.Argument(help="Name of a recipe, source, stage, step or cut, as in the lists.")],
    json_: Json = False,
) -> None:
    """Show what a recipe, source, stage, step or cut is for, its keys with defaults, and an example."""
    from jobs.lists import described, lines_of, named

    found = named(name)
    if json_:
        report_json({group: described(item) for group, item in found.items()})
        return
    for group, item in found.items():
        report(f"{item.name} ({group.removesuffix('s')}): {item.purpose}")
        for line in lines_of(item):
            report(line)
