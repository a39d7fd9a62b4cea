"""Students by name: `factory` is "module:function", the function takes `params` and returns a Student.

A student is a module with one contract: packed ids in, hidden states out, and its head under the name `lm_head`, so
that losses decide what is multiplied by the vocabulary and when.
"""

import importlib
from typing import Any, cast

import torch
from torch import nn

from etl.config import Config
from etl.errors import ConfigError
from training.losses.chunked_head import LmHead

StudentOutput = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
"""Hidden states [T, H] after the last norm, and the router logits [T, experts] of each mixture-of-experts layer (none
for a dense student). A plain tuple, because ZeRO-3 rebuilds what modules return."""


class Student(nn.Module):
    """Base of students."""

    lm_head: LmHead
    experts_per_token: int

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor) -> StudentOutput:
        """Hidden states of a pack: ids and positions int64 [1, T], cu_seqlens int32 [documents + 1].

        A token never depends on one of another document.
        """
        raise NotImplementedError(type(self).__name__)


class ModelConfig(Config):
    """Which student to build."""

    factory: str
    """module:function"""
    params: dict[str, Any]
    """What the function takes; it checks them."""


def build_student(config: ModelConfig, seed: int) -> Student:
    """The student in its initial state, a function of the configuration and the seed.

    Raises:
        ConfigError: there is no such factory, or it refuses the parameters.
    """
    module, _, function = config.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"model.factory '{config.factory}' cannot be imported ({error}); "
            "write module:function, e.g. training.models.gpt_oss:build"
        ) from error
    torch.manual_seed(seed)
    return cast(Student, factory(config.params))
