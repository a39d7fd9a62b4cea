"""Encoding equals openai-harmony's on every code point, in every context, whatever surrounds it."""

import functools

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
import regex
import tiktoken
from hypothesis import strategies as st

from etl.harmony.encode import PATTERN, TextEncoder
from etl.harmony.step import HarmonyStep
from etl.harmony.unassigned import holds_unassigned, is_unassigned
from etl.harmony.vocabulary import load_bpe, load_encoding, load_merges
from tests.etl.harmony.conversations import LOOKALIKES, batch, message, oracle
from tests.etl.harmony.oracles import load_tiktoken

EVERY = np.array([code for code in range(0x110000) if not 0xD800 <= code < 0xE000], np.uint32)
CLASS_SHOWN_BY = "{}'s", "{}456", " {}"
"""Contexts whose tokens differ where {} is a letter or mark, a number, or white space in one of the tokenizers alone:
what follows a sign is cut from the contraction, a number joins the digits after it."""
CONTEXTS = (
    *(
        "{}",
        "a{}b",
        "A{}b",
        "{}'s",
        "I{}'ll",
        "1{}2",
        "123{}456",
        " {} ",
        "\n{}\n",
        "a {}(x",
        "'{}s",
        "e\u0301{}",
        "{}\u0301",
    ),
    *("B{}Cd's", "日{}本", "{}{}'re {}{}9", "word {} word\n\n{}/\n", "\t{}\u3000{}，{}。", "!{}'D"),
)


def harmony(text):
    return load_encoding().encode(text, disallowed_special=())


def members(pattern):
    """The code points that a class has in tiktoken's tables, which are those of Unicode 16.0, too."""
    encoding = tiktoken.Encoding(
        "x", pat_str=pattern, mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    text = EVERY.tobytes().decode("utf-32-le")
    return np.array([ord(c) for c in bytes(encoding.encode_ordinary(text)).decode()], np.uint32)


@functools.cache
def known_to_quicktok():
    """What Unicode 16.0 has not assigned and quicktok has as a letter, a mark, a number or white space."""
    codes = EVERY[(EVERY < 0x40000) & is_unassigned(EVERY)].tolist()
    tokens, offsets = load_bpe().encode_batch([f"{chr(code)}'s" for code in codes], threads=1)
    contraction = harmony("'s")[0]
    return [code for code, last in zip(codes, tokens[offsets[1:] - 1].tolist(), strict=True) if last == contraction]


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder()


def test_the_table_is_what_unicode_16_has_not_assigned():
    assert EVERY[is_unassigned(EVERY)].tolist() == members(r"[^\p{age:16.0}]").tolist()


@pytest.mark.parametrize("context", CLASS_SHOWN_BY)
def test_every_other_code_point_is_cut_alike(context):
    """A line for each: a line end is a place where both cut."""
    lines = [
        context.replace("{}", c) for c in EVERY[~is_unassigned(EVERY)].tobytes().decode("utf-32-le") if c not in "\r\n/"
    ]
    texts = ["\nx".join(lines[start : start + 4096]) for start in range(0, len(lines), 4096)]
    tokens, offsets = load_bpe().encode_batch(texts, threads=1)
    for text, ours in zip(texts, np.split(tokens, offsets[1:-1]), strict=True):
        assert ours.tolist() == harmony(text), hex(ord(text[0]))


def test_each_code_point_that_they_know_differently(encoder):
    shown = [f"{chr(code)}'s" for code in known_to_quicktok()]
    assert len(shown) >= 4_699
    assert all(load_bpe().encode_ordinary(text) != harmony(text) for text in shown)
    tokens, offsets = encoder.encode_batch(pa.array(shown))
    assert [each.tolist() for each in np.split(tokens, offsets[1:-1])] == [harmony(text) for text in shown]


def test_the_step_gives_openai_harmonys_whole_rendering():
    """Every code point of the small scripts and some of the Han extension, three contexts each in one row."""
    new = [chr(code) for code in known_to_quicktok() if code < 0x32400]
    rows = []
    for n, char in enumerate(new):
        user, thought, said = (CONTEXTS[(n + k) % len(CONTEXTS)].replace("{}", char) for k in (0, 5, 11))
        rows.append(
            [message("user", user), message("assistant", thought, "analysis"), message("assistant", said, "final")]
        )
    out = HarmonyStep(system="You are a still.", developer="Answer.", reasoning_effort="low").open()(batch(rows))
    for row, ids in zip(rows, out.column("input_ids").to_pylist(), strict=True):
        assert ids == oracle(row), row


ALPHABET = st.sampled_from(
    [
        *"aZsté19 \n\r\t.,'’/_(-",
        "\u0301",
        "\u00a0",
        "\u2028",
        "\u3000",
        "日",
        "，",
        "。",
        "の",
        "\ufffd",
        "\x1c",
        "İ",
        "Ⅷ",
        "\u0378",
    ]
    + [chr(code) for code in (0x323B0, 0x10940, 0x1ACF, 0x11DE3, 0x16EA0, 0x16EBB, 0xA7F1, 0x1FAC8, 0x10FFFF)]
)


@hypothesis.settings(max_examples=400, derandomize=True, deadline=None)
@hypothesis.given(st.lists(st.lists(ALPHABET, max_size=25).map("".join), min_size=1, max_size=4))
def test_texts_with_later_code_points_among_all_else(encoder, texts):
    tokens, offsets = encoder.encode_batch(pa.array(texts, pa.string()))
    assert [each.tolist() for each in np.split(tokens, offsets[1:-1])] == [harmony(text) for text in texts]
    assert encoder.encode(texts[0]).tolist() == harmony(texts[0])
    assert holds_unassigned(pa.array(texts)).tolist() == [
        any(is_unassigned(np.array([*map(ord, x)], int))) for x in texts
    ]


@hypothesis.settings(max_examples=60, derandomize=True, deadline=None)
@hypothesis.given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.integers(0, 60))
def test_random_texts_with_a_later_code_point(encoder, text, at):
    text = f"{text[:at]}\U000323b0's{text[at:]}"
    assert encoder.encode(text).tolist() == harmony(text)


@pytest.mark.parametrize(
    "before",
    [" \t½", " \t!\n", "\u3000\u3000_", " \t", "  a", "\n \t", " \t\n", "\x1c\x1c", "x  !/", " \t \t1 \t", "  'll"],
)
def test_white_space_some_pieces_before_a_later_code_point(encoder, before):
    for text in (f"{before}\U000323b0", f"a{before}\U000323b0's{before}\U00010940{before}"):
        assert encoder.encode(text).tolist() == harmony(text)


def test_slices_large_strings_and_nothing(encoder):
    texts = ["a", "x\U00010940's", "", "\u1acf's"]
    for kind in (pa.string(), pa.large_string()):
        tokens, offsets = encoder.encode_batch(pa.array(["\U00010940", *texts], kind).slice(1))
        assert tokens.dtype == np.int32
        assert offsets.tolist() == np.cumsum([0, *(len(harmony(text)) for text in texts)]).tolist()
        assert tokens.tolist() == [token for text in texts for token in harmony(text)]
    assert encoder.encode_batch(pa.array([], pa.string()))[1].tolist() == [0]


@pytest.mark.parametrize("unit", ["a", "日", "!", "\U00010940'"])
def test_a_million_characters_without_a_cut(encoder, unit):
    """On these openai-harmony overflows its stack. The text around them is its own; they are one piece."""
    run = unit * (1_000_000 // len(unit))
    is_sign = unit[0] in "!\U00010940"
    piece, end = (run + "\n/", "x \U00010940's") if is_sign else (run, "\n/x \U00010940's")
    expected = harmony("\U00010940's\n") + load_merges().encode_ordinary(piece) + harmony(end)
    assert encoder.encode(f"\U00010940's\n{run}\n/x \U00010940's").tolist() == expected


def test_a_book_without_a_sign_is_openai_harmonys(encoder):
    """120,000 characters in which only a blank between letters of no older script parts the pieces."""
    text = "\U00010940's " + "длинное слово ещё " * 6_700 + "\U00010940'd"
    assert encoder.encode(text).tolist() == load_tiktoken().encode_ordinary(text)


def test_the_pattern_is_tiktokens():
    assert load_tiktoken()._pat_str == PATTERN


CLASSES = [
    *(r"\p{L}", r"\p{N}", r"\s", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"),
    *(f"(?i:{letter})" for letter in "stremvld'"),
]


RECLASSED = 0x295
"""A small letter in Unicode 16.0, one without case in 17.0. Only capitals behind it are cut from it or not."""


@pytest.mark.parametrize("pattern", CLASSES)
def test_the_pattern_takes_every_assigned_code_point_as_tiktoken_does(pattern):
    known = np.setdiff1d(EVERY[~is_unassigned(EVERY)], [RECLASSED]).astype("<u4")
    found = regex.findall(pattern, known.tobytes().decode("utf-32-le"))
    assert "".join(found).encode("utf-32-le") == np.intersect1d(members(pattern), known).astype("<u4").tobytes()


def test_no_token_reaches_from_a_reclassed_letter_into_a_capital():
    """So it does not matter whether the capital is in the same piece."""
    letter = chr(RECLASSED).encode()
    for token in load_merges()._mergeable_ranks:
        for end in (letter, letter[1:]):
            assert not (token.startswith(end) and token[len(end) :].decode(errors="ignore")[:1].istitle())
        assert letter not in token[1:]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("context", [*CLASS_SHOWN_BY, "B{}Cd's"])
def test_every_code_point_in_context(encoder, context):
    """All up to the last that Unicode 17.0 assigns in sequence, and some of the others, which are private or empty."""
    codes = np.concatenate([EVERY[EVERY < 0x33480], EVERY[EVERY >= 0x33480][::997]])
    texts = [context.replace("{}", c) for c in codes.tobytes().decode("utf-32-le")]
    for start in range(0, len(texts), 50_000):
        some = texts[start : start + 50_000]
        tokens, offsets = encoder.encode_batch(pa.array(some))
        expected = load_tiktoken().encode_ordinary_batch(some, num_threads=2)
        assert [each.tolist() for each in np.split(tokens, offsets[1:-1])] == expected


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2))
def test_a_corpus_of_random_texts(encoder, seed):
    """Some 500 kB each: pieces of control tokens, white space, scripts, digits, contractions and later code points."""
    random = np.random.default_rng(seed)
    assigned = EVERY[~is_unassigned(EVERY)].tobytes().decode("utf-32-le")
    pools = [
        *LOOKALIKES,
        *"\t\n\r \x0b\x85\xa0\u2028\u3000/'’_-<|>",
        *(
            "'s",
            "'LL",
            "n't",
            " the",
            "ing",
            "HTTP",
            "Ǆa",
            "1234",
            "٣",
            "½",
            "日本",
            "ไทย",
            "한국어",
            "हिन्दी",
            "\u0301",
            "<|",
            "|>",
        ),
    ]
    later, texts = known_to_quicktok(), []
    for _ in range(5_000):
        parts = random.choice(len(pools) + 6, random.integers(0, 60)).tolist()
        chars = [pools[n] if n < len(pools) else assigned[random.integers(len(assigned))] for n in parts]
        if random.random() < 0.2:
            chars.insert(random.integers(len(chars) + 1), chr(later[random.integers(len(later))]))
        texts.append("".join(chars))
    tokens, offsets = encoder.encode_batch(pa.array(texts))
    expected = load_tiktoken().encode_ordinary_batch(texts, num_threads=2)
    assert [each.tolist() for each in np.split(tokens, offsets[1:-1])] == expected
