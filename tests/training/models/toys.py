"""Toy students of each family, packs of random ids, and the oracle: transformers' eager attention under 4-D masks."""

import copy
from itertools import pairwise

import torch
from torch.nn.functional import cross_entropy

from training.models.config import ModelConfig
from training.models.factory import build_student, export_state

VOCAB = 97
WINDOW = 6

SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

DENSE = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen2_window": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "max_window_layers": 1,
    },
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": WINDOW},
    "gemma3_text": {"head_dim": 8, "sliding_window": WINDOW, "sliding_window_pattern": 2},
}
ROUTED = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "gpt_oss": {
        "head_dim": 8, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
}  # fmt: skip
FAMILIES = {**DENSE, **ROUTED}

BOUNDS = [0, 1, 20, 50, 64, 64, 64]
"""Documents of 1, 19, 30 and 14 tokens, and two without any."""


def family(name):
    """Keys of a transformers configuration."""
    return {"model_type": name, **SIZES, **FAMILIES[name]}


def config_of(name, **more):
    return ModelConfig(factory="training.models.causal_lm:build", params={"config": family(name)}, **more)


def student_of(name, seed=3, **more):
    return build_student(config_of(name, **more), seed)


def pack(bounds=BOUNDS, vocab=VOCAB):
    """input_ids and position_ids int64 [1, T], cu_seqlens int32."""
    ids = torch.randint(vocab, (1, bounds[-1]), generator=torch.Generator().manual_seed(5))
    positions = torch.cat([torch.arange(end - start) for start, end in pairwise(bounds)])[None]
    return ids, positions, torch.tensor(bounds, dtype=torch.int32)


def visible(bounds, window):
    """bool [T, T]: whether a query sees a key, by the definition."""
    document = torch.bucketize(torch.arange(bounds[-1]), torch.tensor(bounds[1:]), right=True)
    ahead = torch.arange(bounds[-1])[:, None] - torch.arange(bounds[-1])
    seen = (document[:, None] == document) & (ahead >= 0)
    return seen if window is None else seen & (ahead < window)


def oracle_of(student):
    """The transformers class with the student's weights and eager attention."""
    # _from_config writes the attention's name into the configuration.
    config = copy.deepcopy(student.hf_config)
    oracle = student.hf_class._from_config(config, attn_implementation="eager")
    oracle.load_state_dict(export_state(student, student.state_dict()), strict=not config.tie_word_embeddings)
    oracle.tie_weights()
    return oracle


def oracle_logits(oracle, bounds=BOUNDS):
    """[T, V] of a whole pack, each kind of layer under a 4-D mask that is written out in full."""
    config = oracle.config
    masks = {
        kind: torch.zeros(bounds[-1], bounds[-1]).masked_fill(~visible(bounds, window), torch.finfo().min)[None, None]
        for kind, window in (("full_attention", None), ("sliding_attention", getattr(config, "sliding_window", None)))
    }
    if not getattr(config, "layer_types", None):
        masks = masks["sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"]
    ids, positions, _ = pack(bounds)
    return oracle(input_ids=ids, position_ids=positions, attention_mask=masks, use_cache=False).logits[0]


def logits_of(student, bounds=BOUNDS):
    """[T, V]"""
    hidden, _ = student(*pack(bounds))
    return hidden @ student.lm_head.weight.T


def losses(logits, bounds=BOUNDS):
    """−ln p of each token that is not its document's first: [tokens − documents]."""
    ids = pack(bounds)[0][0]
    rows = torch.tensor([row for start, end in pairwise(bounds) for row in range(start, end - 1)])
    return cross_entropy(logits[rows], ids[rows + 1], reduction="none")
