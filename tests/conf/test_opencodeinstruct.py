"""The description of OpenCodeInstruct on rows as the data set has them, and as copies of it have them."""

import json

import pytest

from etl.engines.local import LocalEngine
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.storage.dataset import Dataset


def row(number, score):
    return {
        "id": f"{number:032x}",
        "input": f"Write a function that adds {number} to its argument.",
        "output": f"```python\ndef add(x):\n    return x + {number}\n```",
        "domain": "generic",
        "generation_algorithm": "self-instruct",
        "llm_judgement": json.dumps({"logical_correctness": {"score": 5, "justification": "right"}}),
        "unit_tests": json.dumps([f"\nassert add(1) == {number + 1}\n"]),
        "tests_execution_status": json.dumps(["pass"]),
        "average_test_score": score,
    }


@pytest.mark.parametrize("scores", [("1.0", "0.9", "1"), (1.0, 0.9, 1.0)])
def test_rows_are_answers_in_code_with_their_score(tmp_path, scores):
    place = tmp_path / "train-00000-of-00050.jsonl"
    place.write_text("".join(json.dumps(row(number, score)) + "\n" for number, score in enumerate(scores)))
    tree = {
        "name": "x", "output": str(tmp_path / "out"), "stages": [],
        "sources": {"code": {"spec": "opencodeinstruct", "path": str(place)}},
    }  # fmt: skip
    run_recipe(Recipe.model_validate(tree), LocalEngine(), lambda line: None)
    rows = [row for batch in Dataset.open(f"{tmp_path}/out/ingest").read() for row in batch.to_pylist()]
    assert [found["average_test_score"] for found in rows] == [1.0, 0.9, 1.0]
    assert {found["skill_bucket"] for found in rows} == {"B3"}
    assert [found["source_example_id"] for found in rows] == [f"{number:032x}" for number in range(3)]
    assert [message["role"] for message in rows[0]["messages"]] == ["user", "assistant"]
    kept = json.loads(rows[0]["meta_json"])
    assert set(kept) == {"domain", "generation_algorithm", "llm_judgement", "unit_tests", "tests_execution_status"}
