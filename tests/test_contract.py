"""docs/reference/contract.md against the code: commands and flags, folders and tables, manifest fields, exit codes."""

import importlib
import json
import re
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import typer
import yaml
from typer.testing import CliRunner

from etl.dedup.semantic import EmbedStep
from etl.harmony.step import HarmonyStep
from etl.mixture.buckets import CtxBucketStep
from etl.pipeline import AnyCut, Pipeline
from etl.run.recipe import STAGES, reserved_names
from etl.schema import SCHEMA_VERSION
from etl.stages.context import named_folder
from etl.storage.costs import COSTS, CostSum, DatasetCosts, RunCosts, StageCosts, StoredEstimate, TaskCosts
from etl.storage.dataset import Dataset, is_ours
from etl.storage.manifest import Manifest
from etl.storage.record import RECORD, RunRecord, StageRecord
from jobs.cli import app
from jobs.run_recipe import main_of_stage
from tests.frozen import runs, tables

PROJECT = Path(__file__).resolve().parents[1]
PAGE = (PROJECT / "docs" / "reference" / "contract.md").read_text("utf-8")
WRITTEN_ELSEWHERE = {"turn_groups", "conversations", "turn_hits", "turns", "tables/NAME"}
"""Only a Spark session has tables, only conversations have turns."""


KINDS = [stage.model_fields["kind"].default for stage in STAGES]


def section(title):
    """The text below a heading, up to the next one."""
    (text,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return text


def cells(title):
    """The rows of a section's only table, without its head."""
    rows = [line.strip("|").split("|") for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


# --- commands and jobs ---


def command_lines():
    """The lines of the section's block, as words; brackets are optional flags, an ellipsis is for more."""
    lines = [line.strip() for line in section("Commands").splitlines() if line.startswith("    ")]
    return [re.sub(r"[\[\]…]", " ", line).split() for line in lines]


def commands():
    return typer.main.get_command(app).commands


def flags_of(words):
    """Flag -> the word after it."""
    pairs = zip(words, [*words[1:], ""], strict=True)
    return {word: after for word, after in pairs if word.startswith("--") and word != "--"}


def program_of(words):
    (program,) = [word for word in words if re.match(r"(jobs|training)[./]", word)]
    return program


STILLHOUSE = [words[1:] for words in command_lines() if words[0] == "stillhouse"]
OTHERS = [words for words in command_lines() if words[0] != "stillhouse"]


def test_the_commands_are_those_of_the_command_line():
    assert [words[0] for words in STILLHOUSE] == list(dict.fromkeys(words[0] for words in STILLHOUSE))
    assert {words[0] for words in STILLHOUSE} == set(commands())
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert all(re.search(rf"\b{words[0]}\b", shown.output) for words in STILLHOUSE)


@pytest.mark.parametrize("words", STILLHOUSE, ids=lambda words: words[0])
def test_a_command_takes_what_its_line_says(words):
    parameters = commands()[words[0]].params
    options = {name: item for item in parameters if item.param_type_name == "option" for name in item.opts}
    given = flags_of(words)
    assert set(given) <= set(options)
    for flag, value in given.items():
        kind = options[flag].type_descriptor.annotation
        if get_origin(kind) is Literal:
            assert value.split("|") == list(get_args(kind))
        else:
            assert options[flag].is_flag == (value == "" or value.startswith("--"))
    after = {value for flag, value in given.items() if not options[flag].is_flag}
    positional = [word for word in words[1:] if not word.startswith("--") and word not in after and "=" not in word]
    assert len(positional) == [item.param_type_name for item in parameters].count("argument")


@pytest.mark.parametrize("words", OTHERS, ids=lambda words: program_of(words))
def test_a_job_is_there_and_takes_its_flags(words, capsys):
    program = program_of(words)
    module = program.removesuffix(".py").replace("/", ".")
    assert PROJECT.joinpath(*module.split(".")).with_suffix(".py").exists()
    if module == "training.train":
        return  # It loads torch and DeepSpeed; its flags are those of `stillhouse train`, which hands them on.
    own = words[words.index(program) :]
    flags = flags_of(own[: own.index("--")] if "--" in own else own)
    shown = help_of(module, capsys)
    assert all(flag in shown for flag in flags)


def help_of(module, capsys):
    """What a job prints for --help."""
    if module.startswith("jobs.stage_"):
        assert main_of_stage(module.removeprefix("jobs.stage_"), ["--help"]) == 0
    else:
        assert importlib.import_module(module).main(["--help"]) == 0
    return capsys.readouterr().out


def test_every_stage_has_its_job():
    jobs = {path.stem.removeprefix("stage_") for path in (PROJECT / "jobs").glob("stage_*.py")}
    assert jobs == {"ingest", *KINDS}


def test_the_stages_of_a_recipe_are_named():
    (listed,) = re.findall(r"`stages` are some of (.*?), in an order", section("Recipes"), re.DOTALL)
    assert quoted(listed) == KINDS


def test_the_keys_of_harmony_exist():
    keys = [key for row in cells("Recipes") for key in quoted(row[0])]
    assert len(keys) > 3
    assert {key.removeprefix("harmony.") for key in keys} <= set(HarmonyStep.model_fields)


@pytest.mark.parametrize("title", ["Names", "Sources and skill buckets", "Cuts"])
def test_examples_of_steps_and_cuts_are_read(title):
    (example,) = re.findall(r"(?:^ {4}.*\n)+", section(title), re.MULTILINE)
    tree = yaml.safe_load(example)
    found = Pipeline.model_validate(next(iter(tree.values())) if "cuts" not in tree else tree)
    found.check_sources(["web", "stack"])
    if title == "Names":
        assert found.added.names == re.findall(r"\w+", " ".join(re.findall(r"# (.*)", example)))


def test_every_kind_of_cut_is_listed():
    members = get_args(get_args(AnyCut)[0])
    assert [quoted(row[0]) for row in cells("Cuts")] == [[cut.model_fields["kind"].default] for cut in members]


# --- folders ---


def promised():
    """Folder -> the word of its table and whether it is aligned; a cut's folder is CUT, numbers are left out."""
    found = {}
    for folders, words, _ in cells("Folders below DIR"):
        names = [name.removesuffix("-…") for name in quoted(folders)] or ["CUT"]
        kinds = [
            (word.strip(), "aligned" in part)
            for part in words.split(";")
            for word in part.replace(", aligned", "").split(",")
        ]
        assert len(names) == len(kinds), folders
        found |= dict(zip(names, kinds, strict=True))
    return found


def promised_name(stage, recipe):
    """The folder of the page's table that a stage's dataset is promised under."""
    cuts = [name for one in recipe.stages for name in one.cut_names()]
    if stage in cuts:
        return "CUT"
    names = {named_folder(one.name, folder): folder for one in recipe.stages if one.name for folder in one.tables}
    if stage in names:
        return names[stage]
    if stage.removeprefix("rounds/").rpartition("-")[0] in cuts:
        return "rounds/CUT"
    return re.sub(r"-\d+$", "", stage)


def test_folders_and_tables_are_those_of_the_manifests(tmp_path):
    written = {}
    for name, datasets in tables.stored("runs").items():
        recipe = runs.load(name, tmp_path)
        written |= {promised_name(stage, recipe): found["table"] for stage, found in datasets.items()}
    page = {folder: word for folder, (word, _) in promised().items() if folder not in WRITTEN_ELSEWHERE}
    assert written == page


def test_no_cut_may_be_called_as_a_folder_or_step():
    folders = {name.split("/")[0] for name in promised() if name != "CUT"}
    steps = {cls.model_fields["kind"].default for cls in (HarmonyStep, CtxBucketStep, EmbedStep)}
    assert folders | steps | {"layout"} == reserved_names()


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """A finished run of every stage."""
    folder = tmp_path_factory.mktemp("every_stage")
    runs.run("every_stage", folder)
    return folder


def datasets(output):
    for path in sorted(output.rglob("_manifest.json")):
        yield path.parent.relative_to(output).as_posix(), Dataset.open(str(path.parent))


def test_aligned_tables_repeat_the_parts_and_ids_of_ingest(output):
    def shape(dataset):
        return [(part.split, part.row_groups) for part in dataset.manifest.parts]

    def ids(dataset):
        return [batch.column("id") for batch in dataset.read(["id"])]

    ingest = Dataset.open(f"{output}/ingest")
    recipe = runs.load("every_stage", output)
    for folder, dataset in datasets(output):
        _, is_aligned = promised()[promised_name(folder, recipe)]
        if is_aligned:
            assert shape(dataset) == shape(ingest), folder
            assert ids(dataset) == ids(ingest), folder
            assert "verdict" in dataset.schema.names, folder


def test_parts_say_what_they_are(output):
    for folder, dataset in datasets(output):
        for part in dataset.manifest.parts if folder != "kenlm" else ():
            with dataset.part_location(part).open_parquet() as file:
                said = file.schema_arrow.metadata
            assert said[b"stillhouse.table"].decode() == dataset.manifest.table
            assert said[b"stillhouse.build"].decode() == dataset.manifest.receipts
            assert int(said[b"stillhouse.schema"]) == SCHEMA_VERSION


def test_names_with_an_underscore_are_those_on_the_page(output):
    ours = {path.name for path in output.rglob("*") if path.name.startswith("_")}
    assert ours <= {name.rstrip("/") for name in re.findall(r"`(_\w+(?:\.json)?/?)`", PAGE)}
    parts = [path.relative_to(output).as_posix() for path in output.rglob("*.parquet")]
    assert not any(is_ours(path) for path in parts)


def test_the_fields_of_a_manifest_are_on_the_page(output):
    named = [name for row in cells("`_manifest.json`") for name in quoted(row[0])]
    assert sorted(named) == sorted(Manifest.model_fields)
    assert sorted(json.loads((output / "corpus" / "_manifest.json").read_bytes())) == sorted(named)


def test_the_fields_of_a_run_s_record_are_on_the_page(output):
    rows = cells("`_run.json`")
    assert sorted(quoted(name)[0] for name, _ in rows) == sorted(RunRecord.model_fields)
    (stages,) = [meaning for name, meaning in rows if quoted(name) == ["stages"]]
    assert set(StageRecord.model_fields) <= set(quoted(stages))
    assert sorted(json.loads((output / RECORD).read_bytes())) == sorted(RunRecord.model_fields)


def test_the_fields_of_costs_are_on_the_page(output):
    text = section("`_costs.json`")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    named = {name for row in rows if len(row) == 2 for name in quoted(row[0])}
    assert named == set(RunCosts.model_fields)
    assert {name for row in rows if len(row) == 3 for name in quoted(row[0])} == set(CostSum.model_fields)
    (stages,) = [row[1] for row in rows if quoted(row[0]) == ["stages"]]
    assert set(quoted(stages)) == set(StageCosts.model_fields)
    assert {*DatasetCosts.model_fields, *TaskCosts.model_fields, *StoredEstimate.model_fields} <= set(quoted(text))
    assert sorted(json.loads((output / COSTS).read_bytes())) == sorted(named)


def test_the_columns_of_the_corpus_are_there(output):
    named = [name for row in cells("Corpus rows") for name in quoted(row[0])]
    assert set(named) <= set(Dataset.open(f"{output}/corpus").schema.names)


# --- exit codes ---


def test_exit_codes(output, tmp_path):
    runner = CliRunner()
    done = runner.invoke(app, ["verify", str(output)])
    assert (done.exit_code, done.stderr) == (0, "")

    stray = output / "corpus" / "part-stray.parquet"
    stray.write_bytes(b"PAR1")
    done = runner.invoke(app, ["verify", str(output)])
    stray.unlink()
    assert done.exit_code == 1
    assert "part-stray.parquet" in done.stdout

    wrong = ["plan", "demo", "--set", f"output={tmp_path}", "--set", "harmony.reasoning_efort=high"]
    done = runner.invoke(app, wrong)
    assert done.exit_code == 2
    assert "did you mean 'reasoning_effort'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
