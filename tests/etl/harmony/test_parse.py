"""What is rendered parses back to the same messages."""

import dataclasses
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import ConfigError, DataError
from etl.harmony.parse import parse
from etl.harmony.render import Messages, Renderer
from etl.harmony.tools import tool_section
from etl.harmony.vocabulary import (
    CONTROL_TOKENS,
    DEFAULT_VOCABULARY,
    ENDOFTEXT,
    MESSAGE,
    START,
    VOCAB_SIZE,
    load_encoding,
)
from tests.etl.harmony.conversations import (
    PREAMBLE,
    as_read,
    column,
    conversations,
    message,
    signatures,
    texts,
)

NUM_CONSTANT = 2


@pytest.fixture(scope="module")
def renderer():
    return Renderer(PREAMBLE, DEFAULT_VOCABULARY)


def rendered(renderer, row):
    return renderer.render(Messages.of(column([row]))).tokens.tolist()


def without_names(parsed):
    return [{key: value for key, value in m.items() if key not in ("name", "tools")} for m in parsed]


@given(row=conversations)
def test_round_trip(renderer, row):
    tokens = rendered(renderer, row)
    parsed = parse(tokens)
    said = without_names(parsed)
    read = [as_read(m) | ({"role": "developer"} if m["role"] == "system" else {}) for m in row]
    assert [m | {"call_id": None} for m in said[NUM_CONSTANT:]] == [m | {"call_id": None} for m in read]
    assert parsed[0]["content"].startswith(PREAMBLE.identity)
    assert said[1] == message("developer", PREAMBLE.developer)
    assert [m["name"] for m in parsed[NUM_CONSTANT:]] == signatures(row)
    assert rendered(renderer, said[NUM_CONSTANT:]) == tokens


def test_a_completion_begins_after_its_role(renderer):
    row = [message("assistant", "hm", "analysis"), message("assistant", "yes", "final")]
    found = renderer.render(Messages.of(column([row])))
    start = found.spans.start[0]
    assert without_names(parse(found.tokens[start + 2 :].tolist(), "assistant")) == row


@given(text=texts)
def test_a_raw_document_round_trips(renderer, text):
    row = [message("text", text)]
    assert without_names(parse(rendered(renderer, row))) == row


def of_text(text):
    return load_encoding().encode(text, allowed_special="all")


def test_results_of_two_calls_are_signed_as_they_are_written():
    call = "<|start|>assistant to=functions.{}<|channel|>commentary<|message|>{{}}<|call|>"
    result = "<|start|>functions.{0} to=assistant<|channel|>commentary<|message|>of {0}<|end|>"
    tokens = of_text(call.format("f") + call.format("g") + result.format("g") + result.format("f"))
    assert [(m["name"], m["content"]) for m in parse(tokens)[2:]] == [("functions.g", "of g"), ("functions.f", "of f")]


def test_a_tool_may_say_no_recipient():
    call = "<|start|>assistant to={}<|channel|>commentary<|message|>1<|call|>"
    results = (
        "<|start|>functions.f<|message|>4<|end|>"
        "<|start|>python<|channel|>commentary<|message|>5<|end|>"
        "<|start|>python to=assistant<|channel|>commentary<|message|>6<|end|>"
    )
    parsed = parse(of_text(call.format("functions.f") + call.format("python") + results))[2:]
    assert without_names(parsed) == [
        message("tool", "4", call_id="call_0"),
        message("tool", "5", "commentary"),
        message("tool", "6", "commentary", "assistant"),
    ]
    assert [m["name"] for m in parsed] == ["functions.f", "python", "python"]
    with pytest.raises(DataError, match="Unknown role"):
        parse(of_text("<|start|>critic<|message|>a<|end|>"))


def test_tools_are_no_instructions(renderer):
    functions = [{"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {}}}}]
    row = [message("user", "q"), message("assistant", "a", "final")]
    messages = Messages.of(column([row]), pa.array([json.dumps(functions)]))
    said = parse(renderer.render(messages).tokens.tolist())
    assert said[1]["content"] == PREAMBLE.developer
    assert said[1]["tools"] == tool_section(functions)
    assert [m["tools"] for m in said if m is not said[1]] == [None] * 3
    assert without_names(said[2:]) == row
    alone = Renderer(dataclasses.replace(PREAMBLE, developer=None), DEFAULT_VOCABULARY)
    said = parse(alone.render(messages).tokens.tolist())
    assert (said[1]["content"], said[1]["tools"]) == ("", tool_section(functions))


def test_an_empty_recipient_is_none():
    (said,) = parse(of_text("<|start|>assistant to=<|channel|>commentary<|message|>I look.<|end|>"))
    assert said["recipient"] is None


@settings(max_examples=300, derandomize=True)
@given(
    tokens=st.lists(
        st.one_of(
            st.sampled_from([*CONTROL_TOKENS, 200_500, VOCAB_SIZE - 1, VOCAB_SIZE, -1, 2**31, 2**40, 10**30]),
            st.integers(0, 199_997),
            st.sampled_from(of_text("assistant user tool functions.f to= final analysis")),
        ),
        max_size=12,
    ),
    role=st.sampled_from([None, "assistant", "tool", "user"]),
)
def test_any_tokens_are_messages_or_a_data_error(tokens, role):
    try:
        found = parse(tokens, role)
    except DataError:
        return
    assert len(found) <= len(tokens)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("<|start|>user<|message|>a<|message|>b<|end|>", 4),
        ("<|start|>user<|message|>a<|start|>b<|end|>", 4),
        ("<|start|>user<|end|>", 2),
        ("<|start|>user<|message|>a<|endoftext|>", 4),
        ("<|start|>user<|message|>a<|reserved_200500|><|end|>", 4),
    ],
)
def test_a_control_token_in_a_wrong_place_is_no_text(text, place):
    with pytest.raises(DataError, match=f"at position {place}$"):
        parse(of_text(text))


def test_an_unknown_role_is_refused():
    with pytest.raises(ConfigError, match="next_role 'critic' is not a Harmony role; the roles are system, developer"):
        parse([5], "critic")


@pytest.mark.parametrize("tokens", [[MESSAGE], [5], [-1], [2**31], [2**70], [START], [START, 5, ENDOFTEXT]])
def test_tokens_that_are_no_messages(tokens):
    with pytest.raises(DataError, match="not well-formed Harmony"):
        parse(tokens)


def test_tokens_that_break_off(renderer):
    tokens = load_encoding().encode("<|start|>assistant<|channel|>final<|message|>half", allowed_special="all")
    assert without_names(parse(tokens)) == [message("assistant", "half", "final")]
