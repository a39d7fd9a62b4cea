"""Divergences from a teacher model's distribution, with both heads in chunks: no logits exist for all rows at once.

With m = (1 - beta) * student + beta * teacher, everything at one temperature T:

    beta 0:  KL(teacher || student), forward        beta 1:  KL(student || teacher), reverse
    else:    beta * KL(teacher || m) + (1 - beta) * KL(student || m), generalised Jensen-Shannon (Agarwal et al. 2024)

Towards an end the generalised divergence goes to 0, and only its quotient to the divergence of that end:
beta -> 0: D ~ beta * forward KL, beta -> 1: D ~ (1 - beta) * reverse KL. So beta 0.01 has gradients a hundred times
smaller than beta 0: raise the learning rate or a span weight with it, or take the end itself.

It is the sum over the ids that both heads have: rows that pad one of them (or both, with `vocab_size`) take no part,
and both distributions are normalised without them, so mass that a teacher has there is spread over the ids that are
compared. No supervised token may be one of those rows. A row's coefficient is known beforehand, so its gradient is made
in the forward pass like that of cross-entropy: one product for each head and two for the gradients. To make the logits
again in the backward pass would cost two products more for the same memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from etl.errors import ConfigError, DataError
from training.data.collate import Pack, PackTensors
from training.losses.chunked_head import LmHead, RowLosses, project
from training.losses.distillation import Anchor, DistillationObjective, columns_of
from training.losses.spans import Counts, LossOutput, StepContext, span_counts


@dataclass(frozen=True)
class DivergenceRows:
    """The divergence of each row from the teacher's distribution, in nats, and what is mixed with it."""

    teacher_hidden: torch.Tensor
    """[S, teacher's H]"""
    teacher_weight: torch.Tensor
    """[teacher's V, teacher's H]"""
    coefficients: torch.Tensor
    """[S]"""
    beta: float
    temperature: float
    compared: int
    """Ids that are compared: at most the rows of either head."""
    factor: float = 1.0
    """Multiplies the divergence."""
    anchor: Anchor | None = None
    num_buffers: int = 2

    @property
    def vocab_size(self) -> int | None:
        """Rows of the student's head that are used: those that are compared, all of them beside cross-entropy."""
        return self.compared if self.anchor is None else None

    def __call__(self, buffers: Sequence[torch.Tensor], rows: slice) -> RowLosses:
        logits = buffers[0]
        student, teacher = (buffer[:, : self.compared] for buffer in buffers)
        project(self.teacher_hidden[rows], self.teacher_weight[: self.compared], teacher)
        _log_softmax_(teacher, self.temperature)
        weights = self.coefficients[rows].to(logits.dtype)
        if self.anchor is None:
            _log_softmax_(student, self.temperature)
            values, to_student = self._divergence(student, teacher)
            for columns in columns_of(student):
                self._gradient_(student[:, columns], teacher[:, columns], to_student)
            return RowLosses(self.factor * values, weights, weights * (self.factor / self.temperature))
        return RowLosses(self._mixed_(self.anchor, logits, student, teacher, rows), weights, weights / self.temperature)

    def _mixed_(
        self, anchor: Anchor, logits: torch.Tensor, student: torch.Tensor, teacher: torch.Tensor, rows: slice
    ) -> torch.Tensor:
        """The values with cross-entropy mixed in; leaves their gradient in the student's logits, times T."""
        targets, rest = anchor.targets[rows, None], logits[:, self.compared :]
        log_z = _log_sums(logits)
        nll = (log_z - logits.gather(1, targets))[:, 0]
        shift = _log_softmax_(student, self.temperature)
        values, to_student = self._divergence(student, teacher)
        part = (1 - anchor.alpha) * self.temperature
        for columns in columns_of(student):
            own = student[:, columns]
            # ln p at temperature 1, from that at T.
            probability = torch.exp(own * self.temperature + (self.temperature * shift - log_z))
            self._gradient_(own, teacher[:, columns], to_student)
            own.mul_(anchor.alpha * self.factor).add_(probability, alpha=part)
        rest.sub_(log_z).exp_().mul_(part)
        logits.scatter_add_(1, targets, torch.full_like(log_z, -part))
        return anchor.mixed(values, self.factor, nll, rows)

    def _divergence(self, student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The divergence of each row, [n], from ln p of both sides, and KL(student || mixture), [n, 1]."""
        to_teacher, to_student = student.new_zeros(2, len(student))
        for columns in columns_of(student):
            log_s, log_t = student[:, columns], teacher[:, columns]
            mixture = self._log_mixture(log_s, log_t)
            if self.beta < 1:
                to_teacher += (log_t.exp() * (log_t - mixture)).sum(dim=1)
            if self.beta > 0:
                to_student += (log_s.exp() * (log_s - mixture)).sum(dim=1)
        teacher_part, student_part = self._parts()
        return teacher_part * to_teacher + student_part * to_student, to_student[:, None]

    def _parts(self) -> tuple[float, float]:
        """What KL(teacher || mixture) and KL(student || mixture) count."""
        return (self.beta, 1 - self.beta) if 0 < self.beta < 1 else (1 - self.beta, self.beta)

    def _log_mixture(self, log_s: torch.Tensor, log_t: torch.Tensor) -> torch.Tensor:
        """ln m; at the ends, what each side is compared with: the other one."""
        if self.beta in (0, 1):
            return log_t if self.beta else log_s
        shares = torch.tensor([1 - self.beta, self.beta], dtype=torch.float64).log().tolist()
        return torch.logaddexp(log_s + shares[0], log_t + shares[1])

    def _gradient_(self, log_s: torch.Tensor, log_t: torch.Tensor, to_student: torch.Tensor) -> None:
        """Write over ln p of the student the gradient in its logits, times the temperature."""
        if self.beta == 0:
            log_s.exp_().sub_(log_t.exp())
            return
        excess = log_s - self._log_mixture(log_s, log_t) - to_student
        log_s.exp_().mul_(excess).mul_(self._parts()[1])


def _log_softmax_(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """In place, without a second buffer; what was taken from the logits over the temperature, [n, 1]."""
    if temperature != 1:
        logits /= temperature
    largest = logits.amax(dim=1, keepdim=True)
    logits -= largest
    sums = torch.zeros_like(largest)
    for columns in columns_of(logits):
        sums += logits[:, columns].exp().sum(dim=1, keepdim=True)
    logits -= sums.log()
    return largest + sums.log()


def _log_sums(logits: torch.Tensor) -> torch.Tensor:
    """ln of the sum of exponentials of each row, [n, 1]: the same bits as `_log_softmax_` takes at temperature 1."""
    largest = logits.amax(dim=1, keepdim=True)
    sums = torch.zeros_like(largest)
    for columns in columns_of(logits):
        sums += (logits[:, columns] - largest).exp_().sum(dim=1, keepdim=True)
    return largest + sums.log()


class Divergence(DistillationObjective):
    """`kind: kl`. Between beta 0 and 1 its scale is that of beta or 1 - beta, whichever is the smaller (see above)."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_model"})

    kind: Literal["kl"] = "kl"
    beta: float = Field(default=0.0, ge=0, le=1)
    """0: forward KL; 1: reverse KL; between: generalised Jensen-Shannon divergence."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of both distributions."""
    times_temperature_squared: bool = False
    """Multiply the divergence (not the cross-entropy) by T squared, so that its gradients keep their size when T
    changes (Hinton et al. 2015)."""
    vocab_size: int | None = Field(default=None, ge=2)
    """Number of ids that the tokenizer uses, for padded heads. null: the size of the smaller head; in a run, both heads
    must then have the same size."""

    def counts(self, pack: Pack) -> Counts:
        """float64 [2 * kinds].

        Raises:
            DataError: a supervised token is none of the `vocab_size` ids that are compared.
        """
        rows = np.flatnonzero(pack.target_kind >= 0)
        beyond = rows[pack.targets[rows] >= (self.vocab_size or np.inf)]
        if len(beyond):
            raise DataError(
                f"{len(beyond)} supervised tokens of {len(np.unique(pack.document[beyond]))} documents are ids up to "
                f"{pack.targets[beyond].max():,}, but objective.vocab_size compares the first {self.vocab_size:,}; "
                "set it to the tokenizer's size, or to null"
            )
        return span_counts(pack)

    def loss(self, head: LmHead, hidden: torch.Tensor, batch: PackTensors, step: StepContext) -> LossOutput:
        """Loss of a pack from its hidden states [T, H].

        Raises:
            ConfigError: `vocab_size` is above the rows of a head.
        """
        assert step.teacher is not None, "`needs` says so"
        here = self.supervised(batch, step)
        with torch.no_grad():
            teacher_hidden, teacher_weight = step.teacher(batch)
        anchor = self.anchor(here)
        row_loss = DivergenceRows(
            teacher_hidden.index_select(0, here.rows),
            teacher_weight,
            here.coefficients,
            self.beta,
            self.temperature,
            self._compared(len(head.weight), len(teacher_weight)),
            self.temperature**2 if self.times_temperature_squared else 1.0,
            anchor,
        )
        return self.output(here, anchor, head(hidden.index_select(0, here.rows), row_loss))

    def check_heads(self, student_rows: int, teacher_rows: int) -> None:
        """Compare the rows of both heads, before the run.

        Raises:
            ConfigError: they differ and nothing says what part of them is the tokenizer's, or it is above one of them.
        """
        self._compared(student_rows, teacher_rows)
        if self.vocab_size is None and student_rows != teacher_rows:
            raise ConfigError(
                f"the student's head has {student_rows} rows and the teacher's {teacher_rows}; give a teacher of the "
                "same tokenizer, and if they differ only by padding set objective.vocab_size to the tokenizer's size, "
                f"at most {min(student_rows, teacher_rows)}"
            )

    def _compared(self, student_rows: int, teacher_rows: int) -> int:
        smaller = min(student_rows, teacher_rows)
        if self.vocab_size is not None and self.vocab_size > smaller:
            raise ConfigError(
                f"objective.vocab_size is {self.vocab_size}, but the student's head has {student_rows} rows and the "
                f"teacher's {teacher_rows}; set it to the tokenizer's size, at most {smaller}, or to null"
            )
        return self.vocab_size or smaller
