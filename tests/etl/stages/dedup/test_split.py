"""No prompt on both sides, and only where a recipe asks for it."""

import uuid

import pyarrow as pa
import pyarrow.parquet as pq

from etl.mixture.sampling import in_sample, purpose_seed
from tests.etl.stages.toys import make_recipe, read, row, run, stage, text_recipe, verdicts, write_parquet


def corpus_of(tmp_path, rows, stages=("tokenize", "split", "layout")):
    write_parquet(tmp_path / "in.parquet", rows, row_group_size=64)
    source = {"toy": tmp_path / "in.parquet"}
    run(make_recipe(tmp_path / "out", source, stages=list(stages), layout={"validation_fraction": 0.3}))


def corpus_rows(output):
    return pq.read_table(output / "corpus").to_pylist()


def test_no_prompt_stands_on_both_sides(tmp_path):
    rows = [row(n, f"question {n % 40}", f"answer {n}") for n in range(200)]
    corpus_of(tmp_path, rows)
    sides: dict = {}
    for item in corpus_rows(tmp_path / "out"):
        sides.setdefault(item["messages"][0]["content"], set()).add(item["split"])
    assert len(sides) == 40
    assert all(len(found) == 1 for found in sides.values())


def test_a_prompt_in_train_drops_the_validation_rows_and_no_train_row(tmp_path):
    rows = [row(n, f"question {n % 10}", f"answer {n}") for n in range(100)]
    corpus_of(tmp_path, rows)
    out = tmp_path / "out"
    base = {item["id"]: item for item in read(stage(out, "ingest"))}
    keys = pa.array([item["split_key"] for item in base.values()])
    held_out = dict(zip(base, in_sample(keys, purpose_seed("split", 0), 0.3).to_pylist(), strict=True))
    prompts = {key: item["messages"][0]["content"] for key, item in base.items()}
    in_train = {prompts[key] for key in base if not held_out[key]}
    lost = verdicts(out, "split")
    assert set(lost) == {key for key in base if held_out[key] and prompts[key] in in_train}
    for key, (step, reason, value) in lost.items():
        assert (step, reason) == ("split", "prompt_in_train")
        first = min(other for other in base if not held_out[other] and prompts[other] == prompts[key])
        assert value == str(uuid.UUID(bytes=first))


def test_without_the_stage_no_row_is_lost(tmp_path):
    rows = [row(n, f"question {n % 10}", f"answer {n}") for n in range(100)]
    corpus_of(tmp_path, rows, stages=("tokenize", "layout"))
    assert len(corpus_rows(tmp_path / "out")) == 100


def test_rows_without_a_prompt_share_none(tmp_path):
    documents = {"toy": [{"id": f"d{n}", "text": f"a raw document {n}"} for n in range(100)]}
    layout = {"validation_fraction": 0.3}
    run(text_recipe(tmp_path / "out", documents, stages=["tokenize", "split", "layout"], layout=layout))
    assert len(corpus_rows(tmp_path / "out")) == 100
