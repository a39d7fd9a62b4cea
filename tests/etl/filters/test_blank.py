"""Blank rows: rows of nothing but white space are dropped, and no others."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from etl.filters.blank import drop_blank
from tests.etl.rows import conversations, say, verdicts

SPACE = st.text(st.sampled_from(" \t\r\n\x0b\u00a0\u2003\u2028\u3000\x85"), max_size=3)
CALL = say("assistant", "", "commentary") | {"recipient": "functions.f"}


def judged(rows, has_answers=True, dropped=()):
    return [found and found[1] for found in verdicts(drop_blank(conversations(rows, dropped), "ingest", has_answers))]


@given(blank=SPACE, text=st.text(max_size=4))
def test_white_space_says_nothing(blank, text):
    rows = [
        [say("user", blank), say("assistant", "a", "final")],
        [say("user", text), say("assistant", "r", "analysis"), say("assistant", blank, "final")],
        [say("text", blank)],
    ]
    is_blank = not text.strip()
    asked = "blank_prompt" if is_blank else "blank_answer"
    assert judged(rows) == ["blank_prompt", asked, None]


def test_a_row_is_judged_as_a_whole():
    final, blank = say("assistant", "a"), say("assistant", " ", "final")
    rows = [
        [say("user", " "), final, say("user", "q"), blank],
        [say("user", "q"), CALL],
        [say("user", "q"), say("assistant", "r", "analysis")],
        [say("system", "s"), final],
        [say("user", ""), blank],
        [],
    ]
    assert judged(rows) == [None, None, "blank_answer", None, "blank_prompt", "blank_answer"]


def test_prompts_alone_need_no_answer():
    rows = [[say("user", "q")], [say("user", "\n")], [say("text", "")]]
    assert judged(rows, has_answers=False) == [None, "blank_prompt", None]


def test_an_earlier_verdict_stays():
    batch = drop_blank(conversations([[say("user", "")]] * 2, dropped=[0]), "ingest", True)
    assert verdicts(batch) == [("earlier", "x", None), ("ingest", "blank_prompt", None)]
    assert batch.column("verdict").type == pa.struct([(name, pa.string()) for name in ("step", "reason", "value")])
