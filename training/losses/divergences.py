"""Divergences from a teacher model's distribution, both heads in chunks: neither's logits exist for all rows at once.

With m = (1 - beta) * student + beta * teacher, everything at one temperature T:

    beta 0:  KL(teacher || student), forward        beta 1:  KL(student || teacher), reverse
    else:    beta * KL(teacher || m) + (1 - beta) * KL(student || m), generalised Jensen-Shannon (Agarwal et al. 2024)

It is the sum over the ids that both heads have: rows that pad one of them (or both, with `vocab_size`) take no part,
and both distributions are normalised without them. A row's coefficient is known beforehand, so its gradient is made in
the forward pass like that of cross-entropy: one product for each head and two for the gradients. To make the logits
again in the backward pass would cost two products more for the same memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field

from etl.errors import ConfigError
from training.data.collate import PackTensors
from training.losses.chunked_head import LmHead, RowLosses, project
from training.losses.spans import LossOutput, SpanObjective, StepContext

COLUMNS = 8192
"""Ids of a chunk whose intermediate values exist beside the two buffers: few enough to stay in a cache or near it."""


@dataclass(frozen=True)
class DivergenceRows:
    """The divergence of each row from the teacher's distribution, in nats."""

    teacher_hidden: torch.Tensor
    """[S, teacher's H]"""
    teacher_weight: torch.Tensor
    """[teacher's V, teacher's H]"""
    coefficients: torch.Tensor
    """[S]"""
    beta: float
    temperature: float
    vocab_size: int
    """Ids that are compared: at most the rows of either head."""
    num_buffers: int = 2

    def __call__(self, buffers: Sequence[torch.Tensor], rows: slice) -> RowLosses:
        student, teacher = buffers
        project(self.teacher_hidden[rows], self.teacher_weight[: self.vocab_size], teacher)
        for logits in buffers:
            _log_softmax_(logits, self.temperature)
        to_teacher, to_student = student.new_zeros(2, len(student))
        for columns in _columns(student):
            log_s, log_t = student[:, columns], teacher[:, columns]
            mixture = self._log_mixture(log_s, log_t)
            if self.beta < 1:
                to_teacher += (log_t.exp() * (log_t - mixture)).sum(dim=1)
            if self.beta > 0:
                to_student += (log_s.exp() * (log_s - mixture)).sum(dim=1)
        for columns in _columns(student):
            self._gradient_(student[:, columns], teacher[:, columns], to_student[:, None])
        weights = self.coefficients[rows].to(student.dtype)
        teacher_part, student_part = self._parts()
        return RowLosses(teacher_part * to_teacher + student_part * to_student, weights, weights / self.temperature)

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


def _log_softmax_(logits: torch.Tensor, temperature: float) -> None:
    """In place, without a second buffer."""
    if temperature != 1:
        logits /= temperature
    logits -= logits.amax(dim=1, keepdim=True)
    sums = logits.new_zeros(len(logits))
    for columns in _columns(logits):
        sums += logits[:, columns].exp().sum(dim=1)
    logits -= sums.log()[:, None]


def _columns(logits: torch.Tensor) -> Iterator[slice]:
    for start in range(0, logits.shape[1], COLUMNS):
        yield slice(start, min(start + COLUMNS, logits.shape[1]))


class Divergence(SpanObjective):
    """`kind: kl`. Sums: the divergence by span kind."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_model"})

    kind: Literal["kl"] = "kl"
    beta: float = Field(default=0.0, ge=0, le=1)
    """0 forward KL, 1 reverse KL, between them the generalised Jensen-Shannon divergence."""
    temperature: float = Field(default=1.0, gt=0)
    """Of both distributions."""
    times_temperature_squared: bool = False
    """Multiply by T squared, so that gradients keep their size when T changes (Hinton et al. 2015)."""
    vocab_size: int | None = Field(default=None, ge=2)
    """Ids that the tokenizer uses, where a head is padded; null for the smaller head, in a run only where both heads
    have the same size."""

    def loss(self, head: LmHead, hidden: torch.Tensor, batch: PackTensors, step: StepContext) -> LossOutput:
        """Loss of a pack from its hidden states [T, H].

        Raises:
            ConfigError: `vocab_size` is above the rows of a head.
        """
        assert step.teacher is not None, "`needs` says so"
        here = self.supervised(batch, step)
        with torch.no_grad():
            teacher_hidden, teacher_weight = step.teacher(batch)
        factor = self.temperature**2 if self.times_temperature_squared else 1.0
        row_loss = DivergenceRows(
            teacher_hidden.index_select(0, here.rows),
            teacher_weight,
            here.coefficients * factor,
            self.beta,
            self.temperature,
            self._compared(len(head.weight), len(teacher_weight)),
        )
        total, values = head(hidden.index_select(0, here.rows), row_loss)
        return LossOutput(total, here.sums(values * factor))

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
