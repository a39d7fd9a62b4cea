"""Duplicates: exact ones, then near ones among those that are left, and what the sources have in common.

etl.stages.exact, etl.stages.near and etl.stages.clusters do the work; here is their order and the report by source.
"""

from etl.stages.clusters import cluster, write_clusters
from etl.stages.context import Context
from etl.stages.exact import exact
from etl.stages.units import dedup_units
from etl.storage.aligned import Rows

SUBSET_SHARE = 0.95
"""Share of a source that stands in another one from which on it is called a subset of it."""


def dedup(context: Context, rows: Rows) -> Rows:
    """Mark duplicates."""
    section = context.recipe.dedup
    if section.exact is not None:
        rows = exact(context, rows, section.exact)
    for units in section.units:
        rows = dedup_units(context, rows, units, section.survivor)
    if section.near is not None:
        rows = cluster(context, rows, section.near)
        write_clusters(context, rows)
    return rows
