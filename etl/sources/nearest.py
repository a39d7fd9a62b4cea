"""Which descriptions some rows fit: guesses, each tried on the rows, the best first.

A description is judged by what it makes of the rows, as ingest would: the share that becomes a conversation, whether
there are answers, and how much of the text is used. Costs some milliseconds a guess.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from etl.filters.blank import drop_blank
from etl.sources.attributes import attributes
from etl.sources.glance import Glance
from etl.sources.guesses import Tree, guesses, in_order
from etl.sources.leaves import Leaf, leaves_of, written
from etl.sources.paths import descend, parts_of
from etl.sources.prompts import INGEST, to_prompt
from etl.sources.raw import Bad, Lost, RawBatch, quarantine_nulls, text_of
from etl.sources.spec import Description, Shape
from etl.step import live

ROWS: Final = 100
"""So many rows a guess is tried on."""
FITS: Final = 0.95
"""Share of the rows from which on a description fits."""
_FEWEST: Final = 0.1
"""Share of the rows that have to be kept of a source with many blank ones."""
_LITTLE: Final = 0.2
"""Coverage below which another shape that fits as well is better."""
_BLANK: Final = ("blank_prompt", "blank_answer")
_UNDESIRABLE: Final = "undesirable"
"""A verdict of rows that were read as they should be."""


@dataclass
class Fit:
    """A description and what it makes of some rows."""

    tree: Tree
    """As the YAML file has it."""
    kept: int
    rows: int
    coverage: float
    """Share of the rows' text that stands in columns which the shape reads, `meta` aside."""
    lost: Counter[str] = field(default_factory=Counter)
    """By reason the rows that are no conversation."""
    how: str = ""
    """How the columns were found where their names say nothing."""

    @property
    def description(self) -> Description:
        return Description.model_validate(self.tree)

    @property
    def shape(self) -> Shape:
        return self.description.root

    @property
    def share(self) -> float:
        """Of the rows that become conversations."""
        return self.kept / max(1, self.rows)

    @property
    def fits(self) -> bool:
        """Whether nearly all rows can be read; a blank one can be, and is lost all the same."""
        blank = 0 if self.tree["shape"] == "transcript" else sum(map(self.lost.__getitem__, _BLANK))
        return self.kept + blank >= FITS * self.rows and self.share >= _FEWEST

    @property
    def reason(self) -> str:
        """In one line why."""
        lost = "".join(f", {count:,} {name}" for name, count in self.lost.most_common(3))
        read = ", ".join(self.shape.needed)
        return f"{self.tree['shape']} from {read}{self.how}: {self.kept:,} of {self.rows:,} rows{lost}"


def nearest(glance: Glance) -> list[Fit]:
    """The descriptions that make something of the rows of a glance, one a shape, the best first."""
    rows = glance.rows[:ROWS]
    if not rows:
        return []
    leaves = leaves_of(rows)
    found = _fits(guesses(leaves), rows, leaves)
    if not any(fit.fits and fit.coverage >= _LITTLE for fit in found):
        found = [*(replace(fit, how=", by their order") for fit in _fits(in_order(leaves), rows, leaves)), *found]
    return [replace(fit, tree=fit.tree | attributes(fit.tree, fit.shape, leaves)) for fit in found]


def _fits(trees: Iterable[Tree], rows: Sequence[Mapping[str, Any]], leaves: Sequence[Leaf]) -> list[Fit]:
    """What makes something of the rows, one a shape, the best first."""
    by_shape: dict[str, list[Fit]] = {}
    for tree in trees:
        fit = tried({**tree, "skill_bucket": "chat"}, rows, leaves)
        if fit is not None and fit.kept:
            by_shape.setdefault(tree["shape"], []).append(fit)
    # `max` and `sort` keep the order of the guesses among equals.
    found = [max(fits, key=_rank) for fits in by_shape.values()]
    found.sort(key=lambda fit: (*_rank(fit), fit.coverage >= _LITTLE), reverse=True)
    return found


def tried(tree: Tree, rows: Sequence[Mapping[str, Any]], leaves: Sequence[Leaf]) -> Fit | None:
    """What a description makes of some rows; None where it is no description."""
    try:
        shape = Description.model_validate(tree).root
    except ValidationError:
        return None
    batch, prompts = made_of(rows, shape)
    reasons = pc.struct_field(prompts.column("verdict"), "reason").drop_null().to_pylist()
    lost = Counter(bad.reason for bad in batch.bad) + Counter(reason for reason in reasons if reason != _UNDESIRABLE)
    kept = live(prompts).true_count + reasons.count(_UNDESIRABLE)
    return Fit(tree, kept, len(rows), _coverage(shape, leaves), lost)


def made_of(rows: Sequence[Mapping[str, Any]], shape: Shape) -> tuple[RawBatch, pa.RecordBatch]:
    """What ingest makes of some rows: those that could be read with their bad ones, and the former as PROMPT rows."""
    batch = _batch_of(rows, shape)
    quarantine_nulls(batch, shape)
    return batch, drop_blank(to_prompt(batch, shape, "probe", ""), INGEST, shape.has_answers)


def _batch_of(rows: Sequence[Mapping[str, Any]], shape: Shape) -> RawBatch:
    """Some rows as the reader of a format gives them, those of a wrong kind among its bad ones."""
    values = {path: [_at(row, path) for row in rows] for path in shape.columns}
    lost: dict[int, Lost] = {}
    columns = {}
    for path in shape.text_columns:
        texts = [text_of(value, path, path in shape.said) for value in values[path]]
        lost = {row: text for row, text in enumerate(texts) if isinstance(text, Lost)} | lost
        columns[path] = pa.array([None if isinstance(text, Lost) else text for text in texts], pa.string())
    for path in shape.meta:
        kept = [None if value is None else written(value) or None for value in values[path]]
        columns.setdefault(path, pa.array(kept, pa.binary()))
    positions = pa.array(range(len(rows)), pa.int64())
    batch = RawBatch(columns, positions, {path: values[path] for path in shape.nested})
    batch.bad += [Bad(row, why.reason, why.detail, b"") for row, why in lost.items()]
    good = [row not in lost for row in range(len(rows))]
    batch.keep(pa.array(good, pa.bool_()).to_numpy(zero_copy_only=False))
    return batch


def _at(row: Mapping[str, Any], path: str) -> Any:
    return row[path] if path in row else descend(row, parts_of(path))


def _coverage(shape: Shape, leaves: Sequence[Leaf]) -> float:
    sizes = {leaf.path: leaf.size for leaf in leaves}
    whole = sum(sizes[leaf.path] for leaf in leaves if leaf.depth == 0)
    read = {path.partition(".*")[0] for path in (*shape.said, *shape.written, *shape.nested)}
    return sum(sizes.get(path, 0) for path in read) / max(1, whole)


def _rank(fit: Fit) -> tuple[bool, bool, int, int]:
    return fit.fits, fit.share >= _FEWEST, _answers(fit.shape), round(20 * fit.share)


def _answers(shape: Shape) -> int:
    if shape.shape == "text":
        return 0
    return 2 if shape.has_answers else 1
