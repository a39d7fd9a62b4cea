"""Attention over packed documents with GPT-OSS sinks, registered with transformers as "packed_sinks".

transformers builds no mask from position_ids for this model, so documents in one sequence would see each other; here
each document is attended on its own by the ranges of `cu_seqlens`. The sink is one more key column of zeros whose bias
is the head's sink, which makes scaled_dot_product_attention exact, gradient of the sink included. Queries go in blocks
and a sliding layer looks only at the keys of its window, so memory is heads x block x keys, and a sliding layer's
time is linear in the length.
"""

from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "packed_sinks"
"""transformers treats any name with "sdpa" in it as its own kernel and refuses it for this model."""

QUERY_BLOCK = 512


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    sliding_window: int | None,
    s_aux: torch.Tensor,
    cu_seqlens: torch.Tensor,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document, with the signature that transformers calls.

    `query` is [1, heads, T, head_dim], `key` and `value` [1, kv_heads, T, head_dim], `s_aux` the sinks [heads],
    `cu_seqlens` int32 [documents + 1]; `sliding_window` is the number of keys that a query sees, itself included (None
    for all before it). Gives [1, T, heads, head_dim], and None in place of attention weights.
    """
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    bounds = cu_seqlens.tolist()
    blocks = [
        _block(query, key, value, s_aux, (start, first, min(first + QUERY_BLOCK, end)), sliding_window, scaling)
        for start, end in pairwise(bounds)
        for first in range(start, end, QUERY_BLOCK)
    ]
    return torch.cat(blocks, dim=2).transpose(1, 2), None


def _block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor,
    rows: tuple[int, int, int],
    window: int | None,
    scaling: float,
) -> torch.Tensor:
    """Queries [first, last) of the document that begins at `start`: [1, heads, last - first, head_dim]."""
    start, first, last = rows
    begin = start if window is None else max(start, first - window + 1)
    ahead = torch.arange(first, last, device=query.device)[:, None] - torch.arange(begin, last, device=query.device)
    visible = (ahead >= 0) if window is None else (ahead >= 0) & (ahead < window)
    bias = torch.zeros(visible.shape, dtype=query.dtype, device=query.device).masked_fill_(~visible, -torch.inf)
    sink = sinks.to(query.dtype)[:, None, None].expand(-1, len(bias), 1)
    bias = torch.cat([sink, bias.expand(len(sinks), -1, -1)], dim=2)[None]
    no_key = torch.zeros_like(key[:, :, :1])
    return scaled_dot_product_attention(
        query[:, :, first:last],
        torch.cat([no_key, key[:, :, begin:last]], dim=2),
        torch.cat([no_key, value[:, :, begin:last]], dim=2),
        attn_mask=bias,
        scale=scaling,
    )


def _no_mask(*_: object, **__: object) -> None:
    """`cu_seqlens` says all; no mask of T x T is ever made."""


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, _no_mask)
