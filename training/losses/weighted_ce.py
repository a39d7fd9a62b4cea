"""Cross-entropy weighted by the teacher's confidence in the corpus's token.

    w_t = clip(exp((ln p_teacher(t) - m) / T), min_weight, max_weight),   S_k = sum over tokens of w_t * -ln p(t)

S_k is divided by the number of tokens, not by the sum of the weights: spans that the teacher finds likely count more.
What is logged as `loss` is -ln p without the weights, so that it compares with that of other arms.
m is an exponential mean of the teacher's ln p over the supervised tokens of a step, so it follows the stream when its
composition changes: m <- m + m_rate * (mean of the step - m), from sums over the whole global batch; a step uses the m
after the step before it, the first one the mean in TEACHER_LOGP's manifest. It is one number, kept in the checkpoint.
"""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from training.data.collate import PackTensors
from training.losses.chunked_head import LmHead
from training.losses.spans import KINDS, LossOutput, StepContext, token_means
from training.losses.teacher_signal import TEACHER_SUMS, TeacherSignalObjective
from training.losses.token_nll import TokenNll


class WeightedCrossEntropy(TeacherSignalObjective):
    """`kind: weighted_ce`. Sums by span kind: -ln p, then w."""

    kind: Literal["weighted_ce"] = "weighted_ce"
    temperature: float = Field(default=1.0, gt=0)
    """Temperature T: the larger it is, the less the weights differ."""
    min_weight: float = Field(default=0.25, ge=0)
    """Smallest weight of a token."""
    max_weight: float = Field(default=4.0, gt=0)
    """Largest weight of a token."""
    m_rate: float = Field(default=0.01, gt=0, le=1)
    """Weight of one step in the running mean m."""

    @model_validator(mode="after")
    def _weights_in_order(self) -> "WeightedCrossEntropy":
        if self.min_weight > self.max_weight:
            raise ValueError(f"min_weight {self.min_weight:g} is above max_weight {self.max_weight:g}; lower it")
        return self

    def weights(self, teacher_logp: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """w_t of each token, as float64."""
        relative = (teacher_logp.double() - mean.double()) / self.temperature
        return relative.exp().clamp(self.min_weight, self.max_weight)

    def loss(self, head: LmHead, hidden: torch.Tensor, batch: PackTensors, step: StepContext) -> LossOutput:
        """Loss of a pack from its hidden states [T, H]."""
        assert step.teacher_mean is not None, "the trainer keeps m"
        here = self.supervised(batch, step)
        weights = self.weights(self.teacher_logp(batch, here), step.teacher_mean)
        total, nll = head(hidden.index_select(0, here.rows), TokenNll(here.targets, here.coefficients * weights))
        return LossOutput(total, torch.cat([here.sums(nll), here.sums(weights)]))

    def report(self, counts: torch.Tensor, sums: torch.Tensor) -> dict[str, Any]:
        """Adds `span_weight`, the mean w of each kind that has tokens."""
        return {**super().report(counts, sums), "span_weight": token_means(counts, sums[KINDS:])}

    def next_teacher_mean(self, mean: float, counts: torch.Tensor, sums: torch.Tensor) -> float:
        """m after a step with these global counts and sums; a step without tokens leaves it."""
        num_tokens = float(counts[:KINDS].sum())
        if num_tokens == 0:
            return mean
        return mean + self.m_rate * (float(counts[TEACHER_SUMS].sum()) / num_tokens - mean)
