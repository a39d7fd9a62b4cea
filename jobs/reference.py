"""The generated pages of the reference: `python -m jobs.reference FOLDER` writes commands, configuration and tables.

Every page comes from the code: commands from their options, keys from the models and their docstrings, tables from
their Arrow schemas. The pages are committed, so that they can be read without a build; a test checks that they are up
to date.
"""

import ast
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import pyarrow as pa
import typer
from pydantic import BaseModel

from etl import schema
from etl.console import command, report, run_command
from etl.keys import Key, Model, models_of
from etl.run.recipe import Recipe
from etl.sources.spec import Shape
from jobs.cli import app
from training.config import TrainConfig
from training.evaluate.report import EvaluateConfig
from training.teacher.rescore import RescoreConfig

_MADE: Final = "<!-- Made by `make reference`; change the code, not this page. -->"
CONFIGURATIONS: Final[dict[str, tuple[type[BaseModel], ...]]] = {
    "Recipes": (Recipe,),
    "Descriptions of sources": get_args(Shape),
    "Training": (TrainConfig,),
    "Rescoring": (RescoreConfig,),
    "Evaluation": (EvaluateConfig,),
}
"""The YAML that users write, by heading."""
_WORDS: Final[dict[type, str]] = {bool: "BOOL", int: "N", float: "NUMBER", Path: "PATH", str: "TEXT"}


def pages() -> dict[str, str]:
    """Each page, by its file name."""
    made: dict[str, Callable[[], Iterator[str]]] = {
        "commands.md": _commands,
        "configuration.md": _configuration,
        "tables.md": _tables,
    }
    return {name: "\n".join(lines()) + "\n" for name, lines in made.items()}


# --- commands --------------------------------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    yield from (_MADE, "", "# Commands", "")
    yield from ("`stillhouse COMMAND --help` shows the same. Exit codes are in the [contract](contract.md).", "")
    for name, found in sorted(typer.main.get_command(app).commands.items()):  # type: ignore[attr-defined]  # typer's own
        yield from (f"## {name}", "", *(found.help or "").splitlines(), "")
        rows = [_parameter(parameter) for parameter in found.params if parameter.name != "help"]
        if rows:
            yield from ("| | | default |", "|---|---|---|", *rows, "")
        yield from ("    " + line for line in (found.epilog or "").split("\n\n")[1:])
        yield ""


def _parameter(parameter: Any) -> str:
    is_option = parameter.opts[0].startswith("--")
    takes = f" {_takes(parameter)}" if is_option and not parameter.is_flag else ""
    default = "required" if parameter.required else parameter.show_default
    if not isinstance(default, str):
        default = "" if parameter.default in (None, False) or parameter.multiple else str(parameter.default)
    name = parameter.opts[0] if is_option else parameter.name.upper()
    return _row(f"`{name}{takes}`", parameter.help or "", default)


def _takes(parameter: Any) -> str:
    """The placeholder after an option: its own, its choices, or a word for its type."""
    annotation = parameter.type_descriptor.annotation
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    if parameter.metavar or choices:
        return str(parameter.metavar or "|".join(choices))
    return next(word for kind, word in _WORDS.items() if kind in (annotation, *get_args(annotation)))


# --- configuration ---------------------------------------------------------------------------------------------------


def _configuration() -> Iterator[str]:
    yield from (_MADE, "", "# Every key of every configuration", "")
    yield "A key whose type is a name such as `Cutting` is a mapping with the keys of that section."
    for heading, roots in CONFIGURATIONS.items():
        yield from ("", f"## {heading}")
        told: set[str] = set()
        for root in roots:
            for model in models_of(root):
                if model.name not in told:
                    told.add(model.name)
                    yield from _model(model)


def _model(model: Model) -> Iterator[str]:
    yield from ("", f"### {model.name}", "", model.purpose, "")
    yield from ("| key | type | default | |", "|---|---|---|---|", *map(_key, model.keys))


def _key(key: Key) -> str:
    default = "required" if key.default is None else f"`{key.default}`"
    return _row(f"`{key.name}`", key.type, default, key.doc)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# --- tables ----------------------------------------------------------------------------------------------------------


def _tables() -> Iterator[str]:
    yield from (_MADE, "", "# Tables", "")
    yield "The columns of what a run writes; the [contract](contract.md) lists which folder holds which table."
    for name, doc in _docstrings().items():
        columns = getattr(schema, name)
        if isinstance(columns, pa.Schema):
            yield from ("", f"## {name}", "", *doc.splitlines(), "")
            yield from ("| column | type | may be null |", "|---|---|---|", *map(_column, columns))


def _column(field: pa.Field) -> str:
    return _row(f"`{field.name}`", f"`{field.type}`", "yes" if field.nullable else "no")


def _docstrings() -> dict[str, str]:
    """The docstring below each constant of etl/schema.py."""
    body = ast.parse(inspect.getsource(schema)).body
    return {
        node.target.id: inspect.cleandoc(after.value.value)
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }


@command
def _job(folder: Annotated[Path, typer.Argument(help="Folder to write to.")]) -> None:
    """Write the generated pages of the reference."""
    for name, text in pages().items():
        (folder / name).write_text(text, "utf-8")
        report(f"wrote {folder / name}")


def main(argv: list[str]) -> int:
    """Exit code: 0, or 2 for an error that the user can fix."""
    return run_command(_job, argv, "python -m jobs.reference")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
