"""The load-balancing loss of mixture-of-experts layers: separately for each layer, over the tokens of documents only.

    L = coefficient * mean over layers of E * sum over experts e of f_e * P_e   (Fedus et al. 2021, eq. 4)

f_e is the part of the routed tokens (of all k choices) that went to expert e, P_e the mean router probability of e;
an even layer gives 1, a layer that uses one expert E / k or more. Both are of the global micro-batch: token counts are
all-reduced (they have no gradient), and a rank's part of P is its sum of probabilities over the *global* number of
tokens, so the ranks' losses sum to L and their gradients to L's. Pooling the layers instead would call four layers
that each use another one of four experts balanced. The optional z-loss is the mean squared logsumexp of router logits.
Cost: one all-reduce of layers x experts numbers a micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from pydantic import Field

from etl.config import Config


class RouterConfig(Config):
    """Losses on the router's logits; a coefficient of 0 turns one off."""

    aux_coefficient: float = Field(default=0.001, ge=0)
    """Coefficient of the load-balancing loss, which is 1 if every expert gets the same share."""
    z_coefficient: float = Field(default=0.0, ge=0)
    """Coefficient of the mean squared logsumexp of the router's logits."""


@dataclass(frozen=True)
class RouterSums:
    """This rank's sums over the tokens of documents of one micro-batch; to be summed over packs and ranks."""

    load: torch.Tensor
    """int64 [layers, experts]: tokens sent to each expert, one count for each of a token's choices."""
    probability: torch.Tensor
    """float64 [layers, experts]: sums of router probabilities."""
    entropy: torch.Tensor
    """float64 [layers]: sums of the entropy in nats of a token's router probabilities."""
    z: torch.Tensor
    """float64 [layers]: sums of the squared logsumexp of a token's router logits."""


def router_loss(
    router_logits: Sequence[torch.Tensor],
    in_document: torch.Tensor,
    experts_per_token: int,
    config: RouterConfig,
    share: float | torch.Tensor,
) -> tuple[torch.Tensor, RouterSums]:
    """This rank's part of the router's losses in one micro-batch.

    Every rank must call it at the same time where there are processes and layers.

    Args:
        router_logits: [T, experts] of each layer; empty for a dense student.
        in_document: bool [T], false for room.
        experts_per_token: k.
        config: the coefficients.
        share: this micro-batch's part of the global batch.

    Returns:
        A scalar (float32 at least; zero for a dense student), and the sums.
    """
    if not router_logits:
        nothing = torch.zeros(0, dtype=torch.float64, device=in_document.device)
        sums = RouterSums(nothing.long().reshape(0, 0), nothing.reshape(0, 0), nothing, nothing)
        return torch.zeros((), device=in_document.device), sums
    logits = torch.stack([layer.to(torch.promote_types(layer.dtype, torch.float32)) for layer in router_logits])
    inside = in_document.to(logits.dtype)[:, None]
    log_z = logits.logsumexp(dim=-1)
    probabilities = (logits - log_z[..., None]).exp()
    load = _load(logits.detach(), in_document, experts_per_token)
    total_load = _all_reduced(load)
    # Every layer routes each token to the same number of experts; a micro-batch without documents has a loss of 0.
    num_tokens = (total_load.sum(dim=1) / experts_per_token).clamp(min=1)
    frequency = total_load / (num_tokens * experts_per_token)[:, None]
    mean_probability = (probabilities * inside).sum(dim=1) / num_tokens[:, None].to(logits.dtype)
    balance = logits.shape[-1] * (frequency.to(logits.dtype) * mean_probability).sum(dim=1)
    z = (log_z.square() * inside[:, 0]).sum(dim=1)
    loss = config.aux_coefficient * balance.mean() + config.z_coefficient * (z / num_tokens.to(z.dtype)).mean()
    with torch.no_grad():
        sums = RouterSums(
            load=load,
            probability=(probabilities * inside).sum(dim=1).double(),
            entropy=(torch.special.entr(probabilities).sum(dim=-1) * inside[:, 0]).sum(dim=1).double(),
            z=z.detach().double(),
        )
    return loss * share, sums


def _load(logits: torch.Tensor, in_document: torch.Tensor, experts_per_token: int) -> torch.Tensor:
    """int64 [layers, experts]: tokens sent to each expert; logits [layers, T, experts]."""
    chosen = logits.topk(experts_per_token, dim=-1).indices.flatten(1)
    counted = in_document.long().repeat_interleave(experts_per_token).expand_as(chosen)
    zero = torch.zeros(len(logits), logits.shape[-1], dtype=torch.int64, device=logits.device)
    return zero.scatter_add_(1, chosen, counted)


def _all_reduced(load: torch.Tensor) -> torch.Tensor:
    """float64 sum over the ranks."""
    total = load.double()
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    return total
