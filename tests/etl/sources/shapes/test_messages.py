"""Messages of every layout: roles by any name, reasoning, calls with results, definitions of tools."""

import json

import pytest

from etl.sources.shapes.dialogue import json_schema, split_thinking
from etl.sources.shapes.turns import Unfit
from tests.etl.sources.shapes.toyshapes import converse

CHAT = {"shape": "messages"}
SHAREGPT = {"shape": "messages", "messages": "conversations"}


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def told(name, value):
    return {"from": name, "value": value}


def test_messages_as_a_list_and_as_json(tmp_path):
    messages = [said("system", "Be kind."), said("user", "hi"), said("assistant", "hello")]
    good, _ = converse(tmp_path, CHAT, {"messages": messages}, {"messages": json.dumps(messages)})
    assert good == [[("system", "Be kind."), ("user", "hi"), ("assistant", "final", "hello")]] * 2


@pytest.mark.parametrize("names", [("human", "gpt"), ("User", "Assistant"), ("prompter", "chatgpt"), ("user", "bing")])
def test_speakers_by_their_many_names(tmp_path, names):
    user, assistant = names
    good, _ = converse(tmp_path, SHAREGPT, {"conversations": [told(user, "a"), told(assistant, "b")]})
    assert good == [[("user", "a"), ("assistant", "final", "b")]]


def test_an_unknown_speaker_is_said_with_the_key_that_helps(tmp_path):
    rows = {"conversations": [told("narrator", "a"), told("gpt", "b")]}
    assert converse(tmp_path, SHAREGPT, rows) == ([], [(0, "unknown_role")])
    good, _ = converse(tmp_path, SHAREGPT | {"roles": {"narrator": "user"}}, rows)
    assert good == [[("user", "a"), ("assistant", "final", "b")]]


@pytest.mark.parametrize(
    "answer",
    [
        said("assistant", "4", reasoning_content="2+2"),
        said("assistant", "<think>\n2+2\n</think>\n\n4"),
        said("assistant", "2+2</think>4"),
        said("assistant", "<|begin_of_thought|>2+2<|end_of_thought|><|begin_of_solution|>4<|end_of_solution|>"),
        said("assistant", [{"type": "reasoning", "value": "2+2"}, {"type": "text", "text": "4"}]),
    ],
)
def test_reasoning_is_a_message_of_its_own(tmp_path, answer):
    good, _ = converse(tmp_path, CHAT, {"messages": [said("user", "?"), answer]})
    assert good == [[("user", "?"), ("assistant", "analysis", "2+2"), ("assistant", "final", "4")]]


def test_tags_inside_an_answer_stay_text():
    assert split_thinking("The tag <think> opens and </think> closes.") == (
        "", "The tag <think> opens and </think> closes.",
    )  # fmt: skip
    with pytest.raises(Unfit, match="unclosed_thinking"):
        split_thinking("<think>for ever")


CALLED = [
    ("user", "weather?"),
    ("assistant", "commentary", "Let me look."),
    ("assistant", "commentary", "functions.get", '{"city":"Bern"}'),
    ("tool", "commentary", "assistant", "sun"),
    ("assistant", "final", "Sun."),
]


def test_calls_of_the_openai_layout(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"city":"Bern"}'}}
    messages = [
        said("user", "weather?"),
        said("assistant", "Let me look.", tool_calls=[call]),
        said("tool", "sun", tool_call_id="c1"),
        said("assistant", "Sun."),
    ]
    assert converse(tmp_path, CHAT, {"messages": messages})[0] == [CALLED]


def test_calls_in_tags_and_by_a_speaker_of_their_own(tmp_path):
    call = '{"name": "get", "arguments": {"city": "Bern"}}'
    hermes = [
        told("human", "weather?"),
        told("gpt", f"Let me look.\n<tool_call>\n{call}\n</tool_call>"),
        told("tool", "<tool_response>\nsun\n</tool_response>"),
        told("gpt", "Sun."),
    ]
    own = [
        told("human", "weather?"), told("gpt", "Let me look."), told("function_call", call), told("observation", "sun"),
        told("gpt", "Sun."),
    ]  # fmt: skip
    good, _ = converse(tmp_path, SHAREGPT, {"conversations": hermes}, {"conversations": own})
    assert good[0] == CALLED
    assert [message for message in good[1] if message[-1] != "Let me look."] == [
        message for message in CALLED if message[-1] != "Let me look."
    ]


def test_a_python_literal_in_a_call_is_read(tmp_path):
    value = "<tool_call>{'name': 'get', 'arguments': {'x': True}}</tool_call>"
    good, _ = converse(tmp_path, SHAREGPT, {"conversations": [told("human", "?"), told("gpt", value)]})
    assert good[0][-1] == ("assistant", "commentary", "functions.get", '{"x":true}')


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([said("tool", "sun")], "result_without_call"),
        ([said("user", None)], "wrong_type"),
        ([said("user", [{"type": "image_url", "image_url": "x"}])], "not_text"),
        ([said("assistant", "<tool_call>get()</tool_call>")], "invalid_json"),
        ("no json", "invalid_json"),
        (7, "not_messages"),
        ([["hi"]], "not_messages"),
        ([said("assistant", "", tool_calls=[{"function": {}}])], "wrong_type"),
    ],
)
def test_what_is_no_conversation_is_lost_with_a_reason(tmp_path, messages, reason):
    good, bad = converse(tmp_path, CHAT, {"messages": [said("user", "hi")]}, {"messages": messages})
    assert len(good) == 1
    assert [why for _, why in bad] == [reason]


def test_a_system_message_of_tools_alone_is_no_instruction(tmp_path):
    tool = json.dumps({"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}})
    protocol = f"You are a function calling AI model. Tools are in <tools> </tools>.\n<tools>\n{tool}\n</tools>"
    own = f"You are Ann.\n<tools>[{tool}]</tools>"
    rest = [told("human", "?"), told("gpt", "!")]
    good, _ = converse(
        tmp_path,
        SHAREGPT,
        {"conversations": [told("system", protocol), *rest]},
        {"conversations": [told("system", own), *rest]},
    )
    assert good == [
        [("user", "?"), ("assistant", "final", "!")],
        [("system", "You are Ann."), ("user", "?"), ("assistant", "final", "!")],
    ]


SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}


@pytest.mark.parametrize(
    "parameters",
    [
        SCHEMA,
        SCHEMA | {"type": "dict", "properties": {"city": {"type": "str"}, "days": {"type": "int, optional"}}},
        {"city": {"type": "str"}, "days": {"type": "int, optional"}},
    ],
)
@pytest.mark.parametrize(
    "wrap", [lambda tools: tools, json.dumps, lambda tools: [{"type": "function", "function": tools[0]}]]
)
def test_tools_become_json_schema(tmp_path, parameters, wrap):
    tool = {"name": "get", "description": "Weather.", "parameters": parameters}
    row = {"messages": [said("user", "?"), said("assistant", "!")], "tools": wrap([tool])}
    (found, without), _ = converse(tmp_path, CHAT, row, {"messages": row["messages"]}, raw=True)
    assert without["tools"] is None
    assert json.loads(found["tools"]) == [{"name": "get", "description": "Weather.", "parameters": SCHEMA}]


def test_a_name_of_a_parameter_is_no_type():
    assert json_schema({"type": {"type": "str"}}) == {
        "type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"],
    }  # fmt: skip


def test_texts_are_said_in_turn(tmp_path):
    good, bad = converse(tmp_path, {"shape": "messages"}, {"messages": ["a?", "b", "c?"]}, {"messages": ["a?", 1]})
    assert good == [[("user", "a?"), ("assistant", "final", "b"), ("user", "c?")]]
    assert [reason for _, reason in bad] == ["not_messages"]
