"""How often a corpus has each kind of span, for the floor of losses that are normalised by kind.

The counts are those of the corpus's manifest (`distributions.supervised`). A corpus that was laid out before they were
kept, or by somebody else, is counted by the narrow columns n_analysis, n_commentary, … in one pass over them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import F64, I64
from etl.schema import SPAN_KINDS
from etl.storage.dataset import Dataset
from etl.storage.manifest import Manifest, Part
from training.data.footers import read_columns

_COLUMNS = tuple(f"n_{kind}" for kind in SPAN_KINDS)


@dataclass(frozen=True)
class SpanRates:
    """What one token of a corpus brings on average."""

    per_token: F64
    """[2 * kinds]: supervised tokens of each kind, then documents that have some."""

    @classmethod
    def of(cls, counts: I64, num_tokens: int) -> "SpanRates":
        """From the counts [2 * kinds] over this many tokens."""
        return cls(counts / max(num_tokens, 1))

    def expected(self, num_tokens: int) -> F64:
        """[2 * kinds]: the average counts of this many tokens."""
        return self.per_token * num_tokens


def told(manifest: Manifest, split: str) -> I64 | None:
    """The counts [2 * kinds] of a split in a corpus's manifest; None where they are not there or not of all rows.

    They are not of all rows where a layout that an earlier version began was finished by a later one.
    """
    found = manifest.counts("supervised", levels=3).get(split) if "supervised" in manifest.distributions else None
    if found is None:
        return None
    counts = np.array(
        [found.get(kind, {}).get(what, 0) for what in ("tokens", "documents") for kind in SPAN_KINDS], np.int64
    )
    cells: dict[str, Any] = manifest.counts("cells", levels=4).get(split, {})
    total = sum(cell.get("supervised_tokens", 0) for contexts in cells.values() for cell in contexts.values())
    return counts if counts[: len(SPAN_KINDS)].sum() == total else None


def counted(dataset: Dataset, parts: Sequence[Part]) -> I64:
    """The counts [2 * kinds] of some parts, and behind them their tokens, from narrow columns.

    Raises:
        DataError: a part is missing, of another size than the manifest's, or damaged.
    """
    columns = _COLUMNS if set(_COLUMNS) <= set(dataset.schema.names) else ("spans",)
    total = np.zeros(2 * len(SPAN_KINDS) + 1, np.int64)
    for part in parts:
        dataset.check_part(part)
        with dataset.part_location(part).open_parquet() as file:
            for group in range(file.metadata.num_row_groups):
                table = read_columns(file, dataset, part, group, ["n_tokens", *columns])
                by_kind = _by_row(table)
                num_tokens = pc.sum(table.column("n_tokens")).as_py() or 0
                total += np.concatenate([by_kind.sum(axis=1), (by_kind > 0).sum(axis=1), [num_tokens]])
    return total


def _by_row(table: pa.Table) -> I64:
    """Tokens in spans of each kind: [kinds, rows]."""
    if "spans" not in table.column_names:
        named = [pc.fill_null(table.column(name), 0).to_numpy() for name in _COLUMNS]
        return np.stack(named).astype(np.int64)
    spans = pa.chunked_array(table.column("spans")).combine_chunks()
    flat = spans.flatten()
    kinds = pc.fill_null(pc.index_in(flat.field("kind"), value_set=pa.array(SPAN_KINDS)), -1).to_numpy()
    lengths = pc.subtract(flat.field("end"), flat.field("start")).to_numpy()
    rows = pc.list_parent_indices(spans).to_numpy()
    return np.stack(
        [np.bincount(rows, lengths * (kinds == kind), len(spans)) for kind in range(len(SPAN_KINDS))]
    ).astype(np.int64)
