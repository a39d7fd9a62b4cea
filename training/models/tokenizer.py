"""Refuses a teacher whose token ids differ from the corpus's: all 199,998 text tokens and the control tokens.

What is compared is the tokenizer.json beside the teacher's weights with the o200k vocabulary that rendered the corpus;
nothing is encoded. Half a second.
"""

import json
from pathlib import Path
from typing import Any

from etl.errors import ConfigError
from etl.harmony.vocabulary import CONTROL_TOKENS, NUM_TEXT_TOKENS, VOCAB_SIZE, load_bpe


def check_tokenizer(folder: Path) -> None:
    """Compare a teacher's tokenizer with the corpus's.

    Args:
        folder: a transformers model, or its tokenizer alone; a config.json, where there is one, must have room for
            every id.

    Raises:
        ConfigError: there is no tokenizer.json, or some id means something else there.
    """
    theirs = _tokens(folder)
    ours = harmony_tokens()
    wrong = next((token for token in ours if theirs.get(token) != ours[token]), None)
    if wrong is not None:
        raise ConfigError(
            f"the tokenizer of the teacher {folder} has {len(theirs):,} tokens, that of the corpus (o200k_harmony) "
            f"{VOCAB_SIZE:,}, and token {wrong} is {theirs.get(wrong)!r} there and {ours[wrong]!r} here; a teacher "
            "must share the student's tokenizer"
        )
    config = folder / "config.json"
    vocab_size = json.loads(config.read_text("utf-8")).get("vocab_size") if config.is_file() else None
    if vocab_size is not None and vocab_size <= max(ours):
        raise ConfigError(
            f"the teacher {folder} has logits for {vocab_size:,} tokens, the corpus's vocabulary has {VOCAB_SIZE:,} "
            f"(ids up to {max(ours):,} in use); a teacher must share the student's tokenizer"
        )


def harmony_tokens() -> dict[int, str]:
    """Every token that a row of a corpus may hold: byte-level text of text tokens, and the control tokens."""
    bpe = load_bpe()
    letters = byte_letters()
    text = {i: "".join(letters[b] for b in bpe.decode_single_token_bytes(i)) for i in range(NUM_TEXT_TOKENS)}
    return text | CONTROL_TOKENS


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte in the vocabulary of a byte-level BPE: 256 letters."""
    own = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in own]
    moved = {byte: chr(256 + place) for place, byte in enumerate(others)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]


def _tokens(folder: Path) -> dict[int, str]:
    """Token strings by id from a tokenizer.json."""
    path = folder / "tokenizer.json"
    try:
        stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
        vocab = stored["model"]["vocab"]
        items = vocab.items() if isinstance(vocab, dict) else ((item[0], place) for place, item in enumerate(vocab))
        tokens = {int(token): str(text) for text, token in items}
        return tokens | {int(item["id"]): str(item["content"]) for item in stored.get("added_tokens", ())}
    except FileNotFoundError as error:
        raise ConfigError(
            f"the teacher {folder} has no tokenizer.json, so it is unknown whether its token ids are the corpus's; "
            "put the model's tokenizer.json there"
        ) from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{path} is not a tokenizer.json: {type(error).__name__}: {error}") from error
