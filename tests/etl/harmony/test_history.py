"""Rows that are turns of a conversation: what a model sees at inference, with one turn supervised."""

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import given, settings
from openai_harmony import Author, Conversation, Message, RenderConversationConfig, Role

from etl.harmony.render import preamble_messages
from etl.harmony.step import HarmonyStep
from etl.harmony.vocabulary import load_encoding
from tests.etl.harmony.conversations import PREAMBLE, batch, message, oracle

STEP = HarmonyStep(system=PREAMBLE.identity, developer=PREAMBLE.developer, reasoning_effort=PREAMBLE.effort)
KEEP = STEP.model_copy(update={"history_analysis": "keep"})
CALL = [
    message("assistant", "look", "analysis"),
    message("assistant", "{}", "commentary", recipient="functions.f", content_type="<|constrain|>json"),
    message("tool", "4", "commentary", recipient="assistant"),
]


def turn(number, thinks, calls):
    thought = [message("assistant", f"thought {number}", "analysis")] if thinks else []
    called = CALL if calls else []
    return [message("user", f"ask {number}"), *called, *thought, message("assistant", f"say {number}", "final")]


def rendered(step, messages, is_turn=True):
    rows = batch([messages]).append_column("conversation_id", pa.array(["c" if is_turn else None], pa.string()))
    (row,) = step.open()(rows).to_pylist()
    assert row["verdict"] is None
    return row


def completion_prompt(messages):
    """What openai-harmony renders up to the assistant's next message, at inference."""
    theirs = preamble_messages(PREAMBLE)
    for m in messages:
        name = "functions.f" if m["role"] == "tool" else None
        theirs.append(Message.from_author_and_content(Author(role=Role(m["role"]), name=name), m["content"]))
        theirs[-1].channel, theirs[-1].recipient = m["channel"], m["recipient"]
        theirs[-1].content_type = m["content_type"]
    config = RenderConversationConfig(auto_drop_analysis=True)
    conversation = Conversation.from_messages(theirs)
    # Without the <|start|>assistant that it ends in.
    return load_encoding().render_conversation_for_completion(conversation, Role.ASSISTANT, config)[:-2]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4))
def test_what_precedes_the_last_turn_is_what_the_model_sees(kinds):
    turns = [turn(number, *kind) for number, kind in enumerate(kinds)]
    history, (asked, *answer) = [one for each in turns[:-1] for one in each], turns[-1]
    row = rendered(STEP, [*history, asked, *answer])
    kept = [one for one in history if one["channel"] != "analysis"]
    assert row["input_ids"][: row["prompt_tokens"]] == completion_prompt([*kept, asked])
    # openai-harmony itself drops reasoning before the first answer, and no later one.
    if all(not any(kind) for kind in kinds[1:-1]):
        assert completion_prompt([*history, asked]) == completion_prompt([*kept, asked])
    assert row["input_ids"] == oracle([*kept, asked, *answer])
    assert {span["turn"] for span in row["spans"]} == {len(turns) - 1}
    assert len(row["spans"]) == sum(one["role"] == "assistant" for one in answer)


def test_kept_history_and_whole_conversations():
    messages = [*turn(0, True, False), *turn(1, True, False)]
    kept = rendered(KEEP, messages)
    assert kept["input_ids"] == oracle(messages)
    assert {span["turn"] for span in kept["spans"]} == {1}
    whole = rendered(STEP, messages, is_turn=False)
    assert whole["input_ids"] == oracle(messages)
    assert [span["turn"] for span in whole["spans"]] == [0, 0, 1, 1]


@pytest.mark.parametrize("value", ["dropped", "all"])
def test_a_wrong_word_is_refused(value):
    with pytest.raises(ValueError, match="history_analysis"):
        HarmonyStep(history_analysis=value)
