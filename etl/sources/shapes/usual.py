"""Which messages are of the usual kind: a role and a text, perhaps reasoning, and nothing else that is read.

What a message says that has these keys alone follows from the keys, so a format may read it without a parser
(etl/sources/formats/json_kernels.py). The rest is left to etl/sources/shapes/dialogue.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class UsualMessages:
    """How a column holds messages that need no parser.

    Attributes:
        column: the list of messages.
        roles: names of speakers -> `system`, `developer`, `user` or `assistant`; other names need a parser.
        role_keys: keys that say who speaks; a message with two of them needs a parser.
        content_keys: keys that say what is said; a message with two of them, or with no text there, likewise.
        thought_keys: keys of an assistant's reasoning, which goes before the answer; ignored where it is null or "".
        active_keys: keys that make an assistant's message one that needs a parser, unless they are null.
        tags: how tags begin that are read in instructions and answers. The first two are around an assistant's
            reasoning, which goes before the answer; a text with another one, or more of them, needs a parser.
    """

    column: str
    roles: Mapping[str, str]
    role_keys: tuple[str, ...]
    content_keys: tuple[str, ...]
    thought_keys: tuple[str, ...]
    active_keys: tuple[str, ...]
    tags: tuple[str, ...]
