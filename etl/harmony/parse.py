"""Tokens back to messages, by openai-harmony's own parser (about 1 MB of text per CPU-second).

For completions of a model, for checks, and for people who look at a corpus; no stage runs it over every row. The parser
takes any control token in a body, and most in a header, for letters; here that is no Harmony. It knows a tool by its
recipient alone, so it is shown one where a tool's message has none.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile
from typing import Final, TypedDict

from etl.errors import ConfigError, DataError
from etl.harmony.render import INSTRUCTIONS
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

_NEXT: Final = {
    "between messages": {START: "in a header"},
    "in a header": {CHANNEL: "in a header", CONSTRAIN: "in a header", MESSAGE: "in a body"},
    "in a body": {END: "between messages", RETURN: "between messages", CALL: "between messages"},
}
"""Where a control token may stand, and where one is behind it."""


class ParsedMessage(TypedDict):
    """The fields of etl.schema.MESSAGE, and who speaks where that is a tool."""

    role: str
    name: str | None
    """Of the tool that has written a tool's message, such as `functions.get_weather`."""
    channel: str | None
    recipient: str | None
    content: str


def parse(
    tokens: Sequence[int], next_role: str | None = None, vocabulary: str = DEFAULT_VOCABULARY
) -> list[ParsedMessage]:
    """The messages that some tokens hold, the constant ones included; instructions without their heading.

    Tokens of text that <|endoftext|> closes are a raw document: one message of the role `text`. A last message that
    breaks off in its body is what there is of it.

    Args:
        tokens: whole messages, or what a model wrote after `<|start|>` and a role.
        next_role: that role; None when the tokens begin with `<|start|>`.
        vocabulary: URI of o200k_base.tiktoken.

    Raises:
        DataError: the tokens are not well-formed Harmony.
        ConfigError: there is no such role.
    """
    from openai_harmony import HarmonyError, Role

    if next_role is not None and next_role not in ROLES:
        raise ConfigError(f"next_role {next_role!r} is no role of Harmony; there are {', '.join(ROLES)}")
    if next_role is None and _is_document(tokens):
        text = load_bpe(vocabulary).decode(list(tokens[:-1]))
        return [ParsedMessage(role=TEXT_ROLE, name=None, channel=None, recipient=None, content=text)]
    _check(tokens, "between messages" if next_role is None else "in a header")
    role = None if next_role is None else Role(next_role)
    encoding = load_encoding(vocabulary)
    shown, of_tools = list(tokens), dict(_tools_without_recipient(tokens, next_role is not None, vocabulary))
    for place in sorted(of_tools, reverse=True):
        shown[place:place] = encoding.encode(" to=assistant")
    try:
        messages = encoding.parse_messages_from_completion_tokens(shown, role)
    except HarmonyError as error:
        raise _malformed(tokens, str(error)) from error
    return [
        ParsedMessage(
            role=message.author.role.value,
            name=message.author.name,
            channel=message.channel,
            recipient=None if number in of_tools.values() else message.recipient or None,
            content="".join(part.text for part in message.content).removeprefix(
                INSTRUCTIONS if message.author.role is Role.DEVELOPER else ""
            ),
        )
        for number, message in enumerate(messages)
    ]


def _tools_without_recipient(tokens: Sequence[int], is_begun: bool, vocabulary: str) -> Iterator[tuple[int, int]]:
    """Where the names end that tools sign with and say no recipient behind, and the number of the message."""
    bpe, called = load_bpe(vocabulary), set[str]()
    starts = [place + 1 for place, token in enumerate(tokens) if token == START]
    for number, begin in enumerate([0] * is_begun + starts):
        header = list(takewhile(lambda token: token != MESSAGE, tokens[begin:]))
        by_kind = groupby(header, lambda token: token < NUM_TEXT_TOKENS)
        stretches = [list(stretch) for is_text, stretch in by_kind if is_text]
        words = [word for stretch in stretches for word in bpe.decode(stretch).split()]
        recipients = {word.removeprefix("to=") for word in words if word.startswith("to=")}
        name = words[0] if words else ""
        if not recipients and (name.startswith("functions.") or name in called):
            yield begin + len(stretches[0]), number
        called |= recipients


def _is_document(tokens: Sequence[int]) -> bool:
    """Whether it is ordinary text that <|endoftext|> closes."""
    return len(tokens) > 0 and tokens[-1] == ENDOFTEXT and all(0 <= token < NUM_TEXT_TOKENS for token in tokens[:-1])


def _check(tokens: Sequence[int], where: str) -> None:
    """Refuse what is no token, and control tokens that stand where none of them can."""
    for place, token in enumerate(tokens):
        if 0 <= token < NUM_TEXT_TOKENS:
            continue
        if token not in _NEXT[where]:
            name = load_encoding().decode([token]) if 0 <= token < VOCAB_SIZE else "no token of o200k_harmony"
            raise _malformed(tokens, f"{token} ({name}) stands {where}, at position {place}")
        where = _NEXT[where][token]


def _malformed(tokens: Sequence[int], why: str) -> DataError:
    return DataError(f"{len(tokens)} tokens are not well-formed Harmony messages: {why}")
