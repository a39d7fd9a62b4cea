"""Texts for n-gram models: lines of words separated by single spaces.

Training and scoring share this definition; a model and its scores belong to one `LINES_VERSION`. Each line of a text
(lines are separated by a line feed and never joined) goes through these steps:

1. it is converted to Unicode form NFKD, so that full-width forms and ligatures become plain ones (Arrow 25 has no NFKC:
   its form of that name gives NFKD);
2. it is put in lower case;
3. every decimal digit becomes `0`;
4. invisible format characters (Cf) are removed, control characters and every kind of space become a space;
5. each punctuation mark or symbol becomes a word, and so does each character, with its marks, of the scripts that write
   no spaces (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar);
6. runs of spaces become one, and spaces at both ends are removed.

A line that is then empty is dropped. This differs from cc_net's normaliser on purpose (marks and line feeds kept, no
SentencePiece), so cutoffs published for its models do not apply. Arrow kernels process 17 MB of text a CPU-second and
spend most of the time in regular expressions.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

LINES_VERSION: Final = 1
"""Increased when a text would give other lines; part of the version of everything that trains or scores."""

_FORMAT: Final = r"\p{Cf}+"
_ALONE: Final = r"([\p{P}\p{S}]|[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*)"
_SPACES: Final = r"[\p{Cc}\p{Z}]+"


def normalised_lines(texts: pa.StringArray) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    """The lines of all texts one after another, and the row of each.

    Args:
        texts: string [rows], no nulls.

    Returns:
        string [lines], each with at least one word; int64 [lines], ascending.
    """
    parts = pc.split_pattern(texts, "\n")
    rows = np.repeat(np.arange(len(texts)), pc.list_value_length(parts).to_numpy())
    lines = _normalised(parts.flatten())
    filled = pc.not_equal(lines, "")
    return lines.filter(filled), rows[filled.to_numpy(zero_copy_only=False)]


def _normalised(lines: pa.StringArray) -> pa.StringArray:
    lines = pc.utf8_lower(pc.utf8_normalize(lines, "NFKD"))
    lines = pc.replace_substring_regex(lines, r"\p{Nd}", "0")
    lines = pc.replace_substring_regex(lines, _FORMAT, "")
    lines = pc.replace_substring_regex(lines, _ALONE, r" \1 ")
    lines = pc.replace_substring_regex(lines, _SPACES, " ")
    return pc.ascii_trim(lines, " ")


def count_words(lines: pa.StringArray) -> npt.NDArray[np.int64]:
    """Number of words of each normalised line: int64 [lines]."""
    return pc.count_substring(lines, " ").to_numpy().astype(np.int64) + 1
