"""The grid "every stage, every engine, same rows": its inputs, its recipes and the digests that must be equal.

As a program, it runs the recipes in a Spark session of its own and prints one line of JSON for each:

    python -m tests.engines.grid FOLDER --master 'local-cluster[2,1,1024]'
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

from etl import conf
from etl.engine import Engine
from etl.run.recipe import Recipe
from etl.stages.context import Cutting
from etl.storage.costs import read_dataset_costs, read_run_costs
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.toys import FILTER, files, make_recipe, mixed_rows, row, run, stage, write_jsonl, write_parquet
from tests.frozen import runs

NUM_SPLITS = (1, 2, 7)
STAGES = ("filter", "dedup", "kenlm", "score", "tokenize", "semantic", "split", "layout")
DATASETS = (
    "ingest", "quarantine", "filter", "english_share", "exact_hits", "exact", "candidates", "edges", "sets", "pairs",
    "components", "near_hits", "near", "clusters", "kenlm_sample", "kenlm", "score", "strange", "tokenize",
    "semantic_terms", "embeddings", "semantic_centroids", "semantic_hits", "semantic", "split_hits", "split", "dropped",
    "corpus",
)  # fmt: skip
"""All but what is written split by split: counts of rounds and cells."""
FIELDS = """
fields:
  number: {type: int, column: synth_id}
  source_exercise: {type: string, column: exercise}
  thinks: {type: bool, column: synthetic_reasoning}
"""
"""More of SYNTH's description: columns that are none in most rows, in all, and null in some."""
BENCHMARK = {
    "q": "A farmer has 12 hens and sells 5 of them at the market on Monday. How many hens does he keep for the winter?",
    "a": "He keeps 7.",
}


def write_inputs(folder: Path) -> None:
    """The same rows as 1, 2 and 7 files, each time in another order and under other names; a toy benchmark; a spec."""
    write_jsonl(folder / "benchmark.jsonl", [BENCHMARK])
    (folder / "fields.yaml").write_text(conf.find("synth", "sources") + FIELDS, encoding="utf-8")
    # A text without letters, an empty answer, a language that is not kept: a row for every way out.
    odd = [row(900, "???", "!!!"), row(901, "who", ""), row(902, "le chat et la maison", "la réponse est donc oui")]
    rows = [*mixed_rows(80), *odd, row(903, BENCHMARK["q"], "He has seven of them left and he feeds them in the barn.")]
    for num_splits in NUM_SPLITS:
        rng = random.Random(num_splits)
        rng.shuffle(rows)
        for number in range(num_splits):
            name = f"{rng.random()}.parquet"
            write_parquet(folder / f"in-{num_splits}" / name, rows[number::num_splits], row_group_size=100)


def recipe_of(folder: Path, num_splits: int, output: str, **settings: int) -> Recipe:
    """Every stage, over one file a split; few buckets where there are few splits; `settings` are more of `run`."""
    benchmark = {"path": str(folder / "benchmark.jsonl"), "question_columns": "q", "answer_columns": "a"}
    steps: Any = FILTER["steps"]
    contamination = {"kind": "contamination", "benchmarks": {"toy": benchmark}}
    cut = {
        "kind": "percentile",
        "name": "strange",
        "column": "perplexity",
        "within": ["detected_language"],
        "keep": 0.9,
    }
    return make_recipe(
        output,
        {"a": folder / f"in-{num_splits}"},
        str(folder / "fields.yaml"),
        stages=list(STAGES),
        filter={**FILTER, "steps": [*steps, contamination]},
        kenlm={"order": 2, "fraction": 0.6},
        score={"steps": [{"kind": "perplexity", "model": "run:kenlm"}], "cuts": [cut]},
        semantic={"embedder": "lexical", "dim": 64, "rows_per_cluster": 8, "threshold": 0.6},
        run={"split_bytes": 1 << 10, "bucket_bytes": 1 << (20 if num_splits == 1 else 12), **settings},
    )


def run_and_digest(folder: Path, num_splits: int, output: str, engine: Engine, **settings: int) -> dict[str, str]:
    """Dataset to content digest, of a run into an output folder."""
    result = run(recipe_of(folder, num_splits, output, **settings), engine)
    assert len(result.rows.splits) == num_splits
    assert result.accounting["a"]["contamination"]["contaminated"] == 1
    check_every_task_was_measured(output)
    return {name: Dataset.open(f"{output}/{name}").manifest.content_digest for name in DATASETS}


def check_every_task_was_measured(output: str) -> None:
    """Of those that wrote a split, and of the map sides of shuffles; and some of the engine's own CPU-seconds."""
    found = read_run_costs(Location.of(output))
    assert found is not None
    assert (found.total.unmeasured, found.unmeasured) == (0, ())
    num_splits = Dataset.open(f"{output}/ingest").manifest.splits
    for name in ("exact_hits", "candidates", "corpus"):
        costs = read_dataset_costs(Location.of(f"{output}/{name}"))
        assert costs is not None
        assert costs.map_side.task == tuple(range(num_splits)), name
    assert found.total.cpu_s > 0
    assert found.total.engine_cpu_s > 0
    assert found.total.peak_bytes > 10**7


def twice_and_digest(output: Path, engine: Engine) -> dict[str, str]:
    """As `run_and_digest`, of a recipe with named steps and stages, two of most kinds, over few splits."""
    recipe = runs.load("twice", output)
    run(recipe.model_copy(update={"run": Cutting(split_bytes=16384, bucket_bytes=16384)}), engine)
    written = ["ingest", "dropped", *(folder for one in recipe.stages for folder in one.folders())]
    return {name: stage(output, name).manifest.content_digest for name in written}


def check_files_are_those_of_the_oracle(folder: Path, engine: Engine) -> None:
    """Every file of a small recipe, byte by byte: exact and near duplicates, a cut in rounds, files of the corpus."""
    source = write_parquet(folder / "a.parquet", mixed_rows(60))
    stages = ["filter", "dedup", "tokenize", "layout"]
    for name, runner in (("tested", engine), ("oracle", InProcessEngine())):
        run(make_recipe(folder / name, {"a": source}, stages=stages, filter=FILTER), runner)
    assert files(folder / "tested") == files(folder / "oracle")
    assert stage(folder / "tested", "corpus").manifest.rows_out > 15


def main(argv: list[str]) -> int:
    from etl.engines.spark import SparkEngine

    parser = argparse.ArgumentParser(prog="tests.engines.grid")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", required=True)
    options = parser.parse_args(argv)
    engine = SparkEngine(report=lambda line: None)
    found: dict[int, Any] = {}
    try:
        for num_splits in NUM_SPLITS:
            output = f"{options.output}/{num_splits}"
            found[num_splits] = run_and_digest(options.folder, num_splits, output, engine)
    finally:
        engine.close()
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
