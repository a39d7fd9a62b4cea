"""Changing the effort of a row's tokens equals rendering the row with that effort."""

import numpy as np
import pyarrow as pa
import pytest

from etl.errors import DataError
from etl.harmony.render import Messages, Preamble, Renderer
from etl.harmony.vocabulary import DEFAULT_VOCABULARY, END
from etl.schema import MESSAGE
from tests.training.teachers import conversation
from training.teacher.prompt import EFFORTS, PromptRenderer, SystemMessage, with_effort

PREAMBLES = [
    ("You are ChatGPT, a large language model trained by OpenAI.", None, None, "2024-06"),
    ("Du bist ein Helfer.\nReasoning: is what you do", "Answer in one line.\nReasoning: low", "2026-01-01", None),
]


def render(preamble, effort, rows):
    identity, developer, start_date, cutoff = preamble
    renderer = Renderer(Preamble(identity, developer, effort, start_date, cutoff), DEFAULT_VOCABULARY)
    rendered = renderer.render(Messages.of(pa.array(rows, pa.list_(MESSAGE))))
    return np.split(rendered.tokens, rendered.offsets[1:-1])


@pytest.mark.parametrize("preamble", PREAMBLES)
@pytest.mark.parametrize("own", EFFORTS)
def test_a_changed_row_is_the_row_rendered_with_that_effort(preamble, own):
    generator = np.random.default_rng(0)
    rows = [conversation(generator, turns) for turns in (1, 2, 3)]
    prompts = PromptRenderer()
    for effort in EFFORTS:
        pairs = zip(render(preamble, own, rows), render(preamble, effort, rows), strict=True)
        for tokens, expected in pairs:
            system = prompts.system(tokens)
            assert system.effort == own
            changed = with_effort(tokens, system, effort)
            assert changed.input_ids.tolist() == expected.tolist()
            assert changed.shift == len(expected) - len(tokens)


def test_what_is_left_of_a_system_message_does_not_depend_on_its_effort():
    rows = [conversation(np.random.default_rng(1), 1)]
    left = [PromptRenderer().system(render(PREAMBLES[0], effort, rows)[0]).without_effort for effort in EFFORTS]
    assert left[0].tolist() == left[1].tolist() == left[2].tolist()


def test_rows_without_a_line_of_the_effort_have_no_system_message_to_change():
    (tokens,) = render(PREAMBLES[0], "medium", [conversation(np.random.default_rng(2), 1)])
    prompts = PromptRenderer()
    after = int(np.argmax(tokens == END)) + 1
    assert prompts.system(tokens[after:]) is None
    assert prompts.system(tokens[:5]) is None
    assert prompts.system(tokens[:0]) is None
    twice = ("Be brief.\nReasoning: low", None, None, None)
    assert prompts.system(render(twice, "medium", [conversation(np.random.default_rng(2), 1)])[0]) is None


def test_tokens_that_are_not_those_of_their_text_are_refused():
    (tokens,) = render(PREAMBLES[0], "medium", [conversation(np.random.default_rng(2), 1)])
    # "You" as three tokens of one letter.
    split = np.concatenate([tokens[:3], [56, 78, 84], tokens[4:]]).astype(np.int32)
    with pytest.raises(DataError, match="other tokens"):
        PromptRenderer().system(split)


def test_a_system_message_of_another_length_shifts_what_comes_after_it():
    """The three efforts happen to be one token each today."""
    rendered = {"low": np.array([1, 2]), "medium": np.array([1, 5, 2]), "high": np.array([1, 6, 7, 8, 2])}
    system = SystemMessage(3, "medium", rendered, np.array([1, 2]))
    row = np.array([1, 5, 2, 30, 31, 32])
    for effort, shift in (("low", -1), ("medium", 0), ("high", 2)):
        prompt = with_effort(row, system, effort)
        assert prompt.input_ids.tolist() == [*rendered[effort].tolist(), 30, 31, 32]
        assert prompt.shift == shift
        assert prompt.input_ids[3 + shift :].tolist() == row[3:].tolist()
