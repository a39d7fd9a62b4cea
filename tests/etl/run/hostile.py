"""Outputs with JSON objects that somebody has changed, and every command over them, watched from outside."""

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl.errors import StillhouseError
from etl.run.plan import adopt, describe, plan_recipe
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.storage.catalog import statements
from etl.storage.location import Location
from etl.storage.lock import LOCK, Holder
from etl.storage.manifest import to_json
from etl.storage.sweep import find_leftovers, find_stale, remove_leftovers
from etl.storage.verify import verify
from tests.engines.inprocess import InProcessEngine

Keys = tuple[str | int, ...]
"""Keys and positions that lead to a value in a JSON object."""

SECRET = "the secret of the sentinel"
STRINGS = (
    "../../victim/x.json", "../victim/x", "{victim}/x.json", "file://{victim}/x.json", "s3://nowhere/x", "a\0b",
    "\x1b]0;owned\x07", "", ".", "..", "ééé", "x" * 5000, "\u202e", "0" * 32,
)  # fmt: skip
NUMBERS = ("-1", "0", "1e400", "NaN", "Infinity", str(2**70), "1e30", "1000000000", "1.5")
OTHERS = ("null", "true", "[]", "{}", '"text"', "7", "[" * 150 + "]" * 150)
WHOLE = ("", "{", "[]", "{}", "null", "[" * 100_000)
_MARK = "@@here@@"


@dataclass(frozen=True)
class Mutation:
    """One change of one JSON object."""

    file: str
    """Below the output."""
    where: Keys
    """Empty for the whole object."""
    text: str | None = None
    """JSON in the place of the value; None where it and its key go."""
    key: str | None = None
    """What the key is called from now on; None where it stays."""

    def applied(self, data: bytes, victim: Path) -> bytes:
        """The object as it is after the change."""
        if not self.where:
            return str(self.text).encode()
        tree = json.loads(data)
        *parents, last = self.where
        node = tree
        for key in parents:
            node = node[key]
        value = node.pop(last) if self.text is None else _MARK
        if self.key is not None:
            node[self.key] = value
        elif self.text is not None:
            node[last] = value
        text = json.dumps(tree, ensure_ascii=False).replace(json.dumps(_MARK), self.text or "")
        return text.replace("{victim}", str(victim)).encode()


def mutations(output: Path) -> Iterator[Mutation]:
    """Every change of every value, key and whole of every JSON object of an output, always in one order."""
    for path in sorted(output.rglob("*.json")):
        file = str(path.relative_to(output))
        yield from (Mutation(file, (), text) for text in WHOLE)
        for where, value in _values(json.loads(path.read_bytes())):
            yield Mutation(file, where)
            yield from (Mutation(file, where, text) for text in _replacements(value))
            if isinstance(where[-1], str):
                yield from (Mutation(file, where, key=key) for key in STRINGS)


def _values(node: Any, where: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield (*where, key), value
        yield from _values(value, (*where, key))


def _replacements(value: Any) -> Iterator[str]:
    """JSON texts that are hostile in the place of a value."""
    if isinstance(value, str):
        yield from map(json.dumps, STRINGS)
    elif isinstance(value, int | float):
        yield from NUMBERS
    yield from OTHERS


def leave_locks(output: Path) -> None:
    """The chain of a run that died, and of one that died when it had taken over."""
    dead = Holder.me().model_copy(update={"started": "1", "run": "d" * 32})
    (output / LOCK).write_bytes(to_json(dead))
    (output / f"_lock-{dead.run}.json").write_bytes(to_json(dead.model_copy(update={"run": "e" * 32})))


class Watched:
    """A copy of an output with a victim beside it. Whatever is outside the output must remain unchanged and unread."""

    def __init__(self, folder: Path, output: Path) -> None:
        folder.mkdir()
        self.output = folder / "out"
        self.victim = folder / "victim"
        self._folder = folder
        shutil.copytree(output, self.output)
        self.victim.mkdir()
        for name in ("x", "x.json", "x.parquet", "00000.json"):
            (self.victim / name).write_text(json.dumps({SECRET: SECRET}))
        self._before = self._outside()

    def _outside(self) -> dict[str, tuple[int, int, bytes]]:
        found = {}
        for folder, names, files in os.walk(self._folder):
            if folder == str(self._folder):
                names.remove("out")
            for path in (Path(folder, name) for name in [*names, *files]):
                state = path.lstat()
                found[str(path)] = (state.st_mtime_ns, state.st_size, path.read_bytes() if path.is_file() else b"")
        return found

    def change(self, mutation: Mutation) -> None:
        """Change one object of the output."""
        place = self.output / mutation.file
        place.write_bytes(mutation.applied(place.read_bytes(), self.victim))

    def meet(self, recipe: Callable[[Path], Recipe]) -> list[str]:
        """Every command over the output, in sequence: what they printed, errors that are meant for users included.

        Args:
            recipe: of an output.
        """
        said: list[str] = []
        for command in self._commands(recipe(self.output), said):
            try:
                command()
            except StillhouseError as error:
                said.append(str(error))
        return said

    def _commands(self, recipe: Recipe, said: list[str]) -> list[Callable[[], Any]]:
        place, much_later_s = Location.of(self.output), time.time() + 10**6
        return [
            lambda: said.extend(str(item) for item in verify(place)),
            lambda: said.extend(statements(place, "spark")),
            lambda: said.extend(statements(place, "duckdb")),
            lambda: said.extend(describe(plan_recipe(recipe))),
            lambda: said.extend(adopt(recipe, "ingest")),
            lambda: remove_leftovers(place, find_leftovers(place, 0, much_later_s)),
            lambda: remove_leftovers(place, find_stale(place, much_later_s)),
            lambda: run_recipe(recipe, InProcessEngine(batch_rows=1000), said.append),
        ]

    def check(self, said: list[str]) -> None:
        """Raise where anything outside was changed, or was read into the output or into a message."""
        assert self._outside() == self._before
        assert not any(SECRET in line for line in said)
        for path in self.output.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def sample(output: Path, count: int, seed: int) -> list[Mutation]:
    """Some of the mutations of an output."""
    return random.Random(seed).sample(list(mutations(output)), count)
