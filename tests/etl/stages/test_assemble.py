"""Rows that are made of several raw rows: what they hold, their accounts, and that no cut or file order shows."""

import random
import shutil

import pytest

from etl.errors import ConfigError, SourceError
from etl.run.estimate import estimate
from etl.run.plan import plan_recipe
from etl.run.recipe import Recipe
from etl.storage.manifest import accounting_gaps
from tests.etl.stages import toyforum
from tests.etl.stages.toys import read, run, stage


def recipe(output, path, spec="oasst_tree", run=None, source=None, **sections):
    tree = {
        "name": "toy", "output": str(output), "stages": [], "run": run or {},
        "sources": {"a": {"spec": spec, "path": str(path), **(source or {})}},
    }  # fmt: skip
    return Recipe.model_validate(tree | sections)


def accounts(output):
    found = stage(output, "ingest").manifest.accounting
    assert accounting_gaps(found) == []
    steps = {step: {reason: rows for reason, rows in counts.items() if rows} for step, counts in found["a"].items()}
    assert steps["assemble"].get("kept", 0) == steps["ingest"].get("in", 0)
    return steps


@pytest.mark.parametrize("rows", [toyforum.flat_rows, toyforum.nested_rows])
def test_the_best_path_is_a_conversation(tmp_path, rows):
    run(recipe(tmp_path / "out", toyforum.write(tmp_path / "in.jsonl", rows())))
    found = read(stage(tmp_path / "out", "ingest"))
    assert toyforum.said(found) == sorted([toyforum.BAKE_PATH, toyforum.SHORT_PATH])
    assert {row["source_example_id"]: row["language"] for row in found} == {"t1": "en", "t2": "de"}
    assert {row["split_key"] for row in found} == {"t1", "t2"}
    assert {row["source_subset"] for row in found} == {"best_path"}
    assert {row["conversation_id"] for row in found} == {None}


@pytest.mark.parametrize("rows", [toyforum.flat_rows, toyforum.nested_rows])
def test_pairs_are_every_prompt_with_every_answer(tmp_path, rows):
    made = recipe(tmp_path / "out", toyforum.write(tmp_path / "in.jsonl", rows()), source={"take": "pairs"})
    run(made)
    assert toyforum.said(read(stage(tmp_path / "out", "ingest"))) == sorted([*toyforum.BAKE_PAIRS, toyforum.SHORT_PATH])


def test_both_has_no_row_twice_and_its_pairs_belong_to_their_path(tmp_path):
    path = toyforum.write(tmp_path / "in.jsonl", toyforum.flat_rows())
    run(recipe(tmp_path / "out", path, source={"take": "both"}))
    found = read(stage(tmp_path / "out", "ingest"))
    expected = [*toyforum.BAKE_PAIRS, toyforum.BAKE_PATH, toyforum.SHORT_PATH]
    assert toyforum.said(found) == sorted(expected)
    whole = next(row for row in found if row["source_example_id"] == "t1")
    of_path = {row["source_example_id"] for row in found if row["conversation_id"] == whole["id"].hex()}
    assert of_path == {"t1", "t1b", "t1b1b"}
    assert {row["source_example_id"] for row in found if row["conversation_id"] is None} == {"t1a", "t1b1a", "t2"}


def test_accounts_of_messages_close(tmp_path):
    orphan = toyforum.message("o", "nobody", "assistant", "I answer nobody.") | {"message_tree_id": "t5"}
    rows = [*toyforum.flat_rows(), orphan, toyforum.flat_rows()[0], {"message_id": "x", "text": "no tree"}]
    path = toyforum.write(tmp_path / "in.jsonl", rows)
    path.write_text(path.read_text() + "{broken\n")
    run(recipe(tmp_path / "out", path, max_bad_fraction=1.0))
    assert accounts(tmp_path / "out") == {
        "assemble": {
            "in": 19, "made": 2, "assembled": 6, "kept": 5, "deleted": 1, "after_deleted": 1, "not_on_best_path": 4,
            "tree_not_ready": 2, "no_answer": 1, "repeated_message": 1,
        },
        "ingest": {
            "in": 5, "kept": 2, "quarantined:no_parent": 1, "quarantined:missing_message_tree_id": 1,
            "quarantined:invalid_json": 1,
        },
    }  # fmt: skip
    bad = read(stage(tmp_path / "out", "quarantine"))
    lines = path.read_bytes().splitlines(keepends=True)
    starts = {sum(map(len, lines[:number])): lines[number] for number in range(len(lines))}
    assert {row["file"] for row in bad} == {"in.jsonl"}
    for row, said in ((row, starts[row["position"]]) for row in bad):
        assert said.startswith(b"{broken") == (row["reason"] == "invalid_json")
        assert (b"nobody" in said) == (row["reason"] == "no_parent")


def test_accounts_of_whole_trees_close(tmp_path):
    run(recipe(tmp_path / "out", toyforum.write(tmp_path / "in.jsonl", toyforum.nested_rows())))
    assert accounts(tmp_path / "out")["assemble"] == {
        "in": 4, "made": 2, "assembled": 2, "kept": 2, "tree_not_ready": 1, "no_answer": 1
    }  # fmt: skip


def test_neither_cut_nor_order_of_the_files_shows(tmp_path):
    digests = set()
    for number in (1, 2, 5):
        rows = toyforum.flat_rows()
        random.Random(number).shuffle(rows)
        for place in range(number):
            toyforum.write(tmp_path / f"in-{number}" / f"{number}{place}.jsonl", rows[place::number])
        made = recipe(
            tmp_path / str(number), tmp_path / f"in-{number}", source={"take": "both"},
            run={"split_bytes": 1024, "bucket_bytes": 1024 if number > 1 else 1 << 20},
        )  # fmt: skip
        run(made)
        assert stage(tmp_path / str(number), "assembled/a").manifest.splits > 1 or number == 1
        digests.add(
            tuple(stage(tmp_path / str(number), name).manifest.content_digest for name in ("assembled/a", "ingest"))
        )
    assert len(digests) == 1


def test_a_group_that_is_too_long_is_quarantined(tmp_path):
    rows = [
        toyforum.message(f"m{n}", "m0" if n else None, "assistant" if n else "prompter", "x" * 600) for n in range(8)
    ]
    rows = [{**row, "message_tree_id": "big"} for row in rows]
    path = toyforum.write(tmp_path / "in.jsonl", [*rows, *toyforum.flat_rows()])
    run(recipe(tmp_path / "out", path, max_row_bytes=4000, max_bad_fraction=1.0))
    assert accounts(tmp_path / "out")["ingest"]["quarantined:group_too_long"] == 8
    assert "max_row_bytes=4,000" in read(stage(tmp_path / "out", "quarantine"))[0]["detail"]


def test_a_plan_knows_what_is_assembled_and_a_second_run_keeps_it(tmp_path):
    made = recipe(tmp_path / "out", toyforum.write(tmp_path / "in.jsonl", toyforum.flat_rows()))

    def planned(one):
        return {each.stage: each.action for each in plan_recipe(one).stages}

    before = plan_recipe(made)
    assert {one.stage: one.action for one in before.stages}["assembled/a"] == "run"
    assert (before.inputs[0].files, before.inputs[0].bytes) == (1, (tmp_path / "in.jsonl").stat().st_size)
    run(made)
    assert set(planned(made).values()) == {"keep"}
    assert plan_recipe(made).inputs[0].rows == len(toyforum.flat_rows())
    other = recipe(tmp_path / "out", tmp_path / "in.jsonl", source={"take": "pairs"})
    assert planned(other)["assembled/a"] == "run"


QUESTIONS = """
shape: columns
assemble:
  kind: join
  tables:
    taco: [{column: question}]
    open-r1/codeforces:
    - {column: description}
    - {heading: Input, column: input_format}
    - {heading: Examples, column: examples}
example_id: id
user: question
final: r1_generation
skill_bucket: code
"""


def open_code(tmp_path):
    asked = [
        ("1", "-", "taco", "train", "1"),
        ("2", "-", "open-r1/codeforces", "test", 0),
        ("3", "Own question?", "taco", "train", 0),
        ("4", "-", "taco", "train", "7"),
        ("5", "-", "-", "train", "1"),
        ("6", "-", "taco", "train", "1"),
    ]
    names = ("id", "question", "dataset", "split", "index")
    rows = [dict(zip(names, one, strict=True)) | {"r1_generation": "So be it."} for one in asked]
    toyforum.write(tmp_path / "taco/0.jsonl", [{"question": "Sum two numbers."}])
    toyforum.write(tmp_path / "taco/1.jsonl", [{"question": "Sort a list."}, {"question": ""}])
    examples = [{"input": "1", "output": "2"}, {"input": "3", "output": "4"}]
    forces = {"description": "Double it.", "input_format": "A number.", "examples": examples, "other": 1}
    toyforum.write(tmp_path / "codeforces.jsonl", [forces])
    (tmp_path / "spec.yaml").write_text(QUESTIONS)
    tables = {"taco/train": str(tmp_path / "taco"), "open-r1/codeforces/test": str(tmp_path / "codeforces.jsonl")}
    return toyforum.write(tmp_path / "in.jsonl", rows), tables


def test_placeholders_are_filled_from_other_data_sets(tmp_path):
    path, tables = open_code(tmp_path)
    run(recipe(tmp_path / "out", path, str(tmp_path / "spec.yaml"), source={"tables": tables}, max_bad_fraction=1.0))
    found = {row["source_example_id"]: row["messages"][0]["content"] for row in read(stage(tmp_path / "out", "ingest"))}
    doubled = "Double it.\n\nInput\n\nA number.\n\nExamples\n\nInput\n\n1\n\nOutput\n\n2\n\nInput\n\n3\n\nOutput\n\n4"
    assert found == {"1": "Sort a list.", "2": doubled, "3": "Own question?", "6": "Sort a list."}
    assert accounts(tmp_path / "out") == {
        "assemble": {"in": 6, "made": 3, "assembled": 3, "kept": 6},
        "ingest": {"in": 6, "kept": 4, "quarantined:no_partner": 2},
    }
    details = {row["detail"] for row in read(stage(tmp_path / "out", "quarantine"))}
    assert "sources.a.tables has no row taco/train/7" in details


def test_a_join_without_its_tables_says_what_to_give(tmp_path):
    path, tables = open_code(tmp_path)
    spec = str(tmp_path / "spec.yaml")
    with pytest.raises(ConfigError, match=r"sources\.a\.tables: give the tables"):
        run(recipe(tmp_path / "out", path, spec))
    with pytest.raises(ConfigError, match=r"'apps/train' is no DATASET/SPLIT of taco"):
        run(recipe(tmp_path / "out", path, spec, source={"tables": {"apps/train": tables["taco/train"]}}))
    with pytest.raises(SourceError, match=r"a\.tables\.taco/train"):
        run(recipe(tmp_path / "out", path, spec, source={"tables": {"taco/train": str(tmp_path / "none.jsonl")}}))


REWARDS = """
shape: preference
assemble: {kind: gather, by: [prompt], lists: {responses: response, rewards: reward}}
prompt: prompt
responses: responses
rewards: rewards
skill_bucket: chat
"""


def test_answers_with_rewards_become_a_preference(tmp_path):
    rows = [
        {"prompt": "Why?", "response": "Because.", "reward": 0.1},
        {"prompt": "Why?", "response": "For three reasons.", "reward": 0.9},
        {"prompt": "Why?", "response": "So.", "reward": 0.4},
        {"prompt": "When?", "response": "Now.", "reward": 1.0},
    ]
    (tmp_path / "spec.yaml").write_text(REWARDS)
    run(recipe(tmp_path / "out", toyforum.write(tmp_path / "in.jsonl", rows), str(tmp_path / "spec.yaml")))
    (row,) = read(stage(tmp_path / "out", "ingest"))
    assert toyforum.said([row]) == [[("user", "Why?"), ("assistant", "For three reasons.")]]
    assert '"score_chosen":0.9' in row["meta_json"]
    assert '"Because."' in row["meta_json"]
    assert accounts(tmp_path / "out")["assemble"] == {
        "in": 4, "made": 1, "assembled": 3, "kept": 1, "too_few_in_group": 1
    }  # fmt: skip


def test_a_placeholder_in_messages_is_filled(tmp_path):
    """As in Nemotron-Competitive-Programming: the user's turn is the placeholder, the answer is the row's own."""
    turns = [{"role": "user", "content": "-"}, {"role": "assistant", "content": "print(sorted(x))"}]
    rows = [
        {"uuid": "1", "messages": turns, "dataset": "taco", "split": "train", "index": "0"},
        {"uuid": "2", "messages": [{"role": "user", "content": "Own?"}, turns[1]], "dataset": None, "split": None},
    ]
    toyforum.write(tmp_path / "taco.jsonl", [{"question": "Sort a list."}])
    (tmp_path / "spec.yaml").write_text(
        "shape: messages\nexample_id: uuid\nskill_bucket: code\n"
        "assemble: {kind: join, into: messages, tables: {taco: [{column: question}]}}\n"
    )
    tables = {"taco/train": str(tmp_path / "taco.jsonl")}
    path = toyforum.write(tmp_path / "in.jsonl", rows)
    run(recipe(tmp_path / "out", path, str(tmp_path / "spec.yaml"), source={"tables": tables}))
    assert toyforum.said(read(stage(tmp_path / "out", "ingest"))) == [
        [("user", "Own?"), ("assistant", "print(sorted(x))")],
        [("user", "Sort a list."), ("assistant", "print(sorted(x))")],
    ]


def test_a_run_that_ended_after_assemble_goes_on_from_there(tmp_path):
    made = recipe(tmp_path / "out", toyforum.write(tmp_path / "in.jsonl", toyforum.flat_rows()))
    run(made)
    before = stage(tmp_path / "out", "ingest").manifest.content_digest
    shutil.rmtree(tmp_path / "out" / "ingest")
    shutil.rmtree(tmp_path / "out" / "quarantine")
    planned = {one.stage: one.action for one in plan_recipe(made).stages}
    assert (planned["assembled/a"], planned["ingest"]) == ("keep", "run")
    run(made)
    assert stage(tmp_path / "out", "ingest").manifest.content_digest == before


def test_a_sample_of_trees_is_assembled(tmp_path):
    found = estimate(recipe(tmp_path / "out", toyforum.write(tmp_path / "in.jsonl", toyforum.flat_rows())))
    assert "assembled/a" in {cost.stage for cost in found.stages}
