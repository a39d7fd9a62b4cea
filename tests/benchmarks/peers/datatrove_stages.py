"""datatrove's near dedup: its four stages with two workers, its default 14 bands of 8, xxhash, JSON lines as output.

    python -m tests.benchmarks.peers.datatrove_stages CORPUS FOUND FOLDER

Its shingles are 5-grams of its own normalised words (spaCy's English tokenizer), so its similarities differ a little
from those of the truth. Rows that shared a bucket are its pairs; it verifies none. Workers are forked, so that they
need not import anything again.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import load_word_tokenizer
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tests.benchmarks.peers.meter import WARM_UP_ROWS, Meter, answer, peak_gb, write_found

WORKERS = 2
CONFIG = MinhashConfig(num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(hash_fc="xxhash", precision=64))


def write_halves(table: pa.Table, folder: Path) -> list[pa.Table]:
    """One input file for each worker, and the row number of each of its documents."""
    folder.mkdir(parents=True)
    numbered = pa.table({"id": pa.array(range(len(table))).cast(pa.string()), "text": table["text"]})
    size = -(-len(table) // WORKERS)
    halves = [numbered.slice(part * size, size) for part in range(WORKERS)]
    for part, half in enumerate(halves):
        pq.write_table(half, folder / f"{part}.parquet", compression="zstd")
    return halves


def run_stages(folder: Path) -> None:
    def read() -> Any:
        return ParquetReader(str(folder / "input"), glob_pattern="*.parquet")

    def run(stage: str, tasks: int, *steps: Any) -> None:
        LocalPipelineExecutor(
            list(steps), tasks, min(tasks, WORKERS), str(folder / "logs" / stage), start_method="fork"
        ).run()

    signatures, buckets, remove = (str(folder / name) for name in ("signatures", "buckets", "remove"))
    run("signatures", WORKERS, read(), MinhashDedupSignature(signatures, CONFIG))
    run("buckets", CONFIG.num_buckets, MinhashDedupBuckets(signatures, buckets, config=CONFIG))
    run("clusters", 1, MinhashDedupCluster(buckets, remove, CONFIG))
    run("filter", WORKERS, read(), MinhashDedupFilter(remove), JsonlWriter(str(folder / "output")))


def pairs_of(folder: Path, halves: list[pa.Table]) -> npt.NDArray[np.int64]:
    """Row numbers of the pairs that the second stage wrote, int64 [2, pairs]."""
    rows = [half.filter(pc.greater(pc.binary_length(half["text"]), 0))["id"] for half in halves]
    numbers = [column.cast(pa.int64()).to_numpy() for column in rows]
    start = np.cumsum([0, *map(len, numbers)])
    met = np.concatenate([np.fromfile(path, np.uint32).reshape(-1, 4) for path in (folder / "buckets").glob("*.dups")])
    ends = np.concatenate(numbers)[start[met[:, ::2]] + met[:, 1::2]]
    return np.unique(np.sort(ends.T, axis=0), axis=1)


def main() -> None:
    corpus, found, scratch = sys.argv[1:]
    folder = Path(scratch)
    table = pq.read_table(corpus, columns=["text"])
    for text in table["text"][:WARM_UP_ROWS].to_pylist():
        load_word_tokenizer("eng").word_tokenize(text)
    halves = write_halves(table, folder / "input")
    del table
    meter = Meter()
    run_stages(folder)
    cpu, wall = meter.lap()
    left, right = pairs_of(folder, halves)
    num_rows = sum(map(len, halves))
    graph = coo_array((np.ones(len(left), np.bool_), (left, right)), shape=(num_rows, num_rows))
    write_found(found, left, right, connected_components(graph, directed=False)[1])
    answer(cpu_s=cpu, wall_s=wall, peak_gb=peak_gb())


if __name__ == "__main__":
    main()
