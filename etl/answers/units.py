"""Units of measure as they are written before or after a number, and the exact factors between them.

An answer may omit its unit, as the question has given it. If both answers have one, the same quantity in two units of
one dimension is the same answer (60 minutes, 1 hour). Words that are in no table here (12 apples) are compared as
words.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

_F = Fraction
_TABLE: Final[dict[str, dict[str, Fraction]]] = {
    "length": {
        "mm millimeter millimetre": _F(1, 1000), "cm centimeter centimetre": _F(1, 100),
        "dm decimeter decimetre": _F(1, 10), "m meter metre": _F(1),
        "km kilometer kilometre": _F(1000), "inch in inches": _F(254, 10000),
        "ft foot feet": _F(3048, 10000), "yd yard": _F(9144, 10000), "mi mile": _F(1609344, 1000),
    },
    "mass": {
        "mg milligram": _F(1, 1000), "g gm gram": _F(1), "kg kilogram kilo": _F(1000),
        "oz ounce": _F(45359237, 1600000), "lb lbs pound": _F(45359237, 100000), "ton tonne": _F(1000000),
    },
    "time": {
        "ms millisecond": _F(1, 1000), "s sec second": _F(1), "min minute": _F(60), "h hr hrs hour": _F(3600),
        "day": _F(86400), "week": _F(604800),
    },
    "years": {"month": _F(1, 12), "yr yrs year": _F(1), "decade": _F(10), "century centuries": _F(100)},
    "volume": {"ml milliliter millilitre": _F(1, 1000), "l liter litre": _F(1)},
    "gallons": {"cup": _F(1, 16), "pint pt": _F(1, 8), "quart qt": _F(1, 4), "gallon gal": _F(1)},
    "angle": {"degree deg °": _F(1)},
    "temperature": {"°c c celsius": _F(1)}, "fahrenheit": {"°f f fahrenheit": _F(1)},
    "dollars": {"$ dollar usd": _F(1), "cent ¢": _F(1, 100)},
    "euros": {"€ euro eur": _F(1)}, "sterling": {"£ gbp": _F(1)}, "yen": {"¥ yen jpy": _F(1)},
    "rupees": {"₹ rs rupee inr": _F(1)}, "yuan": {"yuan rmb cny 元": _F(1)},
    "watts": {"w watt": _F(1), "kw kilowatt": _F(1000)}, "joules": {"j joule": _F(1), "kj kilojoule": _F(1000)},
    "newtons": {"n newton": _F(1)}, "volts": {"v volt": _F(1)}, "hertz": {"hz hertz": _F(1), "khz kilohertz": _F(1000)},
    "moles": {"mol mole": _F(1)}, "pascals": {"pa pascal": _F(1), "kpa kilopascal": _F(1000)},
    "bytes": {"byte": _F(1)}, "bits": {"bit": _F(1)},
}  # fmt: skip
_UNITS: Final = {
    spelling: (dimension, factor)
    for dimension, units in _TABLE.items()
    for spellings, factor in units.items()
    for spelling in spellings.split()
}
_SPEEDS: Final = {"mph": "mi/h", "kmph": "km/h", "kph": "km/h", "kmh": "km/h", "mps": "m/s"}
_NEUTRAL: Final = frozenset({"unit", "units", "of", "the", "a", "an", "total", "in", "u", "each"})
"""Words that say nothing about the quantity; `in` by itself means inches."""
_SPEED: Final = re.compile(rf"\b(?:{'|'.join(_SPEEDS)})\b")
_POWERS: Final = frozenset({"square", "sq", "cubic", "cu"})
SCALES: Final = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12,
}  # fmt: skip
_PIECE: Final = re.compile(r"(°[cf]?|[^\W\d_]+|[$€£¥₹¢元])(?:\s*\^\s*\{?\s*(-?\d)\s*\}?)?|/")


@dataclass(frozen=True)
class Unit:
    """A unit of measure, or the words for what is counted."""

    dimension: tuple[tuple[str, int], ...]
    """(dimension, power) pairs of a known unit; () for words."""
    factor: Fraction
    """Converts it to the first unit of the dimension."""
    words: str = ""
    """As written, if in no table."""
    base: int = 0
    """The base of digits that are not in base ten."""


def read_unit(text: str) -> Unit | None:
    """The unit that words name; None for words that say nothing, such as `units`."""
    words = _one_spelling(text)
    powers: dict[str, int] = {}
    factor, sign = Fraction(1), 1
    unknown, counted = False, []
    for piece in _PIECE.finditer(words):
        if piece[0] == "/":
            sign = -1
        elif piece[1] not in _NEUTRAL or words == "in":
            counted.append(_singular(piece[1]))
            found = _find(piece[1])
            if found is None:
                unknown = True
                continue
            exponent = sign * int(piece[2] or 1)
            powers[found[0]] = powers.get(found[0], 0) + exponent
            factor *= found[1] ** exponent
    if not counted:
        return None
    return Unit((), Fraction(1), " ".join(counted)) if unknown else Unit(tuple(sorted(powers.items())), factor)


def _one_spelling(text: str) -> str:
    """The words in lower case, with powers as ^2 and `per` as /."""
    words = text.lower().replace("^{\\circ}", "°").replace("\\text{", " ").replace("}^", "^")
    words = re.sub(r"\}(?=\s|$|/|\^)|\\cdot|\\times|\*", " ", words)
    words = re.sub(r"°\s*([cf])\b", r"°\1", words)
    words = re.sub(r"(?<=[a-z])\.(?=\s|$|[a-z])", "", words)
    words = _SPEED.sub(lambda found: _SPEEDS[found[0]], re.sub(r"\bper\b", "/", words))
    words = re.sub(r"\b(?:square|sq)\s+([a-z]+)|\b([a-z]+)\s+squared\b", r"\1\2^2", words)
    return re.sub(r"\b(?:cubic|cu)\s+([a-z]+)|\b([a-z]+)\s+cubed\b", r"\1\2^3", words).strip()


def is_known(word: str) -> bool:
    """Whether a table lists a word as a unit."""
    return _find(word.lower()) is not None or word.lower() in _SPEEDS or word.lower() in _POWERS


def _find(word: str) -> tuple[str, Fraction] | None:
    return _UNITS.get(word) or _UNITS.get(_singular(word))


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 3 and not word.endswith("ss") else word
