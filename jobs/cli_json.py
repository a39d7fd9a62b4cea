"""What commands print with --json: one object each, with the fields that docs/reference/contract.md lists."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from etl.storage.location import Location
from etl.storage.opened import Run
from etl.storage.sweep import Leftover
from etl.storage.verify import Difference

if TYPE_CHECKING:
    from etl.run.estimate import Estimate
    from etl.run.plan import PlannedStage, RunPlan
    from etl.run.run import RunResult


def of_run(result: "RunResult") -> dict[str, Any]:
    """What a run came to."""
    corpus, costs = result.corpus, result.costs
    return {
        "nothing_to_do": result.had_nothing_to_do,
        "stages": [asdict(stage) for stage in result.stages],
        "dropped": {"folder": result.dropped.folder.url, "rows": result.dropped.manifest.rows_out},
        "corpus": None
        if corpus is None
        else {
            "folder": corpus.folder.url,
            "rows": corpus.manifest.rows_out,
            "tokens": corpus.manifest.num_tokens,
            "content_digest": corpus.manifest.content_digest,
        },
        "core_hours": None if costs is None else costs.core_hours,
    }


def of_plan(plan: "RunPlan", predicted: "Estimate | None") -> dict[str, Any]:
    """What a run would do, and what a sample predicts of it."""
    return {
        "inputs": [asdict(size) for size in plan.inputs],
        "datasets": [_planned(one) for one in plan.stages],
        "stale": [one.stage for one in plan.stale],
        "predicted": None if predicted is None else asdict(predicted),
    }


def _planned(one: "PlannedStage") -> dict[str, Any]:
    return {"stage": one.label, "folder": one.stage, "action": one.action, "reasons": list(one.reasons)}


def of_verify(run: Run, differences: Sequence[Difference]) -> dict[str, Any]:
    """What is not as manifests say."""
    return {
        "datasets": list(run.committed),
        "num_damages": sum(item.is_damage for item in differences),
        "differences": [asdict(item) for item in differences],
    }


def of_sweep(root: Location, leftovers: Sequence[Leftover], is_removed: bool) -> dict[str, Any]:
    """What may go, or has gone."""
    return {
        "root": root.url,
        "removed": is_removed,
        "bytes": sum(item.bytes for item in leftovers),
        "leftovers": [{"path": one.path, "bytes": one.bytes, "age_s": one.age_s, "why": one.why} for one in leftovers],
    }
