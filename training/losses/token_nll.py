"""-ln p of one target per row: the RowLoss of cross-entropy and everything based on a token's log-probability.

The logits become exp(logit - largest) in place, and their gradient by one subtraction at the target; division by the
row's sum is left to the scale of the row, which saves a pass over rows x vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.losses.chunked_head import RowLosses


@dataclass(frozen=True)
class TokenNll:
    """Negative log-likelihoods in nats."""

    targets: torch.Tensor
    """int64 [S]"""
    coefficients: torch.Tensor | None
    """[S], or None (see RowLoss)."""
    num_buffers: int = 1
    vocab_size: int | None = None

    def __call__(self, buffers: Sequence[torch.Tensor], rows: slice) -> RowLosses:
        (logits,) = buffers
        targets = self.targets[rows, None]
        logits -= logits.amax(dim=1, keepdim=True)
        picked = logits.gather(1, targets)
        sums = logits.exp_().sum(dim=1, keepdim=True)
        nll = (sums.log() - picked)[:, 0]
        logits.scatter_add_(1, targets, -sums)
        weights = self.weights(nll, rows)
        return RowLosses(nll, weights, weights / sums[:, 0])

    def weights(self, nll: torch.Tensor, rows: slice) -> torch.Tensor:
        """What each of the rows counts, [n]; `nll` is not differentiated."""
        return torch.ones_like(nll) if self.coefficients is None else self.coefficients[rows].to(nll.dtype)
