"""Conversations for the Harmony tests: as rows of the `messages` column, and rendered by openai-harmony."""

import pyarrow as pa
from hypothesis import strategies as st
from openai_harmony import (
    Author,
    Conversation,
    DeveloperContent,
    Message,
    RenderConversationConfig,
    Role,
    ToolDescription,
)

from etl.harmony.render import Preamble, preamble_messages
from etl.harmony.vocabulary import load_encoding
from etl.schema import CALL_JSON, PROMPT, VERDICT

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


def message(role, content, channel=None, recipient=None, content_type=None, call_id=None):
    return {
        "role": role,
        "channel": channel,
        "recipient": recipient,
        "content": content,
        "content_type": content_type,
        "call_id": call_id,
    }


def turn(analysis, commentary, call, final):
    """A user's question and all that an assistant may do about it; calls without ids are answered one by one."""
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


@st.composite
def parallel_turns(draw):
    """A question, calls with ids at once, and their results in any order; what a result may leave out is left out."""
    names = draw(st.lists(calls.filter(bool), min_size=1, max_size=3))
    types = st.sampled_from([None, CALL_JSON, "json", "code"])
    asked = [
        message(
            "assistant", draw(texts), draw(st.sampled_from(["commentary", "analysis"])), name, draw(types), f"id{n}"
        )
        for n, name in enumerate(names)
    ]
    to, where = st.sampled_from([None, "", "assistant"]), st.sampled_from([None, "", "commentary"])
    results = [
        message("tool", draw(texts), draw(where), draw(to), draw(st.sampled_from([None, "", "json"])), f"id{n}")
        for n in draw(st.permutations(range(len(names))))
    ]
    final = message("assistant", draw(texts), "final", None, draw(st.sampled_from([None, "", "json", CALL_JSON])))
    return [message("user", draw(texts)), *asked, *results, final]


instructions = st.lists(st.builds(message, st.sampled_from(["system", "developer"]), texts), max_size=2)
tails = st.lists(st.builds(message, st.just("user"), texts), max_size=1)
conversations = st.builds(
    lambda head, body, tail: [*head, *(m for t in body for m in t), *tail],
    instructions,
    st.lists(turns | parallel_turns(), min_size=1, max_size=3),
    tails,
)


def column(rows):
    return pa.array(rows, PROMPT.field("messages").type)


def batch(rows, tools=None):
    """A record batch of living rows; `tools` are JSON texts."""
    of_rows = pa.array(tools or [None] * len(rows), pa.string())
    return pa.record_batch({"messages": column(rows), "tools": of_rows, "verdict": pa.nulls(len(rows), VERDICT)})


def as_read(m):
    """A message with what its columns leave implicit filled in."""
    m = {key: value if key in ("role", "content") else value or None for key, value in m.items()}
    if m["role"] == "tool":
        m |= {"channel": m["channel"] or "commentary", "recipient": m["recipient"] or "assistant"}
    return m


def signatures(messages):
    """For each message that a tool has written, the recipient of its call; else None."""
    names, last, of_id = [], None, {}
    for m in map(as_read, messages):
        if m["role"] == "assistant" and m["recipient"]:
            last = of_id[m["call_id"]] = m["recipient"]
        names.append((last if m["call_id"] is None else of_id[m["call_id"]]) if m["role"] == "tool" else None)
    return names


def oracle(messages, preamble=PREAMBLE, tools=None):
    """What openai-harmony renders for training when it keeps the analysis.

    Args:
        messages: of a row.
        preamble: the constant messages.
        tools: functions with name, description and parameters.
    """
    theirs = preamble_messages(preamble)
    if tools and preamble.developer is None and not (messages and messages[0]["role"] in ("system", "developer")):
        theirs.append(Message.from_role_and_content(Role.DEVELOPER, DeveloperContent()))
    for m, name in zip(map(as_read, messages), signatures(messages), strict=True):
        if m["role"] in ("system", "developer"):
            content = DeveloperContent(instructions=m["content"])
            theirs.append(Message.from_role_and_content(Role.DEVELOPER, content))
        else:
            theirs.append(Message.from_author_and_content(Author(role=Role(m["role"]), name=name), m["content"]))
        theirs[-1].channel, theirs[-1].recipient = m["channel"], m["recipient"]
        theirs[-1].content_type = m["content_type"]
    if tools:
        (content,) = theirs[1].content
        content.with_function_tools([ToolDescription(**tool) for tool in tools])
    config = RenderConversationConfig(auto_drop_analysis=False)
    return load_encoding().render_conversation_for_training(Conversation.from_messages(theirs), config)
