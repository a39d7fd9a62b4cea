"""Predictions of recipes of any kinds of stages, and that nothing which predicts knows one by its name."""

import ast
from pathlib import Path

import etl.run.estimate
from etl.run.estimate import estimate
from etl.run.recipe import STAGES, reserved_names
from tests.acme import importable
from tests.etl.stages.toys import make_recipe, mixed_rows, write_parquet

THIN = """
from dataclasses import dataclass

import pyarrow as pa

from etl.accounting import judged
from etl.engine import Exchange
from etl.rows import RowsRef
from etl.schema import aligned
from etl.stages.keyed import int64_schema, live_rows, reduced, routed
from etl.stages.stage import Stage
from etl.step import drop

NUMBER, VERDICT = int64_schema("row"), aligned(pa.schema([]))


class Thin(Stage):
    tables = {"thin": "VERDICT", "rest": "NUMBER"}

    def run(self, context, rows):
        inputs, splits = rows.tables(["verdict"]), tuple(rows.splits)
        job = context.job("thin", "VERDICT", VERDICT, {}, inputs, rows)
        thinned = context.map(job, splits, Thinned(rows.ref, self.label))
        rows = rows.with_side(thinned, VERDICT)
        job = context.job("rest", "NUMBER", NUMBER, {}, rows.tables(["verdict"]))
        context.shuffle(job, Exchange(splits, Rest(rows.ref), routed(NUMBER), ("row",), 2), keep)
        return rows


@dataclass(frozen=True)
class Thinned:
    rows: RowsRef
    step: str

    def __call__(self, split):
        for batch in self.rows.read(split, ["id", "source_dataset", "verdict"]):
            third = pa.array([place % 3 == 0 for place in range(batch.num_rows)])
            done = drop(batch, self.step, third, "third", pa.nulls(batch.num_rows, pa.string()))
            yield judged([self.step], batch, done.select(VERDICT.names), VERDICT)


@dataclass(frozen=True)
class Rest:
    rows: RowsRef

    def __call__(self, split):
        for _, keys in live_rows(self.rows, split, ["id"]):
            yield pa.record_batch([pa.array(keys % 2, pa.int32()), pa.array(keys)], schema=routed(NUMBER))


def keep(bucket, batches):
    return reduced(batches, lambda rows: (batch.select(["row"]).cast(NUMBER) for batch in rows))
"""
"""Somebody else's module: a stage that drops every third row and shuffles the rest, and says nothing of growth."""


def every_kind(name):
    """One stage of each kind but `layout`, and one that says nothing, with a name or without one."""
    named = {"name": name} if name else {}
    stages = [
        {
            "kind": "filter",
            "steps": [{"kind": "language", "name": f"{name}language"}],
            "cuts": [CUT | {"kind": "share", "column": f"{name}language_detected_language", "name": f"{name}english"}],
        },
        {"kind": "dedup", "units": [{"unit": "line"}]},
        {"kind": "kenlm", "order": 2, "fraction": 0.5},
        {"kind": "score", "steps": [PERPLEXITY | {"name": f"{name}words", "model": f"run:{name and name + '-'}kenlm"}]},
        {"kind": "tokenize"},
        {"kind": "semantic", "embedder": "lexical", "dim": 32, "threshold": 0.95},
        {"kind": "split"} | SIDES,
        {"kind": "acme_thin:Thin"},
    ]
    return [stage | named for stage in stages]


CUT = {"values": ["en"], "share": 0.8}
PERPLEXITY = {"kind": "perplexity"}
SIDES = {"validation_fraction": 0.3}
LAYOUT = {"kind": "layout", "target_bytes": 1 << 16} | SIDES
BARE = {
    "kind": "filter",
    "name": "bare",
    "cuts": [
        {"kind": "percentile", "name": "strange", "column": "words_perplexity", "keep": 0.9},
        {"kind": "threshold", "name": "long", "column": "n_tokens", "min": 90, "skill_buckets": ["B1", "B2"]},
    ],
}


def test_every_kind_of_stage_twice_and_one_that_says_nothing(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "in.parquet", mixed_rows(600), row_group_size=50)
    size = path.stat().st_size
    monkeypatch.setattr("etl.run.sample.MIN_PIECE_BYTES", size // 7)
    (tmp_path / "acme_thin.py").write_text(THIN)
    with importable(tmp_path, "acme_thin"):
        stages = [*every_kind(""), BARE, *every_kind("late"), LAYOUT, LAYOUT | {"name": "late"}]
        recipe = make_recipe(tmp_path / "out", {"toy": path}, stages=stages)
        assert {stage.kind for stage in recipe.stages} >= {kind.model_fields["kind"].default for kind in STAGES}
        found = estimate(recipe, size // 3, seed=1)
    costs = {name: cost for cost in found.stages for name in cost.stage.split("+")}
    assert costs.keys() >= {folder for stage in recipe.stages for folder in stage.folders()}
    assert costs["late-corpus"].rows == costs["corpus"].rows > 0
    assert costs["late-rest"].rows < 0.8 * costs["rest"].rows
    assert [note.partition(":")[0] for note in found.notes if "candidate pairs" in note] == ["pairs", "late-pairs"]


def test_nothing_here_knows_a_stage_by_its_name():
    """No folder, kind or step of a stage is a word in the code that predicts; of stages it imports only
    ingest, assemble and their accounts."""
    words = {*reserved_names(), *(stage.model_fields["kind"].default for stage in STAGES)}
    for file in ("estimate", "scaling", "duplicates", "growth", "meter", "sample"):
        tree = ast.parse((Path(etl.run.estimate.__file__).parent / f"{file}.py").read_text())
        nodes = list(ast.walk(tree))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        said = {
            n.value for n in nodes if isinstance(n, ast.Constant) and n not in docstrings and isinstance(n.value, str)
        }
        assert not words & said, file
        imported = {n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module.startswith("etl.stages")}
        assert imported <= {"etl.stages.keyed", "etl.stages.ingest", "etl.stages.intake", "etl.stages.assemble"}, file
