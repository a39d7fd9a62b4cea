"""Rows that hold a list of exchanges: `conversation: [{human, assistant}, …]`, or `history: [[question, answer], …]`.

`last` adds an exchange from columns of its own, as data sets with a `history` have it. One pass in Python over the
exchanges of a batch, under a µs each.
"""

from typing import Any, Literal

import pyarrow as pa

from etl.sources.shapes import dialogue
from etl.sources.shapes.columns import Turn
from etl.sources.shapes.described import Columns, Conversations, Described, Value, columns_of, converse_rows
from etl.sources.shapes.messages import Spoken
from etl.sources.shapes.turns import Turns, Unfit


class PairsShape(Described):
    """Rows with a list of exchanges."""

    shape: Literal["pairs"]
    pairs: str = "conversation"
    """Column of the list; null and an empty list mean no exchange. It may also contain messages, or alternating
    texts."""
    user_key: str = "human"
    """Key of the user's text; an exchange may also be a list of two texts."""
    assistant_key: str = "assistant"
    """Key of the assistant's text."""
    system: Value | None = None
    """Instructions before the conversation; an empty value makes no message."""
    last: Turn | None = None
    """One more exchange after those of the list."""

    @property
    def said(self) -> tuple[str, ...]:
        """Instructions and the last exchange."""
        last = (self.last.user, self.last.analysis, self.last.final) if self.last is not None else ()
        return columns_of(self.system, *last)

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of the last prompt's template."""
        return self.last.templated if self.last is not None else ()

    @property
    def nested(self) -> tuple[str, ...]:
        """The list."""
        return (self.pairs,)

    @property
    def needed(self) -> tuple[str, ...]:
        """The last exchange where there is one, else the list."""
        return (self.pairs,) if self.last is None else (*self.last.asked, self.last.final)

    def converse(self, columns: Columns) -> Conversations:
        """Each exchange of the list, then the last one."""
        nothing = pa.nulls(len(columns), pa.string())
        last = self.last
        texts = [
            columns.text(self.system),
            *(
                (nothing, nothing, nothing)
                if last is None
                else (last.question(columns), columns.text(last.analysis), columns.text(last.final))
            ),
        ]

        def write(turns: Turns, row: tuple[Any, ...]) -> None:
            pairs, system, question, analysis, final = row
            turns.add_instructions(system)
            found = self._listed(pairs)
            if found and self._is_message(found[0]):
                Spoken().add(turns, found, dialogue.Calls())
            else:
                for pair in found:
                    self._add(turns, pair)
            if last is not None:
                turns.add("user", question or "")
                if analysis:
                    turns.add("assistant", analysis, "analysis")
                dialogue.add_message(turns, "assistant", {}, final or "", dialogue.Calls())

        rows = zip(columns.values(self.pairs), *(text.to_pylist() for text in texts), strict=True)
        return converse_rows(rows, write)

    def _listed(self, pairs: Any) -> list[Any]:
        found = dialogue.json_of(pairs, self.pairs)
        if found is None:
            return []
        if not isinstance(found, list):
            raise Unfit("not_pairs", f"a list of exchanges is needed, this is {dialogue.called(found)}")
        return found

    def _is_message(self, first: Any) -> bool:
        return isinstance(first, str) or (
            isinstance(first, dict) and not {self.user_key, self.assistant_key} & first.keys()
        )

    def _add(self, turns: Turns, pair: Any) -> None:
        if isinstance(pair, dict):
            question, answer = pair.get(self.user_key), pair.get(self.assistant_key)
        elif isinstance(pair, list) and len(pair) == 2:
            question, answer = pair
        else:
            raise Unfit("not_pairs", f"an exchange is {dialogue.called(pair)}; an object or a list of two is needed")
        turns.add("user", dialogue.text_of(question, "user"))
        dialogue.add_message(turns, "assistant", {}, dialogue.text_of(answer, "assistant"), dialogue.Calls())
