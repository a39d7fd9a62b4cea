"""Direct preference optimisation (Rafailov et al. 2023) on pairs whose two sides are in one pack.

    margin = beta * ((S_chosen - R_chosen) - (S_rejected - R_rejected))
    L = mean over the pairs of the global batch of -(1 - e) * ln sigmoid(margin) - e * ln sigmoid(-margin)

S is the student's sum of ln p over a document's supervised tokens, R the reference model's, which was computed once and
travels with the pack; e is label smoothing. A token's coefficient depends on all tokens of its pair, so the head makes
the logits again in the backward pass. Sums over tokens are float64.
"""

from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch.nn.functional import logsigmoid

from etl.errors import DataError
from etl.schema import SPAN_KINDS
from training.data.collate import Pack, PackTensors
from training.losses.chunked_head import LmHead
from training.losses.spans import KINDS, Counts, LossOutput, Objective, StepContext
from training.losses.token_nll import TokenNll

CHOSEN, REJECTED = 0, 1
_FLOAT32_STEP = 2.0**-23
"""Relative distance of two neighbouring float32."""


class Dpo(Objective):
    """`kind: dpo`. Counts: pairs, tokens by span kind, chosen tokens by span kind.

    Sums: loss, pairs with a positive margin, ties, margins, rewards of the chosen and of the rejected side
    (beta * (S - R)), -ln p of the chosen side by span kind. A pair is a tie, and no win, where its margin is less than
    float32, in which the reference's ln p come, can tell from 0: so all pairs of a student that is its reference are.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "reference_logp"})

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """The larger it is, the closer the student stays to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Fraction of the pairs assumed to be labelled the wrong way round."""

    def counts(self, pack: Pack) -> Counts:
        """float64 [1 + 2 * kinds].

        Raises:
            DataError: a document is not one of two sides of a pair, or has no reference logp.
        """
        rows = np.flatnonzero(pack.target_kind >= 0)
        if not len(rows):
            return np.zeros(1 + 2 * KINDS)
        if pack.pair is None or pack.side is None:
            raise DataError("`kind: dpo` was given documents without pairs; use a corpus of preference pairs")
        num_pairs = _num_pairs(pack.pair, pack.side)
        if 2 * num_pairs < len(pack.pair):
            raise DataError(
                f"{len(pack.pair) - 2 * num_pairs} documents of a pack are not one of the two sides of a "
                "pair; use a corpus of preference pairs, with both sides of each"
            )
        missing = np.ones(len(pack.pair), bool) if pack.reference_logp is None else ~np.isfinite(pack.reference_logp)
        if missing.any():
            raise DataError(
                f"{missing.sum()} documents of preference pairs have no reference logp; score them with the "
                "reference model first, and give the table in the arm's `data`"
            )
        kind, document = pack.target_kind[rows].astype(np.int64), pack.document[rows]
        chosen = kind[pack.side[document] == CHOSEN]
        tokens = [np.bincount(kinds, minlength=KINDS) for kinds in (kind, chosen)]
        return np.concatenate([[num_pairs], *tokens])

    def loss(self, head: LmHead, hidden: torch.Tensor, batch: PackTensors, step: StepContext) -> LossOutput:
        """Loss of a pack from its hidden states [T, H]."""
        rows = torch.nonzero(batch.target_kind >= 0)[:, 0]
        _, nll = head(hidden.index_select(0, rows), TokenNll(batch.targets[rows], None))
        pair, side, reference = _sides(batch)
        document = batch.document[rows].long()
        logp = torch.zeros(len(pair), dtype=torch.float64, device=nll.device).index_add(0, document, -nll.double())
        reward = self.beta * (logp - reference)
        of_side = reward.new_zeros(2, len(pair))
        chosen = of_side[CHOSEN].index_add(0, pair, reward * (side == CHOSEN))
        rejected = of_side[REJECTED].index_add(0, pair, reward * (side == REJECTED))
        is_pair = of_side[CHOSEN].index_add(0, pair, (side == CHOSEN).double())
        margin = chosen - rejected
        size = self.beta * (logp.detach().abs() + reference.abs())
        is_tie = is_pair * (margin.abs() <= _FLOAT32_STEP * size.new_zeros(len(pair)).index_add(0, pair, size))
        smoothing = self.label_smoothing
        losses = is_pair * -((1 - smoothing) * logsigmoid(margin) + smoothing * logsigmoid(-margin))
        of_chosen = nll.detach().double() * (side[document] == CHOSEN)
        by_kind = reward.new_zeros(KINDS).index_add(0, batch.target_kind[rows], of_chosen)
        found = [losses, (is_pair - is_tie) * (margin > 0), is_tie, margin, chosen, rejected]
        sums = torch.cat([torch.stack([values.detach().sum() for values in found]), by_kind])
        return LossOutput(losses.sum() / step.counts[0].clamp(min=1), sums)

    def report(self, counts: torch.Tensor, sums: torch.Tensor) -> dict[str, Any]:
        """The loss, what it is made of, and the chosen side's mean -ln p by span kind as `span_loss`."""
        num_pairs = max(float(counts[0]), 1.0)
        loss, accuracy, ties, margin, chosen, rejected = (sums[:6] / num_pairs).tolist()
        of_chosen = zip(SPAN_KINDS, sums[6:].tolist(), counts[1 + KINDS :].tolist(), strict=True)
        return {
            "loss": loss,
            "span_loss": {kind: total / count for kind, total, count in of_chosen if count > 0},
            "span_tokens": dict(zip(SPAN_KINDS, counts[1 : 1 + KINDS].int().tolist(), strict=True)),
            "pairs": int(counts[0]),
            "accuracy": accuracy,
            "ties": ties,
            "margin": margin,
            "reward_chosen": chosen,
            "reward_rejected": rejected,
        }


def _num_pairs(pair: npt.NDArray[np.int32], side: npt.NDArray[np.int8]) -> int:
    """Pairs with exactly one document on each side."""
    slots = pair[pair >= 0].astype(np.int64) * 2 + side[pair >= 0]
    sides = np.bincount(slots, minlength=2 * len(pair)).reshape(-1, 2)
    return int((sides == 1).all(axis=1).sum())


def _sides(batch: PackTensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pair (int64), side and reference logp (float64) of each document; empty for a pack without documents."""
    if batch.pair is None or batch.side is None or batch.reference_logp is None:
        nothing = torch.zeros(0, dtype=torch.int64, device=batch.document.device)
        return nothing, nothing, nothing.double()
    return batch.pair.long(), batch.side, batch.reference_logp.double()
