"""Harmony tokens back to messages, by openai-harmony's own parser (about 1 MB of text per CPU-second).

For completions of a model, for checks, and for people who look at a corpus; no stage runs it over every row.
"""

from collections.abc import Sequence
from typing import TypedDict

from etl.errors import DataError
from etl.harmony.render import INSTRUCTIONS
from etl.harmony.vocabulary import DEFAULT_VOCABULARY, load_encoding


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

    Args:
        tokens: whole messages, or what a model wrote after `<|start|>` and a role.
        next_role: that role; None when the tokens begin with `<|start|>`.
        vocabulary: URI of o200k_base.tiktoken.

    Raises:
        DataError: the tokens are not well-formed Harmony.
    """
    from openai_harmony import HarmonyError, Role

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
