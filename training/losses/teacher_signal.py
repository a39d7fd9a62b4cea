"""Base of the losses that read the teacher's ln p of the corpus's own tokens (TEACHER_LOGP, or scored rollouts).

A supervised token without a finite signal is an error before the step, not a token that silently counts less.
"""

from typing import Any, ClassVar

import numpy as np
import torch

from etl.errors import DataError
from training.data.collate import Pack, PackTensors
from training.losses.spans import KINDS, Counts, SpanObjective, Supervised, span_counts, token_means

TEACHER_SUMS = slice(2 * KINDS, 3 * KINDS)
"""Where `counts` has the sums of the teacher's ln p by span kind."""


class TeacherSignalObjective(SpanObjective):
    """Adds to `counts` the sums of the teacher's ln p by span kind, and their means to the report."""

    needs: ClassVar[frozenset[str]] = frozenset({"teacher_logp"})

    def counts(self, pack: Pack) -> Counts:
        """float64 [3 * kinds].

        Raises:
            DataError: a supervised token has no teacher signal.
        """
        rows = np.flatnonzero(pack.target_kind >= 0)
        if not len(rows):
            return np.zeros(3 * KINDS)
        logp = np.full(len(rows), np.nan) if pack.teacher_logp is None else pack.teacher_logp[rows].astype(np.float64)
        missing = ~np.isfinite(logp)
        if missing.any():
            raise DataError(
                f"{missing.sum()} supervised tokens of {len(np.unique(pack.document[rows[missing]]))} documents have "
                "no teacher logp; give the arm `data.teacher`, so that it streams rescored rows only, or use `kind: ce`"
            )
        sums = np.bincount(pack.target_kind[rows], weights=logp, minlength=KINDS)
        return np.concatenate([span_counts(pack), sums])

    def teacher_logp(self, batch: PackTensors, here: Supervised) -> torch.Tensor:
        """[S]; a pack without documents may come without the array, and has no row."""
        return here.coefficients if batch.teacher_logp is None else batch.teacher_logp[here.rows]

    def report(self, counts: torch.Tensor, sums: torch.Tensor) -> dict[str, Any]:
        """Adds `span_teacher_logp`, the mean of each kind that has tokens."""
        return {**super().report(counts, sums), "span_teacher_logp": token_means(counts, counts[TEACHER_SUMS])}
