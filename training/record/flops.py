"""Floating-point operations of a training step, as a number and as a fraction of the device's peak (MFU).

What is counted, a multiply-add as two: the matrix products that the model's definition needs, forward and backward.

- Every weight that a token is multiplied with: 2 a token forward, 2 for the gradient of the input, 2 for the gradient
  of the weight (0 where it is frozen). Of stacked experts [experts, in, out], only `experts_per_token`.
- Attention: 2 x (query width + value width) a pair forward and twice that backward, over the pairs (query, key) that
  the mask lets through: n (n + 1) / 2 of a causal document of n tokens, the exact number inside a sliding window. It is
  a sum over documents, never pack x pack, and room in a pack is nothing.
- The head on supervised tokens only, which is where ours runs.

Not counted: recomputation (gradient checkpointing, the head of a loss that makes its logits twice), what a kernel
computes under the mask, a teacher model, norms, softmax, rotary embeddings, embedding look-ups, the optimizer.

torch's FlopCounterMode gives the same number when attention makes exactly the visible pairs (the test does that, one
query at a time). On eager attention it counts the full square n x n instead: 2 n / (n + 1) times our attention.

Costs microseconds a step; the model is walked once, before it is sharded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from training.data.collate import Pack

PEAK_FLOPS = {
    "GB200": 2500e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
}
"""Dense bf16 FLOP/s of the datasheets, by a part of the device's name. The first that fits counts."""

_NUMBERED_EXPERT = re.compile(r"^(.*\bexperts)\.(\d+)\.")


@dataclass(frozen=True)
class AttentionShape:
    """One attention layer."""

    width: int
    """Query heads x (dimension of a query + dimension of a value)."""
    window: int | None = None
    """Keys that a query sees, itself included; None for all before it."""

    def pair_flops(self, lengths: npt.NDArray[np.int64]) -> float:
        """Forward FLOPs over documents of these lengths."""
        return 2.0 * self.width * float(visible_pairs(lengths, self.window).sum())


@dataclass(frozen=True)
class ModelShape:
    """What the FLOPs of a model depend on."""

    token_flops: float
    """Forward and backward FLOPs of one token outside of attention and head."""
    head_flops: float
    """The same of one supervised token in the head."""
    attention: tuple[AttentionShape, ...]
    """One a layer. Empty for a model whose configuration does not tell: then a step is 6 x weights x tokens."""

    @classmethod
    def of_model(cls, model: nn.Module, head: torch.Tensor, experts_per_token: int) -> "ModelShape":
        """The shape of a model whose parameters are whole (before ZeRO-3 shards them; `meta` tensors will do).

        Every parameter of two or more dimensions counts as multiplied with each token, but for embeddings, biases and
        `head` ([vocab, hidden], tied or not), and with the share `experts_per_token` / experts of stacked experts
        [experts, in, out] and of numbered ones (`experts.0.`). Attention is read from the first transformers
        (text) configuration that a module of the model carries as `config`.
        """
        parameters = {name: weight for name, weight in model.named_parameters() if weight is not head}
        owners = dict(model.named_modules())
        experts: dict[str, int] = {}
        for found in filter(None, map(_NUMBERED_EXPERT.match, parameters)):
            experts[found[1]] = max(experts.get(found[1], 0), int(found[2]) + 1)
        token_flops = 0.0
        for name, weight in parameters.items():
            owner = owners[name.rpartition(".")[0]]
            if weight.ndim >= 2 and not name.endswith("bias") and not isinstance(owner, nn.Embedding):
                numbered = _NUMBERED_EXPERT.match(name)
                stacked = weight.ndim == 3 and not isinstance(owner, nn.Conv1d)
                num_experts = experts[numbered[1]] if numbered else weight.shape[0] if stacked else 0
                share = experts_per_token / num_experts if num_experts and experts_per_token else 1.0
                token_flops += share * _weight_flops(weight)
        return cls(token_flops, _weight_flops(head), _attention_of(model))

    def step_flops(self, document_tokens: npt.NDArray[np.int64], supervised_tokens: int) -> float:
        """FLOPs of forward and backward over documents of these lengths (int64 [documents])."""
        attention = 3 * sum(layer.pair_flops(document_tokens) for layer in self.attention)
        return self.token_flops * float(document_tokens.sum()) + self.head_flops * supervised_tokens + attention

    def flops_of(self, packs: Sequence[Pack]) -> float:
        """FLOPs of one rank's packs; those of a step are their sum over the ranks."""
        supervised = sum(int(pack.span_counts().sum()) for pack in packs)
        return self.step_flops(document_lengths(packs), supervised)


def _weight_flops(weight: torch.Tensor) -> float:
    """Forward, gradient of the input and gradient of the weight, of one token."""
    return (6.0 if weight.requires_grad else 4.0) * weight.numel()


def visible_pairs(lengths: npt.NDArray[np.int64], window: int | None) -> npt.NDArray[np.int64]:
    """Pairs (query, key) under a causal mask, by document: int64 [documents]."""
    reach = lengths if window is None else np.minimum(lengths, window)
    return reach * (reach + 1) // 2 + (lengths - reach) * reach


def document_lengths(packs: Sequence[Pack]) -> npt.NDArray[np.int64]:
    """Tokens of each document of some packs, room left out: int64 [documents]."""
    lengths = [np.diff(pack.cu_seqlens)[: len(pack.id_hash)] for pack in packs]
    return np.concatenate([np.empty(0, np.int64), *lengths]).astype(np.int64)


def _attention_of(model: nn.Module) -> tuple[AttentionShape, ...]:
    config = next(filter(_tells_heads, map(_text_config, model.modules())), None)
    if config is None:
        return ()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    query, value = (getattr(config, name, None) or head_dim for name in ("qk_head_dim", "v_head_dim"))
    width = config.num_attention_heads * (query + value)
    return tuple(AttentionShape(width, window) for window in _windows(config))


def _text_config(module: nn.Module) -> Any:
    config: Any = getattr(module, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _tells_heads(config: Any) -> bool:
    return getattr(config, "num_attention_heads", None) is not None and hasattr(config, "num_hidden_layers")


def _windows(config: Any) -> list[int | None]:
    """The window of each layer with softmax attention; other kinds of layers (linear, state space) have no pairs."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return [window] * config.num_hidden_layers
    windows = {"full_attention": None, "sliding_attention": window}
    return [windows[kind] for kind in kinds if kind in windows]


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s; None for one that is not in the table, and for a CPU."""
    words = device_name.replace("-", " ")
    return next((peak for part, peak in PEAK_FLOPS.items() if re.search(rf"\b{part}\b", words)), None)


def device_peak_flops(device: torch.device) -> float | None:
    """`peak_flops` of the device that a rank trains on."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def mfu(flops: float, seconds: float, world_size: int, peak: float) -> float:
    """Model FLOPs utilisation: the fraction of what `world_size` devices of `peak` FLOP/s can do in the time."""
    return flops / (seconds * world_size * peak)
