"""Rows that say which of several answers is better: DPO pairs, KTO labels, or answers with rewards.

The better answer becomes the row's conversation. What was not chosen goes into meta_json: `rejected` is the list of its
messages behind those that both sides share, `score_chosen` and `score_rejected` are the rewards. A KTO row whose
`label` is false has `label: false` there and is lost by ingest's own verdict, so that nobody trains on it by mistake.
"""

from typing import Any, Literal

from pydantic import model_validator

from etl.sources.shapes import dialogue
from etl.sources.shapes.described import Columns, Conversations, Described, Value, columns_of, converse_rows
from etl.sources.shapes.messages import Spoken
from etl.sources.shapes.prompts import as_messages, ask
from etl.sources.shapes.transcript import Marked
from etl.sources.shapes.turns import MESSAGE_FIELDS, Message, Turns, Unfit


class PreferenceShape(Spoken, Described):
    """Rows with a better and a worse answer."""

    shape: Literal["preference"]
    prompt: str | None = None
    """Column of the prompt, a text or messages; null if both sides contain the whole conversation."""
    chosen: str | None = None
    """Column of the better side: the answer or the whole conversation, as text, messages or transcript."""
    rejected: str | None = None
    """Column of the other side, likewise."""
    responses: str | None = None
    """Instead of `chosen` and `rejected`: column of a list of answers; the best and the worst are used."""
    rewards: str | None = None
    """Column of the list of their rewards."""
    completion: str | None = None
    """Instead of `chosen` and `rejected`: column of a single answer, or whole conversation, that `label` judges."""
    label: str | None = None
    """Column with the judgement of the answer: true or 1 for good, false or 0 for bad."""
    system: Value | None = None
    """Instructions before the conversation; an empty value makes no message."""
    transcript: Marked = Marked()
    """How a side that is a transcript marks who speaks."""

    @model_validator(mode="after")
    def _says_what_is_better(self) -> "PreferenceShape":
        ways = (("chosen", "rejected"), ("responses", "rewards"), ("completion", "label"))
        given = [pair for pair in ways if any(getattr(self, key) is not None for key in pair)]
        if len(given) != 1 or any(getattr(self, key) is None for key in given[0]):
            raise ValueError("give one of the pairs: chosen and rejected, responses and rewards, completion and label")
        return self

    @property
    def said(self) -> tuple[str, ...]:
        """The instructions."""
        return columns_of(self.system)

    @property
    def nested(self) -> tuple[str, ...]:
        """Prompt, answers and what is said of them."""
        return columns_of(
            self.prompt, self.chosen, self.rejected, self.responses, self.rewards, self.completion, self.label
        )

    @property
    def needed(self) -> tuple[str, ...]:
        """All of these."""
        return self.nested

    def converse(self, columns: Columns) -> Conversations:
        """The better side of each row, or the one that is labelled."""
        size = len(columns)
        meta: dict[str, list[Any]] = {
            key: [None] * size for key in ("rejected", "score_chosen", "score_rejected", "label")
        }
        paths = (
            self.prompt, self.chosen, self.rejected, self.responses, self.rewards, self.completion, self.label
        )  # fmt: skip
        values = [columns.values(path) if path is not None else [None] * size for path in paths]

        def write(turns: Turns, row: tuple[Any, ...]) -> None:
            number, system, prompt, chosen, rejected, responses, rewards, completion, label = row
            told: dict[str, Any] = {}
            if self.responses is not None:
                chosen, rejected, told = _by_reward(responses, rewards)
            elif self.completion is not None:
                chosen, told = completion, {"label": _is_good(label)}
            better = self._told(prompt, chosen)
            if self.completion is None:
                worse = self._told(prompt, rejected)
                told["rejected"] = [_as_record(message) for message in worse[_num_shared(better, worse) :]]
            turns.add_instructions(system)
            for message in better:
                turns.append(message)
            for key, value in told.items():
                meta[key][number] = value

        rows = zip(range(size), columns.text(self.system).to_pylist(), *values, strict=True)
        made = converse_rows(rows, write)
        made.meta = {key: kept for key, kept in meta.items() if any(value is not None for value in kept)}
        if undesirable := [row for row, label in enumerate(meta["label"]) if label is False]:
            made.dropped = {"undesirable": undesirable}
        return made

    def _told(self, prompt: Any, side: Any) -> list[Message]:
        """The messages of one side, those of the prompt first where the side does not say them itself."""
        turns, calls = Turns(), dialogue.Calls()
        side = as_messages(side)
        if isinstance(side, str) and prompt is None:
            self.transcript.add(turns, side)
        elif isinstance(side, str):
            ask(self, turns, prompt, calls)
            dialogue.add_message(turns, "assistant", {}, side, calls)
        else:
            if prompt is not None and self.first_speaker(side) in ("assistant", "call"):
                ask(self, turns, prompt, calls)
            self.add(turns, side, calls)
        return turns.open_row()


def _by_reward(responses: Any, rewards: Any) -> tuple[Any, Any, dict[str, Any]]:
    """The answers of the highest and of the lowest reward, the first of equal ones, and these rewards."""
    responses, rewards = dialogue.json_of(responses, "responses"), dialogue.json_of(rewards, "rewards")
    if not isinstance(responses, list) or not isinstance(rewards, list) or len(responses) != len(rewards):
        raise Unfit("no_preference", "responses and rewards are not two lists of one length")
    scored = [place for place, reward in enumerate(rewards) if isinstance(reward, int | float)]
    if not scored:
        raise Unfit("no_preference", "no reward is a number")
    best, worst = max(scored, key=rewards.__getitem__), min(scored, key=rewards.__getitem__)
    if rewards[best] == rewards[worst]:
        raise Unfit("no_preference", f"all {len(scored)} rewards are {rewards[best]}")
    return responses[best], responses[worst], {"score_chosen": rewards[best], "score_rejected": rewards[worst]}


def _is_good(label: Any) -> bool:
    if label in (True, False):
        return bool(label)
    if isinstance(label, str) and label.strip().lower() in ("true", "false", "1", "0"):
        return label.strip().lower() in ("true", "1")
    raise Unfit("wrong_type", f"the label is {label!r}; true or false, 1 or 0 is needed")


def _num_shared(one: list[Message], other: list[Message]) -> int:
    """Number of messages that two sides begin with."""
    differ = (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(differ, min(len(one), len(other)))


def _as_record(message: Message) -> dict[str, str]:
    return {key: value for key, value in zip(MESSAGE_FIELDS, message, strict=True) if value is not None}
