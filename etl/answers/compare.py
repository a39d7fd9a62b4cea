"""Whether two cleaned answers are equal: by their structure and, unless they are plain numbers, by math-verify.

Groups are compared part by part: tuples and intervals in order, sets and lists of solutions in any order. Two numbers
are compared as exact fractions; a decimal of at least six places also equals any value that rounds to it. Everything
else is left to math-verify's `verify`. As that rounds to six decimals, so that tiny values would all be equal, its
"equal" must also hold numerically. Only etl.answers.child and tests import this file: loading math-verify takes half a
second.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Final

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

from etl.answers.exact import rational
from etl.answers.forms import Group, Option, Reading, Unreadable, Value, Words
from etl.answers.plain import DIFFERENT, EQUAL, Verdict
from etl.answers.reading import read

_LATEX: Final = [
    LatexExtractionConfig(
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="none", equations=False
        )
    )
]
_AMBIGUOUS: Final = Verdict("unparseable", "ambiguous")
_PLACES: Final = 6
"""A number with at least this many decimals is taken for a rounding."""
_SEEN: Final = sympy.Float("1e-12")
"""Two values with a larger relative difference are different."""
_TOLERANCE: Final = sympy.Float("2e-6")
"""Largest relative difference between two equal expressions, one of which may be a rounding."""


def compare(answer: str, expected: str) -> Verdict:
    """The verdict on two cleaned answers."""
    ours, theirs = read(answer), read(expected)
    verdict = _of_readings(ours[0], theirs[0])
    if verdict.outcome == "equal" or (len(ours) == 1 and len(theirs) == 1):
        return verdict
    others = [(our, their) for our in ours for their in theirs][1:]
    if any(_of_readings(our, their).outcome == "equal" for our, their in others):
        return _AMBIGUOUS
    return verdict


def _of_readings(one: Reading, other: Reading) -> Verdict:
    for reading in (one, other):
        if isinstance(reading, Unreadable):
            return Verdict("unparseable", reading.reason)
    if isinstance(one, Option) or isinstance(other, Option):
        return _options(one, other)
    if isinstance(one, Words) or isinstance(other, Words):
        return _words(one, other)
    if isinstance(one, Group) or isinstance(other, Group):
        return _groups(one, other)
    assert isinstance(one, Value)
    assert isinstance(other, Value)
    return _values(one, other)


# --- options and words --------------------------------------------------------------------------------------------


def _options(one: Reading, other: Reading) -> Verdict:
    if isinstance(one, Option) and isinstance(other, Option):
        return EQUAL if one.letter == other.letter else DIFFERENT
    option, plain = (one, other) if isinstance(one, Option) else (other, one)
    assert isinstance(option, Option)
    letter = _letter(plain)
    if letter:
        return EQUAL if letter.upper() == option.letter else DIFFERENT
    # The other one gives the text of an option; only the question could show its letter.
    return Verdict("unparseable", "option") if option.rest is None else _of_readings(option.rest, plain)


def _letter(reading: Reading) -> str:
    return reading.latex if isinstance(reading, Value) and re.fullmatch("[A-Ja-j]", reading.latex) else ""


def _words(one: Reading, other: Reading) -> Verdict:
    if isinstance(one, Words) and isinstance(other, Words):
        return EQUAL if _key(one) == _key(other) else DIFFERENT
    words, rest = (one, other) if isinstance(one, Words) else (other, one)
    assert isinstance(words, Words)
    if words.text == "all real numbers" and isinstance(rest, (Value, Group)):
        whole = Value("(-\\infty,\\infty)")
        return EQUAL if _latex_of(rest) in ("\\mathbb{R}", "\\mathbb R", "(-\\infty,\\infty)") else _asked(whole, rest)
    if isinstance(rest, Value) and _key(words).replace(" ", "") == rest.latex.lower():
        return EQUAL
    if words.text == "no solution" and isinstance(rest, Group) and not rest.items:
        return EQUAL
    if isinstance(rest, Group) and rest.kind == "ratio" and words.text.startswith(":".join(map(_latex_of, rest.items))):
        return _AMBIGUOUS
    return DIFFERENT if len(words.text.split()) <= 3 else Verdict("unparseable", "prose")


def _key(words: Words) -> str:
    return re.sub(r"^(?:the|an?) ", "", words.text)


def _latex_of(reading: Reading) -> str:
    """A value or a group turned back into LaTeX."""
    if isinstance(reading, Value):
        return reading.latex
    assert isinstance(reading, Group)
    inner = ",".join(_latex_of(item) for item in reading.items)
    return f"{reading.ends[0]}{inner}{reading.ends[1]}" if reading.ends else f"({inner})"


# --- groups -------------------------------------------------------------------------------------------------------


def _groups(one: Reading, other: Reading) -> Verdict:
    if not isinstance(one, Group) or not isinstance(other, Group):
        group, single = (one, other) if isinstance(one, Group) else (other, one)
        assert isinstance(group, Group)
        return _group_and_value(group, single)
    kinds = {one.kind, other.kind}
    if kinds == {"ratio"}:
        return _ratios(one, other)
    if kinds in ({"list"}, {"list", "set"}, {"set"}):
        return _unordered(one.items, other.items, as_sets="set" in kinds)
    if len(kinds) == 1:
        return _ordered(one.items, other.items) if one.ends == other.ends else DIFFERENT
    if kinds in ({"round", "list"}, {"round", "matrix"}, {"list", "matrix"}):
        ordered = _ordered(one.items, other.items)
        return ordered if "list" not in kinds or (one.ends or other.ends or "") == "" else _only_equal(ordered)
    if kinds in ({"range", "interval"}, {"list", "interval"}, {"range", "ratio"}):
        same = _ordered(one.items, other.items)
        return _AMBIGUOUS if same.outcome == "equal" else same
    return DIFFERENT


def _only_equal(verdict: Verdict) -> Verdict:
    return _AMBIGUOUS if verdict.outcome == "equal" else verdict


def _group_and_value(group: Group, single: Reading) -> Verdict:
    assert isinstance(single, Value)
    if len(group.items) == 1 and group.kind in ("set", "list"):
        return _of_readings(group.items[0], single)
    if group.kind == "ratio" and len(group.items) == 2 and not single.is_relation:
        above, below = (item.latex for item in group.items if isinstance(item, Value))
        same = _values(Value(f"\\frac{{{above}}}{{{below}}}"), single)
        return _AMBIGUOUS if same.outcome == "equal" else same
    if group.kind == "list" and all(isinstance(item, Value) and item.is_relation for item in group.items):
        return _union(group, single)
    is_set = single.is_relation or re.search(r"\\(?:cup|cap|setminus|infty|mathbb)|[\[\](]", single.latex)
    if is_set and group.kind in ("interval", "round", "set"):
        return _asked(Value(_latex_of(group)), single)
    return DIFFERENT


def _union(group: Group, single: Value) -> Verdict:
    """Compare inequalities joined by `or` with a set."""
    parsed = [_parse(_latex_of(item)) for item in (*group.items, single)]
    if any(each is None for each in parsed):
        return Verdict("unparseable", "syntax")
    try:
        union = sympy.Union(*(each.as_set() for each in parsed[:-1]))
    except (AttributeError, NotImplementedError, ValueError):
        return Verdict("unparseable", "syntax")
    return EQUAL if _equal(union, parsed[-1]) else DIFFERENT


def _ordered(ours: Sequence[Reading], theirs: Sequence[Reading]) -> Verdict:
    if len(ours) != len(theirs):
        return DIFFERENT
    found = [_of_readings(our, their) for our, their in zip(ours, theirs, strict=True)]
    if any(verdict.outcome == "different" for verdict in found):
        return DIFFERENT
    return next((verdict for verdict in found if verdict.outcome == "unparseable"), EQUAL)


def _unordered(ours: Sequence[Reading], theirs: Sequence[Reading], *, as_sets: bool) -> Verdict:
    if as_sets:
        ours, theirs = _distinct(ours), _distinct(theirs)
    if len(ours) != len(theirs):
        return DIFFERENT
    unread: Verdict | None = None
    left = list(theirs)
    for our in ours:
        for place, their in enumerate(left):
            verdict = _of_readings(our, their)
            if verdict.outcome == "equal":
                del left[place]
                break
            unread = verdict if verdict.outcome == "unparseable" else unread
        else:
            return unread or DIFFERENT
    return EQUAL


def _distinct(items: Sequence[Reading]) -> list[Reading]:
    kept: list[Reading] = []
    for item in items:
        if not any(_of_readings(item, other).outcome == "equal" for other in kept):
            kept.append(item)
    return kept


def _ratios(one: Group, other: Group) -> Verdict:
    ours, theirs = ([Fraction(item.latex) for item in group.items if isinstance(item, Value)] for group in (one, other))
    if ours == theirs:
        return EQUAL
    if len(ours) != len(theirs) or any(a * theirs[0] != b * ours[0] for a, b in zip(ours, theirs, strict=True)):
        return DIFFERENT
    # 3:20 and 6:40 are the same ratio but different times of the day.
    return _AMBIGUOUS


# --- values -------------------------------------------------------------------------------------------------------


def _values(one: Value, other: Value) -> Verdict:
    if one.is_relation != other.is_relation:
        relation, plain = (one, other) if one.is_relation else (other, one)
        if plain.name:
            return _asked(relation, Value(f"{plain.name}={plain.latex}"))
        if re.search(r"\\(?:cup|infty|mathbb)|[\[\]]", plain.latex) and "=" not in relation.latex:
            return _asked(relation, plain)
        return DIFFERENT
    if one.name and other.name and one.name.lower() != other.name.lower():
        return DIFFERENT
    first, second = _letter(one), _letter(other)
    if first and second and first != second and first.lower() == second.lower():
        return _AMBIGUOUS
    return _measured(replace(one, name=""), replace(other, name=""))


def _measured(one: Value, other: Value) -> Verdict:
    units = one.unit, other.unit
    one, other = replace(one, unit=None), replace(other, unit=None)
    if units[0] is None or units[1] is None:
        return _percents(one, other)
    if units[0].base and units[1].base:
        return EQUAL if int(one.latex, units[0].base) == int(other.latex, units[1].base) else DIFFERENT
    if units[0].words or units[1].words:
        verdict = _percents(one, other)
        same = units[0] == units[1]
        return verdict if same or verdict.outcome != "equal" else Verdict("unparseable", "unit")
    if {units[0].dimension, units[1].dimension} == {(("mass", 1),), (("sterling", 1),)}:
        return _percents(one, other)
    if units[0].dimension != units[1].dimension:
        return DIFFERENT
    return _percents(_times(one, units[0].factor), _times(other, units[1].factor))


def _times(value: Value, factor: Fraction) -> Value:
    if factor == 1:
        return value
    number = rational(value.latex)
    if number is not None:
        exact = number * factor
        return replace(value, latex=f"\\frac{{{exact.numerator}}}{{{exact.denominator}}}")
    return replace(value, latex=f"\\frac{{{factor.numerator}}}{{{factor.denominator}}}({value.latex})")


def _percents(one: Value, other: Value) -> Verdict:
    """50 % equals 50 % and 0.5. It also equals 50, as the other answer may omit the sign."""
    one, other = _scaled(one), _scaled(other)
    bare = replace(one, percent=False), replace(other, percent=False)
    verdict = _asked(*bare)
    if one.percent == other.percent or verdict.outcome == "equal":
        return verdict
    return _asked(*(_times(value, Fraction(1, 100)) if value.percent else value for value in (one, other)))


def _scaled(value: Value) -> Value:
    return replace(_times(value, Fraction(value.scale)), scale=1)


def _asked(one: Value | Reading, other: Value | Reading) -> Verdict:
    ours, theirs = _latex_of(one), _latex_of(other)
    if ours.replace(" ", "") == theirs.replace(" ", "") and not re.search(r"\w \w", ours + "," + theirs):
        return EQUAL
    numbers = rational(ours), rational(theirs)
    if numbers[0] is not None and numbers[1] is not None:
        rounds = _rounds(ours, numbers[0], numbers[1]) or _rounds(theirs, numbers[1], numbers[0])
        return EQUAL if numbers[0] == numbers[1] or rounds else DIFFERENT
    parsed = [_parse(latex) for latex in (ours, theirs)]
    if parsed[0] is None or parsed[1] is None:
        return Verdict("unparseable", "syntax")
    if _equal(parsed[0], parsed[1]):
        return EQUAL
    if ("\\text" in ours) != ("\\text" in theirs):
        # Words between symbols are read as symbols.
        return Verdict("unparseable", "text")
    return DIFFERENT if _differ(parsed[0], parsed[1]) else Verdict("unparseable", "undecided")


def _rounds(latex: str, number: Fraction, value: Fraction) -> bool:
    """Whether a decimal with enough places and digits is a value rounded."""
    decimals = re.fullmatch(r"-?(\d*)\.(\d+)", latex.replace(",", ""))
    if decimals is None or len(decimals[2]) < _PLACES or len((decimals[1] + decimals[2]).lstrip("0")) < _PLACES:
        return False
    return abs(number - value) * 2 * 10 ** len(decimals[2]) <= 1


def _parse(latex: str) -> Any:
    """The expression as math-verify reads it; None if it finds no mathematics."""
    text = _prepared(latex)
    if not text or "$" in text or re.search(r"\d\s*_", text) or text.count("{") != text.count("}"):
        return None
    try:
        found = parse(f"${text}$", _LATEX, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # noqa: BLE001 - the parser raises in a hundred places, always for text that is no mathematics
        return None
    return found[0] if found else None


def _prepared(latex: str) -> str:
    """The LaTeX with notations that math-verify would misread rewritten."""
    text = re.sub(r"(\d+(?:\.\d+)?|[A-Za-z]|\\[a-z]+|\))\s*\^\{\\circ\}", r"(\1\\cdot\\frac{\\pi}{180})", latex)
    # 3\\frac{1}{2} is a mixed number, also before a letter.
    text = re.sub(r"(?<![\d.^_{}])(\d+)\s*(\\frac\{\d+\}\{\d+\})", r"(\1+\2)", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\\A-Za-z])(sqrt|pi|sin|cos|tan|log|ln|exp|infty)(?![A-Za-z])", r"\\\1", text)
    return _root_braces(text).replace("**", "^")


def _root_braces(text: str) -> str:
    """\\sqrt(…) as \\sqrt{…}."""
    found = re.search(r"\\sqrt\s*\(", text)
    if found is None:
        return text
    depth = 1
    for place in range(found.end(), len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            inner = _root_braces(text[found.end() : place])
            return f"{text[: found.start()]}\\sqrt{{{inner}}}{_root_braces(text[place + 1 :])}"
    return text


def _equal(one: Any, other: Any) -> bool:
    """Whether math-verify finds them equal, in either direction as the first sets the form, and the values agree."""
    ask: Callable[[Any, Any], bool] = lambda gold, given: bool(  # noqa: E731
        verify([gold], [given], timeout_seconds=None, allow_set_relation_comp=True, raise_on_error=False)
    )
    if (ask(one, other) or ask(other, one)) and _agree(one, other):
        return True
    if "i" not in {str(symbol) for each in (one, other) for symbol in getattr(each, "free_symbols", ())}:
        return False
    ours, theirs = (_with_imaginary(each) for each in (one, other))
    return ask(ours, theirs) and _agree(ours, theirs)


def _with_imaginary(expression: Any) -> Any:
    return expression.subs({symbol: sympy.I for symbol in expression.free_symbols if str(symbol) == "i"}).doit()


def _agree(one: Any, other: Any) -> bool:
    """Whether two constants are the same number apart from rounding; True if one is no constant."""
    if not all(isinstance(each, sympy.Expr) and each.is_number for each in (one, other)):
        return True
    ours, theirs = one.evalf(30), other.evalf(30)
    largest = max(abs(ours), abs(theirs))
    return bool(largest == 0 or not largest.is_finite or abs(ours - theirs) <= _TOLERANCE * largest)


def _differ(one: Any, other: Any) -> bool:
    """Whether two expressions differ once numbers replace their symbols; True for other forms.

    math-verify also reports "different" if it could not decide or ran into an error.
    """
    if not all(isinstance(each, sympy.Expr) for each in (one, other)):
        return True
    ours, theirs = (_with_imaginary(each) for each in (one, other))
    symbols = sorted(ours.free_symbols | theirs.free_symbols, key=str)
    numbers = {symbol: sympy.Rational(2 * place + 3, place + 7) for place, symbol in enumerate(symbols)}
    try:
        values = [each.subs(numbers).evalf(30) for each in (ours, theirs)]
    except (ArithmeticError, TypeError, ValueError):
        return False
    if any(value.has(sympy.nan, sympy.zoo) or not value.is_number for value in values):
        return bool(symbols)
    largest = max(abs(value) for value in values)
    return bool(values[0] != values[1] and (not largest.is_finite or abs(values[0] - values[1]) > _SEEN * largest))
