"""What stands where in some rows: each column and each place inside of it, by its path.

Objects are entered, also where they are JSON in a text, and of lists the first member. So a description can name
`reward_model.ground_truth` or `answers.text.0` as it names a column.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import orjson

from etl.sources.column_names import bare, last_word
from etl.sources.glance import opened
from etl.sources.paths import descend, parts_of

_DEPTH: Final = 3
_MAX_KEYS: Final = 40
_RUNNING: Final = re.compile(r"\S\s+\S|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]{2}")
_GENERIC: Final = frozenset({"text", "value", "content", "string"})
"""Keys that say less of a place than the key above them."""


@dataclass(frozen=True, eq=False)
class Leaf:
    """One place in the rows."""

    path: str
    values: Sequence[Any]
    """[rows]; None where nothing stands there."""

    depth: int = 0
    """0 of a column."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the place is called, the key above a generic one included."""
        keys = [bare(part) for part in parts_of(self.path) if not part.isdecimal()]
        if (self.depth == 0 and "." not in self.path) or not keys:
            return (bare(self.path),)
        return tuple(keys[:-3:-1]) if keys[-1] in _GENERIC else (keys[-1],)

    @cached_property
    def last_word(self) -> str | None:
        """What the end of a name of several words says."""
        return last_word(parts_of(self.path)[-1])

    @cached_property
    def there(self) -> list[Any]:
        """The values that are not null, "" or []."""
        return [value for value in self.values if value is not None and value not in ("", [])]

    @cached_property
    def is_text(self) -> bool:
        """Whether all values are text."""
        return bool(self.there) and all(isinstance(value, str) for value in self.there)

    @cached_property
    def may_be_text(self) -> bool:
        """Whether all values are text, though perhaps all of them empty."""
        there = [value for value in self.values if value is not None]
        return bool(there) and all(isinstance(value, str) for value in there)

    @cached_property
    def is_json(self) -> bool:
        """Whether all texts are the JSON of a list or an object."""
        return self.is_text and all(opened(value) is not None for value in self.there)

    @cached_property
    def is_prose(self) -> bool:
        """Whether most texts are running text: several words, or a script that writes no spaces."""
        running = [value for value in self.there if isinstance(value, str) and _RUNNING.search(value.strip())]
        return self.is_text and not self.is_json and 2 * len(running) > len(self.there)

    @cached_property
    def is_filled(self) -> bool:
        """Whether most rows have a value."""
        return len(self.there) >= 0.9 * len(self.values) > 0

    @cached_property
    def chars(self) -> float:
        """Mean length of the texts."""
        return sum(len(value) for value in self.there if isinstance(value, str)) / max(1, len(self.there))

    @cached_property
    def distinct(self) -> float:
        """Share of different values among those that are there."""
        return len(set(map(written, self.there))) / max(1, len(self.there))

    @cached_property
    def size(self) -> int:
        """Length of all texts, and of all else as JSON."""
        return sum(len(value) if isinstance(value, str) else len(written(value)) for value in self.there)


def leaves_of(rows: Sequence[dict[str, Any]]) -> list[Leaf]:
    """The places in some rows, columns first, then what is inside of them, the outer ones first."""
    names = dict.fromkeys(name for row in rows for name in row)
    level = [Leaf(name, [row.get(name) for row in rows]) for name in names]
    found = list(level)
    for depth in range(1, _DEPTH + 1):
        level = [
            Leaf(path, [descend(value, (path.rpartition(".")[2],)) for value in leaf.values], depth)
            for leaf in level
            if depth > 1 or "." not in leaf.path
            for path in _inside(leaf)
        ]
        found += level
    return found


def written(value: Any) -> bytes:
    """A value as JSON; nothing of one that is nested too deep for it."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return b""


def _inside(leaf: Leaf) -> Iterator[str]:
    values = [value for value in map(opened, leaf.there) if value]
    keys = dict.fromkeys(key for value in values if isinstance(value, dict) for key in value)
    for key in list(keys)[:_MAX_KEYS]:
        if isinstance(key, str) and "." not in key and not key.isdecimal():
            yield f"{leaf.path}.{key}"
    if any(isinstance(value, list) and isinstance(value[0], str | dict) for value in values):
        yield f"{leaf.path}.0"
