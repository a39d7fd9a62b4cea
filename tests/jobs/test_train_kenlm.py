"""The job end to end on a toy dataset, and what it says when it cannot work."""

import pyarrow as pa
import pytest
import yaml

from etl.schema import PROMPT
from etl.scoring.perplexity import PerplexityStep
from jobs.train_kenlm import main
from tests.datasets import write_dataset
from tests.etl.rows import asked, conversations

SENTENCES = [asked(f"Who saw the {animal}?", f"The {animal} was seen by Ann.") for animal in ("cat", "dog", "hen")] * 4


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    batch = conversations(SENTENCES).drop_columns(["verdict"])
    columns = {field.name: pa.array(["x"] * len(batch), field.type) for field in PROMPT if field.type == pa.string()}
    columns["position"] = pa.array(range(len(batch)), pa.int64())
    made = {**columns, "id": batch["id"], "messages": batch["messages"]}
    arrays = [made[field.name] if field.name in made else pa.nulls(len(batch), field.type) for field in PROMPT]
    table = pa.table(arrays, schema=PROMPT)
    write_dataset(
        str(tmp_path / "ingest"), "ingest", "PROMPT", {"part-0.parquet": table[:7], "part-1.parquet": table[7:]}
    )
    return tmp_path / "ingest"


def test_the_printed_step_scores_with_the_model(dataset, tmp_path, capsys):
    output = tmp_path / "models" / "toy.kenlm"
    arguments = ["--dataset", str(dataset), "--output", str(output), "--order", "2", "--fraction", "1", "--seed", "3"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "kaldingram" in printed.err
    (fields,) = yaml.safe_load(printed.out)
    step = PerplexityStep(**fields)
    batch = step.open()(conversations(SENTENCES[:1]))
    assert batch.column("perplexity")[0].as_py() < 10
    assert batch.column("in_kenlm_sample").to_pylist() == [True]
    written = output.read_bytes()
    assert main(arguments) == 0
    assert output.read_bytes() == written


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--fraction", "0"], "--fraction 0.0"),
        (["--fraction", "1.5"], "--fraction 1.5"),
        (["--seed", "-1"], "--seed -1"),
        (["--fraction", "1e-9"], "no words"),
        (["--fraction", "1", "--max-words", "5"], "lmplz"),
        (["--fraction", "1", "--order", "9"], "order 9"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(dataset, tmp_path, capsys, options, says):
    assert main(["--dataset", str(dataset), "--output", str(tmp_path / "model"), *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_folder_without_a_manifest_is_refused(tmp_path, capsys):
    assert main(["--dataset", str(tmp_path), "--output", str(tmp_path / "model")]) == 2
    assert "not a committed dataset" in capsys.readouterr().err
