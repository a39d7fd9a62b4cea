"""Exact values of written numbers: with separators, as fractions, mixed, periodic, scientific, or in words."""

import re
from fractions import Fraction
from typing import Final

GROUPED: Final = re.compile(
    r"-?[1-9]\d{0,2}(?:(,)\d{3}(?:,\d{3})*|( )\d{3}(?: \d{3})*|['_]\d{3}(?:['_]\d{3})*)(?:\.\d+)?"
)
INDIAN: Final = re.compile(r"-?[1-9]\d?(?:,\d\d)+,\d{3}(?:\.\d+)?")
CONTINENTAL: Final = re.compile(r"-?[1-9]\d{0,2}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,}|(?: \d{3})+,\d+)")
_DIGITS: Final = r"(?:\d{1,400}(?:\.\d{0,400})?|\.\d{1,400})"
_SCIENTIFIC: Final = re.compile(
    rf"({_DIGITS})(?:[eE]([+-]?\d{{1,3}})|(?:\\times|\\cdot|\*|x)10\^\{{?([+-]?\d{{1,3}})\}}?)"
)
_PERIODIC: Final = re.compile(
    r"(\d{0,40})\.(\d{0,40})(?:\\(?:overline|bar|dot)\{(\d{1,40})\}|\((\d{1,40})\))(?:\.\.\.)?"
)
_FRACTION: Final = re.compile(r"(\d{0,40})\\frac\{(-?)(\d{1,400})\}\{(\d{1,400})\}")
_WORDS: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen",
    "twenty thirty forty fifty sixty seventy eighty ninety",
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth",
)
_NUMBER_WORDS: Final = {
    **{word: value for value, word in enumerate(_WORDS[0].split())},
    "eighteen": 18,
    "nineteen": 19,
    **{word: 10 * value for value, word in enumerate(_WORDS[1].split(), 2)},
    **{word: value for value, word in enumerate(_WORDS[2].split(), 1)},
}
_PARTS: Final = {
    "half": 2,
    "halve": 2,
    "quarter": 4,
    **{word: place for place, word in enumerate(_WORDS[2].split(), 1) if place > 2},
}
_SCALES: Final = {"thousand": 10**3, "million": 10**6, "billion": 10**9}


def rational(latex: str) -> Fraction | None:
    """The exact value of a number: whole, decimal, fraction, mixed, periodic or scientific; None for all else."""
    text = latex.replace(" ", "") if not re.search(r"\d \d", latex) else latex
    if (found := re.fullmatch(r"(-?)(\d+) (\d+)/(\d+)", text)) is not None and int(found[4]):
        value = int(found[2]) + Fraction(int(found[3]), int(found[4]))
        return -value if found[1] else value
    if " " in text:
        if CONTINENTAL.fullmatch(text):
            text = text.replace(",", ".")
        elif GROUPED.fullmatch(text) is None:
            return None
        text = text.replace(" ", "")
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    while text.startswith(("(", "{")) and text.endswith((")", "}")) and "(" not in text[1:] and "{" not in text[1:]:
        text = text[1:-1]
        if text.startswith("-"):
            sign, text = -sign, text[1:]
    unsigned = _unsigned(text)
    return None if unsigned is None else sign * unsigned


def spelled(words: list[str]) -> Fraction | None:
    """The number that words spell: twenty five, one hundred and two, three quarters."""
    if len(words) == 2 and words[1].removesuffix("s") in _PARTS:
        above = 1 if words[0] in ("a", "one") else _NUMBER_WORDS.get(words[0], 0)
        return Fraction(above, _PARTS[words[1].removesuffix("s")]) if above else None
    total, part = 0, 0
    if not words or words[0] == "and" or words[-1] == "and":
        return None
    for word in words:
        if word in _NUMBER_WORDS:
            part += _NUMBER_WORDS[word]
        elif word == "hundred" and part:
            part *= 100
        elif word in _SCALES and part:
            total, part = total + part * _SCALES[word], 0
        elif word != "and":
            return None
    return Fraction(total + part)


def _unsigned(text: str) -> Fraction | None:
    if GROUPED.fullmatch(text) or INDIAN.fullmatch(text):
        text = re.sub("[,'_]", "", text)
    elif CONTINENTAL.fullmatch(text):
        text = text.replace(".", "").replace(" ", "").replace(",", ".")
    if re.fullmatch(_DIGITS, text):
        return Fraction(text)
    if (found := re.fullmatch(rf"({_DIGITS})/({_DIGITS})", text)) is not None:
        return Fraction(found[1]) / Fraction(found[2]) if Fraction(found[2]) else None
    if (found := _FRACTION.fullmatch(text)) is not None and int(found[4]):
        part = Fraction(int(found[3]), int(found[4]))
        return Fraction(int(found[1] or 0)) + part if not found[2] else None if found[1] else -part
    if (found := _SCIENTIFIC.fullmatch(text)) is not None:
        return Fraction(found[1]) * Fraction(10) ** int(found[2] or found[3])
    if (found := re.fullmatch(r"10\^\{?(-?\d{1,3})\}?", text)) is not None:
        return Fraction(10) ** int(found[1])
    if (found := _PERIODIC.fullmatch(text)) is not None:
        period = found[3] or found[4]
        fixed = Fraction(f"{found[1] or 0}.{found[2] or 0}")
        return fixed + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(found[2]))
    return None
