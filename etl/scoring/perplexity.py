"""Perplexity of each text under a KenLM n-gram model, and whether the model was trained on the row.

The step only stores numbers; cuts by value, percentile or retention target use the stored column. For a text of
normalised lines l (`etl.scoring.lines`) with w(l) words and log10 probability s(l), both including the end of line,

    perplexity = 10 ^ ( −Σ s(l) / Σ (w(l) + 1) )

which is the formula of CCNet (Wenzek et al. 2020) on other lines. One core scores about 8 MB of text a second with a
trigram model. The model file is memory-mapped if it has KenLM's binary format, and read whole if it is ARPA.
"""

from collections.abc import Mapping
from typing import ClassVar, Final, Literal, Self

import kenlm
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from etl.artefacts import fetch
from etl.digests import file_sha256
from etl.errors import ConfigError
from etl.messages import full_text, instruction_text, response_text
from etl.mixture.sampling import in_sample, purpose_seed
from etl.scoring.lines import LINES_VERSION, count_words, normalised_lines
from etl.step import RUN, BatchFn, Offer, Step, append, live

TEXTS: Final = {"full": full_text, "instruction": instruction_text, "response": response_text}
SAMPLE_PURPOSE: Final = "kenlm"


class PerplexityStep(Step):
    """Adds `perplexity` (float64, rounded to 1e-4) and `in_kenlm_sample`.

    `perplexity` is null for a row with an earlier verdict and for a text without a word. `in_kenlm_sample` is true
    for the rows that `jobs.train_kenlm` takes with the same fraction and seed, whose perplexity is too low to compare.
    """

    kind: Literal["perplexity"] = "perplexity"
    purpose: ClassVar[str] = "Score a text by an n-gram (KenLM) model: lower is more like what that was trained on."
    example: ClassVar[str] = "{kind: perplexity, model: /models/wiki_en.arpa}"
    version: ClassVar[int] = LINES_VERSION
    reads: ClassVar[tuple[str, ...]] = ("id", "messages")
    adds: ClassVar[pa.Schema] = pa.schema([("perplexity", pa.float64()), ("in_kenlm_sample", pa.bool_())])
    located: ClassVar[frozenset[str]] = frozenset({"model", "sha256"})

    model: str
    """Path or URI of a KenLM binary or ARPA model. `run:kenlm` is the model that this run's stage `kenlm` trains
    (`run:NAME-kenlm` for a named one); its digest and sample are then known."""
    sha256: str | None = None
    """Required SHA-256 of the model file."""
    text: Literal["full", "instruction", "response"] = "full"
    """Which messages to score."""
    sample_fraction: float = Field(0.0, ge=0.0, le=1.0)
    """Fraction of these rows that the model was trained on; 0 for a model of other data."""
    sample_seed: int = Field(0, ge=0)
    """Seed of that sample."""

    def artefacts(self) -> dict[str, str]:
        return {"kenlm": file_sha256(fetch(self.model, self.sha256))}

    def asks(self) -> tuple[str, ...]:
        return (self.model.removeprefix(RUN),) if self.model.startswith(RUN) else ()

    def given(self, offered: Mapping[str, Offer]) -> Self:
        if not self.asks():
            return self
        offer = offered[self.model.removeprefix(RUN)]
        trained = {"sample_fraction": offer.fraction, "sample_seed": offer.seed}
        return self.model_copy(update={"model": offer.uri, "sha256": offer.sha256, **trained})

    def open(self) -> BatchFn:
        model = load(str(fetch(self.model, self.sha256)))

        def run(batch: pa.RecordBatch) -> pa.RecordBatch:
            is_live = live(batch)
            texts = TEXTS[self.text](batch).filter(is_live)
            score = pc.replace_with_mask(pa.nulls(batch.num_rows, pa.float64()), is_live, perplexities(model, texts))
            sample = in_kenlm_sample(batch.column("id"), self.sample_seed, self.sample_fraction)
            return append(batch, self.adds, [score, sample])

        return run


def in_kenlm_sample(ids: pa.Array, seed: int, fraction: float) -> pa.BooleanArray:
    """True for the rows that a model with this seed and fraction was trained on: bool [rows]."""
    return in_sample(ids, purpose_seed(SAMPLE_PURPOSE, seed), fraction)


def load(path: str) -> kenlm.Model:
    """The model in a file, loaded without KenLM's progress bars and advice.

    Raises:
        ConfigError: the file is not a model that KenLM can read.
    """
    config = kenlm.Config()
    config.show_progress = False
    config.arpa_complain = kenlm.ARPALoadComplain.NONE
    try:
        return kenlm.Model(path, config)
    except OSError as error:
        raise ConfigError(
            f"{path} is not a model that KenLM reads ({error}); make one with jobs.train_kenlm"
        ) from error


def perplexities(model: kenlm.Model, texts: pa.StringArray) -> pa.DoubleArray:
    """Perplexity of each text, rounded to 1e-4; null if it has no word: float64 [rows]."""
    lines, rows = normalised_lines(texts)
    scores = np.fromiter((model.score(line) for line in lines.to_pylist()), np.float64, len(lines))
    length = np.bincount(rows, count_words(lines) + 1, len(texts))
    total = np.bincount(rows, scores, len(texts))
    empty = length == 0
    values = np.round(10.0 ** (-total / np.where(empty, 1.0, length)), 4)
    return pa.array(values, mask=empty)
