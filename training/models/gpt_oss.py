"""A student of any size with GPT-OSS's architecture, or GPT-OSS itself from a local folder of weights.

Sliding and full attention alternate and every head has a sink as in GPT-OSS; the experts are stacked parameters, which
ZeRO 0-3 takes as they are. Names of weights are those of GptOssForCausalLM.
"""

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn
from transformers import GptOssConfig

from etl.conf import check
from etl.config import Config
from etl.harmony.vocabulary import VOCAB_SIZE
from training.models.causal_lm import CausalLmParams, TransformersNetwork, from_config, load
from training.models.config import student_factory


class GptOssParams(Config):
    """Sizes of the student."""

    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2, multiple_of=2)
    intermediate: int = Field(ge=1)
    """Width of one expert."""
    experts: int = Field(ge=1)
    experts_per_token: int = Field(ge=1)
    vocab: int = Field(default=VOCAB_SIZE, ge=2)
    sliding_window: int = Field(default=128, ge=1)
    """Tokens that even layers, the first among them, see; the token itself included."""
    init_std: float = Field(default=0.02, gt=0)
    tied: bool = False
    """One matrix for embedding and head."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "GptOssParams":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads is {self.heads}, but must be a multiple of kv_heads, {self.kv_heads}")
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token is {self.experts_per_token}, more than the {self.experts} experts")
        return self


@student_factory
def build(params: dict[str, Any]) -> nn.Module:
    """The network of some sizes (see GptOssParams), or of `weights`, a local folder (see CausalLmParams).

    Raises:
        ConfigError: a parameter is unknown, missing or out of range, or the folder is no such model.
    """
    if "weights" in params:
        return TransformersNetwork(load(check(CausalLmParams, params, "model.params")))
    sizes = check(GptOssParams, params, "model.params")
    config = GptOssConfig(
        num_hidden_layers=sizes.layers,
        hidden_size=sizes.hidden,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.intermediate,
        num_local_experts=sizes.experts,
        num_experts_per_tok=sizes.experts_per_token,
        vocab_size=sizes.vocab,
        sliding_window=sizes.sliding_window,
        initializer_range=sizes.init_std,
        tie_word_embeddings=sizes.tied,
        attention_dropout=0.0,
        pad_token_id=None,
    )
    return TransformersNetwork(from_config(config, torch.float32))
