"""Chooses the rows of a corpus that a teacher scores: a share of its tokens, long and hard rows of every cell first.

The budget (a fraction of the tokens of all rows) is shared among the cells: `balanced` gives each the same and what a
small cell cannot use to the others, `proportional` gives each its own share. Inside a cell rows come in the order of

    difficulty_weight · z(difficulty) + length_weight · z(log2(1 + supervised tokens))

where z is the distance from the cell's mean in standard deviations, and a row without a difficulty counts as average;
ties are broken by a hash of the id. The rows up to a threshold of that order are taken, as near to the cell's budget as
whole rows come. The choice depends on the rows alone, so a worker repeats it for its own from the thresholds.

The driver holds 25 bytes a row while it chooses (100 million rows: 2.5 GB) and sorts one cell at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from etl.arrays import F64
from etl.config import Config


class SubsetConfig(Config):
    """Which part of a corpus to score."""

    fraction: float = Field(default=0.2, gt=0, le=1)
    """Fraction of the tokens of all rows."""
    shares: Literal["balanced", "proportional"] = "balanced"
    """How cells share the budget."""
    cells: tuple[str, ...] = ("skill_bucket", "ctx_bucket")
    """What defines a cell: text columns, or folders of the corpus."""
    difficulty: tuple[str, ...] = ("difficulty_proxy", "ifd", "utility_score", "sampling_weight")
    """The first of these columns with a value in the corpus is the difficulty; higher means harder."""
    difficulty_weight: float = 1.0
    """Weight of a row's difficulty in the choice."""
    length_weight: float = 1.0
    """Weight of a row's length in the choice."""
    min_supervised_tokens: int = Field(default=1, ge=1)
    """Rows with fewer supervised tokens are not scored."""


@dataclass(frozen=True)
class RowColumns:
    """What the choice needs of some rows, all [rows]."""

    id_hash: npt.NDArray[np.uint64]
    cell: npt.NDArray[np.int32]
    """Position in a list of cells."""
    num_tokens: npt.NDArray[np.int32]
    supervised: npt.NDArray[np.int32]
    difficulty: npt.NDArray[np.float32]
    """NaN where there is none."""

    @classmethod
    def concatenate(cls, pieces: Sequence["RowColumns"]) -> "RowColumns":
        """The rows of all pieces (at least one), in order."""
        names = ("id_hash", "cell", "num_tokens", "supervised", "difficulty")
        return cls(*(np.concatenate([getattr(piece, name) for piece in pieces]) for name in names))


class Cell(Config):
    """How one cell is cut, and what that comes to."""

    rows: int
    tokens: int
    budget_tokens: int
    chosen_rows: int
    chosen_tokens: int
    length: tuple[float, float]
    """Mean and standard deviation of log2(1 + supervised tokens)."""
    difficulty: tuple[float, float]
    """Mean and standard deviation of those that there are."""
    threshold: tuple[float, int] | None = None
    """Score and hash of the last row that is taken; None where none is."""


def choose(rows: RowColumns, cells: Sequence[str], config: SubsetConfig) -> dict[str, Cell]:
    """Cut every cell.

    Args:
        rows: all rows of the corpus, in any order.
        cells: names of the cells, by the numbers in `rows.cell`.
        config: what is preferred, and how much is taken.
    """
    tokens = np.bincount(rows.cell, rows.num_tokens, minlength=len(cells)).astype(np.int64)
    budgets = _budgets(tokens, config)
    order = np.argsort(rows.cell, kind="stable")
    borders = np.searchsorted(rows.cell[order], np.arange(len(cells) + 1))
    return {
        name: _cut(_select(rows, order[borders[number] : borders[number + 1]]), int(budgets[number]), config)
        for number, name in enumerate(cells)
    }


def chosen(
    rows: RowColumns, cells: Sequence[str], cuts: dict[str, Cell], config: SubsetConfig
) -> npt.NDArray[np.bool_]:
    """[rows]: whether a row is taken."""
    out = np.zeros(len(rows.cell), bool)
    for number in np.unique(rows.cell).tolist():
        mine = np.flatnonzero(rows.cell == number)
        cut = cuts[cells[number]]
        if cut.threshold is not None:
            some = _select(rows, mine)
            score, limit = _scores(some, cut.length, cut.difficulty, config), cut.threshold[0]
            ties = (score == limit) & (some.id_hash <= np.uint64(cut.threshold[1]))
            out[mine] = ((score > limit) | ties) & (some.supervised >= config.min_supervised_tokens)
    return out


def _select(rows: RowColumns, numbers: npt.NDArray[np.intp]) -> RowColumns:
    return RowColumns(
        rows.id_hash[numbers],
        rows.cell[numbers],
        rows.num_tokens[numbers],
        rows.supervised[numbers],
        rows.difficulty[numbers],
    )


def _budgets(tokens: npt.NDArray[np.int64], config: SubsetConfig) -> npt.NDArray[np.int64]:
    """[cells]: how many tokens to take of each."""
    if config.shares == "proportional":
        return np.round(tokens * config.fraction).astype(np.int64)
    left = round(int(tokens.sum()) * config.fraction)
    out = np.zeros(len(tokens), np.int64)
    # From the smallest cell on, each gets an equal share of the rest, or all that it has.
    for place, cell in enumerate(np.argsort(tokens, kind="stable").tolist()):
        out[cell] = min(int(tokens[cell]), round(left / (len(tokens) - place)))
        left -= int(out[cell])
    return out


def _cut(rows: RowColumns, budget: int, config: SubsetConfig) -> Cell:
    known = rows.difficulty[~np.isnan(rows.difficulty)]
    length, difficulty = _spread(_length(rows)), _spread(known.astype(np.float64))
    score = _scores(rows, length, difficulty, config)
    able = np.flatnonzero(rows.supervised >= config.min_supervised_tokens)
    order = able[np.lexsort((rows.id_hash[able], -score[able]))]
    sums = np.cumsum(rows.num_tokens[order], dtype=np.int64)
    count = int(np.searchsorted(sums, budget, side="right"))
    if count < len(sums) and int(sums[count]) - budget < budget - (int(sums[count - 1]) if count else 0):
        count += 1
    last = order[count - 1] if count else 0
    return Cell(
        rows=len(rows.cell),
        tokens=int(rows.num_tokens.sum(dtype=np.int64)),
        budget_tokens=budget,
        chosen_rows=count,
        chosen_tokens=int(sums[count - 1]) if count else 0,
        length=length,
        difficulty=difficulty,
        threshold=(float(score[last]), int(rows.id_hash[last])) if count else None,
    )


def _scores(
    rows: RowColumns, length: tuple[float, float], difficulty: tuple[float, float], config: SubsetConfig
) -> F64:
    """float64 [rows]; a row's value does not depend on other rows."""
    hard = np.nan_to_num(_z(rows.difficulty.astype(np.float64), difficulty), nan=0.0)
    return np.round(config.difficulty_weight * hard + config.length_weight * _z(_length(rows), length), 9)


def _length(rows: RowColumns) -> F64:
    return np.log2(1.0 + rows.supervised)


def _z(values: F64, spread: tuple[float, float]) -> F64:
    mean, deviation = spread
    return (values - mean) / deviation if deviation > 0 else np.where(np.isnan(values), np.nan, 0.0)


def _spread(values: F64) -> tuple[float, float]:
    """Mean and standard deviation, rounded so that they do not depend on the order of the rows."""
    if not len(values):
        return 0.0, 0.0
    return round(float(np.mean(values)), 9), round(float(np.std(values)), 9)
