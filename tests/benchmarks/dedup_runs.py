"""Our side of bench_dedup, each run in a process of its own: signatures, near dedup in memory, near dedup in stages.

    python -m tests.benchmarks.dedup_runs sign hashes|sets CORPUS SLICES
    python -m tests.benchmarks.dedup_runs near memory CORPUS FOUND
    python -m tests.benchmarks.dedup_runs near beam|local CORPUS FOUND FOLDER

`sign hashes` stops at the signatures; `sign sets` also makes the sorted shingle sets that exact verification needs.
`near beam` is the recipe dedup_text on Beam's in-process runner, `near local` on the local engine with one process,
every dataset committed.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from etl import conf
from etl.dedup.in_memory import near_duplicates
from etl.dedup.minhash import signatures
from etl.dedup.near import NearDedup
from etl.engine import Engine
from etl.run.recipe import Recipe
from etl.run.run import run_recipe, run_stage
from etl.text import ngram_hashes, shingles
from tests.benchmarks.peers.meter import WARM_UP_ROWS, Meter, answer, peak_gb, take_turns, write_found

THRESHOLD = 0.8


def from_hashes(texts: pa.Array) -> npt.NDArray[np.uint32]:
    return signatures(*ngram_hashes(texts, 5))


def from_sets(texts: pa.Array) -> npt.NDArray[np.uint32]:
    return signatures(*shingles(texts, 5))


def in_memory(corpus: str, found: str) -> None:
    near = NearDedup(threshold=THRESHOLD, unit="word")
    near_duplicates(first_rows(corpus)["text"], near)
    meter = Meter()
    result = near_duplicates(pq.read_table(corpus, columns=["id", "text"])["text"], near)
    cpu, wall = meter.lap()
    write_found(found, result.left, result.right, result.label)
    answer(cpu_s=cpu, wall_s=wall, peak_gb=peak_gb())


def engine_of(kind: str) -> Engine:
    if kind == "beam":
        from etl.engines.beam import BeamEngine

        return BeamEngine(report=quiet)
    from etl.engines.local import LocalEngine

    return LocalEngine()


def in_stages(engine: Engine, corpus: str, found: str, folder: Path) -> None:
    def recipe(name: str, path: str) -> Recipe:
        settings = {
            "output": folder / name, "sources.text.path": path, "sources.text.id_column": "id",
            "sources.text.text_column": "text", "dedup.near.threshold": THRESHOLD, "dedup.near.unit": "word",
        }  # fmt: skip
        return conf.load(Recipe, "dedup_text", "recipes", [f"{key}={value}" for key, value in settings.items()])

    small = folder / "first.parquet"
    folder.mkdir(parents=True)
    pq.write_table(twice(first_rows(corpus)), small)
    run_recipe(recipe("warm_up", str(small)), engine, quiet)
    whole = recipe("whole", corpus)
    meter = Meter()
    run_stage(whole, engine, quiet, "ingest")
    ingest_cpu, ingest_wall = meter.lap()
    run_recipe(whole, engine, quiet)
    cpu, wall = meter.lap()
    figures = {"ingest_cpu_s": ingest_cpu, "ingest_wall_s": ingest_wall, "cpu_s": cpu, "wall_s": wall}
    answered = figures | {"peak_gb": peak_gb()}
    write_found(found, *found_by(folder / "whole", pq.read_table(corpus, columns=["id"])["id"]))
    answer(**answered)


def found_by(output: Path, ids: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], ...]:
    """Row numbers of the pairs of a run, two arrays, and the cluster of each row."""
    names = ids.cast(pa.string()).combine_chunks()
    pairs = pq.read_table(output / "pairs", columns=["a", "b"])
    ends = np.stack([pc.index_in(pairs[side], value_set=names).to_numpy() for side in ("a", "b")]).astype(np.int64)
    clusters = pq.read_table(output / "clusters", columns=["source_example_id", "cluster_id"])
    codes = pc.dictionary_encode(clusters["cluster_id"]).combine_chunks().indices.to_numpy()
    label = np.empty(len(names), np.int64)
    label[pc.index_in(clusters["source_example_id"], value_set=names).to_numpy()] = codes
    return ends.min(axis=0), ends.max(axis=0), label


def first_rows(corpus: str) -> pa.Table:
    return pq.ParquetFile(corpus).read_row_group(0, columns=["id", "text"]).slice(0, WARM_UP_ROWS)


def twice(rows: pa.Table) -> pa.Table:
    """The documents and a near duplicate of each, so that a warm-up loads what compares and ranks pairs, too."""
    ids = rows["id"].cast(pa.string())
    copies = [pc.binary_join_element_wise(column, "again", " ") for column in (ids, rows["text"])]
    return pa.concat_tables([pa.table([ids, rows["text"]], ["id", "text"]), pa.table(copies, ["id", "text"])])


def quiet(line: str) -> None:
    """Progress is not part of what is measured."""


def main() -> None:
    mode, kind, corpus, *rest = sys.argv[1:]
    if mode == "sign":
        take_turns(corpus, int(rest[0]), lambda texts: texts, from_hashes if kind == "hashes" else from_sets)
    elif kind == "memory":
        in_memory(corpus, rest[0])
    else:
        in_stages(engine_of(kind), corpus, rest[0], Path(rest[1]))


if __name__ == "__main__":
    main()
