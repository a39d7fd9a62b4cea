"""Which answers count as none or as failed."""

import pytest

from etl.filters.answers import AnswerStep
from tests.etl.rows import EARLIER, asked, conversations, say, verdicts

EMPTY = ("answer", "empty_answer", None)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (asked("q", "a"), None),
        (asked("q", "", "some thought"), EMPTY),
        (asked("q", " \n\t\u00a0\u3000"), EMPTY),
        ([say("user", "q")], EMPTY),
        ([], EMPTY),
        ([say("user", "q"), say("assistant", "only thought", "analysis")], EMPTY),
        ([*asked("q", "a"), *asked("r", "")], EMPTY),
        ([say("user", ""), say("assistant", "a")], None),
        (asked("Why has it failed after maximum attempts?", "Because."), None),
        (asked("q", "Error: FAILED after Maximum attempts."), "Error: FAILED after Maximum attempts."),
    ],
)
def test_verdicts(row, expected):
    got = verdicts(AnswerStep().open()(conversations([row])))[0]
    assert got == (("answer", "failed_generation", expected) if isinstance(expected, str) else expected)


def test_own_phrases_and_a_short_value():
    step = AnswerStep(failure_phrases=("as an ai", "[truncated]"))
    batch = step.open()(conversations([asked("q", "As an AI, " + "x" * 200), asked("q", "… [truncated]")]))
    assert verdicts(batch) == [
        ("answer", "failed_generation", "As an AI, " + "x" * 90),
        ("answer", "failed_generation", "… [truncated]"),
    ]


def test_an_earlier_verdict_stays_and_length_does_not_change():
    batch = conversations([asked("q", ""), asked("q", "a"), asked("q", "")], dropped=[0])
    got = AnswerStep().open()(batch.slice(0, 2))
    assert got.column("verdict").to_pylist() == [EARLIER, None]
    assert got.drop_columns(["verdict"]).equals(batch.slice(0, 2).drop_columns(["verdict"]))


def test_an_empty_batch():
    assert AnswerStep().open()(conversations([])).num_rows == 0
