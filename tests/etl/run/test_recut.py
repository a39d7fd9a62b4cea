"""The same rows in another cut: equal fingerprints and digests of all datasets; no row key of the old cut is used."""

import json
import shutil

import pytest

from etl.run.plan import plan_recipe
from etl.stages import ingest
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.engines.inprocess import DyingEngine, KilledError
from tests.etl.run.test_plan import IdleEngineBut
from tests.etl.stages.dedup.toys import NEAR, families
from tests.etl.stages.toys import make_recipe, plain_rows, read, row, run, stage, write_jsonl, write_parquet

FOLDERS = (
    "ingest", "exact_hits", "exact", "candidates", "edges", "sets", "pairs", "components", "near_hits", "near",
    "clusters", "split_hits", "split", "dropped",
)  # fmt: skip


def recipe_of(folder, output, **settings):
    return make_recipe(
        output,
        {"toy": folder / "*.jsonl"},
        stages=["dedup", "split"],
        dedup={"near": NEAR},
        layout={"validation_fraction": 0.3},
        run=settings,
    )


@pytest.fixture
def rows():
    texts = families(4, count=25)
    copies = [one | {"synth_id": f"copy-{n}"} for n, one in enumerate(texts[::4])]
    return [*texts, *copies, row(900, "alone", "yes")]


def identity(output):
    """Folder -> fingerprint and content digest."""
    manifests = {name: stage(output, name).manifest for name in FOLDERS}
    return {name: (manifest.fingerprint, manifest.content_digest) for name, manifest in manifests.items()}


def left(output):
    """The example ids of the rows that no step has dropped."""
    alive = {item["id"] for item in read(stage(output, "split")) if item["verdict"] is None}
    return sorted(item["source_example_id"] for item in read(stage(output, "ingest")) if item["id"] in alive)


def test_another_cut_in_the_same_output_has_the_same_fingerprints_and_marks_the_right_rows(tmp_path, rows):
    write_jsonl(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out"
    run(recipe_of(tmp_path, out, split_bytes=1 << 30))
    before, stayed = identity(out), left(out)
    assert len(rows) - len(stayed) > 20
    shutil.rmtree(out / "ingest")
    result = run(recipe_of(tmp_path, out, split_bytes=3000, bucket_bytes=2048))
    assert len(result.rows.splits) > 4
    assert identity(out) == before
    assert left(out) == stayed
    assert list(verify(Location.of(str(out)))) == []


def test_rows_in_another_order_are_another_cut_though_all_else_is_equal(tmp_path, rows):
    """The same number of rows, splits and row groups, and the same content, but row keys are of other rows."""
    write_jsonl(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out"
    run(recipe_of(tmp_path, out))
    old, stayed = stage(out, "ingest").manifest, left(out)
    write_jsonl(tmp_path / "in.jsonl", rows[::-1])
    run(recipe_of(tmp_path, out))
    new = stage(out, "ingest").manifest
    assert (new.content_digest, [part.row_groups for part in new.parts]) == (
        old.content_digest, [part.row_groups for part in old.parts],
    )  # fmt: skip
    assert new.cut != old.cut
    assert stage(out, "exact_hits").manifest.base == new.cut
    assert left(out) == stayed
    assert list(verify(Location.of(str(out)))) == []


def test_which_of_two_rows_of_one_id_stays_does_not_follow_the_cut(tmp_path):
    """Copies of one id that differ in their metadata, without exact dedup before near."""
    text = "a text that stands here twice with another licence each time it is told to anybody at all"
    copies = [row(1, text, "yes") | {"model": model} for model in ("one", "two")]
    kept = []
    for number, found in enumerate((copies, copies[::-1])):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_jsonl(folder / "in.jsonl", found)
        recipe = make_recipe(
            folder / "out", {"toy": folder / "in.jsonl"}, stages=["dedup"], dedup={"exact": None, "near": NEAR}
        )
        result = run(recipe)
        alive = [
            item
            for split in result.rows.splits
            for batch in result.rows.ref.read(split, ["meta_json", "verdict"])
            for item in batch.to_pylist()
            if item["verdict"] is None
        ]
        kept += [item["meta_json"] for item in alive]
    assert len(kept) == 2
    assert kept[0] == kept[1]


def test_renamed_files_leave_all_but_the_places_that_rows_were_read_at(tmp_path, rows):
    write_jsonl(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out"
    run(recipe_of(tmp_path, out))
    before = {item["id"]: item for item in read(stage(out, "dropped"))}
    (tmp_path / "in.jsonl").rename(tmp_path / "other.jsonl")
    plan = {one.stage: one.action for one in plan_recipe(recipe_of(tmp_path, out)).stages}
    assert (plan["ingest"], plan["dropped"]) == ("run", "check")
    run(recipe_of(tmp_path, out), IdleEngineBut({"ingest", "dropped"}))
    after = {item["id"]: item for item in read(stage(out, "dropped"))}
    assert {key: item | {"file": "in.jsonl"} for key, item in after.items()} == before
    assert {item["file"] for item in after.values()} == {"other.jsonl"}


def as_one_piece(split):
    """A planned split as it was when it could have no more than a piece of one file."""
    (piece,) = split["input"]["pieces"]
    return {**split, "input": {"source": split["input"]["source"], **piece}}


@pytest.mark.parametrize("cutting", [{"split_bytes": 4096}, {"split_bytes": None}, {"split_bytes": 5000}])
def test_a_plan_from_when_a_split_was_one_piece_is_resumed_in_its_own_cut(tmp_path, monkeypatch, cutting):
    write_jsonl(tmp_path / "in" / "a.jsonl", plain_rows(40))
    write_parquet(tmp_path / "in" / "b.parquet", plain_rows(30, 1, 100))
    write_jsonl(tmp_path / "in" / "c.jsonl", [])
    out = tmp_path / "out"

    def of(folder, cutting):
        return make_recipe(folder, {"toy": tmp_path / "in"}, stages=["tokenize"], run=cutting)

    whole = run(of(tmp_path / "whole", cutting))
    to_plan = ingest.Raw.to_plan
    with monkeypatch.context() as old:
        old.setattr(ingest.Raw, "to_plan", lambda *of: as_one_piece(to_plan(*of)))
        with pytest.raises(KilledError):
            run(of(out, {"split_bytes": 4096}), DyingEngine(2))
    plan = out / "ingest" / "_plan.json"
    tree = json.loads(plan.read_text())
    assert "pieces" not in tree["splits"][0]["input"]
    assert plan_recipe(of(out, cutting)).stages[0].reasons == (f"2 of {len(tree['splits'])} splits are done",)
    result = run(of(out, cutting))
    assert len(result.rows.splits) == len(tree["splits"]) > 4
    digests = [dataset.result().manifest.content_digest for dataset in result.rows.datasets]
    assert digests == [dataset.result().manifest.content_digest for dataset in whole.rows.datasets]
    assert json.loads(plan.read_text()) == tree


def test_an_output_of_an_earlier_version_is_planned_by_that_and_run_again_from_ingest_alone(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "in.jsonl", plain_rows(20))
    out = tmp_path / "out"
    recipe = make_recipe(out, {"toy": tmp_path / "in.jsonl"}, stages=["filter"], filter={"steps": [{"kind": "answer"}]})
    with monkeypatch.context() as old:
        old.setattr(ingest, "INGEST_VERSION", 2)
        run(recipe)
    plan = out / "ingest" / "_plan.json"
    tree = json.loads(plan.read_text())
    tree["splits"] = [as_one_piece(split) for split in tree["splits"]]
    for split in tree["splits"]:
        # It reported neither of these.
        del split["input"]["file"]["table"], split["input"]["file"]["first_row"]
    plan.write_text(json.dumps(tree))
    planned = {one.stage: one for one in plan_recipe(recipe).stages}
    assert planned["ingest"].reasons == (f"version: 2 -> {ingest.INGEST_VERSION}",)
    assert planned["filter"].action == "check"
    run(recipe, IdleEngineBut({"ingest", "dropped"}))
    assert {one.action for one in plan_recipe(recipe).stages} == {"keep"}
