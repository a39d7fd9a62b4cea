"""Dedup compares whole conversations: no turn is lost to another of its own, and all go with the last one."""

import random

import pytest

from etl.run.recipe import Recipe
from etl.storage.manifest import accounting_gaps
from etl.storage.opened import Run
from tests.etl.stages import toyforum
from tests.etl.stages.toys import ENGLISH, read, run, sentence, stage

TURNS = 12


def chat(seed, num_turns=TURNS, words=40):
    rng = random.Random(seed)
    roles = ("user", "assistant") * num_turns
    return [{"role": role, "content": sentence(rng, ENGLISH, words)} for role in roles]


def recipe(output, path, **dedup):
    return Recipe.model_validate(
        {
            "name": "toy",
            "output": str(output),
            "run": {"split_bytes": 4096, "bucket_bytes": 4096},
            "sources": {
                "a": {"spec": "chat", "path": str(path), "rows": "turn", "id_column": "id"},
            },
            "stages": [{"kind": "dedup", **dedup}],
        }
    )


def chats(path, conversations):
    return toyforum.write(path, [{"id": name, "messages": messages} for name, messages in conversations.items()])


def kept(output, last="turns"):
    """How many turns are left of each conversation."""
    verdicts = {row["id"] for row in read(stage(output, last)) if row["verdict"] is not None}
    left = [
        row["source_example_id"].split("#")[0] for row in read(stage(output, "ingest")) if row["id"] not in verdicts
    ]
    return {name: left.count(name) for name in sorted(set(left))}


def accounts(output):
    found = Run.open(output).accounts["a"]
    assert accounting_gaps({"a": found}) == []
    ins = [counts["in"] for counts in found.values()]
    assert ins[1:] == [counts["kept"] for counts in found.values()][:-1]
    return found


def test_no_turn_of_a_long_chat_is_lost(tmp_path):
    run(recipe(tmp_path / "out", chats(tmp_path / "in.jsonl", {"one": chat(1), "two": chat(2), "short": chat(3, 1)})))
    assert kept(tmp_path / "out") == {"one": 12, "short": 1, "two": 12}
    found = accounts(tmp_path / "out")
    assert found["ingest"] == {"in": 3, "made": 24, "assembled": 2, "kept": 25}
    assert found["exact"] == found["near"] == {"in": 25, "made": 0, "kept": 25}


@pytest.mark.parametrize(("search", "change", "reason"), [
    ("exact", lambda said: [{**one, "content": one["content"].replace(" ", "  ")} for one in said], "exact_duplicate"),
    ("near", lambda said: [*said[:-1], {**said[-1], "content": said[-1]["content"] + " indeed"}], "near_duplicate"),
])  # fmt: skip
def test_a_conversation_goes_with_all_its_turns(tmp_path, search, change, reason):
    path = chats(tmp_path / "in.jsonl", {"one": chat(1), "same": change(chat(1)), "two": chat(2)})
    run(recipe(tmp_path / "out", path))
    left = kept(tmp_path / "out")
    assert left["two"] == 12
    assert sorted(left.values()) == [12, 12]
    assert accounts(tmp_path / "out")[search] == {"in": 36, "made": 0, "kept": 24, reason: 12}
    dropped = read(stage(tmp_path / "out", "dropped"))
    assert {(row["step"], row["reason"]) for row in dropped} == {(search, reason)}
    assert len({row["value"] for row in dropped}) == 1


def test_a_copy_of_a_conversation_finds_the_other(tmp_path):
    toyforum.write(tmp_path / "in/a.jsonl", [{"id": "one", "messages": chat(1)}])
    toyforum.write(tmp_path / "in/b.jsonl", [{"id": "one", "messages": chat(1)}])
    run(recipe(tmp_path / "out", tmp_path / "in"))
    assert accounts(tmp_path / "out")["exact"] == {"in": 24, "made": 0, "kept": 12, "exact_duplicate": 12}


def test_a_conversation_whose_last_turn_is_gone_is_compared_by_the_one_before(tmp_path):
    asked = [" ".join(said["content"] for said in chat(seed, 1, 20)) for seed in (91, 92)]
    toyforum.write(tmp_path / "benchmark.jsonl", [{"q": question} for question in asked])
    ends = [[{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}] for question in asked]
    path = chats(tmp_path / "in.jsonl", {"one": [*chat(1), *ends[0]], "other": [*chat(1), *ends[1]]})
    benchmark = {"path": str(tmp_path / "benchmark.jsonl"), "question_columns": "q"}
    step = {"kind": "contamination", "benchmarks": {"toy": benchmark}}
    made = recipe(tmp_path / "out", path, near=None)
    tree = made.model_dump(mode="json", exclude_defaults=True)
    run(
        Recipe.model_validate(
            {**tree, "stages": [{"kind": "filter", "steps": [step]}, {"kind": "dedup", "near": None}]}
        )
    )
    found = accounts(tmp_path / "out")
    assert found["contamination"] == {"in": 26, "made": 0, "kept": 24, "contaminated": 2}
    assert found["exact"] == {"in": 24, "made": 0, "kept": 12, "exact_duplicate": 12}


def test_rows_without_conversations_write_nothing_more(tmp_path):
    path = chats(tmp_path / "in.jsonl", {f"c{n}": chat(n, 1) for n in range(3)})
    run(recipe(tmp_path / "out", path))
    assert not (tmp_path / "out/turn_groups").exists()
    assert accounts(tmp_path / "out")["near"]["kept"] == 3


def test_without_any_search_turns_stay(tmp_path):
    run(recipe(tmp_path / "out", chats(tmp_path / "in.jsonl", {"one": chat(1)}), exact=None, near=None))
    assert kept(tmp_path / "out") == {"one": 12}
