"""What a recipe refuses before anything runs, in words that name the value and the remedy."""

import pytest
from pydantic import ValidationError

from etl.errors import SchemaError
from etl.run.recipe import Recipe, reserved_names
from etl.run.run import check
from etl.stages.context import Cutting
from etl.stages.kenlm import Kenlm
from etl.stages.layout import Layout
from tests.etl.stages.toys import FILTER, make_recipe, scores
from tests.frozen import runs

PERPLEXITY = {"steps": [{"kind": "perplexity", "model": "run:kenlm"}]}


def recipe(output="out", sources=None, **sections):
    return make_recipe(output, sources or {"a": "a.jsonl"}, **sections)


def test_a_small_recipe_is_complete_with_defaults():
    found = recipe(stages=["dedup", "tokenize", "layout"])
    assert (found.name, found.output) == ("toy", "out")
    assert found.labels == ("ingest", "dedup", "tokenize", "layout")
    assert found.stages[0].exact is not None
    assert found.stages[0].near is not None


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (["filter"], "stages lists 'filter', but its section `filter:` is missing"),
        (["score"], "stages lists 'score', but its section `score:` is missing"),
        (["dedup", "dedup"], r"stages lists \['dedup'\] more than once"),
        (["tokenize", "layout", "split"], r"\['layout'\] must come last"),
        (["tokenise"], "tokenise|stages.0"),
    ],
)
def test_stages_that_make_no_sense_are_refused(stages, message):
    with pytest.raises(ValidationError, match=message):
        recipe(stages=stages)


@pytest.mark.parametrize("stages", [["score"], ["score", "kenlm"]])
def test_the_model_of_the_run_is_trained_before_it_is_used(stages):
    with pytest.raises(ValidationError, match="stages must list 'kenlm' before 'score'"):
        recipe(stages=stages, score=PERPLEXITY)
    recipe(stages=["kenlm", "score"], score=PERPLEXITY)
    recipe(stages=["filter"], filter=FILTER, score=PERPLEXITY)


def test_the_corpus_is_written_from_tokens():
    with pytest.raises(SchemaError, match=r"'layout' needs the columns \['input_ids', 'ctx_bucket'\]; list 'tok"):
        check(recipe(stages=["dedup", "layout"]))


@pytest.mark.parametrize("name", ["near", "corpus", "embeddings", "sentence_hits"])
def test_a_cut_is_not_called_like_a_folder_of_the_run(name):
    assert name in reserved_names()
    cut = FILTER["cuts"][0] | {"name": name}
    with pytest.raises(ValidationError, match=rf"cuts are named \['{name}'\].*give them other names"):
        recipe(stages=["filter"], filter=FILTER | {"cuts": [cut]})


@pytest.mark.parametrize("name", ["ingest", "quarantine", "near", "exact"])
def test_a_step_is_not_called_like_one_of_another_stage(name):
    named = {"steps": [{"kind": "answer", "name": name}]}
    with pytest.raises(ValidationError, match=rf"the steps \['{name}'\] more than once; accounting is by step"):
        recipe(stages=["dedup", "filter"], filter=named)


def test_filter_and_score_have_no_name_in_common():
    score = scores("model")
    with pytest.raises(ValidationError, match=r"the steps \['perplexity', 'strange'\] more than once"):
        recipe(stages=["filter", "score"], filter=score, score=score)


def test_a_priority_of_an_unknown_source_is_refused():
    with pytest.raises(
        ValidationError, match=r"dedup.survivor.sources names \['c'\]; the recipe's sources are \['a', 'b'\]"
    ):
        recipe(sources={"a": "a.jsonl", "b": "b.jsonl"}, stages=["dedup"], dedup={"survivor": {"sources": ["a", "c"]}})


def test_each_kind_of_unit_is_listed_once():
    with pytest.raises(ValidationError, match=r"units lists \['line'\] more than once"):
        recipe(dedup={"units": [{"unit": "line"}, {"unit": "sentence"}, {"unit": "line", "min_words": 4}]})


@pytest.mark.parametrize(
    ("model", "field", "bad"),
    [
        (Kenlm, "order", 6),
        (Kenlm, "fraction", 0),
        (Layout, "validation_fraction", 1),
        (Layout, "target_bytes", 1000),
        (Cutting, "split_bytes", 0),
        (Cutting, "max_component_edges", 1 << 30),
    ],
)
def test_numbers_out_of_range_are_refused(model, field, bad):
    with pytest.raises(ValidationError, match=field):
        model.model_validate({field: bad})


def test_where_things_lie_and_how_work_is_cut_enter_no_fingerprint():
    one = recipe("here", stages=["tokenize", "layout"], run={"split_bytes": 4096})
    other = recipe("there", stages=["tokenize", "layout"], run={"split_bytes": 8192}, single_writer=True)
    assert one.fingerprinted() == other.fingerprinted()
    assert "target_bytes" not in Layout(target_bytes=1 << 20).fingerprinted()
    assert Layout(seed=1).fingerprinted() != Layout(seed=2).fingerprinted()


def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(ValidationError) as caught:
        recipe("s3://name:secret@bucket/out")
    assert "secret" not in str(caught.value)


def test_storage_of_an_unknown_scheme_is_refused_without_its_values():
    with pytest.raises(ValidationError) as caught:
        recipe(storage={"s4": {"key": "secret"}})
    assert "s4" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_options_of_storage_do_not_show_when_a_recipe_is_printed():
    found = recipe("s3://bucket/out", storage={"s3": {"key": "secret"}})
    assert "secret" not in repr(found)
    assert found.place.single_writer is False


def test_a_recipe_without_sources_is_refused():
    with pytest.raises(ValidationError, match="sources"):
        Recipe.model_validate({"name": "x", "output": "out", "sources": {}, "stages": []})


@pytest.mark.parametrize("part", ["harmony", "ctx"])
def test_the_corpus_has_tokens_of_every_row(part):
    limited = {part: {"skill_buckets": ["B1"]}}
    with pytest.raises(ValidationError, match=f"{part} cannot be limited to sources or skill_buckets, as the corpus"):
        recipe(stages=["tokenize"], **limited)
    found = recipe(stages=[{"kind": "tokenize"}, {"kind": "tokenize", "name": "short", **limited}])
    assert found.stages[1].step_labels() == ("short", "short-ctx_bucket")


@pytest.mark.parametrize("of", ["steps", "cuts"])
def test_a_selected_source_is_one_of_the_recipe(of):
    limited = {**FILTER, of: [{**FILTER[of][0], "sources": ["wbe"]}]}
    with pytest.raises(ValidationError, match="there is no source 'wbe'; did you mean 'web'"):
        recipe(sources={"web": "a.jsonl", "books": "b.jsonl"}, stages=["filter"], filter=limited)


@pytest.mark.parametrize("name", runs.SETTINGS)
def test_both_spellings_make_the_same_stages(tmp_path, name):
    read = runs.load(name, tmp_path)
    written_out = read.model_dump(mode="json", exclude_unset=True)
    assert all(isinstance(stage, dict) for stage in written_out["stages"])
    assert Recipe.model_validate(written_out).stages == read.stages


def test_a_section_is_read_by_the_kind_that_is_listed_alone():
    found = recipe(stages=["dedup", {"kind": "dedup", "name": "late"}], dedup={"exact": None})
    assert [stage.exact is None for stage in found.stages] == [True, False]
    # A stage that is not listed at all does not run, whatever its section says.
    assert recipe(stages=["tokenize"], dedup={"exact": None}).labels == ("ingest", "tokenize")
