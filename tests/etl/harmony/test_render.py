"""Tokens and spans equal openai-harmony's own rendering, whatever is in the text."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.harmony.render import MessageKey, Messages, Preamble, Renderer
from etl.harmony.vocabulary import CALL, DEFAULT_VOCABULARY, END, ENDOFTEXT, MESSAGE, RETURN, START, load_encoding
from etl.schema import SPAN_KINDS
from tests.etl.harmony.conversations import PREAMBLE, column, conversations, message, oracle, texts


@pytest.fixture(scope="module")
def renderer():
    return Renderer(PREAMBLE, DEFAULT_VOCABULARY)


RENDERERS = {
    developer: Renderer(dataclasses.replace(PREAMBLE, developer=developer), DEFAULT_VOCABULARY)
    for developer in (None, "", "Answer.\n")
}


def rows_of(rendered):
    return [part.tolist() for part in np.split(rendered.tokens, rendered.offsets[1:-1])]


@settings(max_examples=150)
@given(rows=st.lists(conversations, min_size=1, max_size=4))
def test_tokens_equal_openai_harmony(renderer, rows):
    rendered = renderer.render(Messages.of(column(rows)))
    assert rows_of(rendered) == [oracle(row) for row in rows]


@settings(max_examples=100)
@given(rows=st.lists(conversations, min_size=1, max_size=4))
def test_spans_are_the_assistants_messages(renderer, rows):
    """Control tokens come only from headers, so scanning for them finds every message independently."""
    rendered = renderer.render(Messages.of(column(rows)))
    spans, expected = rendered.spans, []
    for i, (row, tokens) in enumerate(zip(rows, rows_of(rendered), strict=True)):
        starts = [k for k, t in enumerate(tokens) if t == START]
        contents = [k + 1 for k, t in enumerate(tokens) if t == MESSAGE]
        ends = [k + 1 for k, t in enumerate(tokens) if t in (END, RETURN, CALL)]
        shift = len(starts) - len(row)
        for m, said in enumerate(row):
            if said["role"] == "assistant":
                turn = sum(earlier["role"] == "user" for earlier in row[:m]) - 1
                place = starts[shift + m], contents[shift + m], ends[shift + m]
                expected.append((i, SPAN_KINDS.index(said["channel"]), turn, *place))
    fields = [f.name for f in dataclasses.fields(spans)]
    assert list(zip(*(getattr(spans, name).tolist() for name in fields), strict=True)) == expected


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
@pytest.mark.parametrize("start_date", [None, "2026-01-01"])
@pytest.mark.parametrize(("developer", "cutoff"), [(None, None), ("", "2024-06"), ("<|end|>", "2025")])
def test_preambles_equal_openai_harmony(effort, start_date, developer, cutoff):
    preamble = Preamble("Identity\n<|end|>", developer, effort, start_date, cutoff)
    row = [message("user", "a"), message("assistant", "b", "final")]
    rendered = Renderer(preamble, DEFAULT_VOCABULARY).render(Messages.of(column([row])))
    assert rendered.tokens.tolist() == oracle(row, preamble)


def test_a_conversation_ends_as_openai_harmony_ends_it(renderer):
    user, final = message("user", "a"), message("assistant", "b", "final")
    call = message("assistant", "{}", "commentary", "python")
    rows = [[user, final], [user, call], [user, final, user], [user, final, final]]
    ends = [row[-1] for row in rows_of(renderer.render(Messages.of(column(rows))))]
    assert ends == [RETURN, CALL, END, RETURN]


@given(text=texts)
def test_an_assistants_message_without_a_channel_is_final(renderer, text):
    silent = [message("user", text), message("assistant", text)]
    spoken = [message("user", text), message("assistant", text, "final")]
    rows = rows_of(renderer.render(Messages.of(column([silent, spoken]))))
    assert rows[0] == rows[1]


def test_a_slice_of_a_column_renders_alike(renderer):
    rows = [[message("user", str(i)), message("assistant", "b" * i, "final")] for i in range(5)]
    whole = rows_of(renderer.render(Messages.of(column(rows))))
    assert rows_of(renderer.render(Messages.of(column(rows).slice(2, 2)))) == whole[2:4]


def test_no_rows(renderer):
    rendered = renderer.render(Messages.of(column([])))
    assert len(rendered.tokens) == len(rendered.spans.row) == 0
    assert rendered.offsets.tolist() == [0]


def test_what_cannot_be_rendered_is_said():
    ok = [message("user", "a"), message("assistant", "b", "final")]
    tool = message("tool", "4", "commentary", "assistant")
    call = message("assistant", "2+2", "commentary", "python")
    rows = [
        ok,
        [message("critic", "x"), *ok],
        [*ok, message("assistant", "x", "thoughts"), message("critic", "x")],
        [tool, *ok],
        [call, tool, *ok],
        [],
        [tool, call],
    ]
    assert Messages.of(column(rows)).problems().to_pylist() == [
        None,
        "role 'critic'",
        "channel 'thoughts'",
        "tool message that answers no call before it",
        None,
        None,
        "tool message that answers no call before it",
    ]


def test_an_empty_recipient_or_channel_is_none(renderer):
    said = [
        message("user", "a", "", ""),
        message("assistant", "b", "", ""),
        message("assistant", "c", "commentary", ""),
    ]
    bare = [message("user", "a"), message("assistant", "b", "final"), message("assistant", "c", "commentary")]
    rendered = [renderer.render(Messages.of(column([row]))) for row in (said, bare)]
    assert rendered[0].tokens.tolist() == rendered[1].tokens.tolist()
    assert rendered[0].tokens[-1] == END
    answer = [message("assistant", "c", "commentary", ""), message("tool", "4", "commentary", "assistant")]
    assert Messages.of(column([answer])).problems().to_pylist() == ["tool message that answers no call before it"]


def test_a_result_is_signed_by_its_call():
    """By the last call before it with its id, only in its row; a result without an id by the last call."""
    f, g = (message("assistant", "", "commentary", f"functions.{name}", None, name) for name in "fg")
    of_f, of_g, of_last, of_none = (message("tool", "4", call_id=name) for name in ("f", "g", None, "h"))
    again = message("assistant", "", "commentary", "python", None, "f")
    messages = Messages.of(column([[f, g, of_f, of_g, of_last, again, of_f], [g, of_g], [of_g, f, of_none]]))
    authors = [messages.keys[k].author for k in messages.key if messages.keys[k].role == "tool"]
    expected = ["functions.f", "functions.g", "functions.g", "python", "functions.g", None, None]
    assert authors == expected
    assert [problem is None for problem in messages.problems().to_pylist()] == [True, True, False]


def test_messages_of_earlier_versions_have_no_content_type(renderer):
    row = [message("user", "a"), message("assistant", "{}", "commentary", "python"), message("tool", "4")]
    fields = ("role", "channel", "recipient", "content")
    earlier = pa.array([[{name: m[name] for name in fields} for m in row]])
    found = [renderer.render(Messages.of(messages)).tokens.tolist() for messages in (earlier, column([row]))]
    assert found[0] == found[1]


functions = st.lists(
    st.builds(
        lambda name, text, kind: {
            "name": name,
            "description": text,
            "parameters": kind and {"type": "object", "properties": {"a": {"type": kind, "description": text}}},
        },
        st.sampled_from(["f", "get_weather", "a.b"]),
        texts,
        st.sampled_from([None, "string", "integer"]),
    ),
    max_size=3,
)


@settings(max_examples=100)
@given(
    developer=st.sampled_from(list(RENDERERS)),
    rows=st.lists(st.tuples(conversations, functions), min_size=1, max_size=4),
)
def test_tools_stand_in_the_first_developer_message(developer, rows):
    preamble = dataclasses.replace(PREAMBLE, developer=developer)
    tools = pa.array([json.dumps(tools) if tools else None for _, tools in rows], pa.string())
    messages = Messages.of(column([row for row, _ in rows]), tools)
    assert messages.problems().null_count == len(rows)
    rendered = RENDERERS[developer].render(messages)
    assert rows_of(rendered) == [oracle(row, preamble, tools) for row, tools in rows]
    spans = rendered.spans
    starts = rendered.tokens[rendered.offsets[spans.row] + spans.start]
    assert (starts == START).all()
    assert (rendered.tokens[rendered.offsets[spans.row] + spans.content_start - 1] == MESSAGE).all()


def test_a_tool_answers_the_last_call():
    tool = message("tool", "4", "commentary", "assistant")
    first, second = (message("assistant", "", "commentary", name) for name in ("python", "browser.open"))
    messages = Messages.of(column([[first, tool, second, tool], [second, tool, tool]]))
    authors = [messages.keys[k].author for k in messages.key if messages.keys[k].role == "tool"]
    assert authors == ["python", "browser.open", "browser.open", "browser.open"]
    assert MessageKey("assistant", "commentary", "python", None) in messages.keys


@settings(max_examples=50)
@given(rows=st.lists(conversations | texts.map(lambda text: [message("text", text)]), min_size=1, max_size=5))
def test_raw_documents_and_conversations_stand_in_one_batch(renderer, rows):
    rendered = renderer.render(Messages.of(column(rows)))
    is_text = [row[0]["role"] == "text" for row in rows]
    expected = [
        [*load_encoding().encode(row[0]["content"], disallowed_special=()), ENDOFTEXT] if raw else oracle(row)
        for row, raw in zip(rows, is_text, strict=True)
    ]
    assert rows_of(rendered) == expected
    spans = rendered.spans
    for number in np.flatnonzero(is_text):
        (at,) = np.flatnonzero(spans.row == number)
        place = [getattr(spans, name)[at] for name in ("turn", "start", "content_start", "end")]
        assert place == [-1, 0, 0, len(expected[number])]
        assert SPAN_KINDS[spans.kind[at]] == "text"
