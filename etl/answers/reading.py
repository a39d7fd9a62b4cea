"""Reads a cleaned answer as a value with its name and unit, words, an option, or a group of these.

`read` gives the usual reading first, then others that the writer may have meant: 3,14 is two numbers, but may have a
decimal comma. Only the outer structure is read here, by brackets, commas and words; the rest remains LaTeX for
etl.answers.compare.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Final

from etl.answers.brackets import SEPARATOR_WORDS, encloses, outside_of, split
from etl.answers.clean import clean
from etl.answers.exact import GROUPED, INDIAN, rational, spelled
from etl.answers.forms import Group, Option, Reading, Unreadable, Value, Words
from etl.answers.units import SCALES, Unit, is_known, read_unit

_MAX_WORDS: Final = 6
"""More words than this are prose."""
_DECIMAL_COMMA: Final = re.compile(r"-?\d+,\d+")
_NUM: Final = r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_OPTION: Final = re.compile(
    r"(?:(?i:option|choice|answer)\s*)?"
    r"(?:\(\s*(?:\\text\{\s*)?([A-Ja-j])(?:\s*\})?\s*\)|([A-J])[).:]|([a-j])\)(?=\s*$)|\\text\{\s*\(?([A-J])\)?[.:]?\s*\})"
)
_OPTION_TEXT: Final = re.compile(r"[\s:.]|-?\d|-?\\(?:text|frac|sqrt)\{|\$")
_OPTION_WORD: Final = re.compile(r"(?i:option|choice|answer)\s*\(?([A-Ja-j])\)?")
_TEXT: Final = re.compile(r"\\text\{([^{}]*)\}")
_TRAILING_TEXT: Final = re.compile(
    r"(.*?[\d\w)}\]!])\s*"
    r"((?:/?\s*(?:\\text\{[^{}]*\}|\^\{\\circ\}\s*(?:[CF]|\\text\{[^{}]*\})?)(?:\s*\^\s*\{?-?\d\}?)?)+)",
    re.DOTALL,
)
_TRAILING_WORDS: Final = re.compile(
    r"(.*?(?:[\d)}]|\\pi)) ?"
    r"([A-Za-z¢€£$][A-Za-z.'/¢€£ -]*(?:\^\s*\{?-?\d\}?(?:\s*/\s*[a-z]+)?)?|[€£$¥¢₹元])"
)
_LEADING_UNIT: Final = re.compile(
    r"(-?)\s*(?:(?:\\text\{\s*)?(?:US|A|C|HK|NZ)?([$€£¥₹])|(?:\\text\{\s*)?((?i:USD|EUR|GBP|INR|Rs))\.?)(?:\s*\})?"
    r"\s*(?=[\d.(\\-])(.*)",
    re.DOTALL,
)
_APPROX: Final = re.compile(
    r"(?:\\approx|\\sim|\\text\{(?:about|approximately)\s*\}|(?i:about|approximately|approx\.?|around|roughly)\s)\s*(.+)",
    re.DOTALL,
)
_PERCENT: Final = re.compile(
    r"(.*\S)\s*(?:%|\\text\{\s*(?:percent|per cent|%)\s*\}|\b(?i:percent|per cent|pct))", re.DOTALL
)
_SCALED: Final = re.compile(rf"(.*[\d}}])\s*(?:\\text\{{)?\s*\b({'|'.join(SCALES)})s?\b\s*(?:\}})?\s*(.*)", re.DOTALL)
_ORDINAL: Final = re.compile(
    r"(\d+)\s*(?:\^?\s*\{?\s*\\text\{\s*(?:st|nd|rd|th)\s*\}\s*\}?|\^\s*\{(?:st|nd|rd|th)\}|st|nd|rd|th)"
)
_BASE: Final = re.compile(
    r"(-?)\(?\s*(?:\\text\{)?([0-9A-Fa-f]+)\}?\s*\)?_\s*\{?\s*(?:\\text\{)?\s*(\d+|[a-z]+)\s*\}?\s*\}?"
)
_NAMING: Final = re.compile(
    r"(?:[A-Za-z]|\\[a-z]+|\\text\{[^{}]*\}|[A-Z]{2,3})(?:_(?:\w|\{[^{}]*\})|\^\{-1\})?'*"
    r"(?:\((?:[A-Za-z0-9](?:\s*[,|]\s*[A-Za-z0-9])*)\))?"
    r"|\|\s*[A-Za-z]{1,3}\s*\||m?\\angle\s*\{?[A-Z]{1,3}\}?"
    r"|\\(?:overline|vec|overrightarrow|hat|bar|mathbf|mathcal)\{?\s*[A-Za-z]{1,3}\s*\}?"
    r"|\[[A-Z]{3,6}\]|(?:[A-Za-z]+ )*[A-Za-z]{2,}",
)
_FUNCTION_NAMES: Final = frozenset("fghpqruvyFGHPQRSTUVENP")
_OPERATION: Final = re.compile(r"\\(?:sin|cos|tan|log|ln|sqrt|frac|sec|csc|cot|exp|lim|int|sum)(?![a-z])")
_EQUALS: Final = re.compile(r"(?<![<>!:\\])=(?!=)|\\(?:approx|equiv)(?![a-z])(?!.*\\pmod)|:=")
_COMPARISON: Final = re.compile(
    r"<|>|\\(?:le|ge|ne|equiv|subset|subseteq|cong|sim|iff|implies)(?![A-Za-z])|(?<![<>!:])="
)
_RANGE: Final = re.compile(
    rf"(?:(?i:between|from)\s+)?({_NUM})\s*(?:(-)|–|\\text\{{\s*to\s*\}}|to\b|(?<=\s)and\b)\s*({_NUM})"
)
_RATIO: Final = re.compile(r"\d+(?:\s*(?::|\\text\{\s*to\s*\}|\bto\b)\s*\d+)+")
_MATRIX: Final = re.compile(
    r"[(\[]?\\begin\{([pbB]?)(?:small)?(matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1(?:small)?\2\}[)\]]?", re.DOTALL
)
_DATED: Final = re.compile(r"[A-Z][a-z]{2,}\.? \d{1,4}(?:st|nd|rd|th)?(?:, ?\d{4})?")
_WORDS: Final = re.compile(r"[^\W\d_][\w .,'’?!&:;()/–-]*")
_LEAD: Final = re.compile(
    r"(?i:(?:the )?(?:final |correct )?answer(?: is)?\s*:?|the(?= \d))\s+|(?i:(?:final )?answer\s*[:=])\s*"
)
_TIME: Final = re.compile(r"(\d{1,2})(?::(\d\d))?\s*(?:\\text\{\s*)?([AaPp])\.?\s?[Mm]\.?(?:\s*\})?")
_PARTS: Final = re.compile(
    r"\s*\d[\d,]*(?:\.\d+)?\s*[A-Za-z]+(?:\s*,?\s*(?:and\s+)?\d[\d,]*(?:\.\d+)?\s*[A-Za-z]+)+\s*"
)
_NOTE: Final = re.compile(r"(.*\S)\s+\((?:\\text\{)?[A-Za-z]{3,}(?:[ -][A-Za-z]+)*\}?\)", re.DOTALL)
_OPENING: Final = ("(", "[", "]", "{", "\\{", "\\langle")
_CLOSING: Final = (")", "]", "[", "}", "\\}", "\\rangle")
_SYNONYMS: Final = {
    "no solution": (
        "no solution|no solutions|no real solution|no real solutions|none|emptyset|empty set|the empty set|there is no "
        "solution|there are no solutions|no real roots|no such number|no roots"
    ),
    "yes": "yes|true|correct",
    "no": "no|false|incorrect",
    "undefined": "undefined|does not exist|dne|diverges|divergent|not defined",
    "\\infty": "infinity|infinite|inf|infinitely many|infinitely many solutions",
    "all real numbers": "all real numbers|all reals|all real|every real number|real numbers|the real numbers",
    "cannot be determined": "cannot be determined|not enough information|can not be determined|cannot determine",
}
_SYNONYM: Final = {text: key for key, texts in _SYNONYMS.items() for text in texts.split("|")}
_FUNCTIONS: Final = (
    "sin cos tan cot sec csc log ln exp sqrt pi inf mod gcd lcm max min arcsin arccos arctan sinh cosh tanh det"
)
_BARE_FUNCTIONS: Final = frozenset(_FUNCTIONS.split())


def read(answer: str) -> tuple[Reading, ...]:
    """The readings of a cleaned answer: the usual one, then other possible ones."""
    first = _read(answer)
    others: list[Reading] = []
    if _DECIMAL_COMMA.fullmatch(answer) and isinstance(first, Group):
        others.append(Value(answer.replace(",", ".")))
    if (found := GROUPED.fullmatch(answer)) is not None and found[1]:
        others.append(Group("list", tuple(map(_read, answer.split(",")))))
    if INDIAN.fullmatch(answer) and isinstance(first, Group):
        others.append(Value(answer.replace(",", "")))
    if (found := _RANGE.fullmatch(answer)) is not None:
        if isinstance(first, Group):
            others.append(Group("interval", first.items, "[]"))
        if found[2]:
            ends = _read(found[1]), _read(found[3])
            others.append(Value(answer) if isinstance(first, Group) else Group("range", ends))
    attached = re.fullmatch(rf"({_NUM})([A-Za-z]+)", answer)
    if attached is not None and isinstance(first, Value) and first.unit is None and is_known(attached[2]):
        others.append(Value(attached[1], unit=read_unit(attached[2])))
    return (first, *others)


def _read(answer: str) -> Reading:
    text = answer.strip()
    if not text:
        return Unreadable("empty")
    if rational(text) is not None:
        return Value(text)
    if (found := _LEAD.match(text)) is not None and found.end() < len(text):
        return _read(clean(text[found.end() :]))
    if (found := _TEXT.fullmatch(text)) is not None and re.match(r"[\s(\[$-]*\d", found[1]):
        return _read(clean(found[1]))
    for reader in _READERS:
        reading = reader(text)
        if reading is not None:
            return reading
    if _COMPARISON.search(outside_of(text)):
        return Value(text, is_relation=True)
    if _is_prose(text):
        return Unreadable("prose")
    return Value(text)


def _read_option(text: str) -> Reading | None:
    """An option: (B), B., Option B, (B) 12."""
    found = _OPTION_WORD.fullmatch(text)
    if found is not None:
        return Option(found[1].upper())
    found = _OPTION.match(text)
    if found is None:
        return None
    letter, behind = (found[1] or found[2] or found[3] or found[4]).upper(), text[found.end() :]
    rest = clean(behind.lstrip(" :."))
    if not rest:
        return Option(letter)
    # (a)(b + c) and (A) \\cup B are algebra.
    is_text = found[4] or _OPTION_TEXT.match(behind)
    if not is_text or (re.match(r"[(^_+*/=\\,-]", rest) and not _OPTION_TEXT.match(rest)):
        return None
    return Option(letter, _read(rest))


def _read_words(text: str) -> Reading | None:
    """An answer that is only text, number words included."""
    bare = _TEXT.sub(lambda found: f" {found[1]} ", text)
    if "\\" in bare:
        return Words("no solution") if text in ("\\emptyset", "\\{\\}") else None
    bare = re.sub(r"\s+", " ", bare).strip(" .")
    if not _WORDS.fullmatch(bare):
        return None
    if (
        re.search(r"\d", bare)
        and not _DATED.fullmatch(bare)
        and ("\\text" not in text or re.search(r"\d", _TEXT.sub("", text)))
    ):
        return None
    words = re.findall(r"[^\W_]+(?:'[^\W\d_]+)*", bare.lower())
    key = " ".join(words)
    if key in _SYNONYM:
        return Value("\\infty") if _SYNONYM[key] == "\\infty" else Words(_SYNONYM[key])
    number = spelled(words)
    if number is not None:
        return Value(f"\\frac{{{number.numerator}}}{{{number.denominator}}}")
    if "\\text" not in text:
        # xy and abc are products; four letters in a row are a word.
        if any(word in _BARE_FUNCTIONS for word in words) or max(map(len, words), default=0) < 4:
            return None
        if SEPARATOR_WORDS.search(text) or "," in text:
            return None
        if re.search(r"[()/]", text) and len(words) < 2:
            return None
    elif SEPARATOR_WORDS.search(bare) or "," in bare:
        parts = re.split(r"\s*(?:,\s*(?:and|or)\b|,|;|\band\b|\bor\b)\s*", bare)
        if all(part and len(part.split()) <= 3 for part in parts) and len(parts) > 1:
            return Group("list", tuple(_read(f"\\text{{{part}}}") for part in parts))
    if len(words) > _MAX_WORDS:
        return Unreadable("prose")
    return Words(key)


def _read_time(text: str) -> Reading | None:
    """A time of the day on a 12-hour clock."""
    found = _TIME.fullmatch(text)
    return Words(f"{int(found[1])}:{found[2] or '00'} {found[3].lower()}m") if found is not None else None


def _read_sum(text: str) -> Reading | None:
    """A quantity given in parts: 3 hours 20 minutes, 5 dollars and 50 cents."""
    bare = _TEXT.sub(lambda found: f" {found[1]} ", text)
    if _PARTS.fullmatch(bare) is None:
        return None
    total, units = Fraction(0), []
    for number, word in re.findall(r"(\d[\d,]*(?:\.\d+)?)\s*([A-Za-z]+)", bare):
        unit = read_unit(word) if is_known(word) else None
        if unit is None:
            return None
        units.append(unit)
        total += Fraction(number.replace(",", "")) * unit.factor
    if len({unit.dimension for unit in units}) > 1:
        return None
    return Value(f"\\frac{{{total.numerator}}}{{{total.denominator}}}", unit=replace(units[0], factor=Fraction(1)))


def _read_matrix(text: str) -> Reading | None:
    found = _MATRIX.fullmatch(text)
    if found is None or "\\begin" in found[3]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[3]) if row.strip()]
    cells = [[_read(cell) for cell in row.split("&")] for row in rows]
    if len({len(row) for row in cells}) != 1:
        return Unreadable("syntax")
    if len(cells) == 1 or len(cells[0]) == 1:
        return Group("matrix", tuple(cell for row in cells for cell in row))
    return Group("matrix", tuple(Group("matrix", tuple(row)) for row in cells))


def _read_list(text: str) -> Reading | None:
    """A list of the parts at commas, `and`, `or` outside brackets, or of both values of ±."""
    if (angled := re.fullmatch(r"<([^<>]*,[^<>]*)>", text)) is not None:
        return Group("round", _items(angled[1]))
    if re.match(r"(?i:between|from)\s", text) and _RANGE.fullmatch(text):
        return None
    parts = split(text)
    if len(parts) > 1:
        items = [_read(part) for part in parts]
        if any(isinstance(item, Unreadable) for item in items):
            return Unreadable("prose" if _is_prose(text) else "syntax")
        return Group("list", _shared(items))
    if len(re.findall(r"\\pm(?![a-z])", text)) == 1 and "\\mp" not in text:
        plus, minus = re.sub(r"\\pm\s*", "+", text), re.sub(r"\\pm\s*", "-", text)
        return Group("list", (_read(plus.removeprefix("+")), _read(minus)))
    return None


def _shared(items: list[Reading]) -> tuple[Reading, ...]:
    """A name before the first item of a list, or a unit after the last, applies to all: x = 1, 2."""
    values = [item for item in items if isinstance(item, Value)]
    if len(values) < len(items):
        return tuple(items)
    names = [value.name for value in values]
    unit = values[-1].unit
    if len(set(names)) == 1 or (names[0] and not any(names[1:])):
        values = [replace(value, name="") for value in values]
    if unit is not None and all(value.unit is None for value in values[:-1]):
        values = [replace(value, unit=unit) for value in values]
    if values[-1].percent and not any(value.percent for value in values[:-1]):
        values = [replace(value, percent=True) for value in values]
    return tuple(values)


def _read_brackets(text: str) -> Reading | None:
    """A set, tuple or interval, or the one item inside a pair of brackets."""
    opened = text[:2] if text.startswith("\\{") else "\\langle" if text.startswith("\\langle") else text[:1]
    closed = text[-2:] if text.endswith("\\}") else "\\rangle" if text.endswith("\\rangle") else text[-1:]
    if opened not in _OPENING or closed not in _CLOSING:
        return None
    inner = text[len(opened) : len(text) - len(closed)].strip()
    french = opened == "]" or closed == "["
    if not french and not encloses(text, opened, closed):
        return None
    if french and re.search(r"[\[\]]", inner):
        return None
    opened, closed = {"\\langle": "("}.get(opened, opened), {"\\rangle": ")"}.get(closed, closed)
    if opened in ("\\{", "{"):
        if closed not in ("\\}", "}"):
            return None
        builder = re.fullmatch(r"\(?[a-z](?:\s*\\in\s*\\mathbb\{?[A-Z]\}?)?\s*[|:]\s*(.+)", inner, re.DOTALL)
        if builder is not None:
            return _read(builder[1])
        items = _items(inner)
        return Group("set", items) if len(items) > 1 or opened == "\\{" else items[0]
    if closed in ("\\}", "}"):
        return None
    items = _items(inner)
    if any(isinstance(item, Unreadable) for item in items):
        return Unreadable("syntax")
    if len(items) == 1:
        inside = items[0]
        if isinstance(inside, Value) and inside.is_relation and opened == "(" and closed == ")":
            return inside
        return inside if opened in "([" and closed in ")]" else None
    ends = {"(": "(", "[": "[", "]": "("}[opened] + {")": ")", "]": "]", "[": ")"}[closed]
    if ends == "()":
        return Group("round", items)
    return Group("interval" if len(items) == 2 else "list", items, ends)


def _items(inner: str) -> tuple[Reading, ...]:
    return tuple(_read(part) for part in split(inner, enclosed=True)) if inner else ()


def _read_naming(text: str) -> Reading | None:
    """A named value: x = 5, f(x) = …, x \\in S; of a chain of equations the last side."""
    member = re.fullmatch(r"\\?[A-Za-z]+\s*\\in(?![a-z])\s*(.+)", text, re.DOTALL)
    if member is not None:
        return _read(member[1])
    outside = outside_of(text)
    edges = [found.span() for found in _EQUALS.finditer(outside)]
    bounds = [0, *(edge for span in edges for edge in span), len(text)]
    sides = [text[start:end].strip() for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
    if len(sides) < 2 or not all(sides) or _COMPARISON.search(re.sub(r"(?<![<>!:\\])=", "", outside)):
        found = _APPROX.fullmatch(text)
        return _read(found[1]) if found is not None else None
    if re.fullmatch(r"\(\s*[a-z](?:_\w)?(?:\s*,\s*[a-z](?:_\w)?)+\s*\)", sides[0]):
        return _read(sides[-1])
    named = _is_name(sides[0])
    # The exact side of 2/3 \\approx 0.67 counts.
    is_rounded = "approx" in text[slice(*edges[-1])] and not (named and len(sides) == 2)
    last = sides[-2] if is_rounded else sides[-1]
    if named and len(sides) == 2 and _is_name(sides[1]) and rational(sides[1]) is None:
        return Value(text, is_relation=True)
    if named:
        value = _read(last)
        return replace(value, name=_name(sides[0])) if isinstance(value, Value) else value
    if len(sides) == 2 and _is_name(sides[1]) and re.fullmatch(r"\\?[A-Za-z]+(?:_\w)?", sides[1]):
        value = _read(sides[0])
        return replace(value, name=_name(sides[1])) if isinstance(value, Value) else value
    if not re.search(r"[A-Za-z]", re.sub(r"\\[a-zA-Z]+", "", _TEXT.sub("", text))):
        return _read(last)
    return Value(text, is_relation=True)


def _is_name(side: str) -> bool:
    if _NAMING.fullmatch(side) is None or _OPERATION.search(side):
        return False
    called = re.fullmatch(r"([A-Za-z])'*\(.*\)", side)
    return called is None or called[1] in _FUNCTION_NAMES


def _name(side: str) -> str:
    """The name without arguments; empty for a phrase, which names nothing."""
    plain = re.sub(r"\(.*\)$", "", _TEXT.sub(r"\1", side)).replace("{", "").replace("}", "").replace(" ", "")
    return plain if len(plain) <= 8 and " " not in side.strip() else ""


def _read_quantity(text: str) -> Reading | None:
    """A value with a unit, scale, percent sign or base, an ordinal, a range or a ratio."""
    found = _BASE.fullmatch(text)
    if found is not None:
        base = int(found[3]) if found[3].isdigit() else int(spelled([found[3]]) or 0)
        if 2 <= base <= 36 and all(int(digit, 36) < base for digit in found[2]):
            return Value(found[1] + found[2].upper(), unit=Unit((), Fraction(1), f"base {base}", base))
    found = _RANGE.fullmatch(text)
    if found is not None:
        low, high = rational(found[1]), rational(found[3])
        if low is not None and high is not None and (low < high or not found[2]):
            return Group("range", (_read(found[1]), _read(found[3])))
    if (found := re.fullmatch(r"(\d+)\s+out\s+of\s+(\d+)", text)) is not None:
        return Value(f"\\frac{{{found[1]}}}{{{found[2]}}}")
    if _RATIO.fullmatch(text):
        return Group("ratio", tuple(Value(part) for part in re.findall(r"\d+", text)))
    if (found := _ORDINAL.fullmatch(text)) is not None:
        return Value(found[1])
    if (found := _APPROX.fullmatch(text)) is not None:
        return _read(found[1])
    if (found := _PERCENT.fullmatch(text)) is not None:
        return _with(found[1], percent=True)
    if (found := _LEADING_UNIT.fullmatch(text)) is not None:
        inner = _read(found[1] + found[4])
        sign, amount = (found[2] or found[3]).lower(), found[4]
        per = re.fullmatch(r"([\d.,]+)\s*((?:/|per\b|a\b|an\b|each\b).*)", amount)
        if per is not None:
            unit, inner = read_unit(f"{sign} {per[2]}"), _read(found[1] + per[1])
            return replace(inner, unit=unit) if isinstance(inner, Value) else None
        unit = read_unit(sign)
        return replace(inner, unit=unit) if isinstance(inner, Value) else inner if isinstance(inner, Group) else None
    if (found := _SCALED.fullmatch(text)) is not None:
        behind = found[3].strip(" }")
        inner = _read(found[1])
        if isinstance(inner, Value):
            return replace(inner, scale=inner.scale * SCALES[found[2]], unit=inner.unit or read_unit(behind))
    if (found := _NOTE.fullmatch(text)) is not None and re.search(r"\d", found[1]):
        return _read(found[1])
    text = re.sub(r"\^\s*\{(-?\d)\}", r"^\1", text)
    if (found := _TRAILING_TEXT.fullmatch(text)) is not None and _is_amount(found[1]):
        return _measured(found[1], found[2])
    found = _TRAILING_WORDS.fullmatch(text)
    if found is not None and _is_amount(found[1]) and _names_unit(found[1], found[2], text):
        return _measured(found[1], found[2])
    return None


def _is_amount(text: str) -> bool:
    """Whether a unit can follow it."""
    if text.count("{") != text.count("}") or re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])", text):
        return False
    return bool(re.search(r"[\d})]|\\pi", text))


def _names_unit(before: str, words: str, text: str) -> bool:
    """Whether the letters after a value are words: yes in 5 cm and 12 apples, no in 5x and 2 ab."""
    first = re.match(r"[A-Za-z]+|.", words)
    assert first is not None
    spaced = text[len(before)] == " "
    if not first[0].isalpha():
        return True
    if re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", before)):
        return False
    if is_known(first[0]):
        return spaced or len(first[0]) > 1
    return len(first[0]) > 2 and first[0].lower() not in _BARE_FUNCTIONS


def _measured(before: str, words: str) -> Reading | None:
    if len(words.split()) > _MAX_WORDS:
        return Unreadable("prose")
    inner = _read(before)
    unit = read_unit(words)
    if isinstance(inner, Value):
        return inner if unit is None else replace(inner, unit=unit)
    return inner if isinstance(inner, (Group, Unreadable)) else None


def _with(text: str, *, percent: bool) -> Reading | None:
    inner = _read(text)
    if isinstance(inner, Value):
        return replace(inner, percent=percent)
    if isinstance(inner, Group):
        items = (replace(item, percent=percent) if isinstance(item, Value) else item for item in inner.items)
        return replace(inner, items=tuple(items))
    return None


def _is_prose(text: str) -> bool:
    """Whether it contains words other than LaTeX."""
    bare = _TEXT.sub(lambda found: f" {found[1]} ", text)
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{3,}", bare)
    return sum(word not in _BARE_FUNCTIONS for word in words) >= 2


_READERS: Final[tuple[Callable[[str], Reading | None], ...]] = (
    _read_option,
    _read_time,
    _read_words,
    _read_matrix,
    _read_sum,
    _read_list,
    _read_brackets,
    _read_naming,
    _read_quantity,
)
"""In the order in which they are tried."""
