"""Prepares texts for lid.176 and decides whether it can judge them: one pass over the bytes, about 100 MB a CPU-second.

fastText separates words at ASCII spaces only, takes a free-standing `</s>` for the end of the text, and ignores a word
that begins with `__label__`. To prevent that, a text becomes words with single spaces:

- every white space of Unicode, control characters, zero-width spaces and blank fillers become a space; invisible format
  characters (soft hyphens, marks of direction) are removed, but joiners are kept (Persian and Indic words need them);
- `</s>` as a word is left out; only the rest of a word that begins with `__label__` is judged;
- letters and marks of scripts that the model does not know become a space. It keeps 42,765 of 2,000,000 n-gram hashes,
  so it takes two in a hundred n-grams of an unknown script for those of another language, and its answer is chance;
- then the wanted number of characters is taken, with runs of spaces counted as one.

A text is undetermined if it has no letter of a known script, or more letters and marks of unknown scripts than of known
ones. Letters that Unicode lists as another form of a letter (mathematical, full-width, half-width, presentation forms)
count as unknown: the model has not learnt them.
"""

import functools
import unicodedata
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I32, I64, U8, Bools
from etl.hashing import binary_buffers
from etl.jit import njit
from etl.text import decode

_EVERY: Final = 1 << 62

_SCRIPTS: Final = """
Arabic Armenian Bengali Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han Hangul Hebrew Hiragana
Kannada Katakana Khmer Lao Latin Malayalam Myanmar Oriya Sinhala Tamil Telugu Thaana Thai Tibetan
"""
SCRIPTS: Final = tuple(_SCRIPTS.split())
"""Scripts in which a labelled language is written and whose n-grams the model keeps more often than chance would."""

_PLAIN, _LETTER, _FOREIGN, _SPACE, _REMOVED = range(5)
_NUM_CODE_POINTS: Final = 1 << 21
_END_OF_LETTERS: Final = 0x323B0
_TAGS: Final = (0xE0000, 0xE1000)
_BLANKS: Final = r"[\p{Z}\p{Cc}\x{115F}\x{1160}\x{17B4}\x{17B5}\x{200B}\x{2800}\x{3164}\x{FEFF}\x{FFA0}]"
_INVISIBLE: Final = (
    r"[\x{AD}\x{34F}\x{61C}\x{180B}-\x{180F}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2060}-\x{206F}\x{FFF9}-\x{FFFB}"
    r"\x{E0000}-\x{E00FF}]"
)
_END: Final = np.frombuffer(b"</s>", np.uint8)
_LABEL: Final = np.frombuffer(b"__label__", np.uint8)


def judged_texts(texts: pa.StringArray, characters: int | None) -> tuple[pa.StringArray, Bools]:
    """The words of each text that the model is to judge, and whether its answer counts.

    Args:
        texts: string [rows], no nulls.
        characters: how many of each text count, at least 1; None: all.

    Returns:
        string [rows], at most that many characters each and a space after each word; bool [rows], False if the text is
        undetermined.
    """
    data, offsets = binary_buffers(texts)
    most = _EVERY if characters is None else characters
    out = np.empty(int(offsets[-1] - offsets[0]) + len(texts), np.uint8)
    out_offsets = np.zeros(len(texts) + 1, np.int32)
    known = np.empty(len(texts), np.bool_)
    _clean(data, offsets, _classes(), most, out, out_offsets, known)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(out_offsets), pa.py_buffer(out)), known


@functools.cache
def _classes() -> U8:
    """uint8 [2^21]: what each code point becomes."""
    table = np.full(_NUM_CODE_POINTS, _FOREIGN, np.uint8)
    points = np.concatenate([np.arange(0xD800), np.arange(0xE000, _END_OF_LETTERS), np.arange(*_TAGS)])
    characters = pa.array([chr(point) for point in points.tolist()], pa.string())
    scripts = "".join(rf"\p{{{script}}}" for script in SCRIPTS)

    def matching(pattern: str) -> I64:
        return points[pc.match_substring_regex(characters, pattern).to_numpy(zero_copy_only=False)]

    table[matching(rf"[\p{{Common}}\p{{Inherited}}{scripts}]")] = _PLAIN
    table[np.intersect1d(matching(rf"[{scripts}]"), matching(r"\pL"))] = _LETTER
    letters = matching(r"\pL")
    # The decomposition of a form begins with its tag; plain letters (Thai and Lao am, Jamo) have <compat>, too.
    tags = np.array([unicodedata.decomposition(chr(point)).partition(" ")[0] for point in letters.tolist()])
    form = np.char.startswith(tags, "<")
    table[letters[form]] = np.where(tags[form] == "<compat>", _PLAIN, _FOREIGN)
    signs = matching(r"[\p{S}\p{P}\p{N}]")
    table[signs[table[signs] == _FOREIGN]] = _SPACE
    table[matching(_BLANKS)] = _SPACE
    table[matching(_INVISIBLE)] = _REMOVED
    return table


@njit
def _clean(data: U8, offsets: I64, classes: U8, most: int, out: U8, out_offsets: I32, known: Bools) -> None:
    """Write the words of each text, a space after each: `out` has room for the bytes of all and one space a text."""
    size = 0
    for row in range(len(known)):
        begin = size
        word = size
        characters, letters, foreign = 0, 0, 0
        at = offsets[row]
        while at < offsets[row + 1] and characters < most:
            point, end = decode(data, at, offsets[row + 1])
            kind = classes[point]
            if kind == _FOREIGN:
                foreign += 1
                characters += 1
            if kind in (_FOREIGN, _SPACE):
                size, word, added = _end_word(out, begin, word, size)
                characters += added
            elif kind != _REMOVED:
                letters += kind == _LETTER
                characters += 1
                for place in range(at, end):
                    out[size] = data[place]
                    size += 1
                if _is(out, word, size, _LABEL):
                    size = word
                    characters -= len(_LABEL)
            at = end
        size, word, _ = _end_word(out, begin, word, size)
        out_offsets[row + 1] = size
        known[row] = letters > 0 and letters >= foreign


@njit
def _end_word(out: U8, begin: int, word: int, size: int) -> tuple[int, int, int]:
    """Close the word that begins at `word`; returns the new end, where the next word begins, and characters added."""
    if size == word:
        return size, word, 0
    if _is(out, word, size, _END):
        return word, word, -len(_END)
    out[size] = 32
    return size + 1, size + 1, 1


@njit
def _is(out: U8, word: int, size: int, text: U8) -> bool:
    if size - word != len(text):
        return False
    for k in range(len(text)):  # noqa: SIM110 (a generator is no machine code)
        if out[word + k] != text[k]:
            return False
    return True
