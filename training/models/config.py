"""The section `model` of a training configuration: the student and its adapters. Loads neither torch nor peft.

A factory is code that a configuration names, so two things are asked of it. It must be marked as one
(`student_factory`), because any other function that can be imported would take what the configuration gives it, and
some of the standard library start programs. And one from outside this package is called only if the user trusts where
the configuration comes from.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from etl import foreign
from etl.config import Config

F = TypeVar("F", bound=Callable[..., Any])

_MARK: Final = "is_student_factory"
_OURS: Final = "training.models."


def student_factory(function: F) -> F:
    """Mark a function as one that `model.factory` may name: params (a mapping) -> torch Module."""
    setattr(function, _MARK, True)
    return function


def is_student_factory(value: Any) -> bool:
    """Whether a value was marked by `student_factory`; what a marked function is wrapped in is not."""
    return callable(value) and getattr(value, _MARK, None) is True


class LoraConfig(Config):
    """Which layers get an adapter, and its rank."""

    r: int = Field(default=16, ge=1)
    """Rank."""
    alpha: int = Field(default=32, ge=1)
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj"]
    """Linear layers that get an adapter, by the last part of their names."""
    train: list[str] = []
    """Weights to train in full as well: patterns of whole names, e.g. "*.sinks" or "lm_head.weight"."""


class ModelConfig(Config):
    """Which student to build, and how to run its layers."""

    located: ClassVar[frozenset[str]] = frozenset({"gradient_checkpointing", "compile"})

    factory: str
    """module:function, decorated with `student_factory`."""
    params: dict[str, Any]
    """Arguments of the factory, which checks them."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and recompute the rest in the backward pass: less memory, a third more time."""
    compile: bool = False
    """torch.compile, layer by layer for the built-in factories. Needs a C++ compiler."""
    lora: LoraConfig | None = None
    """Train low-rank adapters and freeze the other weights; null: full fine-tuning."""

    @field_validator("factory")
    @classmethod
    def _trusted(cls, name: str, info: ValidationInfo) -> str:
        """Refused before anything is imported."""
        if not name.startswith(_OURS) and not foreign.allowed(info.context):
            raise ValueError(foreign.refusal(name))
        return name
