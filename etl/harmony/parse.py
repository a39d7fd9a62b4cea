"""Tokens back to messages, by openai-harmony's own parser (about 1 MB of text per CPU-second).

For completions of a model, for checks, and for people who look at a corpus; no stage runs it over every row. The parser
reads any control token in a body, and most in a header, as letters; here they are errors. It recognises a tool's
message only by its recipient, so it is shown one if there is none.

Tokens contain no call ids. A tool's message gets one if another call than the last has signed it, and so does the call
that it answers. So the parsed messages render to the same tokens. The parser takes a content type without a recipient
for a recipient; here it is a content type.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Final, TypedDict

from etl.errors import ConfigError, DataError
from etl.harmony.render import INSTRUCTIONS
from etl.harmony.tools import SECTION, SECTION_END
from etl.harmony.vocabulary import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    DEFAULT_VOCABULARY,
    END,
    ENDOFTEXT,
    MESSAGE,
    NUM_TEXT_TOKENS,
    RETURN,
    START,
    VOCAB_SIZE,
    load_bpe,
    load_encoding,
)
from etl.schema import ROLES, TEXT_ROLE

if TYPE_CHECKING:
    from openai_harmony import Message

_NEXT: Final = {
    "between messages": {START: "in a header"},
    "in a header": {CHANNEL: "in a header", CONSTRAIN: "in a header", MESSAGE: "in a body"},
    "in a body": {END: "between messages", RETURN: "between messages", CALL: "between messages"},
}
"""Place -> control tokens allowed there -> the place after each."""


class ParsedMessage(TypedDict):
    """The fields of etl.schema.MESSAGE, the name of a tool that speaks, and the tools that are defined."""

    role: str
    name: str | None
    """The tool that has written the message, such as `functions.get_weather`."""
    channel: str | None
    recipient: str | None
    content: str
    content_type: str | None
    call_id: str | None
    tools: str | None
    """The text about tools in a developer message, from `# Tools` on; not part of the content."""


def parse(
    tokens: Sequence[int], next_role: str | None = None, vocabulary: str = DEFAULT_VOCABULARY
) -> list[ParsedMessage]:
    """The messages in some tokens, including the constant ones; instructions are given without their heading.

    Tokens of text that <|endoftext|> closes are a raw document: one message of the role `text`. If the last message
    breaks off in its body, the result has the part that is there.

    Args:
        tokens: whole messages, or those that a model wrote after `<|start|>` and a role.
        next_role: that role; None when the tokens begin with `<|start|>`.
        vocabulary: URI of o200k_base.tiktoken.

    Raises:
        DataError: the tokens are not well-formed Harmony.
        ConfigError: there is no such role.
    """
    from openai_harmony import HarmonyError, Role

    if next_role is not None and next_role not in ROLES:
        raise ConfigError(f"next_role {next_role!r} is not a Harmony role; the roles are {', '.join(ROLES)}")
    if next_role is None and _is_document(tokens):
        text = load_bpe(vocabulary).decode(list(tokens[:-1]))
        return [_plain(TEXT_ROLE, text)]
    _check(tokens, "between messages" if next_role is None else "in a header")
    role = None if next_role is None else Role(next_role)
    encoding = load_encoding(vocabulary)
    headers = list(_headers(tokens, next_role is not None))
    shown, of_tools = list(tokens), dict(_tools_without_recipient(headers, vocabulary))
    for place in sorted(of_tools, reverse=True):
        shown[place:place] = encoding.encode(" to=assistant")
    try:
        messages = encoding.parse_messages_from_completion_tokens(shown, role)
    except HarmonyError as error:
        raise _malformed(tokens, str(error)) from error
    parsed = [_parsed(message) for message in messages]
    for number in of_tools.values():
        parsed[number]["recipient"] = None
    for number in _types_without_recipient(headers, vocabulary):
        if (said := parsed[number])["content_type"] is None:
            said["content_type"], said["recipient"] = said["recipient"], None
    _name_calls(parsed)
    return parsed


def _plain(role: str, content: str) -> ParsedMessage:
    return ParsedMessage(
        role=role, name=None, channel=None, recipient=None, content=content, content_type=None, call_id=None, tools=None
    )


def _parsed(message: "Message") -> ParsedMessage:
    text = "".join(part.text for part in message.content)
    said = _plain(message.author.role.value, text)
    said["name"], said["channel"], said["content_type"] = message.author.name, message.channel, message.content_type
    said["recipient"] = message.recipient or None
    if said["role"] == "developer":
        instructions, tools = _cut_tools(text)
        said["content"], said["tools"] = instructions.removeprefix(INSTRUCTIONS), tools
    return said


def _cut_tools(text: str) -> tuple[str, str | None]:
    """The text of a developer message before its tools, and the text about them."""
    place = text.find(f"\n\n{SECTION}") if not text.startswith(SECTION) else 0
    if place < 0 or not text.endswith(SECTION_END):
        return text, None
    return text[:place], text[place:].removeprefix("\n\n")


def _name_calls(messages: list[ParsedMessage]) -> None:
    """Give a call id to each tool's message that another call than the last has signed, and to that call."""
    calls: dict[str | None, int] = {}
    last: str | None = None
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and message["recipient"]:
            last = message["recipient"]
            calls[last] = number
        elif message["role"] == "tool" and message["name"] != last and message["name"] in calls:
            call = calls[message["name"]]
            messages[call]["call_id"] = message["call_id"] = f"call_{call}"


def _headers(tokens: Sequence[int], is_begun: bool) -> Iterator[tuple[int, list[int]]]:
    """The start of each message's header, and its tokens."""
    starts = [place + 1 for place, token in enumerate(tokens) if token == START]
    for begin in [0] * is_begun + starts:
        yield begin, list(takewhile(lambda token: token != MESSAGE, tokens[begin:]))


def _stretches(header: list[int]) -> list[list[int]]:
    """The tokens of a header's text, cut at its control tokens."""
    return [list(some) for is_text, some in groupby(header, lambda token: token < NUM_TEXT_TOKENS) if is_text]


def _types_without_recipient(headers: list[tuple[int, list[int]]], vocabulary: str) -> Iterator[int]:
    """The numbers of the messages that have a content type after their channel but no recipient."""
    bpe = load_bpe(vocabulary)
    for number, (_, header) in enumerate(headers):
        if CHANNEL not in header:
            continue
        words = [word for some in _stretches(header) for word in bpe.decode(some).split()]
        behind = header[header.index(CHANNEL) :]
        has_type = CONSTRAIN in behind or len(" ".join(map(bpe.decode, _stretches(behind))).split()) > 1
        if has_type and not any(word.startswith("to=") for word in words):
            yield number


def _tools_without_recipient(headers: list[tuple[int, list[int]]], vocabulary: str) -> Iterator[tuple[int, int]]:
    """For each tool's message without a recipient: the position after the tool's name, and the message's number."""
    bpe, called = load_bpe(vocabulary), set[str]()
    for number, (begin, header) in enumerate(headers):
        stretches = _stretches(header)
        words = [word for stretch in stretches for word in bpe.decode(stretch).split()]
        recipients = {word.removeprefix("to=") for word in words if word.startswith("to=")}
        name = words[0] if words else ""
        if not recipients and (name.startswith("functions.") or name in called):
            yield begin + len(stretches[0]), number
        called |= recipients


def _is_document(tokens: Sequence[int]) -> bool:
    """Whether the tokens are ordinary text that <|endoftext|> closes."""
    return len(tokens) > 0 and tokens[-1] == ENDOFTEXT and all(0 <= token < NUM_TEXT_TOKENS for token in tokens[:-1])


def _check(tokens: Sequence[int], where: str) -> None:
    """Refuse numbers that are no token, and control tokens in a place where they are not allowed."""
    for place, token in enumerate(tokens):
        if 0 <= token < NUM_TEXT_TOKENS:
            continue
        if token not in _NEXT[where]:
            name = load_encoding().decode([token]) if 0 <= token < VOCAB_SIZE else "not a token of o200k_harmony"
            raise _malformed(tokens, f"{token} ({name}) {where}, at position {place}")
        where = _NEXT[where][token]


def _malformed(tokens: Sequence[int], why: str) -> DataError:
    return DataError(f"{len(tokens)} tokens are not well-formed Harmony messages: {why}")
