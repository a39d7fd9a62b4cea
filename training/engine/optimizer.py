"""AdamW and its learning rate: the configuration, the parameters that decay, and the rate as a function of tokens.

Only AdamW, in torch's own fused form: what DeepSpeed brings would be compiled at first use, and checkpoints are carried
from one number of processes to another by knowing what AdamW keeps. The rate is a pure function of trained tokens, so
there is no scheduler state: a run of any number of processes, resumed anywhere, has the same rate at the same token.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from etl.config import Config


class Schedule(Config):
    """Linear warm-up to the peak, then a shape of its own; all of it in tokens of one stage."""

    warmup_tokens: int | None = Field(default=None, ge=0)
    """Length of the warm-up in tokens; give this or `warmup_fraction`."""
    warmup_fraction: float | None = Field(default=None, ge=0, le=1)
    """Length of the warm-up as a fraction of the stage's tokens."""
    warmup: Literal["each_stage", "first_stage"] = "each_stage"
    """Which stages warm up. With `first_stage`, later stages start at the peak of their schedule."""

    @model_validator(mode="after")
    def _one_warmup(self) -> "Schedule":
        if self.warmup_tokens is not None and self.warmup_fraction is not None:
            raise ValueError(
                f"warmup_tokens = {self.warmup_tokens} and warmup_fraction = {self.warmup_fraction} both set the "
                "length of the warm-up; remove one"
            )
        return self

    def without_warmup(self) -> Self:
        """The same from its peak on."""
        return self.model_copy(update={"warmup_tokens": None, "warmup_fraction": None})

    def factor(self, tokens: int, total_tokens: int) -> float:
        """The rate as a part of its peak, in (0, 1] during the warm-up.

        Args:
            tokens: the stage's tokens up to the end of the step that takes the rate; more than 0.
            total_tokens: the stage's target.
        """
        warmup = self._warmup(total_tokens)
        if tokens < warmup:
            return tokens / warmup
        return self._after_warmup(min(tokens, total_tokens), warmup, total_tokens)

    def _warmup(self, total_tokens: int) -> float:
        if self.warmup_tokens is not None:
            return float(self.warmup_tokens)
        return (self.warmup_fraction or 0.0) * total_tokens

    def _after_warmup(self, tokens: int, warmup: float, total_tokens: int) -> float:
        raise NotImplementedError(type(self).__name__)


class Constant(Schedule):
    """Stays at the peak until the end."""

    kind: Literal["constant"] = "constant"

    def _after_warmup(self, tokens: int, warmup: float, total_tokens: int) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a cosine from the peak down to a fraction of it at the stage's last token."""

    kind: Literal["cosine"] = "cosine"
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak."""

    def _after_warmup(self, tokens: int, warmup: float, total_tokens: int) -> float:
        cosine = (1 + math.cos(math.pi * _progress(tokens, warmup, total_tokens))) / 2
        return self.final_fraction + (1 - self.final_fraction) * cosine


class Wsd(Schedule):
    """Warm-up, stable, decay: stays at the peak, then falls over the last part of the stage's tokens."""

    kind: Literal["wsd"] = "wsd"
    decay_fraction: float = Field(default=0.2, ge=0, le=1)
    """Fraction of the stage's tokens over which the rate falls."""
    decay: Literal["linear", "one_minus_sqrt"] = "one_minus_sqrt"
    """With x from 0 to 1 over the decay, the rate falls as 1 - x or as 1 - sqrt(x)."""
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end, as a fraction of the peak."""

    def _after_warmup(self, tokens: int, warmup: float, total_tokens: int) -> float:
        begin = max(warmup, total_tokens * (1 - self.decay_fraction))
        if tokens <= begin:
            return 1.0
        progress = _progress(tokens, begin, total_tokens)
        left = 1 - (progress if self.decay == "linear" else math.sqrt(progress))
        return self.final_fraction + (1 - self.final_fraction) * left


def _progress(tokens: int, begin: float, end: int) -> float:
    """Part of the way from begin to end, 0 to 1."""
    return min(max(tokens - begin, 0.0) / max(end - begin, 1.0), 1.0)


class OptimizerConfig(Config):
    """AdamW with decoupled weight decay (Loshchilov and Hutter 2019)."""

    kind: str = "adamw"
    lr: float = Field(gt=0)
    """Peak learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Adam's decay rates of the first and second moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Not applied to norms, biases, sinks and routers."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest 2-norm of the global gradient."""
    schedule: Annotated[Constant | Cosine | Wsd, Field(discriminator="kind")] = Cosine()
    """Schedule of the learning rate."""
    max_skipped_in_a_row: int = Field(default=3, ge=1)
    """Stop training after this many steps in a row with a loss or gradient that is not finite."""

    @field_validator("kind")
    @classmethod
    def _only_adamw(cls, kind: str) -> str:
        if kind != "adamw":
            raise ValueError(
                f"the optimizer '{kind}' is not supported: checkpoints are converted for other numbers of processes by "
                "what AdamW keeps; set kind to adamw"
            )
        return kind

    def in_stage(self, is_first: bool) -> "OptimizerConfig":
        """The settings of a stage, given those that are written for it: without a warm-up where it has none."""
        if is_first or self.schedule.warmup == "each_stage":
            return self
        return self.model_copy(update={"schedule": self.schedule.without_warmup()})

    def learning_rate(self, tokens: int, total_tokens: int) -> float:
        """The rate of a step; a pure function.

        Args:
            tokens: the stage's tokens up to the end of the step, so that a first step never has a rate of 0.
            total_tokens: the stage's target.
        """
        return self.lr * self.schedule.factor(tokens, total_tokens)


_ROUTERS = frozenset({"router", "gate"})
"""What transformers calls the routing layer of a mixture of experts."""


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies; not to norms, biases, sinks and routers, nor to any other vector."""
    parts = name.split(".")
    vector = parameter.ndim < 2 or parts[-1].endswith(("bias", "sinks")) or any("norm" in part for part in parts)
    return not vector and _ROUTERS.isdisjoint(parts)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of the trainable parameters: with weight decay, and without it."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in named if is_decayed(name, parameter)]
    plain = [parameter for name, parameter in named if not is_decayed(name, parameter)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


@torch.no_grad()
def squared_update_and_weight(
    parameter: torch.Tensor, state: dict[str, torch.Tensor], group: dict[str, Any]
) -> torch.Tensor:
    """Squared 2-norms of what AdamW's last step changed and of what it left: float64 [2].

    The change is worked out from the moments and the weights after the step, so no copy of the weights is needed. With
    the direction d, the mean of gradients over the root of the mean of their squares, AdamW leaves
    w = (1 − lr · decay) · before − lr · d, so w − before = −lr / (1 − lr · decay) · (d + decay · w). A buffer of 1 MiB
    (16 MiB on a GPU) goes over parameters of any size: 2 CPU-seconds for 1e9 weights.
    """
    step = float(state["step"])
    (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    total = torch.zeros(2, dtype=torch.float64, device=parameter.device)
    for weight, first, second in _pieces(parameter, state["exp_avg"], state["exp_avg_sq"]):
        change = second.sqrt().div_(math.sqrt(correction2)).add_(group["eps"])
        torch.div(first, change, out=change).add_(weight, alpha=decay * correction1)
        norms = [torch.linalg.vector_norm(values, dtype=torch.float64) for values in (change, weight)]
        total += torch.stack(norms).square_()
    total[0] *= (lr / correction1 / (1 - lr * decay)) ** 2
    return total


_PIECE_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 22}
"""A CPU's piece stays in its cache, a GPU's is worth the launch of its kernels."""


def _pieces(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Equal flat slices of tensors of one shape."""
    flat = [tensor.detach().flatten() for tensor in tensors]
    size = _PIECE_ELEMENTS[flat[0].device.type]
    for start in range(0, flat[0].numel(), size):
        yield tuple(tensor[start : start + size] for tensor in flat)


@torch.no_grad()
def forget(optimizer: torch.optim.Optimizer) -> None:
    """Zero the moments and the step count in place, so that who holds a view of them sees it."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
