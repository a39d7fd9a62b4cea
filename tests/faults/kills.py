"""Kills inside one process: the operations on storage are counted, and one of them is the last.

`KilledError` is a BaseException that no code of ours catches, raised before an operation is done, after it, or, where
an operation removes many objects, when it has removed half of them. Unlike SIGKILL it lets `finally` and `with` run, so
a temporary file that a real kill would leave is removed.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from unittest import mock

from etl.storage.location import Location
from tests.engines.inprocess import KilledError

ONE_OBJECT = ("create", "replace", "upload", "take", "remove")
MANY_OBJECTS = ("remove_tree", "remove_children")


class Moment(StrEnum):
    BEFORE = "before"
    AMID = "amid"
    AFTER = "after"


@dataclass(frozen=True)
class Operation:
    """One change of storage."""

    name: str
    url: str


Choose = Callable[[int, Operation], Moment | None]
"""From an operation and its number in this run to when it is killed; None lets it pass."""


def _spare(number: int, operation: Operation) -> None:
    """Nobody is killed."""


@dataclass
class Reaper:
    """Counts operations and kills at the one that is due.

    Attributes:
        seen: the operations since `arm`, in order.
        killed_at: the one that was the last.
    """

    seen: list[Operation] = field(default_factory=list)
    killed_at: Operation | None = None
    _choose: Choose = _spare
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arm(self, due: int, moment: Moment) -> None:
        """Begin to count again; the operation number `due` (from 0) is the last."""
        self.arm_by(lambda number, operation: moment if number == due else None)

    def arm_by(self, choose: Choose) -> None:
        """Begin to count again; the first operation for which `choose` names a moment is the last."""
        self.seen, self.killed_at, self._choose = [], None, choose

    def disarm(self) -> None:
        """Begin to count again; nothing is killed."""
        self.arm_by(_spare)

    def run(self, name: str, method: Callable[..., Any], place: Location, *values: Any, **options: Any) -> Any:
        """Do an operation, unless this is the end. Clearing a folder on an object store calls from several threads."""
        operation = Operation(name, place.url)
        with self._lock:
            moment = self._choose(len(self.seen), operation) if self.killed_at is None else None
            self.seen.append(operation)
            self.killed_at = self.killed_at or (operation if moment else None)
        if moment is None:
            return method(place, *values, **options)
        if moment is Moment.AMID and name in MANY_OBJECTS:
            _remove_half(place, options.get("keep", ()))
        elif moment is not Moment.BEFORE:
            method(place, *values, **options)
        raise KilledError(operation)


def _remove_half(place: Location, keep: tuple[str, ...]) -> None:
    names = [name for name, _ in place.walk() if name.partition("/")[0] not in keep]
    for name in names[::2]:
        place.fs.rm_file((place / name).path)


@contextlib.contextmanager
def reaping() -> Iterator[Reaper]:
    """A reaper that sees every change that this process makes through a Location."""
    reaper = Reaper()
    with contextlib.ExitStack() as patches:
        for name in (*ONE_OBJECT, *MANY_OBJECTS):
            method = getattr(Location, name)
            counted = functools.partialmethod(_counted, reaper, name, method)
            patches.enter_context(mock.patch.object(Location, name, counted))
        yield reaper


def _counted(
    place: Location, reaper: Reaper, name: str, method: Callable[..., Any], *values: Any, **options: Any
) -> Any:
    return reaper.run(name, method, place, *values, **options)
