"""The texts of conversations against a loop over Python objects."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from etl import messages
from etl.schema import MESSAGE, PROMPT, REMOVED
from tests.etl.rows import asked, say

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
CONVERSATION = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "channel": st.sampled_from([None, "analysis", "commentary", "final"]),
            "recipient": st.none(),
            "content": TEXT,
            "content_type": st.none(),
            "call_id": st.none() | TEXT,
        }
    ),
    max_size=4,
)


def final(message):
    return message["role"] == "assistant" and message["channel"] in (None, "final")


KEPT = {
    messages.instruction_text: lambda m: m["role"] == "user",
    messages.response_text: lambda m: m["role"] == "assistant",
    messages.final_text: final,
    messages.visible_text: lambda m: m["role"] == "user" or final(m),
    messages.full_text: lambda m: True,
}


@given(st.lists(CONVERSATION, max_size=5), st.integers(0, 2), st.integers(0, 3))
def test_texts_equal_a_loop_over_messages(rows, start, length):
    batch = pa.record_batch([pa.array(rows, pa.list_(MESSAGE))], ["messages"]).slice(start, length)
    for function, keeps in KEPT.items():
        expected = ["\n".join(m["content"] for m in row if keeps(m)) for row in rows[start : start + length]]
        assert function(batch).to_pylist() == expected


@given(st.lists(CONVERSATION, max_size=5))
def test_messages_are_counted_by_row(rows):
    batch = pa.record_batch([pa.array(rows, pa.list_(MESSAGE))], ["messages"])
    flags = messages.is_final(messages.message_items(batch))
    assert messages.count_messages(batch, flags).tolist() == [sum(map(final, row)) for row in rows]


def loose(*rows):
    """Messages as other tables have them: any field may be null."""
    fields = [pa.field(name, pa.string()) for name in MESSAGE.names]
    return pa.array(rows, pa.list_(pa.struct(fields)))


def test_whole_messages_come_out_as_they_are():
    rows = [asked("q", "a"), [], None, asked("r", "b")]
    column = loose(*rows)
    for piece, expected in ((column, rows), (column.slice(1), rows[1:])):
        whole, flaws = messages.whole_messages(piece)
        assert (whole.type, whole.to_pylist(), flaws) == (pa.list_(MESSAGE), expected, {})


def test_what_is_null_in_a_message_is_named_by_row():
    no_role, no_content = say("user", "a") | {"role": None}, say("user", "a") | {"content": None}
    whole, flaws = messages.whole_messages(loose(asked("q", "a"), [no_role], None, [no_content], [None, no_content]))
    assert {reason: rows.to_pylist() for reason, rows in flaws.items()} == {
        "null_message": [False, False, False, False, True],
        "null_role": [False, True, False, False, True],
        "null_content": [False, False, False, True, True],
    }
    assert whole[3].as_py() == [say("user", "")]


def test_all_but_role_and_content_may_be_absent():
    whole, flaws = messages.whole_messages(pa.array([[{"content": "hi", "role": "user"}]]))
    assert (whole.to_pylist(), flaws) == ([[say("user", "hi")]], {})


def documents(*texts):
    """A `messages` column: one raw document for a text, a conversation for None."""
    rows = [asked("q", "a") if text is None else [say("text", text)] for text in texts]
    return pa.array(rows, PROMPT.field("messages").type)


def ranges(*rows):
    return pa.array([[{"start": a, "end": b} for a, b in row] for row in rows], REMOVED.type)


def test_raw_documents():
    column = documents("one", None, "", "two")
    assert messages.raw_documents(column).to_pylist() == ["one", None, "", "two"]
    assert messages.raw_documents(column.slice(1, 2)).to_pylist() == [None, ""]
    mixed = [[], [say("text", "a"), say("text", "b")], [say("text", "a"), say("user", "b")], [say("user", "c")]]
    assert messages.raw_documents(pa.array(mixed, column.type)).to_pylist() == [None] * 4


def test_ranges_are_taken_out_of_the_first_message():
    column = documents("before", "0123456789", None, "äöü", "whole", "gone")
    removed = ranges([], [(0, 2), (4, 5), (5, 6), (9, 10)], [], [(2, 4)], [], [(0, 4)])
    expected = documents("before", "23678", None, "äü", "whole", "")
    assert messages.remove_ranges(column, removed) == expected
    assert messages.remove_ranges(column.slice(1, 4), removed.slice(1, 4)) == expected.slice(1, 4)
    assert messages.remove_ranges(column, removed).type == column.type


def test_messages_that_lose_nothing_are_not_copied():
    column = documents("one", None)
    assert messages.remove_ranges(column, ranges([], [])) is column
    assert messages.remove_ranges(column, pa.nulls(2, REMOVED.type)) is column


@given(st.lists(st.tuples(st.binary(max_size=20), st.lists(st.integers(0, 20), max_size=6)), max_size=5))
def test_what_ranges_leave(rows):
    texts = [data.hex() for data, _ in rows]
    cuts = [sorted({min(at, len(text)) for at in ats}) for text, (_, ats) in zip(texts, rows, strict=True)]
    pairs = [list(zip(ats[::2], ats[1::2], strict=False)) for ats in cuts]
    left = [
        "".join(c for at, c in enumerate(text) if not any(a <= at < b for a, b in of))
        for text, of in zip(texts, pairs, strict=True)
    ]
    assert messages.remove_ranges(documents(*texts), ranges(*pairs)) == documents(*left)
