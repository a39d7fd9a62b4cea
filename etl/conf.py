"""Reads a configuration: YAML by name, path or URI, with `--set a.b=c` overrides, validated by a pydantic model.

A name without a slash or suffix is looked up in the folders that ship with the package (conf/recipes, conf/training,
…). A value after `--set` is text, unless YAML reads it as another type and the key has that type (etl/yaml_text.py). A
value `@FILE` is the unchanged text of that file. Every mistake is one ConfigError that names the key, the value and the
nearest valid key.

A configuration from a URI may name code from outside the package only if the caller allows it (etl/foreign.py). A local
file always may, since whoever can write it can run code there anyway.
"""

import importlib.resources
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from etl import yaml_text
from etl.config import FROM_YAML
from etl.config_errors import PRIVATE, lines
from etl.errors import ConfigError, DataError
from etl.foreign import ALLOW_CODE
from etl.storage.location import Location
from etl.terminal import shown

C = TypeVar("C", bound=BaseModel)


def parse_yaml(text: str, origin: str) -> Any:
    """The YAML value of some text.

    Raises:
        ConfigError: it is not YAML, or gives a key twice; the message names `origin` and the line.
    """
    return yaml_text.natural(_parsed(yaml_text.load, text, origin))


def _parsed(load: Callable[[str], Any], text: str, origin: str) -> Any:
    try:
        return load(text)
    except yaml_text.RefusedError as error:
        raise ConfigError(f"{origin}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin} is not valid YAML: {_problem(error)}") from error


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong and where, without quoting the text."""
    mark = getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    problem = getattr(error, "problem", None) or "a character that YAML does not allow"
    return re.sub(r"(alias|anchor|tag) .*", r"\1", problem) + where


def read_text(url: str) -> str:
    """The text of a file or object.

    Raises:
        ConfigError: it is missing, unreadable or not UTF-8.
    """
    try:
        return Location.of(url).read().decode("utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(f"there is no file {url}{_relative_to(url)}") from error
    except DataError as error:
        raise ConfigError(str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{url} is not UTF-8 text: {error}") from error


def _relative_to(url: str) -> str:
    """Where relative paths begin, for a user who expected the folder of the configuration that names the path."""
    is_relative = "://" not in url and not Path(url).expanduser().is_absolute()
    return f" in {Path.cwd()}, where relative paths begin" if is_relative else ""


def shipped(folder: str) -> list[str]:
    """Names of the configurations that ship in conf/<folder>."""
    root = importlib.resources.files("conf") / folder
    return sorted(Path(item.name).stem for item in root.iterdir() if item.name.endswith(".yaml"))


def find(name_or_path: str, folder: str) -> str:
    """The text of the configuration that a user named.

    Raises:
        ConfigError: it is neither a file nor a shipped name; the message lists the shipped ones.
    """
    if "/" not in name_or_path and not name_or_path.endswith((".yaml", ".yml")):
        if name_or_path not in shipped(folder):
            raise ConfigError(
                f"there is no configuration '{name_or_path}' in conf/{folder}; "
                f"shipped: {', '.join(shipped(folder))}; or give a path to a YAML file"
            )
        return (importlib.resources.files("conf") / folder / f"{name_or_path}.yaml").read_text("utf-8")
    if "://" not in name_or_path and not Path(name_or_path).exists():
        packaged = importlib.resources.files("conf") / name_or_path.removeprefix("conf/")
        if name_or_path.startswith("conf/") and packaged.is_file():
            return packaged.read_text("utf-8")
    return read_text(name_or_path)


def load(model: type[C], name_or_path: str, folder: str, overrides: list[str], allow_code: bool = False) -> C:
    """The validated configuration, with `--set` overrides.

    Args:
        model: its class.
        name_or_path: a shipped name, a path or a URI.
        folder: the folder of conf/ in which names are looked up.
        overrides: KEY=VALUE each.
        allow_code: whether it may name classes from outside the package although a part of it comes from a URI.

    Raises:
        ConfigError: not found, not YAML, an override without '=', or a key or value that the model refuses.
    """
    tree = _tree(name_or_path, folder)
    for override in overrides:
        _apply(tree, override)
    is_trusted = allow_code or not _has_uri(name_or_path, overrides)
    return _checked(model, tree, name_or_path, settable=True, allow_code=is_trusted)


def read(model: type[C], name_or_path: str, folder: str) -> C:
    """The validated configuration of a file without overrides, such as the description of a source.

    Raises:
        ConfigError: not found, not YAML, or a key or value that the model refuses.
    """
    return _checked(model, _tree(name_or_path, folder), name_or_path, settable=False, allow_code=False)


def made(model: type[C], tree: dict[str, Any], overrides: list[str], origin: str) -> C:
    """The validated configuration of a tree that a command has assembled, with `--set` overrides.

    Raises:
        ConfigError: an override without '=', or a key or value that the model refuses.
    """
    for override in overrides:
        _apply(tree, override)
    return _checked(model, tree, origin, settable=True, allow_code=not _has_uri("", overrides))


def check(model: type[C], tree: Any, origin: str, allow_code: bool = True) -> C:
    """The tree as a model; `allow_code`: it may name classes and functions from outside the package.

    Raises:
        ConfigError: one line for each key or value that the model refuses.
    """
    return _checked(model, tree, origin, settable=True, allow_code=allow_code)


def _has_uri(name_or_path: str, overrides: list[str]) -> bool:
    """Whether the configuration, or the file of an override KEY=@FILE, is given as a URI, including file://."""
    values = [override.partition("=")[2] for override in overrides]
    return any("://" in file for file in (name_or_path, *(value for value in values if value.startswith("@"))))


def _tree(name_or_path: str, folder: str) -> dict[str, Any]:
    tree = _parsed(yaml_text.load, find(name_or_path, folder), name_or_path)
    if not isinstance(tree, dict):
        kind = type(yaml_text.natural(tree)).__name__
        raise ConfigError(f"{name_or_path} must be a mapping of keys, not {kind}")
    return tree


def _checked(model: type[C], tree: Any, origin: str, settable: bool, allow_code: bool) -> C:
    try:
        return model.model_validate(tree, context={ALLOW_CODE: allow_code, FROM_YAML: True})
    except ValidationError as error:
        raise ConfigError(f"{origin}:\n  " + "\n  ".join(lines(error, model, tree, settable))) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set takes KEY=VALUE, got {shown(override)}")
    value = read_text(text[1:]) if text.startswith("@") else _parsed(yaml_text.load_argument, text, f"--set {key}")
    node: Any = tree
    *parents, last = key.split(".")
    for name in parents:
        node = _child(node, name, key)
    if isinstance(node, list):
        node[_index(node, last, key)] = value
    else:
        node[last] = value


def _child(node: Any, name: str, key: str) -> Any:
    place = _index(node, name, key) if isinstance(node, list) else name
    if isinstance(node, dict) and node.get(name) is None:
        node[name] = {}
    child = node[place] = yaml_text.unwrapped(node[place])
    if not isinstance(child, dict | list):
        value = "a value" if name in PRIVATE or not PRIVATE.isdisjoint(key.split(".")) else f"the value {shown(child)}"
        raise ConfigError(f"--set {key}: '{name}' is {value}, so it has no keys below it")
    return child


def _index(node: list[Any], name: str, key: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(f"--set {key}: '{name}' must be an index from 0 to {len(node) - 1} of that list")
    return int(name)
