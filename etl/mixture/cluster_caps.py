"""How many rows of a cluster an epoch uses, and the share of its tokens that is kept for rare clusters.

A cluster numbers its rows by rank, 0 … size − 1 (the columns semantic_cluster_rank and semantic_cluster_size of the
corpus). With a cap of c, epoch e uses the c ranks from e · c on, wrapping round the cluster: at most c rows a cluster
and epoch in all lanes together, the best-ranked ones first, and every row once in ⌈size / c⌉ epochs. Each function
takes parallel arrays and looks at each row by itself, except for the order of the tail, which is one sort: 10 to 100
million rows a second.
"""

import numpy as np
from pydantic import Field, model_validator

from etl.arrays import I64, Bools
from etl.config import Config


class ClusterCaps(Config):
    """Limits on the rows that a cluster contributes to an epoch."""

    cap: int | None = Field(default=None, ge=1)
    """Largest number of rows of a cluster per epoch; null: all."""
    rare_size: int = Field(default=2, ge=1)
    """Clusters of at most this many rows are rare."""
    tail_share: float = Field(default=0.0, ge=0, lt=1)
    """Smallest share of the tokens that rare clusters get, from the start of the epoch until no rare row is left."""

    @model_validator(mode="after")
    def _does_something(self) -> "ClusterCaps":
        if self.cap is None and self.tail_share == 0:
            raise ValueError("neither cap nor tail_share is set; set one, or remove the section")
        return self


def in_turn(size: I64, rank: I64, epoch: int, cap: int) -> Bools:
    """Which rows an epoch uses: bool [rows].

    Args:
        size: rows of each row's cluster, at least 1.
        rank: place in the cluster, 0 … size − 1, different for each of its rows.
        epoch: from 0.
        cap: rows of a cluster that an epoch uses.
    """
    return (rank - epoch * cap) % size < cap


def first_epoch(rank: I64, cap: int) -> I64:
    """The first epoch that uses each row: int64 [rows]."""
    return rank // cap


def next_epoch(size: I64, rank: I64, epoch: I64 | int, cap: int) -> I64:
    """The first epoch after `epoch` that uses each of these rows, which `epoch` uses: int64 [rows]."""
    place = (rank - epoch * cap) % size
    return epoch + np.where(size > cap, (place + size) // cap, 1)


def with_tail(order: I64, num_tokens: I64, rare: Bools, share: float) -> I64:
    """The same rows, with rare ones moved ahead just far enough to have their share from the start: int64 [rows].

    Before each common row, rare rows have at least `share` of the tokens up to that point, until no rare row is left.
    Rows of one kind keep their order, and nothing moves where rare rows already have more than their share.

    Args:
        order: row numbers, first to last.
        num_tokens: of each row number, at least 1.
        rare: whether each row number is of a rare cluster.
        share: 0 <= share < 1.
    """
    if share == 0:
        return order
    is_rare, tokens = rare[order], num_tokens[order]
    common = np.cumsum(np.where(is_rare, 0, tokens)) - np.where(is_rare, 0, tokens)
    reserved = np.cumsum(np.where(is_rare, tokens, 0)) - np.where(is_rare, tokens, 0)
    # A place is counted in tokens of common rows: as many as may come before the row.
    place = np.where(is_rare, np.minimum(common, reserved * ((1 - share) / share)), common)
    return order[np.lexsort((np.arange(len(order)), ~is_rare, place))]
