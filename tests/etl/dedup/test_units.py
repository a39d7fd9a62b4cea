"""Units against a plain Python reading of their rules, and by hand."""

import itertools
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from etl.dedup.units import UnitDedup, cut, hash_units, lost_ranges
from etl.hashing import hash128
from etl.messages import remove_ranges
from etl.schema import PROMPT
from etl.text import normalise

KINDS = ("paragraph", "line", "sentence")
BREAKS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"
NARROW, WIDE = ".!?…։؝؞؟۔܀܁܂߹।॥၊။።፧፨᙮។៕᠃᠉‼‽⁇⁈⁉⸮．﹒﹖﹗", "。！？｡"
PIECES = [
    *" \t\n\r\u2028\u2029\u00a0\x85", "\r\n", "\n\n", *".!?…。！？।؟", *"()\"'“”«»「」’", "\u0301", "\u200b", "\ufe0f",
    "a", "word", "Ünï", "3.14", "漢字", "かな", "ไทย", "हिन्दी", "한국어", "🙂", "-", "_", "𠮷",
]  # fmt: skip
texts = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)


def num_breaks(space):
    return sum(2 if c == "\u2029" else 1 for c in space.replace("\r\n", "\n") if c in BREAKS)


def closes(char):
    if char.isalnum() or char.isspace():
        return False
    return char in "\"'" or unicodedata.category(char) in ("Pe", "Pf", "Mn", "Me", "Mc", "Cf")


def goes_on(char):
    return closes(char) or char in NARROW + WIDE


def ending(run, quotes=""):
    """The last characters, which may close a sentence."""
    size = len(run)
    while size and (goes_on(run[size - 1]) or unicodedata.category(run[size - 1]) == quotes):
        size -= 1
    return run[size:]


def written_alone(char):
    name = unicodedata.name(char, "")
    scripts = ("THAI", "LAO", "MYANMAR", "KHMER", "HIRAGANA", "KATAKANA", "CJK UNIFIED", "CJK COMPATIBILITY IDEO")
    return char.isalnum() and name.startswith(scripts)


def words(text):
    count = 0
    for run in text.split():
        alone = [c for c in run if written_alone(c)]
        others = re.split(f"[{''.join(alone)}]", run) if alone else [run]
        count += len(alone) + sum(any(c.isalnum() for c in other) for other in others)
    return count


def atoms(text, kind):
    """(start, end, whether a sentence ends there) of each stretch inside which no unit is cut."""
    for run in re.finditer(r"\S+", text):
        start = run.start()
        for at in range(start + 1, run.end()):
            if kind == "sentence" and not goes_on(text[at]) and any(c in WIDE for c in ending(text[start:at])):
                yield start, at, True
                start = at
        yield start, run.end(), any(c in NARROW + WIDE for c in ending(text[start : run.end()], quotes="Pi"))


def reference(text, kind):
    """(start, end, words, breaks after) of each unit, in characters."""
    starts_and_ends, ended, before = [], False, 0
    for start, end, ends in atoms(text, kind):
        space = text[before:start]
        breaks = num_breaks(space)
        if kind == "paragraph":
            new = breaks >= 2
        elif kind == "line":
            new = breaks >= 1
        else:
            new = breaks >= 1 or ended
        line = max((before + i + 1 for i, c in enumerate(space) if c in BREAKS), default=0)
        if not starts_and_ends:
            starts_and_ends.append([line, end])
        elif new:
            starts_and_ends.append([line if breaks else start, end])
        else:
            starts_and_ends[-1][1] = end
        ended, before = ends, end
    after = [*(start for start, _ in starts_and_ends), len(text)][1:]
    return [
        (start, end, words(text[start:end]), num_breaks(text[end:then]))
        for (start, end), then in zip(starts_and_ends, after, strict=True)
    ]


def in_bytes(text, at):
    return len(text[:at].encode())


def cut_rows(column, kind):
    """The units of each text as tuples."""
    units = cut(column, kind)
    flat = list(zip(*(a.tolist() for a in (units.start, units.end, units.num_words, units.num_breaks)), strict=True))
    return [flat[a:b] for a, b in zip(units.offsets[:-1], units.offsets[1:], strict=True)]


def bodies(text, kind):
    return [text.encode()[start:end].decode() for start, end, _, _ in cut_rows(pa.array([text]), kind)[0]]


@pytest.mark.parametrize("kind", KINDS)
@given(rows=st.lists(st.none() | texts, max_size=4))
def test_units_are_those_of_the_rules(kind, rows):
    column = pa.array(["before", *rows, "after"], pa.string()).slice(1, len(rows))
    assert cut_rows(column, kind) == [
        [] if text is None else [(in_bytes(text, a), in_bytes(text, b), *rest) for a, b, *rest in reference(text, kind)]
        for text in rows
    ]
    assert cut_rows(column.cast(pa.large_string()), kind) == cut_rows(column, kind)


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
def test_units_and_separators_are_the_whole_text(kind, text):
    data = text.encode()
    found = cut_rows(pa.array([text]), kind)[0]
    borders = [0, *(at for start, end, *_ in found for at in (start, end)), len(data)]
    assert borders == sorted(borders)
    separators = [data[a:b].decode() for a, b in zip(borders[::2], borders[1::2], strict=True)]
    assert not "".join(separators).strip()


def trimmed(text, kind, lost):
    """The text without the units whose numbers are in `lost`."""
    column = pa.array([text])
    units = cut(column, kind)
    ranges = lost_ranges(column, units, np.isin(np.arange(len(units)), list(lost)))
    message = [{"role": "text", "channel": None, "recipient": None, "content": text}]
    (rest,) = remove_ranges(pa.array([message], PROMPT.field("messages").type), ranges).to_pylist()
    return rest[0]["content"]


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, seed=st.integers(0, 2**30))
def test_what_is_left_when_units_go(kind, text, seed):
    found = reference(text, kind)
    lost = {i for i in range(len(found)) if seed >> (i % 30) & 1}
    kept = [i for i in range(len(found)) if i not in lost]
    expected = ""
    if kept or not found:
        separators = [text[a[1] : b[0]] for a, b in itertools.pairwise(found)]
        expected = text[: found[0][0]] if found else text
        for i, unit in enumerate(kept):
            if i:
                between = range(kept[i - 1], unit)
                expected += separators[max(between, key=lambda k: (found[k][3], -k))]
            expected += text[found[unit][0] : found[unit][1]]
        expected += text[found[-1][1] :] if found else ""
    assert trimmed(text, kind, lost) == expected
    assert trimmed(text, kind, set()) == text


def test_paragraphs_by_hand():
    text = "\n  One line,\nthe same.\n \t\nSecond.\u2029Third\r\n\r\n\r\n"
    assert bodies(text, "paragraph") == ["  One line,\nthe same.", "Second.", "Third"]
    assert trimmed(text, "paragraph", {1}) == "\n  One line,\nthe same.\n \t\nThird\r\n\r\n\r\n"
    assert trimmed(text, "paragraph", {0}) == "\nSecond.\u2029Third\r\n\r\n\r\n"
    assert trimmed(text, "paragraph", {2}) == "\n  One line,\nthe same.\n \t\nSecond.\r\n\r\n\r\n"
    assert trimmed(text, "paragraph", {0, 1, 2}) == ""


def test_lines_keep_their_indentation():
    text = "def f():\n    a = 1\n\n    b = 2\nreturn\n"
    assert bodies(text, "line") == ["def f():", "    a = 1", "    b = 2", "return"]
    assert trimmed(text, "line", {1}) == "def f():\n\n    b = 2\nreturn\n"
    assert trimmed(text, "line", {2}) == "def f():\n    a = 1\n\nreturn\n"


def test_sentences_by_hand():
    text = "He said (twice!) “Hi.” Then 3.14 left... Really?! Yes\nA heading\n\nEnd. "
    expected = ["He said (twice!)", "“Hi.”", "Then 3.14 left...", "Really?!", "Yes", "A heading", "End."]
    assert bodies(text, "sentence") == expected
    assert trimmed(text, "sentence", {1, 3}) == "He said (twice!) Then 3.14 left... Yes\nA heading\n\nEnd. "
    # The paragraph break outlives the sentences on both sides of it.
    assert trimmed(text, "sentence", {4, 5}) == "He said (twice!) “Hi.” Then 3.14 left... Really?!\n\nEnd. "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他走了。「好。」“是吗？”对", ["他走了。", "「好。」", "“是吗？”", "对"]),
        ("行く。来る！ 見る", ["行く。", "来る！", "見る"]),
        ("यह है। वह है॥ अंत", ["यह है।", "वह है॥", "अंत"]),
        ("مرحبا؟ نعم۔ لا", ["مرحبا؟", "نعم۔", "لا"]),
        ("Ça va ? Oui !", ["Ça va ?", "Oui !"]),
        ("3．14です。", ["3．14です。"]),
        ("", []),
        (" \u00a0\r\n", []),
    ],
)
def test_sentences_of_other_scripts(text, expected):
    assert bodies(text, "sentence") == expected


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("three plain words", 3),
        ("don't -- stop...", 2),
        ("漢字かな", 4),
        ("ab漢c", 3),
        ("हिन्दी भाषा", 2),
        ("한국어 문장", 2),
        ("🙂 !", 0),
    ],
)
def test_words(text, count):
    assert cut(pa.array([text]), "paragraph").num_words.tolist() == [count]


def test_hashes_are_those_of_the_normal_form():
    rows = ["  Caf\u00e9  au\nlait\n\nother", None, "Cafe\u0301 au lait\n\n caf\u00e9 au lait"]
    column = pa.array(rows)
    units = cut(column, "paragraph")
    hashes = hash_units(column, units, np.array([0, 2, 3]))
    assert hashes.to_pylist()[:2] == [hash128([normalise(pa.array(["Café au lait"]))])[0].as_py()] * 2
    assert hashes[2] != hashes[0]
    assert len(hash_units(column, units, np.empty(0, np.int64))) == 0


def test_words_left():
    units = cut(pa.array(["a b\n\nc", None, "d e f"]), "paragraph")
    assert units.words_left(np.array([True, False, False])).tolist() == [1, 0, 3]


def test_a_text_of_many_units():
    text = ("x. " * 1000 + "\n") * 50
    assert len(cut(pa.array([text]), "sentence")) == 50_000
    assert len(cut(pa.array([text]), "line")) == 50


def test_the_only_copy_of_a_unit_cannot_go_with_its_row():
    with pytest.raises(ValidationError, match="min_left_words=9 is more than min_words=8"):
        UnitDedup(unit="line", min_left_words=9)
    assert UnitDedup(unit="line", min_words=3).fewest_left == 3
    assert UnitDedup(unit="line", min_words=3, min_left_words=2).fewest_left == 2
