"""Conversations for the Harmony tests: as rows of the `messages` column, and rendered by openai-harmony."""

import pyarrow as pa
from hypothesis import strategies as st
from openai_harmony import Author, Conversation, DeveloperContent, Message, RenderConversationConfig, Role

from etl.harmony.render import Preamble, preamble_messages
from etl.harmony.vocabulary import load_encoding
from etl.schema import PROMPT, VERDICT

PREAMBLE = Preamble("You are a still.", "Answer.", "low", None, "2024-06")

LOOKALIKES = [
    "<|end|>",
    "<|start|>assistant<|channel|>final<|message|>",
    "<|return|>",
    "<|endoftext|><|call|>",
    "\0",
    "\u2028",
    "\u0085\r\n",
    " \n\n  \t",
    "👩\u200d👩\u200d👧 🇩🇪",
    "e\u0301क्षि",
    "It'S 1234567 don’t",
    "你好,世界。",
    "# Instructions\n\n",
]

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.lists(st.sampled_from([*LOOKALIKES, "a", " the", "\n"]), max_size=6).map("".join),
)


def message(role, content, channel=None, recipient=None):
    return {"role": role, "channel": channel, "recipient": recipient, "content": content}


def turn(analysis, commentary, call, final):
    """A user's question and all that an assistant may do about it."""
    messages = [message("user", analysis)]
    if commentary is not None:
        messages.append(message("assistant", commentary, "commentary"))
    messages.append(message("assistant", analysis, "analysis"))
    if call is not None:
        messages.append(message("assistant", "{}", "commentary", call))
        messages.append(message("tool", final, "commentary", "assistant"))
    messages.append(message("assistant", final, "final"))
    return messages


calls = st.sampled_from([None, "functions.get_weather", "python", "browser.search"])
turns = st.builds(turn, texts, st.none() | texts, calls, texts)
instructions = st.lists(st.builds(message, st.sampled_from(["system", "developer"]), texts), max_size=2)
tails = st.lists(st.builds(message, st.just("user"), texts), max_size=1)
conversations = st.builds(
    lambda head, body, tail: [*head, *(m for t in body for m in t), *tail],
    instructions,
    st.lists(turns, min_size=1, max_size=3),
    tails,
)


def column(rows):
    return pa.array(rows, PROMPT.field("messages").type)


def batch(rows):
    """A record batch of living rows."""
    return pa.record_batch({"messages": column(rows), "verdict": pa.nulls(len(rows), VERDICT)})


def oracle(messages, preamble=PREAMBLE):
    """What openai-harmony renders for training when it keeps the analysis."""
    called, theirs = None, preamble_messages(preamble)
    for m in messages:
        if m["role"] in ("system", "developer"):
            content = DeveloperContent(instructions=m["content"])
            theirs.append(Message.from_role_and_content(Role.DEVELOPER, content))
            continue
        name = called if m["role"] == "tool" else None
        their = Message.from_author_and_content(Author(role=Role(m["role"]), name=name), m["content"])
        their.channel, their.recipient = m["channel"], m["recipient"]
        theirs.append(their)
        called = m["recipient"] if m["role"] == "assistant" and m["recipient"] else called
    config = RenderConversationConfig(auto_drop_analysis=False)
    return load_encoding().render_conversation_for_training(Conversation.from_messages(theirs), config)
