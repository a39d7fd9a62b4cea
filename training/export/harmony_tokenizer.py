"""The files by which transformers encodes Harmony: tokenizer.json, its configuration, generation settings.

tokenizer.json is made from the o200k ranks of this installation (etl/harmony/vocabulary.py), offline: every split of a
token into two tokens is a merge, in the order of the ranks, which is what tiktoken's search for the lowest rank does; a
piece that is a token as a whole stays one. 12 MB, about 3 CPU-seconds, the same bytes each time.

Text that looks like a control token ("<|start|>") is one for a tokenizer of transformers, unless it is called with
`split_special_tokens=True`; openai-harmony, and the corpus, take bodies as text. The chat template gives text that is
to be encoded with control tokens (training/export/chat_template.py).

No corpus has <|startoftext|>. What stands before a text where a program wants something there, such as an evaluation
harness before an empty context, is <|endoftext|>: what ends a raw document.
"""

import json
from typing import Any, Final

from etl.harmony.encode import PATTERN
from etl.harmony.render import Preamble
from etl.harmony.vocabulary import CALL, CONTROL_TOKENS, ENDOFTEXT, NUM_TEXT_TOKENS, RETURN, VOCAB_SIZE, load_bpe
from training.export.chat_template import chat_template
from training.models.tokenizer import byte_letters

STARTOFTEXT: Final = NUM_TEXT_TOKENS
STOP_TOKENS: Final = (RETURN, CALL, ENDOFTEXT)
"""After any of these a model has said what it wanted to say."""


def control_tokens() -> dict[int, str]:
    """Every id above the text tokens; most are reserved."""
    reserved = {i: f"<|reserved_{i}|>" for i in range(NUM_TEXT_TOKENS, VOCAB_SIZE)}
    return {**reserved, STARTOFTEXT: "<|startoftext|>", **CONTROL_TOKENS}


def tokenizer_files(preamble: Preamble) -> dict[str, bytes]:
    """The files that AutoTokenizer reads, by name; `preamble` is what the chat template begins with by itself."""
    text_end = CONTROL_TOKENS[ENDOFTEXT]
    special = {"bos_token": text_end, "eos_token": CONTROL_TOKENS[RETURN], "pad_token": text_end}
    config = {
        **special,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {
        "tokenizer.json": tokenizer_json(control_tokens()),
        "tokenizer_config.json": _json(config),
        "special_tokens_map.json": _json(special),
        "chat_template.jinja": chat_template(preamble).encode(),
    }


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def tokenizer_json(added: dict[int, str]) -> bytes:
    """The tokenizer as Hugging Face's tokenizers reads it.

    Args:
        added: tokens that stand for themselves in text, by id.
    """
    return json.dumps(_tokenizer(added), ensure_ascii=False, separators=(",", ":")).encode()


def _tokenizer(added: dict[int, str]) -> dict[str, Any]:
    bpe, letters = load_bpe(), byte_letters()
    tokens = [bpe.decode_single_token_bytes(rank) for rank in range(NUM_TEXT_TOKENS)]
    text = ["".join(letters[byte] for byte in token) for token in tokens]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    pieces = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in sorted(added.items())],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pieces, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {token: rank for rank, token in enumerate(text)},
            "merges": [[text[left], text[right]] for left, right in _merges(tokens)],
        },
    }


def _merges(tokens: list[bytes]) -> list[tuple[int, int]]:
    """Ranks of every two tokens that are a token together, by the rank of that one."""
    ranks = {token: rank for rank, token in enumerate(tokens)}
    found: list[tuple[int, int]] = []
    for token in tokens:
        halves = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        found += sorted((ranks[left], ranks[right]) for left, right in halves if left in ranks and right in ranks)
    return found


def generation_config() -> dict[str, Any]:
    """What transformers' generate takes by itself."""
    return {"bos_token_id": ENDOFTEXT, "eos_token_id": list(STOP_TOKENS), "pad_token_id": ENDOFTEXT}
