"""Tokens back to messages, by openai-harmony's own parser (about 1 MB of text per CPU-second).

For completions of a model, for checks, and for people who look at a corpus; no stage runs it over every row.
"""

from collections.abc import Sequence
from typing import TypedDict

from etl.errors import DataError
from etl.harmony.render import INSTRUCTIONS
from etl.harmony.vocabulary import DEFAULT_VOCABULARY, ENDOFTEXT, NUM_TEXT_TOKENS, load_bpe, load_encoding
from etl.schema import TEXT_ROLE


class ParsedMessage(TypedDict):
    """The fields of etl.schema.MESSAGE."""

    role: str
    channel: str | None
    recipient: str | None
    content: str


def parse(
    tokens: Sequence[int], next_role: str | None = None, vocabulary: str = DEFAULT_VOCABULARY
) -> list[ParsedMessage]:
    """The messages that some tokens hold, the constant ones included; instructions without their heading.

    Tokens of text that <|endoftext|> closes are a raw document: one message of the role `text`.

    Args:
        tokens: whole messages, or what a model wrote after `<|start|>` and a role.
        next_role: that role; None when the tokens begin with `<|start|>`.
        vocabulary: URI of o200k_base.tiktoken.

    Raises:
        DataError: the tokens are not well-formed Harmony.
    """
    from openai_harmony import HarmonyError, Role

    if next_role is None and len(tokens) and tokens[-1] == ENDOFTEXT and max(tokens[:-1], default=0) < NUM_TEXT_TOKENS:
        text = load_bpe(vocabulary).decode(list(tokens[:-1]))
        return [ParsedMessage(role=TEXT_ROLE, channel=None, recipient=None, content=text)]
    role = None if next_role is None else Role(next_role)
    try:
        messages = load_encoding(vocabulary).parse_messages_from_completion_tokens(tokens, role)
    except HarmonyError as error:
        raise DataError(f"{len(tokens)} tokens are not well-formed Harmony messages: {error}") from error
    return [
        ParsedMessage(
            role=message.author.role.value,
            channel=message.channel,
            recipient=message.recipient,
            content="".join(part.text for part in message.content).removeprefix(
                INSTRUCTIONS if message.author.role is Role.DEVELOPER else ""
            ),
        )
        for message in messages
    ]
