"""NFKC by table, against Python's own."""

import sys
import unicodedata

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from etl.fold import fold

EVERY = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
TRICKY = "aeｅ\u0301\u0323\u0307é²ﬁ中，カﾞガ\u3099한\u1112\u1161\u11abक़\u0915\u093c\u0344\u0958ﷺ\u1ea3\u0f71\u0f72"

folded_text = st.text(st.sampled_from(TRICKY)) | st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.none() | folded_text, max_size=6), st.integers(0, 2))
@example(["e\u0301", None, "plain", "ＡＢ１", "\u0301\u0323", "が\u3099", "ｶﾞ"], 0)
def test_fold_is_nfkc(values: list[str | None], skip: int) -> None:
    texts = pa.array(["ｘ"] * skip + values, pa.string()).slice(skip)
    expected = [None if value is None else unicodedata.normalize("NFKC", value) for value in values]
    for typed in (texts, texts.cast(pa.large_string())):
        found = fold(typed)
        found.validate(full=True)
        assert found.type == typed.type
        assert found.to_pylist() == expected


def test_fold_agrees_with_python_on_every_character_and_before_a_mark() -> None:
    for before, after, limit in (("", "", len(EVERY)), ("e\u0307", "\u0323", 0x3100)):
        values = [f"{before}{char}{after}" for char in EVERY[:limit]]
        assert fold(pa.array(values)).to_pylist() == [unicodedata.normalize("NFKC", value) for value in values]


def test_texts_that_do_not_change_are_the_same_array() -> None:
    texts = pa.array(["plain", "naïve café", "中文", None])
    assert fold(texts) is texts
