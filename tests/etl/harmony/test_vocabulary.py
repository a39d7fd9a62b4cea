"""The vocabulary is found offline, checked, and passed to openai-harmony only while it loads."""

import hashlib
import os

import pytest

from etl.errors import ConfigError
from etl.harmony import vocabulary
from etl.harmony.vocabulary import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    ENDOFTEXT,
    MESSAGE,
    NUM_TEXT_TOKENS,
    RETURN,
    START,
    VOCABULARY_SHA256,
    load_bpe,
    load_encoding,
    vocabulary_file,
)
from tests.etl.harmony.conversations import LOOKALIKES
from tests.etl.harmony.oracles import load_tiktoken


@pytest.fixture
def fresh():
    """Both loaders forget what they have loaded, before and after."""
    load_bpe.cache_clear()
    load_encoding.cache_clear()
    yield
    load_bpe.cache_clear()
    load_encoding.cache_clear()


def test_the_vocabulary_is_openais():
    data = vocabulary_file().read_bytes()
    assert len(data) == 3_613_922
    assert hashlib.sha256(data).hexdigest() == VOCABULARY_SHA256


@pytest.mark.parametrize("before", [None, "/elsewhere"])
def test_the_environment_is_as_before(before, fresh, monkeypatch):
    monkeypatch.delenv("TIKTOKEN_ENCODINGS_BASE", raising=False)
    if before is not None:
        monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", before)
    assert load_encoding().name == "HarmonyGptOss"
    assert os.environ.get("TIKTOKEN_ENCODINGS_BASE") == before


def test_another_file_may_be_named(tmp_path, fresh):
    path = tmp_path / "ranks"
    path.write_bytes(vocabulary_file().read_bytes())
    assert vocabulary_file(str(path)) == path
    assert load_encoding(str(path)).encode("hello world") == load_bpe(str(path)).encode("hello world")


def test_an_absent_package_says_what_to_do():
    with pytest.raises(ConfigError, match=r"'no_such_package' is not installed.*bpe-openai.*harmony\.vocabulary"):
        vocabulary_file("package:no_such_package/o200k_base.tiktoken")


def test_another_vocabulary_is_refused_with_both_digests(tmp_path):
    path = tmp_path / "o200k_base.tiktoken"
    path.write_bytes(b"IQ== 0\n")
    got = hashlib.sha256(b"IQ== 0\n").hexdigest()
    with pytest.raises(ConfigError, match=f"{got}, expected {VOCABULARY_SHA256}.*harmony.vocabulary"):
        load_bpe(str(path))


def test_a_bpe_with_other_ranks_is_refused(fresh, monkeypatch):
    monkeypatch.setattr(vocabulary, "NUM_TEXT_TOKENS", 1000)
    with pytest.raises(ConfigError, match="does not have the ranks"):
        load_bpe()


def test_control_tokens_are_openai_harmonys():
    special = {
        "<|endoftext|>": ENDOFTEXT,
        "<|return|>": RETURN,
        "<|constrain|>": CONSTRAIN,
        "<|channel|>": CHANNEL,
        "<|start|>": START,
        "<|end|>": END,
        "<|message|>": MESSAGE,
        "<|call|>": CALL,
    }
    for text, token in special.items():
        assert load_encoding().encode(text, allowed_special="all") == [token]


@pytest.mark.parametrize(
    "text", ["", *LOOKALIKES, "".join(LOOKALIKES) * 3, "\ufeffa\ud7ff\ue000\U0010ffff", "日本語" * 999]
)
def test_quicktok_equals_both_oracles(text):
    tokens, offsets = load_bpe().encode_batch([text, text], threads=1)
    ours = tokens[: offsets[1]].tolist()
    assert ours == load_encoding().encode(text, disallowed_special=())
    assert ours == load_tiktoken().encode_ordinary(text)
    assert max(ours, default=0) < NUM_TEXT_TOKENS


@pytest.mark.filterwarnings("ignore:open_binary is deprecated")
@pytest.mark.parametrize("character", [" ", "a", "\n", "é"])
def test_quicktok_takes_a_megabyte_without_a_space_to_split_at(character):
    """On which tiktoken and openai-harmony overflow their stack; bpe-openai is the oracle."""
    from bpe_openai._bindings import tokenizer_for_encoding

    text = character * 1_000_000
    tokens, _ = load_bpe().encode_batch([text], threads=1)
    assert tokens.tolist() == tokenizer_for_encoding("o200k_base").encode(text)
