"""A student from any local causal language model that transformers knows: from a configuration or from weights.

    params: {config: {model_type: qwen3, hidden_size: 1024, …}}       random weights, a function of the seed
    params: {config: path/to/config.json}
    params: {weights: path/to/folder, dtype: bfloat16}                safetensors, nothing is downloaded

The modules and the names of their weights are transformers' own, the attention is ours (training/models/attention.py).
A model whose attention, head or positions cannot be packed exactly is refused by name. Building costs one copy of the
weights in memory.
"""

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import model_validator
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging
from transformers.utils.output_capturing import OutputRecorder
from transformers.utils.quantization_config import Mxfp4Config

from etl.conf import check, read_text
from etl.config import Config
from etl.errors import ConfigError
from etl.models.pretrained import load_model
from training.models import attention
from training.models.attention import Packing, Window
from training.models.config import student_factory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

LOGIT_KEYS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier_scale",
)
"""Keys by which some models change their logits after the head, which our head does not."""

MOVING_ROPE = frozenset({"dynamic", "longrope"})
"""Rotary embeddings that look at the longest position of a batch, so that a document would depend on its neighbours."""


class CausalLmParams(Config):
    """Where the model comes from: a configuration or a folder of weights."""

    config: dict[str, Any] | str | None = None
    """Keys of a transformers configuration, `model_type` among them, or the path of a config.json."""
    weights: str | None = None
    """A local folder with config.json and *.safetensors."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the parameters; bf16 training casts float32 ones by itself."""

    @model_validator(mode="after")
    def _one_origin(self) -> "CausalLmParams":
        if (self.config is None) == (self.weights is None):
            raise ValueError("give either `config` (random weights) or `weights` (a local folder)")
        return self


ROUTER_LOGITS = "_router_logits"
"""Where a router stores its output until the end of the pass."""


def _routers(base: PreTrainedModel) -> list[nn.Module]:
    """The modules whose first output are router logits, in order; each will keep it.

    transformers' own way to hand them out (output_router_logits) reads a context variable in hooks of every layer, at
    which torch.compile cuts each layer into pieces.
    """
    recorder = (getattr(base, "_can_record_outputs", None) or {}).get("router_logits")
    if recorder is None:
        return []
    if not isinstance(recorder, OutputRecorder) or not hasattr(base.config, "num_experts_per_tok"):
        raise ConfigError(f"{type(base).__name__} has its own routing; a student needs num_experts_per_tok")

    def keep(router: nn.Module, _inputs: object, output: tuple[torch.Tensor, ...]) -> None:
        setattr(router, ROUTER_LOGITS, output[recorder.index])

    routers = [module for module in base.modules() if isinstance(module, recorder.target_class)]
    for router in routers:
        router.register_forward_hook(keep)
    return routers


class TransformersNetwork(nn.Module):
    """A transformers causal LM without its head's arithmetic: ids in, hidden states and router logits out.

    Names of weights are those of the transformers class. A tied head has no entry of its own.
    """

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        super().__init__()
        self.config = causal_lm.config
        self.transformers_class = type(causal_lm)
        self._base = causal_lm.base_model_prefix
        head = causal_lm.get_output_embeddings()
        tied = head.weight is causal_lm.get_input_embeddings().weight
        for name, child in causal_lm.named_children():
            if not (tied and child is head):
                self.add_module(name, child)
        (self.head_weight,) = (name for name, parameter in self.named_parameters() if parameter is head.weight)
        text_config = causal_lm.config.get_text_config()
        window = getattr(text_config, "sliding_window", None)
        # The token at pad_token_id can occur in a document here, and its embedding is trained like any other.
        embedding: Any = causal_lm.get_input_embeddings()
        embedding.padding_idx = None
        self._windows: frozenset[Window] = frozenset({None, window or None})
        base: Any = causal_lm.base_model
        self._routers = _routers(base)
        self.experts_per_token = text_config.num_experts_per_tok if self._routers else 0

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Hidden states after the last norm [T, H], and the router logits [T, experts] of each layer that routes."""
        output = getattr(self, self._base)(
            input_ids=input_ids,
            position_ids=position_ids,
            packing=Packing.of(cu_seqlens, input_ids.shape[1], self._windows),
            use_cache=False,
        )
        router_logits = [router.__dict__.pop(ROUTER_LOGITS) for router in self._routers]
        return output.last_hidden_state[0], tuple(logits.flatten(0, -2) for logits in router_logits)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "TransformersNetwork":
        """Casts and moves, except that buffers are never cast: rotary frequencies in bfloat16 turn by whole radians."""
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it so
        for name, buffer in before.items():
            owner, _, last = name.rpartition(".")
            module = self.get_submodule(owner)
            setattr(module, last, buffer.to(getattr(module, last).device))
        return self

    def gradient_checkpointing_enable(self) -> None:
        """Keep one layer's activations at a time and compute them again in the backward pass."""
        for layer in self._layers():
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=False)

    def compile(self, *_: Any, **__: Any) -> None:
        """torch.compile layer by layer: one graph serves all layers of a kind, and a pack's cut is no part of it.

        A layer with checkpointing is compiled inside it: where a graph breaks in it (attention on a CPU), torch would
        compile nothing of a checkpointed call.
        """
        for layer in self._layers():
            if layer.gradient_checkpointing:
                layer._gradient_checkpointing_func = _checkpoint_compiled
            else:
                layer.compile(dynamic=False)

    def _layers(self) -> list[Any]:
        return [layer for layer in self.modules() if isinstance(layer, GradientCheckpointingLayer)]


def _checkpoint_compiled(run: "functools.partial[Any]", *args: Any) -> Any:
    """Checkpoint a layer's forward, which transformers hands over with its keywords, and compile it."""
    compiled = torch.compile(run.func, dynamic=False)
    return checkpoint(functools.partial(compiled, *run.args, **run.keywords), *args, use_reentrant=False)


@student_factory
def build(params: dict[str, Any]) -> nn.Module:
    """The network that the parameters describe.

    Raises:
        ConfigError: a parameter is unknown or missing, the folder is no such model, or the model cannot be packed.
    """
    return TransformersNetwork(load(check(CausalLmParams, params, "model.params")))


def load(params: CausalLmParams) -> PreTrainedModel:
    """The transformers model with packed attention."""
    dtype = DTYPES[params.dtype]
    if params.weights is None:
        return from_config(_config(params.config), dtype)
    return from_weights(params.weights, dtype)


def from_config(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights from torch's global generator.

    Raises:
        ConfigError: transformers has no such causal LM, or it cannot be packed.
    """
    refuse_what_cannot_be_packed(config)
    more: dict[str, Any] = {"attn_implementation": attention.NAME, "dtype": dtype}
    return _with_plain_head(AutoModelForCausalLM.from_config(copy.deepcopy(config), **more))


def from_weights(folder: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a local folder of safetensors; without its weights where torch's default device is `meta`.

    Raises:
        ConfigError: there is no such folder, weights are missing, or the model cannot be packed.
    """
    path = Path(folder).expanduser()
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"model.params.weights '{folder}' has no config.json; give the local folder of a transformers model"
        )
    config = _config(str(path / "config.json"))
    refuse_what_cannot_be_packed(config)
    if torch.get_default_device().type == "meta":
        return from_config(config, dtype)  # Only sizes are asked for, and transformers loads nothing onto it.
    more: dict[str, Any] = {"attn_implementation": attention.NAME, "dtype": dtype}
    if getattr(config, "quantization_config", None) is not None:
        more["quantization_config"] = _dequantizing(config, folder)
    logging.disable_progress_bar()
    model, loaded = load_model(
        AutoModelForCausalLM, "a causal LM", path, output_loading_info=True, ignore_mismatched_sizes=True, **more
    )
    wrong = sorted(loaded["missing_keys"]) + sorted(str(key) for key in loaded["mismatched_keys"])
    if wrong:
        raise ConfigError(
            f"the weights of {folder} lack {len(wrong)} tensors of its config.json, or have them in another shape, "
            f"e.g. {wrong[0]}; give a complete model"
        )
    return _with_plain_head(model)


def _dequantizing(config: PretrainedConfig, folder: str) -> Any:
    """How to read quantised weights as plain ones; GPT-OSS is published as MXFP4."""
    method = config.quantization_config.get("quant_method")
    if method != "mxfp4":
        raise ConfigError(f"the weights of {folder} are quantised ({method}); only mxfp4 and plain weights are read")
    return Mxfp4Config(dequantize=True)


def _config(given: dict[str, Any] | str | None) -> PretrainedConfig:
    """The transformers configuration of some keys or of a file."""
    try:
        keys = json.loads(read_text(given)) if isinstance(given, str) else dict(given or {})
        return AutoConfig.for_model(keys.pop("model_type"), **keys)
    except KeyError as error:
        raise ConfigError("model.params.config needs a `model_type` that transformers knows, e.g. qwen3") from error
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ConfigError(
            f"model.params.config is not accepted by transformers ({error}); YAML reads 1e-5 as text, 1.0e-5 as a "
            "number"
        ) from error


def refuse_what_cannot_be_packed(config: PretrainedConfig) -> None:
    """Check what a configuration and its class say of attention, positions and logits.

    Raises:
        ConfigError: it asks for something that our attention or head does not do.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigError(f"transformers has no causal LM of model_type '{config.model_type}'")
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not model_class._supports_attention_backend or model_class._is_stateful:
        raise ConfigError(
            f"{model_class.__name__} does not let its attention be replaced; documents in a pack would see each other"
        )
    text = config.get_text_config()

    def refuse(key: str, value: object, why: str) -> None:
        raise ConfigError(f"a student of model_type '{config.model_type}' cannot have {key} = {value!r}: {why}")

    if getattr(text, "attn_logit_softcapping", None) is not None:
        refuse("attn_logit_softcapping", text.attn_logit_softcapping, "packed attention does not support soft caps")
    for key in LOGIT_KEYS:
        if getattr(text, key, None) not in (None, 1, 1.0):
            refuse(key, getattr(text, key), "the head only multiplies by its weight")
    if getattr(text, "use_bidirectional_attention", None):
        refuse("use_bidirectional_attention", text.use_bidirectional_attention, "packed attention is causal")
    if getattr(text, "attention_dropout", 0.0):
        refuse("attention_dropout", text.attention_dropout, "packed attention does not support dropout; set it to 0")
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        refuse("layer_types", sorted(kinds), "such layers carry state across documents")
    moving = MOVING_ROPE & set(_rope_types(getattr(text, "rope_parameters", None) or {}))
    if moving:
        refuse("rope_type", min(moving), "it depends on the longest document of a pack; use default, yarn or llama3")


def _rope_types(parameters: dict[str, Any]) -> list[str]:
    """Kinds of rotary embedding: one for the model, or one for each kind of layer."""
    found = [value["rope_type"] for value in parameters.values() if isinstance(value, dict) and "rope_type" in value]
    return [*found, parameters["rope_type"]] if "rope_type" in parameters else found


def _with_plain_head(model: PreTrainedModel) -> PreTrainedModel:
    """The model, unless its head has a bias."""
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ConfigError(
            f"the head of {type(model).__name__} has a bias, which the chunked head does not; use a model without one"
        )
    return model.train()
