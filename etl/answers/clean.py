"""One spelling for an answer: Unicode, Markdown and the layout commands of LaTeX become plain LaTeX; no value changes.

These changes are safe whatever the answer means: two answers with the same spelling are the same answer. Costs about
10 µs for a number and 100 µs for a formula.
"""

import re
import unicodedata
from typing import Final

_SPACES: Final = (
    "\t\n\r\v\f\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
)
_NOTHING: Final = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\ufe0e\ufe0f"
_SYMBOLS: Final = "×⋅·∗÷±∓∞≤≥≠≈≡∪∩∈∅√π→αβγδεζηθικλμνξρστφχψωΓΔΘΛΞΠΣΦΨΩ≅∼ℝℤℚℕℂ⟨⟩⌊⌋⌈⌉∠"
_NAMES: Final = (
    "times cdot cdot ast div pm mp infty le ge ne approx equiv cup cap in emptyset sqrt pi to "
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega cong sim mathbb{R} mathbb{Z} mathbb{Q} mathbb{N} "
    "mathbb{C} langle rangle lfloor rfloor lceil rceil angle"
)
_LETTERS: Final = {
    **dict.fromkeys(map(ord, _SPACES), " "),
    **dict.fromkeys(map(ord, _NOTHING), ""),
    **dict.fromkeys(map(ord, "\u2010\u2011\u2212\ufe63"), "-"),
    **dict.fromkeys(map(ord, "\u2012\u2014\u2015"), "–"),
    **dict.fromkeys(map(ord, "‘’ʼ′"), "'"),
    **dict.fromkeys(map(ord, "“”„"), '"'),
    **{ord(letter): f" \\{name} " for letter, name in zip(_SYMBOLS, _NAMES.split(), strict=True)},
    **dict.fromkeys(map(ord, "°º˚"), "^{\\circ}"),
    ord("⁄"): "/", ord("∕"): "/", ord("∶"): ":", ord("٫"): ".", ord("٬"): ",", ord("，"): ",", ord("。"): ".",
    ord("、"): ",", ord("µ"): "\\mu ", ord("∣"): "|", ord("ﬁ"): "fi",
}  # fmt: skip
_SUPERSCRIPTS: Final = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS: Final = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_RAISED: Final = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED: Final = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_VULGAR: Final = re.compile("[¼-¾⅐-⅞↉]")
_OTHER: Final = re.compile("[^\x00-\x7f]")

_COMMANDS: Final = (
    (r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?(?=\s*[\\()\[\]{}|./<>]|\s*$)", ""),
    (r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|rm|bf|it)(?![A-Za-z])", ""),
    (r"\\phantom\s*\{[^{}]*\}", ""),
    (r"\\(?:textdollar|dollar)(?![A-Za-z])", "$"),
    (r"\\(?:euro|texteuro)(?![A-Za-z])", "€"),
    (r"\\(?:pounds|textsterling)(?![A-Za-z])", "£"),
    (r"\\log_\s*(?:e(?![A-Za-z])|\{\s*e\s*\})", r"\\ln "),
    (r"(?<!\\)\\!", ""),
    (r"(?<!\\)\\(?:[,;:> ]|q?quad|thinspace|enspace|hspace\{[^{}]*\}|nobreakspace)(?![A-Za-z])", " "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\l?brace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\lbrack(?![A-Za-z])", "["),
    (r"\\rbrack(?![A-Za-z])", "]"),
    (r"\\[lr]?vert(?![A-Za-z])", "|"),
    (r"\\(?:leq|leqslant)(?![A-Za-z])", r"\\le"),
    (r"\\(?:geq|geqslant)(?![A-Za-z])", r"\\ge"),
    (r"\\(?:neq|not\s*=)(?![A-Za-z])", r"\\ne"),
    (r"\\(?:lt)(?![A-Za-z])", "<"),
    (r"\\(?:gt)(?![A-Za-z])", ">"),
    (r"\\(?:varnothing)(?![A-Za-z])", r"\\emptyset"),
    (r"\\(?:mid)(?![A-Za-z])", "|"),
    (r"\\(?:dots|ldots|cdots)(?![A-Za-z])", "..."),
    (r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mbox|hbox|math(?:rm|bf|it|sf|tt|normal)|operatorname)\s*\{", r"\\text{"),
    (r"\\([%$#&_])", r"\1"),
    (r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\(?:degree|degrees)(?![A-Za-z])", "^{\\\\circ}"),
)
_LEADING_DASH: Final = re.compile(r"(?<![\w)}\]])\s*–\s*(?=[\d.\\(A-Za-z])")
_LAYOUT: Final = tuple((re.compile(pattern), by) for pattern, by in _COMMANDS)
_ONE_LETTER: Final = re.compile(r"\\text\{\s*([A-Za-z])\s*\}")
_UNIT_LETTERS: Final = "mgshlLWJNVCFK"
_EMPTY_TEXT: Final = re.compile(r"\\text\{\s*\}")
_BRACED_COMMA: Final = re.compile(r"(?<=\d)\s*\{\s*([,.])\s*\}\s*(?=(\d+))")
_ARGUMENTS: Final = re.compile(r"\\(frac|binom|sqrt)(?![A-Za-z])\s*(\[[^\[\]]*\])?")
_ARGUMENT: Final = re.compile(r"\s*(\{|\\[A-Za-z]+|[^\s{}\\])")
_WRAPPED: Final = (
    ("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("__", "__"), ("`", "`"), ('"', '"'), ("'", "'"),
    ("*", "*"),
)  # fmt: skip
_IN_DOLLARS: Final = re.compile(r"\$((?:[^$\\]|\\.)+)\$", re.DOTALL)
_SPACE: Final = re.compile(r"(?<![\w.,)]) | (?![\w.,(])")


def clean(answer: str) -> str:
    """The answer in one spelling; "" if it is only layout.

    Fractions and roots have braces around their arguments, text commands are `\\text{…}`, degrees are `^{\\circ}`.
    A braced comma before three digits separates thousands; before any other number of digits it is a decimal point.
    """
    text = answer
    if _OTHER.search(text):
        text = _to_ascii(text)
    text = _unwrap(text)
    if "\\" in text:
        for pattern, by in _LAYOUT:
            text = pattern.sub(by, text)
        text = _EMPTY_TEXT.sub(" ", _ONE_LETTER.sub(_bare_letter, text))
        text = _brace_arguments(text)
    text = " ".join(_LEADING_DASH.sub("-", text.replace("~", " ")).split())
    text = _BRACED_COMMA.sub(lambda found: "" if len(found[2]) == 3 else ".", text)
    return _SPACE.sub("", _unwrap(text))


def closing_brace(text: str, start: int) -> int:
    """Place of the `}` for the brace just before `start`; -1 if it is never closed. `\\{` counts as a letter."""
    depth, place = 1, start
    while place < len(text):
        letter = text[place]
        if letter == "\\":
            place += 1
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if depth == 0:
                return place
        place += 1
    return -1


def _to_ascii(text: str) -> str:
    text = _RAISED.sub(lambda found: f"^{{{found[0].translate(_SUPERSCRIPTS)}}}", text)
    text = _LOWERED.sub(lambda found: f"_{{{found[0].translate(_SUBSCRIPTS)}}}", text)
    text = _VULGAR.sub(_written_fraction, text).translate(_LETTERS)
    return _OTHER.sub(_as_ascii, text)


def _written_fraction(found: re.Match[str]) -> str:
    """½ as \\frac{1}{2}."""
    above, _, below = unicodedata.normalize("NFKC", found[0]).partition("⁄")
    return f"\\frac{{{above}}}{{{below}}}" if below else above


def _as_ascii(found: re.Match[str]) -> str:
    """The ASCII form of a digit of any script or of a full-width letter; others are unchanged."""
    letter = found[0]
    if unicodedata.decimal(letter, None) is not None:
        return str(unicodedata.decimal(letter))
    return unicodedata.normalize("NFKC", letter) if "\uff01" <= letter <= "\uff5e" else letter


def _bare_letter(found: re.Match[str]) -> str:
    """A single letter needs no text command, unless a number before it makes it a unit."""
    before = found.string[: found.start()].rstrip()
    measures = found[1] in _UNIT_LETTERS and before[-1:] and (before[-1].isdigit() or before[-1] in "})")
    return found[0] if measures else f" {found[1]} "


def _unwrap(text: str) -> str:
    """The answer without what surrounds it: math and Markdown signs, quotes, \\boxed{}, closing punctuation."""
    before = None
    while text != before:
        before = text
        text = re.sub(r"(?<!\\)\\$", "", text.strip())
        if text.endswith((".", ",", ";", ":")) and not text.endswith(("\\,", "\\;", "\\:")):
            text = text[:-1].rstrip()
        for opened, closed in _WRAPPED:
            inner = text[len(opened) : -len(closed)]
            if text.startswith(opened) and text.endswith(closed) and inner.strip() and opened not in inner:
                text = inner
        if (maths := _IN_DOLLARS.fullmatch(text)) is not None:
            text = maths[1]
        found = re.match(r"\\(?:boxed|fbox|text|mbox|mathrm|mathbf|textbf|boldsymbol|bm)\s*\{", text)
        if found is not None and "text" not in found[0] and closing_brace(text, found.end()) == len(text) - 1:
            text = text[found.end() : -1]
    return text


def _brace_arguments(text: str) -> str:
    """\\frac12 as \\frac{1}{2}, \\sqrt2 as \\sqrt{2}: an argument without braces is one letter or command."""
    parts, done = [], 0
    for found in _ARGUMENTS.finditer(text):
        if found.start() < done:
            continue
        parts += [text[done : found.start()], f"\\{found[1]}{found[2] or ''}"]
        done = found.end()
        for _ in range(1 if found[1] == "sqrt" else 2):
            argument = _ARGUMENT.match(text, done)
            if argument is None:
                break
            end = argument.end()
            inner = argument[1]
            if inner == "{":
                close = closing_brace(text, end)
                if close < 0:
                    break
                inner, end = text[end:close], close + 1
            parts.append(f"{{{_brace_arguments(inner).strip()}}}")
            done = end
    parts.append(text[done:])
    return "".join(parts)
