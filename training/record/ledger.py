"""The ledger of trained tokens: what was trained, by source, skill bucket, context bucket and licence.

Each rank adds the packs of the steps that it took; a checkpoint holds the sum over all ranks. A run that resumes gives
that sum to rank 0 and nothing to the others, so it stays exact for any number of ranks, and what was trained after the
checkpoint and is about to be trained again is not counted twice. A document that is trained in two epochs counts twice.
Costs two bincounts a pack.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from etl.storage.location import Location
from training.data.collate import UNSUPERVISED, Pack

KEYS = ("source_dataset", "skill_bucket", "ctx_bucket", "license")
COUNTS = ("documents", "tokens", "supervised_tokens")

Label = tuple[str | None, ...]
"""In the order of KEYS; None where the corpus does not say."""

Rows = list[dict[str, Any]]
"""A ledger in JSON types: one row a label with the fields of KEYS and COUNTS, sorted by label."""


class Ledger:
    """The part of one rank."""

    def __init__(self, rows: Rows) -> None:
        """Begins with what a checkpoint holds (on one rank of the run), or with no rows."""
        self._totals = _totals([rows])

    def add(self, packs: Iterable[Pack], labels: Sequence[Label]) -> None:
        """Count the packs of a step that was taken; `labels` are those that `Pack.label` numbers."""
        counts = np.zeros((len(labels), len(COUNTS)), np.int64)
        for pack in packs:
            np.add.at(counts, pack.label, document_counts(pack))
        for number in np.flatnonzero(counts[:, 0]):
            label = tuple(labels[int(number)])
            self._totals[label] = self._totals.get(label, 0) + counts[number]

    def rows(self) -> Rows:
        """What this rank has counted."""
        return _rows(self._totals)


def document_counts(pack: Pack) -> npt.NDArray[np.int64]:
    """int64 [documents, COUNTS] of a pack."""
    num = len(pack.id_hash)
    supervised = np.bincount(pack.document[pack.target_kind != UNSUPERVISED], minlength=num)
    return np.stack([np.ones(num, np.int64), np.diff(pack.cu_seqlens)[:num].astype(np.int64), supervised], axis=1)


def merge(parts: Iterable[Rows]) -> Rows:
    """The sum of the ledgers of several ranks."""
    return _rows(_totals(parts))


def write(path: str | Path, rows: Rows) -> None:
    """Replace the file with a ledger: JSON, an object with `total` (COUNTS) and `rows`."""
    total = {name: sum(row[name] for row in rows) for name in COUNTS}
    Location.of(path).replace((json.dumps({"total": total, "rows": rows}, indent=1) + "\n").encode())


def _totals(parts: Iterable[Rows]) -> dict[Label, npt.NDArray[np.int64]]:
    totals: dict[Label, npt.NDArray[np.int64]] = {}
    for row in (row for rows in parts for row in rows):
        label = tuple(row[key] for key in KEYS)
        totals[label] = totals.get(label, 0) + np.array([row[name] for name in COUNTS], np.int64)
    return totals


def _rows(totals: dict[Label, npt.NDArray[np.int64]]) -> Rows:
    def order(label: Label) -> list[tuple[bool, str]]:
        return [(word is not None, word or "") for word in label]

    return [
        {**dict(zip(KEYS, label, strict=True)), **dict(zip(COUNTS, totals[label].tolist(), strict=True))}
        for label in sorted(totals, key=order)
    ]
