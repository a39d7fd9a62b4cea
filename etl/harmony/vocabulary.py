"""The o200k_base vocabulary, found offline and checked, and the tokenizers that use it.

The ranks come from the package bpe-openai (or from a file that the recipe names) and must have the digest of OpenAI's
own file. `load_encoding` gives openai-harmony's renderer and parser, for which the environment names the file only
while it loads (0.25 CPU-seconds). `load_bpe` gives quicktok, which decodes; it contains the ranks itself, and they are
checked against the same digest (0.6). `load_merges` gives tiktoken's merges (0.35). Each is loaded once per process.
etl/harmony/encode.py encodes text.
"""

import base64
import contextlib
import functools
import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from etl.artefacts import fetch
from etl.errors import ConfigError

if TYPE_CHECKING:
    from openai_harmony import HarmonyEncoding
    from quicktok import Tokenizer
    from tiktoken import Encoding

DEFAULT_VOCABULARY: Final = "package:bpe_openai/data/o200k_base.tiktoken.gz#gunzip"
VOCABULARY_SHA256: Final = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
"""Digest of o200k_base.tiktoken, 3,613,922 bytes; tiktoken and openai-harmony check the same value."""

NUM_TEXT_TOKENS: Final = 199_998
"""Ids below are text; the control tokens follow, to 201,087."""

VOCAB_SIZE: Final = 201_088
"""Size of o200k_harmony, including padding."""

ENDOFTEXT: Final = 199_999
RETURN: Final = 200_002
CONSTRAIN: Final = 200_003
CHANNEL: Final = 200_005
START: Final = 200_006
END: Final = 200_007
MESSAGE: Final = 200_008
CALL: Final = 200_012

CONTROL_TOKENS: Final = {
    ENDOFTEXT: "<|endoftext|>",
    RETURN: "<|return|>",
    CONSTRAIN: "<|constrain|>",
    CHANNEL: "<|channel|>",
    START: "<|start|>",
    END: "<|end|>",
    MESSAGE: "<|message|>",
    CALL: "<|call|>",
}
"""The spelling of the control tokens that a rendered row can contain."""

CONTROL_MARK: Final = re.compile(
    r"<\|(?:startoftext|endoftext|return|constrain|channel|start|end|message|call|reserved_\d+)\|>"
)
"""A control token's spelling; in the text of a row, it is ordinary letters."""

_environment_lock = threading.Lock()


def vocabulary_file(uri: str = DEFAULT_VOCABULARY) -> Path:
    """The local path of the ranks, one `base64-of-token rank` per line.

    Raises:
        ConfigError: the package or file is missing, or is not o200k_base.
    """
    try:
        return fetch(uri, VOCABULARY_SHA256)
    except ConfigError as error:
        raise ConfigError(
            f"the o200k_base vocabulary cannot be used: {error}. Install the Python package bpe-openai, or "
            "set harmony.vocabulary to the path or URL of an o200k_base.tiktoken file"
        ) from error


@functools.cache
def load_encoding(uri: str = DEFAULT_VOCABULARY) -> "HarmonyEncoding":
    """openai-harmony's HARMONY_GPT_OSS encoding, made without the network."""
    from openai_harmony import HarmonyEncodingName, load_harmony_encoding

    with _encodings_base(vocabulary_file(uri)):
        return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


@contextlib.contextmanager
def _encodings_base(path: Path) -> Iterator[None]:
    """Inside, TIKTOKEN_ENCODINGS_BASE is a folder that has the file under the name that openai-harmony expects."""
    name = "TIKTOKEN_ENCODINGS_BASE"
    with _environment_lock, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "o200k_base.tiktoken").symlink_to(path)
        before = os.environ.get(name)
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


@functools.cache
def load_merges(uri: str = DEFAULT_VOCABULARY) -> "Encoding":
    """A tiktoken encoding that treats each text as one piece: it only merges, without cutting by a pattern."""
    from tiktoken import Encoding

    lines = vocabulary_file(uri).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    return Encoding("one piece", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})


@functools.cache
def load_bpe(uri: str = DEFAULT_VOCABULARY) -> "Tokenizer":
    """quicktok's o200k_base, whose ranks are those of the vocabulary file.

    For turning tokens into text. etl/harmony/encode.py encodes text, since quicktok cuts the code points of the newest
    Unicode differently from openai-harmony, and is not the fastest.

    Raises:
        ConfigError: the installed quicktok contains other ranks.
    """
    import quicktok

    path = vocabulary_file(uri)
    bpe = quicktok.get_encoding("o200k_base")
    token = bpe.decode_single_token_bytes
    ranks = b"".join(b"%b %d\n" % (base64.b64encode(token(i)), i) for i in range(NUM_TEXT_TOKENS))
    if hashlib.sha256(ranks).hexdigest() != VOCABULARY_SHA256:
        raise ConfigError(
            f"quicktok {quicktok.__version__} does not have the ranks of {path}; install the version in "
            "requirements.lock"
        )
    return bpe
