"""Compiles every kernel into the cache, with the types that runs use, by making and reading a small corpus.

A list of kernels and types would soon miss one. So this runs each stage on a few dozen rows that ship with the package,
duplicates of every kind included, and reads a stream from the corpus. Kernels that small input does not reach are
called directly; tests/jobs/test_warm.py finds any kernel that is compiled nowhere. Costs one minute of CPU time for etl
and 15 seconds for training.
"""

import importlib.resources
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from etl.dedup.semantic import survivors
from etl.engines.local import LocalEngine
from etl.harmony.step import HarmonyStep
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.schema import PROMPT, TEACHER_LOGP, VERDICT
from etl.storage.build import Build, Chunk, Job
from etl.storage.dataset import Dataset
from etl.storage.location import Location

_BENCHMARK_ROWS = 2


def compile_etl(folder: Path) -> None:
    """Run every stage in this process, components in one task and in rounds; leaves a corpus in folder/out/corpus."""
    rows = _rows()
    _write(folder / "rows.jsonl", rows)
    documents = [{"id": row["synth_id"], "text": _text(row)} for row in rows]
    (folder / "documents.json").write_text(json.dumps(documents, indent=1), "utf-8")
    (folder / "documents.txt").write_text("\n\n".join(map(_text, rows[:_BENCHMARK_ROWS])), "utf-8")
    _write(folder / "benchmark.jsonl", rows[:_BENCHMARK_ROWS])
    engine = LocalEngine()
    for name, stages, max_edges in (("out", _every_stage(folder), 1000), ("rounds", _ROUNDS, 0)):
        run_recipe(_recipe(folder, name, stages, max_edges), engine, lambda line: None)
    # The handwritten rows call no tool.
    schema = pa.schema([PROMPT.field("messages"), PROMPT.field("tools"), pa.field("verdict", VERDICT)])
    called = [pa.array([_CALL], schema.field("messages").type), *(pa.nulls(1, kind) for kind in schema.types[1:])]
    HarmonyStep().open()(pa.RecordBatch.from_arrays(called, schema=schema))
    # Blocks of one row, as clusters of thousands of rows have several.
    survivors(lambda start, stop: np.ones((stop - start, 2), np.int8), 2, threshold=0.9, block_rows=1)


_CALL = [
    {"role": "user", "content": "How much is 2 + 2?"},
    {"role": "assistant", "channel": "commentary", "recipient": "functions.add", "content": "[2, 2]", "call_id": "1"},
    {"role": "tool", "content": "4", "call_id": "1"},
    {"role": "assistant", "channel": "final", "content": "4"},
]


def _rows() -> list[dict[str, Any]]:
    """The handwritten rows of the sample: each as it is, exactly again, and changed in its last word."""
    text = (importlib.resources.files("conf") / "sample" / "synth.jsonl").read_text("utf-8")
    rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    again = [row | {"synth_id": f"{row['synth_id']}-again"} for row in rows]
    # Wide letters are folded to plain ones.
    changed = [
        row | {"synth_id": f"{row['synth_id']}-near", "synthetic_answer": f"{row['synthetic_answer']} Ｉｎｄｅｅｄ"}
        for row in rows
    ]
    return [*rows, *again, *changed]


def _text(row: dict[str, Any]) -> str:
    return "\n\n".join(row[name] for name in ("query", "synthetic_reasoning", "synthetic_answer"))


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def _recipe(folder: Path, name: str, stages: list[dict[str, Any]], max_edges: int) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "warm",
            "output": str(folder / name),
            "sources": {
                "rows": {"spec": "synth", "path": str(folder / "rows.jsonl")},
                "documents": {"spec": "text", "path": str(folder / "documents.json")},
                "blocks": {"spec": "text", "path": str(folder / "documents.txt"), "text_rows": "paragraph"},
            },
            "stages": stages,
            "run": {"max_component_edges": max_edges},
        }
    )


def _near(**settings: Any) -> dict[str, Any]:
    return {"num_canaries": 100, **settings}


_UNITS = [{"unit": "paragraph"}, {"unit": "line"}, {"unit": "sentence"}]
_SIDES = {"validation_fraction": 0.3}
_ROUNDS = [{"kind": "dedup", "exact": None, "near": _near()}]


def _every_stage(folder: Path) -> list[dict[str, Any]]:
    """Duplicate stages with falling thresholds, so that each one still finds something."""
    benchmark = {
        "path": str(folder / "benchmark.jsonl"), "question_columns": "query", "answer_columns": "synthetic_answer",
    }  # fmt: skip
    return [
        {
            "kind": "filter",
            "steps": [
                {"kind": "answer", "sources": ["rows"]},
                {"kind": "language"},
                {"kind": "contamination", "benchmarks": {"sample": benchmark}, "sources": ["documents"]},
            ],
        },
        {"kind": "dedup", "units": _UNITS, "near": _near(threshold=0.95)},
        {
            "kind": "dedup", "name": "letters", "exact": None,
            "near": _near(threshold=0.92, unit="char", verify="estimate"),
        },
        {
            "kind": "dedup", "name": "signs", "exact": {"by": "row"},
            "near": _near(threshold=0.9, unit="token", clusters="survivor"),
        },
        {"kind": "dedup", "name": "words", "exact": None, "near": _near(unit="word")},
        {"kind": "tokenize"},
        {"kind": "semantic", "embedder": "lexical", "dim": 64, "rows_per_cluster": 8, "threshold": 0.2},
        {"kind": "split", **_SIDES},
        {"kind": "layout", **_SIDES},
    ]  # fmt: skip


def compile_training(folder: Path) -> None:
    """Read the corpus that `compile_etl` wrote, as a stream with a teacher's scores and as pairs."""
    from etl import conf
    from training.config import TrainConfig
    from training.data.collate import collate
    from training.data.digest import stream_digest
    from training.data.reader import CorpusReader
    from training.data.stream.decisions import DecisionLog

    corpus = str(folder / "out" / "corpus")
    settings = [f"data.corpus={corpus}", f"output={folder / 'student'}", "data.segment_tokens=2048"]
    config = conf.load(TrainConfig, "demo", "training", settings)
    stage = config.stages[0]
    stream_digest(
        lambda rank, ranks: config.streams.open_stage(stage, rank, ranks, DecisionLog.preview), world=1, steps=8
    )
    reader = CorpusReader(corpus, "train", teacher=_scores(corpus, folder / "teacher_logp"))
    index = reader.read_index(reader.whole, seed=0)
    documents = reader.gather(index, np.arange(2))
    collate(documents, int(index.num_tokens[:2].sum()))
    pair, side = np.ones(2, np.int64), np.array([0, 1], np.int8)
    collate(replace(documents, pair=pair, side=side), int(index.num_tokens[:2].sum()))
    reader.close()


def _scores(corpus: str, folder: Path) -> str:
    """A teacher's table that gives every supervised token of a corpus one log-probability and one best token."""
    from training.data.teacher_table import TABLE, completion_digests, digest_bytes

    rows = []
    for row in (row for batch in Dataset.open(corpus).read() for row in batch.to_pylist()):
        spans = [np.arange(max(span["start"], 1), span["end"]) for span in row["spans"]]
        targets = np.array(row["input_ids"], np.int32)[np.concatenate(spans)]
        digest = digest_bytes(completion_digests(targets, np.array([0, len(targets)])))[0].as_py()
        rows.append(
            {
                "id": row["id"], "completion_digest": digest, "prompt_digest": bytes(16), "teacher_digest": "none",
                "reasoning_mode": "medium", "temperature": 1.0, "prefix_tokens": 1, "logp": [-1.0] * len(targets),
                "topk_ids": targets.tolist(), "topk_logp": [-1.0] * len(targets),
            }
        )  # fmt: skip
    (batch,) = pa.Table.from_pylist(rows, TEACHER_LOGP).combine_chunks().to_batches()
    findings = {"mean_logp": -1.0, "temperature": 1.0, "topk": 1}
    build = Build(Job(Location.of(str(folder)), "teacher_logp", TABLE, TEACHER_LOGP, {}).with_findings(findings))
    plan = build.plan([0])
    build.writer(plan).write(0, iter([Chunk(batch, batch.num_rows)]))
    build.commit(plan)
    return str(folder)
