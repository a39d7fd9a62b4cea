"""Documents of a corpus by Hugging Face datasets streaming, grain and mosaicml-streaming, for bench_loader.

    python -m tests.benchmarks.peers.loaders convert CORPUS
    python -m tests.benchmarks.peers.loaders datasets rows|lists|torch|numpy|packs CORPUS
    python -m tests.benchmarks.peers.loaders grain parquet|documents|packs CORPUS
    python -m tests.benchmarks.peers.loaders mosaicml shuffled|ordered CORPUS

`convert` copies the tokens of a corpus to MDS in CORPUS/_mds and to ArrayRecord in CORPUS/_array_record, once. The
others yield the tokens of every document, or pack, as a torch tensor and print the number of tokens, the CPU-seconds
and the seconds of a second pass; the first is not counted.
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
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from tests.benchmarks.peers.meter import Meter, answer

SHUFFLE_BUFFER = 1000
PACK_TOKENS = 8192
READING_THREADS, PREFETCHED = 1, 64
"""Of grain: with its defaults, 16 and 500, threads wait for one another and all takes three times as long."""
PACKING_BINS = 64
"""Of grain's first-fit packer, which gives them out when a document fits none; more make fuller packs."""
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


def documents_of(file: Path) -> Iterator[npt.NDArray[np.int32]]:
    """The tokens of each document of a part."""
    for batch in pq.ParquetFile(file).iter_batches(columns=["input_ids"]):
        for ids in batch.column(0):
            yield ids.values.to_numpy()


def convert(corpus: Path) -> None:
    """Write the documents as MDS and as ArrayRecord beside the corpus, where they are not yet."""
    for name, write in (("_mds", write_mds), ("_array_record", write_array_records)):
        if not (corpus / name).exists():
            partial = corpus / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            write(corpus, partial)
            partial.rename(corpus / name)


def write_mds(corpus: Path, target: Path) -> None:
    """Shards of the library's own size, not compressed."""
    with streaming().MDSWriter(out=str(target), columns={"input_ids": "ndarray:int32"}, compression=None) as writer:
        for file in files_of(corpus):
            for ids in documents_of(file):
                writer.write({"input_ids": ids})


def write_array_records(corpus: Path, target: Path) -> None:
    """A file for each part; records of int32, one a group, as grain asks for where they are read in random order."""
    from array_record.python.array_record_module import ArrayRecordWriter

    target.mkdir()
    for number, file in enumerate(files_of(corpus)):
        writer = ArrayRecordWriter(str(target / f"{number:05d}.array_record"), "group_size:1")
        for ids in documents_of(file):
            writer.write(ids.tobytes())
        writer.close()


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
    """The tokens of each pack: documents in sequence, until the next does not fit."""
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


def by_grain(corpus: Path, form: str) -> Iterator[torch.Tensor]:
    """`parquet`: rows of the corpus from a window; else ArrayRecord in random order."""
    import grain

    if form == "parquet":
        rows = grain.experimental.ParquetIterDataset([str(file) for file in files_of(corpus)])
        shuffled = grain.experimental.WindowShuffleIterDataset(rows, window_size=SHUFFLE_BUFFER, seed=0)
        # A tensor may not share memory that cannot be written, so its array is copied first, here and below.
        yield from (torch.from_numpy(row["input_ids"].copy()) for row in shuffled)
        return
    files = sorted(map(str, (corpus / "_array_record").iterdir()))
    records = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(files)).shuffle(seed=0)
    reading = grain.ReadOptions(num_threads=READING_THREADS, prefetch_buffer_size=PREFETCHED)
    documents = records.map(lambda record: np.frombuffer(record, np.int32)).to_iter_dataset(reading)
    if form == "documents":
        yield from (torch.from_numpy(ids.copy()) for ids in documents)
        return
    packed = grain.experimental.FirstFitPackIterDataset(
        documents.map(lambda ids: {"input_ids": ids}),
        length_struct={"input_ids": PACK_TOKENS},
        num_packing_bins=PACKING_BINS,
    )
    for pack in packed:
        ids, segments, _ = (torch.from_numpy(pack[f"input_ids{name}"]) for name in ("", "_segment_ids", "_positions"))
        yield ids[segments > 0]


def by_mosaicml(corpus: Path, order: str) -> Iterator[torch.Tensor]:
    """Shards on local disk, documents in the order of py1e."""
    rows = streaming().StreamingDataset(
        local=str(corpus / "_mds"), shuffle=order == "shuffled", shuffle_algo="py1e", batch_size=1
    )
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
        "grain": by_grain,
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
