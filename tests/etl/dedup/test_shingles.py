"""N-grams of tokens against an independent cut in Python: which texts are equal, and how similar others are."""

import itertools
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from etl.arrays import I64, U64, Bools
from etl.dedup.in_memory import near_duplicates
from etl.dedup.near import NearDedup
from etl.dedup.shingles import plain_ngrams, token_digests, token_ngrams
from etl.dedup.verify import jaccard_pairs
from etl.text import distinct_hashes

ALONE = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff]"
WORDLESS = [
    "🎉🎉🎉",
    "→ ← ↑ ↓",
    "!!!???",
    "",
    "+++[->++<]>.",
    ">++<<--.,[]",
    "∀ ∃ ∑ ∏",
    "--- *** ---",
    "(){}[]<>",
    " \n",
]


def tokens(text: str, signed: bool) -> list[str]:
    """Runs of words, characters that are words by themselves, each with its marks, and signs."""
    found: list[str] = []
    open_word: bool | None = False
    for char in unicodedata.normalize("NFKC", text).lower():
        kind = unicodedata.category(char)
        if kind == "Cf":
            continue
        if kind[0] == "M":
            if found and open_word is not None:
                found[-1] += char
            continue
        if re.match(r"\w", char):
            if re.match(ALONE, char) or open_word is not True:
                found.append(char)
            else:
                found[-1] += char
            open_word = not re.match(ALONE, char)
        elif signed and kind[0] in "PS":
            found.append(char)
            open_word = False
        else:
            open_word = None
    return found or (tokens(text, True) if not signed else [])


def pairs_of(text: str, signed: bool) -> set[tuple[str, ...]]:
    cut = tokens(text, signed)
    return set(itertools.pairwise(cut)) or ({tuple(cut)} if cut else set())


short_texts = st.text(st.sampled_from("aB1é中文カ\u0301ไ\u0e48ក +-,\u200dｅ\n"), max_size=20)


def token_sets(texts: pa.Array, n: int, signed: Bools) -> tuple[I64, U64]:
    return distinct_hashes(*token_ngrams(texts, n, signed))


@given(short_texts, short_texts, st.booleans())
@example("e\u0301 中文", "é中 文", False)
@example("C++", "C#", False)
@example("❤️ a", "a", False)
@example("+-", "-+", False)
def test_short_texts_are_sets_of_pairs_of_tokens(one: str, other: str, signed: bool) -> None:
    sets = token_sets(pa.array([one, other]), 5, np.full(2, signed))
    mine, theirs = pairs_of(one, signed), pairs_of(other, signed)
    expected = len(mine & theirs) / max(1, len(mine | theirs))
    assert jaccard_pairs(*sets, np.array([0]), np.array([1]))[0] == pytest.approx(expected)


def test_long_texts_have_ngrams_and_those_between_a_mixture() -> None:
    for num, expected in ((48, 47), (80, 76), (200, 196)):
        text = " ".join(f"w{i}" for i in range(num))
        assert token_sets(pa.array([text]), 5, np.zeros(1, np.bool_))[0][-1] == expected
    sizes = [token_sets(pa.array([" ".join(f"w{i}" for i in range(n))]), 5, np.zeros(1, np.bool_)) for n in (63, 64)]
    shared = np.intersect1d(sizes[0][1], sizes[1][1])
    assert len(shared) / len(sizes[1][1]) > 0.9


@pytest.mark.parametrize("num", [20, 32, 48, 49, 52, 60, 80, 120])
def test_one_changed_slot_in_twenty_words_and_more_is_found(num: int) -> None:
    texts = []
    for trial in range(40):
        words = [f"w{trial}x{i}" for i in range(num)]
        edited = [*words]
        edited[(trial * 7) % num] = "changed"
        texts += [" ".join(words), " ".join(edited)]
    found = near_duplicates(pa.array(texts), NearDedup())
    good = {(a, b) for a, b in zip(found.left.tolist(), found.right.tolist(), strict=True) if a % 2 == 0 and b == a + 1}
    assert len(good) >= 38
    assert len(found.left) == len(good)


@pytest.mark.parametrize("unit", ["auto", "word", "char", "token"])
def test_texts_without_words_are_compared_by_what_they_say(unit: str) -> None:
    near = NearDedup.model_validate({"unit": unit})
    assert len(near_duplicates(pa.array(WORDLESS), near).left) == 0
    assert near_duplicates(pa.array([*WORDLESS, "🎉 🎉🎉"]), near).label.tolist() == [*range(len(WORDLESS)), 0]


def test_signs_tell_code_apart_and_prose_not() -> None:
    texts = pa.array(["x = 1 + 2", "x = 1 - 2"])
    assert len(near_duplicates(texts, NearDedup()).left) == 1
    assert len(near_duplicates(texts, NearDedup(), np.ones(2, np.bool_)).left) == 0


@pytest.mark.parametrize("unit", ["auto", "word", "char", "token"])
def test_forms_of_one_text_are_one(unit: str) -> None:
    text = "Crème brûlée à la carte, ｆｕｌｌ ｗｉｄｔｈ ガギグ 한국어 Việt Nam"
    texts = [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD"))]
    assert set(near_duplicates(pa.array(texts), NearDedup.model_validate({"unit": unit})).label.tolist()) == {0}


@given(st.lists(st.none() | short_texts, max_size=5), st.booleans())
def test_plain_ngrams_do_not_depend_on_the_batch(values: list[str | None], of_characters: bool) -> None:
    offsets, hashes = plain_ngrams(pa.array(values, pa.string()), 3, of_characters)
    for row, value in enumerate(values):
        alone = plain_ngrams(pa.array([value], pa.string()), 3, of_characters)
        assert hashes[offsets[row] : offsets[row + 1]].tolist() == alone[1].tolist()


def test_chinese_texts_with_one_changed_character_are_found() -> None:
    text = "人人生而自由在尊严和权利上一律平等他们赋有理性和良心并应以兄弟关系的精神相对待"
    texts = [text, text.replace("理", "山"), "任何人不得加以酷刑或施以残忍的不人道的或侮辱性的待遇或刑罚"]
    assert near_duplicates(pa.array(texts), NearDedup()).label.tolist() == [0, 0, 2]


FOLDED = [
    "¼ ½",
    "ﷺ" * 30,
    "𝚺ΟΣ και",
    "İstanbul",
    "e\u0301",
    "a\u0327\u0301",
    "a\u0301\u0327",
    "ﬁne…",
    "㌀㌖",
    "Ａ１",
    "각",
    "x²",
]


@given(st.lists(st.text(st.characters(codec="utf-8")) | st.lists(st.sampled_from(FOLDED)).map(" ".join), max_size=5))
@example(FOLDED)
@example(["¼" * 200, "a b c ¼ d"])
def test_a_text_is_cut_as_its_folded_and_lowered_form(values: list[str]) -> None:
    """The kernel folds most texts itself; here Python has done it before."""
    folded = pa.array([unicodedata.normalize("NFKC", value).lower() for value in values], pa.string())
    texts, signed = pa.array(values, pa.string()), np.arange(len(values)) % 2 == 1
    cuts = (
        lambda given: token_ngrams(given, 3, signed),
        lambda given: plain_ngrams(given, 2, False),
        lambda given: token_digests(given, signed),
    )
    for cut in cuts:
        assert [found.tolist() for found in cut(texts)] == [found.tolist() for found in cut(folded)]


@given(st.lists(st.text("ab日+ \u0301\u200d"), max_size=4))
def test_digests_tell_the_tokens_in_their_order(values: list[str]) -> None:
    texts = pa.array(values, pa.string())
    _, every = token_digests(texts, np.zeros(len(values), np.bool_))
    cut = [tokens(value, True) for value in values]
    for one, other in itertools.combinations(range(len(values)), 2):
        assert (every[one] == every[other]) == (cut[one] == cut[other])
