"""Steps over aligned rows, checkpoints of slow ones, and cuts found in rounds."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from etl.errors import SchemaError
from etl.rows import Rows
from etl.run.plan import plan_recipe
from etl.run.run import context_of
from etl.stages import passes
from etl.stages.ingest import ingest
from etl.stages.passes import RunSteps, run_cut
from etl.stages.tokens import Tokenize
from etl.step import Step, append, drop
from etl.storage.batches import LIMITS, Limits
from etl.storage.catalog import statements
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from etl.storage.manifest import accounting_gaps
from etl.storage.record import RECORD
from etl.storage.verify import verify
from tests.engines.inprocess import DyingEngine, IdleEngine, InProcessEngine, KilledError
from tests.etl.stages.toys import (
    FILTER,
    files,
    make_recipe,
    mixed_rows,
    plain_rows,
    read,
    run,
    scores,
    stage,
    verdicts,
    write_jsonl,
    write_parquet,
)


class OutOfLuckError(Exception):
    """What the toy model raises."""


class SlowStep(Step):
    """Stands for a model: counts the rows that it is given, and fails when it has seen enough of them."""

    kind: str = "slow"
    slow: ClassVar[bool] = True
    adds: ClassVar[pa.Schema] = pa.schema([("length", pa.int64())])
    reads: ClassVar[tuple[str, ...]] = ("source_example_id",)
    seen: ClassVar[list[str]] = []
    fails_after: ClassVar[int | None] = None

    def open(self):
        def measure(batch):
            for name in batch.column("source_example_id").to_pylist():
                if len(self.seen) == self.fails_after:
                    raise OutOfLuckError(name)
                self.seen.append(name)
            length = pc.utf8_length(batch.column("source_example_id"))
            batch = drop(batch, self.kind, pc.equal(length, 3), "three", length)
            return append(batch, self.adds, [length])

        return measure


@dataclass(frozen=True)
class ToyPipeline:
    """What RunSteps uses of a Pipeline, which is a closed union of kinds."""

    steps: tuple = (SlowStep(),)
    slow: bool = True
    added: pa.Schema = field(default_factory=lambda: SlowStep.adds)

    def reads(self):
        return ["source_example_id"]


@pytest.fixture
def slow_step():
    SlowStep.seen.clear()
    SlowStep.fails_after = None
    return SlowStep


@pytest.fixture
def ingested(tmp_path, monkeypatch):
    """2,500 rows in row groups of 900, of which no two fit into one of ours."""
    monkeypatch.setattr("etl.sources.raw.ROW_GROUP_BYTES", 300_000)
    rows = [item | {"query": f"q{n}", "synthetic_answer": "a"} for n, item in enumerate(plain_rows(2500))]
    source = write_parquet(tmp_path / "a.parquet", rows, row_group_size=900)
    recipe = make_recipe(tmp_path / "out", {"toy": source}, run={"split_bytes": 1 << 30})
    context = context_of(recipe, InProcessEngine())
    rows = ingest(context, recipe.sources, recipe.max_bad_fraction, recipe.max_row_bytes)
    context.engine.settle()
    return context, rows


def run_slow(context, rows, limits=LIMITS):
    job = context.job("slow", "SLOW", passes.aligned(SlowStep.adds), {}, (), rows)
    folder = job.folder / passes.CHECKPOINTS / job.plan_fingerprint
    return context.engine.map(job, rows.splits, RunSteps(rows.ref, ToyPipeline(), folder, limits=limits)).result()


def test_slow_step_resumes_at_its_last_checkpoint(ingested, slow_step):
    context, rows = ingested
    slow_step.fails_after = 1730
    with pytest.raises(OutOfLuckError):
        run_slow(context, rows, Limits(200, 60.0))
    slow_step.fails_after = None
    dataset = run_slow(context, rows, Limits(200, 60.0))
    # A row group of 900 is four ranges of 200 and one of 100: the failure came 30 rows into the last of the second.
    computed = Counter(slow_step.seen)
    assert set(computed) == {f"r{n}" for n in range(2500)}
    assert {name for name, times in computed.items() if times > 1} == {f"r{n}" for n in range(1700, 1730)}
    assert [item["length"] for item in read(dataset)] == [len(f"r{n}") for n in range(2500)]


def test_interrupted_slow_step_equals_an_uninterrupted_one(ingested, slow_step):
    context, rows = ingested
    for count in (50, 60, 1111):
        slow_step.fails_after = len(slow_step.seen) + count
        with pytest.raises(OutOfLuckError):
            run_slow(context, rows, Limits(200, 60.0))
    slow_step.fails_after = None
    resumed = run_slow(context, rows, Limits(200, 60.0)).manifest
    (context.output / "slow").remove_tree()
    whole = run_slow(context, rows, Limits(200, 60.0)).manifest
    assert resumed == whole
    assert whole.accounting == {"toy": {"slow": {"in": 2500, "made": 0, "kept": 2410, "three": 90}}}
    assert whole.parts[0].row_groups == (900, 900, 700)


def test_checkpoint_covers_at_most_1000_rows(ingested, slow_step):
    context, rows = ingested
    slow_step.fails_after = 2400
    with pytest.raises(OutOfLuckError):
        run_slow(context, rows)
    stored = [path for path, _ in (context.output / "slow").walk() if path.startswith(passes.CHECKPOINTS)]
    assert [path.rpartition("/")[2] for path in stored] == ["0000000000.arrow", "0000000900.arrow"]


def test_checkpoint_is_written_when_its_time_is_up(ingested, slow_step):
    context, rows = ingested
    slow_step.fails_after = 65
    with pytest.raises(OutOfLuckError):
        run_slow(context, rows, Limits(1000, 0.0))
    stored = [path for path, _ in (context.output / "slow").walk() if path.startswith(passes.CHECKPOINTS)]
    assert [path.rpartition("/")[2] for path in stored] == [f"{start:010d}.arrow" for start in (0, 20, 40)]


def test_checkpoints_are_gone_after_the_commit(ingested, slow_step):
    context, rows = ingested
    run_slow(context, rows)
    assert not [path for path, _ in (context.output / "slow").walk() if passes.CHECKPOINTS in path]


def test_aligned_table_repeats_parts_and_row_groups(tmp_path):
    write_parquet(tmp_path / "a.parquet", mixed_rows(120), row_group_size=30)
    write_jsonl(tmp_path / "b.jsonl", mixed_rows(30, seed=1))
    sources = {"a": tmp_path / "a.parquet", "b": tmp_path / "b.jsonl"}
    run(make_recipe(tmp_path / "out", sources, stages=["filter"], filter=FILTER))
    base = stage(tmp_path / "out", "ingest")
    for name in ("filter", "english_share"):
        side = stage(tmp_path / "out", name)
        assert [(p.split, p.row_groups) for p in side.manifest.parts] == [
            (p.split, p.row_groups) for p in base.manifest.parts
        ]
        assert [item["id"] for item in read(side)] == [item["id"] for item in read(base)]


def test_verdict_is_cumulative_and_never_changes(tmp_path):
    write_parquet(tmp_path / "a.parquet", mixed_rows(150))
    run(make_recipe(tmp_path / "out", {"a": tmp_path / "a.parquet"}, stages=["filter"], filter=FILTER))
    first, second = verdicts(tmp_path / "out", "filter"), verdicts(tmp_path / "out", "english_share")
    assert first
    assert len(second) > len(first)
    assert second | first == second


def test_share_cut_keeps_the_share_exactly(tmp_path):
    write_parquet(tmp_path / "a.parquet", mixed_rows(200))
    run(make_recipe(tmp_path / "out", {"a": tmp_path / "a.parquet"}, stages=["filter"], filter=FILTER))
    before = read(stage(tmp_path / "out", "filter"))
    after = read(stage(tmp_path / "out", "english_share"))
    alive = [(row["detected_language"], cut["verdict"] is None) for row, cut in zip(before, after, strict=True)
             if row["verdict"] is None]  # fmt: skip
    english = sum(language == "en" for language, _ in alive)
    others = len(alive) - english
    # 0.7 of what is left is English: the other languages are too many.
    expected = round(Fraction(3, 7) * english)
    assert others > expected
    assert Counter(alive) == {("en", True): english, ("de", True): expected, ("de", False): others - expected}
    manifest = stage(tmp_path / "out", "english_share").manifest
    stored = manifest.thresholds["english_share"]
    assert (stored["inside"]["keep"], stored["outside"]["keep"]) == (english, expected)
    lost = set(verdicts(tmp_path / "out", "english_share").values())
    assert {verdict for verdict in lost if verdict[0] not in ("ingest", "answer")} == {
        ("english_share", "over_share", "de")
    }


def test_percentile_cut_drops_the_top_of_each_group(tmp_path, ngram_model):
    write_parquet(tmp_path / "a.parquet", mixed_rows(150))
    recipe = make_recipe(
        tmp_path / "out", {"a": tmp_path / "a.parquet"}, stages=["filter", "score"], filter=FILTER,
        score=scores(ngram_model),
    )  # fmt: skip
    run(recipe)
    languages = [item["detected_language"] for item in read(stage(tmp_path / "out", "filter"))]
    scored, cut = read(stage(tmp_path / "out", "score")), read(stage(tmp_path / "out", "strange"))
    rows = [
        (language, item["perplexity"], after["verdict"] is None)
        for language, item, after in zip(languages, scored, cut, strict=True)
        if item["verdict"] is None
    ]
    for group in ("en", "de"):
        mine = sorted((score, kept) for language, score, kept in rows if language == group)
        keep = -(-9 * len(mine) // 10)
        assert sum(kept for _, kept in mine) == keep
        assert max(score for score, kept in mine if kept) <= min(score for score, kept in mine if not kept)


def test_ties_are_cut_exactly_and_alike_for_any_order_of_rows(tmp_path):
    """All scores equal: the quota is met by the hash of the id, whatever file a row came from."""
    rows = mixed_rows(120)
    write_parquet(tmp_path / "one" / "a.parquet", rows)
    write_jsonl(tmp_path / "two" / "b.jsonl", rows[70:])
    write_jsonl(tmp_path / "two" / "a.jsonl", rows[70:0:-1] + rows[:1])
    kept = []
    for name in ("one", "two"):
        run(make_recipe(tmp_path / f"out-{name}", {"a": tmp_path / name}, stages=["filter"], filter=FILTER))
        kept.append(verdicts(tmp_path / f"out-{name}", "english_share"))
    assert kept[0] == kept[1]
    assert len(kept[0]) > 10


def test_cut_that_touches_nobody_drops_nobody(tmp_path):
    write_parquet(tmp_path / "a.parquet", plain_rows(20))
    run(make_recipe(tmp_path / "out", {"a": tmp_path / "a.parquet"}, stages=["filter"], filter=FILTER))
    assert verdicts(tmp_path / "out", "english_share") == {}


SELECTED = {
    "steps": [
        {"kind": "answer", "sources": ["a"]},
        {"kind": "language"},
        {"kind": "language", "name": "strict", "keep": ["en"], "skill_buckets": ["B2", "B3"]},
        {"kind": "language", "name": "in-b", "min_score": 0.5, "sources": ["b"], "skill_buckets": ["B5"]},
    ],
    "cuts": [
        {"kind": "threshold", "name": "english", "column": "detected_language", "in": ["en"], "sources": ["b"]},
        {
            "kind": "percentile", "name": "half", "column": "language_score", "within": ["source_dataset"],
            "keep": 0.5, "sources": ["a"], "skill_buckets": ["B1"],
        },
    ],
}  # fmt: skip


def test_steps_and_cuts_work_on_the_rows_that_they_select(tmp_path):
    paths = {
        name: write_parquet(tmp_path / f"{name}.parquet", mixed_rows(150, seed)) for seed, name in enumerate("abc")
    }
    result = run(make_recipe(tmp_path / "out", paths, stages=["filter"], filter=SELECTED))
    base = {item["id"]: item for item in read(stage(tmp_path / "out", "ingest"))}
    lost = {}
    for folder in ("filter", "english", "half"):
        assert set(lost.items()) <= set(verdicts(tmp_path / "out", folder).items())
        lost = verdicts(tmp_path / "out", folder)
    where = Counter((step, base[key]["source_dataset"], base[key]["skill_bucket"]) for key, (step, *_) in lost.items())
    assert {step for step, *_ in where} == {"ingest", "answer", "strict", "english", "half"}
    assert {source for step, source, _ in where if step == "answer"} == {"a"}
    assert {skill for step, _, skill in where if step == "strict"} == {"B2", "B3"}
    assert {source for step, source, _ in where if step == "english"} == {"b"}
    assert {(source, skill) for step, source, skill in where if step == "half"} == {("a", "B1")}
    for item in read(stage(tmp_path / "out", "filter")):
        selected = base[item["id"]]["skill_bucket"] in ("B2", "B3")
        assert (item["strict_detected_language"] is not None) == (selected and item["detected_language"] is not None)
    # Accounts: a source that a step does not take has none of it, and they add up to what was lost.
    accounts = result.accounting
    assert accounting_gaps(accounts) == []
    steps = {source: set(steps) - {"ingest"} for source, steps in accounts.items()}
    assert steps == {
        "a": {"answer", "language", "strict", "half"},
        "b": {"language", "strict", "in-b", "english"},
        "c": {"language", "strict"},
    }
    in_a = [accounts["a"][step] for step in ("ingest", "answer", "language", "strict", "half")]
    assert all(before["kept"] == after["in"] for before, after in itertools.pairwise(in_a))
    assert Counter(step for step, *_ in lost.values()) == Counter(
        {step: n for step in ("ingest", "answer", "strict", "english", "half") if (n := lost_by(accounts, step))}
    )


def lost_by(accounts, step):
    """Rows that a step has dropped, over all sources."""
    return sum(steps[step]["in"] - steps[step]["kept"] for steps in accounts.values() if step in steps)


def test_a_selection_gives_what_a_run_over_its_source_alone_gives(tmp_path):
    paths = {name: write_parquet(tmp_path / f"{name}.parquet", mixed_rows(120, seed)) for seed, name in enumerate("ab")}
    run(make_recipe(tmp_path / "alone", {"a": paths["a"]}, stages=["filter"], filter=FILTER))
    limited = {part: [{**each, "sources": ["a"]} for each in FILTER[part]] for part in ("steps", "cuts")}
    run(make_recipe(tmp_path / "both", paths, stages=["filter"], filter=limited))
    for folder in ("filter", "english_share"):
        alone = {item["id"]: item for item in read(stage(tmp_path / "alone", folder))}
        both = {item["id"]: item for item in read(stage(tmp_path / "both", folder))}
        assert {key: both[key] for key in alone} == alone
        others = [item for key, item in both.items() if key not in alone]
        assert len(others) == 120
        assert {item["verdict"] and item["verdict"]["step"] for item in others} == {None, "ingest"}
        assert not any(item[name] for item in others for name in set(item) - {"id", "verdict"})
    manifests = [stage(tmp_path / name, "english_share").manifest for name in ("alone", "both")]
    assert manifests[0].thresholds == manifests[1].thresholds
    assert set(manifests[1].accounting) == {"a", "b"}
    assert manifests[1].accounting["b"] == {}


def test_a_pass_of_cuts_alone_writes_the_cuts_datasets_alone(tmp_path):
    source = write_parquet(tmp_path / "a.parquet", mixed_rows(60))
    cut = {"kind": "threshold", "name": "german", "column": "detected_language", "equals": "de"}
    recipe = make_recipe(
        tmp_path / "out", {"a": source}, stages=["filter", "score"], filter=FILTER, score={"cuts": [cut]}
    )
    run(recipe)
    assert not (tmp_path / "out" / "score").exists()
    languages = {item["id"]: item["detected_language"] for item in read(stage(tmp_path / "out", "filter"))}
    before, after = (verdicts(tmp_path / "out", name) for name in ("english_share", "german"))
    assert {key: told for key, told in after.items() if key not in before} == {
        key: ("german", "not_equal", "en")
        for key, language in languages.items()
        if key not in before and language == "en"
    }
    assert stage(tmp_path / "out", "german").manifest.thresholds == {}
    run(recipe, IdleEngine())


def test_missing_column_fails_before_a_row_is_read(tmp_path, ngram_model):
    write_parquet(tmp_path / "a.parquet", plain_rows(3))
    recipe = make_recipe(tmp_path / "out", {"a": tmp_path / "a.parquet"}, stages=["score"], score=scores(ngram_model))
    with pytest.raises(SchemaError, match="cut 'strange' reads \\['detected_language'\\]"):
        run(recipe, IdleEngine())
    assert not (tmp_path / "out").exists()


def test_rounds_are_committed(tmp_path):
    """A killed cut continues from the rounds that it has counted."""
    write_parquet(tmp_path / "a.parquet", mixed_rows(60))
    recipe = make_recipe(tmp_path / "out", {"a": tmp_path / "a.parquet"}, stages=["filter"], filter=FILTER)
    result = run(recipe)
    base, filtered, _ = result.rows.datasets
    rows = Rows.of(base).with_side(filtered, result.rows.ref.sides[0].schema)
    context = context_of(recipe, IdleEngine())
    again = run_cut(context, rows, recipe.filter.cuts[0])
    assert again.datasets[-1].result().manifest == Dataset.open(f"{recipe.output}/english_share").manifest


def test_rows_with_a_verdict_are_not_measured(tmp_path):
    write_parquet(tmp_path / "a.parquet", mixed_rows(100))
    run(make_recipe(tmp_path / "out", {"a": tmp_path / "a.parquet"}, stages=["filter"], filter=FILTER))
    rows = [item for item in read(stage(tmp_path / "out", "filter")) if item["verdict"]]
    lost = [item for item in rows if item["verdict"]["step"] in ("ingest", "answer")]
    assert lost
    assert all(item["detected_language"] is None for item in lost)


# --- the table that `tokenize` writes, TOKENIZED, which the first manifests called TOKENIZE ---------------------------


def tokenized(tmp_path, name):
    source = tmp_path / "in.jsonl"
    if not source.exists():
        write_jsonl(source, plain_rows(30))
    return make_recipe(tmp_path / name, {"toy": source}, stages=["tokenize", "layout"])


@pytest.fixture
def old_recipe(tmp_path, monkeypatch):
    """A finished run that wrote the old word."""
    recipe = tokenized(tmp_path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(Tokenize, "tables", {"tokenize": "TOKENIZE"})
        run(recipe)
    assert words(recipe) == ("TOKENIZE", b"TOKENIZE")
    return recipe


def words(recipe):
    """What the manifest and a part call the table."""
    dataset = stage(recipe.output, "tokenize")
    (part, *_) = dataset.manifest.parts
    with dataset.part_location(part).open_parquet() as file:
        return dataset.manifest.table, file.schema_arrow.metadata[b"stillhouse.table"]


def test_manifest_and_parts_say_tokenized(tmp_path):
    recipe = tokenized(tmp_path, "new")
    run(recipe)
    assert words(recipe) == ("TOKENIZED", b"TOKENIZED")


def test_what_was_tokenized_under_the_old_word_is_kept(old_recipe):
    # The record would say the old word, but a version that wrote that left no record.
    (Path(old_recipe.output) / RECORD).unlink()
    before = files(Path(old_recipe.output))
    assert {outlook.action for outlook in plan_recipe(old_recipe).stages} == {"keep"}
    run(old_recipe, IdleEngine())
    after = files(Path(old_recipe.output))
    assert after.pop(RECORD)
    assert after == before


def test_readers_take_both_words(old_recipe, tmp_path):
    new = tokenized(tmp_path, "new")
    run(new)
    for recipe in (old_recipe, new):
        assert list(verify(Location.of(recipe.output))) == []
        assert any("`tokenize`" in line for line in statements(Location.of(recipe.output), "spark"))
    old, new = (stage(recipe.output, "tokenize").manifest for recipe in (old_recipe, new))
    assert (old.fingerprint, old.content_digest, old.receipts) == (new.fingerprint, new.content_digest, new.receipts)
    # What the trainer reads is the same to the byte.
    assert files(tmp_path / "old" / "corpus") == files(tmp_path / "new" / "corpus")


def test_what_the_old_word_began_is_resumed(tmp_path, monkeypatch):
    recipe = tokenized(tmp_path, "old")
    recipe = recipe.model_copy(update={"stages": recipe.stages[:1]})
    with monkeypatch.context() as patch:
        patch.setattr(Tokenize, "tables", {"tokenize": "TOKENIZE"})
        with pytest.raises(KilledError):
            run(recipe, DyingEngine(1))
    folder = tmp_path / "old" / "tokenize"
    (receipt,) = folder.glob("_receipts/*/*.json")
    before = receipt.stat().st_ino
    run(recipe)
    # Another plan would have closed this build and removed its receipt.
    assert receipt.stat().st_ino == before
    assert not (folder / "_closed").exists()
    assert stage(recipe.output, "tokenize").manifest.table == "TOKENIZED"
