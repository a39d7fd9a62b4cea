"""The model's section of a training configuration: which student and which adapters. Loads neither torch nor peft."""

from typing import Any, ClassVar

from pydantic import Field

from etl.config import Config


class LoraConfig(Config):
    """Which layers get an adapter and how wide it is."""

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: int = Field(default=32, ge=1)
    """The adapter counts alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the adapter's input."""
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj"]
    """Last parts of the names of the linear layers that get one."""
    train: list[str] = []
    """Weights that are trained in full beside them: patterns of whole names, e.g. "*.sinks" or "lm_head.weight"."""


class ModelConfig(Config):
    """Which student to build and how its layers are run."""

    located: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing", "compile"})

    factory: str
    """module:function"""
    params: dict[str, Any]
    """What the function takes; it checks them."""
    gradient_checkpointing: bool = False
    """Keep the input of each layer and compute the rest again in the backward pass: less memory, a third more time."""
    compile: bool = False
    """torch.compile, layer by layer for the built-in factories. Needs a C++ compiler."""
    lora: LoraConfig | None = None
    """Train low-rank adapters beside frozen weights; null for full fine-tuning."""
