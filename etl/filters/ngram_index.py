"""The n-grams of benchmark items in one memory-mapped file: builds, writes, opens and searches it.

A *set* is the distinct n-grams of one text of an item (its question or its answer) under one rule. Texts are split by
`etl.filters.ngram_words` and scanned by `etl.filters.ngram_scan`.

Measured with an index of 7,457 items and their answers (4.7 MB of text): one core scans 70 MB a second of text that
holds nothing of them, and 12 to 39 MB of text from their own domain. The index takes 90 MB on disk, which all processes
of a machine share, and 3 CPU-seconds to build.
"""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from etl.arrays import F64, I32, I64, U8, U64, Bools
from etl.filters.ngram_fold import fold, places_before, rows_to_fold
from etl.filters.ngram_scan import Rules, Tables, fill_slots, keys_of_texts, place_keys, scan_texts
from etl.filters.ngram_words import CONTENT, NUMBER, Split, Words, masked, read_only, split_texts, splitter_of
from etl.jit import njit

INDEX_VERSION: Final = 2
"""Increased when the same items would give another index, or the same index other hits."""

LONGEST_NGRAM: Final = 64
"""Largest number of words in an n-gram."""

QUESTION: Final = 1
ANSWER: Final = 2
"""Parts of an item, as bits."""

_BITS_AN_NGRAM: Final = 16
"""Bits of the bitmap for each n-gram in it: one in 16 of all other n-grams passes it and is looked up in vain."""


@dataclass(frozen=True)
class Rule:
    """When a text of an item counts as found: the words of an n-gram, `n`, and how many n-grams must be present."""

    name: str
    n: int
    threshold: float
    near: bool
    masked: bool = False
    """Every number in an n-gram is read as the same; a text must hold all numbers of the item but one."""


def rules_as_arrays(rules: Sequence[Rule]) -> Rules:
    """The rules as the kernels take them."""
    return Rules(
        np.array([rule.n for rule in rules], np.int64),
        np.array([rule.threshold for rule in rules], np.float64),
        np.array([rule.near for rule in rules], np.bool_),
        np.array([rule.masked for rule in rules], np.bool_),
    )


@dataclass(frozen=True)
class Items:
    """Texts of benchmark items, in order."""

    benchmark: pa.StringArray
    item: pa.StringArray
    """Name of the item within its benchmark."""
    part: I32
    """QUESTION or ANSWER."""
    text: pa.StringArray


@dataclass(frozen=True)
class Hits:
    """The hits of a scan, one for each row and set that passes: [hits] each."""

    row: I64
    text: I32
    """Which text of an item."""
    rule: I32
    ratio: F64
    start: I64
    end: I64
    """Bytes of the row's text: the shortest stretch with every n-gram that counted."""


def _set_lengths(rule: Rule, split: Split, part: I32, min_words: int) -> I64:
    """Words of an n-gram of each text under a rule; 0 where the rule does not look for the text."""
    num_words = np.diff(split.bounds)
    worth = CONTENT[split.classes]
    if rule.masked:
        # The part that does not change with the number must be worth as much.
        has_number = _sums(split.classes == NUMBER, split.bounds) > 0
        wanted = has_number & (part == QUESTION) & (_sums(worth, split.bounds) - 1 >= min_words)
    else:
        wanted = (_sums(worth, split.bounds) >= min_words) | ((num_words > 0) & (part == QUESTION) & rule.near)
    return np.where(wanted, np.minimum(num_words, rule.n), 0)


def _sums(values: NDArray[Any], bounds: I64) -> F64:
    """The sum of the values of each text, to a billionth: [texts]."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.round(sums[bounds[1:]] - sums[bounds[:-1]], 9)


def _mostly_numbers(split: Split, lengths: I64, text: I64) -> Bools:
    """Whether more than half the words of an n-gram are numbers, for the n-grams of each text: [n-grams]."""
    before = np.concatenate([[0], np.cumsum(split.classes == NUMBER)])
    start = split.bounds[text] + np.arange(len(text)) - np.searchsorted(text, text)
    return 2 * (before[start + lengths[text]] - before[start]) > lengths[text]


def build(items: Items, rules: Sequence[Rule], words: Words, min_words: int) -> Tables:
    """The tables of some items.

    A text of fewer words than a rule's n is one whole n-gram of its own length. One worth fewer than `min_words` words
    (`CONTENT`) is left to the near rule, which finds it only if a text says nothing else; as an answer it is not looked
    for.

    Returns:
        Tables without any set when no text can be found by any rule.
    """
    split = split_texts(items.text, words)
    num_words = np.diff(split.bounds)
    without_numbers = masked(split.tokens, split.classes)
    keys, owners, found = [], [], []
    masked_lengths = np.zeros(len(num_words), np.int64)
    for number, rule in enumerate(rules):
        lengths = _set_lengths(rule, split, items.part, min_words)
        rule_keys, text = keys_of_texts(without_numbers if rule.masked else split.tokens, split.bounds, lengths)
        if rule.masked:
            telling = ~_mostly_numbers(split, lengths, text)
            rule_keys, text = rule_keys[telling], text[telling]
            lengths = np.where(np.isin(np.arange(len(lengths)), text), lengths, 0)
            masked_lengths = np.maximum(masked_lengths, lengths)
        keys.append(rule_keys)
        owners.append(text * len(rules) + number)
        # A near rule looks for a text of fewer words than n only at the end of a row's text, not at every word.
        found.append(lengths[(lengths > 0) & ~((num_words < rule.n) & rule.near)])
    ngrams, number_of = np.unique(np.concatenate(keys), return_inverse=True)
    sets, set_of = np.unique(np.concatenate(owners), return_inverse=True)
    text, rule_of = np.divmod(sets, len(rules))
    pairs = np.unique(set_of.astype(np.int64) * max(len(ngrams), 1) + number_of)
    pair_set, pair_ngram = np.divmod(pairs, max(len(ngrams), 1))
    sizes = np.bincount(pair_set, minlength=len(sets))
    shares = np.array([rule.threshold for rule in rules])[rule_of]
    needed = np.maximum(np.ceil(shares * sizes - 1e-9), 1).astype(np.int32)
    anchor_offsets, anchors = _anchors(pair_set, pair_ngram, sizes - needed + 1, len(ngrams))
    lengths = np.unique(np.concatenate(found))
    if len(lengths) == 0:
        lengths = np.array([min(rule.n for rule in rules)], np.int64)
    place_offsets, places = _places(split)
    return Tables(
        lengths=lengths,
        bitmap=_bitmap(keys_of_texts(split.tokens, split.bounds, np.full(len(num_words), lengths[0]))[0]),
        masked_lengths=_above_zero(masked_lengths),
        masked_bitmap=_bitmap(_ends_of_masked(without_numbers, split.bounds, masked_lengths)),
        keys=ngrams,
        slots=fill_slots(ngrams, _power_of_two(2 * len(ngrams) + 1)),
        anchor_offsets=anchor_offsets,
        anchors=anchors,
        set_offsets=_offsets(sizes),
        set_ngrams=pair_ngram.astype(np.int32),
        set_text=text.astype(np.int32),
        set_rule=rule_of.astype(np.int32),
        set_needed=needed,
        text_part=items.part,
        text_words=num_words.astype(np.int32),
        place_offsets=place_offsets,
        places=places,
    )


def _above_zero(lengths: I64) -> I64:
    return np.unique(lengths[lengths > 0])


def _ends_of_masked(tokens: U64, bounds: I64, lengths: I64) -> U64:
    """The shortest n-grams of the texts whose masked n-grams are looked for; each masked one ends with one of these."""
    sought = lengths > 0
    return keys_of_texts(tokens, bounds, np.where(sought, np.min(lengths[sought], initial=LONGEST_NGRAM), 0))[0]


@njit
def _places(split: Split) -> tuple[I64, U64]:
    """`place_keys` of each text: offsets [texts + 1], keys."""
    offsets = np.zeros(len(split.bounds), np.int64)
    keys = np.empty(len(split.tokens), np.uint64)
    for text in range(len(offsets) - 1):
        begin, end = split.bounds[text], split.bounds[text + 1]
        own = place_keys(split.tokens[begin:end], split.classes[begin:end])
        offsets[text + 1] = offsets[text] + len(own)
        keys[offsets[text] : offsets[text + 1]] = own
    return offsets, keys[: offsets[-1]].copy()


def _offsets(sizes: I64) -> I64:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 1).bit_length()


def _anchors(pair_set: I64, pair_ngram: I64, num_anchors: I64, num_ngrams: int) -> tuple[I64, I32]:
    """For each n-gram, the sets in which it is one of the rarest: offsets and sets."""
    frequency = np.bincount(pair_ngram, minlength=num_ngrams)
    order = np.lexsort((pair_ngram, frequency[pair_ngram], pair_set))
    first = _offsets(np.bincount(pair_set, minlength=len(num_anchors)))[:-1]
    rank = np.arange(len(order)) - first[pair_set]  # `order` keeps the order of the sets
    chosen = order[rank < num_anchors[pair_set]]
    chosen = chosen[np.argsort(pair_ngram[chosen], kind="stable")]
    counts = np.bincount(pair_ngram[chosen], minlength=num_ngrams)
    return _offsets(counts), pair_set[chosen].astype(np.int32)


def _bitmap(keys: U64) -> U8:
    """A bitmap with the bit set that the leading bits of each key address."""
    num_bits = _power_of_two(max(_BITS_AN_NGRAM * len(keys), 1024))
    shift = np.uint64(64 - (num_bits.bit_length() - 1))
    bits = np.zeros(num_bits, np.uint8)
    bits[(keys >> shift).astype(np.int64)] = 1
    return np.packbits(bits, bitorder="little")


@njit
def _characters_before(data: U8, offsets: I64, rows: I64, positions: I64) -> I64:
    """How many characters of a row's text begin before a given byte: [positions]."""
    out = np.zeros(len(rows), np.int64)
    for i in range(len(rows)):
        for at in range(offsets[rows[i]], offsets[rows[i]] + positions[i]):
            if data[at] & 0xC0 != 0x80:
                out[i] += 1
    return out


def characters_before(texts: pa.StringArray, rows: I64, positions: I64) -> I64:
    """Byte positions in rows of an array as positions in characters (code points): int64 [positions]."""
    return _characters_before(*read_only(texts), rows, positions)


class Index:
    """An index file, memory-mapped.

    Args:
        path: the file that `write` made.
        rules: those that it was built with, in the same order.
        words: how its texts were split.
    """

    def __init__(self, path: Path, rules: Sequence[Rule], words: Words) -> None:
        with pa.memory_map(str(path)) as source:
            batch = pa.ipc.open_file(source).get_batch(0)
        columns = {name: batch.column(name).values for name in batch.schema.names}
        self.benchmark: pa.StringArray = columns.pop("benchmark")
        self.item: pa.StringArray = columns.pop("item")
        self.tables = Tables(**{name: column.to_numpy() for name, column in columns.items()})
        self._rules = rules_as_arrays(rules)
        self._whole_words = max((rule.n for rule in rules if rule.near), default=0)
        self._splitter = splitter_of(words)

    def scan(self, texts: pa.StringArray, parts: int) -> Hits:
        """Which items each text holds.

        Args:
            texts: string [rows], no nulls.
            parts: QUESTION, ANSWER or both (|): which texts of items to look for.

        Returns:
            Hits by row, in no order within a row.
        """
        folded = rows_to_fold(texts)
        data, offsets = read_only(fold(texts, folded))
        found, ratio = scan_texts(data, offsets, parts, self._whole_words, self.tables, self._rules, self._splitter)
        row, chosen, start, end = found.T
        start, end = start - offsets[row], end - offsets[row]
        for number in np.intersect1d(row, folded):
            here = row == number
            start[here], end[here] = places_before(texts[int(number)].as_py(), start[here], end[here])
        return Hits(row, self.tables.set_text[chosen], self.tables.set_rule[chosen], ratio, start, end)


def write(path: Path, items: Items, tables: Tables) -> None:
    """Write an index: one Arrow IPC record batch of one row, a list per table; renamed into place when complete."""
    arrays: dict[str, Any] = {"benchmark": items.benchmark, "item": items.item}
    arrays |= {name: pa.array(array) for name, array in tables._asdict().items()}
    lists = [pa.LargeListArray.from_arrays(pa.array([0, len(array)], pa.int64()), array) for array in arrays.values()]
    batch = pa.record_batch(lists, list(arrays))
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with pa.OSFile(os.fspath(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
