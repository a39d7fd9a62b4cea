"""datatrove's chain for bench_chain: language, near dedup, tokens, with two workers and no network.

    python -m tests.benchmarks.peers.datatrove_chain INPUT MODEL TOKENIZER FOLDER

Reads the Parquet files of INPUT (columns id and text), one at least for each worker, and has four steps in FOLDER:
LanguageFilter (en above 0.65, lid.176.ftz) into Parquet; signatures, 14 x 8 of xxhash64; buckets and clusters;
MinhashDedupFilter and DocumentTokenizer with the tokenizer.json TOKENIZER. The last line on stdout says how many
documents language and dedup kept, and the tokens.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import LanguageFilter
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import ParquetWriter
from datatrove.utils.lid import FT176LID

from tests.benchmarks.peers.datatrove_stages import CONFIG, WORKERS
from tests.benchmarks.peers.meter import answer


def run(folder: Path, model: Path, tokenizer: Path, scratch: Path) -> None:
    """The chain; what it leaves is in `scratch`."""
    FT176LID.MODEL_URL = str(model)

    def step(name: str, tasks: int, *steps: Any) -> None:
        executor = LocalPipelineExecutor(
            list(steps), tasks, min(tasks, WORKERS), str(scratch / "logs" / name), start_method="fork"
        )
        executor.run()

    def read(from_folder: Path) -> ParquetReader:
        return ParquetReader(str(from_folder), glob_pattern="*.parquet")

    english, signatures, buckets, remove = (scratch / name for name in ("english", "signatures", "buckets", "remove"))
    step("language", WORKERS, read(folder), LanguageFilter("en", 0.65), ParquetWriter(str(english)))
    step("signatures", WORKERS, read(english), MinhashDedupSignature(str(signatures), CONFIG))
    step(
        "buckets",
        CONFIG.num_buckets,
        MinhashDedupBuckets(str(signatures), str(buckets), config=CONFIG),
    )
    step("clusters", 1, MinhashDedupCluster(str(buckets), str(remove), CONFIG))
    tokens = DocumentTokenizer(str(scratch / "tokens"), str(tokenizer), seed=0)
    step("tokens", WORKERS, read(english), MinhashDedupFilter(str(remove)), tokens)


def counts(scratch: Path) -> dict[str, int]:
    """Documents that language and dedup kept, and tokens, as its files say."""
    language = sum(pq.read_metadata(path).num_rows for path in (scratch / "english").glob("*.parquet"))
    stats = json.loads((scratch / "logs" / "tokens" / "stats.json").read_text())
    kept = {step["name"]: step["stats"] for step in stats}
    deduped = next(values["forwarded"] for name, values in kept.items() if "minhash" in name.lower())
    tokens = next(values["tokens"] for name, values in kept.items() if "Writer" in name)
    return {"language": language, "dedup": _total(deduped), "tokens": _total(tokens)}


def _total(value: Any) -> int:
    return int(value["total"] if isinstance(value, dict) else value)


def main() -> None:
    """Do what the arguments say."""
    paths = list(map(Path, sys.argv[1:]))
    run(*paths)
    answer(**counts(paths[-1]))


if __name__ == "__main__":
    main()
