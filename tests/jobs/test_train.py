"""`stillhouse train`, from a corpus that a run laid out to a student."""

import json

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from tests.etl.stages.toys import make_recipe, mixed_rows, run, write_parquet

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

# Ids of Harmony reach 200,012, so the head stays whole; everything else is small.
SMALL = ["stages.0.tokens=600", "model.params.layers=1", "model.params.hidden=8", "model.params.intermediate=8",
         "data.pack_tokens=256", "evaluate.every_tokens=10000"]  # fmt: skip


def test_misspelt_key_is_named_with_the_nearest_before_any_work(tmp_path):
    result = CliRunner().invoke(app, ["train", "conf/training/demo.yaml", "--set", f"outputt={tmp_path / 'student'}"])
    assert result.exit_code == 2
    assert "unknown key 'outputt'; did you mean 'output'?" in result.output
    assert not (tmp_path / "student").exists()


def test_trains_on_a_corpus_that_the_layout_wrote(tmp_path):
    source = write_parquet(tmp_path / "in.parquet", mixed_rows(200))
    layout = {"validation_fraction": 0.1}
    run(make_recipe(tmp_path / "out", {"toy": source}, stages=["tokenize", "layout"], layout=layout))
    sets = [f"data.corpus={tmp_path / 'out' / 'corpus'}", f"output={tmp_path / 'student'}", *SMALL]
    words = [word for item in sets for word in ("--set", item)]
    done = CliRunner().invoke(app, ["train", "conf/training/demo.yaml", "--json", *words])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["steps"], result["complete"]) == (3, True)
    records = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3]
    assert all(record["tokens_per_s"] > 0 for record in records if "loss" in record)
    assert [record["step"] for record in records if "held_out" in record] == [0, 3]
