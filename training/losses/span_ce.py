"""Cross-entropy to the corpus's tokens, by default normalised by span kind; see spans.py for what that means.

The defaults are the warm start's: every kind weighs 1, so a short answer counts as much as the long analysis before it.
"""

from typing import Literal

import torch

from training.data.collate import PackTensors
from training.losses.chunked_head import LmHead
from training.losses.spans import LossOutput, SpanObjective, StepContext, Supervised
from training.losses.token_nll import TokenNll


class CrossEntropy(SpanObjective):
    """`kind: ce`. Sums: -log p by span kind."""

    kind: Literal["ce"] = "ce"

    def loss(self, head: LmHead, hidden: torch.Tensor, batch: PackTensors, step: StepContext) -> LossOutput:
        """Loss of a pack from its hidden states [T, H]."""
        here = self.supervised(batch, step)
        total, nll = head(hidden.index_select(0, here.rows), TokenNll(here.targets, here.coefficients))
        return LossOutput(total, self.sums(here, nll))

    def sums(self, here: Supervised, nll: torch.Tensor) -> torch.Tensor:
        """What is summed over packs and ranks, from -log p of each supervised row: float64, by kind [kinds] first."""
        return here.sums(nll)
