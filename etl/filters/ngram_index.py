"""The n-grams of benchmark items in one memory-mapped file, and the kernels that look for them in rows of text.

A *set* is the distinct n-grams of one text of an item (its question or its answer) under one rule. Three things make a
scan cheap and exact. A bitmap holds the shortest n-grams of all items: a word of a row that ends none of them costs one
hash and one bit. A hash table gives each n-gram of an item its number. And a set is named as a candidate only by its
rarest n-grams, as many as a text that passes the rule cannot all lack (size − needed + 1), so that what every item says
("write a function to") names nobody; a candidate is then counted exactly. There is no sampling and no estimate: every
set that passes is found.

Words are those of `etl.text` (`\\w+` of the lower-cased text, on Arrow's buffers), with the options of `Words`. One
core splits and looks up about 150 MB of text a second that has nothing of an index of 10,000 items; an index takes
about 4 kB an item on disk (shared by all processes of a node) and a second for 10,000 items to build.
"""

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from etl.hashing import binary_buffers, xxh64_u64
from etl.jit import njit
from etl.text import I64, U8, U32, U64, decode, word_table

I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]

INDEX_VERSION: Final = 1
"""Raised when the same items would give another index, or the same index other hits."""

LONGEST_NGRAM: Final = 64
"""Most words of an n-gram: the size of a kernel's memory of recent words, a power of two."""

QUESTION: Final = 1
ANSWER: Final = 2
"""Parts of an item, as bits."""

_TOKEN_START: Final = np.uint64(0x2545F4914F6CDD1D)
_TOKEN_MULTIPLIER: Final = np.uint64(0xD6E8FEB86659FD93)  # odd, with well spread bits
_NGRAM_BASE: Final = np.uint64(0xA0761D6478BD642D)  # odd, 5 modulo 8: its powers are distinct modulo 2^62
_CODE: Final = 0x1FFFFF
_DIGIT: Final = 1 << 31
_BACKSLASH: Final = 0x5C
_ZERO: Final = np.uint64(0x30)
_BITS_AN_NGRAM: Final = 16
"""Bits of the bitmap for each n-gram in it: one in 16 of other n-grams passes it and is looked up for nothing."""

_LAYOUT: Final = """
left right middle big bigl bigr bigm bigg biggl biggr biggm quad qquad displaystyle textstyle scriptstyle limits
nolimits text textrm textbf textit mathrm mathbf mathit mbox hbox operatorname
""".split()  # noqa: SIM905  # a table to read
"""LaTeX commands that change how a formula looks, not what it says; names are compared in lower case."""
_FRACTIONS: Final = ("dfrac", "tfrac", "cfrac")
_FRACTION: Final = "frac"


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

    @cached_property
    def splitter(self) -> Splitter:
        """The tables of the kernels; about 0.1 s the first time."""
        table = word_table()[0].copy()
        table[ord("İ")] = ord("i")
        table[[ord("Σ"), ord("ς")]] = ord("σ")
        if self.latex:
            table[ord("_")] = 0
        table[[code for code in range(0x110000) if chr(code).isdecimal()]] |= np.uint32(_DIGIT)
        layout = np.array([_word_hash(name) for name in _LAYOUT], np.uint64)
        fractions = np.array([_word_hash(name) for name in (_FRACTION, *_FRACTIONS)], np.uint64)
        return Splitter(table, layout, fractions, self.latex, self.mask_numbers)


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
def _is_ascii_letter(code: int) -> bool:
    return 65 <= code <= 90 or 97 <= code <= 122


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


@njit
def _next_word(data: U8, at: int, end: int, splitter: Splitter) -> tuple[np.uint64, int, int, bool]:
    """Hash of the next word, its bytes [start, end), and whether there is one."""
    table, latex, mask = splitter.table, splitter.latex, splitter.mask_numbers
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
            if token in splitter.layout:
                continue
            if token in splitter.fractions:
                token = splitter.fractions[0]
        return token, start, at, True
    return _ZERO, at, at, False


@njit
def _split(data: U8, offsets: I64, splitter: Splitter) -> tuple[U64, I64]:
    """Hashes of the words of each text, and where those of each begin: [words], [texts + 1]."""
    out = np.empty((offsets[-1] - offsets[0]) + 1, np.uint64)  # a word takes a byte at least
    bounds = np.zeros(len(offsets), np.int64)
    size = 0
    for row in range(len(offsets) - 1):
        at = offsets[row]
        found = True
        while found:
            token, _, at, found = _next_word(data, at, offsets[row + 1], splitter)
            if found:
                out[size] = token
                size += 1
        bounds[row + 1] = size
    return out[:size].copy(), bounds


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
    return _split(data, offsets, words.splitter)


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
def _look_up(key: np.uint64, keys: U64, slots: I32) -> int:
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
def _count_distinct(data: U8, start: int, end: int, splitter: Splitter, n: int) -> int:
    """Distinct n-grams of a text; a text of fewer words has one."""
    bounds = np.array([start, end])
    words, _ = _split(data, bounds, splitter)
    if len(words) < n:
        return min(len(words), 1)
    keys = np.empty(len(words) - n + 1, np.uint64)
    for i in range(len(keys)):
        keys[i] = _ngram_key(words, i, n)
    keys.sort()
    distinct = 1
    for i in range(1, len(keys)):
        if keys[i] != keys[i - 1]:
            distinct += 1
    return distinct


@njit
def _shared(ngrams: I32, met: I64) -> int:
    """How many of a set's n-grams a row has met; `met` is ascending and may repeat."""
    count = 0
    for ngram in ngrams:
        at = np.searchsorted(met, np.int64(ngram))
        if at < len(met) and met[at] == ngram:
            count += 1
    return count


@njit
def _stretch(ngrams: I32, met: I64, order: I64, places: I64, shared: int) -> tuple[int, int]:
    """Bytes [start, end) of the shortest stretch with all of a set's n-grams that were met, the first of such.

    `met` are the n-grams of a row ascending, `order` their positions in `places` (n-gram, start, end).
    """
    size = 0
    for ngram in ngrams:
        at = np.searchsorted(met, np.int64(ngram))
        while at < len(met) and met[at] == ngram:
            size += 1
            at += 1
    at_place = np.empty(size, np.int64)
    which = np.empty(size, np.int64)
    size = 0
    for k in range(len(ngrams)):
        at = np.searchsorted(met, np.int64(ngrams[k]))
        while at < len(met) and met[at] == ngrams[k]:
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
            start = places[at_place[by_place[left]], 1]
            end = places[at_place[by_place[right]], 2]
            if best < 0 or end - start < best:
                best_start, best_end, best = start, end, end - start
            k = which[by_place[left]]
            counts[k] -= 1
            if counts[k] == 0:
                held -= 1
            left += 1
    return best_start, best_end


@njit
def _judge(
    row: int,
    num_words: int,
    text: tuple[U8, int, int],
    places: I64,
    parts: int,
    tables: Tables,
    rules: Rules,
    splitter: Splitter,
    marks: I64,
    hits: I64,
    ratios: F64,
    num_hits: int,
) -> tuple[I64, F64, int]:
    """Add the sets that a row passes; `places` are the n-grams that it met, (number, start, end) by end."""
    data, begin, finish = text
    order = np.argsort(places[:, 0], kind="mergesort")
    met = places[order, 0]
    distinct = np.int64(-1)
    for i in range(len(met)):
        if i > 0 and met[i] == met[i - 1]:
            continue
        for p in range(tables.anchor_offsets[met[i]], tables.anchor_offsets[met[i] + 1]):
            found = tables.anchors[p]
            if marks[found] == row:
                continue
            marks[found] = row
            item = tables.set_text[found]
            if tables.text_part[item] & parts == 0:
                continue
            rule = tables.set_rule[found]
            ngrams = tables.set_ngrams[tables.set_offsets[found] : tables.set_offsets[found + 1]]
            shared = _shared(ngrams, met)
            if shared < tables.set_needed[found]:
                continue
            ratio = shared / len(ngrams)
            if rules.near[rule]:
                if tables.text_words[item] < rules.n[rule]:
                    if tables.text_words[item] != num_words:
                        continue
                else:
                    if distinct < 0:
                        distinct = _count_distinct(data, begin, finish, splitter, rules.n[rule])
                    ratio = shared / (distinct + len(ngrams) - shared)
                    if ratio < rules.threshold[rule]:
                        continue
            start, end = _stretch(ngrams, met, order, places, shared)
            if num_hits == len(ratios):
                hits = _grown(hits)
                ratios = np.concatenate((ratios, np.empty(len(ratios))))
            hits[num_hits, 0], hits[num_hits, 1] = row, found
            hits[num_hits, 2], hits[num_hits, 3] = start - begin, end - begin
            ratios[num_hits] = ratio
            num_hits += 1
    return hits, ratios, num_hits


@njit
def _scan(
    data: U8, offsets: I64, parts: int, whole_words: int, tables: Tables, rules: Rules, splitter: Splitter
) -> tuple[I64, F64]:
    """(row, set, start, end) and ratio of every set that a row passes.

    A text of fewer than `whole_words` words is also looked up whole.
    """
    shortest = tables.lengths[0]
    shift = np.uint64(64)
    bits = 8 * len(tables.bitmap)
    while bits > 1:
        bits >>= 1
        shift -= np.uint64(1)
    oldest_weight = np.uint64(1)
    for _ in range(shortest - 1):
        oldest_weight *= _NGRAM_BASE
    last = LONGEST_NGRAM - 1
    words = np.zeros(LONGEST_NGRAM, np.uint64)
    starts = np.zeros(LONGEST_NGRAM, np.int64)
    places = np.empty((1024, 3), np.int64)
    marks = np.full(len(tables.set_text), -1, np.int64)
    hits = np.empty((64, 4), np.int64)
    ratios = np.empty(64)
    num_hits = 0
    for row in range(len(offsets) - 1):
        words[:] = 0
        rolling = np.uint64(0)
        num_words = 0
        num_places = 0
        run = 0
        at, end = offsets[row], offsets[row + 1]
        while True:
            token, start, at, found = _next_word(data, at, end, splitter)
            if not found:
                break
            rolling = (rolling - words[(num_words - shortest) & last] * oldest_weight) * _NGRAM_BASE + token
            words[num_words & last] = token
            starts[num_words & last] = start
            num_words += 1
            if num_words < shortest:
                continue
            key = xxh64_u64(rolling, np.uint64(shortest))
            bit = np.int64(key >> shift)
            if not (tables.bitmap[bit >> 3] >> (bit & 7)) & 1:
                run = 0
                continue
            run += 1
            for length in tables.lengths:
                if run < length - shortest + 1:
                    break
                if length > shortest:
                    value = np.uint64(0)
                    for i in range(num_words - length, num_words):
                        value = value * _NGRAM_BASE + words[i & last]
                    key = xxh64_u64(value, np.uint64(length))
                number = _look_up(key, tables.keys, tables.slots)
                if number >= 0:
                    if num_places == len(places):
                        places = _grown(places)
                    places[num_places, 0], places[num_places, 1], places[num_places, 2] = number, starts[(num_words - length) & last], at
                    num_places += 1
        if 0 < num_words < whole_words:
            number = _look_up(_ngram_key(words, 0, num_words), tables.keys, tables.slots)
            if number >= 0:
                if num_places == len(places):
                    places = _grown(places)
                final = starts[num_words - 1]
                _, _, stop, _ = _next_word(data, final, end, splitter)
                places[num_places, 0], places[num_places, 1], places[num_places, 2] = number, starts[0], stop
                num_places += 1
        if num_places > 0:
            hits, ratios, num_hits = _judge(
                row, num_words, (data, offsets[row], end), places[:num_places], parts, tables, rules, splitter,
                marks, hits, ratios, num_hits,
            )  # fmt: skip
    return hits[:num_hits].copy(), ratios[:num_hits].copy()


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
        self._splitter = words.splitter

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
        return Hits(row, self.tables.set_text[chosen], self.tables.set_rule[chosen], ratio, start, end)


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
