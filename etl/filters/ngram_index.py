"""The n-grams of benchmark items in one memory-mapped file, and the kernels that look for them in rows of text.

A *set* is the distinct n-grams of one text of an item (its question or its answer) under one rule. Three things make a
scan cheap and exact. A bitmap holds the shortest n-grams of all items: a word of a row that ends none of them costs one
hash and one bit. A hash table gives each n-gram of an item its number. And a set is named as a candidate only by its
rarest n-grams, as many as a text that passes the rule cannot all lack (size − needed + 1), so that what every item says
("write a function to") names nobody; a candidate is then counted exactly. There is no sampling and no estimate: every
set that passes is found.

Words are those of `etl.text` (`\\w+` of the lower-cased text, on Arrow's buffers), with the options of `Words`.
Measured with an index of 7,457 items and their answers (4.7 MB of text): one core passes 130 MB a second of text that
has nothing of them, 16 to 66 MB of their own domain; the index takes 84 MB on disk, which all processes of a machine
share, and 3 CPU-seconds to build.
"""

import functools
import os
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.arrays import F64, I32, I64, U8, U32, U64
from etl.hashing import binary_buffers, xxh64_u64
from etl.jit import njit
from etl.text import decode, word_table

Int = int | np.signedinteger[Any]

INDEX_VERSION: Final = 1
"""Raised when the same items would give another index, or the same index other hits."""

LONGEST_NGRAM: Final = 64
"""Most words of an n-gram."""

QUESTION: Final = 1
ANSWER: Final = 2
"""Parts of an item, as bits."""

_TOKEN_START: Final = np.uint64(0x2545F4914F6CDD1D)
_TOKEN_MULTIPLIER: Final = np.uint64(0xD6E8FEB86659FD93)  # odd, with well spread bits
_NGRAM_BASE: Final = np.uint64(0xA0761D6478BD642D)  # odd, 5 modulo 8: its powers are distinct modulo 2^62
_ROOM: Final = 1024
"""Entries for which a buffer has room at first; it doubles when it is full."""
_CODE: Final = 0x1FFFFF
_DIGIT: Final = 1 << 31
_BACKSLASH: Final = 0x5C
_ZERO: Final = np.uint64(0x30)
_BITS_AN_NGRAM: Final = 16
"""Bits of the bitmap for each n-gram in it: one in 16 of other n-grams passes it and is looked up for nothing."""

_LAYOUT: Final = """
left right middle big bigl bigr bigm bigg biggl biggr biggm quad qquad displaystyle textstyle scriptstyle limits
nolimits text textrm textbf textit mathrm mathbf mathit mbox hbox operatorname
"""
"""LaTeX commands that change how a formula looks, not what it says; names are compared in lower case."""
_FRACTIONS: Final = ("frac", "dfrac", "tfrac", "cfrac")


class Splitter(NamedTuple):
    """What the kernels need to find words."""

    table: U32
    """Lower-case code point of a word character, with the bit 2^31 for a digit; 0 for all else: [2^21]."""
    layout: U64
    """Hashes of the commands that are passed over."""
    fractions: U64
    """Hashes of `frac` and its other sizes."""
    latex: bool
    mask_numbers: bool


@dataclass(frozen=True)
class Words:
    """How a text becomes words.

    Without options they are `re.findall(r"\\w+", text.lower())`, except that `İ` is read as `i` and both forms of the
    small sigma as one.
    """

    latex: bool
    """LaTeX is read for what it says: `_` and a change between letters and digits end a word, `\\name` is a word of
    its own, commands of layout (`\\left`, `\\text`, `\\quad` …) and `\\\\` are passed over, `\\dfrac` is `\\frac`."""
    mask_numbers: bool
    """Every number, `\\d+([.,]\\d+)*`, is read as `0`."""


@functools.cache
def _splitter(words: Words) -> Splitter:
    """The tables of the kernels; 0.2 s once a process."""
    table = word_table()[0].copy()
    table[ord("İ")] = ord("i")
    table[[ord("Σ"), ord("ς")]] = ord("σ")
    if words.latex:
        table[ord("_")] = 0
    table[[code for code in range(sys.maxunicode + 1) if chr(code).isdecimal()]] |= np.uint32(_DIGIT)
    layout = np.array([_word_hash(name) for name in _LAYOUT.split()], np.uint64)
    fractions = np.array([_word_hash(name) for name in _FRACTIONS], np.uint64)
    return Splitter(table, layout, fractions, words.latex, words.mask_numbers)


@njit
def _mix(token: np.uint64, code: np.uint64) -> np.uint64:
    token = (token ^ code) * _TOKEN_MULTIPLIER
    return token ^ (token >> np.uint64(32))


@njit
def _hash_codes(codes: U64) -> np.uint64:
    token = _TOKEN_START
    for code in codes:
        token = _mix(token, code)
    return token


def _word_hash(word: str) -> np.uint64:
    return _hash_codes(np.array([ord(letter) for letter in word], np.uint64))


@njit
def _is_ascii_letter(code: Int) -> bool:
    return bool(65 <= code <= 90 or 97 <= code <= 122)


@njit
def _number_end(data: U8, at: int, end: int, table: U32) -> int:
    """Where the number ends whose first digit stands before `at`."""
    while at < end:
        code, after = decode(data, at, end)
        if table[code] & _DIGIT:
            at = after
            continue
        if (code != 46 and code != 44) or after >= end:
            return at
        code, after = decode(data, after, end)
        if not table[code] & _DIGIT:
            return at
        at = after
    return at


class Row(NamedTuple):
    """The words of one text, with room for more: uint64, int64, int64 [room]."""

    tokens: U64
    """Hashes of the words."""
    starts: I64
    ends: I64
    """Bytes [start, end) of each word."""


@njit
def _empty_row(room: int) -> Row:
    return Row(np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64))


@njit
def _write_words(data: U8, at: int, end: int, splitter: Splitter, row: Row) -> int:
    """Write the words of data[at:end] into `row`, as many as there is room for; how many there are."""
    table, latex, mask = splitter.table, splitter.latex, splitter.mask_numbers
    tokens, starts, ends = row.tokens, row.starts, row.ends
    num_words = 0
    while at < end:
        start = at
        code, at = decode(data, at, end)
        command = False
        if latex and code == _BACKSLASH and at < end:
            if data[at] == _BACKSLASH:
                at += 1
                continue
            if _is_ascii_letter(data[at]):
                command = True
                code, at = decode(data, at, end)
        letter = np.int64(table[code])
        if letter == 0:
            continue
        numeric = letter & _DIGIT
        token = _TOKEN_START
        while True:
            if mask and letter & _DIGIT:
                token = _mix(token, _ZERO)
                at = _number_end(data, at, end, table)
            else:
                token = _mix(token, np.uint64(letter & _CODE))
            if at >= end:
                break
            code, after = decode(data, at, end)
            letter = np.int64(table[code])
            if letter == 0 or (latex and letter & _DIGIT != numeric) or (command and not _is_ascii_letter(code)):
                break
            at = after
        if command:
            if _is_one_of(token, splitter.layout):
                continue
            if _is_one_of(token, splitter.fractions):
                token = splitter.fractions[0]
        if num_words < len(tokens):
            tokens[num_words], starts[num_words], ends[num_words] = token, start, at
        num_words += 1
    return num_words


@njit
def _split(data: U8, at: int, end: int, splitter: Splitter, row: Row) -> tuple[Row, int]:
    """The words of data[at:end] in `row`, or in a larger one where they need it, and how many there are.

    The loop over words only counts those that have no room: with an array that can grow it runs at a fourth of the
    speed.
    """
    num_words = _write_words(data, at, end, splitter, row)
    if num_words > len(row.tokens):
        row = _empty_row(2 * num_words)
        _write_words(data, at, end, splitter, row)
    return row, num_words


@njit
def _is_one_of(token: np.uint64, tokens: U64) -> bool:
    for each in tokens:  # noqa: SIM110  # a generator would not compile
        if token == each:
            return True
    return False


@njit
def _split_all(data: U8, offsets: I64, splitter: Splitter) -> tuple[U64, I64]:
    """Hashes of the words of each text, and where those of each begin: [words], [texts + 1]."""
    tokens = np.empty((offsets[-1] - offsets[0]) + 1, np.uint64)  # a word takes a byte at least
    bounds = np.zeros(len(offsets), np.int64)
    row = _empty_row(_ROOM)
    for text in range(len(offsets) - 1):
        row, num_words = _split(data, offsets[text], offsets[text + 1], splitter, row)
        bounds[text + 1] = bounds[text] + num_words
        tokens[bounds[text] : bounds[text + 1]] = row.tokens[:num_words]
    return tokens[: bounds[-1]].copy(), bounds


@njit
def _ngram_key(words: U64, start: int, length: int) -> np.uint64:
    """The hash of `length` words from `start` on."""
    value = np.uint64(0)
    for i in range(start, start + length):
        value = value * _NGRAM_BASE + words[i]
    return xxh64_u64(value, np.uint64(length))


@njit
def _keys_of_texts(words: U64, bounds: I64, lengths: I64) -> tuple[U64, I64]:
    """Every n-gram of each text, n = lengths[text] (0 for a text without any): keys and the text of each."""
    size = 0
    for text in range(len(lengths)):
        if lengths[text] > 0:
            size += max(0, bounds[text + 1] - bounds[text] - lengths[text] + 1)
    keys = np.empty(size, np.uint64)
    owner = np.empty(size, np.int64)
    size = 0
    for text in range(len(lengths)):
        if lengths[text] > 0:
            for start in range(bounds[text], bounds[text + 1] - lengths[text] + 1):
                keys[size] = _ngram_key(words, start, lengths[text])
                owner[size] = text
                size += 1
    return keys, owner


@njit
def _fill_slots(keys: U64, num_slots: int) -> I32:
    """An open-addressing table from a key to its position in `keys`; −1 is an empty slot: [num_slots]."""
    slots = np.full(num_slots, -1, np.int32)
    for number in range(len(keys)):
        slot = np.int64(keys[number] & np.uint64(num_slots - 1))
        while slots[slot] >= 0:
            slot = (slot + 1) & (num_slots - 1)
        slots[slot] = number
    return slots


class Tables(NamedTuple):
    """The arrays of an index. G n-grams, S sets, T texts of items."""

    lengths: I64
    """Words of the n-grams that are looked for, ascending; the bitmap holds those of lengths[0]."""
    bitmap: U8
    """One bit for each value of a key's leading bits."""
    keys: U64
    """The n-grams, ascending; an n-gram's number is its place here."""
    slots: I32
    """Open-addressing table from a key to its number; −1 for an empty slot."""
    anchor_offsets: I64
    anchors: I32
    """The sets that an n-gram names as candidates: anchors[anchor_offsets[g]:anchor_offsets[g + 1]]."""
    set_offsets: I64
    set_ngrams: I32
    """The n-grams of each set, ascending."""
    set_text: I32
    set_rule: I32
    set_needed: I32
    """Fewest of its n-grams that a text must hold."""
    text_part: I32
    """QUESTION or ANSWER."""
    text_words: I32
    """Words of the text."""


class Rules(NamedTuple):
    """The rules as arrays, in the order in which they are preferred: [rules] each."""

    n: I64
    threshold: F64
    """Share of a set's n-grams that a text must hold; of a near rule, the least Jaccard similarity."""
    near: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """When a text of an item counts as found: `n` words an n-gram, and how many n-grams must be there."""

    name: str
    n: int
    threshold: float
    near: bool


def rules_as_arrays(rules: Sequence[Rule]) -> Rules:
    """The rules as the kernels take them."""
    return Rules(
        np.array([rule.n for rule in rules], np.int64),
        np.array([rule.threshold for rule in rules], np.float64),
        np.array([rule.near for rule in rules], np.bool_),
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
    """What a scan found, one entry for each row and set that passes: [hits] each."""

    row: I64
    text: I32
    """Which text of an item."""
    rule: I32
    ratio: F64
    start: I64
    end: I64
    """Bytes of the row's text: the shortest stretch with every n-gram that counted."""


def _set_lengths(rule: Rule, words: I64, part: I32, min_words: int) -> I64:
    """Words of an n-gram of each text under a rule; 0 where the rule does not look for the text."""
    wanted = (words >= min_words) | ((words > 0) & (part == QUESTION) & rule.near)
    return np.where(wanted, np.minimum(words, rule.n), 0)


def build(items: Items, rules: Sequence[Rule], words: Words, min_words: int) -> Tables:
    """The tables of some items.

    A text of fewer words than a rule's n is one whole n-gram of its own length. One of fewer than `min_words` words is
    left to the near rule, which finds it only where it is all that a text says; as an answer it is not looked for.

    Returns:
        Tables without any set when no text can be found by any rule.
    """
    tokens, bounds = _split_array(items.text, words)
    num_words = np.diff(bounds)
    keys, owners, found = [], [], []
    for number, rule in enumerate(rules):
        lengths = _set_lengths(rule, num_words, items.part, min_words)
        rule_keys, text = _keys_of_texts(tokens, bounds, lengths)
        keys.append(rule_keys)
        owners.append(text * len(rules) + number)
        # A near rule looks for a text of fewer words than n where it ends a row's text, not at every word.
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
    return Tables(
        lengths=lengths,
        bitmap=_bitmap(_keys_of_texts(tokens, bounds, np.full(len(num_words), lengths[0]))[0]),
        keys=ngrams,
        slots=_fill_slots(ngrams, _power_of_two(2 * len(ngrams) + 1)),
        anchor_offsets=anchor_offsets,
        anchors=anchors,
        set_offsets=_offsets(sizes),
        set_ngrams=pair_ngram.astype(np.int32),
        set_text=text.astype(np.int32),
        set_rule=rule_of.astype(np.int32),
        set_needed=needed,
        text_part=items.part,
        text_words=num_words.astype(np.int32),
    )


def _split_array(texts: pa.StringArray, words: Words) -> tuple[U64, I64]:
    data, offsets = _read_only(texts)
    return _split_all(data, offsets, _splitter(words))


def _read_only(texts: pa.StringArray) -> tuple[U8, I64]:
    """Bytes and offsets; numba compiles once for bytes that cannot be written and once for others."""
    data, offsets = binary_buffers(texts)
    view = data.view()
    view.flags.writeable = False
    return view, offsets


def _offsets(sizes: I64) -> I64:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 1).bit_length()


def _anchors(pair_set: I64, pair_ngram: I64, num_anchors: I64, num_ngrams: int) -> tuple[I64, I32]:
    """For each n-gram the sets of which it is one of the rarest: offsets and sets."""
    frequency = np.bincount(pair_ngram, minlength=num_ngrams)
    order = np.lexsort((pair_ngram, frequency[pair_ngram], pair_set))
    first = _offsets(np.bincount(pair_set, minlength=len(num_anchors)))[:-1]
    rank = np.arange(len(order)) - first[pair_set]  # order keeps the sets in their order
    chosen = order[rank < num_anchors[pair_set]]
    chosen = chosen[np.argsort(pair_ngram[chosen], kind="stable")]
    counts = np.bincount(pair_ngram[chosen], minlength=num_ngrams)
    return _offsets(counts), pair_set[chosen].astype(np.int32)


def _bitmap(keys: U64) -> U8:
    """Bits at the leading bits of each key."""
    num_bits = _power_of_two(max(_BITS_AN_NGRAM * len(keys), 1024))
    shift = np.uint64(64 - (num_bits.bit_length() - 1))
    bits = np.zeros(num_bits, np.uint8)
    bits[(keys >> shift).astype(np.int64)] = 1
    return np.packbits(bits, bitorder="little")


@njit
def _look_up(key: np.uint64, keys: U64, slots: I32) -> Int:
    """The number of an n-gram; −1 for one that no item has."""
    last = len(slots) - 1
    slot = np.int64(key & np.uint64(last))
    while slots[slot] >= 0:
        if keys[slots[slot]] == key:
            return np.int64(slots[slot])
        slot = (slot + 1) & last
    return np.int64(-1)


@njit
def _grown(rows: I64) -> I64:
    out = np.empty((2 * rows.shape[0], rows.shape[1]), np.int64)
    out[: rows.shape[0]] = rows
    return out


@njit
def _count_distinct(tokens: U64, n: int) -> int:
    """Distinct n-grams of a text; a text of fewer words has one."""
    if len(tokens) < n:
        return min(len(tokens), 1)
    keys = np.empty(len(tokens) - n + 1, np.uint64)
    for i in range(len(keys)):
        keys[i] = _ngram_key(tokens, i, n)
    keys.sort()
    distinct = 1
    for i in range(1, len(keys)):
        if keys[i] != keys[i - 1]:
            distinct += 1
    return distinct


@njit
def _count_shared(ngrams: I32, numbers: I64) -> int:
    """How many of a set's n-grams a row has; `numbers` is ascending and may repeat."""
    count = 0
    for ngram in ngrams:
        at = np.searchsorted(numbers, np.int64(ngram))
        if at < len(numbers) and numbers[at] == ngram:
            count += 1
    return count


@njit
def _stretch(ngrams: I32, numbers: I64, order: I64, met: I64, shared: int) -> tuple[Int, Int]:
    """Bytes [start, end) of the shortest stretch with all of a set's n-grams that were met, the first of such.

    `numbers` are the n-grams that a row has, ascending, `order` their places in `met` (number, start, end).
    """
    size = 0
    for ngram in ngrams:
        at = np.searchsorted(numbers, np.int64(ngram))
        while at < len(numbers) and numbers[at] == ngram:
            size += 1
            at += 1
    at_place = np.empty(size, np.int64)
    which = np.empty(size, np.int64)
    size = 0
    for k in range(len(ngrams)):
        at = np.searchsorted(numbers, np.int64(ngrams[k]))
        while at < len(numbers) and numbers[at] == ngrams[k]:
            at_place[size] = order[at]
            which[size] = k
            size += 1
            at += 1
    by_place = np.argsort(at_place, kind="mergesort")
    counts = np.zeros(len(ngrams), np.int64)
    best_start, best_end = np.int64(0), np.int64(0)
    best = np.int64(-1)
    held = 0
    left = 0
    for right in range(size):
        k = which[by_place[right]]
        counts[k] += 1
        if counts[k] == 1:
            held += 1
        while held == shared:
            start = met[at_place[by_place[left]], 1]
            end = met[at_place[by_place[right]], 2]
            if best < 0 or end - start < best:
                best_start, best_end, best = start, end, end - start
            k = which[by_place[left]]
            counts[k] -= 1
            if counts[k] == 0:
                held -= 1
            left += 1
    return best_start, best_end


class Found(NamedTuple):
    """Hits, with room for more."""

    places: I64
    """(row, set, first word's first byte, last word's end) of each: [room, 4]."""
    ratios: F64


@njit
def _judge(
    row: int, tokens: U64, met: I64, tables: Tables, rules: Rules, parts: int, marks: I64, found: Found, size: int
) -> tuple[Found, int]:
    """Add the sets that a row passes to the first `size` of `found`.

    `met` are the n-grams that the row has: (number, start, end), by end. `marks` has the last row that looked at a set.
    """
    order = np.argsort(met[:, 0], kind="mergesort")
    numbers = met[order, 0]
    distinct = -1
    places, ratios = found.places, found.ratios
    for i in range(len(numbers)):
        if i > 0 and numbers[i] == numbers[i - 1]:
            continue
        for p in range(tables.anchor_offsets[numbers[i]], tables.anchor_offsets[numbers[i] + 1]):
            candidate = np.int64(tables.anchors[p])
            text = tables.set_text[candidate]
            if marks[candidate] == row or tables.text_part[text] & parts == 0:
                continue
            marks[candidate] = row
            rule = tables.set_rule[candidate]
            ngrams = tables.set_ngrams[tables.set_offsets[candidate] : tables.set_offsets[candidate + 1]]
            shared = _count_shared(ngrams, numbers)
            if shared < tables.set_needed[candidate]:
                continue
            ratio = shared / len(ngrams)
            if rules.near[rule]:
                if tables.text_words[text] < rules.n[rule]:
                    if tables.text_words[text] != len(tokens):
                        continue
                else:
                    if distinct < 0:
                        distinct = _count_distinct(tokens, rules.n[rule])
                    ratio = shared / (distinct + len(ngrams) - shared)
                    if ratio < rules.threshold[rule]:
                        continue
            if size == len(ratios):
                places = _grown(places)
                ratios = np.concatenate((ratios, np.empty_like(ratios)))
            places[size, 0], places[size, 1] = row, candidate
            places[size, 2], places[size, 3] = _stretch(ngrams, numbers, order, met, shared)
            ratios[size] = ratio
            size += 1
    return Found(places, ratios), size


@njit
def _write_met(row: Row, num_words: int, whole_words: int, tables: Tables, shift: int, met: I64) -> int:
    """Write the n-grams of items that a text has into `met`, as many as there is room for; how many there are."""
    shortest = tables.lengths[0]
    oldest_weight = np.uint64(1)
    for _ in range(shortest):
        oldest_weight *= _NGRAM_BASE
    tokens = row.tokens
    rolling = np.uint64(0)
    size = 0
    run = 0
    for i in range(num_words):
        rolling = rolling * _NGRAM_BASE + tokens[i]
        if i + 1 < shortest:
            continue
        if i >= shortest:
            rolling -= tokens[i - shortest] * oldest_weight
        key = xxh64_u64(rolling, np.uint64(shortest))
        bit = np.int64(key >> np.uint64(shift))
        if not (tables.bitmap[bit >> 3] >> (bit & 7)) & 1:
            run = 0
            continue
        run += 1
        for length in tables.lengths:
            # A longer n-gram of an item ends with as many of the shortest, one after another.
            if run < length - shortest + 1:
                break
            number = _look_up(_ngram_key(tokens, i + 1 - length, length), tables.keys, tables.slots)
            if number >= 0:
                if size < len(met):
                    met[size, 0], met[size, 1], met[size, 2] = number, row.starts[i + 1 - length], row.ends[i]
                size += 1
    if 0 < num_words < whole_words:
        number = _look_up(_ngram_key(tokens, 0, num_words), tables.keys, tables.slots)
        if number >= 0:
            if size < len(met):
                met[size, 0], met[size, 1], met[size, 2] = number, row.starts[0], row.ends[num_words - 1]
            size += 1
    return size


@njit
def _meet(row: Row, num_words: int, whole_words: int, tables: Tables, shift: int, met: I64) -> tuple[I64, int]:
    """The n-grams of items that a text has, (number, start, end) by end, in `met` or a larger array; how many."""
    size = _write_met(row, num_words, whole_words, tables, shift, met)
    if size > len(met):
        met = np.empty((2 * size, 3), np.int64)
        _write_met(row, num_words, whole_words, tables, shift, met)
    return met, size


@njit
def _scan(
    data: U8, offsets: I64, parts: int, whole_words: int, tables: Tables, rules: Rules, splitter: Splitter
) -> tuple[I64, F64]:
    """(row, set, start, end) and ratio of every set that a row passes.

    A text of fewer than `whole_words` words is also looked up whole.
    """
    shift = 64  # leaves the leading bits of a key, as many as address a bit
    while (8 * len(tables.bitmap)) >> (64 - shift) > 1:
        shift -= 1
    words = _empty_row(_ROOM)
    met = np.empty((_ROOM, 3), np.int64)
    marks = np.full(len(tables.set_text), -1, np.int64)
    found = Found(np.empty((_ROOM, 4), np.int64), np.empty(_ROOM, np.float64))
    size = 0
    for row in range(len(offsets) - 1):
        words, num_words = _split(data, offsets[row], offsets[row + 1], splitter, words)
        met, num_met = _meet(words, num_words, whole_words, tables, shift, met)
        if num_met > 0:
            found, size = _judge(row, words.tokens[:num_words], met[:num_met], tables, rules, parts, marks, found, size)
    return found.places[:size].copy(), found.ratios[:size].copy()


@njit
def _characters_before(data: U8, offsets: I64, rows: I64, positions: I64) -> I64:
    """How many characters of a row's text begin before a byte of it: [positions]."""
    out = np.zeros(len(rows), np.int64)
    for i in range(len(rows)):
        for at in range(offsets[rows[i]], offsets[rows[i]] + positions[i]):
            if data[at] & 0xC0 != 0x80:
                out[i] += 1
    return out


def characters_before(texts: pa.StringArray, rows: I64, positions: I64) -> I64:
    """Byte positions in rows of an array as positions in characters (code points): int64 [positions]."""
    return _characters_before(*_read_only(texts), rows, positions)


class Index:
    """An index file, memory-mapped.

    Args:
        path: what `write` made.
        rules: the rules that it was built with, in the same order.
        words: how it was split.
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
        self._splitter = _splitter(words)

    def scan(self, texts: pa.StringArray, parts: int) -> Hits:
        """Which items each text holds.

        Args:
            texts: string [rows], no nulls.
            parts: QUESTION, ANSWER or both (|): the texts of items that are looked for.

        Returns:
            Hits by row, in no order within a row.
        """
        data, offsets = _read_only(texts)
        found, ratio = _scan(data, offsets, parts, self._whole_words, self.tables, self._rules, self._splitter)
        row, chosen, start, end = found.T
        begin = offsets[row]
        return Hits(row, self.tables.set_text[chosen], self.tables.set_rule[chosen], ratio, start - begin, end - begin)


def write(path: Path, items: Items, tables: Tables) -> None:
    """Write an index: one Arrow IPC record batch of one row, a list a table; renamed into place when it is whole."""
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
