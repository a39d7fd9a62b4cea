"""A committed dataset as a source: the rows as they were, chosen, cut anywhere; and datasets that are not ours."""

import shutil
import uuid

import pyarrow.parquet as pq
import pytest

from etl.errors import ConfigError, SourceError
from etl.run.recipe import Recipe
from tests.etl.stages.toys import make_recipe, mixed_rows, plain_rows, read, run, stage, write_jsonl

LAYOUT = ["tokenize", "split", "layout"]
PLACES = ("file", "position")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run over two sources whose corpus is kept; do not write to it."""
    folder = tmp_path_factory.mktemp("first")
    sources = {name: write_jsonl(folder / f"{name}.jsonl", mixed_rows(60, seed)) for seed, name in enumerate("ab")}
    run(make_recipe(folder / "out", sources, stages=["dedup", *LAYOUT], dedup={"exact": {}, "near": None}))
    return folder / "out"


def recipe_over(output, sources, stages=(), **more):
    tree = {"name": "toy", "output": str(output), "sources": sources, "stages": list(stages), **more}
    return Recipe.model_validate(tree)


def corpus(output):
    """Rows by id, with the columns of their folders."""
    found = stage(output, "corpus")
    rows = {}
    for part in found.manifest.parts:
        folders = dict(piece.split("=") for piece in part.path.split("/")[:-1])
        for row in pq.read_table(found.part_location(part).path).to_pylist():
            rows[row["id"]] = {**folders, **row}
    return rows


def without(row, *names):
    return {key: value for key, value in row.items() if key not in names}


def test_a_corpus_is_a_source_and_keeps_its_rows(first, tmp_path):
    sources = {name: {"dataset": str(first / "corpus"), "source_dataset": name} for name in "ab"}
    run(recipe_over(tmp_path / "out", sources, LAYOUT, layout={"validation_fraction": 0.15}))
    assert corpus(tmp_path / "out") == corpus(first)
    accounting = stage(tmp_path / "out", "ingest").manifest.accounting
    before = stage(first, "corpus").manifest.accounting
    for name in "ab":
        kept = before[name]["layout"]["kept"]
        assert accounting[name]["ingest"] == {"in": kept, "made": 0, "kept": kept}


def test_without_a_choice_all_rows_are_of_the_source(first, tmp_path):
    run(recipe_over(tmp_path / "out", {"old": {"dataset": str(first / "corpus")}}, LAYOUT))
    rows, expected = corpus(tmp_path / "out"), corpus(first)
    assert {row["source_dataset"] for row in rows.values()} == {"old"}
    names = ("source_dataset", "split")
    assert {key: without(row, *names) for key, row in rows.items()} == {
        key: without(row, *names) for key, row in expected.items()
    }


def test_ingest_is_a_source_with_all_rows_and_their_verdicts(first, tmp_path):
    run(recipe_over(tmp_path / "out", {"a": {"dataset": str(first / "ingest"), "source_dataset": "a"}}))
    before = [row for row in read(stage(first, "ingest")) if row["source_dataset"] == "a"]
    after = read(stage(tmp_path / "out", "ingest"))
    assert [without(row, *PLACES) for row in after] == [without(row, *PLACES) for row in before]
    told = stage(tmp_path / "out", "ingest").manifest.accounting["a"]["ingest"]
    assert told == stage(first, "ingest").manifest.accounting["a"]["ingest"]


def test_any_cut_gives_the_same_rows_and_a_second_run_does_nothing(first, tmp_path):
    digests = set()
    for split_bytes in (1024, 3000, 1 << 30):
        recipe = recipe_over(
            tmp_path / str(split_bytes), {"x": {"dataset": str(first / "corpus")}}, run={"split_bytes": split_bytes}
        )
        run(recipe)
        digests.add((stage(recipe.output, "ingest").manifest.content_digest,
                     stage(recipe.output, "ingest").manifest.fingerprint))  # fmt: skip
        manifest = stage(recipe.output, "ingest").manifest
        run(recipe)
        assert stage(recipe.output, "ingest").manifest == manifest
    assert len(digests) == 1


def test_other_rows_are_another_fingerprint(first, tmp_path):
    run(make_recipe(tmp_path / "more", {"a": write_jsonl(tmp_path / "a.jsonl", plain_rows(5))}))
    found = set()
    for number, folder in enumerate([first / "ingest", tmp_path / "more" / "ingest"]):
        run(recipe_over(tmp_path / str(number), {"x": {"dataset": str(folder)}}))
        found.add(stage(tmp_path / str(number), "ingest").manifest.fingerprint)
    assert len(found) == 2


def test_what_is_no_committed_dataset_of_prompts_is_an_error(first, tmp_path):
    with pytest.raises(SourceError, match="source 'x'"):
        run(recipe_over(tmp_path / "out", {"x": {"dataset": str(tmp_path / "none")}}))
    with pytest.raises(SourceError, match="lacks the columns"):
        run(recipe_over(tmp_path / "out", {"x": {"dataset": str(first / "exact")}}))
    shutil.copytree(first / "corpus", tmp_path / "cut")
    (part, *_) = (tmp_path / "cut").rglob("*.parquet")
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(SourceError, match=part.name):
        run(recipe_over(tmp_path / "out", {"x": {"dataset": str(tmp_path / "cut")}}))
    part.unlink()
    with pytest.raises(SourceError, match=part.name):
        run(recipe_over(tmp_path / "out", {"x": {"dataset": str(tmp_path / "cut")}}))
    (tmp_path / "cut" / "_manifest.json").write_text("{")
    with pytest.raises(SourceError, match="manifest"):
        run(recipe_over(tmp_path / "out", {"x": {"dataset": str(tmp_path / "cut")}}))


def test_what_a_run_measured_may_be_a_field(first, tmp_path):
    fields = {"n_tokens_before": {"type": "int", "column": "n_tokens"}, "speed": "double"}
    run(recipe_over(tmp_path / "out", {"x": {"dataset": str(first / "corpus"), "fields": fields}}))
    measured = {row["id"]: row["n_tokens"] for row in corpus(first).values()}
    for row in read(stage(tmp_path / "out", "ingest")):
        assert (row["n_tokens_before"], row["speed"]) == (measured[str(uuid.UUID(bytes=row["id"]))], None)


def test_a_limit_takes_the_first_rows(first, tmp_path):
    run(recipe_over(tmp_path / "all", {"x": {"dataset": str(first / "corpus")}}))
    run(recipe_over(tmp_path / "some", {"x": {"dataset": str(first / "corpus"), "limit": 7}}))
    assert read(stage(tmp_path / "some", "ingest")) == read(stage(tmp_path / "all", "ingest"))[:7]


def test_a_run_does_not_write_where_it_reads(first):
    with pytest.raises(ConfigError, match=", a folder that the run clears"):
        run(recipe_over(first, {"x": {"dataset": str(first / "corpus")}}, LAYOUT))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"dataset": "x", "spec": "chat"}, "`spec` is for raw rows"),
        ({"dataset": "x", "path": "y"}, "give either `path`"),
        ({"path": "y"}, "`spec` is missing"),
        ({"path": "y", "spec": "chat", "fields": {"a": "int"}}, "list them in the description"),
        ({"path": "y", "spec": "chat", "source_dataset": "a"}, "selects rows of a `dataset`"),
    ],
)
def test_keys_that_do_not_go_together(source, message):
    with pytest.raises(ValueError, match=message):
        recipe_over("out", {"x": source})
