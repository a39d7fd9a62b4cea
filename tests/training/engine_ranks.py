"""One rank of a run over several processes, as test_precision.py starts them; rank 0 writes what it found as JSON.

torchrun --standalone --nproc_per_node 2 --module tests.training.engine_ranks OUT STAGE…
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from tests.training import precision
from training.engine.engine import Engine
from training.launch.process_group import world
from training.launch.world import World
from training.losses.objective import LossOutput, StepContext
from training.losses.router import RouterConfig

LINEAR = RouterConfig(aux_coefficient=0.0, z_coefficient=0.001)
"""The z-loss is a sum over tokens; the load-balancing loss is not linear, it belongs to the global micro-batch."""
STEPS = 4


def global_batches() -> list[list[Any]]:
    """Six packs a step, so that 1, 2 and 3 ranks have the same number each."""
    return precision.batches(STEPS, 6)


class SpoiltOnRank1:
    """Cross-entropy that is NaN on rank 1, once."""

    def __init__(self, rank: int) -> None:
        self.addend = math.nan if rank == 1 else 0.0

    def loss(self, head: Any, hidden: torch.Tensor, batch: Any, step: StepContext) -> LossOutput:
        found = precision.OBJECTIVE.loss(head, hidden, batch, step)
        return LossOutput(found.total + self.addend, found.sums)


def collectives(here: World) -> dict[str, Any]:
    mine = torch.tensor([here.rank, 1.0], dtype=torch.float64)
    return {
        "sum": here.sum(mine).tolist(),
        "max": here.max(mine).tolist(),
        "any": [here.any(here.rank == 1), here.any(False)],
        "gather": here.gather({"rank": here.rank}),
    }


def fault(here: World, stage: int) -> dict[str, Any]:
    """A loss that is NaN on one rank only."""
    packs = global_batches()[0]
    engine = Engine(precision.module(), precision.OPTIMIZER, precision.deepspeed_json("fp32", stage), here, 2)
    before = precision.full_parameters(engine)
    mine = [pack.tensors(here.device) for pack in packs[here.rank :: here.size]]
    objective: Any = SpoiltOnRank1(here.rank)
    taken = engine.step(mine, objective, precision.context(packs), 1e-3)
    after = precision.full_parameters(engine)
    unchanged = all(torch.equal(value, after[name]) for name, value in before.items())
    engine.close()
    return {"fault": taken.fault, "unchanged": not here.any(not unchanged)}


def main(out: str, stages: list[int]) -> None:
    found: dict[str, Any] = {}
    with world(timeout_s=300) as here:
        found["collectives"] = collectives(here)
        for stage in stages:
            run = precision.trained(global_batches(), "fp32", stage, here, LINEAR)
            found[str(stage)] = {"losses": run.losses, "norms": run.norms, "ratios": run.ratios}
            found[f"fault {stage}"] = fault(here, stage)
        if here.rank == 0:
            Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], [int(stage) for stage in sys.argv[2:]])
