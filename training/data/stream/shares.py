"""Token shares: patterns over cells, and which group of documents each cell belongs to.

`{"B1/C1": 0.2, "*/C2": 0.5}` gives 0.2 / 0.7 of the tokens to the cell B1/C1 and 0.5 / 0.7 to all cells in C2 together,
whose documents stand in one group. A cell belongs to the pattern that names it most exactly (most characters that are
not wildcards, so the order in a file never matters); a cell that none names, or one with the share 0, is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from etl.errors import ConfigError


@dataclass(frozen=True)
class Groups:
    """What a stream takes documents from, and in what proportion."""

    patterns: tuple[str, ...]
    """Sorted; those with the share 0 left out."""
    shares: tuple[float, ...]
    """Of each pattern; they sum to 1."""
    of_cell: npt.NDArray[np.int64]
    """[cells]: position in `patterns`, -1 for a cell that is left out."""

    @classmethod
    def of(cls, shares: Mapping[str, float] | None, cells: Sequence[str]) -> "Groups":
        """The groups of some cells; one group of all without shares.

        Raises:
            ConfigError: a pattern names no cell, or two name one cell equally exactly.
        """
        if shares is None:
            return cls(("*",), (1.0,), np.zeros(len(cells), np.int64))
        owner = [_owner(cell, list(shares)) for cell in cells]
        for pattern in shares:
            if pattern not in owner:
                raise ConfigError(
                    f"the pattern '{pattern}' of data.shares matches no remaining cell; the corpus has "
                    f"{', '.join(cells)}"
                )
        patterns = tuple(sorted(pattern for pattern, share in shares.items() if share > 0))
        total = sum(shares[pattern] for pattern in patterns)
        position = {pattern: number for number, pattern in enumerate(patterns)}
        of_cell = [-1 if pattern is None else position.get(pattern, -1) for pattern in owner]
        return cls(patterns, tuple(shares[pattern] / total for pattern in patterns), np.array(of_cell, np.int64))

    def check_rows(self, cells: Mapping[str, int], num_lanes: int) -> None:
        """Refuse a group that cannot reach every lane.

        Raises:
            ConfigError: it has fewer documents than there are lanes.
        """
        for number, pattern in enumerate(self.patterns):
            rows = sum(count for group, count in zip(self.of_cell, cells.values(), strict=True) if group == number)
            if rows < num_lanes:
                raise ConfigError(
                    f"data.shares gives '{pattern}' {self.shares[number]:.4g} of the tokens, but the corpus has {rows} "
                    f"documents there for {num_lanes} lanes; set data.lanes to {rows} or fewer, or data.on_exhausted "
                    "to redistribute"
                )


def _owner(cell: str, patterns: list[str]) -> str | None:
    """The pattern that names a cell most exactly."""
    naming = sorted((p for p in patterns if fnmatchcase(cell, p)), key=_exactness)
    if len(naming) > 1 and _exactness(naming[-1]) == _exactness(naming[-2]):
        raise ConfigError(
            f"the patterns '{naming[-2]}' and '{naming[-1]}' of data.shares both match the cell {cell}; add "
            f"'{cell}' with a share of its own"
        )
    return naming[-1] if naming else None


def _exactness(pattern: str) -> int:
    return sum(character not in "*?[]" for character in pattern)
