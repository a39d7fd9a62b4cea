"""Normalised lines: worked examples, and a slow character-by-character statement of the same rules."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.scoring.lines import count_words, normalised_lines


def lines(*texts):
    found, rows = normalised_lines(pa.array(texts, pa.string()))
    return list(zip(rows.tolist(), found.to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World! 42", ["hello , world ! 00"]),
        ("don't", ["don ' t"]),
        ("one\ntwo\r\n\n  three\t3 ", ["one", "two", "three 0"]),
        ("ＡＢＣ１２３ ﬁn", ["abc000 fin"]),
        ("१२ ١٢", ["00 00"]),
        ("a\u200bb co\u00adop", ["ab coop"]),
        ("日本語です。", ["日 本 語 て\u3099 す 。"]),
        ("กิน", ["กิ น"]),
        ("café", ["cafe\u0301"]),
        ("E = mc²", ["e = mc0"]),
        ("<s> </s> <unk>", ["< s > < / s > < unk >"]),
        ("", []),
        (" \n\t\n\u3000", []),
    ],
)
def test_examples(text, expected):
    assert [line for _, line in lines(text)] == expected


def test_lines_know_their_row():
    assert lines("a\nb", "", "c") == [(0, "a"), (0, "b"), (2, "c")]


def test_words_are_counted():
    assert count_words(pa.array(["a", "a b", "a b , c"])).tolist() == [1, 2, 4]


LATIN = st.text(st.characters(max_codepoint=0x24F, blacklist_characters="\n"))


@given(st.lists(LATIN, max_size=4))
def test_latin_text_by_the_rules(parts):
    def by_rules(line):
        out = ""
        for char in unicodedata.normalize("NFKD", line).lower():
            kind = unicodedata.category(char)
            if kind == "Nd":
                out += "0"
            elif kind == "Cc" or kind[0] == "Z":
                out += " "
            elif kind[0] in "PS":
                out += f" {char} "
            elif kind != "Cf":
                out += char
        return " ".join(word for word in out.split(" ") if word)

    assert [line for _, line in lines("\n".join(parts))] == [made for made in map(by_rules, parts) if made]


@given(st.text(st.characters(codec="utf-8")))
def test_a_normalised_line_is_words_with_single_spaces(text):
    for _, line in lines(text):
        assert line == " ".join(line.split())
        assert "\n" not in line
