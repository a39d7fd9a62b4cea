"""Base of the losses that pull a student towards a teacher's distribution, optionally mixed with cross-entropy.

    alpha * f * D + (1 - alpha) * -ln p(t)      a token; f is T squared with `times_temperature_squared`, else 1

D is the divergence at temperature T, p the student at temperature 1 over its whole head, as `kind: ce` has it. Both
come from one product with the head; what is made of the logits costs a pass or two over them more.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field

from training.losses.spans import KINDS, LossOutput, SpanObjective, Supervised, token_mean, token_means

COLUMNS = 8192
"""Ids of a chunk whose intermediate values exist beside the buffers: few enough to stay in a cache or near it."""


def columns_of(logits: torch.Tensor) -> Iterator[slice]:
    """The ids of a chunk in parts of COLUMNS."""
    for start in range(0, logits.shape[1], COLUMNS):
        yield slice(start, min(start + COLUMNS, logits.shape[1]))


@dataclass(frozen=True)
class Anchor:
    """Cross-entropy to the rows' own targets, beside a divergence."""

    targets: torch.Tensor
    """int64 [S]"""
    alpha: float
    """The divergence's part, below 1."""
    parts: torch.Tensor
    """[2, S], written by the RowLoss: the divergence and -ln p of each row."""

    def mixed(self, divergence: torch.Tensor, factor: float, nll: torch.Tensor, rows: slice) -> torch.Tensor:
        """The values of some rows, [n]; keeps both parts."""
        self.parts[:, rows] = torch.stack([divergence, nll]).to(self.parts.dtype)
        return self.alpha * factor * divergence + (1 - self.alpha) * nll


class DistillationObjective(SpanObjective):
    """Adds to the report what the mixture is made of. Sums by span kind: the loss, and below alpha 1 D and -ln p."""

    alpha: float = Field(default=1.0, ge=0, le=1)
    """Weight of the divergence; the rest is cross-entropy with the corpus's tokens."""

    def anchor(self, here: Supervised) -> Anchor | None:
        """What a RowLoss mixes in; None at alpha 1."""
        parts = here.coefficients.new_zeros(2, len(here.rows))
        return Anchor(here.targets, self.alpha, parts) if self.alpha < 1 else None

    def output(self, here: Supervised, anchor: Anchor | None, found: tuple[torch.Tensor, torch.Tensor]) -> LossOutput:
        """The loss of a pack from the head's results, total and values."""
        total, values = found
        parts = () if anchor is None else anchor.parts
        return LossOutput(total, torch.cat([here.sums(values), *map(here.sums, parts)]))

    def report(self, counts: torch.Tensor, sums: torch.Tensor) -> dict[str, Any]:
        """Below alpha 1 adds `kl` and `ce`, means over tokens, and `span_kl` and `span_ce`, by kind."""
        found = super().report(counts, sums)
        if self.alpha < 1:
            for name, part in (("kl", sums[KINDS : 2 * KINDS]), ("ce", sums[2 * KINDS :])):
                found |= {name: token_mean(counts, part), f"span_{name}": token_means(counts, part)}
        return found
