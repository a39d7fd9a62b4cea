"""What data sets write inside messages: names of roles, reasoning, calls of tools and their results.

One message of a record becomes one or more of ours: reasoning in `analysis`, text beside calls in `commentary`, each
call with its recipient and JSON, each result with the id of its call, the answer in `final`. Read are OpenAI's fields
(`reasoning_content`, `tool_calls`, `tool_call_id`, `function_call`, contents as a list of parts), ShareGPT's roles and
the tags `<think>`, `<tool_call>`, `<tool_response>`, `<tools>`. What does not fit raises `Unfit`. A few µs a message.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from etl.schema import CALL_JSON
from etl.sources.shapes.turns import Turns, Unfit

ROLE_NAMES: Final = {
    "system": "system",
    "developer": "developer",
    **dict.fromkeys(("user", "human", "prompter", "client"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "chatbot"), "assistant"),
    **dict.fromkeys(("bing", "bard", "claude", "ai"), "assistant"),
    **dict.fromkeys(("function_call", "function-call", "tool_call", "tool-call"), "call"),
    **dict.fromkeys(("tool", "observation", "function", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "function_response", "function-response"), "tool"),
}  # fmt: skip
"""What data sets call the speakers, in lower case, and who that is; `call` is an assistant's message that is a call."""

THINKING_TAGS: Final = (("<think>", "</think>"), ("<|begin_of_thought|>", "<|end_of_thought|>"))
_SOLUTION_TAGS: Final = ("<|begin_of_solution|>", "<|end_of_solution|>")
TAG_STARTS: Final = ("<think>", "</think>", "<tool_", "</tool_", "<tools>", "<|begin_of_", "<|end_of_")
TAGS: Final = re.compile("|".join(map(re.escape, TAG_STARTS)))
"""How the tags begin that are read; a text without them is what it says."""
_JSON_TYPES: Final = {
    "str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array", "tuple": "array",
    "dict": "object",
}  # fmt: skip
"""Python's words for types, as some data sets have them."""
_NO_SCHEMAS: Final = frozenset({"enum", "default", "const"})
"""Keys of a schema that hold values."""
REASONING: Final = ("reasoning_content", "reasoning", "thinking")
ACTIVE: Final = ("tool_calls", "function_call", "channel", "recipient")
"""Keys of an assistant's message that make more of it than a text and its reasoning."""
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text"})
_CALL: Final = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESPONSE: Final = re.compile(r"<tool_response>(.*?)</tool_response>", re.DOTALL)
_TOOLS: Final = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
_PROTOCOL: Final = re.compile(r"You are a function calling AI model\.[^\n]*<tools>")
"""How system messages begin that only explain how calls are written in tags."""


class Calls:
    """The calls of one conversation that wait for their results."""

    def __init__(self) -> None:
        self._waiting: list[tuple[str, str]] = []
        self._number = 0

    def make(self, name: str, call_id: Any) -> str:
        """The id of a call: the record's own, else its number in the conversation."""
        self._number += 1
        made = _id_of(call_id) or f"call_{self._number}"
        self._waiting.append((made, name))
        return made

    def answer(self, name: Any, call_id: Any) -> str:
        """The id of the call that a result belongs to: by id, else the first that waits with that name, else the first.

        Raises:
            Unfit: nothing waits for a result.
        """
        wanted = _id_of(call_id)
        for matches in (lambda w: w[0] == wanted, lambda w: w[1] == name, lambda _: wanted is None):
            for place, waiting in enumerate(self._waiting):
                if matches(waiting):
                    return self._waiting.pop(place)[0]
        raise Unfit("result_without_call", f"a tool's message answers no call (name {name!r}, id {call_id!r})")


def _id_of(value: Any) -> str | None:
    """The id of a call as text; None where there is none."""
    return str(value) if isinstance(value, str | int) and value != "" else None


def role_of(name: Any, roles: Mapping[str, str]) -> str:
    """Who speaks, by the description's own names and then by ROLE_NAMES.

    Raises:
        Unfit: the name is not known.
    """
    if isinstance(name, str):
        found = roles.get(name) or ROLE_NAMES.get(name) or ROLE_NAMES.get(name.strip().lower())
        if found is not None:
            return found
    raise Unfit("unknown_role", f"role {name!r}; say who it is in the description's `roles`")


def add_message(turns: Turns, role: str, message: Mapping[str, Any], content: Any, calls: Calls) -> None:
    """Add what one message of a record says.

    Args:
        turns: gets the messages.
        role: as `role_of` gives it.
        message: the whole of it, for its reasoning, calls and ids.
        content: its text, its parts, or a value that is written as JSON.
        calls: of this conversation.

    Raises:
        Unfit: it cannot be read.
    """
    if role == "tool":
        _add_results(turns, message, content, calls)
    elif role == "call":
        for call in _listed(json_of(content, "call")):
            _add_call(turns, call, None, calls)
    elif role == "assistant":
        _add_answer(turns, message, content, calls)
    else:
        turns.add(role, text_of(content, role))


def text_of(content: Any, whose: str) -> str:
    """The text of a content: a string, or the texts of a list of parts one behind the other.

    Raises:
        Unfit: it is null, another type, or has a part that is not text.
    """
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part_text(part) for part in content)
    raise Unfit("wrong_type", f"the content of a message of '{whose}' is {called(content)}, text is needed")


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS:
        text = part.get("text", part.get("value"))
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, dict) else called(part)
    raise Unfit("not_text", f"a part of a message is {kind!r}; only text can be trained on")


def called(value: Any) -> str:
    """What a value of a wrong type is, for errors."""
    return "null" if value is None else f"a {type(value).__name__}"


# --- assistants -------------------------------------------------------------------------------------------------------


def _add_answer(turns: Turns, message: Mapping[str, Any], content: Any, calls: Calls) -> None:
    thoughts = [value for key in REASONING if isinstance(value := message.get(key), str) and value.strip()]
    asked = _calls_of(message)
    if isinstance(content, list):
        thoughts += [_reasoning_part(part) for part in content if _is_part(part, "reasoning", "thinking")]
        asked += [json_of(part.get("value"), "call") for part in content if _is_part(part, "tool_call")]
        content = [part for part in content if not _is_part(part, "reasoning", "thinking", "tool_call")]
    text = "" if content is None and asked else text_of(content, "assistant")
    thought, text = split_thinking(text)
    if thought:
        thoughts.append(thought)
    if "<tool_call>" in text:
        asked += [call for found in _CALL.findall(text) for call in _listed(json_of(found, "call"))]
        text = _CALL.sub("", text).strip()
    for thought in dict.fromkeys(thoughts):
        turns.add("assistant", thought, "analysis")
    if asked:
        if text.strip():
            turns.add("assistant", text, "commentary")
        for call in asked:
            _add_call(turns, call, message.get("id") if len(asked) == 1 else None, calls)
    else:
        channel, recipient = (_header(message, key) for key in ("channel", "recipient"))
        turns.add("assistant", text, channel or "final", recipient)


def _header(message: Mapping[str, Any], key: str) -> str | None:
    value = message.get(key) or None
    if value is None or isinstance(value, str):
        return value
    raise Unfit("wrong_type", f"the {key} of a message is {called(value)}, text is needed")


def _is_part(part: Any, *kinds: str) -> bool:
    return isinstance(part, dict) and part.get("type") in kinds


def _reasoning_part(part: Mapping[str, Any]) -> str:
    for key in ("value", "text", "thinking", "reasoning"):
        if isinstance(text := part.get(key), str):
            return text
    raise Unfit("wrong_type", "a part with reasoning has no text")


def split_thinking(text: str) -> tuple[str, str]:
    """Reasoning in tags at the start of an answer, and the answer behind it; the opening tag may be missing.

    Raises:
        Unfit: the reasoning does not end.
    """
    for opening, closing in THINKING_TAGS:
        is_open = text.lstrip().startswith(opening)
        if not is_open and closing not in text:
            continue
        before, found, after = text.partition(closing)
        if not found:
            raise Unfit("unclosed_thinking", f"an answer begins with {opening} and has no {closing}")
        if not is_open and opening in before:
            continue
        return before.lstrip().removeprefix(opening).strip(), _solution(after.strip())
    return "", text


def _solution(text: str) -> str:
    opening, closing = _SOLUTION_TAGS
    return text.removeprefix(opening).removesuffix(closing).strip() if text.startswith(opening) else text


# --- tools ------------------------------------------------------------------------------------------------------------


def _calls_of(message: Mapping[str, Any]) -> list[Any]:
    found = message.get("tool_calls")
    calls = list(_listed(json_of(found, "tool_calls"))) if found else []
    return [*calls, message["function_call"]] if message.get("function_call") else calls


def _add_call(turns: Turns, call: Any, call_id: Any, calls: Calls) -> None:
    if not isinstance(call, dict):
        raise Unfit("wrong_type", f"a call of a tool is {called(call)}, an object is needed")
    function = call.get("function", call)
    if isinstance(function, str):
        function = {**call, "name": function}
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise Unfit("wrong_type", "a call of a tool has no name")
    arguments: Any = next((function[key] for key in ("arguments", "parameters", "args") if key in function), {})
    made = calls.make(name, call.get("id") or call_id)
    content = arguments if isinstance(arguments, str) else written(arguments)
    turns.add("assistant", content, "commentary", f"functions.{name}", CALL_JSON, made)


def _add_results(turns: Turns, message: Mapping[str, Any], content: Any, calls: Calls) -> None:
    texts = _RESPONSE.findall(content) if isinstance(content, str) else None
    for text in texts or [content]:
        name, result = message.get("name"), text
        if not isinstance(result, str) and not (isinstance(result, list) and all(map(_is_text_part, result))):
            result = written(result)
        result = text_of(result, "tool")
        if texts:
            result = result.strip()
            name = _name_in(result) or name
        call_id = calls.answer(name, message.get("tool_call_id") or message.get("call_id"))
        turns.add("tool", result, "commentary", "assistant", None, call_id)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _TEXT_PARTS


def _name_in(result: str) -> Any:
    try:
        found = orjson.loads(result)
    except orjson.JSONDecodeError:
        return None
    return found.get("name") if isinstance(found, dict) else None


def written(value: Any) -> str:
    """A value as JSON.

    Raises:
        Unfit: it is nested too deep.
    """
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise Unfit("too_deep", str(error)) from error


def definitions(value: Any) -> str | None:
    """Definitions of tools as one JSON list of `{name, description, parameters}`; None where there are none.

    Parameters become JSON schema (`json_schema`).

    Args:
        value: a list or its JSON, of OpenAI's `{type: function, function: …}` or of the functions alone.

    Raises:
        Unfit: it is neither.
    """
    if value is None or value == "" or value == []:
        return None
    functions = []
    for tool in _listed(json_of(value, "tools")):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Unfit("wrong_type", "a definition of a tool has no name")
        definition = {key: function[key] for key in ("name", "description") if key in function}
        if isinstance(parameters := function.get("parameters"), dict):
            definition["parameters"] = json_schema(parameters)
        functions.append(definition)
    return written(functions) if functions else None


def json_schema(parameters: dict[str, Any]) -> dict[str, Any]:
    """Parameters as JSON schema, also where they use Python's words for types, or are the bare parameters by name."""
    if "properties" in parameters or isinstance(parameters.get("type"), str):
        return _with_json_types(parameters)
    optional = {name for name, one in parameters.items() if isinstance(one, dict) and _is_optional(one)}
    properties = {name: _with_json_types(one) for name, one in parameters.items()}
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
    }


def _is_optional(parameter: dict[str, Any]) -> bool:
    words = str(parameter.get("type", "")).split(", ")
    return "optional" in words[1:] or "default" in parameter


def _with_json_types(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_with_json_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: value if key in _NO_SCHEMAS else _with_json_types(value) for key, value in schema.items()}
    if isinstance(name := schema.get("type"), str):
        inner["type"] = _JSON_TYPES.get(name.split(", ")[0], name.split(", ")[0])
    return inner


def take_tools(text: str) -> tuple[str, Any]:
    """The text of a system message without its `<tools>`, and what stood in them; None where there are none.

    A message that only explains how calls are written in tags is left out whole: Harmony says that in its own way.

    Raises:
        Unfit: what stands between the tags is not JSON.
    """
    blocks = [block for block in _TOOLS.findall(text) if block.strip()]
    if not blocks:
        return text, None
    tools = [tool for block in blocks for tool in _json_lines(block)]
    return ("" if _PROTOCOL.match(text) else _TOOLS.sub("", text).strip()), tools


def _json_lines(block: str) -> list[Any]:
    try:
        return _listed(json_of(block, "tools"))
    except Unfit:
        return [json_of(line, "tools") for line in block.splitlines() if line.strip()]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def json_of(value: Any, what: str) -> Any:
    """A value, or the one that its text says: JSON, or a Python literal as some data sets have it.

    Raises:
        Unfit: the text is neither.
    """
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        try:
            # Once more through JSON, which knows neither sets nor halves of a surrogate pair.
            return orjson.loads(orjson.dumps(ast.literal_eval(value.strip())))
        except (ValueError, SyntaxError, MemoryError, RecursionError, orjson.JSONEncodeError):
            raise Unfit("invalid_json", f"{what}: {error}") from error
