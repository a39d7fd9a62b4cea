"""Rows that only ask: prompts for a teacher to answer, and evaluation sets.

The prompt is a column or a template over several. A column may also hold messages that end with the user, as RL sets
have it, or a list of texts. Such a source has no answers, so nothing is lost for the lack of one.
"""

from typing import Any, Literal

import orjson

from etl.sources.shapes import dialogue, template
from etl.sources.shapes.described import Columns, Conversations, Described, Value, columns_of
from etl.sources.shapes.messages import Spoken, converse_with_tools
from etl.sources.shapes.question import Question
from etl.sources.shapes.turns import Turns


class Asked(Question, Spoken):
    """What is asked, where a column may also hold a list of texts, or messages (also as JSON)."""

    def questions(self, columns: Columns) -> list[Any]:
        """What is asked: [rows] of values for `ask`."""
        if self.prompt is not None:
            found: list[Any] = template.filled(self.prompt, columns).to_pylist()
            return found
        assert self.user is not None
        return list(columns.values(self.user))


def ask(spoken: Spoken, turns: Turns, question: Any, calls: dialogue.Calls) -> Any:
    """Add what a row asks: a text, a list of texts, or messages; returns what stood in `<tools>`, or None.

    Raises:
        Unfit: it is something else.
    """
    question = as_messages(question)
    if isinstance(question, list) and len(question) == 1 and isinstance(question[0], list):
        question = question[0]
    texts = [question] if isinstance(question, str) else question
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        for text in texts:
            turns.add("user", text)
        return None
    return spoken.add(turns, question, calls)


def as_messages(value: Any) -> Any:
    """A value, or the list of messages that its text is the JSON of."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
        if isinstance(found, list) and found and all(isinstance(message, dict) for message in found):
            return found
    return value


class PromptsShape(Asked, Described):
    """Rows with a prompt but no answer."""

    shape: Literal["prompts"]
    system: Value | None = None
    """Instructions before the prompt; an empty value makes no message."""
    tools: str | None = "tools"
    """Column of tool definitions: a list, or its JSON."""

    @property
    def has_answers(self) -> bool:
        """Never."""
        return False

    @property
    def said(self) -> tuple[str, ...]:
        """The instructions."""
        return columns_of(self.system)

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of the template."""
        return self.templated

    @property
    def nested(self) -> tuple[str, ...]:
        """The prompt and the tools."""
        return columns_of(self.user, self.tools)

    @property
    def needed(self) -> tuple[str, ...]:
        """What is asked."""
        return self.asked

    def converse(self, columns: Columns) -> Conversations:
        """The prompt of each row, its instructions first."""
        return converse_with_tools(
            columns, self.system, self.tools, self.questions(columns),
            lambda turns, question: ask(self, turns, question, dialogue.Calls()),
        )  # fmt: skip
