"""Pairs, transcripts, preferences, verifiable items and prompts."""

import json

import pytest
from pydantic import ValidationError

from etl.sources.spec import Description
from tests.etl.sources.shapes.toyshapes import converse, spoken

ASKED = ("user", "q")
GOOD = ("assistant", "final", "good")


def test_pairs_and_the_exchange_after_them(tmp_path):
    good, _ = converse(tmp_path, {"shape": "pairs"}, {"conversation": [{"human": "q", "assistant": "good"}] * 2})
    assert good == [[ASKED, GOOD] * 2]
    history = {"shape": "pairs", "pairs": "history", "last": {"user": "instruction", "final": "output"}}
    good, bad = converse(
        tmp_path,
        history,
        {"history": [["q", "good"]], "instruction": "more", "output": "yes"},
        {"history": None, "instruction": "more", "output": "yes"},
        {"history": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}], "instruction": "more",
         "output": "yes"},
        {"history": ["q", "good"], "instruction": "more", "output": "yes"},
        {"history": [["q"]], "instruction": "more", "output": "yes"},
    )  # fmt: skip
    last = [("user", "more"), ("assistant", "final", "yes")]
    assert good == [[ASKED, GOOD, *last], last, [ASKED, GOOD, *last], [ASKED, GOOD, *last]]
    assert [reason for _, reason in bad] == ["not_pairs"]


def test_a_transcript_is_cut_at_its_marks(tmp_path):
    shape = {"shape": "transcript", "text": "text"}
    good, bad = converse(
        tmp_path,
        shape,
        {"text": "\n\nHuman: q\n\nAssistant: good\n\nHuman: He said\nHuman: no"},
        {"text": "Human: q\n\nAssistant:"},
        {"text": "A letter.\n\nHuman: q"},
    )
    assert good == [[ASKED, GOOD, ("user", "He said\nHuman: no")], [ASKED, ("assistant", "final", "")]]
    assert [reason for _, reason in bad] == ["no_speaker"]


def test_marks_of_ones_own_and_text_of_nobody(tmp_path):
    shape = {
        "shape": "transcript", "text": "text", "between": "\n",
        "marks": {"<1>User\n": "user", "<1>Bot\n": "assistant", "<2>": "nobody"},
    }  # fmt: skip
    assert converse(tmp_path, shape, {"text": "<1>User\nq\n<1>Bot\ngood\n<2>rest"})[0] == [[ASKED, GOOD]]


PAIR = {"shape": "preference", "chosen": "chosen", "rejected": "rejected"}
REJECTED = [{"role": "assistant", "channel": "final", "content": "bad"}]


@pytest.mark.parametrize(
    ("description", "record"),
    [
        (PAIR | {"prompt": "prompt"}, {"prompt": "q", "chosen": "good", "rejected": "bad"}),
        (PAIR, {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}),
        (
            PAIR | {"prompt": "prompt"},
            {
                "prompt": "q",
                "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "good"}],
                "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "bad"}],
            },
        ),
        (
            PAIR | {"prompt": "conversations"},
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
        ),
    ],
)
def test_the_better_side_is_said_and_the_other_kept(tmp_path, description, record):
    (row,), _ = converse(tmp_path, description, record, raw=True)
    assert spoken(row) == [ASKED, GOOD]
    assert json.loads(row["meta_json"]) == {"rejected": REJECTED}


def test_the_best_and_the_worst_of_several_answers(tmp_path):
    shape = {"shape": "preference", "prompt": "p", "responses": "r", "rewards": "s.*.score"}
    scores = [{"score": value} for value in (0.5, 0.9, None, 0.1)]
    (row,), bad = converse(
        tmp_path,
        shape,
        {"p": "q", "r": ["fair", "good", "none", "bad"], "s": scores},
        {"p": "q", "r": ["one", "two"], "s": [{"score": 1}, {"score": 1}]},
        {"p": "q", "r": ["one", "two"], "s": []},
        raw=True,
    )
    assert spoken(row) == [ASKED, GOOD]
    assert json.loads(row["meta_json"]) == {"rejected": REJECTED, "score_chosen": 0.9, "score_rejected": 0.1}
    assert [reason for _, reason in bad] == ["no_preference"] * 2


def test_labels_are_kept(tmp_path):
    shape = {"shape": "preference", "prompt": "p", "completion": "c", "label": "l"}
    records = [{"p": "q", "c": "answer", "l": label} for label in (True, 0, "?")]
    rows, bad = converse(tmp_path, shape, *records, raw=True)
    assert [json.loads(row["meta_json"])["label"] for row in rows] == [True, False]
    assert [reason for _, reason in bad] == ["wrong_type"]


@pytest.mark.parametrize(
    "keys", [{}, {"chosen": "a"}, {"chosen": "a", "rejected": "b", "label": "c", "completion": "d"}]
)
def test_a_preference_says_in_one_way_what_is_better(keys):
    with pytest.raises(ValidationError, match="give one of the pairs"):
        Description.model_validate({"shape": "preference", "skill_bucket": "chat", **keys})


def test_a_verifiable_item_keeps_what_it_is_checked_by(tmp_path):
    shape = {"shape": "verifiable", "user": "problem", "answer": "answer", "tests": "tests"}
    (row,), _ = converse(tmp_path, shape, {"problem": "q", "answer": 4, "tests": ["a", {"b": 1}]}, raw=True)
    assert spoken(row) == [ASKED]
    assert json.loads(row["meta_json"]) == {"expected_answer": 4, "tests": ["a", {"b": 1}]}
    solved = shape | {"final": "solution"}
    good, bad = converse(
        tmp_path, solved, {"problem": "q", "answer": 4, "solution": "<think>x</think>good"}, {"problem": "q"}
    )
    assert good == [[ASKED, ("assistant", "analysis", "x"), GOOD]]
    assert [reason for _, reason in bad] == ["missing_solution"]


@pytest.mark.parametrize(
    ("value", "turns"),
    [
        ("q", ["q"]),
        (["q", "r"], ["q", "r"]),
        ([{"role": "user", "content": "q"}], ["q"]),
        ([[{"role": "user", "content": "q"}]], ["q"]),
        ('[{"role": "user", "content": "q"}]', ["q"]),
        ("[1, 2] is a list", ["[1, 2] is a list"]),
    ],
)
def test_a_prompt_is_text_texts_or_messages(tmp_path, value, turns):
    good, _ = converse(tmp_path, {"shape": "prompts", "user": "prompt"}, {"prompt": value})
    assert good == [[("user", turn) for turn in turns]]
