"""Text to MinHash signatures: our kernels against plain Python with datasketch, in megabytes per CPU-second.

    python tests/benchmarks/bench_minhash.py [CORPUS.parquet] [--groups 6]

Every row group of the corpus is seen once by each side, one after the other and in turn first, so that a
shared or throttled machine slows both alike: quote the ratio, not the rates. The first row group compiles and
is not counted. Both sides use lower-case `\\w+` word 5-grams and 128 permutations, on one thread.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import datasketch
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl.dedup.minhash import signatures
from etl.text import ngram_hashes, shingles

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "bench_corpus" / "corpus.parquet"
WORDS = re.compile(r"\w+")


def ours(texts: pa.Array) -> None:
    """The path of the dedup stage."""
    signatures(*ngram_hashes(texts, 5))


def ours_with_sets(texts: pa.Array) -> None:
    """The same, and the sorted sets that verification needs."""
    signatures(*shingles(texts, 5))


def plain(texts: pa.Array) -> None:
    """Python sets of shingle strings, signatures by datasketch in bulk."""
    rows = []
    for value in texts.to_pylist():
        words = WORDS.findall(value.lower())
        rows.append({" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))})
    datasketch.MinHash.bulk(rows, num_perm=128)


def cpu_seconds(work: Callable[[pa.Array], None], texts: pa.Array) -> float:
    """CPU time of this process for one call."""
    start = time.process_time()
    work(texts)
    return time.process_time() - start


def main() -> None:
    """Run the sides in turn and print rates and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", type=Path, default=CORPUS)
    parser.add_argument("--groups", type=int, default=6, help="row groups to measure")
    options = parser.parse_args()
    file = pq.ParquetFile(options.corpus)
    sides = [ours, ours_with_sets, plain]
    seconds = dict.fromkeys(sides, 0.0)
    num_bytes = 0
    for group in range(min(options.groups + 1, file.num_row_groups)):
        texts = file.read_row_group(group, columns=["text"])["text"].combine_chunks()
        turn = group % len(sides)
        for side in sides[turn:] + sides[:turn]:
            spent = cpu_seconds(side, texts)
            seconds[side] += spent if group else 0.0
        num_bytes += pc.sum(pc.binary_length(texts)).as_py() if group else 0
    for side in sides:
        rate = num_bytes / 1e6 / seconds[side]
        ratio = seconds[plain] / seconds[side]
        sys.stdout.write(f"{side.__name__:15} {rate:8.1f} MB per CPU-second {ratio:7.1f} x plain\n")


if __name__ == "__main__":
    main()
