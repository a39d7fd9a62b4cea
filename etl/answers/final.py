r"""The final answer that a text states, and how it states it.

In this order: the last `\boxed{…}` (several in a row are one answer), `<answer>…</answer>`, `#### …` as in GSM8K,
"the answer is …", a text that is nothing but an answer, a letter of a multiple choice on a line of its own, and as a
last resort the last number without a word such as `step` before it. Anything before the last `</think>` is ignored.
About 1 MB a second.
"""

import re
from typing import Final, Literal, NamedTuple

from etl.answers.clean import clean

Where = Literal["boxed", "tagged", "marked", "said", "whole", "option", "last_number"]


class FinalAnswer(NamedTuple):
    """The answer that a text gives."""

    text: str
    """As written."""
    where: Where
    """How it is given: `last_number` is a guess, the others are stated."""


_BOX: Final = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|(\\?\w+))")
_JOINED: Final = re.compile(r"[\s$.]*(?:,|;|\\quad|\\text\{|\}|and\b|or\b|&|\\\\|\w\s*=|[\s$])*")
_BRACE: Final = re.compile(r"\\.|[{}]", re.DOTALL)
_MARK: Final = "####"
_MARKED: Final = re.compile(r"[-+−–(\[\\$€£]*[\d.]\S*(?:\s+\S+){0,3}|\\?\S+")
_SAID: Final = re.compile(
    r"(?:\b(?:final|correct|right|exact|required|desired|overall)\s+(?:\w+\s+)?answer\b|\b(?:the|my|our)\s+answer\b"
    r"|(?:^|\n)[\s*#>_]*answer\b|\b(?:correct|right|best)\s+(?:option|choice)\b"
    r"|最终答案|答案|正确答案|réponse|antwort|respuesta|ответ)"
    r"(?:\s+(?:to|of|for)\s+(?:this|the|your)\s+\w+(?:\s+\w+)?)?[\s*_]*"
    r"(?:(?:is|are|was|will be|should be|would be|must be|equals|ist|est|es)\b|[是为=:：]|(?<=\n))"
    r"(?:\s+(?:therefore|thus|then|simply|just|exactly|approximately|about|option|choice)\b)*[\s*_:：]*",
    re.IGNORECASE,
)
_CHOSEN: Final = re.compile(r"\b(?:[Oo]ption|[Cc]hoice)\s+\(?([A-J])\)?\s+is\s+(?:the\s+)?correct\b")
_HEADING: Final = re.compile(r"[\s*_#:：]*\n+\s*")
_END: Final = re.compile(
    r"\n|(?<=[^\s\d.])\.(?=\s|$)|(?<=\d)\.(?=\s|$)|(?<=[)\]}$])\.|[。；]|[!?](?=\s|$)"
    r"|,?\s(?:because|since|as|so|which|where|I hope|when)\b|,\s(?:and the|not)\b"
)
_OPTION_LINE: Final = re.compile(r"[\s*_]*\(?([A-J])[).:]?[\s*_.]*")
_LABEL: Final = re.compile(
    r"(?:\b(?:steps?|equations?|eq|parts?|cases?|questions?|problem|figure|fig|table|examples?|notes?|lines?|option|theorem"
    r"|lemma|page|section|chapter|method|approach|solution|exercise|rule|formula|item|point|no|number|version)\.?"
    r"\s*(?:\#|\()?\s*|[\[#(])$",
    re.IGNORECASE,
)
_NUMBER: Final = re.compile(
    r"(?:(?<![\w)\]}])[-−–]\s?)?"
    r"(?:\\[dtc]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}"
    r"|(?:[$€£]\s?)?(?:\d{1,3}(?:(?:,|\{,\}|[\u00a0\u202f\u2009])\d{3})+|\d+)(?:\.\d+)?"
    r"(?:\s*\\[dtc]?frac\s*\{\d+\}\s*\{\d+\}|\s\d+/\d+|/\d+)?(?:[eE][+-]?\d+)?|\.\d+)(?:\s?\\?%)?"
)
_MATHS: Final = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORD: Final = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")


def final_answer(text: str) -> FinalAnswer | None:
    """The answer that a text states, else its last number; None if it has neither."""
    text = text.rpartition("</think>")[2]
    stated = stated_answer(text)
    if stated is not None:
        return stated
    whole = text.strip()
    if whole and "\n" not in whole and len(whole) <= 200 and _is_expression(whole):
        return FinalAnswer(whole, "whole")
    lines = [line for line in whole.split("\n") if line.strip()]
    for line in lines[-1:] + lines[:1]:
        if (found := _OPTION_LINE.fullmatch(line)) is not None:
            return FinalAnswer(found[1], "option")
    if (found := re.match(r"\(?([A-J])[).:]\s", whole)) is not None and len(lines) == 1:
        return FinalAnswer(found[1], "option")
    last = _last_number(text)
    return None if last is None else FinalAnswer(last, "last_number")


def stated_answer(text: str) -> FinalAnswer | None:
    """The answer that a text marks by a box, a tag, `####` or words; None if it marks none."""
    boxed = _boxed(text)
    if boxed:
        return FinalAnswer(boxed, "boxed")
    tagged = _tagged(text)
    if tagged:
        inner = stated_answer(tagged)
        return FinalAnswer(inner.text if inner else tagged, "tagged")
    marked = _marked(text)
    if marked:
        return FinalAnswer(marked, "marked")
    said = _said(text)
    return FinalAnswer(said, "said") if said else None


def _boxed(text: str) -> str:
    """The content of the last box that is closed and not empty, and of the boxes right before it."""
    boxes: list[tuple[int, int, str]] = []
    closings = _closings(text) if "\\boxed" in text or "\\fbox" in text else {}
    for found in _BOX.finditer(text):
        if boxes and found.start() < boxes[-1][1]:
            continue
        if found[1]:
            boxes.append((found.start(), found.end(), found[1]))
            continue
        end = closings.get(found.end(), -1)
        if end >= 0 and clean(text[found.end() : end]):
            boxes.append((found.start(), end + 1, text[found.end() : end].strip()))
    if not boxes:
        return ""
    kept = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box[1] : kept[0][0]]
        if len(between) > 40 or _JOINED.fullmatch(between) is None or not between.strip("$ \n"):
            break
        kept.insert(0, box)
    distinct = dict.fromkeys(inner for _, _, inner in kept)
    return ", ".join(distinct)


def _closings(text: str) -> dict[int, int]:
    """For each closed pair of braces: the place after the opening one -> the place of the closing one."""
    opened: list[int] = []
    closed = {}
    for found in _BRACE.finditer(text):
        if found[0] == "{":
            opened.append(found.end())
        elif found[0] == "}" and opened:
            closed[opened.pop()] = found.start()
    return closed


def _tagged(text: str) -> str:
    """The text between the last tags."""
    lowered = text.lower()
    end = lowered.rfind("</answer>")
    start = lowered.rfind("<answer>", 0, max(end, 0))
    return text[start + len("<answer>") : end].strip() if start >= 0 else ""


def _marked(text: str) -> str:
    """The text after the last #### that is no heading: it must be on the last line or be short."""
    lines = text.rstrip().split("\n")
    for number in range(len(lines) - 1, -1, -1):
        before, mark, rest = lines[number].rpartition(_MARK)
        if not mark or before.endswith("#"):
            continue
        rest = rest.strip()
        said = _said(rest)
        if said:
            return said
        if rest and (number == len(lines) - 1 or _MARKED.fullmatch(rest)) and not rest.endswith(":"):
            return rest
    return ""


def _said(text: str) -> str:
    """The text after the last "the answer is", up to the end of the sentence."""
    for found in reversed(list(_SAID.finditer(text))):
        start = found.end()
        heading = _HEADING.match(text, start)
        answer = _sentence(text[heading.end() if heading else start :])
        if answer and not answer.startswith("not "):
            return answer
    chosen = _CHOSEN.findall(text)
    return chosen[-1] if chosen else ""


def _sentence(text: str) -> str:
    """The answer at the start of a text: a formula, or the rest of the sentence."""
    text = text.lstrip(" *_:：\n")
    maths = _MATHS.match(text)
    if maths is not None:
        behind = re.match(r"\s*(%|percent\b|[A-Za-z]{1,12}(?:\^?\d)?(?=[.,\s]*$))?", text[maths.end() :].split("\n")[0])
        return text[: maths.end()] + (f" {behind[1]}" if behind and behind[1] else "")
    option = re.match(r"\(?([A-J])(?:\)|[.:](?=\s|$)|\s*$|\*\*|(?=\s*[,\n]))", text)
    if option is not None:
        return option[1]
    end = _END.search(text)
    answer = (text[: end.start()] if end else text).strip(" *_`")
    if len(answer.split()) > 8 or not answer:
        number = _NUMBER.match(answer)
        return number[0] if number else ""
    return answer


def _is_expression(text: str) -> bool:
    """Whether a line is maths or a number with at most one word, rather than a sentence."""
    bare = re.sub(r"\\(?:text|mathrm|mbox|textbf)\s*\{[^{}]*\}", "", text)
    words = _WORD.findall(re.sub(r"\\[A-Za-z]+", "", bare))
    return bool(re.search(r"\d|\\|[=^_+*/<>]", text) or re.fullmatch(r"[\W_]*\w[\W_]*", text)) and not words


def _last_number(text: str) -> str | None:
    """The last number that does not number a step; if it is in a formula, the formula's right side."""
    spans = [found.span() for found in _MATHS.finditer(text)]
    for found in reversed(list(_NUMBER.finditer(text))):
        start = found.start()
        before = text[max(0, start - 24) : start]
        line = text.rfind("\n", 0, start) + 1
        numbers_line = not text[line:start].strip(" *#>-") and re.match(r"[.)]\s+\S", text[found.end() :])
        if numbers_line or _LABEL.search(before) or re.search(r"[A-Za-z_^]$", before):
            continue
        around = next((span for span in spans if span[0] < start < span[1]), None)
        if around is not None:
            side = re.split(r"=|\\approx|\\Rightarrow|\\implies", clean(text[around[0] : around[1]]))[-1].strip()
            return side if len(side) <= 200 and side else found[0]
        return found[0].strip()
    return None
