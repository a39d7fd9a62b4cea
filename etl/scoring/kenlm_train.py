"""Trains an n-gram model in KenLM's format; the same lines give the same bytes.

There are two backends, both with modified interpolated Kneser-Ney smoothing (Chen and Goodman 1999). KenLM's `lmplz`
and `build_binary` are used if both are on PATH (`make kenlm-tools` builds them). They sort on disk in 1 GB of memory,
process 1.4 million words a second for a trigram and write a memory-mapped binary. Otherwise Python is used: kaldingram
counts, and probabilities are computed from the counts as in lmplz. That takes 0.45 GB per million words for a trigram
and writes ARPA text; a corpus above a stated size is refused.

For an n-gram that occurs c times (for a shorter one that does not begin a line: after c different words)

    p(w | h) = (c(h w) - D(c(h w))) / C(h) + g(h) p(w | h without its first word)

where C(h) is the sum of c(h w) and g(h) that of D(c(h w)) / C(h). For the empty history, the last factor is
1 / (V + 1), with V words and `<unk>`. Each order has three discounts, for counts of 1, of 2, and of 3 and more:

    D(k) = k - (k + 1) Y t(k + 1) / t(k),   Y = t(1) / (t(1) + 2 t(2)),   t(k) n-grams have the count k

If t(1), t(2) or t(3) is 0, as in small corpora, or a discount is not above 0, they are 0.5, 1 and 1.5 (lmplz's
`--discount_fallback`). So p sums to 1 in every context, and is above 0 for every word and `<unk>`.
"""

import contextlib
import io
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from kaldingram.train import CountsForHistory, NgramCounts

from etl.digests import file_sha256
from etl.errors import ConfigError
from etl.hashing import fixed_binary
from etl.scoring.lines import normalised_lines
from etl.scoring.perplexity import in_kenlm_sample

ORDERS: Final = range(2, 6)
MAX_WORDS: Final = 2_000_000
"""Default for the largest corpus, in words, that kaldingram is used for."""
LMPLZ_MEMORY: Final = "1G"
DISCOUNT_FALLBACK: Final = (0.0, 0.5, 1.0, 1.5)
MODEL_VERSIONS: Final = {"lmplz": 1, "kaldingram": 2}
"""By backend; increased when the same lines would give another model."""


@dataclass(frozen=True)
class TrainedModel:
    """The result of `train`."""

    path: Path
    sha256: str
    words: int
    """Words of the corpus, without ends of lines."""
    backend: str
    """lmplz or kaldingram."""


def backend() -> str:
    """The backend that `train` uses here."""
    return "lmplz" if shutil.which("lmplz") and shutil.which("build_binary") else "kaldingram"


def backend_line(max_words: int) -> str:
    """One line for the user about the backend that `train` uses here."""
    if backend() == "lmplz":
        return "training with lmplz"
    return f"training with kaldingram, up to {max_words:,} words; `make kenlm-tools` builds lmplz, which has no limit"


def train(lines: Iterable[str], order: int, out: Path, max_words: int = MAX_WORDS) -> TrainedModel:
    """Estimate a model of some order from normalised lines and write it, completely or not at all.

    Args:
        lines: as from `etl.scoring.lines.normalised_lines`; their order decides the order inside the file.
        order: words of the longest n-gram, 2 to 5.
        out: local file to write; KenLM recognises the format by its first bytes.
        max_words: number of words above which kaldingram refuses a corpus; lmplz has no limit.

    Raises:
        ConfigError: order out of range, no lines, or more words than max_words without lmplz.
    """
    if order not in ORDERS:
        raise ConfigError(f"order {order} must be from 2 to 5")
    chosen = backend()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"_{out.name}.") as name:
        scratch = Path(name)
        if chosen == "lmplz":
            words = _with_lmplz(lines, order, scratch)
        else:
            words = _with_kaldingram(lines, order, scratch, max_words)
        os.replace(scratch / "model", out)
    return TrainedModel(out, file_sha256(out), words, chosen)


def sample_lines(batches: Iterable[pa.RecordBatch], seed: int, fraction: float) -> Iterator[str]:
    """The normalised lines of the sampled rows, sorted by id and place, whatever the order of the batches.

    Rows of one id are exact duplicates and count once. The sampled texts are held in memory, as Arrow.

    Args:
        batches: with `id` binary(16) and `text` string, no nulls.
        seed: of the sample, `sample_seed` of the perplexity step.
        fraction: of the rows, `sample_fraction` of that step.
    """
    empty = pa.schema([("id", pa.binary(16)), ("text", pa.string())])
    kept = [
        batch.select(["id", "text"]).filter(in_kenlm_sample(batch.column("id"), seed, fraction)) for batch in batches
    ]
    table = pa.Table.from_batches(kept, schema=None if kept else empty)
    ids = fixed_binary(pa.concat_arrays(table["id"].chunks or [pa.array([], pa.binary(16))])).view(">u8")
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    ordered = ids[order]
    first = np.ones(len(order), bool)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    for batch in table.select(["text"]).take(order[first]).to_batches(max_chunksize=1024):
        yield from normalised_lines(batch.column("text"))[0].to_pylist()


def _with_lmplz(lines: Iterable[str], order: int, scratch: Path) -> int:
    words = 0
    with open(scratch / "text", "w", encoding="utf-8", newline="\n") as text:
        for line in lines:
            words += line.count(" ") + 1
            text.write(line + "\n")
    _refuse_empty(words)
    # The fallback is for corpora too small to estimate three discounts; it changes nothing for others.
    options = ["-o", str(order), "-S", LMPLZ_MEMORY, "-T", str(scratch), "--discount_fallback"]
    _run(["lmplz", *options, "--text", str(scratch / "text"), "--arpa", str(scratch / "arpa")])
    _run(["build_binary", "-T", str(scratch) + "/", str(scratch / "arpa"), str(scratch / "model")])
    return words


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(
            f"{command[0]} ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}; "
            "rebuild it with `make kenlm-tools`, or remove it from PATH to use kaldingram"
        )


def _with_kaldingram(lines: Iterable[str], order: int, scratch: Path, max_words: int) -> int:
    counts = NgramCounts(order)
    words = 0
    for line in lines:
        words += line.count(" ") + 1
        if words > max_words:
            raise ConfigError(
                f"the sample has more than {max_words:,} words, too many for kaldingram (pure Python); "
                "build lmplz with `make kenlm-tools` and put it on PATH, or lower the fraction"
            )
        counts.add_raw_counts_from_line(line)
    _refuse_empty(words)
    _estimate(counts)
    with (
        contextlib.redirect_stderr(io.StringIO()),  # kaldingram's progress bars cannot be turned off
        open(scratch / "model", "w", encoding="utf-8", newline="\n") as file,
    ):
        counts.print_as_arpa(file)
    return words


def _refuse_empty(words: int) -> None:
    if words == 0:
        raise ConfigError("the sample has no words; raise the fraction, or check that the dataset has rows")


def _estimate(counts: NgramCounts) -> None:
    """Fill in probabilities and back-off weights, shortest n-grams first, by the formulas at the top of the file."""
    unigrams = counts.counts[0][()]
    unigrams.word_to_count["<unk>"] = 0
    vocabulary = unigrams.word_to_count.keys() - {"<s>"}
    shorter = dict.fromkeys(vocabulary, 1 / len(vocabulary))
    for length, histories in enumerate(counts.counts):
        counted = {history: _kneser_ney_counts(ngrams) for history, ngrams in histories.items()}
        discounts = _discounts(Counter(count for of_history in counted.values() for count in of_history.values()))
        for history, of_history in counted.items():
            ngrams = histories[history]
            total = sum(of_history.values())
            taken = {word: discounts[min(count, 3)] for word, count in of_history.items()}
            weight = sum(taken.values()) / total
            if length:
                shorter = counts.counts[length - 1][history[1:]].word_to_f
                counts.counts[length - 1][history[:-1]].word_to_bow[history[-1]] = weight
            ngrams.word_to_f = {
                word: (count - taken[word]) / total + weight * shorter[word] for word, count in of_history.items()
            }
            ngrams.word_to_bow = dict.fromkeys(ngrams.word_to_count)
    # <s> is never predicted; this is written as the smallest number there is.
    unigrams.word_to_f["<s>"] = 0


def _kneser_ney_counts(ngrams: CountsForHistory) -> dict[str, int]:
    """By last word: the number of different words before the n-gram, or of its occurrences if there are none."""
    contexts = ngrams.word_to_context
    return {
        word: len(contexts[word]) if contexts.get(word) else count
        for word, count in ngrams.word_to_count.items()
        if word != "<s>"
    }


def _discounts(num_with: Counter[int]) -> tuple[float, ...]:
    """The discounts for counts of 0, 1, 2, and 3 or more, given the number of n-grams with each count."""
    if num_with[1] and num_with[2] and num_with[3]:
        share = num_with[1] / (num_with[1] + 2 * num_with[2])
        found = [k - (k + 1) * share * num_with[k + 1] / num_with[k] for k in (1, 2, 3)]
        if min(found) > 0:
            return (0.0, *found)
    return DISCOUNT_FALLBACK
