"""A plain PyTorch loop that the engine must follow, a toy student, and the table of how closely it does.

python -m tests.training.precision        prints the table of docs/how-to/training.md (about a minute on one core)
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from deepspeed.utils import safe_get_full_fp32_param

from tests.training.packs import toy_pack
from training.data.collate import Pack
from training.engine.engine import Engine, TrainingModule
from training.engine.optimizer import OptimizerConfig, is_decayed
from training.launch.process_group import world
from training.launch.world import World
from training.losses.objective import CrossEntropy, StepContext
from training.losses.router import RouterConfig
from training.models.config import ModelConfig
from training.models.factory import build_student

CPU = torch.device("cpu")
OPTIMIZER = OptimizerConfig(lr=1e-3)
OBJECTIVE = CrossEntropy()
SIZES = {
    "layers": 2, "hidden": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "intermediate": 16, "experts": 4,
    "experts_per_token": 2, "vocab": 97, "sliding_window": 16,
}  # fmt: skip
ROUTER = RouterConfig(aux_coefficient=0.01, z_coefficient=0.001)
CASES = [("fp32", 0), ("fp32", 1), ("fp32", 2), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3)]
Batches = Sequence[Sequence[Pack]]


class Trajectory(NamedTuple):
    """A run, and the float32 parameters that it ended with."""

    losses: list[float]
    norms: list[float]
    ratios: list[float]
    parameters: dict[str, torch.Tensor]


def module(router: RouterConfig = ROUTER, precision: str = "fp32") -> TrainingModule:
    """A mixture of experts; a dense student for bf16, where one rounding can send a token to another expert."""
    sizes = {**SIZES, "experts": 1, "experts_per_token": 1} if precision == "bf16" else SIZES
    return TrainingModule(build_student(ModelConfig(factory="training.models.gpt_oss:build", params=sizes), 0), router)


def random_pack(seed: int, lengths: Sequence[int], pack_tokens: int) -> Pack:
    """Documents of random tokens, two thirds of each supervised as analysis and final."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(1, SIZES["vocab"], pack_tokens)
    starts = np.cumsum([0, *lengths])
    kind_at = {
        row: int(generator.choice([0, 2]))
        for start, length in zip(starts, lengths, strict=False)
        for row in range(start + length // 3, start + length - 1)
    }
    return toy_pack(lengths, pack_tokens, kind_at, input_ids=ids, targets=np.roll(ids, -1))


def batches(num_steps: int, packs_a_step: int) -> list[list[Pack]]:
    """The same few packs come again, so that the loss falls."""
    packs = [random_pack(seed, [23, 5 + seed, 17], 64) for seed in range(2 * packs_a_step)]
    return [packs[step % 2 :: 2] for step in range(num_steps)]


def context(packs: Sequence[Pack]) -> StepContext:
    """What is known of a global batch that is all here."""
    return StepContext(torch.from_numpy(np.sum([OBJECTIVE.counts(pack) for pack in packs], axis=0)))


def reference(data: Batches, precision: str, router: RouterConfig = ROUTER) -> Trajectory:
    """One process without DeepSpeed: a backward pass a pack, gradients summed in float32, AdamW on float32 masters."""
    student = module(router, precision)
    names = [name for name, _ in student.named_parameters()]
    masters = [parameter.detach().clone().requires_grad_() for parameter in student.parameters()]
    student.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    decays = [is_decayed(name, master) for name, master in zip(names, masters, strict=True)]
    groups = [
        {"params": [m for m, d in zip(masters, decays, strict=True) if d is decayed], "weight_decay": decay}
        for decayed, decay in ((True, OPTIMIZER.weight_decay), (False, 0.0))
    ]
    adamw = torch.optim.AdamW(groups, lr=OPTIMIZER.lr, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps)
    run = Trajectory([], [], [], {})
    for packs in data:
        step = context(packs)
        sums = torch.zeros(4, dtype=torch.float64)
        total_tokens = sum(pack.num_tokens for pack in packs)
        gradients = [torch.zeros_like(master) for master in masters]
        for pack in packs:
            student.zero_grad()
            share = torch.tensor(pack.num_tokens / total_tokens, dtype=torch.float64)
            loss, _, found, *_ = student(pack.tensors(CPU), OBJECTIVE, step, share)
            loss.backward()
            sums += found
            for gradient, parameter in zip(gradients, student.parameters(), strict=True):
                assert parameter.grad is not None
                gradient += parameter.grad
        for master, gradient in zip(masters, gradients, strict=True):
            master.grad = gradient
        run.norms.append(float(torch.nn.utils.clip_grad_norm_(masters, OPTIMIZER.clip_norm)))
        run.losses.append(OBJECTIVE.report(step.counts, sums)["loss"])
        before = torch.cat([master.detach().flatten() for master in masters]).double()
        adamw.step()
        after = torch.cat([master.detach().flatten() for master in masters]).double()
        run.ratios.append(float((after - before).norm() / after.norm()))
        with torch.no_grad():
            for master, parameter in zip(masters, student.parameters(), strict=True):
                parameter.copy_(master)
    run.parameters.update({name: master.detach() for name, master in zip(names, masters, strict=True)})
    return run


def deepspeed_json(precision: str, stage: int) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage}, "bf16": {"enabled": precision == "bf16"}}


def full_parameters(engine: Engine) -> dict[str, torch.Tensor]:
    """The float32 parameters, whole; every rank must call it."""
    found = engine.deepspeed.module.named_parameters()
    if engine.zero_stage == 0:
        return {name: parameter.detach().clone() for name, parameter in found}
    return {name: safe_get_full_fp32_param(parameter).clone() for name, parameter in found}


def trained(data: Batches, precision: str, stage: int, here: World, router: RouterConfig = ROUTER) -> Trajectory:
    """The engine on this rank's packs of each global batch: every world-th."""
    engine = Engine(
        module(router, precision), OPTIMIZER, deepspeed_json(precision, stage), here, len(data[0]) // here.size
    )
    run = Trajectory([], [], [], {})
    for packs in data:
        step = context(packs)
        mine = [pack.tensors(here.device) for pack in packs[here.rank :: here.size]]
        taken = engine.step(mine, OBJECTIVE, step, OPTIMIZER.lr)
        assert not taken.skipped
        run.losses.append(OBJECTIVE.report(step.counts, taken.sums)["loss"])
        run.norms.append(engine.gradient_norm())
        run.ratios.append(engine.update_ratio())
    run.parameters.update(full_parameters(engine))
    engine.close()
    return run


class Distance(NamedTuple):
    """Largest differences between two runs."""

    loss: float
    norm: float
    ratio: float
    parameter: float


def distance(run: Trajectory, other: Trajectory) -> Distance:
    def largest(ours: Sequence[float], theirs: Sequence[float]) -> float:
        return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))

    parameter = max(float((value - other.parameters[name]).abs().max()) for name, value in run.parameters.items())
    return Distance(
        largest(run.losses, other.losses),
        largest(run.norms, other.norms),
        largest(run.ratios, other.ratios),
        parameter,
    )


def table(num_steps: int = 20) -> Iterator[str]:
    """Markdown: the engine against the plain loop, step by step."""
    data = batches(num_steps, 4)
    yield f"| precision | ZeRO | loss | gradient norm | parameters after {num_steps} steps |"
    yield "|---|---|---|---|---|"
    with world() as here:
        plain = {precision: reference(data, precision) for precision in ("fp32", "bf16")}
        for precision, stage in CASES:
            found = distance(trained(data, precision, stage, here), plain[precision])
            yield f"| {precision} | {stage} | {found.loss:.1e} | {found.norm:.1e} | {found.parameter:.1e} |"
    yield f"loss of the plain loop: {plain['fp32'].losses[0]:.3f} to {plain['fp32'].losses[-1]:.3f}"


if __name__ == "__main__":
    for line in table():
        sys.stdout.write(line + "\n")
