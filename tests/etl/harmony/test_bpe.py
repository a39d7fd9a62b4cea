"""The fast BPE gives tiktoken's tokens wherever it is used, is chosen by them, and does not grow without bound."""

import os
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from etl.errors import ConfigError
from etl.harmony import bpe
from etl.harmony.bpe import Gigatoken, Quicktok, digest, load_fast_bpe, probe
from etl.harmony.unassigned import is_unassigned
from etl.harmony.vocabulary import DEFAULT_VOCABULARY
from tests.etl.harmony.conversations import LOOKALIKES
from tests.etl.harmony.oracles import load_tiktoken


@pytest.fixture(scope="module")
def oracle():
    return load_tiktoken()


@pytest.fixture(scope="module", params=[Gigatoken, Quicktok])
def fast(request):
    return request.param(DEFAULT_VOCABULARY)


@pytest.fixture
def fresh():
    """The choice is forgotten, before and after."""
    load_fast_bpe.cache_clear()
    yield
    load_fast_bpe.cache_clear()


def each(encoded):
    """The tokens of each text."""
    tokens, offsets = encoded
    return [part.tolist() for part in np.split(tokens, offsets[1:-1])]


def flat(texts):
    """Lists of tokens as `encode_batch` gives them."""
    return np.array([token for text in texts for token in text], np.int32), np.cumsum([0, *map(len, texts)])


def test_the_probe_has_tiktokens_digest(oracle):
    assert digest(*flat(oracle.encode_ordinary_batch(probe().to_pylist()))) == bpe.PROBE_SHA256


def test_the_probe_holds_what_gigatoken_takes_for_control_tokens():
    from gigatoken import Tokenizer

    path = Gigatoken(DEFAULT_VOCABULARY)._path
    with_controls = Tokenizer.from_tiktoken(path, "o200k", special_tokens={"<|endoftext|>": 199_999})
    found = [with_controls.encode(text).tolist() for text in probe().to_pylist()]
    assert digest(*flat(found)) != bpe.PROBE_SHA256


def test_gigatoken_is_chosen(fresh):
    assert isinstance(load_fast_bpe(), Gigatoken)


@pytest.mark.parametrize("broken", ["tokens", "memory"])
def test_quicktok_is_chosen_where_gigatoken_is_not_right(fresh, monkeypatch, broken, caplog):
    if broken == "memory":
        monkeypatch.setattr(Gigatoken, "is_usable", lambda: False)
    else:
        right = Gigatoken._encode
        monkeypatch.setattr(Gigatoken, "_encode", lambda self, data: (right(self, data)[0] + 1, right(self, data)[1]))
    assert isinstance(load_fast_bpe(), Quicktok)
    assert "Gigatoken is not used" in caplog.text


def test_nothing_encodes_with_other_tokens(fresh, monkeypatch):
    monkeypatch.setattr(bpe, "PROBE_SHA256", "0" * 64)
    with pytest.raises(ConfigError, match="differ from tiktoken's"):
        load_fast_bpe()


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_empty_texts_slices_and_nothing(fast, oracle, kind):
    texts = ["", "x", *LOOKALIKES, "", "", "naïve 日本語\n\n", ""]
    assert each(fast.encode_batch(pa.array(["cut off", *texts], kind).slice(1))) == oracle.encode_ordinary_batch(texts)
    for empty in ([], ["", ""]):
        tokens, offsets = fast.encode_batch(pa.array(empty, kind))
        assert (tokens.dtype, tokens.tolist(), offsets.tolist()) == (np.int32, [], [0] * (len(empty) + 1))


def test_a_text_that_is_not_utf8_is_refused():
    with pytest.raises((pa.ArrowInvalid, UnicodeDecodeError)):
        load_fast_bpe().encode_batch(pa.array([b"a\xffb"]).view(pa.string()))


PIECES = st.sampled_from(
    [
        *LOOKALIKES,
        *"aZé9 \n\r\t.'/_日，\u3000\u0301",
        "<|",
        "|>",
        "'s",
        "'LL",
        "1234",
        "  ",
        "HTTPResponse",
        " word",
        "\u2028",
    ]
)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@hypothesis.settings(max_examples=100, derandomize=True, deadline=None)
@hypothesis.given(st.lists(st.lists(PIECES, max_size=20).map("".join) | UNICODE, min_size=1, max_size=5))
def test_any_texts_side_by_side(fast, oracle, texts):
    """Those that a later Unicode cuts otherwise are encoded another way (etl/harmony/encode.py)."""
    texts = [x for x in texts if not is_unassigned(np.array([*map(ord, x)], int)).any()]
    hypothesis.assume(texts)
    assert each(fast.encode_batch(pa.array(texts, pa.string()))) == oracle.encode_ordinary_batch(texts)


def test_gigatoken_is_made_anew_when_the_process_has_grown(monkeypatch):
    """By 100 MiB in the first call, nothing in the second, and 200 in the third."""
    sizes = iter([0, 100, 700, 700, 800, 1000])
    monkeypatch.setattr(bpe, "_resident_bytes", lambda: next(sizes) << 20)
    encoder, texts = Gigatoken(DEFAULT_VOCABULARY), probe()
    first, used, tokens = encoder._bpe, [], []
    for _ in range(3):
        tokens.append(digest(*encoder.encode_batch(texts)))
        used.append(encoder._bpe is first)
    assert used == [True, True, False]
    assert encoder._grown == 0
    assert tokens == [bpe.PROBE_SHA256] * 3


def test_a_forked_child_encodes_on_its_one_thread():
    encoder = load_fast_bpe()
    tokens = encoder.encode_batch(probe())[0].tobytes()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        is_same = encoder.encode_batch(probe())[0].tobytes() == tokens
        os.write(write, bytes([is_same, len([*Path("/proc/self/task").iterdir()])]))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert [*pipe.read()] == [True, 1]
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("unit", ["a", " ", "日", "1", "!é", "\n", "aB"])
def test_a_megabyte_without_a_cut(unit):
    """tiktoken overflows its stack on some; quicktok is another program."""
    text = pa.array([unit * (1_000_000 // len(unit))])
    tokens, _ = load_fast_bpe().encode_batch(text)
    assert tokens.tolist() == Quicktok(DEFAULT_VOCABULARY).encode_batch(text)[0].tolist()
