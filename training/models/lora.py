"""Low-rank adapters (Hu et al. 2021) with peft: the base is frozen, and two thin matrices per target layer are trained.

An adapted layer gives W x + alpha / r * B (A x), with B zero at the start, so that a fresh adapter changes nothing.
Memory: gradients and optimizer state of the adapters only. For export the product is added to W in float32.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from etl.errors import ConfigError
from training.models.config import LoraConfig

ADAPTER = "default"
"""peft's name for a single adapter."""


def inject(network: nn.Module, config: LoraConfig) -> None:
    """Freeze a network and put adapters into it, A from torch's global generator.

    Raises:
        ConfigError: a target or a pattern is not in the network, or a target is not a linear layer.
    """
    # Here, because peft takes seconds to import and most students have no adapters.
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    known = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(config.targets) - known)
    if unknown:
        raise ConfigError(
            f"model.lora.targets: no linear layer is named {unknown[0]!r}; the layers are {sorted(known)}"
        )
    head = getattr(network, "head_weight", "")
    if head.rpartition(".")[0].rpartition(".")[2] in config.targets:
        raise ConfigError(
            f"model.lora.targets: the head cannot have an adapter; list '{head}' in model.lora.train instead"
        )
    chosen = _chosen(network, config.train)
    # In a transformers model peft would take targets for names of older checkpoints, and it fails on those with experts
    # that are not whole models; it does not look for that inside a plain list.
    inject_adapter_in_model(
        PeftConfig(
            r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(config.targets)
        ),
        nn.ModuleList([network]),
    )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(is_adapter(name) or base_name(name) in chosen)


def _chosen(network: nn.Module, patterns: list[str]) -> set[str]:
    names = [name for name, _ in network.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise ConfigError(f"model.lora.train: no weight matches {pattern!r}; names are like {names[-1]!r}")
        chosen.update(found)
    return chosen


def is_adapter(name: str) -> bool:
    """Whether a weight's name is an adapter's."""
    return ".lora_" in name


def base_name(name: str) -> str:
    """The name that a weight has without adapters."""
    return name.replace(".base_layer.", ".")


def merged(network: nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`state` (names of the network) with each adapter added to the weight that it adapts."""
    result = dict(state)
    for name in state:
        layer, is_down, _ = name.partition(f".lora_A.{ADAPTER}.")
        if is_down:
            key = f"{layer}.base_layer.weight"
            down, up = (state[f"{layer}.{part}.{ADAPTER}.weight"].float() for part in ("lora_A", "lora_B"))
            adapted: Any = network.get_submodule(layer)
            result[key] = (state[key].float() + adapted.scaling[ADAPTER] * (up @ down)).to(state[key].dtype)
    return result
