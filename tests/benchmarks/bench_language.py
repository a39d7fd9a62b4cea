"""Language: MB per CPU-second of our kernel beside fasttext-predict, with the same answers.

    python -m tests.benchmarks.bench_language TEXTS.parquet [--column text] [--rounds 3]

Ours is what the step does: the text is cleaned and judged, in one process on one thread; each part is also shown by
itself. fasttext-predict gets the cleaned texts as Python strings, one call a text, and is charged neither for cleaning
nor for making the strings. MB are those of the cleaned text. Sides take turns, so that a shared machine slows all
alike, and every round has texts that neither side has seen (a cache must not learn them); medians of --rounds.
Texts are whole documents, pieces of 5,000 characters and pieces of 100. The last columns say how many labels agree and
by how much the scores of those differ at most.

Prints at the end how much memory one classifier takes, and how long reading the model takes.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from etl.artefacts import fetch
from etl.filters.language import MODEL_SHA256, MODEL_URI
from etl.filters.language_kernel import Classifier
from etl.filters.language_text import judged_texts
from etl.models.fasttext_model import read_fasttext

MB_A_ROUND = {"documents": 6.0, "5,000 characters": 6.0, "100 characters": 2.0}
T = TypeVar("T")
CUTS = {"documents": 0, "5,000 characters": 5000, "100 characters": 100}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def seconds(work: Callable[[], T]) -> tuple[float, T]:
    """CPU-seconds of this process, and what the work returns."""
    begin = time.process_time()
    result = work()
    return time.process_time() - begin, result


def answers_of(peer: Any, words: list[str]) -> list[Any]:
    """What fasttext-predict says of each text."""
    return [peer.predict(text) for text in words]


def slices(path: Path, column: str, rounds: int) -> Iterator[dict[str, pa.StringArray]]:
    """Texts of each kind for each round: documents in an order of their own, none of them twice."""
    texts = pq.read_table(path, columns=[column])[column]
    order = iter(np.random.default_rng(1).permutation(len(texts)).tolist())
    for _ in range(rounds):
        made: dict[str, pa.StringArray] = {}
        for name, cut in CUTS.items():
            parts: list[str] = []
            size = 0.0
            while size < MB_A_ROUND[name]:
                text = texts[next(order)].as_py()
                cuts = [text[at : at + cut] for at in range(0, len(text), cut)] if cut else [text]
                parts += cuts
                size += len(text.encode()) / 1e6
            made[name] = pa.array(parts, pa.string())
        yield made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--column", default="text")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    path = fetch(MODEL_URI, MODEL_SHA256)
    reading, model = seconds(partial(read_fasttext, path))
    classifier, peer = Classifier(model), fasttext.load_model(str(path))
    warm, known = judged_texts(pa.array(["warm"]), None)
    classifier.predict(warm, known)
    rates: dict[tuple[str, str], list[float]] = {}
    same: dict[str, list[tuple[int, int, float]]] = {}
    for made in slices(args.texts, args.column, args.rounds):
        for name, texts in made.items():
            cleaning, (judged, known) = seconds(partial(judged_texts, texts, None))
            kernel, (labels, scores) = seconds(partial(classifier.predict, judged, known))
            words = [text for text, flag in zip(judged.to_pylist(), known, strict=True) if flag]
            theirs, answers = seconds(partial(answers_of, peer, words))
            num_mb = sum(len(text.encode()) for text in words) / 1e6
            sides = {"fasttext": theirs, "ours": cleaning + kernel, "cleaning": cleaning, "kernel": kernel}
            for side, spent in sides.items():
                rates.setdefault((name, side), []).append(num_mb / spent)
            same.setdefault(name, []).append(agreement(model.labels, labels[known], scores[known], answers))
    say("| texts | fasttext-predict | ours | ratio | cleaning alone | kernel alone | rows | same label | score |")
    say("|---|---|---|---|---|---|---|---|---|")
    for name in CUTS:
        theirs, ours, cleaning, kernel = (
            statistics.median(rates[name, side]) for side in ("fasttext", "ours", "cleaning", "kernel")
        )
        rows, agreeing, worst = (sum(column) for column in zip(*same[name], strict=True))
        worst = max(part[2] for part in same[name])
        say(
            f"| {name} | {theirs:.1f} | {ours:.1f} | {ours / theirs:.1f} | {cleaning:.0f} | {kernel:.0f} "
            f"| {rows} | {agreeing / rows:.5f} | {worst:.1e} |"
        )
    say(f"memory {classifier.num_bytes / 1e6:.1f} MB, reading the model {reading:.2f} s")


def agreement(names: tuple[str, ...], labels: np.ndarray, scores: np.ndarray, answers: list) -> tuple[int, int, float]:
    """Rows, rows with the same label, and the largest difference of the scores of those."""
    same, worst = 0, 0.0
    nothing = names.index("__label__en")
    for label, score, ((their_label,), (their_score,)) in zip(labels.tolist(), scores.tolist(), answers, strict=True):
        if names[label if label >= 0 else nothing] == their_label:
            same += 1
            worst = max(worst, abs(score - their_score)) if label >= 0 else worst
    return len(answers), same, worst


if __name__ == "__main__":
    main()
