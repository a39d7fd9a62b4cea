"""What a recipe can name: lists with one line per entry, and one entry in full with keys, defaults and an example.

Everything is read from the models and the files in conf/, so a new step, cut or stage is listed as soon as its class is
in its union. Costs the imports of a recipe, about a second.
"""

import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import BaseModel

from etl import conf
from etl.config import nearest
from etl.errors import ConfigError
from etl.keys import Key, Model, keys_of, models_of, purpose_of
from etl.pipeline import AnyCut, AnyStep
from etl.run.recipe import STAGES, Recipe
from etl.sources.spec import Description


@dataclass(frozen=True)
class Listed:
    """One line of a list.

    Attributes:
        name: its name in a recipe or a command.
        purpose: what it is for, in one line.
        model: the model that defines its keys.
        example: YAML for a recipe, or a whole file of conf/.
        hub: of a source, OWNER/NAME on the Hugging Face hub with its configuration and split; empty where it has none.
    """

    name: str
    purpose: str
    model: type[BaseModel]
    example: str
    hub: str = ""


def listed(group: str) -> list[Listed]:
    """The entries of a group, which is one of GROUPS."""
    return _GROUPS[group]()


def named(name: str) -> dict[str, Listed]:
    """Every entry of that name, by group.

    Raises:
        ConfigError: there is none.
    """
    everything = {group: listed(group) for group in GROUPS}
    found = {group: item for group, items in everything.items() for item in items if item.name == name}
    if not found:
        known = sorted({item.name for items in everything.values() for item in items})
        raise ConfigError(
            f"there is no '{name}'; {nearest(name, known)}`stillhouse {{{','.join(GROUPS)}}}` list all names"
        )
    return found


def described(item: Listed) -> dict[str, Any]:
    """One entry in full, as JSON."""
    return {
        "name": item.name,
        "purpose": item.purpose,
        **({"hub": item.hub} if item.hub else {}),
        "keys": [vars(key) for key in keys_of(item.model)],
        "models": {model.name: [vars(key) for key in model.keys] for model in _inner(item)},
        "example": item.example,
    }


def lines_of(item: Listed) -> list[str]:
    """One entry in full, as text."""
    keys = [line for key in keys_of(item.model) for line in _lines_of_key(key)]
    inner = [
        line
        for model in _inner(item)
        for line in ("", f"  {model.name}", *(line for key in model.keys for line in _lines_of_key(key)))
    ]
    hub = ["", f"  on the Hugging Face hub: {item.hub}"] if item.hub else []
    return [*hub, "", "  keys", *keys, *inner, "", "  example", *(f"    {line}" for line in item.example.splitlines())]


def _inner(item: Listed) -> list[Model]:
    """The models nested in an entry, without a recipe's stages, which have descriptions of their own."""
    return [] if item.model is Recipe else models_of(item.model)[1:]


def _lines_of_key(key: Key) -> list[str]:
    default = "required" if key.default is None else f"default {key.default}"
    return [f"    {key.name}: {key.type}; {default}", *([f"        {key.doc}"] if key.doc else [])]


def _kinds(union: Any) -> tuple[type[BaseModel], ...]:
    kinds: tuple[type[BaseModel], ...] = get_args(get_args(union)[0])
    return kinds


def _of_kinds(models: tuple[type[BaseModel], ...]) -> list[Listed]:
    return [
        Listed(model.model_fields["kind"].default, purpose_of(model), model, getattr(model, "example", ""))
        for model in models
    ]


def _of_files(folder: str) -> list[Listed]:
    found = []
    for name in conf.shipped(folder):
        text = (importlib.resources.files("conf") / folder / f"{name}.yaml").read_text("utf-8")
        if folder == "recipes":
            found.append(Listed(name, _comment(text), Recipe, text))
        else:
            shape = conf.read(Description, name, folder).root
            found.append(Listed(name, _comment(text), type(shape), text, shape.hub.label if shape.hub else ""))
    return found


def _comment(text: str) -> str:
    """The first line of a file of conf/, which says what it is for."""
    return text.partition("\n")[0].lstrip("# ")


_GROUPS: Final[dict[str, Callable[[], list[Listed]]]] = {
    "recipes": lambda: _of_files("recipes"),
    "sources": lambda: _of_files("sources"),
    "stages": lambda: _of_kinds(STAGES),
    "steps": lambda: _of_kinds(_kinds(AnyStep)),
    "cuts": lambda: _of_kinds(_kinds(AnyCut)),
}
GROUPS: Final = tuple(_GROUPS)
"""The lists, by the names of their commands."""
