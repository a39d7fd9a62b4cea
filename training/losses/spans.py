"""Losses over supervised tokens as sums and counts, each kind of span normalised on its own.

    L = sum over kinds k of w_k * S_k / N_k

S_k is the sum of a token's loss over the supervised tokens of kind k of the whole global batch and N_k their number,
header and closing tokens included (`normalise: token`); or S_k is the sum of documents' means over their tokens of kind
k and N_k the number of documents that have some (`normalise: example`). A rank and a micro-batch never divide by their
own counts: each row gets a coefficient with the global N_k, so the losses of all packs of all ranks sum to L. (Data
parallelism takes the mean over ranks; the engine multiplies by their number.) A kind without tokens adds nothing.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from etl.config import Config
from etl.foreign import Kinded
from etl.schema import SPAN_KINDS
from training.data.collate import Pack, PackTensors
from training.losses.chunked_head import LmHead

KINDS = len(SPAN_KINDS)

Counts = npt.NDArray[np.float64]


class TeacherOutput(NamedTuple):
    """A teacher on one pack. Its logits are made chunk by chunk, where they are compared."""

    hidden: torch.Tensor
    """[T, teacher's H]"""
    head_weight: torch.Tensor
    """[teacher's V, teacher's H]"""


class TeacherModel(Protocol):
    """A teacher model in this process."""

    def __call__(self, batch: PackTensors) -> TeacherOutput:
        """Forward pass of a pack; called without gradients."""


@dataclass(frozen=True)
class StepContext:
    """What is known about the global batch before its forward passes; the same on every rank."""

    counts: torch.Tensor
    """float64: an objective's `counts`, summed over the packs of all ranks."""
    teacher_mean: torch.Tensor | None = None
    """Scalar: m of weighted_ce, as it was after the step before."""
    teacher: TeacherModel | None = None
    """For objectives that need `teacher_model`."""


@dataclass(frozen=True)
class LossOutput:
    """The loss of one pack."""

    total: torch.Tensor
    """Scalar to go back from; the totals of all packs of all ranks sum to L."""
    sums: torch.Tensor
    """float64: to be summed over packs and ranks for `report`. Independent of the counts."""


class SpanWeights(Config):
    """w_k of each span kind."""

    analysis: float = Field(default=1.0, ge=0)
    commentary: float = Field(default=1.0, ge=0)
    final: float = Field(default=1.0, ge=0)
    text: float = Field(default=1.0, ge=0)

    def tensor(self) -> torch.Tensor:
        """float64 [kinds], in the order of SPAN_KINDS."""
        return torch.tensor([getattr(self, kind) for kind in SPAN_KINDS], dtype=torch.float64)


@dataclass(frozen=True)
class Supervised:
    """The supervised rows of a pack."""

    rows: torch.Tensor
    """int64 [S], positions in the pack."""
    targets: torch.Tensor
    """int64 [S]"""
    kind: torch.Tensor
    """int64 [S], positions in SPAN_KINDS."""
    share: torch.Tensor
    """float64 [S]: 1, or 1 / (tokens of this kind of the row's document) under `normalise: example`."""
    coefficients: torch.Tensor
    """float64 [S]: what the row's loss counts in L."""

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """S_k of the rows' values [S]: float64 [kinds]."""
        zero = torch.zeros(KINDS, dtype=torch.float64, device=values.device)
        return zero.index_add_(0, self.kind, values.double() * self.share)


class Objective(Kinded):
    """Base of what a training step minimises."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What a pack or the step must bring: teacher_logp, topk, teacher_model, pairs, reference_logp."""

    def counts(self, pack: Pack) -> Counts:
        """float64 [n]: what is summed over the packs of all ranks before the step."""
        raise NotImplementedError

    def loss(self, head: LmHead, hidden: torch.Tensor, batch: PackTensors, step: StepContext) -> LossOutput:
        """Loss of a pack from its hidden states [T, H]."""
        raise NotImplementedError

    def report(self, counts: torch.Tensor, sums: torch.Tensor) -> dict[str, Any]:
        """`loss`, `span_loss`, `span_tokens` and more to log, from the global counts and sums on the CPU."""
        raise NotImplementedError


class SpanObjective(Objective):
    """Base of the losses of tokens. `counts` begins with tokens [kinds] and documents [kinds]."""

    span_weights: SpanWeights = SpanWeights()
    normalise: Literal["token", "example"] = "token"
    """Mean over all tokens of a kind, or over documents' own means."""

    def counts(self, pack: Pack) -> Counts:
        """float64: what is summed over the packs of all ranks before the step."""
        return span_counts(pack)

    def supervised(self, batch: PackTensors, step: StepContext) -> Supervised:
        """The pack's supervised rows and what each counts."""
        rows = torch.nonzero(batch.target_kind >= 0)[:, 0]
        kind = batch.target_kind[rows]
        share = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
        if self.normalise == "example":
            cell = batch.document[rows].long() * KINDS + kind
            sizes = torch.zeros((len(batch.cu_seqlens) - 1) * KINDS, dtype=torch.float64, device=rows.device)
            share = 1 / sizes.index_add_(0, cell, share)[cell]
        counts = self._denominators(step.counts)
        weights = self.span_weights.tensor().to(counts.device)
        per_kind = torch.where(counts > 0, weights / counts.clamp(min=1), 0.0)
        return Supervised(rows, batch.targets[rows], kind, share, per_kind[kind] * share)

    def report(self, counts: torch.Tensor, sums: torch.Tensor) -> dict[str, Any]:
        """The step's loss L, each kind's mean, and tokens by kind, from the global counts and sums on the CPU."""
        spans = self.span_means(counts, sums)
        weights = dict(self.span_weights)
        return {
            "loss": float(sum(weights[kind] * mean for kind, mean in spans.items())),
            "span_loss": spans,
            "span_tokens": dict(zip(SPAN_KINDS, counts[:KINDS].int().tolist(), strict=True)),
        }

    def span_means(self, counts: torch.Tensor, sums: torch.Tensor) -> dict[str, float]:
        """S_k / N_k of each kind that has tokens, from the first [kinds] of `sums`."""
        pairs = zip(SPAN_KINDS, sums[:KINDS].tolist(), self._denominators(counts).tolist(), strict=True)
        return {kind: total / count for kind, total, count in pairs if count > 0}

    def _denominators(self, counts: torch.Tensor) -> torch.Tensor:
        return counts[:KINDS] if self.normalise == "token" else counts[KINDS : 2 * KINDS]


def span_counts(pack: Pack) -> Counts:
    """float64 [2 * kinds]: supervised tokens of each kind, and documents that have some."""
    rows = np.flatnonzero(pack.target_kind >= 0)
    kind = pack.target_kind[rows].astype(np.int64)
    cells = np.unique(pack.document[rows].astype(np.int64) * KINDS + kind)
    counts = [np.bincount(kind, minlength=KINDS), np.bincount(cells % KINDS, minlength=KINDS)]
    return np.concatenate(counts).astype(np.float64)
