"""The BPE of o200k_base over Arrow strings: gigatoken where it gives tiktoken's tokens, else quicktok.

The choice is made once per process: the tokens of a probe (control-token look-alikes, runs of white space, contractions
and every 61st code point; 10 ms) must have the same digest as tiktoken's. Neither gets texts with a code point of a
later Unicode (etl/harmony/encode.py).

gigatoken gets a whole batch as one buffer, its texts separated by the byte 0xFF, which UTF-8 never contains, and runs
on the calling thread. It has no thread pool, so many workers can share a machine and fork. It is loaded without control
tokens, so `<|endoftext|>` in a text is text. It encodes 65 to 75 MB of fresh text a CPU-second, 6 times as much as
tiktoken; quicktok encodes 27.
"""

import functools
import hashlib
import logging
import resource
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from etl.arrays import I32, I64
from etl.errors import ConfigError
from etl.harmony.unassigned import is_unassigned
from etl.harmony.vocabulary import CONTROL_TOKENS, DEFAULT_VOCABULARY, load_bpe, vocabulary_file

_log = logging.getLogger(__name__)
_STATM: Final = Path("/proc/self/statm")

CACHE_BYTES: Final = 256 << 20
"""gigatoken 0.10 remembers every piece of text that it has seen. A byte of English costs half a byte and ever less,
one of Chinese six, one of random letters ten. When its calls have made the process grow by this much, it is made
anew (0.3 CPU-seconds)."""

PROBE_SHA256: Final = "0363c3bd76414cf8cc465bc35533c9706c945b6a86e927b361ca078f3cdf7b2a"
"""`digest` of the tokens that tiktoken gives for `probe()`."""


class Bpe(Protocol):
    """Encodes text as ordinary text: what looks like a control token is none."""

    def encode_batch(self, texts: pa.Array) -> tuple[I32, I64]:
        """Flat tokens, and offsets [texts + 1]; string or large_string without nulls."""


@functools.cache
def load_fast_bpe(uri: str = DEFAULT_VOCABULARY) -> Bpe:
    """The faster of those that give tiktoken's tokens for the probe.

    Raises:
        ConfigError: neither does.
    """
    texts = probe()
    for make in (Gigatoken, Quicktok):
        bpe = make(uri) if make.is_usable() else None
        if bpe is not None and digest(*bpe.encode_batch(texts)) == PROBE_SHA256:
            return bpe
        _log.warning("%s is not used: it does not work here, or its tokens differ from tiktoken's", make.__name__)
    raise ConfigError(
        "the tokens of gigatoken and quicktok differ from tiktoken's; install the versions in requirements.lock"
    )


class Gigatoken:
    """gigatoken on the calling thread, made anew when its memory has grown by more than CACHE_BYTES."""

    def __init__(self, uri: str) -> None:
        self._path = vocabulary_file(uri)
        self._renew()

    @staticmethod
    def is_usable() -> bool:
        """Whether it is installed and Linux reports the size of the process, which is needed to bound its memory."""
        return find_spec("gigatoken") is not None and _STATM.exists()

    def encode_batch(self, texts: pa.Array) -> tuple[I32, I64]:
        """As `Bpe.encode_batch`. Checks that the texts are UTF-8, on which gigatoken relies."""
        texts.validate(full=True)
        lengths = np.zeros(len(texts), np.int64)
        is_full = pc.binary_length(texts).to_numpy(zero_copy_only=False) > 0
        before = _resident_bytes()
        tokens, lengths[is_full] = self._encode(_joined(texts))
        self._grown += max(0, _resident_bytes() - before - tokens.nbytes)
        if self._grown > CACHE_BYTES:
            self._renew()
        return tokens, np.concatenate([[0], np.cumsum(lengths)])

    def _renew(self) -> None:
        from gigatoken import Tokenizer

        self._bpe: Any = Tokenizer.from_tiktoken(self._path, "o200k", special_tokens={})
        self._grown = 0

    def _encode(self, data: bytes) -> tuple[I32, I64]:
        """The tokens of all non-empty texts, and their counts; a copy, since gigatoken's buffer is larger."""
        from gigatoken import BytesSource

        ragged = self._bpe.encode_batch(BytesSource(data, b"\xff"), parallel=False).layout
        return ragged.content.data.astype(np.int32), np.diff(ragged.offsets.data)


class Quicktok:
    """quicktok on the calling thread."""

    def __init__(self, uri: str) -> None:
        self._bpe = load_bpe(uri)

    @staticmethod
    def is_usable() -> bool:
        return True

    def encode_batch(self, texts: pa.Array) -> tuple[I32, I64]:
        """As `Bpe.encode_batch`."""
        tokens, offsets = self._bpe.encode_batch(texts.to_pylist(), threads=1)
        return tokens.view(np.int32), offsets


def digest(tokens: I32, offsets: I64) -> str:
    """SHA-256 of tokens as little-endian int32, with each text's count before its tokens."""
    counted = np.insert(tokens, offsets[:-1], np.diff(offsets))
    return hashlib.sha256(counted.astype("<i4").tobytes()).hexdigest()


def probe() -> pa.Array:
    """large_string: texts on which encoders of o200k_base are known to differ."""
    named = [*CONTROL_TOKENS.values(), "<|fim_prefix|>", "<|endofprompt|>", "<|reserved_200001|>"]
    looks = [text for name in named for text in (name, f"a{name}b", f" {name}\n{name}", name[:-1], f"<|{name}|>")]
    blanks = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2003\u2009\u2028\u2029\u202f\u205f\u3000"
    runs = [
        a * n + b * m + end for a in blanks for b in blanks for n, m in ((1, 1), (3, 2)) for end in ("", "x", "1", "!")
    ]
    words = [
        "it's IT'S 'll don'T x'ſ we'd've",
        "1234567 ٣٤٥٦ Ⅷ½",
        "e\u0301\u0301'm HTTPResponse ǅungla日本語Def",
        "/\n//\r\n!\n/",
    ]
    long = [unit * 3000 for unit in ("a", " ", "\n", "日", "aB", "!é", "\t ")]
    codes = np.array([code for code in range(0, 0x30000, 61) if not 0xD800 <= code < 0xE000], np.uint32)
    chars = codes[~is_unassigned(codes)].astype("<u4").tobytes().decode("utf-32-le")
    classes = ["".join(f"{c}'s\nx{c}456\nx {c}\nx" for c in chars)]
    return pa.array([*looks, *runs, *words, *long, *classes, ""], pa.large_string())


def _joined(texts: pa.Array) -> bytes:
    """All texts joined by the byte 0xFF."""
    binary = pa.large_binary()
    whole = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts.cast(binary))
    joined: bytes = pc.binary_join(whole, pa.scalar(b"\xff", binary))[0].as_py()
    return joined


def _resident_bytes() -> int:
    """Resident memory of this process, as Linux reports it (10 µs)."""
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()
