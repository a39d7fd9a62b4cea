"""Span-normalised cross-entropy: each kind of span weighs the same however many tokens it has.

    L = sum over kinds k of w_k * S_k / N_k

S_k is the sum of -log p over the supervised tokens of kind k of the whole global batch and N_k their number, header
and closing tokens included. A rank and a micro-batch never divide by their own counts: each row gets the coefficient
w_k / N_k with the global N_k, so the losses of all packs of all ranks sum to L. (Data parallelism takes the mean over
ranks; the engine multiplies by their number.) A kind without tokens adds nothing.
"""

import torch
from pydantic import Field

from etl.config import Config
from etl.schema import SPAN_KINDS


class SpanWeights(Config):
    """w_k of each span kind."""

    analysis: float = Field(default=1.0, ge=0)
    commentary: float = Field(default=1.0, ge=0)
    final: float = Field(default=1.0, ge=0)
    text: float = Field(default=1.0, ge=0)

    def tensor(self) -> torch.Tensor:
        """float64 [kinds], in the order of SPAN_KINDS."""
        return torch.tensor([getattr(self, kind) for kind in SPAN_KINDS], dtype=torch.float64)


def coefficients(weights: torch.Tensor, global_counts: torch.Tensor) -> torch.Tensor:
    """What one row of each kind counts in the loss: float64 [kinds], w_k / N_k, 0 where N_k is 0."""
    return torch.where(global_counts > 0, weights / global_counts.clamp(min=1), 0.0)


def sums(nll: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
    """S_k of some rows: float64 [kinds], from their losses [S] and kinds int64 [S]."""
    return torch.zeros(len(SPAN_KINDS), dtype=torch.float64, device=nll.device).index_add_(0, kind, nll.double())


def span_ce(weights: torch.Tensor, global_sums: torch.Tensor, global_counts: torch.Tensor) -> float:
    """L from float64 [kinds] sums and counts of the whole global batch."""
    return float((weights * global_sums / global_counts.clamp(min=1)).sum())


def means(global_sums: torch.Tensor, global_counts: torch.Tensor) -> dict[str, float]:
    """Mean loss in nats of each span kind that has tokens."""
    return {
        kind: float(total / count)
        for kind, total, count in zip(SPAN_KINDS, global_sums, global_counts, strict=True)
        if count > 0
    }
