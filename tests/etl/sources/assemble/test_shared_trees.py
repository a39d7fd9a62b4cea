"""OpenAssistant's own files: best paths and pairs are those of a few lines of plain Python."""

import gzip
import json
import math

import pytest

from etl.run.recipe import Recipe
from tests.etl.stages.toys import read, run, stage

FILES = {
    "oasst2_trees/oasst2_trees.jsonl.gz": (41, 272),
    "oasst_export_sample/en_100_tree.jsonl.gz": (100, 687),
    "oasst1_messages_en/en-validation.jsonl.gz": (188, 1213),
}


def lines_of(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def trees_of(lines):
    """The first messages of trees that are ready, each with its replies nested."""
    if "prompt" in lines[0]:
        return [line["prompt"] for line in lines if line["tree_state"] == "ready_for_export"]
    by_name = {line["message_id"]: {**line, "replies": []} for line in lines}
    for one in by_name.values():
        if one["parent_id"] in by_name:
            by_name[one["parent_id"]]["replies"].append(one)
    return [one for one in by_name.values() if one["parent_id"] is None and one["tree_state"] == "ready_for_export"]


def rank_of(message):
    rank = message.get("rank")
    return (math.inf if rank is None else rank, message["message_id"])


def alive(messages, role):
    return [one for one in messages if not one["deleted"] and one["role"] == role]


def best_path(root):
    answers = alive(root["replies"], "assistant")
    if not answers:
        return []
    answer = min(answers, key=rank_of)
    asked = [one for one in alive(answer["replies"], "prompter") if alive(one["replies"], "assistant")]
    return [root["text"], answer["text"], *(best_path(min(asked, key=rank_of)) if asked else [])]


def pairs(message):
    if message["deleted"]:
        return
    if message["role"] == "prompter":
        yield from ([message["text"], one["text"]] for one in alive(message["replies"], "assistant"))
    for one in message["replies"]:
        yield from pairs(one)


def said(path, take, output):
    source = {"spec": "oasst_tree", "path": str(path), "take": take}
    run(Recipe.model_validate({"name": "t", "output": str(output), "stages": [], "sources": {"a": source}}))
    rows = [row for row in read(stage(output, "ingest")) if row["verdict"] is None]
    assert all(one["role"] == ("user", "assistant")[n % 2] for row in rows for n, one in enumerate(row["messages"]))
    return sorted([one["content"] for one in row["messages"]] for row in rows)


@pytest.mark.parametrize("name", FILES)
def test_paths_and_pairs_are_those_of_plain_python(tmp_path, shared_data, name):
    roots = [root for root in trees_of(lines_of(shared_data / name)) if not root["deleted"]]
    paths = sorted(filter(None, map(best_path, roots)))
    two = sorted(pair for root in roots for pair in pairs(root))
    assert said(shared_data / name, "best_path", tmp_path / "paths") == paths
    assert said(shared_data / name, "pairs", tmp_path / "pairs") == two
    found = said(shared_data / name, "both", tmp_path / "both")
    assert found == sorted([*two, *(path for path in paths if len(path) > 2)])
    assert (len(paths), len(two)) == FILES[name]
