"""`stillhouse probe`: what it prints, and that the YAML which it prints runs as it is."""

import gzip
import json
import re

import pytest
from typer.testing import CliRunner

from etl import conf
from etl.run.recipe import Recipe
from etl.sources.formats.endings import format_of
from etl.sources.probe import probe
from jobs.cli import app
from tests.etl.sources.public_rows import PUBLIC_ROWS, TALK
from tests.etl.stages.toys import read, stage


def call(*arguments):
    result = CliRunner().invoke(app, [str(item) for item in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def numbered(row, count=6):
    """Rows that differ from each other."""
    return [json.loads(json.dumps(row, ensure_ascii=False).replace("blue", f"blue {n}")) for n in range(count)]


def files_of(printed):
    """File name -> text of the YAML that is printed."""
    pieces = re.split(r"^# (\w+\.yaml)$", printed, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


# --- the YAML -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["thinking_column", "chatml", "fineweb", "no_robots"])
def test_what_is_printed_runs_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    row = PUBLIC_ROWS[name][1]
    jsonl(tmp_path / "a b#%.jsonl", numbered({**row, "text": row["text"] + " blue"} if name == "fineweb" else row))
    printed = call("probe", "a b#%.jsonl")
    assert printed.exit_code == 0, printed.output
    for file, text in files_of(printed.stdout).items():
        (tmp_path / file).write_text(text, "utf-8")
    ran = call("run", "recipe.yaml", "--engine", "local", "--processes", "1", "--set", "dedup.near=null")
    assert ran.exit_code == 0, ran.output
    assert len(read(stage(tmp_path / "mine_corpus", "corpus"))) == 6


def test_output_writes_the_files_and_replaces_none(tmp_path):
    data = jsonl(tmp_path / "x.jsonl", [{"question": f"{n}?", "answer": "because"} for n in range(3)])
    assert call("probe", data, "--output", tmp_path / "new").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["mine.yaml", "recipe.yaml"]
    recipe = conf.load(Recipe, str(tmp_path / "new" / "recipe.yaml"), "recipes", [])
    assert recipe.sources["mine"].shape().shape == "columns"
    again = call("probe", data, "--output", tmp_path / "new")
    assert again.exit_code == 2
    assert "mine.yaml" in again.stderr


def test_a_shipped_description_is_named_and_not_written_out(tmp_path):
    data = jsonl(tmp_path / "x.jsonl", [{"messages": TALK}])
    files = files_of(call("probe", data).stdout)
    assert list(files) == ["recipe.yaml"]
    assert "spec: chat" in files["recipe.yaml"]


def test_prompts_are_not_sent_to_a_stage_that_would_lose_them(tmp_path):
    data = jsonl(tmp_path / "x.jsonl", [{"prompt": f"What is {n}?"} for n in range(3)])
    printed = call("probe", data).stdout
    assert "no answers" in printed
    assert "stages: [dedup]" in files_of(printed)["recipe.yaml"]


# --- what is said ---------------------------------------------------------------------------------------------------


def test_everything_about_the_files_is_said(tmp_path):
    rows = [{"question": f"{n}?", "answer": "because" if n else " ", "url": "http://a"} for n in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in rows) + "{no json}\n"
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "d" / "y.csv").write_text("question,answer,url\n9?,so,http://b\n")
    (tmp_path / "d" / "notes.docx").write_text("")
    found = call("probe", tmp_path / "d")
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    start = len(text.encode()) - len("{no json}\n")
    for line in (
        f"jsonl, gzip: x.jsonl.gz, {(tmp_path / 'd' / 'x.jsonl.gz').stat().st_size} bytes",
        "csv: y.csv, 35 bytes",
        "1 skipped (unknown ending): notes.docx",
        "  question  string  '9?'",
        "  assistant final       because",
        "of the first 7 rows 5 are kept",
        "  1 left out: blank_answer, first at x.jsonl.gz, position 0",
        "kept only in meta_json: url",
        "columns not used: none",
    ):
        assert line in lines, found.stdout
    (rejected,) = [line for line in lines if "rejected" in line]
    assert rejected.startswith(f"  1 rejected: invalid_json, first at x.jsonl.gz, position {start}: ")


def test_files_of_another_kind_are_named_and_left_out_of_the_recipe(tmp_path):
    jsonl(tmp_path / "a.jsonl", [{"question": f"{n}?", "answer": "because"} for n in range(3)])
    jsonl(tmp_path / "b.jsonl", [{"messages": TALK}])
    printed = call("probe", tmp_path).stdout
    assert "not described below: b.jsonl (messages from messages: 1 of 1 rows)" in printed
    assert f"path: {tmp_path / 'a.jsonl'}" in files_of(printed)["recipe.yaml"]


def test_a_dataset_of_ours_is_known_as_one(tmp_path):
    jsonl(tmp_path / "x.jsonl", [{"messages": TALK}])
    (tmp_path / "_manifest.json").write_text("{}")
    assert "a committed dataset: `dataset: PATH`" in call("probe", tmp_path).stdout


def test_json_is_for_scripts(tmp_path):
    data = jsonl(tmp_path / "x.jsonl", [{"question": f"{n}?", "answer": "because"} for n in range(3)])
    found = json.loads(call("probe", data, "--json").stdout)
    assert (found["rows"], found["kept"], found["rejected"]) == (3, 3, [])
    assert found["columns"] == [{"name": "question", "type": "string"}, {"name": "answer", "type": "string"}]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"a": 1, "b": 2}], "no shape fits the columns a (int), b (int)"),
        ([[{"role": "user", "content": "a?"}]] * 2, "not_an_object: list<object {role, content}>"),
        ([], "files without any row"),
    ],
)
def test_where_nothing_fits_one_line_says_what_was_found(tmp_path, rows, said):
    found = call("probe", jsonl(tmp_path / "x.jsonl", rows))
    assert found.exit_code == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("SourceError: ")
    assert said in line


def test_where_there_is_no_file_the_exit_code_is_2(tmp_path):
    found = call("probe", tmp_path / "*.jsonl")
    assert found.exit_code == 2
    assert "check the path" in found.stderr


def test_text_cannot_command_the_terminal(tmp_path):
    data = jsonl(tmp_path / "x.jsonl", [{"question": "\x1b[2J?", "answer": "a\nb", "\x1b]0;": "c"}])
    printed = call("probe", data).stdout
    assert "\x1b" not in printed


# --- real files -----------------------------------------------------------------------------------------------------

EXCEPTIONS = {
    "alpaca_libre/alpaca_libre_tasks_v1.jsonl.gz": "a tenth of its answers is blank",
    "bench_corpus/corpus.parquet": "90 MB",
    "bench_corpus/exact_pairs.parquet": "numbers of pairs, no text",
    "bench_corpus/injected_pairs.parquet": "numbers of pairs, no text",
    "competition_math/contamination_truth.jsonl.gz": "numbers of rows, no text",
    "dedup_articles/articles_1000_truth.jsonl.gz": "names of pairs, no text",
    "dedup_licences/pairs_jaccard_ge_0.5.jsonl.gz": "names of pairs, no text",
    "field_cases/deep/a.jsonl": "one of two rows is nested too deep",
    "field_cases/empty_answers.jsonl": "its answers are blank",
    "field_cases/zst_cut/a.jsonl.zst": "cut short",
    "field_cases/zst_plain/a.jsonl.zst": "damaged",
    "llamafactory_demos/kto_en_demo.jsonl.gz": "half of its answers are labelled as bad",
    "native_samples/openai_list_rows.jsonl": "a row is a list, no object",
}
"""File -> why less than 95 % of its rows are kept."""


def test_every_real_file_gets_a_description_that_keeps_its_rows(shared_data):
    poor = {}
    for path in sorted(shared_data.rglob("*")):
        name = path.relative_to(shared_data).as_posix()
        if not path.is_file() or format_of(name) is None or name in EXCEPTIONS:
            continue
        check = probe(str(path), rows=1000).check
        if check.kept < 0.95 * check.rows or not check.rows:
            poor[name] = check
    assert poor == {}
