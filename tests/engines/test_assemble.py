"""Rows of several rows on every engine: the digests of 1 split and of several, of trees, a join, and turns."""

import contextlib
import random

import pytest

from etl.run.recipe import Recipe
from etl.storage.manifest import accounting_gaps
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages import toyforum
from tests.etl.stages.toys import ENGLISH, run, sentence, stage

JOIN = """
shape: columns
assemble: {kind: join, tables: {taco: [{column: question}]}}
example_id: id
user: question
final: answer
skill_bucket: code
"""
TURNS = 12


def chat(seed):
    rng = random.Random(seed)
    return [{"role": role, "content": sentence(rng, ENGLISH, 20)} for role in ("user", "assistant") * TURNS]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assemble")
    (folder / "join.yaml").write_text(JOIN)
    coded = [
        {
            "id": str(n),
            "question": "-",
            "dataset": "taco",
            "split": "train",
            "index": str(n % 7),
            "answer": f"It is {n}.",
        }
        for n in range(40)
    ]
    toyforum.write(folder / "taco.jsonl", [{"question": f"What is {n}?"} for n in range(7)])
    # One of them comes again, and once more with another last word.
    same = [
        {"messages": [*chat(0)[:-1], {"role": "assistant", "content": chat(0)[-1]["content"] + end}]} for end in " !"
    ]
    chats = [*({"messages": chat(seed)} for seed in range(3)), *same]
    for number in (1, 3):
        for name, rows in (("trees", toyforum.flat_rows()), ("coded", coded), ("chats", chats)):
            random.Random(number).shuffle(rows)
            for place in range(number):
                toyforum.write(folder / f"{number}/{name}/{place}.jsonl", rows[place::number])
    return folder


def digests(folder, number, output, engine):
    tree = {
        "name": "toy",
        "output": str(output),
        "stages": ["dedup", "tokenize", "layout"],
        "run": {"split_bytes": 4096, "bucket_bytes": 1 << (20 if number == 1 else 12)},
        "sources": {
            "trees": {"spec": "oasst_tree", "path": f"{folder}/{number}/trees", "take": "both"},
            "coded": {
                "spec": f"{folder}/join.yaml",
                "path": f"{folder}/{number}/coded",
                "tables": {"taco/train": f"{folder}/taco.jsonl"},
            },
            "chats": {"spec": f"{folder}/chats.yaml", "path": f"{folder}/{number}/chats", "rows": "turn"},
        },
    }
    (folder / "chats.yaml").write_text("{shape: messages, row_name: content, skill_bucket: chat}\n")
    run(Recipe.model_validate(tree), engine)
    folders = ("exact", "near", "turn_groups", "turn_hits", "turns", "tokenize", "dropped", "corpus")
    names = ("assembled/trees", "assembled/coded", "ingest", *folders)
    return {name: stage(output, name).manifest.content_digest for name in names}


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    return digests(inputs, 1, tmp_path_factory.mktemp("expected"), InProcessEngine())


def test_in_process(inputs, tmp_path, expected):
    assert digests(inputs, 3, tmp_path, InProcessEngine(batch_rows=3, seed=1)) == expected


def test_local(inputs, tmp_path, expected):
    from etl.engines.local import LocalEngine

    with contextlib.closing(LocalEngine(processes=2)) as engine:
        assert digests(inputs, 3, tmp_path, engine) == expected
    found = stage(tmp_path, "corpus").manifest.accounting["chats"]
    assert accounting_gaps({"chats": found}) == []
    assert found["ingest"] == {"in": 5, "made": 60, "assembled": 5, "kept": 60}
    assert found["layout"]["kept"] == 36, "no turn of a conversation that stays is lost"
    assert sum(found[step].get(f"{step}_duplicate", 0) for step in ("exact", "near")) == 24


def test_spark(inputs, tmp_path, expected, spark):
    from etl.engines.spark import SparkEngine

    assert digests(inputs, 3, tmp_path, SparkEngine(session=spark)) == expected


def test_beam(inputs, tmp_path, expected):
    from etl.engines.beam import BeamEngine

    assert digests(inputs, 3, tmp_path, BeamEngine([], report=lambda line: None)) == expected
