"""Documents of a corpus by Hugging Face datasets streaming and by mosaicml-streaming, for bench_loader.

    python -m tests.benchmarks.peers.loaders convert CORPUS
    python -m tests.benchmarks.peers.loaders datasets|mosaicml shuffled|ordered WARM_UP CORPUS

`convert` copies a corpus to MDS in CORPUS/_mds, once. The others yield the tokens of every document as a torch tensor
and print the number of tokens and the CPU-seconds; a pass over WARM_UP comes first and is not counted.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pyarrow.parquet as pq
import torch

from tests.benchmarks.peers.meter import Meter, answer

SHUFFLE_BUFFER = 1000


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


def by_datasets(corpus: Path, shuffled: bool) -> Iterator[torch.Tensor]:
    """Row groups streamed in order, documents from a buffer."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        rows = load_dataset(
            "parquet",
            data_files=[str(file) for file in files_of(corpus)],
            columns=["input_ids"],
            split="train",
            streaming=True,
            cache_dir=cache,
        )
        if shuffled:
            rows = rows.shuffle(seed=0, buffer_size=SHUFFLE_BUFFER)
        for row in rows.with_format("numpy"):
            yield torch.from_numpy(row["input_ids"])


def by_mosaicml(corpus: Path, shuffled: bool) -> Iterator[torch.Tensor]:
    """Shards on local disk, documents in the order of py1e."""
    options = {"shuffle_algo": "py1e"} if shuffled else {}
    rows = streaming().StreamingDataset(local=str(corpus / "_mds"), shuffle=shuffled, batch_size=1, **options)
    for row in rows:
        yield torch.from_numpy(row["input_ids"].copy() if not row["input_ids"].flags.writeable else row["input_ids"])


def main() -> None:
    """Do what the arguments say."""
    torch.set_num_threads(1)
    if sys.argv[1] == "convert":
        convert(Path(sys.argv[2]))
        return
    name, order, *folders = sys.argv[1:]
    peers: dict[str, Callable[[Path, bool], Iterator[torch.Tensor]]] = {
        "datasets": by_datasets,
        "mosaicml": by_mosaicml,
    }
    warm_up, corpus = map(Path, folders)
    for _ in peers[name](warm_up, order == "shuffled"):
        pass
    meter = Meter()
    num_tokens = sum(len(ids) for ids in peers[name](corpus, order == "shuffled"))
    cpu, wall = meter.lap()
    answer(tokens=num_tokens, cpu_s=cpu, wall_s=wall)


if __name__ == "__main__":
    main()
