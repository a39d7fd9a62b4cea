"""Tool definitions as the developer message gives them: JSON schema to TypeScript, as openai-harmony writes it.

openai-harmony gives this text only as the tokens of a message, which takes four times as long; tests compare the two on
random schemas. They differ only in the last digit of some 17-digit numbers, which openai-harmony misreads. Definitions
cost about 30 µs per kB of their JSON, once for the rows of a process that share them.
"""

import functools
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Final

import orjson
import pyarrow as pa

SECTION: Final = "# Tools\n\n## functions\n\nnamespace functions {\n\n"
"""The beginning of the text."""
SECTION_END: Final = "} // namespace functions"
_MOST_LEVELS: Final = 100
"""Largest depth of nested JSON; openai-harmony reads at most 128 levels, including its own."""


def tool_sections(tools: pa.Array) -> tuple[pa.StringArray, pa.StringArray]:
    """The developer message's text about the tools of each row, or why there is none: both string [rows].

    Args:
        tools: string [rows], JSON as in etl.schema.PROMPT; null, "", `null` and an empty list mean no tools.
    """
    codes = tools.dictionary_encode()
    found = [_section(definitions) for definitions in codes.dictionary.to_pylist()]
    sections, problems = (pa.array([pair[side] for pair in found], pa.string()) for side in (0, 1))
    return sections.take(codes.indices), problems.take(codes.indices)


@functools.lru_cache(maxsize=4096)
def _section(definitions: str) -> tuple[str | None, str | None]:
    """The text of some tools, or what is wrong with them; both None if there are none."""
    try:
        functions = list(_functions(definitions))
        return (tool_section(functions) if functions else None), None
    except ValueError as error:
        return None, f"tools: {error}"


def _functions(definitions: str) -> Iterator[dict[str, Any]]:
    tools = orjson.loads(definitions) if definitions.strip() else None
    if not isinstance(tools, list | None):
        raise ValueError("no list")
    if _is_deep(tools):
        raise ValueError(f"nested deeper than {_MOST_LEVELS}")
    for number, tool in enumerate(tools or []):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict):
            raise ValueError(f"number {number} is no object")
        name, description, parameters = (function.get(key) for key in ("name", "description", "parameters"))
        if not isinstance(name, str) or not name:
            raise ValueError(f"number {number} has no name")
        if not isinstance(description, str | None) or not isinstance(parameters, dict | None):
            raise ValueError(f"'{name}' has a description that is no text, or parameters that are no object")
        yield {"name": name, "description": description or "", "parameters": parameters}


def _is_deep(value: Any) -> bool:
    """Whether a value has too many levels."""
    level = [value]
    for _ in range(_MOST_LEVELS):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [value for values in inner for value in values]
    return bool(level)


def tool_section(functions: list[dict[str, Any]]) -> str:
    """The text of functions with `name`, `description` and `parameters`, a JSON schema or None."""
    lines = []
    for function in functions:
        lines += [f"// {line}" for line in _lines(function["description"])]
        parameters = function["parameters"]
        given = "" if parameters is None else f"_: {_type(parameters, '')}"
        lines.append(f"type {function['name']} = ({given}) => any;\n")
    return SECTION + "\n".join([*lines, SECTION_END])


def _lines(text: str) -> list[str]:
    """The lines as Rust cuts them: at LF and CR LF, without an empty last one."""
    *whole, last = text.split("\n")
    return [line.removesuffix("\r") for line in whole] + ([last] if last else [])


def _type(schema: Any, indent: str) -> str:
    """The TypeScript type of a JSON schema."""
    if not isinstance(schema, dict):
        return "any"
    kind, choices = schema.get("type"), schema.get("oneOf")
    if isinstance(choices, list):
        return "".join(
            f"\n{indent} | {_choice(one, indent)}{_comment(_text(one, 'description'), one, _default_json)}"
            for one in choices
        )
    if isinstance(kind, list) and (names := [name for name in kind if isinstance(name, str)]):
        return " | ".join("number" if name == "integer" else name for name in names)
    if kind == "object":
        return _object(schema, indent)
    if kind == "string":
        values = schema.get("enum")
        texts = [f'"{value}"' for value in values if isinstance(value, str)] if isinstance(values, list) else []
        return " | ".join(texts) or "string"
    if kind == "array":
        return f"{_type(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
    return _PLAIN.get(kind, "any") if isinstance(kind, str) else "any"


_PLAIN: Final = {"number": "number", "integer": "number", "boolean": "boolean"}


def _object(schema: dict[str, Any], indent: str) -> str:
    properties, required = schema.get("properties"), schema.get("required")
    names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    head = [f"{indent}// {text}\n"] if (text := _text(schema, "description")) is not None else []
    body = [
        "".join(_property(name if name in names else f"{name}?", value if isinstance(value, dict) else {}, indent))
        for name, value in (properties.items() if isinstance(properties, dict) else ())
    ]
    return "".join([*head, "{\n", *body, f"{indent}}}"])


def _property(name: str, schema: dict[str, Any], indent: str) -> Iterator[str]:
    """The lines of a property; `name` ends in ? if the property is optional."""
    description, examples, choices = _text(schema, "description"), schema.get("examples"), schema.get("oneOf")
    if (title := _text(schema, "title")) is not None:
        yield f"{indent}// {title}\n{indent}//\n"
    if "oneOf" not in schema and description is not None:
        yield f"{indent}// {description}\n"
    if isinstance(examples, list) and examples:
        yield f"{indent}// Examples:\n"
        yield from (f'{indent}// - "{example}"\n' for example in examples if isinstance(example, str))
    if isinstance(choices, list):
        yield from _property_of_choices(name, schema, choices, indent)
        return
    yield f"{indent}{name}: {_nullable(schema, _type(schema, f'{indent}    '))},"
    yield f" // {_default_text(schema)}\n" if "oneOf" not in schema and "default" in schema else "\n"


def _property_of_choices(name: str, schema: dict[str, Any], choices: list[Any], indent: str) -> Iterator[str]:
    description = _text(schema, "description")
    is_above = description is not None and not (choices and _text(choices[0], "description") == description)
    if is_above:
        yield f"{indent}// {description}\n"
    if "default" in schema:
        yield f"{indent}// {_default_text(schema)}\n"
    yield f"{indent}{name}:\n"
    for number, one in enumerate(choices):
        is_told = (number == 0 and is_above) or _text(one, "description") == description
        comment = _comment(None if is_told else _text(one, "description"), one, _default_text)
        yield f"{indent} | {_choice(one, indent)}{comment}\n"
    yield f"{indent},\n"


def _choice(schema: Any, indent: str) -> str:
    return _nullable(schema, _type(schema, f"{indent}   "))


def _nullable(schema: Any, kind: str) -> str:
    is_nullable = isinstance(schema, dict) and schema.get("nullable") is True and "null" not in kind
    return f"{kind} | null" if is_nullable else kind


def _comment(description: str | None, schema: Any, default: Callable[[dict[str, Any]], str]) -> str:
    """The comment after a choice."""
    texts = [] if description is None else [description]
    texts += [default(schema)] if isinstance(schema, dict) and "default" in schema else []
    return f" // {' '.join(texts)}" if texts else ""


def _default_json(schema: dict[str, Any]) -> str:
    value, values = schema["default"], schema.get("enum")
    is_quoted = isinstance(value, str) and not (isinstance(values, list) and values)
    return f'default: "{value}"' if is_quoted else f"default: {_json(value)}"


def _default_text(schema: dict[str, Any]) -> str:
    """As `_default_json`, but a choice of an enumeration has no quotes."""
    value, values = schema["default"], schema.get("enum")
    is_choice = isinstance(value, str) and isinstance(values, list) and values
    return f"default: {value}" if is_choice else _default_json(schema)


def _text(schema: Any, key: str) -> str | None:
    value = schema.get(key) if isinstance(schema, dict) else None
    return value if isinstance(value, str) else None


def _json(value: Any) -> str:
    """Compact JSON as serde_json writes it; its numbers differ from Python's."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(key)}:{_json(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return _float(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _float(value: float) -> str:
    """The shortest digits that read as the number; with an exponent from 1e16 on and below 1e-5."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text, place = "".join(map(str, digits)), len(digits) + exponent
    minus = "-" * sign
    if value == 0:
        return f"{minus}0.0"
    if 0 < place <= 16:
        whole, rest = text[:place].ljust(place, "0"), text[place:] or "0"
        return f"{minus}{whole}.{rest}"
    if -5 < place <= 0:
        return f"{minus}0.{'0' * -place}{text}"
    mantissa = text[0] + ("." + text[1:] if text[1:] else "")
    return f"{minus}{mantissa}e{place - 1}"
