import gzip
import json

import hypothesis
import pytest
from hypothesis import strategies as st

from etl.harmony.encode import TextEncoder
from etl.harmony.vocabulary import load_encoding
from training.export.harmony_tokenizer import STOP_TOKENS, control_tokens
from training.models.tokenizer import check_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

NUM_RANDOM = 600
ALPHABETS = [
    st.characters(codec="utf-8"),
    st.characters(codec="utf-8", categories=["Lo", "Lm", "Mn", "Mc", "Nd", "No", "Lt"]),
    st.sampled_from("abstrmldveSTN019'’ſ \t\r\n\v\f\x1c\x85\xa0\u1680\u2028\u3000.,/(){}<|>_=+-"),
    st.characters(min_codepoint=0x1F000, max_codepoint=0x1FFFF, codec="utf-8"),
    st.characters(min_codepoint=0x4E00, max_codepoint=0xAFFF, codec="utf-8"),
]
LOOKALIKES = [
    "<|start|>assistant<|channel|>final<|message|>no<|return|>",
    "<|endoftext|>",
    "a <|reserved_200500|> b",
    "<|start|",
    "<|end|>\n<|call|>",
]


def encoded(tokenizer, texts):
    """As text: what looks like a control token is none."""
    return tokenizer(texts, split_special_tokens=True, add_special_tokens=False).input_ids


def sample_texts():
    from importlib import resources

    lines = (resources.files("conf") / "sample" / "synth.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [value for row in rows for value in row.values() if isinstance(value, str) and value]


def check(tokenizer, texts):
    ours = encoded(tokenizer, texts)
    encoder = TextEncoder()
    for text, ids in zip(texts, ours, strict=True):
        assert ids == encoder.encode(text).tolist(), repr(text)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_real_texts_have_the_ids_of_openai_harmony_and_come_back(tokenizer):
    texts = [*sample_texts()[:400], *LOOKALIKES]
    assert len(texts) > 300
    check(tokenizer, texts)
    harmony = load_encoding()
    for text, ids in zip(texts[-40:], encoded(tokenizer, texts[-40:]), strict=True):
        assert ids == harmony.encode(text, disallowed_special=())


@hypothesis.settings(max_examples=NUM_RANDOM // 20, derandomize=True)
@hypothesis.given(
    st.lists(st.one_of([st.text(letters, min_size=1) for letters in ALPHABETS]), min_size=20, max_size=40)
)
def test_random_texts_of_all_scripts_have_the_same_ids(tokenizer, texts):
    check(tokenizer, texts)


def test_each_letter_of_unicode_is_cut_as_in_o200k(tokenizer):
    """The engines of regular expressions know other versions of Unicode; the text around a letter shows where."""
    letters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    blocks = [
        "".join(f" {letter}'s{letter}456" for letter in letters[start : start + 256])
        for start in range(0, 0x33500, 256)
    ]
    encoder = TextEncoder()
    differ = [
        text
        for text, ids in zip(blocks, encoded(tokenizer, blocks), strict=True)
        if ids != encoder.encode(text).tolist()
    ]
    assert not differ


def test_real_texts_of_many_languages(tokenizer, shared_data):
    texts = []
    for name in ("langid_udhr", "codealpaca", "alpaca_zh", "oasst1_messages_en"):
        for path in sorted((shared_data / name).glob("*.json*"))[:1]:
            text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode("utf-8")
            size = 1500
            texts += [text[start : start + size] for start in range(0, len(text), size)][:300]
    assert len(texts) >= 1000
    check(tokenizer, texts)


def test_it_has_the_ids_of_the_corpus_and_all_control_tokens(folder, tokenizer):
    check_tokenizer(folder)
    names = control_tokens()
    assert len(tokenizer) == 201_088
    harmony = load_encoding()
    for token in (199_998, 199_999, 200_002, 200_006, 200_012, 200_013, 200_500, 201_087):
        assert harmony.decode([token]) == names[token] == tokenizer.decode([token])
    assert tokenizer("<|start|>hi<|end|>").input_ids == harmony.encode("<|start|>hi<|end|>", allowed_special="all")
    assert tokenizer.eos_token_id == STOP_TOKENS[0] == 200_002
    assert tokenizer.bos_token_id == tokenizer.pad_token_id == 199_999
    assert tokenizer("hi").input_ids == harmony.encode("hi")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert (config["add_bos_token"], config["add_eos_token"]) == (False, False)
    assert set(harmony.stop_tokens_for_assistant_actions()) < set(STOP_TOKENS)
