"""Rows that ask what can be checked: a problem with the right answer, or a task with tests, for RL and for graders.

The right answer and the tests go into meta_json, as `expected_answer` and `tests`; they are not said to the student. A
`final` column makes the item an example as well. Rows without it are prompts, and nothing is lost for the lack of an
answer.
"""

from typing import Any, Literal

from pydantic import model_validator

from etl.sources.shapes import dialogue
from etl.sources.shapes.described import Columns, Conversations, Described, Value, columns_of, converse_rows
from etl.sources.shapes.prompts import Asked, ask
from etl.sources.shapes.turns import Turns


class VerifiableShape(Asked, Described):
    """Rows with a question whose answer can be checked."""

    shape: Literal["verifiable"]
    answer: str | None = None
    """Column of the right answer, of any type."""
    tests: str | None = None
    """Column of the tests, of any type."""
    final: str | None = None
    """Column of a worked solution, the assistant's text; reasoning in tags becomes a separate message."""
    system: Value | None = None
    """Instructions before the problem; an empty value makes no message."""

    @model_validator(mode="after")
    def _can_be_checked(self) -> "VerifiableShape":
        if self.answer is None and self.tests is None:
            raise ValueError("name the column of the right `answer`, or of the `tests`")
        return self

    @property
    def has_answers(self) -> bool:
        """Whether rows have answers at all."""
        return self.final is not None

    @property
    def said(self) -> tuple[str, ...]:
        """Instructions and solution."""
        return columns_of(self.system, self.final)

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of the template."""
        return self.templated

    @property
    def nested(self) -> tuple[str, ...]:
        """The problem, the right answer and the tests."""
        return columns_of(self.user, self.answer, self.tests)

    @property
    def needed(self) -> tuple[str, ...]:
        """What is asked, and the solution where there is one."""
        return tuple(dict.fromkeys((*self.asked, *columns_of(self.final))))

    def converse(self, columns: Columns) -> Conversations:
        """The problem of each row, and its solution."""
        named = {"expected_answer": self.answer, "tests": self.tests}
        checks = {key: path for key, path in named.items() if path is not None}
        meta: dict[str, list[Any]] = {key: [None] * len(columns) for key in checks}

        def write(turns: Turns, row: tuple[Any, ...]) -> None:
            number, system, question, final, *checked = row
            turns.add_instructions(system)
            ask(self, turns, question, dialogue.Calls())
            if self.final is not None:
                dialogue.add_message(turns, "assistant", {}, final or "", dialogue.Calls())
            for key, value in zip(checks, checked, strict=True):
                meta[key][number] = None if value is None else dialogue.written(value).encode()

        texts = (columns.text(self.system).to_pylist(), self.questions(columns), columns.text(self.final).to_pylist())
        values = (columns.values(path) for path in checks.values())
        made = converse_rows(zip(range(len(columns)), *texts, *values, strict=True), write)
        made.meta = meta
        return made
