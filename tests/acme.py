"""Somebody else's package, as text: a step, two cuts and what goes wrong with such classes."""

import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILES = {
    "__init__.py": "from .answers import LongAnswers\n",
    "answers.py": '''
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from etl.step import BatchFn, Step, append, drop, live

from .lengths import answer_chars


class LongAnswers(Step):
    """Drops rows whose answer is longer than `max_chars`."""

    version: ClassVar[int] = 2
    reads: ClassVar[tuple[str, ...]] = ("messages",)
    adds: ClassVar[pa.Schema] = pa.schema([pa.field("answer_chars", pa.int32())])
    max_chars: int = Field(default=2000, ge=1)

    def open(self) -> BatchFn:
        return self._mark

    def _mark(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        chars = pc.if_else(live(batch), answer_chars(batch), None)
        too_long = pc.greater(chars, self.max_chars)
        return append(drop(batch, self.label, too_long, "too_long", chars), self.adds, [chars])


class Idle(Step):
    pass


def shout(step):
    return step
''',
    "lengths.py": """
import pyarrow as pa


def answer_chars(batch: pa.RecordBatch) -> pa.Array:
    last = [messages[-1]["content"] or "" for messages in batch.column("messages").to_pylist()]
    return pa.array([len(text) for text in last], pa.int32())
""",
    "data/prompts.txt": "no source\n",
}
"""Path in the package -> text."""


def write_package(folder: Path, name: str = "acme_filters", **changed: str) -> Path:
    """The package in a folder; `changed` is more text at the end of its modules."""
    for path, text in FILES.items():
        file = folder / name / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + changed.get(path.removesuffix(".py"), ""), encoding="utf-8")
    return folder


def zipped(folder: Path, archive: Path) -> Path:
    """The .py files below a folder as `--py-files` takes them."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.py")):
            file.write(path, path.relative_to(folder).as_posix())
    return archive


@contextmanager
def importable(place: Path, *names: str) -> Iterator[None]:
    """Packages of a folder or a zip on sys.path within the block; forgotten after it."""
    sys.path.insert(0, str(place))
    try:
        yield
    finally:
        sys.path.remove(str(place))
        for module in [module for module in sys.modules if module.partition(".")[0] in names]:
            del sys.modules[module]
