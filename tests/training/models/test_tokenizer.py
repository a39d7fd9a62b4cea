"""A teacher of another vocabulary is refused, and the message names both sizes."""

import json

import pytest

from etl.errors import ConfigError
from tests.training.teachers import save_tokenizer
from training.models.tokenizer import byte_letters, check_tokenizer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return json.loads((folder / "tokenizer.json").read_text("utf-8"))


def written(folder, tokenizer, **config):
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_same_vocabulary_passes(whole, tmp_path):
    check_tokenizer(written(tmp_path, whole))
    check_tokenizer(written(tmp_path, whole, vocab_size=201_088))


def test_bytes_are_written_as_byte_level_tokenizers_write_them():
    letters = byte_letters()
    assert len(set(letters)) == 256
    assert (letters[ord("a")], letters[ord(" ")], letters[ord("\n")], letters[0], letters[0xAD]) == (
        "a", "Ġ", "Ċ", "Ā", "Ń",
    )  # fmt: skip


def test_two_ids_that_changed_places_are_found(whole, tmp_path):
    vocab = dict(whole["model"]["vocab"])
    vocab["the"], vocab["Ġthe"] = vocab["Ġthe"], vocab["the"]
    with pytest.raises(ConfigError, match=r"'Ġ?the' there and 'Ġ?the' here"):
        check_tokenizer(written(tmp_path, {**whole, "model": {"vocab": vocab}}))


def test_a_missing_control_token_is_found(whole, tmp_path):
    added = [item for item in whole["added_tokens"] if item["content"] != "<|call|>"]
    with pytest.raises(ConfigError, match=r"token 200012 is None there and '<\|call\|>' here"):
        check_tokenizer(written(tmp_path, {**whole, "added_tokens": added}))


def test_another_vocabulary_is_refused_by_both_sizes(tmp_path):
    small = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁the", -2.5], ["▁cat", -3.5]]}}
    with pytest.raises(ConfigError, match=r"has 3 tokens, that of the corpus \(o200k_harmony\) 201,088"):
        check_tokenizer(written(tmp_path, small))


def test_a_head_that_is_too_small_is_refused_by_both_sizes(whole, tmp_path):
    with pytest.raises(ConfigError, match=r"logits for 199,998 tokens, the corpus's vocabulary has 201,088"):
        check_tokenizer(written(tmp_path, whole, vocab_size=199_998))


def test_without_a_readable_tokenizer_nothing_is_taken_on_trust(tmp_path):
    with pytest.raises(ConfigError, match=r"no tokenizer\.json"):
        check_tokenizer(tmp_path)
    for text in ("no json", "[]", '{"model": {}}'):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(ConfigError, match=r"is not a tokenizer\.json"):
            check_tokenizer(tmp_path)
