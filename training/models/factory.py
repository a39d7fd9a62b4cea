"""Creates students by name: any module that maps packed ids to hidden states, wrapped with a head that gives losses.

    model: {factory: package.module:function, params: {…}}

The function is marked (`@student_factory`). It takes `params` and returns a module with `forward(input_ids,
position_ids, cu_seqlens)` -> (hidden, router logits) and an attribute `head_weight`, the dotted name of the parameter
that the head multiplies by (the embedding's where they are tied); optional are `experts_per_token` and
`gradient_checkpointing_enable()`. The wrapper adds nothing to the parameters: the head holds the same Parameter object,
so names are the module's own after "network.".
"""

import copy
import importlib
import os
import shutil
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from etl.errors import ConfigError
from training.losses.chunked_head import LmHead
from training.models import lora
from training.models.config import ModelConfig, is_student_factory

StudentOutput = tuple[torch.Tensor, tuple[torch.Tensor, ...]]
"""Hidden states [T, H] after the last norm, and the router logits [T, experts] of each mixture-of-experts layer (none
for a dense student). A plain tuple, because ZeRO-3 rebuilds what modules return."""

PREFIX = "network."
"""Before each name of the factory's module in a student."""


class Student(nn.Module):
    """A factory's module with a head for losses."""

    def __init__(self, network: nn.Module) -> None:
        """`network` keeps the contract of this module's docstring.

        Raises:
            ConfigError: it names no head weight, or one that is not a matrix [V, H] of its own.
        """
        super().__init__()
        name = getattr(network, "head_weight", None)
        parameters = dict(network.named_parameters(remove_duplicate=False))
        if name not in parameters or parameters[name].ndim != 2:
            raise ConfigError(
                f"{type(network).__name__}.head_weight is {name!r}; it must name the parameter "
                f"[vocabulary, hidden] that the head multiplies by, one of: {', '.join(sorted(parameters)[:8])}…"
            )
        self.network = network
        self.lm_head = LmHead(parameters[name])

    @property
    def experts_per_token(self) -> int:
        """Experts per token in each layer with a router; 0 for a dense student."""
        return int(getattr(self.network, "experts_per_token", 0))

    @property
    def hf_class(self) -> Any:
        """The transformers class of a built-in factory's student; None for a user's module."""
        return getattr(self.network, "transformers_class", None)

    @property
    def hf_config(self) -> Any:
        """Its configuration; None for a user's module."""
        return None if self.hf_class is None else self.network.config

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor) -> StudentOutput:
        """Hidden states of a pack: ids and positions int64 [1, T], cu_seqlens int32 [documents + 1].

        Documents without tokens (repeated T at the end) are allowed. A token never depends on one of another document.
        """
        hidden, router_logits = self.network(input_ids, position_ids, cu_seqlens)
        return hidden, tuple(router_logits)


def build_student(config: ModelConfig, seed: int) -> Student:
    """The student in its initial state, a function of the configuration and the seed.

    Raises:
        ConfigError: there is no such factory, or it or the student refuses the parameters.
    """
    factory = _imported(config.factory)
    torch.manual_seed(seed)
    network = factory(config.params)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model.factory '{config.factory}' returned {type(network).__name__}, not a torch Module")
    if config.lora is not None:
        lora.inject(network, config.lora)
    student = Student(network)
    if config.gradient_checkpointing:
        _enable_checkpointing(network, config.factory)
    if config.compile:
        _check_compiler()
        network.compile()
    return student


def _imported(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"model.factory '{name}' cannot be imported ({error}); "
            "write module:function, e.g. training.models.gpt_oss:build"
        ) from error
    if not is_student_factory(found):
        raise ConfigError(
            f"model.factory '{name}' is not marked as a factory, so it is not called; decorate the function with "
            "@student_factory of training.models.config"
        )
    return found


def _enable_checkpointing(network: nn.Module, factory: str) -> None:
    enable = getattr(network, "gradient_checkpointing_enable", None)
    if enable is None:
        raise ConfigError(
            f"model.gradient_checkpointing is true, but what {factory} returns has no method "
            "gradient_checkpointing_enable(); add one or set it to false"
        )
    enable()


def _check_compiler() -> None:
    """torch.compile builds C++ on a CPU and a launcher for each Triton kernel on a GPU."""
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise ConfigError(
            f"model.compile is true, but there is no C++ compiler ({' or '.join(compilers)}); install g++, point CXX "
            "at one, or set model.compile to false"
        )


def export_names(student: Student) -> dict[str, str]:
    """Name in the checkpoint of the factory's own class, by name in the student; adapters have none.

    A tied head has one entry, the embedding's. For a built-in factory the names are the transformers class's.
    """
    return {PREFIX + name: lora.base_name(name) for name in student.network.state_dict() if not lora.is_adapter(name)}


def export_state(student: Student, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under the names of `export_names`, adapters added to what they adapt; shapes and types as they were.

    `state` holds whole tensors (not ZeRO-3's shards) by name in the student, `student.state_dict()` for one.
    """
    own = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    merged = lora.merged(student.network, own)
    return {exported: merged[name.removeprefix(PREFIX)] for name, exported in export_names(student).items()}


def export_model(student: Student, state: Mapping[str, torch.Tensor]) -> Any:
    """The transformers model that holds `export_state`'s weights, for `save_pretrained`; built-in factories only.

    No weight is copied. Buffers that are not saved (rotary frequencies) are left empty: load the folder to use it.

    Raises:
        ConfigError: the student's factory is a user's, which transformers does not know.
    """
    if student.hf_class is None:
        raise ConfigError("only a student of a built-in factory can be written as a transformers model")
    with torch.device("meta"):
        model = student.hf_class(copy.deepcopy(student.hf_config))
    model.load_state_dict(export_state(student, state), strict=not student.hf_config.tie_word_embeddings, assign=True)
    model.tie_weights()
    return model
