"""On-policy distillation: reverse KL to the teacher by its score-function gradient, on tokens that the student sampled.

    a_t = ln p_teacher(t) - ln p_student(t), not differentiated;   S_k = sum over tokens of -a_t * ln p_student(t)

Its value is no divergence. What falls is the estimate of KL(student || teacher): k1 (mean of -a, unbiased) and k3 (mean
of exp(a) - 1 - a, never negative; Schulman 2020) are logged, and as `loss` the mean of -ln p_student. It holds for
tokens sampled from this student at temperature 1 and for a teacher scored at temperature 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field

from training.data.collate import PackTensors
from training.losses.chunked_head import LmHead, RowLosses
from training.losses.spans import KINDS, LossOutput, StepContext, token_means
from training.losses.teacher_signal import TeacherSignalObjective
from training.losses.token_nll import TokenNll


@dataclass(frozen=True)
class AdvantageNll:
    """-ln p of each row's target, counted by the row's own advantage: known once its logits are."""

    targets: torch.Tensor
    """int64 [S]"""
    coefficients: torch.Tensor
    """[S]"""
    teacher_logp: torch.Tensor
    """[S]"""
    clip: float
    """Largest |a|."""
    num_buffers: int = 1
    vocab_size: int | None = None

    def __call__(self, buffers: Sequence[torch.Tensor], rows: slice) -> RowLosses:
        nll, _, inverse_sums = TokenNll(self.targets, None)(buffers, rows)
        weights = self.coefficients[rows].to(nll.dtype) * advantages(self.teacher_logp[rows], nll, self.clip)
        return RowLosses(nll, weights, weights * inverse_sums)


def advantages(teacher_logp: torch.Tensor, nll: torch.Tensor, clip: float) -> torch.Tensor:
    """a_t, in the type of the student's losses."""
    return (teacher_logp.to(nll.dtype) + nll).clamp(-clip, clip)


class OnPolicy(TeacherSignalObjective):
    """`kind: opd`. Sums by span kind: -ln p, then k1 and k3."""

    kind: Literal["opd"] = "opd"
    advantage_clip: float = Field(default=float("inf"), gt=0)
    """Largest |a|; limits the effect on a step of one token that the teacher finds very unlikely."""

    def loss(self, head: LmHead, hidden: torch.Tensor, batch: PackTensors, step: StepContext) -> LossOutput:
        """Loss of a pack from its hidden states [T, H]."""
        here = self.supervised(batch, step)
        teacher_logp = self.teacher_logp(batch, here)
        row_loss = AdvantageNll(here.targets, here.coefficients, teacher_logp, self.advantage_clip)
        total, nll = head(hidden.index_select(0, here.rows), row_loss)
        difference = (teacher_logp.double() + nll.double()).clamp(max=88.0)
        estimates = -difference, difference.expm1() - difference
        return LossOutput(total, torch.cat([here.sums(nll), *map(here.sums, estimates)]))

    def report(self, counts: torch.Tensor, sums: torch.Tensor) -> dict[str, Any]:
        """Adds the estimates of the reverse KL by span kind, `span_reverse_kl_k1` and `span_reverse_kl_k3`."""
        return {
            **super().report(counts, sums),
            "span_reverse_kl_k1": token_means(counts, sums[KINDS : 2 * KINDS]),
            "span_reverse_kl_k3": token_means(counts, sums[2 * KINDS :]),
        }
