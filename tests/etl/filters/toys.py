"""Items and indices of plain words, and their n-grams as Python sets."""

import numpy as np
import pyarrow as pa

from etl.filters.ngram_index import ANSWER, QUESTION, Index, Items, build, write
from etl.filters.ngram_words import Words

PLAIN = Words(latex=False, mask_numbers=False)


def as_items(questions, answers=()):
    texts = [*questions, *answers]
    parts = [QUESTION] * len(questions) + [ANSWER] * len(answers)
    names = pa.array([str(number) for number in range(len(texts))], pa.string())
    return Items(pa.array(["toy"] * len(texts), pa.string()), names, np.array(parts, np.int32), pa.array(texts))


def index_of(path, items, rules, min_words=2, words=PLAIN):
    write(path, items, build(items, rules, words, min_words))
    return Index(path, rules, words)


def grams(words, n):
    """The set of n-grams; a shorter text is one."""
    n = min(n, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if words else set()
