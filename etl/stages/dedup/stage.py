"""The stage `dedup`: exact duplicates, repeated units of text, then near ones among what is left.

The modules exact, units, near and clusters in this folder do the work; this file sets their order. The report by
source, with the overlap of sources, is in the manifest of the last table, DIR/clusters or, without near dedup,
DIR/exact, under `findings.sources`.
"""

import math
from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import model_validator

from etl.dedup.near import NearDedup
from etl.dedup.survivor import Survivor
from etl.dedup.units import UnitDedup
from etl.rows import Rows
from etl.schema import CLUSTER_COLUMNS
from etl.stages.context import Context
from etl.stages.dedup import conversations
from etl.stages.dedup.clusters import cluster, tell_kinds, write_clusters
from etl.stages.dedup.conversations import give_turns_back, hold_turns
from etl.stages.dedup.exact import ExactDedup, exact
from etl.stages.dedup.units import dedup_units, unit_counts
from etl.stages.stage import Stage
from etl.step import prefixed

_EXACT = {"exact_hits": "LOSER", "exact": "VERDICT"}
_NEAR = {
    "candidates": "MET", "edges": "EDGE", "sets": "SET", "pairs": "PAIR", "components": "LABEL", "near_hits": "HIT",
    "near": "CLUSTER", "clusters": "KEPT",
}  # fmt: skip
_ROUNDS = {
    "candidate_components": "LABEL", "rounds/edges-nodes": "NODE", "rounds/edges-chunks": "CHUNK",
    "rounds/edges-ends": "END", "rounds/candidate_components": "TIE", "rounds/components": "TIE",
}  # fmt: skip
"""Folders of near dedup above run.max_component_edges pairs; the last two are numbered."""


def _units(kind: str) -> dict[str, str]:
    return {f"{kind}_hits": "UNIT_HIT", kind: "UNITS"}


class Dedup(Stage):
    """Which duplicates to look for; null turns a kind off."""

    kind: Literal["dedup"] = "dedup"
    purpose: ClassVar[str] = "Drop exact duplicates, repeated units of raw text and near duplicates."
    example: ClassVar[str] = "{kind: dedup, exact: {}, near: {threshold: 0.8}}"
    tables: ClassVar[Mapping[str, str]] = {
        **_EXACT, **_units("paragraph"), **_units("line"), **_units("sentence"), **_NEAR, **_ROUNDS,
        **conversations.FOLDERS,
    }  # fmt: skip

    survivor: Survivor = Survivor()
    """Which row of a group of duplicates is kept."""
    exact: ExactDedup | None = ExactDedup()
    """Exact duplicates, by content or by row; null keeps them."""
    units: tuple[UnitDedup, ...] = ()
    """Repeated paragraphs, lines or sentences of raw documents, in this order; runs between exact and near."""
    near: NearDedup | None = NearDedup()
    """Near duplicates, found by MinHash and verified; null keeps them."""

    @model_validator(mode="after")
    def _units_are_distinct(self) -> "Dedup":
        kinds = [units.unit for units in self.units]
        twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
        if twice:
            raise ValueError(f"units lists {twice} more than once; each kind of unit has one folder of its own")
        return self

    def folders(self) -> dict[str, str]:
        found = dict(_EXACT) if self.exact is not None else {}
        for units in self.units:
            found |= _units(units.unit)
        found |= _NEAR if self.near is not None else {}
        return {self.named(folder): table for folder, table in found.items()}

    def folders_by_rows(self) -> dict[str, str]:
        by_pairs = {"candidate_components": "LABEL"} if self.near is not None else {}
        return {self.named(folder): table for folder, table in {**by_pairs, **conversations.FOLDERS}.items()}

    def step_labels(self) -> tuple[str, ...]:
        # Both ends, whatever is left out: DIR/dropped has them in its fingerprint.
        return tuple(self.named(step) for step in ("exact", *(units.unit for units in self.units), "near"))

    def _searches(self) -> tuple[str, ...]:
        """Labels of the steps that look for duplicates, in their order."""
        exact, near = (["exact"] if self.exact else []), (["near"] if self.near else [])
        return tuple(self.named(step) for step in (*exact, *(units.unit for units in self.units), *near))

    @property
    def added(self) -> pa.Schema:
        counts = [unit_counts(units) for units in self.units]
        clusters = CLUSTER_COLUMNS if self.near is not None else ()
        return prefixed(self.name, pa.schema([*counts, *clusters]))

    def output_schema(self, schema: pa.Schema) -> pa.Schema:
        self.survivor.check(schema)
        return pa.schema([*schema, *self.added])

    def check_sources(self, known: Collection[str]) -> None:
        self.survivor.check_sources(self.label, known)

    def for_sample(self, share: float) -> "Dedup":
        """The stage with fewer canaries; scaled up again, they are as many as those of the whole."""
        if self.near is None:
            return self
        fewer = self.near.model_copy(update={"num_canaries": math.ceil(self.near.num_canaries * share)})
        return self.model_copy(update={"near": fewer})

    def run(self, context: Context, rows: Rows) -> Rows:
        """Mark duplicates."""
        rows, turns = hold_turns(context, rows)
        kinds = []
        if self.exact is not None:
            rows, counts = exact(context, rows, self.exact, self.survivor)
            kinds.append(counts)
        for units in self.units:
            rows = dedup_units(context, rows, units, self.survivor)
        if self.near is not None:
            rows, near_counts = cluster(context, rows, self.near, self.survivor)
            write_clusters(context, rows, lambda: [*kinds, near_counts()])
        elif kinds:
            tell_kinds(context, kinds)
        return rows if turns is None else give_turns_back(context, rows, turns, self._searches())
