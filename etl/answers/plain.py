"""What two answers are to each other, and the pairs on which that is plain without algebra.

Plain are two answers with one spelling, which are equal, and two whole or decimal numbers of at most six decimals,
which are compared exactly. The process of etl.answers.child says the same of these, a hundred times slower. math-verify
rounds to six decimals, so of longer ones it might not.
"""

import re
from fractions import Fraction
from typing import Final, Literal, NamedTuple

Outcome = Literal["equal", "different", "unparseable"]

_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,14})(?:\.\d{1,6})?")


class Verdict(NamedTuple):
    """Of a pair of answers."""

    outcome: Outcome
    """`unparseable`: at least one of the two cannot be read, or could be read in several ways that matter here."""
    reason: str = ""
    """Of an unparseable pair: a key to count by."""


EQUAL: Final = Verdict("equal")
DIFFERENT: Final = Verdict("different")


def plain_number(answer: str) -> Fraction | None:
    """The value of a number in its usual form, 1,234.5 included; None for everything else."""
    return Fraction(answer.replace(",", "")) if _NUMBER.fullmatch(answer) else None


def plain_verdict(answer: str, expected: str) -> Verdict | None:
    """Of two cleaned answers; None where it takes algebra."""
    if answer == expected:
        return EQUAL if answer else Verdict("unparseable", "empty")
    if not answer or not expected:
        return Verdict("unparseable", "empty")
    ours, theirs = plain_number(answer), plain_number(expected)
    if ours is None or theirs is None:
        return None
    return EQUAL if ours == theirs else DIFFERENT
