"""Dense to mixture of experts: a student that starts as its dense parent, bit for bit, with room to specialise.

    params: {parent: {weights: path/to/folder}, experts: 8, experts_per_token: 2}

Each MLP becomes one shared expert, which is the parent's MLP as it was (shared experts: Dai et al. 2024, DeepSeekMoE),
and `experts` routed ones that begin as copies of it (sparse upcycling: Komatsuzaki et al. 2023), except that their down
projection is zero. So the routed part adds exactly nothing at step 0, in any precision, whatever the router says; the
first gradient reaches the down projections, from the first update on everything, router included. (Copies that keep
their down projection would have to be scaled against the shared one and against the router, which is exact in no
precision and gives a router of equal experts no gradient.)

Experts narrower than the parent's MLP are slices of it, dealt round and round. The result is a Glm4MoeForCausalLM, the
architecture that transformers and inference servers know with all of it: shared expert, grouped-query attention,
optional query and key norms or biases. It has no sliding windows, so a parent with active ones is refused. Building
costs both models in memory.
"""

from typing import Any

import torch
from pydantic import Field
from torch import nn
from transformers import Glm4MoeConfig, PretrainedConfig, PreTrainedModel

from etl.conf import check
from etl.config import Config
from etl.errors import ConfigError
from training.models.causal_lm import CausalLmParams, TransformersNetwork, from_config, load
from training.models.config import student_factory

PARENTS = ("llama", "mistral", "qwen2", "qwen3")
"""model_types whose layers differ from the target's in nothing but the MLP."""


class UpcycleParams(Config):
    """The dense parent and the experts to make of it."""

    parent: CausalLmParams
    """As for training.models.causal_lm:build."""
    experts: int = Field(ge=2)
    """Routed experts of each layer, beside the shared one."""
    experts_per_token: int = Field(ge=1)
    expert_intermediate: int | None = Field(default=None, ge=1)
    """Width of a routed expert, a divisor of the parent's MLP; null for the whole width."""
    router_std: float = Field(default=0.02, gt=0)
    """Of the router's random weights."""


@student_factory
def build(params: dict[str, Any]) -> nn.Module:
    """The network, with the parent's logits.

    Raises:
        ConfigError: a parameter is unknown or out of range, or the parent cannot be upcycled.
    """
    given = check(UpcycleParams, params, "model.params")
    parent = load(given.parent)
    width = given.expert_intermediate or parent.config.intermediate_size
    if parent.config.intermediate_size % width:
        raise ConfigError(
            f"model.params.expert_intermediate = {width} must divide the parent's MLP of "
            f"{parent.config.intermediate_size}"
        )
    if given.experts_per_token > given.experts:
        raise ConfigError(
            f"model.params.experts_per_token = {given.experts_per_token} exceeds experts = {given.experts}"
        )
    child = from_config(_config(parent.config, given, width), parent.dtype)
    child.load_state_dict(_weights(parent, child, width), strict=True)
    return TransformersNetwork(child)


def _config(parent: PretrainedConfig, given: UpcycleParams, width: int) -> Glm4MoeConfig:
    if parent.model_type not in PARENTS:
        raise ConfigError(
            f"a {parent.model_type} parent cannot be upcycled; model_type must be one of {', '.join(PARENTS)}"
        )
    if "sliding_attention" in (getattr(parent, "layer_types", None) or ()) or (
        parent.model_type == "mistral" and parent.sliding_window is not None
    ):
        raise ConfigError(
            "a parent with sliding windows cannot be upcycled; set sliding_window to null if it is not used"
        )
    if parent.model_type == "llama" and (parent.attention_bias or parent.mlp_bias):
        raise ConfigError("a llama parent with attention_bias or mlp_bias cannot be upcycled")
    heads = parent.num_attention_heads
    # What the class takes without declaring it.
    undeclared: dict[str, Any] = {
        "head_dim": getattr(parent, "head_dim", None) or parent.hidden_size // heads,
        "num_nextn_predict_layers": 0,
    }
    return Glm4MoeConfig(
        vocab_size=parent.vocab_size,
        hidden_size=parent.hidden_size,
        intermediate_size=parent.intermediate_size,
        num_hidden_layers=parent.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=parent.num_key_value_heads,
        hidden_act=parent.hidden_act,
        max_position_embeddings=parent.max_position_embeddings,
        initializer_range=given.router_std,
        rms_norm_eps=parent.rms_norm_eps,
        tie_word_embeddings=parent.tie_word_embeddings,
        rope_parameters={**parent.rope_parameters, "partial_rotary_factor": 1.0},
        attention_bias=parent.model_type == "qwen2" or getattr(parent, "attention_bias", False),
        use_qk_norm=parent.model_type == "qwen3",
        n_shared_experts=parent.intermediate_size // width,
        moe_intermediate_size=width,
        n_routed_experts=given.experts,
        num_experts_per_tok=given.experts_per_token,
        # The weight of a single expert that is divided by itself would be 1 and teach the router nothing.
        norm_topk_prob=given.experts_per_token > 1,
        first_k_dense_replace=0,
        bos_token_id=parent.bos_token_id,
        eos_token_id=parent.eos_token_id,
        pad_token_id=parent.pad_token_id,
        **undeclared,
    )


def _weights(parent: PreTrainedModel, child: PreTrainedModel, width: int) -> dict[str, torch.Tensor]:
    """The child's state: the parent's weights, expert slices of its MLPs, and the child's own random routers."""
    weights = {name.replace(".mlp.", ".mlp.shared_experts."): value for name, value in parent.state_dict().items()}
    for name, value in child.state_dict().items():
        prefix, _, last = name.rpartition(".experts.")
        if last == "gate_up_proj":
            weights[name] = _slices(weights, f"{prefix}.shared_experts", value)
        elif last == "down_proj":
            weights[name] = torch.zeros_like(value)
        elif ".mlp.gate." in name:
            weights[name] = value
    return weights


def _slices(weights: dict[str, torch.Tensor], shared: str, like: torch.Tensor) -> torch.Tensor:
    """[experts, 2 * width, hidden]: for each expert, gate over up projection of `width` of the shared one's neurons."""
    experts, width = like.shape[0], like.shape[1] // 2
    gate, up = weights[f"{shared}.gate_proj.weight"], weights[f"{shared}.up_proj.weight"]
    neurons = (torch.arange(experts)[:, None] * width + torch.arange(width)) % len(gate)
    return torch.cat([gate[neurons], up[neurons]], dim=1)
