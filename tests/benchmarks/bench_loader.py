"""Race the training loader against Hugging Face datasets streaming, grain and mosaicml-streaming: tokens a second.

    make bench-loader                       # makes build/peers, then runs this
    python -m tests.benchmarks.bench_loader --tokens 16 --rounds 1

The corpus has real text: one long stream of o200k tokens, of which each document is a stretch from somewhere, with an
analysis span and an answer. Contestants run in sequence, each in a process of its own, and in another order in each
round. The CPU-seconds, user and system, of all its threads are counted, and the seconds by the clock; imports, and a
first run over the same corpus, are not. Everybody gets torch on one thread and a page cache that already has the files.
The row "Parquet decode alone" is the floor for any reader of that corpus from Parquet.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from etl.harmony.vocabulary import load_encoding
from etl.schema import MESSAGE, SPAN
from etl.storage.build import Build, Chunk, Job
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from tests.training.lengths import best_fit_decreasing, bucket, log_normal, num_packs, seed_mix

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ROOT.parent / "shared" / "data" / "bench_corpus" / "corpus.parquet"
TEXT_BYTES = 24_000_000
CHARACTERS_PER_TOKEN = 4
"""About as many as English has; messages only need the size that they would have."""
ROW_GROUP_TOKENS = 1 << 20
PART_ROW_GROUPS = 16
PACK_TOKENS = 8192
SEGMENTS = 4
"""Of the stream, so that the spool is read too: each segment takes documents from all row groups."""

DECODE = "Parquet decode alone"
AS_IT_COMES = "datasets, shuffle(1000), as it comes"

NOTES = f"""\
- Packs: the whole of training.data, as the one rank of a run has it: index, ranking, planning, look-ahead packing,
  tokens and spans from Parquet, packs of {PACK_TOKENS:,} with targets, position ids and spans, torch tensors. Counted
  are the tokens of documents, not the room that is left over. The stream has {SEGMENTS} segments, each of which takes
  documents from all row groups. First epoch: from an empty spool, which it fills, to the end of the corpus; this is
  the figure that counts. Second epoch: all from the spool. No spool: every segment reads all row groups again.
- Documents: CorpusReader alone, from an empty spool: index, then {SEGMENTS} times a random part of the documents, the
  tokens of each as a torch tensor; spans are read too.
- Parquet decode alone: the columns that ours reads, each row group once by the same library on two threads, to Arrow.
- datasets, as it comes: load_dataset("parquet", streaming=True) and shuffle(1000), so every column of a row, messages
  and all, becomes Python objects; torch.tensor(row["input_ids"]).
- datasets, others: the same with columns=["input_ids"] and the format that is named:
  tensors by with_format("torch"), arrays by with_format("numpy") and torch.from_numpy, lists by torch.tensor. Yields
  documents; no spans, no packing. Packs: columns input_ids and spans in the numpy format, and then in Python what ours
  does: packs of {PACK_TOKENS:,} with targets, position ids and spans, filled until the next document does not fit.
- grain: a copy of the tokens in ArrayRecord (one record a group; the conversion is not counted), MapDataset.shuffle,
  to_iter_dataset with one reading thread and 64 elements ahead, which is the fastest that we found; np.frombuffer,
  torch.from_numpy. Yields documents; no spans. Packs: the same and FirstFitPackIterDataset, {PACK_TOKENS:,} tokens and
  64 bins; no spans, no targets. Parquet, as it comes: the corpus by ParquetIterDataset, which reads every column, and
  WindowShuffleIterDataset(1000); only the tokens become tensors.
- mosaicml-streaming: a copy of the corpus in MDS (ndarray:int32, uncompressed; the conversion is not counted), local,
  batch_size=1, shuffled by py1e or in order, torch.from_numpy. Yields documents; no spans, no packing.
"""


@dataclass(frozen=True)
class Contestant:
    """A command that is measured; the folder of the corpus is added to it.

    Attributes:
        name: as the table calls it.
        command: of the process.
    """

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    """What a process said: tokens of documents, CPU-seconds, seconds, and the share of packs that is tokens."""

    tokens: int
    cpu_s: float
    wall_s: float
    full: float | None = None

    @property
    def rate(self) -> float:
        """Million tokens per CPU-second."""
        return self.tokens / self.cpu_s / 1e6


def say(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


# --- the corpus ----------------------------------------------------------------------------------------------------


def texts() -> Iterator[str]:
    """Some megabytes of text: the benchmark corpus, or else this project's own files."""
    left = TEXT_BYTES
    if TEXTS.exists():
        for batch in pq.ParquetFile(TEXTS).iter_batches(columns=["text"]):
            for text in batch.column(0).to_pylist():
                yield text
                left -= len(text)
                if left < 0:
                    return
    else:
        for path in sorted(ROOT.glob("[cdejt]*/**/*")):
            if path.suffix in (".py", ".md", ".yaml", ".jsonl"):
                yield path.read_text("utf-8")


def token_stream(folder: Path) -> npt.NDArray[np.int32]:
    """All texts as tokens, in sequence; made once."""
    path = folder / "tokens.npy"
    if not path.exists():
        encoding = load_encoding()
        encoded = [encoding.encode(text, disallowed_special=()) for text in texts()]
        np.save(path, np.concatenate([np.array(tokens, np.int32) for tokens in encoded]))
    found: npt.NDArray[np.int32] = np.load(path)
    return found


def conversations(text: str, ends: npt.NDArray[np.int64]) -> pa.ListArray:
    """The messages of documents; `ends` [documents, 3] are the tokens where prompt, reasoning and answer end."""
    authors = (("user", None), ("assistant", "analysis"), ("assistant", "final"))
    rows = []
    for own in ends.tolist():
        borders = [0, *(end * CHARACTERS_PER_TOKEN for end in own)]
        contents = [text[start:end] for start, end in pairwise(borders)]
        rows.append(
            [
                {"role": role, "channel": channel, "content": content}
                for (role, channel), content in zip(authors, contents, strict=True)
            ]
        )
    return pa.array(rows, pa.list_(MESSAGE))


def row_group(stream: npt.NDArray[np.int32], text: str, generator: np.random.Generator) -> pa.RecordBatch:
    """About ROW_GROUP_TOKENS tokens in documents of log-normal length, each a stretch of the stream."""
    lengths = np.exp(generator.normal(6.9, 0.8, ROW_GROUP_TOKENS // 1000)).clip(64, PACK_TOKENS).astype(np.int64)
    starts = generator.integers(0, len(stream) - PACK_TOKENS, len(lengths))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    at = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - starts, lengths)
    prompt, thought = lengths // 4, lengths // 2
    borders = np.stack([np.stack([prompt, thought], 1), np.stack([thought, lengths], 1)], 1).reshape(-1, 2)
    kinds = pa.array(["analysis", "final"] * len(lengths))
    start, end = (pa.array(borders[:, side], pa.int32()) for side in range(2))
    columns = (kinds, pa.array(np.zeros(len(kinds), np.int32)), start, start, end)
    spans = pa.StructArray.from_arrays(columns, fields=list(SPAN))
    ids = [str(uuid.UUID(bytes=generator.bytes(16))) for _ in range(len(lengths))]
    return pa.RecordBatch.from_pydict(
        {
            "id": pa.array(ids),
            "source_dataset": pa.array(["bench"] * len(lengths)),
            "license": pa.array(["none"] * len(lengths)),
            "messages": conversations(text, np.stack([prompt, thought, lengths], 1)),
            "input_ids": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(stream[at])),
            "n_tokens": pa.array(lengths, pa.int32()),
            "n_analysis": pa.array(thought - prompt, pa.int32()),
            "n_commentary": pa.array(np.zeros(len(lengths), np.int32)),
            "n_final": pa.array(lengths - thought, pa.int32()),
            "n_text": pa.array(np.zeros(len(lengths), np.int32)),
            "spans": pa.ListArray.from_arrays(pa.array(np.arange(len(lengths) + 1, dtype=np.int32) * 2), spans),
            "sampling_weight": pa.array(np.ones(len(lengths))),
        }
    )


def write_corpus(folder: Path, name: str, num_tokens: int) -> Dataset:
    """A committed corpus of about this many tokens."""
    stream = token_stream(folder)
    cells = [f"split=train/skill_bucket=B{number}/ctx_bucket=C1" for number in (1, 2, 3)]
    count = max(1, num_tokens // (PART_ROW_GROUPS * ROW_GROUP_TOKENS))
    text = "\n".join(islice(texts(), 200))
    schema = row_group(stream, text, np.random.default_rng(0)).schema
    build = Build(Job(Location.of(folder / name), "layout", "corpus", schema, {"tokens": num_tokens}))
    plan = build.plan(list(range(count)))
    groups = max(1, round(num_tokens / count / 1.35 / ROW_GROUP_TOKENS))

    def chunks(split: int) -> Iterator[Chunk]:
        generator = np.random.default_rng(split)
        for _ in range(groups):
            batch = row_group(stream, text, generator)
            yield Chunk(batch, batch.num_rows, partition=cells[split % len(cells)])

    for split in build.missing(plan):
        build.writer(plan).write(split, chunks(split))
    return build.commit(plan)


# --- ours ----------------------------------------------------------------------------------------------------------


def drain(corpus: str, epoch: int, cache_gib: float) -> Run:
    """All packs of an epoch of a corpus as tensors; what came before it is not counted."""
    import torch

    from training.data.reader import CorpusReader, ReadConfig
    from training.data.stream.cursor import CursorPlan
    from training.data.stream.decisions import DecisionLog
    from training.data.stream.lanes import RankStream
    from training.data.stream.plan import StreamConfig, initial_value
    from training.data.stream.rank_lanes import RankLanes

    torch.set_num_threads(1)
    num_tokens = Dataset.open(corpus).manifest.num_tokens
    device = torch.device("cpu")
    config = StreamConfig(
        corpus=corpus,
        pack_tokens=PACK_TOKENS,
        global_batch_packs=32,
        lanes=16,
        segment_tokens=num_tokens // SEGMENTS,
        epochs=epoch + 1,
    )
    cpu, wall = time.process_time(), time.monotonic()
    reader = CorpusReader(corpus, "train", ReadConfig(cache_gib=cache_gib))
    log = DecisionLog.preview(None, initial_value(config, 0, reader.parts))
    own = RankLanes.read(reader, config.lanes, 0, (0, 1), {})
    stream = RankStream(CursorPlan(own, config, 0, log), [reader])
    given = packs = 0
    lanes_left = 1
    while lanes_left:
        if epoch and given < epoch * num_tokens:
            cpu, wall, start, first_pack = time.process_time(), time.monotonic(), given, packs
        elif not epoch:
            start = first_pack = 0
        step = stream.next_step()
        for pack in step.packs:
            tensors = pack.tensors(device)
            assert tensors.input_ids.shape[1] == PACK_TOKENS
            given += int(pack.cu_seqlens[len(pack.id_hash)])
            packs += bool(len(pack.id_hash))
        lanes_left = step.lanes_left
    stream.close()
    full = (given - start) / ((packs - first_pack) * PACK_TOKENS)
    return Run(given - start, time.process_time() - cpu, time.monotonic() - wall, full)


def read_documents(corpus: str) -> Run:
    """The tokens of every document as a tensor, in random order, in several sweeps over the corpus."""
    import torch

    from training.data.reader import CorpusReader

    torch.set_num_threads(1)
    cpu, wall = time.process_time(), time.monotonic()
    reader = CorpusReader(corpus, "train")
    index = reader.read_index(reader.whole, 0)
    given = 0
    for chosen in np.array_split(np.random.default_rng(0).permutation(len(index)), SEGMENTS):
        documents = reader.gather(index, chosen)
        for first, last in documents.tokens.tolist():
            given += len(torch.from_numpy(documents.input_ids[first:last]))
    reader.close()
    return Run(given, time.process_time() - cpu, time.monotonic() - wall)


def decode_alone(corpus: str) -> Run:
    """Every row group of the columns that a stream reads, to Arrow, on as many threads as the reader has."""
    from training.data.reader import CorpusReader, ReadConfig

    reader = CorpusReader(corpus, "train")
    columns = sorted({*reader.index_columns, *reader.token_columns})
    dataset, parts = reader.dataset, reader.parts
    reader.close()
    paths = [dataset.part_location(part).path for part in parts for _ in part.row_groups]
    groups = [group for part in parts for group in range(len(part.row_groups))]

    def read(path: str, group: int) -> int:
        table = pq.ParquetFile(path).read_row_group(group, columns, use_threads=False)
        return len(table["input_ids"].chunk(0).values)

    cpu, wall = time.process_time(), time.monotonic()
    with ThreadPoolExecutor(ReadConfig().workers) as threads:
        num_tokens = sum(threads.map(read, paths, groups))
    return Run(num_tokens, time.process_time() - cpu, time.monotonic() - wall)


def run_ours(kind: str, corpus: str) -> None:
    """One process of ours: a first run that loads kernels and modules, then the one that counts."""
    calls: dict[str, Callable[[str], Run]] = {
        "first": lambda folder: drain(folder, 0, 16.0),
        "second": lambda folder: drain(folder, 1, 16.0),
        "unspooled": lambda folder: drain(folder, 0, 0.0),
        "documents": read_documents,
        "decode": decode_alone,
    }
    calls[kind](corpus)
    found = calls[kind](corpus)
    say(json.dumps({"tokens": found.tokens, "cpu_s": found.cpu_s, "wall_s": found.wall_s, "full": found.full}))


# --- the race ------------------------------------------------------------------------------------------------------


def contestants(peers: Path | None) -> list[Contestant]:
    """Ours from an empty spool come first: packs, then documents."""
    ours = (sys.executable, "-m", "tests.benchmarks.bench_loader", "--ours")
    found = [
        Contestant("Stillhouse, packs: first epoch", (*ours, "first")),
        Contestant("Stillhouse, documents", (*ours, "documents")),
        Contestant("Stillhouse, packs: second epoch", (*ours, "second")),
        Contestant("Stillhouse, packs: no spool", (*ours, "unspooled")),
        Contestant(DECODE, (*ours, "decode")),
    ]
    if peers:
        theirs = (str(peers), "-m", "tests.benchmarks.peers.loaders")
        found += [
            Contestant(AS_IT_COMES, (*theirs, "datasets", "rows")),
            Contestant("datasets, shuffle(1000), lists", (*theirs, "datasets", "lists")),
            Contestant("datasets, shuffle(1000), torch", (*theirs, "datasets", "torch")),
            Contestant("datasets, shuffle(1000), numpy", (*theirs, "datasets", "numpy")),
            Contestant("datasets, shuffle(1000), packs", (*theirs, "datasets", "packs")),
            Contestant("grain, ArrayRecord", (*theirs, "grain", "documents")),
            Contestant("grain, ArrayRecord, packs", (*theirs, "grain", "packs")),
            Contestant("grain, Parquet, as it comes", (*theirs, "grain", "parquet")),
            Contestant("mosaicml-streaming, shuffled", (*theirs, "mosaicml", "shuffled")),
            Contestant("mosaicml-streaming, in order", (*theirs, "mosaicml", "ordered")),
        ]
    return found


def run(contestant: Contestant, corpus: Path, log: Path) -> Run:
    """Measure one process."""
    command = [*contestant.command, str(corpus)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w") as messages:
        found = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=messages, text=True, check=False
        )
    if found.returncode:
        sys.exit(f"{contestant.name} failed:\n{log.read_text()[-3000:]}")
    return Run(**json.loads(found.stdout.splitlines()[-1]))


def race(entrants: Sequence[Contestant], corpus: Path, rounds: int, log: Path) -> None:
    """Run everybody in turn, and print the table."""
    runs: dict[str, list[Run]] = {entrant.name: [] for entrant in entrants}
    for number in range(rounds):
        start = number % len(entrants)
        for entrant in (*entrants[start:], *entrants[:start]):
            found = run(entrant, corpus, log)
            runs[entrant.name].append(found)
            sys.stderr.write(f"round {number + 1} of {rounds}: {entrant.name}, {found.rate:.1f} M tokens/CPU s\n")
    packs, documents = (runs[entrant.name] for entrant in entrants[:2])
    say("| | M tokens per CPU-second | all rounds | seconds | x packs | by the clock | x documents | packs full |")
    say("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, own in runs.items():
        rates = sorted(found.rate for found in own)
        full = "" if own[0].full is None else f"{own[0].full:.2%}"
        say(
            f"| {name} | {statistics.median(rates):.1f} | {rates[0]:.1f} to {rates[-1]:.1f} | "
            f"{statistics.median(found.wall_s for found in own):.2f} | {times(packs, own):.2f} | "
            f"{times_by_clock(packs, own):.2f} | {times(documents, own):.2f} | {full} |"
        )
    say("\nx packs, x documents: how many times faster our packs (first row) and documents (second row) are.")
    shares = [f"{name.removeprefix('Stillhouse, ')} {1 / times(runs[DECODE], own):.0%}" for name, own in ours(runs)]
    say(f"Of the rate of Parquet decode alone ours reach, per CPU-second: {'; '.join(shares)}.")


def ours(runs: dict[str, list[Run]]) -> list[tuple[str, list[Run]]]:
    """Our contestants and their rounds."""
    return [(name, own) for name, own in runs.items() if name.startswith("Stillhouse")]


def times(base: Sequence[Run], own: Sequence[Run]) -> float:
    """How many times as fast the base is, the median of the rounds."""
    return statistics.median(first.rate / found.rate for first, found in zip(base, own, strict=True))


def times_by_clock(base: Sequence[Run], own: Sequence[Run]) -> float:
    """The same by the clock."""
    rates = [[found.tokens / found.wall_s for found in runs] for runs in (base, own)]
    return statistics.median(first / other for first, other in zip(*rates, strict=True))


def packing_table() -> None:
    """How full packs are, beside whole-set best-fit-decreasing."""
    say("| lengths | pack | look-ahead | best-fit decreasing | CPU us a pack |")
    say("|---|---:|---:|---:|---:|")
    num_packs(log_normal(np.random.default_rng(0)), 8192)  # loads the kernels
    cases = [(f"C{number + 1}, even", 4096 << (number + times)) for number in range(4) for times in range(3)]
    for name, capacity in [*cases, ("seed mix", 32768), ("seed mix", 65536), ("log-normal", 8192)]:
        found = []
        for seed in range(3):
            generator = np.random.default_rng(seed)
            if name[0] == "C":
                lengths = bucket(generator, int(name[1]) - 1)
            else:
                lengths = seed_mix(generator) if name == "seed mix" else log_normal(generator)
            count, micros = num_packs(lengths, capacity)
            found.append((lengths.sum() / (count * capacity), best_fit_decreasing(lengths, capacity), micros))
        ours, theirs, micros = np.mean(found, axis=0)
        say(f"| {name} | {capacity:,} | {ours:.2%} | {theirs:.2%} | {micros:.0f} |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32, help="millions in the corpus")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers" / "bin" / "python")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench" / "loader")
    parser.add_argument(
        "--ours", choices=["first", "second", "unspooled", "documents", "decode"], help=argparse.SUPPRESS
    )
    parser.add_argument("corpus", nargs="?", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ours:
        run_ours(args.ours, args.corpus)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    corpus = write_corpus(args.folder, f"corpus-{args.tokens}", args.tokens * 1_000_000)
    peers = args.peers.absolute() if args.peers.exists() else None
    if peers is None:
        say(f"There is no {args.peers}: only ours is measured. `make bench-loader` makes it.")
    else:
        command = [str(peers), "-m", "tests.benchmarks.peers.loaders", "convert", str(corpus.folder.path)]
        subprocess.run(command, cwd=ROOT, check=True)
    num_bytes = sum(part.bytes for part in corpus.manifest.parts)
    num_tokens = corpus.manifest.num_tokens
    size = f"{num_tokens / 1e6:.1f} M tokens in {corpus.manifest.rows_out:,} documents"
    say(f"{size}, {num_bytes / num_tokens:.2f} bytes a token; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    race(contestants(peers), Path(corpus.folder.path), args.rounds, args.folder / "last.log")
    say("\n" + NOTES)
    say("Packing: tokens in the room of all packs, the last ones included; 8,000 documents, means of 3 seeds.\n")
    packing_table()


if __name__ == "__main__":
    main()
