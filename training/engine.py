"""DeepSpeed around a student: processes, optimizer, one global step. No kernel is compiled, so no compiler is needed.

The optimizer is torch's own AdamW, given to DeepSpeed ready-made, and the shared-memory collective is left out: both
are what DeepSpeed would otherwise build at first use (106 s). ZeRO stage and precision come from a DeepSpeed JSON;
batch sizes, clipping and the optimizer never do, they belong to the training configuration. A step is one micro-batch
a pack; its loss coefficients carry the global span counts, so gradients need no scaling by accumulation.
"""

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed
import deepspeed.ops
import torch
import torch.distributed
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import logger as deepspeed_logger
from pydantic import Field
from torch import nn

from etl import conf
from etl.config import Config
from etl.errors import ConfigError
from etl.schema import SPAN_KINDS
from training.data.collate import PackTensors
from training.losses import span_ce
from training.models.factory import Student

OWNED_KEYS = {
    "train_batch_size": "data.global_batch_packs",
    "train_micro_batch_size_per_gpu": "data.global_batch_packs",
    "gradient_accumulation_steps": "data.global_batch_packs",
    "gradient_clipping": "optimizer.clip_norm",
    "optimizer": "optimizer",
    "scheduler": "optimizer",
}
"""What a DeepSpeed JSON must leave to the training configuration."""


class OptimizerConfig(Config):
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019), linear warm-up, cosine decay."""

    lr: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    """Not applied to norms, biases, sinks and routers."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest 2-norm of the global gradient."""
    warmup_steps: int = Field(default=0, ge=0)
    final_lr_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the last step, as a fraction of `lr`."""

    def learning_rate(self, step: int, max_steps: int) -> float:
        """The rate of a step (from 0): a pure function, so there is no scheduler state."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(max_steps - self.warmup_steps, 1)
        cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
        return self.lr * (self.final_lr_fraction + (1 - self.final_lr_fraction) * cosine)


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over all ranks, on the CPU: float64 in, float64 out. Every rank must call it."""
        moved = values.to(self.device)
        torch.distributed.all_reduce(moved)
        return moved.cpu()

    def barrier(self) -> None:
        torch.distributed.barrier()


@contextlib.contextmanager
def world() -> Iterator[World]:
    """The process group that the launcher's environment describes, or one of a single process.

    The group is left behind a barrier: without it a rank may abort while another still tears down.
    """
    deepspeed_logger.setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    accelerator = get_accelerator()
    with _single_process_environment():
        if accelerator.device_name() != "cpu":
            accelerator.set_device(int(os.environ["LOCAL_RANK"]))
        deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
        try:
            device = torch.device(accelerator.current_device_name())
            yield World(torch.distributed.get_rank(), torch.distributed.get_world_size(), device)
            torch.distributed.barrier()
        finally:
            # DeepSpeed's own call also forgets the groups that it has cached, so that a process can train again.
            deepspeed.comm.destroy_process_group()


@contextlib.contextmanager
def _single_process_environment() -> Iterator[None]:
    """Set RANK and its companions for one process where no launcher has set them; taken away again at the end."""
    if "RANK" in os.environ:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in values if name in before})


def read_deepspeed_json(name_or_path: str) -> dict[str, Any]:
    """The DeepSpeed configuration, checked for what this trainer cannot or must not take from it.

    Raises:
        ConfigError: it sets a key of the training configuration, asks for fp16, or for bf16 with ZeRO stage 0.
    """
    found = conf.parse_yaml(conf.find(name_or_path, "deepspeed"), name_or_path)
    if not isinstance(found, dict):
        raise ConfigError(f"{name_or_path} must be a JSON object, not {type(found).__name__}")
    for key, owner in OWNED_KEYS.items():
        if key in found:
            raise ConfigError(
                f"{name_or_path} sets '{key}'; remove it there, `{owner}` of the training configuration decides"
            )
    if _enabled(found, "fp16"):
        raise ConfigError(f"{name_or_path} enables fp16, which is not supported; use bf16 with ZeRO stage 1")
    if _enabled(found, "bf16") and zero_stage(found) == 0:
        raise ConfigError(
            f"{name_or_path} has bf16 with zero_optimization.stage 0, where AdamW would step on bf16 parameters and "
            "lose small updates; set zero_optimization.stage to 1, which keeps float32 masters"
        )
    return found


def _enabled(deepspeed_json: dict[str, Any], section: str) -> bool:
    return bool(deepspeed_json.get(section, {}).get("enabled", False))


def zero_stage(deepspeed_json: dict[str, Any]) -> int:
    """The ZeRO stage, 0 where none is set."""
    return int(deepspeed_json.get("zero_optimization", {}).get("stage", 0))


class TrainingModule(nn.Module):
    """What DeepSpeed wraps: student, supervised rows, head and loss in one forward, so that every ZeRO stage works."""

    def __init__(self, student: Student, chunk_tokens: int) -> None:
        super().__init__()
        self.student = student
        self.chunk_tokens = chunk_tokens

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cu_seqlens: torch.Tensor,
        targets: torch.Tensor,
        target_kind: torch.Tensor,
        in_document: torch.Tensor,
        coefficients: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One pack (see PackTensors) and the coefficient of each span kind, float64 [kinds].

        Returns:
            The loss to go back from (scalar), the sum of losses of each span kind float64 [kinds], and the tokens
            that each expert of each layer got, int64 [layers, experts], room left out.
        """
        hidden, router_logits = self.student(input_ids, position_ids, cu_seqlens)
        rows = torch.nonzero(target_kind >= 0)[:, 0]
        kinds = target_kind[rows]
        loss, nll = self.student.lm_head(
            hidden.index_select(0, rows), targets[rows], coefficients[kinds], self.chunk_tokens
        )
        return loss, span_ce.sums(nll, kinds), _router_load(router_logits, in_document, self.student.experts_per_token)


@torch.no_grad()
def _router_load(router_logits: Sequence[torch.Tensor], in_document: torch.Tensor, per_token: int) -> torch.Tensor:
    """int64 [layers, experts]: tokens sent to each expert."""
    if not router_logits:
        return torch.zeros(0, 0, dtype=torch.int64)
    loads = []
    for logits in router_logits:
        chosen = logits[in_document].topk(per_token, dim=-1).indices.flatten()
        loads.append(
            torch.zeros(logits.shape[1], dtype=torch.int64, device=logits.device).index_add_(
                0, chosen, torch.ones_like(chosen)
            )
        )
    return torch.stack(loads)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: with weight decay, and without it (norms, biases, sinks, routers)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        exempt = name.endswith(("bias", "sinks")) or "norm" in name or ".router." in name
        (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


@dataclass(frozen=True)
class StepSums:
    """One rank's sums over its packs of one pass."""

    nll: torch.Tensor
    """float64 [kinds]"""
    router_load: torch.Tensor
    """int64 [layers, experts]"""


class Engine:
    """A student in training."""

    def __init__(
        self, module: TrainingModule, optimizer: OptimizerConfig, deepspeed_json: dict[str, Any], packs_per_rank: int
    ) -> None:
        self.stage = zero_stage(deepspeed_json)
        adamw = torch.optim.AdamW(
            parameter_groups(module, optimizer.weight_decay),
            lr=optimizer.lr,
            betas=optimizer.betas,
            eps=optimizer.eps,
            fused=True,
        )
        self.deepspeed, *_ = deepspeed.initialize(
            model=module,
            optimizer=adamw,
            config={
                **deepspeed_json,
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": packs_per_rank,
                "gradient_clipping": optimizer.clip_norm,
                "zero_allow_untested_optimizer": True,
            },
            dist_init_required=False,
        )

    def step(self, packs: Sequence[PackTensors], coefficients: torch.Tensor, learning_rate: float) -> StepSums:
        """One optimizer step over this rank's packs; `coefficients` as in span_ce.coefficients."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        self.deepspeed.train()
        totals = []
        for pack in packs:
            loss, nll, load = self.deepspeed(**vars(pack), coefficients=coefficients)
            # The mean over ranks becomes a sum. The product also matters by itself: at ZeRO stage 0 DeepSpeed 0.19
            # divides the gradient of a tensor that comes straight out of forward by the accumulation steps.
            self.deepspeed.backward(loss * torch.distributed.get_world_size(), scale_wrt_gas=False)
            self.deepspeed.step()
            totals.append((nll, load))
        return _total(totals)

    @torch.no_grad()
    def evaluate(self, packs: Sequence[PackTensors]) -> StepSums:
        """Losses of some packs without gradients. Every rank must come with the same number of packs."""
        self.deepspeed.eval()
        nothing = torch.zeros(len(SPAN_KINDS), dtype=torch.float64, device=packs[0].input_ids.device)
        totals = []
        for pack in packs:
            _, nll, load = self.deepspeed(**vars(pack), coefficients=nothing)
            totals.append((nll, load))
        return _total(totals)

    def gradient_norm(self) -> float | None:
        """2-norm of the last step's global gradient before clipping; None at ZeRO stage 0, which keeps none."""
        norm = self.deepspeed.get_global_grad_norm()
        return None if norm is None else float(norm)


def _total(totals: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> StepSums:
    return StepSums(
        torch.stack([nll for nll, _ in totals]).sum(0).cpu(), torch.stack([load for _, load in totals]).sum(0).cpu()
    )
