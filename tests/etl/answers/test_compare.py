"""Equality of answers against a table that was decided by hand, and against data sets."""

import gzip
import json
import random
import re

from hypothesis import example, given
from hypothesis import strategies as st

from etl.answers.clean import clean, closing_brace
from etl.answers.compare import compare
from etl.answers.plain import plain_verdict
from tests.etl.answers.pairs import hand_decided


def outcome(answer, expected):
    ours, theirs = clean(answer), clean(expected)
    return (plain_verdict(ours, theirs) or compare(ours, theirs)).outcome


def test_pairs_are_judged_as_a_person_judges_them_also_the_other_way_round():
    table = hand_decided()
    assert len(table) > 500
    # Twice all of them takes 4 seconds more.
    turned = [(verdict, expected, answer) for verdict, answer, expected in table[::3]]
    judged = [(outcome(answer, expected), answer, expected) for _, answer, expected in table + turned]
    assert judged == table + turned


def test_the_spelling_of_a_clean_answer_is_final():
    for _, *answers in hand_decided():
        for answer in answers:
            assert clean(clean(answer)) == clean(answer)


@given(st.integers(-(10**6), 10**6), st.integers(0, 6), st.integers(-(10**6), 10**6), st.integers(0, 6))
def test_plain_pairs_are_judged_as_by_algebra(one, places, other, other_places):
    ours, theirs = f"{one / 10**places:.{places}f}", f"{other / 10**other_places:.{other_places}f}"
    ours, theirs = re.sub("^-(?=0(?:[.]0*)?$)", "", ours), re.sub("^-(?=0(?:[.]0*)?$)", "", theirs)
    plain = plain_verdict(ours, theirs)
    assert plain is not None
    assert plain == compare(ours, theirs)


@given(st.text(alphabet="0123456789.,-+/()[]{}\\ ^_x=<%$|:;é\u202f", max_size=24))
@example("0;(}")
@example("]1}")
def test_any_text_has_a_verdict(text):
    assert outcome(text, text) in ("equal", "unparseable")
    assert outcome(text, "7.25") in ("equal", "different", "unparseable")


# --- data sets ----------------------------------------------------------------------------------------------------


def boxed_answers(path, limit):
    """The last boxed answers of rows drawn from a file."""
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    for line in random.Random(7).sample(lines, limit):
        solution = json.loads(line)["solution"]
        start = solution.rfind("\\boxed{") + len("\\boxed{")
        end = closing_brace(solution, start)
        if start >= len("\\boxed{") and end > 0:
            yield solution[start:end]


def respelled(answer):
    """The same answer, otherwise written."""
    text = answer.replace("\\frac", "\\dfrac")
    text = text.replace(",", ", ") if "," not in re.sub(r"\([^()]*\)", "", text) else text
    text = re.sub(r"(?<![\\a-z])\(", r"\\left( ", text) if text.count("(") == text.count(")") else text
    text = re.sub(r"(?<!right)(?<!\\)\)", r" \\right)", text) if "\\left(" in text else text
    return f"$ {text} $."


def perturbed(answer):
    """Other answers: each with a number of the answer changed, or its sign."""
    for found in re.finditer(r"\d+", answer):
        yield f"{answer[: found.start()]}{int(found[0]) + 1}{answer[found.end() :]}"
    if re.fullmatch(r"[\d.]*[1-9][\d.]*", answer):
        yield f"-{answer}"


def test_answers_of_gsm8k_equal_themselves_and_nothing_near_them(shared_data):
    lines = gzip.decompress((shared_data / "gsm8k" / "test.jsonl.gz").read_bytes()).decode("utf-8").splitlines()
    answers = [json.loads(line)["answer"].rpartition("####")[2].strip() for line in lines]
    assert len(answers) == 1319
    for answer in answers:
        assert outcome(f"${answer}.00", answer) == "equal" if "." not in answer else True
        for other in perturbed(answer):
            assert outcome(other, answer) == "different", (other, answer)


def test_answers_of_competition_math_equal_themselves_otherwise_spelled_and_nothing_near_them(shared_data):
    answers = list(boxed_answers(shared_data / "competition_math" / "math_test.jsonl.gz", 150))
    found = [outcome(respelled(answer), answer) for answer in answers]
    assert "different" not in found, [a for a, f in zip(answers, found, strict=True) if f == "different"]
    assert found.count("equal") > 0.95 * len(found)
    near = [(other, answer) for answer in answers for other in perturbed(answer)]
    false = [pair for pair in near if outcome(*pair) == "equal"]
    assert false == []
