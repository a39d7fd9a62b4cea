"""Forward KL to a teacher's stored top-k: k likeliest tokens, and one bucket for the rest of both vocabularies.

    sum over the k tokens of t * (ln t - ln s) + tail_t * (ln tail_t - ln tail_s),   tail = 1 - sum over the k tokens

With the bucket it is a true KL (never negative, zero where the teacher is met); without it, or renormalised over k, it
would pull the student's tail to nothing. Only the temperature at which the teacher was asked is possible: at another
one the tail's mass is unknown. The student's tail is summed over its own tokens, so it is exact however small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from etl.errors import ConfigError, DataError
from training.data.collate import Pack, PackTensors
from training.losses.chunked_head import LmHead, RowLosses
from training.losses.distillation import Anchor, DistillationObjective, columns_of
from training.losses.spans import Counts, LossOutput, StepContext, span_counts

SMALLEST_TAIL = 1e-30
"""Of a student's tail, as a part of its likeliest token: its logarithm and its inverse stay finite in float32."""


@dataclass(frozen=True)
class TopKRows:
    """The KL of each row to the teacher's top-k, in nats, and what is mixed with it."""

    ids: torch.Tensor
    """int64 [S, k]; -1 where a row has fewer."""
    logp: torch.Tensor
    """[S, k], the teacher's ln p; NaN where `ids` is -1."""
    coefficients: torch.Tensor
    """[S]"""
    temperature: float
    anchor: Anchor | None = None
    num_buffers: int = 1
    vocab_size: int | None = None

    def __call__(self, buffers: Sequence[torch.Tensor], rows: slice) -> RowLosses:
        (logits,) = buffers
        present = self.ids[rows] >= 0
        # An absent entry repeats the first one in what is read, and counts nothing.
        ids = torch.where(present, self.ids[rows], self.ids[rows, :1])
        logp = torch.where(present, self.logp[rows].to(logits.dtype), -torch.inf)
        teacher = logp.exp()
        teacher_tail = (1 - teacher.sum(dim=1)).clamp(min=0)
        if self.temperature != 1:
            logits /= self.temperature
        logits -= logits.amax(dim=1, keepdim=True)
        picked = logits.gather(1, ids)
        of_target = None if self.anchor is None else logits.gather(1, self.anchor.targets[rows, None])
        logits.exp_().scatter_(1, ids, 0.0)
        tail = logits.sum(dim=1).clamp(min=SMALLEST_TAIL)
        top = torch.where(present, picked.exp(), 0.0)
        sums = tail + top.sum(dim=1)
        log_sums = sums.log()
        inside = teacher * (torch.where(present, logp, 0.0) - picked + log_sums[:, None])
        outside = torch.special.xlogy(teacher_tail, teacher_tail) - teacher_tail * (tail.log() - log_sums)
        values = inside.sum(dim=1) + outside
        # Gradient times the sum: each token's part of the student, less what the teacher gives to its bucket.
        mass = teacher.sum(dim=1) + teacher_tail
        slope, pull = mass - teacher_tail * sums / tail, mass[:, None] * top - teacher * sums[:, None]
        if self.anchor is None or of_target is None:
            logits *= slope[:, None]
            logits.scatter_add_(1, ids, pull)
        else:
            nll = self._mix_(self.anchor, logits, (ids, top), (slope, pull), of_target, sums, rows)
            values = self.anchor.mixed(values, 1.0, nll, rows)
        weights = self.coefficients[rows].to(logits.dtype)
        return RowLosses(values, weights, weights / (sums * self.temperature))

    def _mix_(
        self,
        anchor: Anchor,
        powers: torch.Tensor,
        best: tuple[torch.Tensor, torch.Tensor],
        gradient: tuple[torch.Tensor, torch.Tensor],
        of_target: torch.Tensor,
        sums: torch.Tensor,
        rows: slice,
    ) -> torch.Tensor:
        """-ln p of the targets; turns exp(logit / T) [n, V], 0 at the best ids, into the mixture's gradient.

        Args:
            anchor: what is mixed in.
            powers: exponentials over the row's largest one, in place.
            best: ids and their exponentials, [n, k].
            gradient: of the divergence, times the sum: a factor for all ids [n], and what is added at the best ones.
            of_target: logit over T of each target, [n, 1].
            sums: of all exponentials, [n].
            rows: of the call.
        """
        heat, part = self.temperature, (1 - anchor.alpha) * self.temperature
        sums_at_1 = (best[1] ** heat).sum(dim=1)
        for columns in columns_of(powers):
            sums_at_1 += (powers[:, columns] ** heat).sum(dim=1)
        share = (part * sums / sums_at_1)[:, None]
        for columns in columns_of(powers):
            own = powers[:, columns]
            own.copy_(own * (anchor.alpha * gradient[0])[:, None] + share * own**heat)
        powers.scatter_add_(1, best[0], anchor.alpha * gradient[1] + share * best[1] ** heat)
        powers.scatter_add_(1, anchor.targets[rows, None], -part * sums[:, None])
        return sums_at_1.log() - heat * of_target[:, 0]


class TopKDivergence(DistillationObjective):
    """`kind: topk_kl`."""

    needs: ClassVar[frozenset[str]] = frozenset({"topk"})

    kind: Literal["topk_kl"] = "topk_kl"
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions; must be the one TEACHER_LOGP was made with."""

    def check_stored(self, stored: float, topk: int) -> None:
        """Compare with the temperature and the entries a token of the teacher's table, before the run.

        Raises:
            ConfigError: the temperatures differ, or the table has no top-k.
        """
        if topk == 0:
            raise ConfigError("data.teacher has no top-k; rescore with `topk` above 0, or use another objective")
        if stored != self.temperature:
            raise ConfigError(
                f"objective.temperature is {self.temperature:g}, but the teacher's top-k were stored at temperature "
                f"{stored:g} and cannot be converted (the tail is unknown); set it to {stored:g}"
            )

    def counts(self, pack: Pack) -> Counts:
        """float64 [2 * kinds].

        Raises:
            DataError: a supervised token has no top-k.
        """
        rows = np.flatnonzero(pack.target_kind >= 0)
        ids = np.full((len(rows), 1), -1) if pack.topk_ids is None else pack.topk_ids[rows]
        missing = ids[:, 0] < 0
        if missing.any():
            raise DataError(
                f"{missing.sum()} supervised tokens of {len(np.unique(pack.document[rows[missing]]))} documents have "
                "no stored top-k; rescore with a top_k and give the arm `data.teacher`, or use another objective"
            )
        return span_counts(pack)

    def loss(self, head: LmHead, hidden: torch.Tensor, batch: PackTensors, step: StepContext) -> LossOutput:
        """Loss of a pack from its hidden states [T, H]."""
        here = self.supervised(batch, step)
        # A pack without documents may come without them; it has no row that would read them.
        ids = here.targets[:, None] if batch.topk_ids is None else batch.topk_ids[here.rows].long()
        logp = torch.zeros_like(ids, dtype=torch.float32) if batch.topk_logp is None else batch.topk_logp[here.rows]
        anchor = self.anchor(here)
        row_loss = TopKRows(ids, logp, here.coefficients, self.temperature, anchor)
        return self.output(here, anchor, head(hidden.index_select(0, here.rows), row_loss))
