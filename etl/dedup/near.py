"""Configuration of near dedup: how rows are compared, how candidates are found, and when a pair is a duplicate.

Everything here works on arrays in memory; etl.stages.dedup.near carries it through shuffles, etl.dedup.in_memory does
without. A set of 64-bit shingle hashes takes 8 bytes a shingle, about as much as the text.
"""

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field, model_validator

from etl.arrays import I64, U32, U64, Bools
from etl.config import Config
from etl.dedup.candidates import CandidateStream
from etl.dedup.minhash import (
    band_hashes,
    choose_bands,
    estimate_pairs,
    most_disagreement,
    signatures,
    sketches,
)
from etl.dedup.shingles import mean_ngram, plain_ngrams, token_ngrams
from etl.dedup.signs import sign_digests
from etl.dedup.verify import jaccard_pairs
from etl.errors import ConfigError
from etl.text import distinct_hashes

Sets = tuple[I64, U64]
"""Offsets int64 [rows + 1] and hashes uint64: the set (or n-grams) of row r is hashes[offsets[r] : offsets[r + 1]]."""

ESTIMATE_BITS: Final = 8
"""Bits of a signature's entry in the sketches that `verify: estimate` compares."""
_CHARS_PER_WORD: Final = 6.0


class NearDedup(Config):
    """Rows whose n-gram sets have a Jaccard similarity of at least `threshold`; `dedup.survivor` decides which is kept.

    Candidates share one of `bands` bands of `rows` MinHash values, and most bits of a sketch; then they are verified.
    """

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Smallest Jaccard similarity of near duplicates."""
    unit: Literal["auto", "word", "char", "token"] = "auto"
    """What an n-gram is made of. auto: characters in scripts without spaces, tokens with their signs in code and maths,
    words elsewhere. word: `\\w+`. char: the characters of the words joined by single spaces. token: words, characters
    of scripts without spaces, and each visible sign."""
    ngram: int = Field(default=5, ge=1)
    """Length of an n-gram; auto and token use shorter ones in short texts (etl/dedup/shingles.py)."""
    num_perm: int = Field(default=128, ge=1)
    """Values in a MinHash signature."""
    bands: int | None = Field(default=None, ge=1)
    """Number of bands; give it with `rows`, or leave both to `recall`."""
    rows: int | None = Field(default=None, ge=1)
    """Signature values per band; null (both) chooses the longest bands that reach `recall`."""
    recall: float = Field(default=0.998, gt=0, lt=1)
    """Probability that a pair at the threshold shares a band; decides `bands` and `rows` if they are null."""
    seed: int = 1
    """Seed of the hash functions."""
    max_partners: int = Field(default=64, ge=1)
    """Largest number of rows of a band that a row is compared with; keeps the cost of a band with millions of rows
    linear."""
    verify: Literal["exact", "estimate"] = "exact"
    """exact: compare the n-gram sets. estimate: compare the signatures, which is cheaper and accurate to about 0.04."""
    clusters: Literal["components", "survivor"] = "components"
    """Which rows of a connected component are dropped: all but the survivor, or only those similar to it."""
    num_canaries: int = Field(default=1000, ge=0)
    """Number of edited copies of rows with which the run measures its recall; 0: none."""

    @property
    def banding(self) -> tuple[int, int]:
        """Bands and rows of a band."""
        if self.bands is not None and self.rows is not None:
            return self.bands, self.rows
        return choose_bands(self.threshold, self.num_perm, self.recall)

    @property
    def num_words(self) -> int:
        """64-bit words of a one-bit sketch."""
        return -(-self.num_perm // 64)

    def ngrams(self, texts: pa.Array, formal: Bools | None = None) -> Sets:
        """The hashed n-grams of each text, in text order and with repeats: enough for its signature.

        Args:
            texts: string or large_string [rows].
            formal: bool [rows], which texts are code or maths; null: none. Only `auto` uses it.
        """
        if self.unit in ("word", "char"):
            return plain_ngrams(texts, self.ngram, self.unit == "char")
        return token_ngrams(texts, self.ngram, self.signed(len(texts), formal))

    def shingles(self, texts: pa.Array, formal: Bools | None = None) -> Sets:
        """The shingle set of each text: its n-grams, each once; arguments as for `ngrams`."""
        return distinct_hashes(*self.ngrams(texts, formal))

    def sign_digests(self, texts: pa.Array, formal: Bools | None = None) -> tuple[I64, I64]:
        """The digests that reveal pairs of texts which differ only in signs (etl.dedup.signs): int64 [rows] twice."""
        return sign_digests(texts, self.signed(len(texts), formal))

    def signed(self, num_rows: int, formal: Bools | None) -> Bools:
        """Which rows are compared with their signs, bool [rows]."""
        if self.unit == "auto" and formal is not None:
            return formal
        return np.full(num_rows, self.unit == "token")

    def tokens_of_ngram(self, num_tokens: int) -> float:
        """Tokens that an n-gram covers, on average, in a text of this many (etl.dedup.shingles)."""
        if self.unit == "word":
            return self.ngram
        if self.unit == "char":
            return 1 + self.ngram / _CHARS_PER_WORD
        return mean_ngram(num_tokens, self.ngram)

    def compared(self, sets: Sets) -> Sets:
        """The form of each shingle set that verification compares: the set, or its sketch."""
        if self.verify == "exact":
            return sets
        words = sketches(signatures(*sets, self.num_perm, self.seed), ESTIMATE_BITS)
        return np.arange(len(words) + 1, dtype=np.int64) * words.shape[1], words.ravel()

    def similarity(self, sets: Sets, left: I64, right: I64) -> npt.NDArray[np.float64]:
        """The Jaccard similarity of pairs of results of `compared`, exact or estimated: float64 [pairs]."""
        if self.verify == "exact":
            return jaccard_pairs(*sets, left, right)
        num_words = -(-self.num_perm * ESTIMATE_BITS // 64)
        return estimate_pairs(sets[1].reshape(-1, num_words), self.num_perm, ESTIMATE_BITS, left, right)

    def is_duplicate(self, jaccard: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Whether similarities reach the threshold; 4/5 counts as 0.8, however the division rounds."""
        return jaccard >= self.threshold - 1e-12

    def bands_of(self, signature: U32) -> I64:
        """The band hashes of signatures: int64 [rows, bands]."""
        return band_hashes(signature, *self.banding)

    def candidate_stream(self) -> CandidateStream:
        """An empty stream of candidates."""
        # The average number of differing bits at the threshold: at least half of the similar pairs count as similar.
        similar = int(self.num_perm * (1 - self.threshold) / 2)
        most = most_disagreement(self.threshold, self.num_perm)
        return CandidateStream(self.max_partners, most, similar, self.num_words)

    @model_validator(mode="after")
    def _fits(self) -> "NearDedup":
        if (self.bands is None) != (self.rows is None):
            raise ValueError("give both bands and rows, or neither, to have them chosen for the threshold")
        try:
            bands, rows = self.banding
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if bands * rows > self.num_perm:
            raise ValueError(
                f"{bands} bands of {rows} rows need {bands * rows} permutations, but num_perm is {self.num_perm}; "
                "lower bands or rows, or raise num_perm"
            )
        return self
