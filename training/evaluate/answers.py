"""The final answer of a worked solution, and whether two of them are the same.

An answer is what stands in the last \\boxed{…}, or after the last "####"; a solution that states none in these ways is
taken by its last number. Numbers are compared as numbers (1,000 = 1000.0; 1/2 = 0.5), all else as LaTeX without spaces
and layout.
"""

import re
from fractions import Fraction

_BOXED = "\\boxed{"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")
_FRACTION = re.compile(r"(-?)\\frac\{(\d+)\}\{(\d+)\}")
_LAYOUT = re.compile(r"\\left|\\right|\\!|\\,|\\;|\\ |\\\$|\\%|[$\s]|%$|\.$")


def stated_answer(text: str) -> str | None:
    """What a text states as its answer; None where it states none."""
    start = text.rfind(_BOXED)
    if start >= 0:
        return _inside(text[start + len(_BOXED) :])
    _, marked, rest = text.rpartition("####")
    return rest.strip().split("\n")[0] if marked else None


def given_answer(text: str) -> str | None:
    """The answer of what a model said: the stated one, else its last number."""
    numbers = _NUMBER.findall(text)
    return stated_answer(text) or (numbers[-1] if numbers else None)


def is_same(one: str, other: str) -> bool:
    """Whether two answers are equal."""
    return _value(one) == _value(other)


def _inside(text: str) -> str | None:
    """The text up to the brace that closes it; None where none does."""
    depth = 1
    for place, letter in enumerate(text):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return text[:place]
    return None


def _value(answer: str) -> Fraction | str:
    plain = _LAYOUT.sub("", answer).replace("dfrac", "frac").replace("tfrac", "frac")
    number = _FRACTION.sub(r"\1\2/\3", plain).replace(",", "")
    try:
        return Fraction(number)
    except (ValueError, ZeroDivisionError):
        return plain
