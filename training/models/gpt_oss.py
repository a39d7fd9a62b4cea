"""A student of GPT-OSS's shape of any size: transformers' backbone, packed attention, and a head that gives losses.

State keys are those of GptOssForCausalLM (model.*, lm_head.weight), so a trained student loads there. Sliding and full
attention alternate as in GPT-OSS; the experts are stacked parameters, which ZeRO 0-3 takes as they are.
"""

from typing import Any

import torch
from pydantic import Field
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssModel

from etl.conf import check
from etl.config import Config
from training.losses.chunked_head import LmHead
from training.models import attention
from training.models.factory import Student, StudentOutput


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
    vocab: int = Field(default=201_088, ge=2)
    sliding_window: int = Field(default=128, ge=1)
    """Tokens that odd layers see, the token itself included."""
    init_std: float = Field(default=0.02, gt=0)


class GptOssStudent(Student):
    """Randomly initialised from torch's global generator."""

    def __init__(self, config: GptOssConfig) -> None:
        super().__init__()
        self.model = GptOssModel(config)
        self.lm_head = LmHead(config.hidden_size, config.vocab_size)
        torch.nn.init.normal_(self.lm_head.weight, std=config.initializer_range)
        self.experts_per_token = config.num_experts_per_tok

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: torch.Tensor) -> StudentOutput:
        output = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            cu_seqlens=cu_seqlens,
            use_cache=False,
            output_router_logits=True,
        )
        return output.last_hidden_state[0], tuple(output.router_logits)


def build(params: dict[str, Any]) -> Student:
    """The student that the parameters describe.

    Raises:
        ConfigError: a parameter is unknown, missing or out of range.
    """
    sizes = check(GptOssParams, params, "model.params")
    undeclared: dict[str, Any] = {"attn_implementation": attention.NAME}
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
        **undeclared,
    )
    return GptOssStudent(config)
