"""What the model is asked: words with single spaces, and only letters of known scripts."""

import sys

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.filters.language_text import SCRIPTS, judged_texts

WORDS = ["Der", "schnelle", "Fuchs", "springt", "über", "den", "Hund"]
SPACES = [chr(code) for code in range(sys.maxunicode) if chr(code).isspace()]


def judged(*texts, characters=None):
    words, known = judged_texts(pa.array(texts, pa.string()), characters)
    words.validate(full=True)
    return words.to_pylist(), known.tolist()


@pytest.mark.parametrize(
    "mark", [*SPACES, "\0", "\x07", "\u200b", "\ufeff", "\u2800", " </s> ", "</s>".join("  "), "\n</s>\n</s>\u3000"]
)
def test_what_stands_between_words_is_one_space(mark):
    plain = " ".join(WORDS) + " "
    dressed = [mark.join(WORDS), mark + mark.join(WORDS) + mark, (mark * 1000).join(WORDS)]
    assert judged(*dressed) == ([plain] * 3, [True] * 3)


@pytest.mark.parametrize(
    "text", ["__label__de", "__label____label__de", "__la\u00adbel__de", "d\u2060e", "\u200fde", "</s> de", "de </s>"]
)
def test_words_that_fasttext_would_overlook(text):
    assert judged(text) == (["de "], [True])


@pytest.mark.parametrize(
    "text", ["</s>de", "<s>", "de</s>", "می\u200cخواهم", "का\u200dक", "स्त्री", "コーヒー", "x_label__de"]
)
def test_words_that_stay_as_they_are(text):
    assert judged(text) == ([text + " "], [True])


def test_marks_and_spaces_do_not_count_among_the_characters():
    text = "</s> __label__x " * 500 + "é" * 2000
    (words,), _ = judged(text, characters=1000)
    assert len(words) == 1001
    assert words.startswith("x x x ")
    assert judged("é" * 2000, characters=1000) == (["é" * 1000 + " "], [True])


def test_without_a_number_of_characters_all_count():
    assert judged("é" * 20_000 + " b") == (["é" * 20_000 + " b "], [True])


OTHER_SCRIPTS = """
𞤀𞤣𞤤𞤢𞤥 ᬅᬓ᭄ᬱᬭ ㄅㄆㄇ ᐃᓄᒃᑎᑐᑦ ᏣᎳᎩ 𑄌𑄋𑄴𑄟𑄳𑄦 ⲙⲉⲧⲣⲉⲙ 𐌲𐌿𐍄 ꦗꦮ ꓡꓲ-ꓢꓴ ꯃꯤꯇꯩ ᠮᠣᠩᠭᠣᠯ ߒߞߏ ᱥᱟᱱᱛᱟᱲᱤ ᚠᚢᚦ ܣܘܪܝܝܐ ᨲᩫ᩠ᩅ
ⵜⴰⵎⴰⵣⵉⵖⵜ ꕙꔤ ꆈꌠ 𝐇𝐞𝐥𝐥𝐨 ｈｅｌｌｏ ﾃｷｽﾄ ﻣﺮﺣﺒﺎ
"""
"""Adlam, Balinese, Bopomofo, Canadian syllabics, Cherokee, Chakma, Coptic, Gothic, Javanese, Lisu, Meetei Mayek,
Mongolian, N'Ko, Ol Chiki, Runic, Syriac, Tai Tham, Tifinagh, Vai, Yi; then forms of known letters."""

KNOWN_SCRIPTS = """
العربية Հայերեն বাংলা русский हिन्दी አማርኛ ქართული Ελληνικά ગુજરાતી ਪੰਜਾਬੀ 中文 한국어 עברית ひらがな ಕನ್ನಡ カタカナ ខ្មែរ
ລາວ English മലയാളം မြန်မာ ଓଡ଼ିଆ සිංහල தமிழ் తెలుగు ދިވެހި ไทย བོད་
"""


@pytest.mark.parametrize("text", OTHER_SCRIPTS.split())
def test_other_scripts_are_undetermined(text):
    assert judged(text, text + " " + text + " a")[1] == [False, False]


@pytest.mark.parametrize("text", ["", "12", "☺", "ªº", "\u3164\u3164", "ㅋㅋㅋ", "\u0301"])
def test_what_has_no_letter_is_undetermined(text):
    assert judged(text)[1] == [False]


@pytest.mark.parametrize("text", KNOWN_SCRIPTS.split())
def test_the_scripts_that_the_model_knows(text):
    assert judged(text) == ([text + " "], [True])


def test_there_are_twenty_eight_known_scripts():
    assert len(SCRIPTS) == 28


def test_the_known_part_of_a_mixed_text_is_judged():
    assert judged("hello ᏣᎳᎩ world ☺") == (["hello world ☺ "], [True])
    assert judged("ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ the") == (["the "], [False])


@given(st.lists(st.text(max_size=30), max_size=5))
def test_rows_are_judged_alone_and_what_was_judged_is_judged_the_same(texts):
    words, known = judged(*texts)
    assert [judged(text) for text in texts] == [([word], [flag]) for word, flag in zip(words, known, strict=True)]
    assert judged(*words)[0] == words
    sliced = judged_texts(pa.array(["é", *texts], pa.string())[1:], None)[0].to_pylist()
    assert sliced == words
