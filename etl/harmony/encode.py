"""Text to o200k tokens, as openai-harmony's own encoder gives them.

The fast BPE (etl/harmony/bpe.py) cuts text into the same pieces as openai-harmony as long as their versions of Unicode
agree. So a text with a code point that the older version has not assigned (etl/harmony/unassigned.py) is cut here. The
pattern is the same, but it runs over a copy in which © replaces each such code point: like those, © is no letter, mark,
number or white space. tiktoken merges each piece that contains one by itself; the fast BPE gets the text in between
with the rest of the batch. The time is n log n in the length of a text, whatever the text is.

Other texts cost one more look at their bytes, 0.1 to 6 % of the time. A text with such a code point is encoded at 6 to
8 MB a CPU-second, others at 40 (mixed scripts) to 90 (English).
"""

from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa
import regex

from etl.arrays import I32, I64, Bools
from etl.harmony.bpe import load_fast_bpe
from etl.harmony.unassigned import holds_unassigned, is_unassigned
from etl.harmony.vocabulary import DEFAULT_VOCABULARY, load_merges

_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE: Final = r"[^\r\n\p{L}\p{N}]?"
_CONTRACTION: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN: Final = "|".join(
    [
        f"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTION}",
        f"{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTION}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
"""tiktoken's patterns for the pieces of o200k_base. One of them matches at every place of every text."""

_SIGN: Final = ord("©")
_BLANK: Final = regex.compile(r"\s+")


class TextEncoder:
    """Encodes text as ordinary text: what looks like a control token is none."""

    def __init__(self, vocabulary: str = DEFAULT_VOCABULARY) -> None:
        """Load the fast BPE (about 0.5 CPU-seconds, once a process)."""
        self._vocabulary = vocabulary
        self._bpe = load_fast_bpe(vocabulary)
        self._pattern = regex.compile(PATTERN)

    def encode(self, text: str) -> I32:
        """The tokens of one text."""
        return self.encode_batch(pa.array([text], pa.large_string()))[0]

    def encode_batch(self, texts: pa.Array) -> tuple[I32, I64]:
        """Flat tokens, and offsets [texts + 1]; string or large_string without nulls."""
        apart = holds_unassigned(texts)
        if not apart.any():
            return self._bpe.encode_batch(texts)
        cut = [self._parts(text) for text in texts.filter(pa.array(apart)).to_pylist()]
        parts, holds = [part for some, _ in cut for part in some], np.concatenate([flags for _, flags in cut])
        between = pa.array([part for part, held in zip(parts, holds, strict=True) if not held], texts.type)
        fast = self._bpe.encode_batch(pa.concat_arrays([texts.filter(pa.array(~apart)), between]))
        merged = self._merge([part for part, held in zip(parts, holds, strict=True) if held])
        num_parts = np.ones(len(texts), np.int64)
        num_parts[apart] = [len(some) for some, _ in cut]
        is_part = np.repeat(apart, num_parts)
        is_merged = is_part.copy()
        is_merged[is_part] = holds
        kind = is_part + is_merged.astype(np.int64)
        return _in_order(fast, merged, np.argsort(np.argsort(kind, kind="stable")), num_parts)

    def _parts(self, text: str) -> tuple[list[str], Bools]:
        """A text in parts, and which of them are a single piece with a code point of a later Unicode.

        White space before such a piece is a separate part: at the end of a part, two pieces of it would become one.
        """
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        later = is_unassigned(codes)
        known = np.where(later, np.uint32(_SIGN), codes).astype("<u4").tobytes().decode("utf-32-le")
        ends = np.array([piece.end() for piece in self._pattern.finditer(known)])
        starts = np.concatenate([[0], ends[:-1]])
        holds = np.logical_or.reduceat(later, starts)
        begins = holds.copy()
        begins[0] = True
        begins[1:] |= holds[:-1]
        for before in np.flatnonzero(holds[1:]).tolist():
            begins[before] |= _BLANK.fullmatch(known, starts[before], ends[before]) is not None
        bounds = [*starts[begins].tolist(), len(text)]
        return [text[start:end] for start, end in pairwise(bounds)], holds[begins]

    def _merge(self, pieces: list[str]) -> tuple[I32, I64]:
        """The tokens of pieces, each merged separately, and their offsets [pieces + 1]."""
        merges = load_merges(self._vocabulary)
        tokens = [merges.encode_ordinary(piece) for piece in pieces]
        flat = np.array([token for some in tokens for token in some], np.int32)
        return flat, np.cumsum([0, *map(len, tokens)])


def _in_order(fast: tuple[I32, I64], merged: tuple[I32, I64], order: I64, num_parts: I64) -> tuple[I32, I64]:
    """Flat tokens of texts, and offsets [texts + 1].

    Args:
        fast: tokens and offsets of some parts.
        merged: those of the other parts, whose numbers continue after the first.
        order: [parts] the number of the part at each place. Whole texts have the first numbers, then the parts in
            between, then the merged.
        num_parts: [texts] number of parts of each text, at least 1.
    """
    offsets = np.concatenate([fast[1], merged[1][1:] + fast[1][-1]])
    tokens = pa.array(np.concatenate([fast[0], merged[0]]))
    flat = pa.LargeListArray.from_arrays(pa.array(offsets), tokens).take(pa.array(order)).flatten()
    lengths = np.add.reduceat(np.diff(offsets)[order], np.cumsum(num_parts) - num_parts)
    return flat.to_numpy(), np.concatenate([[0], np.cumsum(lengths)])
