"""Causal attention inside each document of a pack, with sinks and windows, known to transformers as "packed".

transformers does not build masks from restarted positions for every model (GPT-OSS lets documents see each other), so
no mask of its own is made at all: a `Packing`, made once a pack, travels through the model to every layer.

On a CPU each document is attended on its own. A sink is one more key column of zeros whose bias is the head's sink,
which makes scaled_dot_product_attention exact, gradient of the sink included. Queries go in blocks and a sliding layer
looks only at the keys of its window, so memory is heads x block x keys and a sliding layer's time is linear.

On a GPU torch's flex_attention runs over the whole pack, and a sink scales its output by sigmoid(log-sum-exp - sink).
Documents are contiguous, so a query sees exactly the keys from a first visible one to itself, and that one number a
query says everything: which blocks of keys are needed, which of them need no mask, and the mask inside the others.
Block masks cost T + (T / 128)^2 numbers a pack and window, no T x T. All shapes follow from T alone, so nothing
recompiles.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "packed"
"""What transformers knows this attention by (a name with "sdpa" in it is refused by models with sinks)."""

QUERY_BLOCK = 512
"""Queries that are attended at a time on a CPU."""

MASK_BLOCK = 128
"""Queries and keys in one block of a block mask."""

Window = int | None
"""Keys that a query sees, itself included; None for all of its document."""


@dataclass(frozen=True)
class Packing:
    """How one pack is cut, in the form that its device needs."""

    documents: tuple[tuple[int, int], ...]
    """[start, end) of each document that has tokens; empty on a GPU, where nothing may wait for the device."""
    block_masks: Mapping[Window, BlockMask]
    """One for each window of the model; empty on a CPU."""

    @classmethod
    def of(cls, cu_seqlens: torch.Tensor, num_tokens: int, windows: Iterable[Window]) -> "Packing":
        """The packing of T tokens into the documents of `cu_seqlens`, int32 [n + 1]; a document may have no token."""
        if cu_seqlens.device.type == "cpu":
            return cls(tuple((start, end) for start, end in pairwise(cu_seqlens.tolist()) if start < end), {})
        return cls((), {window: block_mask(first_visible(cu_seqlens, num_tokens, window)) for window in windows})


def first_visible(cu_seqlens: torch.Tensor, num_tokens: int, window: Window) -> torch.Tensor:
    """The first key that each query sees, int32 [T], never falling; the last one is the query itself."""
    positions = torch.arange(num_tokens, device=cu_seqlens.device, dtype=torch.int32)
    document = torch.searchsorted(cu_seqlens, positions, right=True) - 1
    start = cu_seqlens[document]
    return start if window is None else torch.maximum(start, positions - (window - 1))


def mask_mod(first: torch.Tensor) -> Callable[..., torch.Tensor]:
    """flex_attention's mask function for `first_visible`'s answer."""

    def visible(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key <= query) & (key >= first[query])

    return visible


def block_mask(first: torch.Tensor) -> BlockMask:
    """Which blocks of keys each block of queries needs, from `first_visible`'s answer.

    The keys that a block of queries sees run without a gap from the first key of its first query to its last query. A
    block of keys needs no mask where the last query sees its first key and the first query sees its last.
    """
    num_tokens = len(first)
    row = torch.arange(-(-num_tokens // MASK_BLOCK), device=first.device, dtype=torch.int32)
    begin = first[row * MASK_BLOCK] // MASK_BLOCK
    last_query = torch.clamp((row + 1) * MASK_BLOCK, max=num_tokens) - 1
    begin_full = (first[last_query] + MASK_BLOCK - 1) // MASK_BLOCK
    needed = (row >= begin[:, None]) & (row <= row[:, None])
    full = (row >= begin_full[:, None]) & (row < row[:, None])
    return BlockMask.from_kv_blocks(
        *_listed(needed & ~full),
        *_listed(full),
        BLOCK_SIZE=MASK_BLOCK,
        mask_mod=mask_mod(first),
        seq_lengths=(num_tokens, num_tokens),
    )


def _listed(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Chosen columns of each row: how many, int32 [1, 1, rows], and which, before all others [1, 1, rows, rows]."""
    order = torch.argsort(chosen.to(torch.int8), dim=1, descending=True, stable=True)
    return chosen.sum(dim=1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    packing: Packing,
    scaling: float | None = None,
    sliding_window: Window = None,
    s_aux: torch.Tensor | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document, with the signature that transformers calls.

    `query` is [1, heads, T, head_dim], `key` and `value` [1, kv_heads, T, head_dim], `s_aux` the sinks [heads] where
    the model has any. Gives [1, T, heads, head_dim], and None in place of attention weights.
    """
    if query.is_cuda:
        output = flex(query, key, value, s_aux, packing.block_masks[sliding_window], scaling)
    else:
        output = _by_document_uncompiled(query, key, value, s_aux, packing, sliding_window, scaling)
    return output.transpose(1, 2), None


@functools.cache
def _compiled_flex() -> Any:
    """Made at first use: torch.compile imports the compiler, which takes seconds that a CPU need not spend."""
    return torch.compile(flex_attention, dynamic=False)


def flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    mask: BlockMask,
    scaling: float | None,
) -> torch.Tensor:
    """[1, heads, T, head_dim] by flex_attention over the whole pack."""
    attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    output, aux = attend(
        query,
        key,
        value,
        block_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    return output if sinks is None else scaled_by_sinks(output, aux.lse, sinks)


def scaled_by_sinks(output: torch.Tensor, lse: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """Attention with a sink from attention without one.

    With Z the sum of exp(score), `lse` = ln Z (float32 [1, heads, T]), a sink s makes the denominator Z + exp(s):
    the output shrinks by Z / (Z + exp(s)) = sigmoid(lse - s).
    """
    kept = torch.sigmoid(lse - sinks.to(lse.dtype)[None, :, None])
    return (output * kept[..., None]).to(output.dtype)


def by_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    packing: Packing,
    window: Window,
    scaling: float | None,
) -> torch.Tensor:
    """[1, heads, T, head_dim], one document and QUERY_BLOCK queries at a time."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key = key.repeat_interleave(groups, dim=1)
        value = value.repeat_interleave(groups, dim=1)
    blocks = []
    for start, end in packing.documents:
        if sinks is None and (window is None or window >= end - start):
            rows = slice(start, end)
            blocks.append(
                scaled_dot_product_attention(
                    query[:, :, rows], key[:, :, rows], value[:, :, rows], is_causal=True, scale=scaling
                )
            )
        else:
            for first in range(start, end, QUERY_BLOCK):
                rows_of = (start, first, min(first + QUERY_BLOCK, end))
                blocks.append(_block(query, key, value, sinks, rows_of, window, scaling))
    return torch.cat(blocks, dim=2)


def _block(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor | None,
    rows: tuple[int, int, int],
    window: Window,
    scaling: float | None,
) -> torch.Tensor:
    """Queries [first, last) of the document that begins at `start`: [1, heads, last - first, head_dim]."""
    start, first, last = rows
    begin = start if window is None else max(start, first - window + 1)
    query, key, value = query[:, :, first:last], key[:, :, begin:last], value[:, :, begin:last]
    ahead = torch.arange(first, last, device=query.device)[:, None] - torch.arange(begin, last, device=query.device)
    visible = (ahead >= 0) if window is None else (ahead >= 0) & (ahead < window)
    bias = torch.zeros(visible.shape, dtype=query.dtype, device=query.device).masked_fill_(~visible, -torch.inf)
    if sinks is not None:
        sink = sinks.to(query.dtype)[:, None, None].expand(-1, len(bias), 1)
        bias = torch.cat([sink, bias.expand(len(sinks), -1, -1)], dim=2)[None]
        key = torch.nn.functional.pad(key, (0, 0, 1, 0))
        value = torch.nn.functional.pad(value, (0, 0, 1, 0))
    return scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)


_by_document_uncompiled: Any = torch.compiler.disable(by_document)
"""A graph of it would hold one pack's borders."""

AttentionInterface.register(NAME, packed_attention)
