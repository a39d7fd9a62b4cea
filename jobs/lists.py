"""What a recipe can name, as lists with one line each, and one thing whole: keys, defaults, an example.

Everything is read from the models and from the files in conf/, so a new step, cut or stage is in the lists once its
class is in its union. Costs the imports of a recipe, about a second.
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
        name: as a recipe or a command names it.
        purpose: what it is for, in one line.
        model: whose keys it has.
        example: YAML as it may stand in a recipe, or the whole of a file of conf/.
    """

    name: str
    purpose: str
    model: type[BaseModel]
    example: str


def listed(group: str) -> list[Listed]:
    """What there is of a group: one of GROUPS."""
    return _GROUPS[group]()


def named(name: str) -> dict[str, Listed]:
    """By group, everything of that name.

    Raises:
        ConfigError: nothing has it.
    """
    everything = {group: listed(group) for group in GROUPS}
    found = {group: item for group, items in everything.items() for item in items if item.name == name}
    if not found:
        known = sorted({item.name for items in everything.values() for item in items})
        raise ConfigError(
            f"nothing is called '{name}'; {nearest(name, known)}`stillhouse {{{','.join(GROUPS)}}}` list what there is"
        )
    return found


def described(item: Listed) -> dict[str, Any]:
    """One thing whole, as JSON."""
    return {
        "name": item.name,
        "purpose": item.purpose,
        "keys": [vars(key) for key in keys_of(item.model)],
        "models": {model.name: [vars(key) for key in model.keys] for model in _inner(item)},
        "example": item.example,
    }


def lines_of(item: Listed) -> list[str]:
    """One thing whole, for people."""
    keys = [line for key in keys_of(item.model) for line in _lines_of_key(key)]
    inner = [
        line
        for model in _inner(item)
        for line in ("", f"  {model.name}", *(line for key in model.keys for line in _lines_of_key(key)))
    ]
    return ["", "  keys", *keys, *inner, "", "  example", *(f"    {line}" for line in item.example.splitlines())]


def _inner(item: Listed) -> list[Model]:
    """The models below one thing; those of a recipe are its stages, which can be described by themselves."""
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
        found.append(Listed(name, _comment(text), _model(folder, name), text))
    return found


def _model(folder: str, name: str) -> type[BaseModel]:
    return Recipe if folder == "recipes" else type(conf.read(Description, name, folder).root)


def _comment(text: str) -> str:
    """The first line of a file of conf/, which says what it is."""
    return text.partition("\n")[0].lstrip("# ")


_GROUPS: Final[dict[str, Callable[[], list[Listed]]]] = {
    "recipes": lambda: _of_files("recipes"),
    "sources": lambda: _of_files("sources"),
    "stages": lambda: _of_kinds(STAGES),
    "steps": lambda: _of_kinds(_kinds(AnyStep)),
    "cuts": lambda: _of_kinds(_kinds(AnyCut)),
}
GROUPS: Final = tuple(_GROUPS)
"""The lists, as commands are called."""
