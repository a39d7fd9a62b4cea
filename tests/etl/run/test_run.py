"""Whole runs: accounts, digests that are free of the cut, work that is not done twice, kills and resumption."""

import itertools
import random
import re
import shutil

import pytest

from etl.errors import ConfigError, DataError, SchemaError
from etl.run.recipe import Recipe
from etl.storage.build import SplitWriter
from etl.storage.location import Location
from etl.storage.lock import LOCK, RunLock
from etl.storage.manifest import FLOW
from etl.storage.opened import Run
from etl.storage.verify import verify
from tests.engines.inprocess import DyingEngine, IdleEngine, InProcessEngine, KilledError
from tests.etl.stages.toys import (
    FILTER,
    files,
    make_recipe,
    manifests,
    mixed_rows,
    plain_rows,
    read,
    row,
    run,
    scores,
    stage,
    whole_recipe,
    write_jsonl,
    write_parquet,
)

STEPS = ("ingest", "answer", "language", "english_share", "exact", "near", "perplexity", "strange", "harmony",
         "ctx_bucket", "split", "layout")  # fmt: skip
FREE_OF_THE_CUT = ("ingest", "filter", "english_share", "exact", "near", "score", "strange", "tokenize", "split",
                   "dropped", "corpus")  # fmt: skip
LAST = {"split_hits", "split", "dropped", "cells", "corpus"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    french = [row(n, "le chat et la maison de mon père sont ici", f"la réponse est donc oui {n}") for n in range(3)]
    a = write_parquet(folder / "a.parquet", mixed_rows(120) + french)
    b = write_jsonl(folder / "b.jsonl", mixed_rows(40, seed=1))
    with b.open("ab") as file:
        file.write(b"not a row\n")
    return {"a": a, "b": b}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, sources, ngram_model):
    """An uninterrupted run; do not write to it."""
    output = tmp_path_factory.mktemp("whole") / "out"
    run(whole_recipe(output, sources, ngram_model))
    return output


# --- accounts ------------------------------------------------------------------------------------------------------


def test_accounts_close_and_chain_from_the_raw_rows_to_the_corpus(whole):
    accounting = stage(whole, "corpus").manifest.accounting
    assert set(accounting) == {"a", "b"}
    for steps in accounting.values():
        assert set(steps) == set(STEPS)
        for name, counts in steps.items():
            lost = sum(count for reason, count in counts.items() if reason not in FLOW)
            assert counts["in"] + counts["made"] == counts["kept"] + lost, name
        for before, after in itertools.pairwise(STEPS):
            assert steps[before]["kept"] == steps[after]["in"], after
    assert accounting["a"]["ingest"]["in"] == 123
    assert accounting["b"]["ingest"] == {
        "in": 41, "made": 0, "kept": 39, "quarantined:invalid_json": 1, "blank_answer": 1,
    }  # fmt: skip
    assert accounting["a"]["language"]["language_not_kept"] == 3


def test_accounts_close_in_every_manifest(whole):
    for dataset in Run.open(whole).datasets.values():
        for steps in dataset.manifest.accounting.values():
            for counts in steps.values():
                lost = sum(count for reason, count in counts.items() if reason not in FLOW)
                assert counts["in"] + counts["made"] == counts["kept"] + lost


def test_every_lost_row_is_counted_under_its_reason(whole):
    counted: dict = {}
    for item in read(stage(whole, "dropped")):
        key = item["source_dataset"], item["step"], item["reason"]
        counted[key] = counted.get(key, 0) + 1
    told = {
        (source, step, reason): count
        for source, steps in stage(whole, "corpus").manifest.accounting.items()
        for step, counts in steps.items()
        for reason, count in counts.items()
        if reason not in FLOW and not reason.startswith("quarantined:")
    }
    assert counted == told
    assert len(told) >= 10


def test_account_of_the_whole_run_is_that_of_its_parts(whole, sources, ngram_model):
    result = run(whole_recipe(whole, sources, ngram_model), IdleEngine())
    assert result.accounting == stage(whole, "corpus").manifest.accounting


def test_nothing_differs_from_the_manifests(whole):
    assert list(verify(Location.of(whole))) == []


# --- free of the cut -----------------------------------------------------------------------------------------------


def digests(output):
    return {name: stage(output, name).manifest.content_digest for name in FREE_OF_THE_CUT}


@pytest.mark.parametrize(
    ("cutting", "batch_rows"),
    [
        ({"split_bytes": 1 << 30, "bucket_bytes": 1 << 30}, 10_000),
        ({"split_bytes": 1 << 12, "bucket_bytes": 1 << 30}, 1),
        ({"split_bytes": 1 << 30, "bucket_bytes": 1 << 11}, 3),
    ],
)
def test_digests_do_not_depend_on_splits_and_buckets(tmp_path, whole, sources, ngram_model, cutting, batch_rows):
    engine = InProcessEngine(batch_rows=batch_rows, seed=batch_rows)
    run(whole_recipe(tmp_path, sources, ngram_model, run=cutting), engine)
    assert digests(tmp_path) == digests(whole)


def test_digests_do_not_depend_on_files_and_their_order(tmp_path, whole, ngram_model):
    french = [row(n, "le chat et la maison de mon père sont ici", f"la réponse est donc oui {n}") for n in range(3)]
    rng = random.Random(5)
    for name, rows in (("a", mixed_rows(120) + french), ("b", mixed_rows(40, seed=1))):
        rng.shuffle(rows)
        for number in range(7):
            write = write_jsonl if number % 2 else write_parquet
            suffix = "jsonl" if number % 2 else "parquet"
            write(tmp_path / name / f"{rng.random()}.{suffix}", rows[number::7])
    run(whole_recipe(tmp_path / "out", {"a": tmp_path / "a", "b": tmp_path / "b"}, ngram_model))
    assert digests(tmp_path / "out") == digests(whole)


def test_copies_of_a_row_that_differ_in_metadata_do_not_depend_on_arrival(tmp_path):
    """With dedup off rows may share an id; what differs is not in it, and still every run writes the same bytes."""
    rows = [row(n % 20, "q", "a", model=f"m{n}") for n in range(60)]
    outputs = []
    for seed in range(3):
        source = write_parquet(tmp_path / "in.parquet", rows, row_group_size=9)
        output = tmp_path / str(seed)
        recipe = make_recipe(output, {"toy": source}, stages=["tokenize", "layout"], run={"split_bytes": 1024})
        run(recipe, InProcessEngine(seed=seed))
        outputs.append(manifests(output))
    assert outputs[0] == outputs[1] == outputs[2]


# --- nothing twice -------------------------------------------------------------------------------------------------


def test_second_run_does_no_work_and_touches_nothing(tmp_path, whole, sources, ngram_model):
    shutil.copytree(whole, tmp_path / "out")
    before = files(tmp_path / "out")
    run(whole_recipe(tmp_path / "out", sources, ngram_model), IdleEngine())
    assert files(tmp_path / "out") == before


def test_other_cut_of_the_work_does_not_run_it_again(tmp_path, whole, sources, ngram_model):
    shutil.copytree(whole, tmp_path / "out")
    cutting = {"split_bytes": 1 << 20, "bucket_bytes": 1 << 20}
    run(whole_recipe(tmp_path / "out", sources, ngram_model, run=cutting), IdleEngine())


def test_every_file_is_the_same_in_another_folder(tmp_path, whole, sources, ngram_model):
    run(whole_recipe(tmp_path / "elsewhere", sources, ngram_model), InProcessEngine(batch_rows=50, seed=9))
    assert files(tmp_path / "elsewhere") == files(whole)


def test_manifests_are_the_same_for_input_at_another_place(tmp_path, whole, sources, ngram_model):
    moved = {name: shutil.copy(path, tmp_path / path.name) for name, path in sources.items()}
    model = shutil.copy(ngram_model, tmp_path / "model-by-another-name")
    run(whole_recipe(tmp_path / "out", moved, model))
    assert manifests(tmp_path / "out") == manifests(whole)


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"score": {"cuts": {0: {"keep": 0.8}}}}, {"strange", "tokenize", *LAST}),
        ({"layout": {"target_bytes": 1 << 20}}, set()),
        ({"layout": {"validation_fraction": 0.5}}, LAST),
        ({"harmony": {"reasoning_effort": "low"}}, {"tokenize", *LAST}),
        ({"max_bad_fraction": 0.9}, set()),
    ],
)  # fmt: skip
def test_a_changed_option_runs_what_depends_on_it_and_no_more(tmp_path, whole, sources, ngram_model, change, again):
    shutil.copytree(whole, tmp_path / "out")
    sections = {"score": scores(ngram_model), "layout": {"validation_fraction": 0.15, "target_bytes": 1 << 16}}
    merge(sections, change)
    engine = InProcessEngine()
    run(whole_recipe(tmp_path / "out", sources, ngram_model, **sections), engine)
    # A round is named by its cut; with equal thresholds so far it need not be counted again.
    ran = {name for names, _ in engine.ran for name in names.split("+")}
    assert {name for name in ran if not name.startswith("rounds/strange")} <= again
    if "corpus" in again:
        assert "corpus" in ran
    assert list(verify(Location.of(tmp_path / "out"))) == []


def merge(tree, change):
    for key, value in change.items():
        if isinstance(value, dict) and (isinstance(tree, list) or key in tree):
            merge(tree[key], value)
        else:
            tree[key] = value


def test_changed_input_is_read_again(tmp_path, ngram_model):
    source = write_jsonl(tmp_path / "a.jsonl", plain_rows(10))
    recipe = make_recipe(tmp_path / "out", {"a": source}, stages=["tokenize", "layout"])
    run(recipe)
    write_jsonl(source, plain_rows(12))
    assert run(recipe).corpus.manifest.rows_out == 12
    assert list(verify(Location.of(tmp_path / "out"))) == []


# --- killed and run again ------------------------------------------------------------------------------------------


def test_kill_anywhere_then_resume_gives_the_same_files(tmp_path, whole, sources, ngram_model):
    """Killed again and again, each time a little further, and started anew with another order of tasks and rows."""
    output = tmp_path / "out"
    recipe = whole_recipe(output, sources, ngram_model)
    kills = 0
    for attempt in range(100):
        engine = DyingEngine(9, batch_rows=5, seed=attempt)
        try:
            run(recipe, engine)
            break
        except KilledError:
            kills += 1
            assert not (output / "corpus" / "_manifest.json").exists()
    assert kills > 8
    assert files(output) == files(whole)


@pytest.mark.parametrize("tasks", [0, 1, 20, 40, 60])
def test_one_kill_then_resume(tmp_path, whole, sources, ngram_model, tasks):
    recipe = whole_recipe(tmp_path, sources, ngram_model)
    with pytest.raises(KilledError):
        run(recipe, DyingEngine(tasks))
    run(recipe, InProcessEngine(seed=3))
    assert files(tmp_path) == files(whole)


def test_part_without_a_receipt_is_no_part(tmp_path, whole, sources, ngram_model, monkeypatch):
    def die(writer, receipt):
        if (writer.folder.name, receipt.split) == ("tokenize", 2):
            raise KilledError
        return receive(writer, receipt)

    receive = SplitWriter._receive
    recipe = whole_recipe(tmp_path, sources, ngram_model)
    monkeypatch.setattr(SplitWriter, "_receive", die)
    with pytest.raises(KilledError):
        run(recipe)
    monkeypatch.setattr(SplitWriter, "_receive", receive)
    with pytest.raises(DataError, match="not a committed dataset"):
        stage(tmp_path, "tokenize")
    run(recipe)
    assert files(tmp_path) == files(whole)


def test_other_splits_after_a_kill(tmp_path, whole, sources, ngram_model):
    """Another cut in the middle of a run: finished parts are not mixed with those of the new cut."""
    with pytest.raises(KilledError):
        run(whole_recipe(tmp_path, sources, ngram_model), DyingEngine(40))
    run(whole_recipe(tmp_path, sources, ngram_model, run={"split_bytes": 1 << 30, "bucket_bytes": 1 << 30}))
    assert digests(tmp_path) == digests(whole)
    assert list(verify(Location.of(tmp_path))) == []


def test_run_that_fails_gives_its_lock_back(tmp_path, sources, ngram_model):
    with pytest.raises(KilledError):
        run(whole_recipe(tmp_path, sources, ngram_model), DyingEngine(3))
    assert not (tmp_path / LOCK).exists()


def test_output_that_another_run_holds(tmp_path, sources, ngram_model):
    with RunLock(Location.of(tmp_path)), pytest.raises(DataError, match="is held by process"):
        run(whole_recipe(tmp_path, sources, ngram_model), IdleEngine())


# --- before a row is read ------------------------------------------------------------------------------------------


def test_missing_model_fails_before_a_row_is_read(tmp_path, sources):
    with pytest.raises(ConfigError, match="no-such-model"):
        run(whole_recipe(tmp_path / "out", sources, tmp_path / "no-such-model"), IdleEngine())
    assert not (tmp_path / "out").exists()


def test_unknown_source_description_fails_before_a_row_is_read(tmp_path, sources):
    tree = make_recipe(tmp_path / "out", sources).model_dump()
    tree["sources"]["a"]["spec"] = "sinth"
    with pytest.raises(ConfigError, match=r"'sinth' in conf/sources; shipped: .*synth"):
        run(Recipe.model_validate(tree), IdleEngine())
    assert not (tmp_path / "out").exists()


def test_stage_in_the_wrong_place_names_the_column(tmp_path, sources, ngram_model):
    recipe = whole_recipe(tmp_path / "out", sources, ngram_model, stages=["score", "filter"])
    with pytest.raises(SchemaError, match="detected_language"):
        run(recipe, IdleEngine())


@pytest.mark.parametrize("name", ["ingest", "corpus", "score", "clusters", "exact", "near", "layout", "rounds"])
def test_cut_cannot_take_the_name_of_a_folder_or_step_of_ours(tmp_path, sources, name):
    cut = {**FILTER["cuts"][0], "name": name}
    with pytest.raises(ValueError, match=re.escape(name)):
        make_recipe(tmp_path / "out", sources, stages=["filter"], filter={**FILTER, "cuts": [cut]})


def test_the_name_of_a_cut_is_no_path(tmp_path, sources):
    cut = {**FILTER["cuts"][0], "name": "../up"}
    with pytest.raises(ValueError, match=r"cuts\.0\.share\.name\s+String should match"):
        make_recipe(tmp_path / "out", sources, stages=["filter"], filter={**FILTER, "cuts": [cut]})


def test_two_stages_cannot_have_cuts_of_one_name(tmp_path, sources, ngram_model):
    score = scores(ngram_model)
    score["cuts"][0]["name"] = "english_share"
    with pytest.raises(ValueError, match="english_share"):
        whole_recipe(tmp_path / "out", sources, ngram_model, score=score)
