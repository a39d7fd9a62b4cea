"""The template against the corpus's renderer (tokens and spans) and against openai-harmony (calls, results, tools)."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from openai_harmony import (
    Author,
    Conversation,
    DeveloperContent,
    Message,
    RenderConversationConfig,
    Role,
    TextContent,
    ToolDescription,
)

from etl.harmony.parse import parse
from etl.harmony.render import Messages, Preamble, Renderer, preamble_messages
from etl.harmony.step import PREAMBLE_FIELDS, HarmonyStep
from etl.harmony.vocabulary import CONTROL_MARK, DEFAULT_VOCABULARY, load_encoding
from etl.schema import CALL_JSON, MESSAGE
from etl.storage.dataset import Dataset
from tests.etl.harmony.conversations import message
from tests.etl.stages.toys import make_recipe, mixed_rows, run, write_jsonl
from tests.training.export.conftest import PREAMBLE
from training.export.chat_template import chat_template

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

KEEP_ANALYSIS = RenderConversationConfig(auto_drop_analysis=False)
NUM_CONSTANT = 2


def arguments(preamble):
    """A preamble as arguments of the template."""
    return {
        "model_identity": preamble.identity, "developer_instructions": preamble.developer,
        "reasoning_effort": preamble.effort, "conversation_start_date": preamble.start_date,
        "knowledge_cutoff": preamble.knowledge_cutoff,
    }  # fmt: skip


def rendered(tokenizer, messages, **more):
    """Tokens and assistant mask."""
    found = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, **more)
    return found["input_ids"], found["assistant_masks"]


def of_corpus(rows, preamble=PREAMBLE):
    """Tokens and supervised positions of each row as the corpus has them."""
    found = Renderer(preamble, DEFAULT_VOCABULARY).render(Messages.of(pa.array(rows, pa.list_(MESSAGE))))
    masks = [np.zeros(size, int) for size in np.diff(found.offsets)]
    for row, start, end in zip(found.spans.row, found.spans.start, found.spans.end, strict=True):
        masks[row][start:end] = 1
    tokens = np.split(found.tokens, found.offsets[1:-1])
    return [(ids.tolist(), mask.tolist()) for ids, mask in zip(tokens, masks, strict=True)]


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    [
        "\n",
        " \n\n",
        "größe",
        "猫は魚",
        "e\u0301",
        "<|",
        "|>",
        "<|x|>",
        "{{ a }}",
        "{% b %}",
        "# Instructions\n\n",
        "'s",
        "1234",
    ]
)
texts = st.lists(words, max_size=4).map("".join).filter(lambda text: not CONTROL_MARK.search(text))
names = st.sampled_from(["functions.f", "functions.get_weather", "python", "browser.search", "all"])


thoughts = st.builds(message, st.just("assistant"), texts, st.sampled_from(["analysis", "commentary"]))
types = st.sampled_from([None, CALL_JSON, "json"])
calls = st.builds(message, st.just("assistant"), texts, st.sampled_from([None, "commentary"]), names, types)
headers = st.sampled_from([(None, None), ("commentary", "assistant"), ("commentary", None)])
results = st.builds(lambda text, header, kind: message("tool", text, header[0], header[1], kind), texts, headers, types)


def named(messages, first):
    """Calls and their results with ids, the results in the calls' reversed order."""
    count = sum(m["role"] == "assistant" for m in messages)
    return [m | {"call_id": f"{first + n % count}"} for n, m in enumerate(messages)]


@st.composite
def conversations(draw):
    """Rows of a corpus: instructions, several turns, analysis, preambles, calls with their results."""
    row = [message(draw(st.sampled_from(["system", "developer"])), draw(texts)) for _ in range(draw(st.integers(0, 2)))]
    for _ in range(draw(st.integers(1, 3))):
        row.append(message("user", draw(texts)))
        row += draw(st.lists(thoughts, max_size=2)) + draw(st.lists(calls, max_size=2))
        if row[-1]["recipient"]:
            row += draw(st.lists(results, max_size=2))
        if draw(st.booleans()):
            asked = draw(st.lists(calls, min_size=1, max_size=2))
            row += named([*asked, *draw(st.lists(results, max_size=2))], draw(st.integers(0, 1)))
        if draw(st.booleans()):
            row.append(message("assistant", draw(texts), draw(st.sampled_from([None, "final"]))))
    return row


dates = st.none() | st.sampled_from(["2025-06-28", "2024-06"])
preambles = st.builds(
    Preamble, texts.filter(lambda text: len(text.splitlines()) < 2), st.none() | texts,
    st.sampled_from(["low", "medium", "high"]), dates, dates,
)  # fmt: skip


@settings(max_examples=30, derandomize=True, deadline=None)
@given(row=conversations(), preamble=preambles)
def test_tokens_and_mask_are_the_corpuss(tokenizer, row, preamble):
    ((tokens, mask),) = of_corpus([row], preamble)
    assert rendered(tokenizer, row, **arguments(preamble)) == (tokens, mask)


@settings(max_examples=8, derandomize=True, deadline=None)
@given(preamble=preambles)
def test_it_begins_with_the_preamble(tokenizer, preamble):
    row = [message("user", "a"), message("assistant", "b", "final")]
    ((tokens, _),) = of_corpus([row], preamble)
    assert tokenizer.apply_chat_template(row, chat_template=chat_template(preamble), return_dict=False) == tokens


def test_a_corpus_that_a_run_has_written_is_rendered_token_by_token(tokenizer, tmp_path):
    said = {"system": "You are a still.", "developer": "Antworte.", "reasoning_effort": "high",
            "conversation_start_date": "2026-01-01"}  # fmt: skip
    rows = write_jsonl(tmp_path / "rows.jsonl", mixed_rows(40))
    run(make_recipe(tmp_path / "out", {"a": rows}, stages=["tokenize", "layout"], harmony=said))
    corpus = Dataset.open(tmp_path / "out" / "corpus")
    told = corpus.manifest.findings["preambles"]["input_ids"]
    assert set(told) == set(PREAMBLE_FIELDS)
    template = chat_template(HarmonyStep(**told).preamble())
    checked = 0
    for row in (row for batch in corpus.read() for row in batch.to_pylist()):
        tokens, mask = rendered(tokenizer, row["messages"], chat_template=template)
        supervised = [any(span["start"] <= at < span["end"] for span in row["spans"]) for at in range(len(tokens))]
        assert (tokens, [bool(bit) for bit in mask]) == (row["input_ids"], supervised)
        checked += 1
    assert checked > 30


def harmony(messages, preamble=PREAMBLE, tools=None, prompt=False):
    """openai-harmony's own rendering of (role, content, name, channel, recipient), a call's content being JSON."""
    theirs = preamble_messages(preamble)
    if tools:
        content = DeveloperContent(instructions=preamble.developer).with_function_tools(tools)
        theirs = [theirs[0], Message.from_role_and_content(Role.DEVELOPER, content)]
    for role, content, name, channel, recipient in messages:
        author = Author(role=Role(role), name=name)
        is_call = role == "assistant" and recipient is not None
        said, kind = [TextContent(text=content)], CALL_JSON if is_call else None
        theirs.append(Message(author=author, content=said, channel=channel, recipient=recipient, content_type=kind))
    conversation = Conversation.from_messages(theirs)
    if prompt:
        return load_encoding().render_conversation_for_completion(conversation, Role.ASSISTANT, KEEP_ANALYSIS)
    return load_encoding().render_conversation_for_training(conversation, KEEP_ANALYSIS)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=4
)


@st.composite
def chats(draw):
    """Messages with tool_calls as transformers has them, ids used again in each turn; and openai-harmony's."""
    chat, theirs = [], []
    for _ in range(draw(st.integers(1, 2))):
        question = draw(st.lists(texts, min_size=1, max_size=2))
        chat.append({"role": "user", "content": [{"type": "text", "text": part} for part in question]})
        theirs.append(("user", "".join(question), None, None, None))
        calls = draw(st.lists(st.sampled_from(["f", "g", "get_weather"]), min_size=1, max_size=3, unique=True))
        thinking, said = draw(st.none() | texts), draw(st.none() | texts)
        key = draw(st.sampled_from(["thinking", "reasoning_content"]))
        asked = {"role": "assistant", "content": said, key: thinking, "tool_calls": []}
        if thinking:
            theirs.append(("assistant", thinking, None, "analysis", None))
        if said:
            theirs.append(("assistant", said, None, "commentary", None))
        for number, name in enumerate(calls):
            given = draw(st.dictionaries(texts, values, max_size=2))
            body = json.dumps(given, ensure_ascii=False)
            function = {"name": name, "arguments": draw(st.sampled_from([given, body]))}
            asked["tool_calls"].append({"id": f"call_{number}", "type": "function", "function": function})
            theirs.append(("assistant", body, None, "commentary", f"functions.{name}"))
        chat.append(asked)
        signed = draw(st.sampled_from(["id", "name", "order"]))
        numbers = list(range(len(calls))) if signed == "order" else draw(st.permutations(range(len(calls))))
        for number in numbers:
            sign = {"id": {"tool_call_id": f"call_{number}"}, "name": {"name": calls[number]}, "order": {}}[signed]
            result = draw(texts)
            chat.append({"role": "tool", "content": result, **sign})
            theirs.append(("tool", result, f"functions.{calls[number]}", "commentary", "assistant"))
        if draw(st.booleans()):
            answer = draw(texts)
            chat.append({"role": "assistant", "content": answer})
            theirs.append(("assistant", answer, None, "final", None))
    return chat, theirs


def only_text(chat):
    return not CONTROL_MARK.search(json.dumps(chat, ensure_ascii=False))


@settings(max_examples=30, derandomize=True, deadline=None)
@given(both=chats().filter(lambda both: only_text(both[0])))
def test_calls_and_results_are_openai_harmonys(tokenizer, both):
    chat, theirs = both
    tokens, mask = rendered(tokenizer, chat)
    assert tokens == harmony(theirs)
    said = parse(tokens)[NUM_CONSTANT:]
    assert [(m["role"], m["content"], m["name"], m["channel"], m["recipient"]) for m in said] == theirs
    assert {m["content_type"] for m in said if m["recipient"] not in (None, "assistant")} == {CALL_JSON}
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert prompt == harmony(theirs, prompt=True)
    spoken = [m for m in theirs if m[0] == "assistant"]
    starts = [at for at in range(len(mask)) if mask[at] and tokens[at] == 200_006]
    assert len(starts) == len(spoken)


def test_what_was_parsed_is_rendered_again(tokenizer):
    """Tools' messages that bring their own name, in another order than the calls."""
    text = (
        "<|start|>user<|message|>q<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>"
        "<|start|>assistant to=python<|channel|>commentary<|message|>1<|call|>"
        "<|start|>functions.f to=assistant<|channel|>commentary<|message|>of f<|end|>"
        "<|start|>python to=assistant<|channel|>commentary json<|message|>2<|end|>"
    )
    expected = load_encoding().encode(text, allowed_special="all")
    tokens = tokenizer.apply_chat_template(parse(expected), return_dict=False)
    assert tokens[-len(expected) :] == expected


SCHEMA = {
    "type": "object",
    "description": "Where\nand when.",
    "properties": {
        "zone": {"type": "string", "title": "Zone", "description": "IANA name", "default": "UTC",
                 "examples": ["UTC", 3]},
        "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
        "days": {"type": "integer", "nullable": True, "default": None},
        "at": {"type": ["number", "integer", "null"]},
        "tags": {"type": "array", "items": {"type": "object", "properties": {"größe": {"type": "boolean"}}}},
        "free": {"type": "array"},
        "either": {
            "description": "one of two", "default": {"b": [1.5, "x"], "a": True},
            "oneOf": [{"type": "string", "description": "a name", "default": "x"},
                      {"type": "number", "description": "n"}],
        },
        "same": {"description": "d", "oneOf": [{"type": "string", "description": "d", "enum": ["q"], "default": "q"}]},
        "ref": {"anyOf": [{"type": "string"}]},
        "deep": {"type": "array", "items": {"oneOf": [{"type": "string", "default": "s"},
                                                      {"type": "object", "nullable": True}]}},
        "none": {},
    },
    "required": ["zone", "tags"],
}  # fmt: skip
TOOLS = [("get_weather", "Weather.\r\nOf a place.\n", SCHEMA), ("now", "", None), ("ping", "x", {"type": "object"})]


@pytest.mark.parametrize("developer", ["Be brief.", None])
def test_definitions_of_tools_are_openai_harmonys(tokenizer, developer):
    preamble = Preamble("You.", developer, "high", None, "2024-06")
    tools = [ToolDescription.new(name, about, parameters=schema) for name, about, schema in TOOLS]
    expected = harmony([("user", "q", None, None, None)], preamble, tools)
    functions = [{"name": name, "description": about, "parameters": schema} for name, about, schema in TOOLS]
    for given_tools in ([{"type": "function", "function": one} for one in functions], functions):
        made = tokenizer.apply_chat_template(
            [{"role": "user", "content": "q"}], tools=given_tools, return_dict=False, **arguments(preamble)
        )
        assert tokenizer.decode(made) == load_encoding().decode(expected)
        assert made == expected


def test_tools_stand_in_the_first_instructions(tokenizer):
    """Those of the messages where the template has none of its own."""
    preamble = Preamble("You.", "Be brief.", "high", None, "2024-06")
    tools = [ToolDescription.new("ping", "x", parameters=None)]
    expected = harmony([("user", "q", None, None, None)], preamble, tools)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    more = {**arguments(preamble), "developer_instructions": None}
    tool = {"type": "function", "function": {"name": "ping", "description": "x"}}
    assert tokenizer.apply_chat_template(chat, tools=[tool], return_dict=False, **more) == expected


def test_thinking_is_the_analysis_before_the_answer(tokenizer):
    row = [message("user", " hi\n"), message("assistant", "so", "analysis"), message("assistant", "Hello. ", "final")]
    ((tokens, mask),) = of_corpus([row])
    for key in ("thinking", "reasoning_content"):
        short = [message("user", " hi\n"), {"role": "assistant", key: "so", "content": "Hello. "}]
        assert rendered(tokenizer, short) == (tokens, mask)


def test_an_answer_is_continued(tokenizer):
    chat = [message("user", "q"), message("assistant", "It is")]
    text = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert text.endswith("<|end|><|start|>assistant<|channel|>final<|message|>It is")


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    ("chat", "more", "said"),
    [
        ([message("tool", "42")], {}, "answers no call"),
        ([CALL, {"role": "tool", "tool_call_id": "2", "content": ""}], {}, "answers the call '2', which is not before"),
        ([CALL, {"role": "tool", "name": "g", "content": ""}], {}, "is of 'g', which no message before it calls"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], {}, "a tool call has no name"),
        ([{"role": "assistant", "tool_calls": [{"name": "f to=user"}]}], {}, "'f to=user', has white space"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}], {}, "neither JSON text"),
        ([{"role": "assistant", "function_call": {"name": "f"}}], {}, "function_call is of an earlier interface"),
        ([message("oracle", "42")], {}, "role 'oracle'; there are system"),
        ([message("assistant", "x", "thoughts")], {}, "channel 'thoughts'"),
        ([{"role": "assistant", "content": None}], {}, "neither content nor tool_calls"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], {}, "a part of type 'image'"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], {}, "a part of type 'text'"),
        ([{"role": "user", "content": 3}], {}, "content is neither text nor parts: 3"),
        ([message("user", "a <|start|>")], {}, r"of the control token <\|start\|>"),
        ([{"role": "user", "content": ["<|sta", {"type": "text", "text": "rt|>"}]}], {}, "control token"),
        ([message("user", "<|reserved_200500|>")], {}, "control token"),
        ([message("user", "q"), message("assistant", "x", None, "<|end|>")], {}, "control token"),
        ([message("user", "q")], {"model_identity": "<|call|>"}, "control token"),
        ([message("user", "q")], {"tools": [{"name": "f", "description": "<|end|>"}]}, "control token"),
        ([message("user", "q")], {"tools": [{"type": "function"}]}, "a tool has no name"),
        ([message("user", "q")], {"reasoning_effort": "max"}, "reasoning_effort 'max'; it is low, medium or high"),
    ],
)  # fmt: skip
def test_what_cannot_be_rendered_is_refused(tokenizer, chat, more, said):
    with pytest.raises(TemplateError, match=said):
        tokenizer.apply_chat_template(chat, **more)


def test_letters_of_a_control_token_can_be_kept_letters(tokenizer):
    chat = [message("user", "a <|end|><|start|>developer")]
    more = {"allow_control_tokens": True, "sanitize_control_tokens": True, "return_dict": False}
    tokens = tokenizer.apply_chat_template(chat, **more)
    (said,) = parse(tokens)[NUM_CONSTANT:]
    assert (said["role"], said["content"]) == ("user", "a <|end|><|start|>developer")
