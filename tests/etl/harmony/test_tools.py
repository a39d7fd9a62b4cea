"""Tool definitions equal openai-harmony's own text of them, whatever their schemas hold."""

import gzip
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_harmony import DeveloperContent, Message, Role, ToolDescription

from etl.harmony.tools import tool_section, tool_sections
from etl.harmony.vocabulary import load_encoding
from tests.conftest import SHARED_DATA


def oracle(functions):
    content = DeveloperContent().with_function_tools([ToolDescription(**function) for function in functions])
    tokens = load_encoding().render(Message.from_role_and_content(Role.DEVELOPER, content))
    return load_encoding().decode_utf8(tokens[3:-1])


def section(definitions):
    """The text and the problem of one row."""
    return [found[0].as_py() for found in tool_sections(pa.array([definitions], pa.string()))]


NUMBERS = [0.0, -0.0, 1e16, 1e15, 123456789012.5, 1e-5, 1e-4, 1.5e-5, 1e-6, 1e-7, 1e100, 0.1, 2.5e20, -3.25, 2**63 - 1]
letters = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
texts = st.sampled_from(["a", "b\nc", "", "x\r\n", "\r", '"q"', "null", "größe"]) | letters
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from(NUMBERS) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
kinds = st.sampled_from(
    ["object", "string", "number", "integer", "boolean", "array", "dict", ["string", "null"], ["integer"], [], [1], 3]
)


def schema_of(inner):
    odd = {
        "type": kinds,
        "nullable": st.booleans() | st.just(1),
        "default": values,
        "items": inner,
        "oneOf": st.lists(inner, max_size=3) | values,
        "properties": st.dictionaries(texts, inner, max_size=3),
        "required": st.lists(texts, max_size=3) | values,
        "enum": st.lists(texts | values, max_size=3) | values,
        "examples": st.lists(texts | values, max_size=2) | values,
        "description": texts | values,
        "title": texts | values,
    }
    return st.fixed_dictionaries({}, optional=odd)


schemas = st.recursive(schema_of(values), schema_of, max_leaves=6)
tools = st.builds(
    lambda name, text, schema: {"name": name, "description": text, "parameters": schema},
    texts.filter(bool),
    texts,
    st.none() | schemas,
)


@settings(max_examples=80)
@given(functions=st.lists(tools, min_size=1, max_size=3))
def test_definitions_equal_openai_harmonys(functions):
    assert section(json.dumps(functions)) == [oracle(functions), None]


@pytest.mark.shared
def test_definitions_of_a_benchmark():
    with gzip.open(SHARED_DATA / "function_calling" / "BFCL_v4_live_multiple.jsonl.gz", "rt") as lines:
        rows = [json.loads(line)["function"] for line in lines][::20]
    as_objects = [[function | {"parameters": as_object(function["parameters"])} for function in row] for row in rows]
    for functions in (*rows, *as_objects):
        assert section(json.dumps(functions)) == [oracle(functions), None]


def as_object(schema):
    """A schema whose dictionaries are called objects, as JSON schema calls them."""
    if isinstance(schema, dict):
        schema = {key: as_object(value) for key, value in schema.items()}
        return schema | {"type": "object"} if schema.get("type") == "dict" else schema
    return [as_object(value) for value in schema] if isinstance(schema, list) else schema


def test_openais_form_and_bare_functions_are_the_same():
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    wrapped = [{"type": "function", "function": function | {"strict": True}}]
    text = tool_section([function])
    assert section(json.dumps([function])) == section(json.dumps(wrapped)) == [text, None]
    assert section('[{"name": "f"}]') == [tool_section([{"name": "f", "description": "", "parameters": None}]), None]


@pytest.mark.parametrize("nothing", [None, "", " ", "null", "[]"])
def test_no_tools(nothing):
    assert section(nothing) == [None, None]


@pytest.mark.parametrize(
    ("definitions", "problem"),
    [
        ("{}", "tools: no list"),
        ("[3]", "tools: number 0 is no object"),
        ('[{"name": "f"}, {"function": {}}]', "tools: number 1 has no name"),
        ('[{"name": "f", "parameters": []}]', "tools: 'f' has a description that is no text"),
        ('[{"name": "f", "description": 1}]', "tools: 'f' has a description that is no text"),
        ("[NaN]", "tools: unexpected character"),
        ("[" * 101 + "]" * 101, "tools: nested deeper than 100"),
        ("[" * 100_000, "tools: "),
    ],
)
def test_what_is_no_list_of_functions(definitions, problem):
    text, said = section(definitions)
    assert text is None
    assert said.startswith(problem)


def test_equal_definitions_of_a_column_are_one_text():
    f, g = '[{"name": "f"}]', '[{"name": "g"}]'
    sections, problems = tool_sections(pa.array([f, None, g, f, "3"], pa.string()))
    texts = [tool_section([{"name": name, "description": "", "parameters": None}]) for name in "fg"]
    assert sections.to_pylist() == [texts[0], None, texts[1], texts[0], None]
    assert problems.to_pylist() == [None, None, None, None, "tools: no list"]
