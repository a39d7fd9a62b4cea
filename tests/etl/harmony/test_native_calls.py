"""Conversations with tools, from a data set's own row to tokens, which equal openai-harmony's for its messages.

What openai-harmony renders is built here by its own classes, from the row's own words, not from our columns.
"""

import gzip
import json

import pytest
from openai_harmony import (
    Author,
    Conversation,
    DeveloperContent,
    Message,
    ReasoningEffort,
    RenderConversationConfig,
    Role,
    SystemContent,
    ToolDescription,
)

from etl.harmony.step import HarmonyStep
from etl.harmony.vocabulary import load_encoding
from etl.sources.spec import Description
from tests.etl.sources.toysources import batches_of

JSON_CALL = "<|constrain|>json"
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of the city"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
TIME = {"name": "get_time", "description": "The time.", "parameters": {"type": "object", "properties": {}}}
OPENAI_TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": TIME}]
ASKED = "How is Rome?"
ROME, NOW = '{"city":"Rome","days":2}', "{}"
TAGS = (
    "You are a function calling AI model. You are provided with function signatures within <tools> </tools> XML tags. "
    "You may call one or more functions.\n<tools>\n{}\n</tools>\nFor each function call return a json object within "
    "<tool_call> </tool_call> tags."
)


def user(text):
    return Message.from_role_and_content(Role.USER, text)


def assistant(text, channel="final"):
    return Message.from_role_and_content(Role.ASSISTANT, text).with_channel(channel)


def called(name, arguments):
    message = assistant(arguments, "commentary").with_recipient(f"functions.{name}")
    return message.with_content_type(JSON_CALL)


def result(name, text):
    author = Author(role=Role.TOOL, name=f"functions.{name}")
    return Message.from_author_and_content(author, text).with_channel("commentary").with_recipient("assistant")


def tokens_of_theirs(messages, tools=(), instructions=None):
    """What openai-harmony renders for training."""
    system = SystemContent().with_model_identity("You are a still.").with_reasoning_effort(ReasoningEffort.MEDIUM)
    head = [Message.from_role_and_content(Role.SYSTEM, system)]
    if tools or instructions:
        content = DeveloperContent(instructions=instructions)
        if tools:
            content = content.with_function_tools([ToolDescription(**tool) for tool in tools])
        head.append(Message.from_role_and_content(Role.DEVELOPER, content))
    config = RenderConversationConfig(auto_drop_analysis=False)
    return load_encoding().render_conversation_for_training(Conversation.from_messages([*head, *messages]), config)


def tokens_of_ours(path, shape):
    described = Description.model_validate({"skill_bucket": "chat", **shape}).root
    step = HarmonyStep(system="You are a still.").open()
    found = []
    for split in batches_of(path, shape=described):
        for batch, bad in split:
            assert bad == []
            rendered = step(batch)
            assert rendered.column("verdict").null_count == len(rendered)
            found += rendered.column("input_ids").to_pylist()
    return found


def call(name, arguments, **more):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def told(name, value):
    return {"from": name, "value": value}


MESSAGES, SHAREGPT = {"shape": "messages"}, {"shape": "messages", "messages": "conversations"}
SUN = '{"sky": "clear"}'
ONE_CALL = [user(ASKED), called("get_weather", ROME), result("get_weather", SUN), assistant("Clear.")]
THOUGHT_CALL = [
    user(ASKED),
    assistant("I must look.", "analysis"),
    called("get_weather", ROME),
    result("get_weather", SUN),
    assistant("It is clear.", "analysis"),
    assistant("Clear."),
]
TWO_CALLS = [
    user(ASKED),
    assistant("Both at once.", "commentary"),
    called("get_weather", ROME),
    called("get_time", NOW),
    result("get_time", "noon"),
    result("get_weather", SUN),
    assistant("Clear at noon."),
]
ARGUMENTS = {"city": "Rome", "days": 2}
NAMED = json.dumps({"name": "get_weather", "arguments": ARGUMENTS})
CASES: dict[str, tuple[dict, dict, tuple]] = {
    "openai": (
        MESSAGES,
        {
            "tools": OPENAI_TOOLS,
            "messages": [
                said("system", "Be brief."),
                said("user", ASKED),
                said("assistant", None, tool_calls=[call("get_weather", ROME, id="c1")]),
                said("tool", SUN, tool_call_id="c1"),
                said("assistant", "Clear."),
            ],
        },
        (ONE_CALL, [WEATHER, TIME], "Be brief."),
    ),
    "as text, tools and arguments as objects": (
        MESSAGES,
        {
            "tools": json.dumps([WEATHER, TIME]),
            "messages": json.dumps(
                [
                    said("user", ASKED),
                    said("assistant", "", tool_calls=[call("get_weather", ARGUMENTS)]),
                    said("tool", SUN, name="get_weather"),
                    said("assistant", "Clear."),
                ]
            ),
        },
        (ONE_CALL, [WEATHER, TIME]),
    ),
    "two calls at once, results by id in another order": (
        MESSAGES,
        {
            "tools": OPENAI_TOOLS,
            "messages": [
                said("user", ASKED),
                said(
                    "assistant",
                    "Both at once.",
                    tool_calls=[call("get_weather", ROME, id="a"), call("get_time", NOW, id="b")],
                ),
                said("tool", "noon", tool_call_id="b"),
                said("tool", SUN, tool_call_id="a"),
                said("assistant", "Clear at noon."),
            ],
        },
        (TWO_CALLS, [WEATHER, TIME]),
    ),
    "two calls at once, results by name in another order": (
        MESSAGES,
        {
            "messages": [
                said("user", ASKED),
                said("assistant", "Both at once.", tool_calls=[call("get_weather", ROME), call("get_time", {})]),
                said("tool", "noon", name="get_time"),
                said("tool", SUN, name="get_weather"),
                said("assistant", "Clear at noon."),
            ],
        },
        (TWO_CALLS,),
    ),
    "reasoning between calls": (
        MESSAGES,
        {
            "tools": [WEATHER],
            "messages": [
                said("user", ASKED),
                said("assistant", "", reasoning_content="I must look.", tool_calls=[call("get_weather", ROME)]),
                said("tool", SUN),
                said("assistant", "<think>\nIt is clear.\n</think>\n\nClear."),
            ],
        },
        (THOUGHT_CALL, [WEATHER]),
    ),
    "an old function call": (
        MESSAGES,
        {
            "functions": [WEATHER],
            "messages": [
                said("user", ASKED),
                said("assistant", None, function_call={"name": "get_weather", "arguments": ROME}),
                said("function", SUN, name="get_weather"),
                said("assistant", "Clear."),
            ],
        },
        (ONE_CALL, [WEATHER]),
    ),
    "tags": (
        SHAREGPT,
        {
            "conversations": [
                told("system", TAGS.format(json.dumps([WEATHER, TIME]))),
                told("human", ASKED),
                told("gpt", f"<think>\nI must look.\n</think>\n<tool_call>\n{NAMED}\n</tool_call>"),
                told("tool", f"<tool_response>\n{SUN}\n</tool_response>"),
                told("gpt", "<think>It is clear.</think>Clear."),
            ],
        },
        (THOUGHT_CALL, [WEATHER, TIME]),
    ),
    "messages of their own": (
        SHAREGPT,
        {
            "tools": json.dumps([WEATHER]),
            "conversations": [
                told("human", ASKED),
                told("function_call", NAMED),
                told("observation", SUN),
                told("gpt", "Clear."),
            ],
        },
        (ONE_CALL, [WEATHER]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_row_with_calls_is_what_openai_harmony_renders(tmp_path, case):
    shape, row, expected = CASES[case]
    if "functions" in row:
        shape = shape | {"tools": "functions"}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    assert tokens_of_ours(tmp_path / "x.jsonl", shape) == [tokens_of_theirs(*expected)]


def test_real_rows_with_calls(shared_data):
    """Glaive's: each message is read once more, by the four names that its speakers have."""
    path = shared_data / "llamafactory_demos" / "glaive_toolcall_en_demo.jsonl.gz"
    rows = list(map(json.loads, gzip.decompress(path.read_bytes()).splitlines()))
    expected = []
    for row in rows:
        messages, name = [], None
        for one in row["conversations"]:
            if one["from"] == "human":
                messages.append(user(one["value"]))
            elif one["from"] == "gpt":
                messages.append(assistant(one["value"]))
            elif one["from"] == "function_call":
                made = json.loads(one["value"])
                name = made["name"]
                messages.append(called(name, json.dumps(made["arguments"], ensure_ascii=False, separators=(",", ":"))))
            else:
                messages.append(result(name, one["value"]))
        expected.append(tokens_of_theirs(messages, json.loads(row["tools"])))
    assert sum(any(one["from"] == "function_call" for one in row["conversations"]) for row in rows) > 100
    assert tokens_of_ours(path, SHAREGPT) == expected
