"""What a run sees of a source before its rows are read: the heads of a few files.

It tells which columns the description never names, and whether the first rows become conversations. Costs a few
milliseconds and the heads of FILES files, on the driver.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from etl.sources.assemble.raw_rows import raw_rows
from etl.sources.files import InputFile
from etl.sources.glance import Glance, glance
from etl.sources.nearest import made_of, nearest
from etl.sources.paths import root_of
from etl.sources.probe import shipped_as
from etl.sources.spec import Shape, Source
from etl.step import live
from etl.storage.remote import Storage

FILES: Final = 3
ROWS: Final = 20
_NAMES: Final = 12
"""So many columns are named in a line."""


@dataclass(frozen=True)
class Look:
    """What the first rows of some files show."""

    rows: tuple[Mapping[str, Any], ...]
    columns: tuple[str, ...]
    """Those of the rows and of the folders above the files."""
    unused: tuple[str, ...]
    """Those that the description never names."""
    lacks: tuple[str, ...]
    """What the description needs and no row has."""
    is_sound: bool
    """Whether every row that was seen could be read, and one of them at least becomes a conversation."""

    @property
    def near(self) -> str:
        """The columns, and the description that reads the rows, in words; empty where there are no rows."""
        if not self.rows:
            return ""
        fits = nearest(Glance("", list(map(dict, self.rows))))
        seen = f"the rows have the columns {names(self.columns)}"
        if not fits:
            return f"{seen}; no description is similar, see docs/reference/sources.md"
        # What is kept in meta_json alone is no matter for the rows to be read.
        bare = {key: value for key, value in fits[0].tree.items() if key != "meta"}
        spec = shipped_as(replace(fits[0], tree=bare)) or json.dumps(bare, ensure_ascii=False)
        return f"{seen}; the nearest description is {spec} ({fits[0].reason})"


UNSEEN: Final = Look((), (), (), (), is_sound=True)
"""Of a source that is not looked at."""


def look(source: Source, shape: Shape, files: Sequence[InputFile], storage: Storage) -> Look:
    """The heads of the first, the middle and the last file of a source.

    Args:
        source: that is read.
        shape: its description.
        files: of the source, in their order.
        storage: the recipe's options by scheme.
    """
    chosen = list(dict.fromkeys([files[0], files[len(files) // 2], files[-1]] if files else []))[:FILES]
    seen = [glance(source.locate(file.url, storage), _format(source, file), ROWS) for file in chosen]
    rows = tuple(file.partitions | row for file, found in zip(chosen, seen, strict=True) for row in found.rows)
    columns = dict.fromkeys(itertools.chain.from_iterable((*found.without_json, *_keys(found.rows)) for found in seen))
    columns |= dict.fromkeys(name for file in chosen for name in file.partitions)
    read = shape if shape.assemble is None else raw_rows(shape)
    used = {root_of(path, set(columns)) for path in read.columns}
    needed = dict.fromkeys(root_of(path, set(columns)) for path in read.required)
    could_be_read = not any(found.unread or found.damage for found in seen)
    return Look(
        rows,
        tuple(columns),
        tuple(name for name in columns if name not in used),
        tuple(name for name in needed if rows and name not in columns),
        could_be_read and (shape.assemble is not None or _are_sound(rows, shape)),
    )


def names(columns: Sequence[str]) -> str:
    """`a, b, c`; of many the first."""
    more = f" and {len(columns) - _NAMES} more" if len(columns) > _NAMES else ""
    return ", ".join(columns[:_NAMES]) + more


def _format(source: Source, file: InputFile) -> str:
    kind = source.format_of(file.relative)
    assert kind is not None, file.relative
    return kind


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(itertools.chain.from_iterable(rows)))


def _are_sound(rows: Sequence[Mapping[str, Any]], shape: Shape) -> bool:
    """Whether a description makes something of all rows, and an example of one at least."""
    batch, prompts = made_of(rows, shape)
    return not batch.bad and live(prompts).true_count > 0
