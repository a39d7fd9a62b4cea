"""The prompt of a row, changed for a teacher with another reasoning effort.

The effort is one line of the Harmony system message ("Reasoning: medium"). That message's text is taken from the row's
own tokens, the line is changed, and the text is encoded again by the corpus's tokenizer, which is what rendering the
row with that effort gives (a test compares it with etl/harmony/render.py). The tokens after the system message stay as
they are, so a completion cannot change; only its distance from the start does. Distinct system messages are few and
are kept: a row costs one dictionary look-up.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Final, get_args

import numpy as np

from etl.arrays import I32
from etl.errors import DataError
from etl.harmony.encode import TextEncoder
from etl.harmony.render import Effort
from etl.harmony.vocabulary import DEFAULT_VOCABULARY, END, MESSAGE, START, load_bpe

EFFORTS: Final[tuple[Effort, ...]] = get_args(Effort)
_LINE = re.compile(r"^Reasoning: (low|medium|high)$", re.MULTILINE)


@dataclass(frozen=True)
class SystemMessage:
    """The system message that some rows begin with."""

    num_tokens: int
    """Of the row's own one, <|start|> and <|end|> included."""
    effort: Effort
    """That of the row's own one."""
    rendered: dict[Effort, I32]
    """Its tokens for each effort."""
    without_effort: I32
    """Its tokens without the line that names the effort."""


@dataclass(frozen=True)
class Prompt:
    """One row as the teacher sees it."""

    input_ids: I32
    shift: int
    """By how many tokens everything after the system message is shifted."""


class PromptRenderer:
    """Changes the reasoning effort of rows. Not shared between threads."""

    def __init__(self, vocabulary: str = DEFAULT_VOCABULARY) -> None:
        self._vocabulary = vocabulary
        self._known: dict[bytes, SystemMessage | None] = {}

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self._vocabulary)

    def system(self, input_ids: I32) -> SystemMessage | None:
        """The system message of a row; None where it has none, or none with one line that names the effort.

        Raises:
            DataError: its tokens are not what the tokenizer makes of their own text.
        """
        if len(input_ids) == 0 or input_ids[0] != START:
            return None
        ends = np.flatnonzero(input_ids == END)
        if not len(ends):
            return None
        tokens = np.ascontiguousarray(input_ids[: ends[0] + 1], np.int32)
        key = tokens.tobytes()
        if key not in self._known:
            self._known[key] = self._read(tokens)
        return self._known[key]

    def _read(self, tokens: I32) -> SystemMessage | None:
        body = int(np.argmax(tokens == MESSAGE)) + 1
        bpe = load_bpe(self._vocabulary)
        if bpe.decode(tokens[1 : body - 1].tolist()) != "system":
            return None
        text = bpe.decode(tokens[body:-1].tolist())
        found = _LINE.findall(text)
        if len(found) != 1:
            return None

        def around(content: str) -> I32:
            return np.concatenate([tokens[:body], self._encoder.encode(content), tokens[-1:]])

        rendered = {effort: around(_LINE.sub(f"Reasoning: {effort}", text)) for effort in EFFORTS}
        if not np.array_equal(rendered[found[0]], tokens):
            raise DataError(
                f"the system message {text!r} has other tokens in the corpus than its text has in o200k_harmony; "
                "rescore a corpus of the stage `tokenize`"
            )
        return SystemMessage(len(tokens), found[0], rendered, around(_LINE.sub("", text)))


def with_effort(input_ids: I32, system: SystemMessage, effort: Effort) -> Prompt:
    """A row with its system message rendered for an effort; every token after that message is the row's own."""
    rendered = system.rendered[effort]
    changed = np.concatenate([rendered, input_ids[system.num_tokens :]])
    return Prompt(changed, len(rendered) - system.num_tokens)
