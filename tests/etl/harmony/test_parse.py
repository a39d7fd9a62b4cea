"""What is rendered parses back to the same messages."""

import pytest
from hypothesis import given

from etl.errors import DataError
from etl.harmony.parse import parse
from etl.harmony.render import Messages, Renderer
from etl.harmony.vocabulary import DEFAULT_VOCABULARY, ENDOFTEXT, MESSAGE, START, load_encoding
from tests.etl.harmony.conversations import PREAMBLE, column, conversations, message, texts

NUM_CONSTANT = 2


@pytest.fixture(scope="module")
def renderer():
    return Renderer(PREAMBLE, DEFAULT_VOCABULARY)


@given(row=conversations)
def test_round_trip(renderer, row):
    tokens = renderer.render(Messages.of(column([row]))).tokens.tolist()
    instructions = [m | {"role": "developer"} if m["role"] == "system" else m for m in row]
    parsed = parse(tokens)
    assert parsed[NUM_CONSTANT:] == instructions
    assert parsed[0]["content"].startswith(PREAMBLE.identity)
    assert parsed[1] == message("developer", PREAMBLE.developer)


def test_a_completion_begins_after_its_role(renderer):
    row = [message("assistant", "hm", "analysis"), message("assistant", "yes", "final")]
    rendered = renderer.render(Messages.of(column([row])))
    start = rendered.spans.start[0]
    assert parse(rendered.tokens[start + 2 :].tolist(), "assistant") == row


@given(text=texts)
def test_a_raw_document_round_trips(renderer, text):
    row = [message("text", text)]
    assert parse(renderer.render(Messages.of(column([row]))).tokens.tolist()) == row


@pytest.mark.parametrize("tokens", [[MESSAGE], [5], [2**31], [START, 5, ENDOFTEXT]])
def test_tokens_that_are_no_messages(tokens):
    with pytest.raises(DataError, match="not well-formed Harmony"):
        parse(tokens)


def test_tokens_that_break_off(renderer):
    tokens = load_encoding().encode("<|start|>assistant<|channel|>final<|message|>half", allowed_special="all")
    assert parse(tokens) == [message("assistant", "half", "final")]
