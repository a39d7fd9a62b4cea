"""Duplicates: exact ones, repeated units of text, then near ones among what is left; what sources have in common.

exact, units, near and clusters beside this file do the work; here is their order. The report by source is in the
manifest of the last table, DIR/clusters or, without near dedup, DIR/exact, under `findings.sources`.
"""

from etl.dedup import by_source
from etl.rows import Rows
from etl.stages.context import Context
from etl.stages.dedup.clusters import cluster, write_clusters
from etl.stages.dedup.exact import exact
from etl.stages.dedup.units import dedup_units


def dedup(context: Context, rows: Rows) -> Rows:
    """Mark duplicates."""
    section = context.recipe.dedup
    kinds = []
    if section.exact is not None:
        rows, counts = exact(context, rows, section.exact)
        kinds.append(counts)
    for units in section.units:
        rows = dedup_units(context, rows, units, section.survivor)
    if section.near is not None:
        rows, counts = cluster(context, rows, section.near)
        kinds.append(counts)
        write_clusters(context, rows, kinds)
    for line in by_source.lines(by_source.by_source(kinds)) if kinds else ():
        context.report(f"{'dedup':>24}  {line}")
    return rows
