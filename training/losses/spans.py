"""Losses over supervised tokens as sums and counts, normalised over the whole global batch in one of three ways.

    kind      L = sum over kinds k of w_k * S_k / max(N_k, E_k)
    all       L = sum over kinds k of w_k * S_k / sum over kinds k of w_k * N_k
    example   L = sum over kinds k of w_k * D_k / max(M_k, E_k)

S_k is the sum of a token's loss over the supervised tokens of kind k of the whole global batch and N_k their number,
header and closing tokens included; D_k is the sum of documents' means over their tokens of kind k and M_k the number of
documents that have some. A kind without tokens adds nothing.

`all` is a weighted mean, as torch's own cross-entropy with weights: with weights of 1 it is the plain mean over tokens,
and a kind of weight 0 is as if it were not supervised. It needs no floor, since every token counts the same.

E_k is the floor: how many tokens (or documents) of kind k so many tokens of the corpus hold on average. Without it the
one commentary token of a step would weigh as much as the step's 800 final ones together; with it a kind that happens to
be rare in a step counts for what it is there, and one that is rare in the corpus still has its own mean over steps.

A rank and a micro-batch never divide by their own counts: each row gets a coefficient with the global denominators, so
the losses of all packs of all ranks sum to L. (Data parallelism takes the mean over ranks; the engine multiplies by
their number.) What is logged as `loss` is another thing than L: the mean over tokens, in nats a token.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator

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
    expected: torch.Tensor | None = None
    """float64 [2 * kinds]: tokens of each kind, and documents that have some, in as many tokens of the corpus on
    average; None where no floor is known (an evaluation, a loss by itself)."""


@dataclass(frozen=True)
class LossOutput:
    """The loss of one pack."""

    total: torch.Tensor
    """Scalar to go back from; the totals of all packs of all ranks sum to L."""
    sums: torch.Tensor
    """float64: to be summed over packs and ranks for `report`. Independent of the counts."""


class SpanWeights(Config):
    """Loss weight of each kind of span."""

    analysis: float = Field(default=1.0, ge=0)
    """Weight of reasoning."""
    commentary: float = Field(default=1.0, ge=0)
    """Weight of tool calls and the text around them."""
    final: float = Field(default=1.0, ge=0)
    """Weight of answers."""
    text: float = Field(default=1.0, ge=0)
    """Weight of raw documents."""

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
    coefficients: torch.Tensor
    """float64 [S]: what the row's loss counts in L."""

    def sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sums of the rows' values [S] over each kind: float64 [kinds]."""
        zero = torch.zeros(KINDS, dtype=torch.float64, device=values.device)
        return zero.index_add_(0, self.kind, values.double())


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
    """Base of the losses of tokens.

    `counts` begins with tokens [kinds] and documents [kinds], `sums` with the sums of the tokens' losses [kinds],
    whatever the weights and `normalise`.
    """

    span_weights: SpanWeights = SpanWeights()
    """Weight of the tokens of each kind of span."""
    normalise: Literal["kind", "all", "example"] = "kind"
    """kind: mean over the tokens of each kind. all: mean over all tokens. example: mean over the documents' means of
    each kind."""

    @field_validator("normalise", mode="before")
    @classmethod
    def _older_word(cls, given: Any) -> Any:
        # What configurations and records of runs say since before there was `all`.
        return "kind" if given == "token" else given

    def counts(self, pack: Pack) -> Counts:
        """float64: what is summed over the packs of all ranks before the step."""
        return span_counts(pack)

    def supervised(self, batch: PackTensors, step: StepContext) -> Supervised:
        """The pack's supervised rows and what each counts."""
        rows = torch.nonzero(batch.target_kind >= 0)[:, 0]
        kind = batch.target_kind[rows]
        coefficients = self._per_kind(step)[kind]
        if self.normalise == "example":
            cell = batch.document[rows].long() * KINDS + kind
            sizes = torch.zeros((len(batch.cu_seqlens) - 1) * KINDS, dtype=torch.float64, device=rows.device)
            coefficients = coefficients / sizes.index_add_(0, cell, torch.ones_like(coefficients))[cell]
        return Supervised(rows, batch.targets[rows], kind, coefficients)

    def report(self, counts: torch.Tensor, sums: torch.Tensor) -> dict[str, Any]:
        """The mean over all supervised tokens, that of each kind, and tokens by kind, from what is on the CPU."""
        return {
            "loss": token_mean(counts, sums[:KINDS]),
            "span_loss": token_means(counts, sums[:KINDS]),
            "span_tokens": dict(zip(SPAN_KINDS, counts[:KINDS].int().tolist(), strict=True)),
        }

    def _per_kind(self, step: StepContext) -> torch.Tensor:
        """What a token (or a document) of each kind counts: float64 [kinds], 0 for a kind that the step lacks."""
        used = slice(KINDS, 2 * KINDS) if self.normalise == "example" else slice(KINDS)
        counts = step.counts[used]
        weights = self.span_weights.tensor().to(counts.device)
        divisors = counts
        if self.normalise == "all":
            divisors = (weights * counts).sum().expand(KINDS)
        elif step.expected is not None:
            divisors = torch.maximum(counts, step.expected[used])
        return torch.where(counts > 0, weights / torch.where(divisors > 0, divisors, 1.0), 0.0)


def token_mean(counts: torch.Tensor, sums: torch.Tensor) -> float:
    """Mean over all supervised tokens, from plain sums [kinds] and `counts`; 0 where there is none."""
    return float(sums.sum() / counts[:KINDS].sum().clamp(min=1))


def token_means(counts: torch.Tensor, sums: torch.Tensor) -> dict[str, float]:
    """Mean over tokens by span kind, from plain sums [kinds] and `counts`; kinds without tokens are left out."""
    pairs = zip(SPAN_KINDS, sums.tolist(), counts[:KINDS].tolist(), strict=True)
    return {kind: total / count for kind, total, count in pairs if count > 0}


def span_counts(pack: Pack) -> Counts:
    """float64 [2 * kinds]: supervised tokens of each kind, and documents that have some."""
    rows = np.flatnonzero(pack.target_kind >= 0)
    kind = pack.target_kind[rows].astype(np.int64)
    cells = np.unique(pack.document[rows].astype(np.int64) * KINDS + kind)
    counts = [np.bincount(kind, minlength=KINDS), np.bincount(cells % KINDS, minlength=KINDS)]
    return np.concatenate(counts).astype(np.float64)
