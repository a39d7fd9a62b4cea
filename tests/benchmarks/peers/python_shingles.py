"""Signatures by rensa and datasketch from word 5-grams that Python makes, and near dedup by rensa and sorted bands.

    python -m tests.benchmarks.peers.python_shingles sign rensa|rensa_zip|datasketch CORPUS SLICES
    python -m tests.benchmarks.peers.python_shingles near rensa|rensa_zip CORPUS FOUND

`rensa` makes its shingles as one writes them down, from slices of the list of words; `rensa_zip` zips five shifted
lists, the fastest way that we found. Near dedup has 14 bands of 8 of 112 permutations; rows next to each other in a
sorted band are a pair and nothing is verified; scipy makes the components.
"""

import re
import sys
from typing import Any

import datasketch
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rensa import RMinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tests.benchmarks.peers.meter import WARM_UP_ROWS, Meter, answer, peak_gb, take_turns, write_found

WORDS = re.compile(r"\w+")
NUM_PERM = 128
BANDS, ROWS = 14, 8


def sliced(text: str) -> list[str]:
    words = WORDS.findall(text.lower())
    return [" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))]


def zipped(text: str) -> list[str]:
    words = WORDS.findall(text.lower())
    return list(map(" ".join, zip(words, words[1:], words[2:], words[3:], words[4:], strict=False))) or [
        " ".join(words)
    ]


SHINGLES = {"rensa": sliced, "rensa_zip": zipped}


def rensa_signatures(name: str, texts: list[str], num_perm: int) -> npt.NDArray[np.uint32]:
    shingles = SHINGLES[name]
    signed = np.empty((len(texts), num_perm), np.uint32)
    for row, text in enumerate(texts):
        minhash = RMinHash(num_perm=num_perm, seed=42)
        minhash.update(shingles(text))
        signed[row] = minhash.digest()
    return signed


def datasketch_signatures(texts: list[str]) -> list[Any]:
    return datasketch.MinHash.bulk(([gram.encode() for gram in sliced(text)] for text in texts), num_perm=NUM_PERM)


def to_list(texts: pa.Array) -> list[str]:
    return texts.to_pylist()


def near(name: str, texts: list[str]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Pairs of rows, int64 [2, pairs], and the component of each row."""
    signed = rensa_signatures(name, texts, BANDS * ROWS)
    pieces = []
    for band in range(BANDS):
        values = np.ascontiguousarray(signed[:, band * ROWS : (band + 1) * ROWS]).view(f"V{ROWS * 4}").ravel()
        order = np.argsort(values, kind="stable")
        same = np.flatnonzero(values[order[1:]] == values[order[:-1]])
        pieces.append(np.stack([order[same], order[same + 1]]))
    pairs = np.concatenate(pieces, axis=1)
    graph = coo_array((np.ones(pairs.shape[1], np.bool_), pairs), shape=(len(texts), len(texts)))
    return pairs, connected_components(graph, directed=False)[1]


def run_near(name: str, corpus: str, found: str) -> None:
    near(name, pq.ParquetFile(corpus).read_row_group(0, columns=["text"])["text"][:WARM_UP_ROWS].to_pylist())
    meter = Meter()
    pairs, label = near(name, pq.read_table(corpus, columns=["id", "text"])["text"].to_pylist())
    cpu, wall = meter.lap()
    left, right = np.unique(np.sort(pairs, axis=0), axis=1)
    write_found(found, left, right, label)
    answer(cpu_s=cpu, wall_s=wall, peak_gb=peak_gb())


def main() -> None:
    mode, name, corpus, rest = sys.argv[1:]
    if mode == "near":
        run_near(name, corpus, rest)
    elif name == "datasketch":
        take_turns(corpus, int(rest), to_list, datasketch_signatures)
    else:
        take_turns(corpus, int(rest), to_list, lambda texts: rensa_signatures(name, texts, NUM_PERM))


if __name__ == "__main__":
    main()
