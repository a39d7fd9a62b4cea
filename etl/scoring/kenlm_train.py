"""An n-gram model from lines of ours, in the format that KenLM scores with; the same bytes for the same lines.

Two backends. `lmplz` and `build_binary` of KenLM, when both are on PATH (`make kenlm-tools` builds them): modified
interpolated Kneser-Ney, sorts on disk in 1 GB of memory, 1.4 million words a second for a trigram, writes a
memory-mapped binary. Otherwise kaldingram: unmodified back-off Kneser-Ney in pure Python, 120,000 words a second and
0.45 GB a million words for a trigram, writes ARPA text; a corpus above a stated size is refused.

kaldingram takes every word for known: it writes no `<unk>`, and KenLM then gives an unknown word probability 0. Here
its unigrams are discounted like every other order and interpolated with the uniform distribution over the vocabulary
and `<unk>`, as lmplz does (Chen and Goodman 1999, with D = n1 / (n1 + 2 n2) of the continuation counts):

    p(w) = (c(w) − D) / C + g / (V + 1),   p(<unk>) = g / (V + 1),   g = D · V / C

for continuation counts c(w) with sum C over V words; they sum to 1.
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
from kaldingram.train import NgramCounts

from etl.digests import file_sha256
from etl.errors import ConfigError
from etl.hashing import fixed_binary
from etl.scoring.lines import normalised_lines
from etl.scoring.perplexity import in_kenlm_sample

ORDERS: Final = range(2, 6)
MAX_WORDS: Final = 2_000_000
"""Default size up to which kaldingram is used."""
LMPLZ_MEMORY: Final = "1G"


@dataclass(frozen=True)
class TrainedModel:
    """What `train` wrote."""

    path: Path
    sha256: str
    words: int
    """Words of the corpus, ends of lines not counted."""
    backend: str
    """lmplz or kaldingram."""


def backend() -> str:
    """The backend that `train` takes here."""
    return "lmplz" if shutil.which("lmplz") and shutil.which("build_binary") else "kaldingram"


def backend_line(max_words: int) -> str:
    """One line for the user about the backend that `train` takes here."""
    if backend() == "lmplz":
        return "training with lmplz"
    return f"training with kaldingram, up to {max_words:,} words; `make kenlm-tools` builds lmplz, which has no limit"


def train(lines: Iterable[str], order: int, out: Path, max_words: int = MAX_WORDS) -> TrainedModel:
    """Estimate a model of some order from normalised lines and write it, whole or not at all.

    Args:
        lines: what `etl.scoring.lines.normalised_lines` gives; their order decides the order inside the file.
        order: words of the longest n-gram, 2 to 5.
        out: local file to write; KenLM tells the format by its first bytes.
        max_words: size of the corpus above which kaldingram is refused; lmplz has no limit.

    Raises:
        ConfigError: order out of range, no lines, or more words than max_words without lmplz.
    """
    if order not in ORDERS:
        raise ConfigError(f"order {order} is not one of 2 to 5")
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
    """The normalised lines of the sampled rows, by id and place, whatever the order of the batches.

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
    # The fallback serves corpora too small to estimate three discounts; it changes nothing where they can be.
    options = ["-o", str(order), "-S", LMPLZ_MEMORY, "-T", str(scratch), "--discount_fallback"]
    _run(["lmplz", *options, "--text", str(scratch / "text"), "--arpa", str(scratch / "arpa")])
    _run(["build_binary", "-T", str(scratch) + "/", str(scratch / "arpa"), str(scratch / "model")])
    return words


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(
            f"{command[0]} ended with exit code {done.returncode}: {done.stderr.strip()[-500:]}; "
            "rebuild it with `make kenlm-tools`, or take it off PATH to use kaldingram"
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
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars cannot be turned off
        counts.cal_discounting_constants()
        counts.cal_f()
        _add_unknown(counts)
        counts.cal_bow()
        with open(scratch / "model", "w", encoding="utf-8", newline="\n") as file:
            counts.print_as_arpa(file)
    return words


def _refuse_empty(words: int) -> None:
    if words == 0:
        raise ConfigError("the sample has no words; raise the fraction, or check that the dataset has rows")


def _add_unknown(counts: NgramCounts) -> None:
    """Smooth the unigrams and give `<unk>` its share; the formula is at the head of the file."""
    unigrams = counts.counts[0][()]
    continuations = {word: len(unigrams.word_to_context[word]) for word in unigrams.word_to_count}
    del continuations["<s>"]  # never predicted: its probability stays 0
    spectrum = Counter(continuations.values())
    discount = max(0.1, spectrum[1]) / max(1, spectrum[1] + 2 * spectrum[2])
    total = sum(continuations.values())
    uniform = discount * len(continuations) / total / (len(continuations) + 1)
    for word, count in continuations.items():
        unigrams.word_to_f[word] = (count - discount) / total + uniform
    unigrams.word_to_f["<unk>"] = uniform
    unigrams.word_to_count["<unk>"] = 0
