"""The texts of conversations against a loop over Python objects."""

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from etl import messages
from etl.schema import MESSAGE

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
CONVERSATION = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["system", "user", "assistant", "tool"]),
            "channel": st.sampled_from([None, "analysis", "commentary", "final"]),
            "recipient": st.none(),
            "content": TEXT,
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
