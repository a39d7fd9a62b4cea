"""Sources on the Hugging Face hub, on a small server of its protocol: the commit that is read, and what keeps it."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import ConfigError, SourceError
from etl.run.plan import describe, plan_recipe
from etl.run.recipe import Recipe
from etl.run.revisions import pinned
from etl.run.run import run_recipe
from etl.stages.context import Cutting
from etl.storage.opened import Run
from tests.engines.inprocess import DyingEngine, InProcessEngine, KilledError
from tests.etl.stages.toys import write_parquet
from tests.services.hub import TOKEN, hub_server

NAME = "team/facts"
URL = f"hf://datasets/{NAME}"


def rows_of(start, count):
    return [
        {
            "synth_id": f"s{n}",
            "query": f"What is {n} plus {n}?",
            "synthetic_reasoning": "",
            "synthetic_answer": f"{2 * n}",
        }
        for n in range(start, start + count)
    ]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with hub_server() as server:
        yield server


@pytest.fixture
def data(tmp_path):
    """Files of a data set on this disk."""
    folder = tmp_path / "facts"
    (folder / "data").mkdir(parents=True)
    for number in range(3):
        write_parquet(folder / "data" / f"train-{number}.parquet", rows_of(100 * number, 40))
    (folder / "README.md").write_text("facts")
    return folder


def description(tmp_path, **hub):
    """The path of a description that knows where its data set is."""
    tree = {
        "shape": "columns", "example_id": "synth_id", "user": "query", "analysis": "synthetic_reasoning",
        "final": "synthetic_answer", "skill_bucket": "math",
        "hub": {"id": NAME, "files": "data/train-*.parquet", **hub},
    }  # fmt: skip
    place = tmp_path / "facts.yaml"
    place.write_text(json.dumps(tree))
    return str(place)


def recipe_of(tmp_path, hub, out="out", **source):
    source = {"spec": description(tmp_path), **source}
    tree = {"name": "facts", "output": str(tmp_path / out), "sources": {"facts": source}, "stages": []}
    return Recipe.model_validate(tree | {"storage": {"hf": dict(hub.options)}})


def run(recipe, engine=None):
    """The committed `ingest` of a run, and what the run said."""
    said = []
    run_recipe(recipe, engine or InProcessEngine(), said.append)
    return Run.open(recipe.place).dataset("ingest").manifest, said


def test_the_files_of_the_description_are_read_as_those_of_the_disk_are(tmp_path, hub, data):
    commit = hub.put(NAME, data)
    hub.page = 2
    manifest, said = run(recipe_of(tmp_path, hub))
    local, _ = run(recipe_of(tmp_path, hub, "local", path=str(data / "data" / "train-*.parquet")))
    assert manifest.content_digest == local.content_digest
    assert manifest.rows_out == 120
    assert manifest.findings["inputs"]["facts"]["hub"] == [f"datasets/{NAME}@{commit}"]
    assert manifest.made_from["sources"]["facts"]["hub"] == [f"datasets/{NAME}@{commit}"]
    assert any(f"datasets/{NAME}@{commit}" in line for line in said)
    assert "HEAD" not in "".join(hub.asked)


def test_a_url_names_revision_and_glob(tmp_path, hub, data):
    first = hub.put(NAME, data)
    hub.datasets[NAME].branches["v1"] = first
    hub.put(NAME, data, **{"data/train-0.parquet": b"no Parquet"})
    manifest, _ = run(recipe_of(tmp_path, hub, path=f"{URL}@v1/data/train-0.parquet"))
    assert manifest.rows_out == 40
    assert manifest.findings["inputs"]["facts"]["hub"] == [f"datasets/{NAME}@{first}"]


def test_a_resumed_run_keeps_its_commit_and_a_new_output_takes_the_newest(tmp_path, hub, data):
    first = hub.put(NAME, data)
    recipe = recipe_of(tmp_path, hub).model_copy(update={"run": Cutting(split_bytes=1024)})
    with pytest.raises(KilledError):
        run_recipe(recipe, DyingEngine(tasks=1), lambda line: None)
    write_parquet(data / "data" / "train-9.parquet", rows_of(900, 40))
    second = hub.put(NAME, data)
    kept, _ = run(recipe)
    assert kept.findings["inputs"]["facts"]["hub"] == [f"datasets/{NAME}@{first}"]
    assert kept.rows_out == 120
    assert {stage.action for stage in plan_recipe(recipe).stages} == {"keep"}
    anew, _ = run(recipe_of(tmp_path, hub, "other"))
    assert anew.findings["inputs"]["facts"]["hub"] == [f"datasets/{NAME}@{second}"]
    assert anew.rows_out == 160


def test_what_is_committed_needs_no_network(tmp_path, hub, data, monkeypatch):
    hub.put(NAME, data)
    recipe = recipe_of(tmp_path, hub)
    _, said = run(recipe)
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plan = plan_recipe(recipe)
    assert {stage.action for stage in plan.stages} == {"keep"}
    assert (plan.inputs[0].files, plan.inputs[0].rows) == (3, 120)
    (source,) = (line for line in said if "120 kept" in line)
    assert source in run(recipe)[1]
    assert hub.asked == []


def test_a_shipped_description_alone_reads_its_trees_and_needs_no_network_again(tmp_path, hub, monkeypatch):
    about = {"lang": "en", "deleted": False, "message_tree_id": "t", "tree_state": "ready_for_export"}
    said = [("t", None, "prompter", "why?", None), ("a", "t", "assistant", "so", 0), ("b", "t", "assistant", "no", 1)]
    rows = [
        {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": rank, **about}
        for name, parent, role, text, rank in said
    ]
    (tmp_path / "oasst2" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "oasst2" / "data" / "train-0.parquet")
    hub.put("OpenAssistant/oasst2", tmp_path / "oasst2")
    recipe = recipe_of(tmp_path, hub, spec="oasst2")
    assert run(recipe)[0].rows_out == 1
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert {stage.action for stage in plan_recipe(recipe).stages} == {"keep"}
    assert hub.asked == []


def test_an_edited_revision_is_read_anew(tmp_path, hub, data):
    hub.put(NAME, data)
    run(recipe_of(tmp_path, hub))
    write_parquet(data / "data" / "train-9.parquet", rows_of(900, 40))
    second = hub.put(NAME, data)
    edited = recipe_of(tmp_path, hub, revision=second)
    shown = "\n".join(describe(plan_recipe(edited)))
    assert f"datasets/{NAME}@{second}" in shown
    assert "sources.facts.hub[0]" in shown
    assert run(edited)[0].rows_out == 160


def test_a_recipe_may_name_the_commits_itself(tmp_path, hub, data):
    first = hub.put(NAME, data)
    hub.put(NAME, data, **{"data/train-0.parquet": b"no Parquet"})
    recipe = recipe_of(tmp_path, hub)
    locked = recipe.model_copy(update={"revisions": {f"{URL}@main": first}})
    assert run(locked)[0].rows_out == 120
    with pytest.raises(ConfigError, match=rf"no source reads {URL}@v2"):
        pinned(recipe.model_copy(update={"revisions": {f"{URL}@v2": first}}))


def test_path_wins(tmp_path, hub, data):
    manifest, _ = run(recipe_of(tmp_path, hub, path=str(data / "data" / "train-0.parquet")))
    assert manifest.rows_out == 40
    assert hub.asked == []


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({}, r"sources\.facts\.path is missing.*team/facts.*HF_TOKEN"),
        ({"path": "hf://datasets/team/nothing@main/x.parquet"}, r"sources\.facts\.path: .*team/nothing.*HF_TOKEN"),
        ({"path": "hf://datasets/x.parquet"}, "hf://datasets/OWNER/NAME@REVISION/GLOB"),
    ],
)
def test_what_the_hub_does_not_show(tmp_path, hub, source, told):
    with pytest.raises(ConfigError, match=told):
        run(recipe_of(tmp_path, hub, **source))
    assert not (tmp_path / "out").exists()


def test_a_gated_data_set_needs_a_token(tmp_path, hub, data):
    hub.put(NAME, data)
    hub.datasets[NAME].gated = True
    recipe = recipe_of(tmp_path, hub)
    with pytest.raises(ConfigError, match="HF_TOKEN") as refused:
        run(recipe)
    wrong = recipe.model_copy(update={"storage": {"hf": {**hub.options, "token": "hf_wrong_and_secret"}}})
    with pytest.raises(ConfigError, match="HF_TOKEN") as wrongly:
        run(wrong)
    assert "secret" not in str(refused.value) + str(wrongly.value)
    right = recipe.model_copy(update={"storage": {"hf": {**hub.options, "token": TOKEN}}})
    assert run(right)[0].rows_out == 120
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)


def test_a_revision_or_file_that_is_not_there(tmp_path, hub, data):
    hub.put(NAME, data)
    with pytest.raises(ConfigError, match="there is no revision 'v7'"):
        run(recipe_of(tmp_path, hub, revision="v7"))
    with pytest.raises(SourceError, match=r"no file .* matches hf://.*nothing"):
        run(recipe_of(tmp_path, hub, path=f"{URL}/nothing/*.parquet"))
    with pytest.raises(SourceError, match=r"no file .* matches hf://"):
        run(recipe_of(tmp_path, hub, path=f"{URL}/data/none.parquet"))


def test_failures_that_pass_are_tried_again(tmp_path, hub, data, monkeypatch):
    hub.put(NAME, data)
    monkeypatch.setattr("etl.storage.retry.FIRST_WAIT_S", 0.01)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.failures += [("/revision/", 503), ("/revision/", 429), ("/tree/", 503), ("/resolve/", 429), ("/cdn/", 500)]
    assert run(recipe_of(tmp_path, hub))[0].rows_out == 120
    assert hub.failures == []


def test_offline_names_the_path(tmp_path, hub, data, monkeypatch):
    hub.put(NAME, data)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"sources\.facts\.path is missing.*team/facts.*HF_HUB_OFFLINE.*--set"):
        run(recipe_of(tmp_path, hub))
    assert hub.asked == []
