"""Commands on a data set of the hub, as a user gives them: only a name, a token and an address in the environment."""

import json
import os
import subprocess
import sys

import fsspec
import pytest

from etl.sources.probe import probe
from tests.etl.stages.toys import mixed_rows, write_parquet
from tests.jobs.test_cli import call
from tests.services.hub import TOKEN, hub_server


@pytest.fixture
def hub(tmp_path):
    """PleIAs/SYNTH, gated, with two files of toy rows and one that its description does not name."""
    for number in range(2):
        write_parquet(tmp_path / "hub" / f"synth_{number}.parquet", mixed_rows(20)[number::2])
    write_parquet(tmp_path / "hub" / "other.parquet", mixed_rows(5))
    with hub_server() as server:
        server.put("PleIAs/SYNTH", tmp_path / "hub")
        server.datasets["PleIAs/SYNTH"].gated = True
        yield server


def stillhouse(*words, **environment):
    command = [sys.executable, "-c", "import sys; from jobs.start import main; sys.exit(main())", *words]
    cleared = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    return subprocess.run(command, env=cleared | environment, capture_output=True, text=True, check=False)


def test_ingest_needs_no_path(tmp_path, hub):
    ended = stillhouse("ingest", "synth", "--output", str(tmp_path / "out"), HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["rows_in"] == 20
    assert "datasets/PleIAs/SYNTH@" in ended.stderr
    assert TOKEN not in ended.stderr


def test_offline_the_exit_code_is_2_and_the_error_names_path_and_data_set(tmp_path, hub):
    ended = stillhouse(
        "ingest", "synth", "--output", str(tmp_path / "out"), HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="1"
    )
    assert ended.returncode == 2
    assert "sources.synth.path is missing" in ended.stderr
    assert "PleIAs/SYNTH" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert hub.asked == []


def test_probe_looks_at_one_commit(tmp_path, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setitem(fsspec.config.conf, "hf", {**hub.options, "token": TOKEN})
    found = probe("hf://datasets/PleIAs/SYNTH/synth_*.parquet", rows=10)
    local = probe(f"{tmp_path}/hub/synth_*.parquet", rows=10)
    assert (found.best.tree, found.check) == (local.best.tree, local.check)
    assert [file.relative for file in found.files] == ["synth_0.parquet", "synth_1.parquet"]
    commit = hub.datasets["PleIAs/SYNTH"].branches["main"]
    assert all(commit in asked for asked in hub.asked if "/tree/" in asked or "/resolve/" in asked)


def test_lists_show_what_is_on_the_hub():
    lines = call("sources").stdout.splitlines()
    assert [line.split()[1] for line in lines if "/" in line.split()[1]] == [
        "OpenAssistant/oasst2",
        "nvidia/OpenCodeInstruct",
        "PleIAs/SYNTH",
    ]
    found = json.loads(call("describe", "synth", "--json").stdout)
    assert found["sources"]["hub"] == "PleIAs/SYNTH train"
    assert "on the Hugging Face hub: PleIAs/SYNTH train" in call("describe", "synth").stdout
