"""Documents of a corpus by Hugging Face datasets streaming and by mosaicml-streaming, for bench_loader.

    python -m tests.benchmarks.peers.loaders convert CORPUS
    python -m tests.benchmarks.peers.loaders datasets rows|lists|torch|numpy|packs CORPUS
    python -m tests.benchmarks.peers.loaders mosaicml shuffled|ordered CORPUS

`convert` copies a corpus to MDS in CORPUS/_mds, once. The others yield the tokens of every document, or pack, as a
torch tensor and print the number of tokens and the CPU-seconds of a second pass; the first is not counted.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pyarrow.parquet as pq
import torch

from tests.benchmarks.peers.meter import Meter, answer

SHUFFLE_BUFFER = 1000
PACK_TOKENS = 8192
KINDS = {"analysis": 0, "commentary": 1, "final": 2, "text": 3}


def files_of(corpus: Path) -> list[Path]:
    """The parts, in the order of their paths."""
    return sorted(corpus.rglob("part-*.parquet"))


def streaming() -> ModuleType:
    """mosaicml-streaming without its data sets of images and text, which ask for torchvision and transformers."""
    for name in ("transformers", "transformers.feature_extraction_utils", "transformers.tokenization_utils_base"):
        sys.modules[name] = MagicMock()
    for name in ("streaming.multimodal", "streaming.text", "streaming.vision"):
        sys.modules[name] = ModuleType(name)
    import streaming as found

    return found


def convert(corpus: Path) -> None:
    """Write the documents as MDS beside the corpus, where they are not yet."""
    target = corpus / "_mds"
    if (target / "index.json").exists():
        return
    shutil.rmtree(target, ignore_errors=True)
    with streaming().MDSWriter(out=str(target), columns={"input_ids": "ndarray:int32"}, compression=None) as writer:
        for file in files_of(corpus):
            for batch in pq.ParquetFile(file).iter_batches(columns=["input_ids"]):
                for ids in batch.column(0):
                    writer.write({"input_ids": ids.values.to_numpy()})


def by_datasets(corpus: Path, form: str) -> Iterator[torch.Tensor]:
    """Row groups streamed in order, documents from a buffer."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        files = [str(file) for file in files_of(corpus)]
        columns = {"rows": None, "packs": ["input_ids", "spans"]}.get(form, ["input_ids"])
        rows = load_dataset(
            "parquet", data_files=files, columns=columns, split="train", streaming=True, cache_dir=cache
        ).shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)
        if form in ("rows", "lists"):
            yield from (torch.tensor(row["input_ids"], dtype=torch.int32) for row in rows)
        elif form == "torch":
            yield from (row["input_ids"] for row in rows.with_format("torch"))
        elif form == "numpy":
            yield from (torch.from_numpy(row["input_ids"]) for row in rows.with_format("numpy"))
        else:
            yield from packs(rows.with_format("numpy"))


def packs(rows: Iterable[dict[str, Any]]) -> Iterator[torch.Tensor]:
    """The tokens of each pack: documents one behind the other, until the next does not fit."""
    waiting: list[dict[str, Any]] = []
    used = 0
    for row in rows:
        length = len(row["input_ids"])
        if used + length > PACK_TOKENS:
            yield one_pack(waiting)[0][:used]
            waiting, used = [], 0
        waiting.append(row)
        used += length
    yield one_pack(waiting)[0][:used]


def one_pack(rows: list[dict[str, Any]]) -> list[torch.Tensor]:
    """What our collate makes: ids, position ids, targets, span kinds of the targets, document numbers."""
    ids, positions, targets, kinds = (np.zeros(PACK_TOKENS, np.int64) for _ in range(4))
    document = np.full(PACK_TOKENS, -1, np.int32)
    kinds[:] = -1
    first = 0
    for number, row in enumerate(rows):
        last = first + len(row["input_ids"])
        ids[first:last] = targets[first:last] = row["input_ids"]
        positions[first:last] = np.arange(last - first)
        document[first:last] = number
        for span in row["spans"]:
            start, end = first + max(int(span["start"]), 1), first + int(span["end"])
            targets[start - 1 : end - 1] = ids[start:end]
            kinds[start - 1 : end - 1] = KINDS[span["kind"]]
        first = last
    return [torch.from_numpy(array) for array in (ids, positions, targets, kinds, document)]


def by_mosaicml(corpus: Path, order: str) -> Iterator[torch.Tensor]:
    """Shards on local disk, documents in the order of py1e."""
    rows = streaming().StreamingDataset(
        local=str(corpus / "_mds"), shuffle=order == "shuffled", shuffle_algo="py1e", batch_size=1
    )
    # A tensor may not share memory that cannot be written, so its array is copied first.
    yield from (torch.from_numpy(row["input_ids"].copy()) for row in rows)


def main() -> None:
    """Do what the arguments say."""
    torch.set_num_threads(1)
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]))
        return
    name, how, folder = sys.argv[1:]
    peers: dict[str, Callable[[Path, str], Iterator[torch.Tensor]]] = {
        "datasets": by_datasets,
        "mosaicml": by_mosaicml,
    }
    corpus = Path(folder)
    for _ in peers[name](corpus, how):
        pass
    meter = Meter()
    num_tokens = sum(len(ids) for ids in peers[name](corpus, how))
    cpu, wall = meter.lap()
    answer(tokens=num_tokens, cpu_s=cpu, wall_s=wall)


if __name__ == "__main__":
    main()
