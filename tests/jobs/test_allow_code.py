"""`--allow-code`: every command that reads a configuration from a URI refuses code without it, and hands it on."""

import json

import fsspec
import pytest

import training.launch.supervisor
from etl.console import run_app
from jobs import run_beam, run_recipe
from jobs.cli import app

STEP = {"kind": "acme_absent:Mine"}
RECIPE = {
    "name": "far",
    "output": "memory://far/out",
    "sources": {"a": {"spec": "synth", "path": "memory://far/in.parquet"}},
    "stages": ["filter"],
    "filter": {"steps": [STEP]},
}
TRAINING = {
    "data": {"corpus": "memory://far/corpus", "pack_tokens": 64, "batch_tokens": 64},
    "model": {"factory": "a:b", "params": {}},
    "optimizer": {"lr": 0.1},
    "stages": [{"tokens": 1, "arms": [{"objective": STEP}]}],
    "output": "out",
}


def put(name, tree):
    """The URI of a configuration."""
    fsspec.filesystem("memory").pipe_file(f"/far/{name}", json.dumps(tree).encode())
    return f"memory://far/{name}"


@pytest.fixture
def places():
    return {"RECIPE": put("recipe.yaml", RECIPE), "CONF": put("training.yaml", TRAINING)}


def call(words):
    program, *rest = words
    if program == "run_recipe":
        return run_recipe.main(rest)
    if program == "stage":
        return run_recipe.main_of_stage("filter", rest)
    return run_beam.main(rest) if program == "run_beam" else run_app(app, words, "stillhouse")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("run RECIPE --engine spark", "filter.steps.0.kind"),
        ("run RECIPE --engine local", "filter.steps.0.kind"),
        ("run RECIPE --engine beam", "filter.steps.0.kind"),
        ("plan RECIPE", "filter.steps.0.kind"),
        ("adopt RECIPE filter", "filter.steps.0.kind"),
        ("run_recipe --conf RECIPE", "filter.steps.0.kind"),
        ("stage --conf RECIPE", "filter.steps.0.kind"),
        ("run_beam --conf RECIPE", "filter.steps.0.kind"),
        ("train CONF --dry-run", "stages.0.arms.0.objective.kind"),
        ("train CONF", "stages.0.arms.0.objective.kind"),
        ("stream-digest CONF", "stages.0.arms.0.objective.kind"),
        ("decide CONF --segment 1 --kind phase --value {}", "stages.0.arms.0.objective.kind"),
        # It reads only the model, so it runs nothing of a stage.
        ("check-model CONF", "model.factory"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")
def test_a_command_refuses_code_from_a_uri_without_the_flag_alone(places, capsys, line, key):
    words = [places.get(word, word) for word in line.split()]
    assert call(words) == 2
    refused = capsys.readouterr().err
    code, absent = (
        (STEP["kind"], "module acme_absent") if key.endswith("kind") else (TRAINING["model"]["factory"], "'a:b'")
    )
    assert f"{key}: {code} is code from outside the package" in refused
    assert "add --allow-code" in refused
    assert call([*words, "--allow-code"]) == 2
    assert f"{absent} cannot be imported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"stages": ["filter", "acme_absent:Mine"]}, "stages.1"),
        ({"stages": [STEP]}, "stages.0.kind"),
        ({"stages": [{"kind": "filter", "steps": [{"kind": "answer"}, STEP]}]}, "stages.0.steps.1.kind"),
        ({"filter": {"steps": [{"kind": "answer"}], "cuts": [{**STEP, "name": "cut"}]}}, "filter.cuts.0.kind"),
    ],
)
def test_code_is_refused_wherever_it_may_stand(capsys, changes, key):
    good = {"filter": {"steps": [{"kind": "answer"}]}}
    words = ["plan", put("recipe.yaml", RECIPE | good | changes)]
    for flags, said in (([], "is code from outside the package"), (["--allow-code"], "module acme_absent cannot be")):
        assert call([*words, *flags]) == 2
        lines = capsys.readouterr().err.splitlines()[1:]
        assert [(line.split(": ")[0].strip(), said in line) for line in lines] == [(key, True)]


def test_the_ranks_of_a_run_get_the_flag(places, monkeypatch):
    started = []
    monkeypatch.setattr(training.launch.supervisor, "supervise", lambda words, ranks, grace: started.append(words) or 0)
    for flags in ([], ["--allow-code"]):
        assert call(["train", places["CONF"], "--nproc", "2", *flags]) == 0
    assert ["--allow-code" in words for words in started] == [False, True]
