"""The verdict on two answers, and the pairs that get it without algebra.

Two kinds of pairs need no algebra. Two answers with the same spelling are equal. Two whole or decimal numbers with at
most six decimals are compared exactly. etl.answers.child gives the same verdicts on these, a hundred times slower. On
longer numbers it might not, as math-verify rounds to six decimals.
"""

import re
from fractions import Fraction
from typing import Final, Literal, NamedTuple

Outcome = Literal["equal", "different", "unparseable"]

_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,14})(?:\.\d{1,6})?")


class Verdict(NamedTuple):
    """The verdict on a pair of answers."""

    outcome: Outcome
    """`unparseable`: at least one of the two cannot be read, or could be read in several ways that matter here."""
    reason: str = ""
    """Why a pair is unparseable: a key to count by."""


EQUAL: Final = Verdict("equal")
DIFFERENT: Final = Verdict("different")


def plain_number(answer: str) -> Fraction | None:
    """The value of a number in its usual form, 1,234.5 included; None for everything else."""
    return Fraction(answer.replace(",", "")) if _NUMBER.fullmatch(answer) else None


def plain_verdict(answer: str, expected: str) -> Verdict | None:
    """The verdict on two cleaned answers; None if it takes algebra."""
    if answer == expected:
        return EQUAL if answer else Verdict("unparseable", "empty")
    if not answer or not expected:
        return Verdict("unparseable", "empty")
    ours, theirs = plain_number(answer), plain_number(expected)
    if ours is None or theirs is None:
        return None
    return EQUAL if ours == theirs else DIFFERENT
