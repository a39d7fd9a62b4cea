"""Errors of a configuration in plain words: one line per mistake, with its key, its value and the remedy.

pydantic finds the mistakes; its words, its names of union branches and its follow-up errors are not shown. A line is
`key: what is wrong (got VALUE)`. Values below `options` and `storage`, where credentials may be, are never repeated.
"""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from etl.config import FROM_YAML, nearest
from etl.foreign import ALLOW_CODE
from etl.terminal import shown
from etl.yaml_text import unwrapped

PRIVATE = frozenset({"options", "storage"})
"""Keys below which credentials may be."""
_TAGS = ("kind", "shape")
"""Keys that choose a model out of several."""

_WORDS = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
    "none_required": "must be null",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be {ge} or more",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be {le} or less",
    "too_short": "needs at least {min_length}, has {actual_length}",
    "too_long": "takes at most {max_length}, has {actual_length}",
    "string_too_short": "must be a text of at least {min_length} characters",
    "string_too_long": "must be a text of at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
}
"""Our words for pydantic's types of errors; `{…}` is filled from the error's context."""


def lines(error: ValidationError, model: type[BaseModel], tree: Any, settable: bool) -> list[str]:
    """One line per mistake, in the order in which pydantic found them.

    Args:
        error: raised by validating `tree` as `model`.
        model: the class of the configuration.
        tree: the values as they were read.
        settable: whether `--set KEY=VALUE` applies to the tree and can be advised.
    """
    found: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors(include_url=False):
        where = _place(item, tree)
        found.setdefault(where, []).append(item)
    return [
        _line(where, items, model, tree, settable)
        for where, items in found.items()
        if not any(other[: len(where)] == where and other != where for other in found)
    ]


def _place(item: Any, tree: Any) -> tuple[Any, ...]:
    """Keys and positions of the tree that lead to a mistake, without the names of union branches."""
    place: list[Any] = []
    node, entered = tree, True
    for piece in item["loc"]:
        node = unwrapped(node)
        is_tag = entered and isinstance(node, dict) and piece in [node.get(tag) for tag in _TAGS]
        entered = False
        if is_tag:
            continue
        if (isinstance(node, dict) and piece in node) or (isinstance(node, list) and isinstance(piece, int)):
            node, entered = node[piece], True
            place.append(piece)
    if item["type"] == "missing":
        place.append(item["loc"][-1])
    return tuple(place)


def _line(where: tuple[Any, ...], items: list[Any], model: type[BaseModel], tree: Any, settable: bool) -> str:
    item = items[0]
    if item["type"] == "missing":
        name = _joined(where)
        return f"{name}: is missing; add it to the file" + (f", or --set {name}=VALUE" if settable else "")
    if item["type"].startswith("union_tag"):
        return _about_tag(where, item, model, tree)
    says = " or ".join(dict.fromkeys(_says(one, where) for one in items)).replace(" or must be ", " or ")
    is_said = item["type"] in ("value_error", "literal_error") or not PRIVATE.isdisjoint(where)
    return f"{_joined(where)}: {says}" + ("" if is_said else f" (got {shown(item['input'])})")


def _says(item: Any, where: tuple[Any, ...]) -> str:
    if item["type"] == "value_error":
        return str(item["msg"].removeprefix("Value error, "))
    if item["type"] == "literal_error":
        known = _quoted(item["ctx"]["expected"])
        if not PRIVATE.isdisjoint(where):
            return f"must be one of {', '.join(known)}"
        return f"{shown(item['input'])} is not known; {nearest(str(item['input']), known)}known: {', '.join(known)}"
    words = _WORDS.get(item["type"])
    if words is None:
        return str(item["msg"].replace("Input should be", "must be"))
    return words.format(**item.get("ctx", {}))


def _about_tag(where: tuple[Any, ...], item: Any, model: type[BaseModel], tree: Any) -> str:
    """The line for a key that selects a model, if it is missing or unknown."""
    key = item["ctx"]["discriminator"].strip("'")
    full = _joined((*where, key))
    if item["type"] == "union_tag_not_found":
        if not isinstance(item["input"], dict):
            return f"{_joined(where)}: must be a mapping of keys (got {shown(item['input'])})"
        return f"{full}: is missing; known: {', '.join(_tags_at(where, key, model, tree))}"
    known = _quoted(item["ctx"]["expected_tags"])
    tag = item["ctx"]["tag"]
    lists = [name for name in where if isinstance(name, str)]
    noun = lists[-1].removesuffix("s") if lists and isinstance(where[-1], int) else key
    return f"{full}: there is no {noun} {shown(tag)}; {nearest(tag, known)}known: {', '.join(known)}"


def _tags_at(where: tuple[Any, ...], key: str, model: type[BaseModel], tree: Any) -> list[str]:
    """The tags allowed at a place: pydantic names them if it is given an impossible one."""
    try:
        # The tags are known without the code that the rest of the tree may name.
        model.model_validate(_with_tag(tree, where, key), context={ALLOW_CODE: False, FROM_YAML: True})
    except ValidationError as error:
        for item in error.errors(include_url=False):
            if item["type"] == "union_tag_invalid" and item["ctx"]["tag"] == "?":
                return _quoted(item["ctx"]["expected_tags"])
    raise AssertionError(f"{where} takes no {key}")


def _with_tag(node: Any, where: Sequence[Any], key: str) -> Any:
    node = unwrapped(node)
    if not where:
        return {**node, key: "?"}
    inner = _with_tag(node[where[0]], where[1:], key)
    if isinstance(node, dict):
        return {**node, where[0]: inner}
    return [inner if place == where[0] else value for place, value in enumerate(node)]


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _joined(where: Sequence[Any]) -> str:
    return ".".join(map(str, where)) or "(top)"
