"""The kernels of the n-gram index: which sets of an index the words of a text hold, and where.

Three things make a scan cheap and exact. A bitmap holds the shortest n-grams of all items: a word of a row that ends
none of them costs one hash and one bit. A hash table gives each n-gram of an item its number. And only the rarest
n-grams of a set name it as a candidate. They are so many (size − needed + 1) that a text which passes the rule cannot
lack them all. So phrases of every item ("write a function to") name no candidate. A candidate is then counted exactly.
There is no sampling and no estimate: every set that passes is found. One core scans 70 MB a second of text that holds
nothing of the items, and 12 to 39 MB of text from their own domain.
"""

from typing import Final, NamedTuple

import numpy as np

from etl.arrays import F64, I32, I64, U8, U64, Bools
from etl.filters.ngram_words import NUMBER, ROOM, Int, Row, Splitter, empty_row, masked_token, split_text
from etl.hashing import xxh64_u64
from etl.jit import njit

_NGRAM_BASE: Final = np.uint64(0xA0761D6478BD642D)  # odd, 5 modulo 8: its powers are distinct modulo 2^62


class Tables(NamedTuple):
    """The arrays of an index. G n-grams, S sets, T texts of items."""

    lengths: I64
    """The lengths in words of the n-grams that are looked for, ascending; the bitmap holds those of lengths[0]."""
    bitmap: U8
    """One bit for each value of a key's leading bits."""
    masked_lengths: I64
    """The same for n-grams in which every number is read as the same; empty if none is looked for."""
    masked_bitmap: U8
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
    """Smallest number of its n-grams that a text must hold."""
    text_part: I32
    """Part of the item: QUESTION or ANSWER of `etl.filters.ngram_index`."""
    text_words: I32
    """Words of the text."""
    place_offsets: I64
    places: U64
    """`place_keys` of each text: places[place_offsets[t]:place_offsets[t + 1]]."""


class Rules(NamedTuple):
    """The rules as arrays, in the order in which they are preferred: [rules] each."""

    n: I64
    threshold: F64
    """Share of a set's n-grams that a text must hold; for a near rule, the least Jaccard similarity."""
    near: Bools
    masked: Bools
    """Numbers are read as the same, and all of an item's but one must be between the same words."""


@njit
def _ngram_key(words: U64, start: int, length: int) -> np.uint64:
    """The hash of the `length` words from `start` on."""
    value = np.uint64(0)
    for i in range(start, start + length):
        value = value * _NGRAM_BASE + words[i]
    return xxh64_u64(value, np.uint64(length))


@njit
def keys_of_texts(words: U64, bounds: I64, lengths: I64) -> tuple[U64, I64]:
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
def fill_slots(keys: U64, num_slots: int) -> I32:
    """An open-addressing table from a key to its position in `keys`; −1 is an empty slot: [num_slots]."""
    slots = np.full(num_slots, -1, np.int32)
    for number in range(len(keys)):
        slot = np.int64(keys[number] & np.uint64(num_slots - 1))
        while slots[slot] >= 0:
            slot = (slot + 1) & (num_slots - 1)
        slots[slot] = number
    return slots


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
def _place_key(left: np.uint64, number: np.uint64, right: np.uint64) -> np.uint64:
    """The hash of a number between two words; 0 means no word."""
    return xxh64_u64((left * _NGRAM_BASE + number) * _NGRAM_BASE + right, np.uint64(0))


@njit
def place_keys(tokens: U64, classes: U8) -> U64:
    """Each number of a text with its two neighbours, where every number is read as the same; ascending."""
    keys = np.empty(len(tokens), np.uint64)
    size = 0
    for i in range(len(tokens)):
        if classes[i] == NUMBER:
            left = masked_token(tokens[i - 1], classes[i - 1]) if i > 0 else np.uint64(0)
            right = masked_token(tokens[i + 1], classes[i + 1]) if i + 1 < len(tokens) else np.uint64(0)
            keys[size] = _place_key(left, tokens[i], right)
            size += 1
    return np.unique(keys[:size])


@njit
def _held_places(row: Row, num_words: int) -> U64:
    """All keys that `place_keys` may give for a part of a row's text: ascending, with repeats."""
    keys = np.empty(4 * num_words, np.uint64)
    size = 0
    for i in range(num_words):
        if row.classes[i] == NUMBER:
            left = masked_token(row.tokens[i - 1], row.classes[i - 1]) if i > 0 else np.uint64(0)
            right = masked_token(row.tokens[i + 1], row.classes[i + 1]) if i + 1 < num_words else np.uint64(0)
            for k in range(4):
                # A part of the text may begin or end with the number.
                keys[size] = _place_key(
                    left if k & 1 else np.uint64(0), row.tokens[i], right if k & 2 else np.uint64(0)
                )
                size += 1
    keys = keys[:size]
    keys.sort()
    return keys


@njit
def _num_lacking(wanted: U64, held: U64) -> int:
    """How many of some keys are not among the held ones, which are ascending."""
    count = 0
    for key in wanted:
        at = np.searchsorted(held, key)
        count += at == len(held) or held[at] != key
    return count


@njit
def _stretch(ngrams: I32, numbers: I64, order: I64, met: I64, shared: int) -> tuple[Int, Int]:
    """Bytes [start, end) of the shortest stretch with all n-grams of a set that were met; the first of equals.

    `numbers` are the n-grams that a row has, ascending, and `order` is their places in `met` (number, start, end).
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


class HitBuffer(NamedTuple):
    """An array of hits, with room for more."""

    places: I64
    """(row, set, first word's first byte, last word's end) of each: [room, 4]."""
    ratios: F64


@njit
def _judge(
    number: int,
    row: Row,
    num_words: int,
    met: I64,
    tables: Tables,
    rules: Rules,
    parts: int,
    marks: I64,
    found: HitBuffer,
    size: int,
) -> tuple[HitBuffer, int]:
    """Add the sets that a row passes to the first `size` of `found`.

    `met` are the n-grams that the row has: (number, start, end), by end. `marks` has the last row that looked at a set.
    """
    order = np.argsort(met[:, 0], kind="mergesort")
    numbers = met[order, 0]
    distinct = -1
    held_places = np.empty(0, np.uint64)
    places, ratios = found.places, found.ratios
    for i in range(len(numbers)):
        if i > 0 and numbers[i] == numbers[i - 1]:
            continue
        for p in range(tables.anchor_offsets[numbers[i]], tables.anchor_offsets[numbers[i] + 1]):
            candidate = np.int64(tables.anchors[p])
            text = tables.set_text[candidate]
            if marks[candidate] == number or tables.text_part[text] & parts == 0:
                continue
            marks[candidate] = number
            rule = tables.set_rule[candidate]
            ngrams = tables.set_ngrams[tables.set_offsets[candidate] : tables.set_offsets[candidate + 1]]
            shared = _count_shared(ngrams, numbers)
            if shared < tables.set_needed[candidate]:
                continue
            ratio = shared / len(ngrams)
            if rules.masked[rule]:
                if len(held_places) == 0:
                    held_places = _held_places(row, num_words)
                if (
                    _num_lacking(
                        tables.places[tables.place_offsets[text] : tables.place_offsets[text + 1]], held_places
                    )
                    > 1
                ):
                    continue
            if rules.near[rule]:
                if tables.text_words[text] < rules.n[rule]:
                    if tables.text_words[text] != num_words:
                        continue
                else:
                    if distinct < 0:
                        distinct = _count_distinct(row.tokens[:num_words], rules.n[rule])
                    ratio = shared / (distinct + len(ngrams) - shared)
                    if ratio < rules.threshold[rule]:
                        continue
            if size == len(ratios):
                places = _grown(places)
                ratios = np.concatenate((ratios, np.empty_like(ratios)))
            places[size, 0], places[size, 1] = number, candidate
            places[size, 2], places[size, 3] = _stretch(ngrams, numbers, order, met, shared)
            ratios[size] = ratio
            size += 1
    return HitBuffer(places, ratios), size


@njit
def _power(n: int) -> np.uint64:
    """The weight of a word in the hash after n more words."""
    weight = np.uint64(1)
    for _ in range(n):
        weight *= _NGRAM_BASE
    return weight


@njit
def _write_met(row: Row, num_words: int, whole_words: int, tables: Tables, met: I64) -> int:
    """Write the n-grams of items that a text has into `met`, as far as there is room; returns how many there are."""
    shift = _shift_of(tables.bitmap)
    shortest = tables.lengths[0]
    oldest_weight = _power(shortest)
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
            # A longer n-gram of an item ends with a run of the shortest ones: one more for each further word.
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
def _write_masked(row: Row, num_words: int, tables: Tables, met: I64, size: int) -> int:
    """Write the n-grams with a number, read as any number, into `met` from `size` on; returns how many there are then.

    `_write_met` writes those without a number; those that are more than half numbers are in no set.
    """
    lengths, bitmap, classes = tables.masked_lengths, tables.masked_bitmap, row.classes
    if len(lengths) == 0 or not _has_number(classes, num_words):
        return size
    tokens = np.empty(num_words, np.uint64)
    before = np.empty(num_words + 1, np.int64)  # how many numbers are before a word
    before[0] = 0
    for i in range(num_words):
        tokens[i] = masked_token(row.tokens[i], classes[i])
        before[i + 1] = before[i] + (classes[i] == NUMBER)
    shift = _shift_of(bitmap)
    shortest, longest = lengths[0], lengths[-1]
    oldest_weight = _power(shortest)
    rolling = np.uint64(0)
    for i in range(num_words):
        rolling = rolling * _NGRAM_BASE + tokens[i]
        if i + 1 < shortest:
            continue
        if i >= shortest:
            rolling -= tokens[i - shortest] * oldest_weight
        if before[i + 1] == before[max(i + 1 - longest, 0)]:
            continue
        bit = np.int64(xxh64_u64(rolling, np.uint64(shortest)) >> np.uint64(shift))
        if not (bitmap[bit >> 3] >> (bit & 7)) & 1:
            continue
        for length in lengths:
            if length > i + 1:
                break
            num_numbers = before[i + 1] - before[i + 1 - length]
            if num_numbers == 0 or 2 * num_numbers > length:
                continue
            number = _look_up(_ngram_key(tokens, i + 1 - length, length), tables.keys, tables.slots)
            if number >= 0:
                if size < len(met):
                    met[size, 0], met[size, 1], met[size, 2] = number, row.starts[i + 1 - length], row.ends[i]
                size += 1
    return size


@njit
def _has_number(classes: U8, num_words: int) -> bool:
    for i in range(num_words):  # noqa: SIM110  # a generator would not compile
        if classes[i] == NUMBER:
            return True
    return False


@njit
def _meet(row: Row, num_words: int, whole_words: int, tables: Tables, met: I64) -> tuple[I64, int]:
    """The n-grams of items that a text has, (number, start, end) by end, in `met` or a larger array; and how many."""
    num_exact = _write_met(row, num_words, whole_words, tables, met)
    size = _write_masked(row, num_words, tables, met, num_exact)
    if size > len(met):
        met = np.empty((2 * size, 3), np.int64)
        _write_met(row, num_words, whole_words, tables, met)
        _write_masked(row, num_words, tables, met, num_exact)
    if size > num_exact:
        met[:size] = met[np.argsort(met[:size, 2], kind="mergesort")]
    return met, size


@njit
def _shift_of(bitmap: U8) -> int:
    """How far to shift a key so that only the leading bits remain that address a bit."""
    shift = 64
    while (8 * len(bitmap)) >> (64 - shift) > 1:
        shift -= 1
    return shift


@njit
def scan_texts(
    data: U8, offsets: I64, parts: int, whole_words: int, tables: Tables, rules: Rules, splitter: Splitter
) -> tuple[I64, F64]:
    """(row, set, start, end) and ratio of every set that a row passes.

    A text of fewer than `whole_words` words is also looked up whole.
    """
    words = empty_row(ROOM)
    met = np.empty((ROOM, 3), np.int64)
    marks = np.full(len(tables.set_text), -1, np.int64)
    found = HitBuffer(np.empty((ROOM, 4), np.int64), np.empty(ROOM, np.float64))
    size = 0
    for row in range(len(offsets) - 1):
        words, num_words = split_text(data, offsets[row], offsets[row + 1], splitter, words)
        met, num_met = _meet(words, num_words, whole_words, tables, met)
        if num_met > 0:
            found, size = _judge(row, words, num_words, met[:num_met], tables, rules, parts, marks, found, size)
    return found.places[:size].copy(), found.ratios[:size].copy()
