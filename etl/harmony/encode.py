"""Text to o200k tokens, as openai-harmony's own encoder gives them: a fast exact BPE, and openai-harmony for the rest.

The fast BPE (etl/harmony/bpe.py) and openai-harmony cut alike where they agree on what a letter, a mark, a number and a
space are. They have tables of different versions of Unicode, so a text with a code point that the older has no class
for (etl/harmony/unassigned.py) goes another way, text by text: it is cut into stretches at places where both end a
piece of their own whatever stands around, and the stretches that hold such a code point are openai-harmony's.
Other texts cost one look at their bytes more, 0.1 to 6 % of the time. A text of such code points alone is encoded at
6 MB a CPU-second, one of 3.5 kB with one of them at 8, others at 40 (mixed scripts) to 90 (English).
"""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I32, I64, U32, Bools
from etl.harmony.bpe import load_fast_bpe
from etl.harmony.unassigned import holds_unassigned, is_unassigned
from etl.harmony.vocabulary import DEFAULT_VOCABULARY, load_encoding

MAX_STRETCH: Final = 100_000
"""Characters. openai-harmony takes time with the square of a stretch and overflows its stack on some hundred thousand
characters; a longer one is the fast BPE's."""

_SIGNS: Final = np.frombuffer("\n\t ,.:;!?()，。、：；！？（）「」…".encode("utf-32-le"), "<u4")
"""None is a letter, a mark or a number, and none begins a contraction."""


class TextEncoder:
    """Encodes text as ordinary text: what looks like a control token is none."""

    def __init__(self, vocabulary: str = DEFAULT_VOCABULARY) -> None:
        """Load both tokenizers (about 0.8 CPU seconds, once a process)."""
        self._bpe = load_fast_bpe(vocabulary)
        self._encoding = load_encoding(vocabulary)

    def encode(self, text: str) -> I32:
        """The tokens of one text."""
        return self.encode_batch(pa.array([text], pa.large_string()))[0]

    def encode_batch(self, texts: pa.Array) -> tuple[I32, I64]:
        """Flat tokens, and offsets [texts + 1]; string or large_string without nulls."""
        apart = np.flatnonzero(holds_unassigned(texts))
        if not len(apart):
            return self._bpe.encode_batch(texts)
        own = [self._by_stretches(text) for text in texts.take(pa.array(apart)).to_pylist()]
        blank = np.zeros(len(texts), np.bool_)
        blank[apart] = True
        tokens, offsets = self._bpe.encode_batch(pc.if_else(pa.array(blank), "", texts))
        lengths = np.diff(offsets)
        lengths[apart] = [len(each) for each in own]
        around = np.split(tokens, offsets[apart])
        mixed = [part for pair in zip(around, own, strict=False) for part in pair]
        return np.concatenate([*mixed, around[-1]]), np.concatenate([[0], np.cumsum(lengths)])

    def _by_stretches(self, text: str) -> I32:
        """The tokens of a text that holds code points of a later Unicode."""
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        is_apart = is_unassigned(codes)
        starts = np.concatenate([[0], _cuts(codes, is_apart)])
        apart = np.logical_or.reduceat(is_apart, starts) & (np.diff(starts, append=len(codes)) <= MAX_STRETCH)
        changes = np.flatnonzero(np.diff(apart, prepend=~apart[:1]))
        bounds = [*starts[changes].tolist(), len(codes)]
        found: list[int] = []
        for start, end, is_exact in zip(bounds, bounds[1:], apart[changes].tolist(), strict=False):
            part = text[start:end]
            if is_exact:
                found += self._encoding.encode(part, disallowed_special=())
            else:
                found += self._bpe.encode_batch(pa.array([part], pa.large_string()))[0].tolist()
        return np.array(found, np.int32)


def _cuts(codes: U32, is_apart: Bools) -> I64:
    """Where a piece begins whatever stands around, as both tokenizers cut.

    A piece is letters and marks with at most one sign before them and a contraction behind; up to three digits; signs
    with at most a space before and line ends or slashes behind; or white space. So one begins at a blank behind what is
    no white space, behind a line end unless white space or a slash follows, and at a sign behind a letter or digit.
    Only what is so in every version of Unicode is looked at: ASCII, kana, Han, and that code points which are not
    assigned are no white space.
    """
    is_han = (codes >= 0x4E00) & (codes <= 0x9FFF)
    is_solid = ((codes > 0x20) & (codes < 0x7F)) | ((codes > 0x3000) & (codes < 0x4E00)) | is_han | is_apart
    lower = codes | 0x20
    is_word = ((lower >= 0x61) & (lower <= 0x7A)) | ((codes >= 0x30) & (codes <= 0x39)) | is_han
    before, after = codes[:-1], codes[1:]
    at_blank = is_solid[:-1] & np.isin(after, (0x09, 0x20))
    behind_line = (before == 0x0A) & is_solid[1:] & (after != 0x2F)
    at_sign = is_word[:-1] & np.isin(after, _SIGNS)
    return np.flatnonzero(at_blank | behind_line | at_sign) + 1
