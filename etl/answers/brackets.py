"""The outer structure of an answer: what its brackets enclose, and its parts between commas, `and` and `or`."""

import re
from typing import Final

SEPARATOR_WORDS: Final = re.compile(
    r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\(?:quad|lor|vee)(?![A-Za-z])|\\cup(?=\s*\\\{))\s*"
)


def outside_of(text: str) -> str:
    """The text with everything inside brackets replaced by a character that no pattern matches."""
    steps, depth, letters = dict(_brackets_sum(text)), 0, list(text)
    for place in range(len(text)):
        depth += steps.get(place, 0)
        if depth > 0:
            letters[place] = "\x00"
    return "".join(letters)


def encloses(text: str, opened: str, closed: str) -> bool:
    """Whether the last bracket closes the first one."""
    depth = 0
    places = list(_brackets(text))
    for place, step in places:
        depth += step
        if depth == 0:
            return place >= len(text) - len(closed)
    return False


def _brackets(text: str) -> "list[tuple[int, int]]":
    """Place and +1 or -1 of each bracket. The kind is ignored, since the brackets of an interval may differ."""
    found = []
    for match in re.finditer(r"\\langle|\\rangle|\\begin\{|\\end\{|\\[{}]|\\.|[()\[\]{}]", text):
        sign = match[0]
        if sign in ("(", "[", "{", "\\{", "\\langle"):
            found.append((match.start(), 1))
        elif sign in (")", "]", "}", "\\}", "\\rangle"):
            found.append((match.start(), -1))
        elif sign == "\\begin{":
            found += [(match.start(), 1), (match.start(), 1)]
        elif sign == "\\end{":
            found += [(match.start(), -1), (match.start(), 1)]
    return found


def split(text: str, *, enclosed: bool = False) -> list[str]:
    """Split at commas, semicolons and the words `and` and `or` outside brackets.

    A comma that can separate thousands does so. In brackets (`enclosed`) it does so only if some separator has a space
    after it.
    """
    levels, depth = dict(_brackets_sum(text)), 0
    cuts: list[tuple[int, int]] = []
    outside = outside_of(text)
    # The commas in 0,5; 1,5 are decimal.
    separators = ";" if ";" in outside and re.search(r"\d,\d", outside) and ", " not in outside else ",;"
    may_group = not enclosed or re.search(r"[,;] ", text) is not None
    place = 0
    while place < len(text):
        depth += levels.get(place, 0)
        if depth == 0 and levels.get(place, 0) == 0:
            found = SEPARATOR_WORDS.match(text, place)
            if found is not None and (not text[place - 1 : place].isalpha() or found[0][0] in " ,\\"):
                cuts.append((place, found.end()))
                place = found.end()
                continue
            if text[place] in separators and not (may_group and _is_thousands(text, place)):
                cuts.append((place, place + 1))
        place += 1
    bounds = [0, *(edge for cut in cuts for edge in cut), len(text)]
    parts = [text[start:end].strip() for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
    if ";" in outside and parts != [text]:
        parts = [re.sub(r"(?<=\d),(?=\d)", ".", part) for part in parts]
    return [part for part in parts if part] or [text]


def _is_thousands(text: str, place: int) -> bool:
    """Whether a comma is in a number whose commas separate groups of three digits."""
    start, end = place, place
    while start and (text[start - 1].isdigit() or text[start - 1] == ","):
        start -= 1
    while end < len(text) and (text[end].isdigit() or (text[end] == "," and text[end + 1 : end + 2].isdigit())):
        end += 1
    return end > place and re.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+", text[start:end]) is not None


def _brackets_sum(text: str) -> "list[tuple[int, int]]":
    sums: dict[int, int] = {}
    for place, step in _brackets(text):
        sums[place] = sums.get(place, 0) + step
    return list(sums.items())
