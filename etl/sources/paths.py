"""Paths to what a raw record holds: `meta.url`, `responses.0`, `rewards.*.score`, or the plain name of a column.

A column that is really called so wins. Otherwise the parts between the dots go down through objects, through lists by
number or, with `*`, through all of a list, and through text that is itself JSON. What is not there is null, as an
absent column is.
"""

import functools
from typing import Any

import orjson


def root_of(path: str, names: set[str]) -> str:
    """The column of a file that a path starts in: the path itself where that is a column, else its first part."""
    return path if path in names else path.partition(".")[0]


@functools.cache
def parts_of(path: str) -> tuple[str, ...]:
    """The keys on the way down."""
    return tuple(path.split("."))


def descend(value: Any, parts: tuple[str, ...]) -> Any:
    """What lies below a value by some keys; None where nothing does."""
    for depth, part in enumerate(parts):
        value = opened(value)
        if part == "*" and isinstance(value, list):
            return [descend(item, parts[depth + 1 :]) for item in value]
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def opened(value: Any) -> Any:
    """A value that can be descended into; text that is not JSON stays text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value
