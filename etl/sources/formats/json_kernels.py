"""Kernels that read JSON lines of the usual kind where they lie, and leave every other line to a JSON parser.

`scan` goes once over a block and notes where the values of the wanted columns and the texts of messages begin and end.
What it does not know makes a line one that is handed over: whatever is no valid JSON, a key with escapes, a number
with an exponent, a value of another type than the usual one, a message with calls of tools. So a line that is not
handed over is valid JSON (orjson's, UTF-8 apart, which the caller checks), and its values are what orjson gives. About
1 ns a byte.

A text without escapes is data[start:end]. One with escapes is written without them to a second buffer, `plain`, and
noted as plain[~start:~end]. The file is one parser, read from top to bottom.
"""

from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from etl.arrays import I8, I32, I64, U8, Bools
from etl.hashing import _word as word
from etl.jit import njit

if TYPE_CHECKING:
    from collections.abc import Callable

# What is noted of a column's value.
ABSENT, TEXT, WHOLE, BOOLEAN, FLOAT, OTHER = 0, 1, 2, 3, 4, 5
"""TEXT: of a string, what it says. WHOLE: the digits of an integer of at most 18. The others: JSON as it stands."""

# What a key of a message is for.
ROLE, CONTENT, THOUGHT, ACTIVE = 0, 1, 2, 3
"""Who speaks, what is said, reasoning, and what makes a message one that is handed over unless it is null."""

# How a column is read.
SAID, NAMED, KEPT, MESSAGES, REFUSED = 0, 1, 2, 3, 4
"""Text; text or an integer; JSON; the list of messages; a column whose every value but null is handed over."""

_MAX_DEPTH: Final = 60
_MAX_DIGITS: Final = 18
_MAX_NUMBER: Final = 40
"""So that no number is one that a float64 cannot hold."""
_BAD: Final = -1
_ONES: Final = np.uint64(0x0101010101010101)
_TOPS: Final = np.uint64(0x8080808080808080)
_QUOTES: Final = np.uint64(0x2222222222222222)
_SLASHES: Final = np.uint64(0x5C5C5C5C5C5C5C5C)
_SPACES: Final = np.uint64(0x2020202020202020)
_ESCAPED: Final = np.zeros(256, np.uint8)
for _letter, _byte in zip(b'"\\/bfnrt', b'"\\/\b\f\n\r\t', strict=True):
    _ESCAPED[_letter] = _byte
_DIGITS: Final = np.full(256, 255, np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _DIGITS[_digit] = _value
    _DIGITS[ord(chr(_digit).upper())] = _value


def _copy_of_bytes(typing: Any, target: Any, at: Any, source: Any, start: Any, size: Any) -> Any:
    """Copy size bytes; LLVM makes no such call of a loop whose indices may be negative."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        def place(number: int) -> Any:
            array = cgutils.create_struct_proxy(signature.args[number])(context, builder, values[number])
            return builder.gep(array.data, [values[number + 1]])

        cgutils.raw_memcpy(builder, place(0), place(2), values[4], 1)
        return context.get_dummy_value()

    return types.void(target, types.intp, source, types.intp, types.intp), generate


_copy = cast("Callable[[U8, int, U8, int, int], None]", intrinsic(_copy_of_bytes))


@njit
def _next(data: U8, i: int, end: int, byte: int) -> int:
    """Where a byte stands first from i on; the end where it does not."""
    wanted = np.uint64(byte) * _ONES
    while i + 8 <= end:
        x = word(data, i) ^ wanted
        if (x - _ONES) & ~x & _TOPS:
            break
        i += 8
    while i < end and data[i] != byte:
        i += 1
    return i


@njit
def _skip_space(data: U8, i: int, end: int) -> int:
    while i < end and (data[i] == 32 or data[i] == 9 or data[i] == 13):
        i += 1
    return i


@njit
def _text_end(data: U8, i: int, end: int) -> tuple[int, bool]:
    """Where the string whose first byte is i has its closing quote, -1 where it has none; whether it has escapes."""
    escaped = False
    while True:
        while i + 8 <= end:
            x = word(data, i)
            quotes, slashes = x ^ _QUOTES, x ^ _SLASHES
            found = ((quotes - _ONES) & ~quotes) | ((slashes - _ONES) & ~slashes) | ((x - _SPACES) & ~x)
            if found & _TOPS:
                break
            i += 8
        while i < end:
            c = data[i]
            if c == 34:
                return i, escaped
            if c < 32:
                return _BAD, escaped
            if c == 92:
                escaped = True
                i += 2
                break
            i += 1
        else:
            return _BAD, escaped


@njit
def _four_digits(data: U8, i: int) -> int:
    value = 0
    for k in range(4):
        digit = _DIGITS[data[i + k]]
        if digit == 255:
            return _BAD
        value = value * 16 + int(digit)
    return value


@njit
def _unescape(data: U8, i: int, end: int, plain: U8, at: int) -> int:
    """Write a string without its escapes; where it ends in `plain`, -1 where an escape is wrong."""
    while i < end:
        stop = _next(data, i, end, 92)
        _copy(plain, at, data, i, stop - i)
        i, at = stop, at + stop - i
        if i == end:
            return at
        c = data[i + 1]
        if c != 117:
            if _ESCAPED[c] == 0:
                return _BAD
            plain[at] = _ESCAPED[c]
            i, at = i + 2, at + 1
            continue
        if i + 6 > end:
            return _BAD
        code = _four_digits(data, i + 2)
        i += 6
        if 0xD800 <= code < 0xE000:
            if code >= 0xDC00 or i + 6 > end or data[i] != 92 or data[i + 1] != 117:
                return _BAD
            low = _four_digits(data, i + 2)
            if low < 0xDC00 or low >= 0xE000:
                return _BAD
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
            i += 6
        if code < 0:
            return _BAD
        if code < 0x80:
            plain[at] = code
            at += 1
        elif code < 0x800:
            plain[at], plain[at + 1] = 0xC0 | (code >> 6), 0x80 | (code & 63)
            at += 2
        elif code < 0x10000:
            plain[at], plain[at + 1], plain[at + 2] = 0xE0 | (code >> 12), 0x80 | (code >> 6 & 63), 0x80 | (code & 63)
            at += 3
        else:
            plain[at], plain[at + 1] = 0xF0 | (code >> 18), 0x80 | (code >> 12 & 63)
            plain[at + 2], plain[at + 3] = 0x80 | (code >> 6 & 63), 0x80 | (code & 63)
            at += 4
    return at


@njit
def _skip_text(data: U8, i: int, end: int, plain: U8, at: int) -> int:
    """Behind the string whose opening quote is at i; -1 where it is wrong. What it says may be written at `at`."""
    close, escaped = _text_end(data, i + 1, end)
    if close < 0 or (escaped and _unescape(data, i + 1, close, plain, at) < 0):
        return _BAD
    return close + 1


@njit
def _skip_number(data: U8, i: int, end: int) -> tuple[int, bool]:
    """Behind the number at i, -1 where it is none, is long or has a long exponent; whether it is whole."""
    start = i
    if i < end and data[i] == 45:
        i += 1
    first = i
    while i < end and 48 <= data[i] <= 57:
        i += 1
    if i == first or (data[first] == 48 and i > first + 1):
        return _BAD, False
    whole = True
    if i < end and data[i] == 46:
        whole = False
        i += 1
        first = i
        while i < end and 48 <= data[i] <= 57:
            i += 1
        if i == first:
            return _BAD, False
    if i < end and (data[i] == 101 or data[i] == 69):
        whole = False
        i += 1
        if i < end and (data[i] == 43 or data[i] == 45):
            i += 1
        first = i
        while i < end and 48 <= data[i] <= 57:
            i += 1
        if i == first or i - first > 2:
            return _BAD, False
    if i - start > _MAX_NUMBER or (whole and i - start > _MAX_DIGITS):
        return _BAD, False
    return i, whole


@njit
def _skip_word(data: U8, i: int, end: int) -> int:
    """Behind `true`, `false` or `null` at i; -1 where there is none of them."""
    if i + 4 <= end and data[i] == 116 and data[i + 1] == 114 and data[i + 2] == 117 and data[i + 3] == 101:
        return i + 4
    if i + 4 <= end and data[i] == 110 and data[i + 1] == 117 and data[i + 2] == 108 and data[i + 3] == 108:
        return i + 4
    if (
        i + 5 <= end and data[i] == 102 and data[i + 1] == 97 and data[i + 2] == 108 and data[i + 3] == 115
        and data[i + 4] == 101
    ):  # fmt: skip
        return i + 5
    return _BAD


@njit
def _skip_key(data: U8, i: int, end: int, plain: U8, at: int) -> int:
    """The place of the value whose key is at i; -1 where that is wrong."""
    if i >= end or data[i] != 34:
        return _BAD
    i = _skip_text(data, i, end, plain, at)
    if i < 0:
        return _BAD
    i = _skip_space(data, i, end)
    if i >= end or data[i] != 58:
        return _BAD
    return _skip_space(data, i + 1, end)


@njit
def _skip_value(data: U8, i: int, end: int, plain: U8, at: int) -> int:
    """Behind the value at i; -1 where it is wrong or nested deep."""
    depth = 0
    objects = np.uint64(0)  # A bit an open bracket, the innermost last: 1 for an object.
    while True:
        if i >= end:
            return _BAD
        c = data[i]
        is_closed = True
        if c == 34:
            i = _skip_text(data, i, end, plain, at)
        elif c == 123 or c == 91:
            depth += 1
            if depth > _MAX_DEPTH:
                return _BAD
            objects = (objects << np.uint64(1)) | np.uint64(c == 123)
            i = _skip_space(data, i + 1, end)
            if i < end and data[i] == c + 2:
                depth -= 1
                objects >>= np.uint64(1)
                i += 1
            else:
                is_closed = False
                if c == 123:
                    i = _skip_key(data, i, end, plain, at)
        elif c == 116 or c == 102 or c == 110:
            i = _skip_word(data, i, end)
        else:
            i, _ = _skip_number(data, i, end)
        if i < 0:
            return _BAD
        while is_closed:
            if depth == 0:
                return i
            i = _skip_space(data, i, end)
            if i >= end:
                return _BAD
            in_object = objects & np.uint64(1)
            if data[i] == 44:
                i = _skip_space(data, i + 1, end)
                if in_object:
                    i = _skip_key(data, i, end, plain, at)
                    if i < 0:
                        return _BAD
                is_closed = False
            elif data[i] == (125 if in_object else 93):
                depth -= 1
                objects >>= np.uint64(1)
                i += 1
            else:
                return _BAD


@njit
def _find(data: U8, start: int, end: int, names: U8, offsets: I64) -> int:
    """The number of the name that data[start:end] is; -1 where it is none."""
    size = end - start
    for k in range(len(offsets) - 1):
        if offsets[k + 1] - offsets[k] != size:
            continue
        same = True
        for j in range(size):
            if data[start + j] != names[offsets[k] + j]:
                same = False
                break
        if same:
            return k
    return _BAD


@njit
def _begins(data: U8, i: int, end: int, names: U8, offsets: I64) -> bool:
    """Whether one of some names stands at i."""
    for k in range(len(offsets) - 1):
        size = offsets[k + 1] - offsets[k]
        if i + size > end:
            continue
        same = True
        for j in range(size):
            if data[i + j] != names[offsets[k] + j]:
                same = False
                break
        if same:
            return True
    return False


@njit
def _says_something(data: U8, start: int, end: int) -> bool:
    """Whether a text has an ASCII character that is not white space."""
    while start < end and not 32 < data[start] < 127:
        start += 1
    return start < end


@njit
def _is_odd(data: U8, start: int, end: int, may_be_blank: bool, names: U8, offsets: I64) -> bool:
    """Whether a text has one of some tags, or says nothing."""
    k = _next(data, start, end, 60)
    while k < end:
        if _begins(data, k, end, names, offsets):
            return True
        k = _next(data, k + 1, end, 60)
    return not may_be_blank and not _says_something(data, start, end)


@njit
def _trimmed(data: U8, start: int, end: int) -> tuple[int, int]:
    """A text without white space around it; -1 where it may begin or end in other white space than ASCII's."""
    while start < end and _is_space(data[start]):
        start += 1
    while start < end and _is_space(data[end - 1]):
        end -= 1
    if start == end:
        return start, end
    last = end - 1
    while last > start and 0x80 <= data[last] < 0xC0:
        last -= 1
    if _may_be_space(data, start) or _may_be_space(data, last):
        return _BAD, _BAD
    return start, end


@njit
def _is_space(byte: int) -> bool:
    return byte == 32 or 9 <= byte <= 13 or 28 <= byte <= 31


@njit
def _may_be_space(data: U8, i: int) -> bool:
    """Whether a character of several bytes may be white space: U+0085 and U+00A0, U+1680, U+2000 to U+207F, U+3000."""
    c = data[i]
    if c == 0xC2:
        return data[i + 1] == 0x85 or data[i + 1] == 0xA0
    if c == 0xE2:
        return data[i + 1] <= 0x81
    return (c == 0xE1 and data[i + 1] == 0x9A) or (c == 0xE3 and data[i + 1] == 0x80 and data[i + 2] == 0x80)


@njit
def _split_thinking(
    data: U8, start: int, end: int, names: U8, offsets: I64
) -> tuple[bool, int, int, int, int]:  # fmt: skip
    """An answer's reasoning between the first two tags, and the text behind: whether it is odd, and both places."""
    i = start
    while i < end and _is_space(data[i]):
        i += 1
    if not _begins(data, i, end, names, offsets[:2]):
        return _is_odd(data, start, end, True, names, offsets), start, start, start, end
    first = i + offsets[1]
    i = _next(data, first, end, 60)
    while i < end and not _begins(data, i, end, names, offsets):
        i = _next(data, i + 1, end, 60)
    if i == end or not _begins(data, i, end, names, offsets[1:3]):
        return True, start, start, start, end
    after = i + offsets[2] - offsets[1]
    thought_start, thought_end = _trimmed(data, first, i)
    text_start, text_end = _trimmed(data, after, end)
    odd = thought_start < 0 or text_start < 0 or _is_odd(data, after, end, True, names, offsets)
    return odd, thought_start, thought_end, text_start, text_end


@njit
def _messages(
    data: U8, i: int, end: int, role_names: U8, role_offsets: I64, role_kinds: I8, system_kind: int, thought_kind: int,
    key_names: U8, key_offsets: I64, key_uses: I8, tag_names: U8, tag_offsets: I64, plain: U8, at: int,
    message_kinds: I8, message_starts: I64, message_ends: I64, num_said: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Note the messages of the list at i; behind it (-1 where it is handed over), the messages and bytes so far."""
    i = _skip_space(data, i + 1, end)
    if i < end and data[i] == 93:
        return i + 1, num_said, at
    while True:
        if i >= end or data[i] != 123:
            return _BAD, num_said, at
        i = _skip_space(data, i + 1, end)
        kind, content_start, content_end, thought_start, thought_end = -1, 0, 0, 0, 0
        has_content, has_thought = False, False
        is_active = False
        while True:
            if i >= end or data[i] != 34:
                return _BAD, num_said, at
            key = i + 1
            close, escaped = _text_end(data, key, end)
            if close < 0 or escaped:
                return _BAD, num_said, at
            i = _skip_space(data, close + 1, end)
            if i >= end or data[i] != 58:
                return _BAD, num_said, at
            i = _skip_space(data, i + 1, end)
            if i >= end:
                return _BAD, num_said, at
            k = _find(data, key, close, key_names, key_offsets)
            use = key_uses[k] if k >= 0 else -1
            if ROLE <= use <= CONTENT or (use == THOUGHT and data[i] != 110):
                if data[i] != 34:
                    return _BAD, num_said, at
                start = i + 1
                close, escaped = _text_end(data, start, end)
                if close < 0:
                    return _BAD, num_said, at
                i = close + 1
                if use == ROLE:
                    k = -1 if escaped else _find(data, start, close, role_names, role_offsets)
                    if kind >= 0 or k < 0:
                        return _BAD, num_said, at
                    kind = role_kinds[k]
                else:
                    if escaped:
                        stop = _unescape(data, start, close, plain, at)
                        if stop < 0:
                            return _BAD, num_said, at
                        start, close = ~at, ~stop
                        at = stop
                    if use == CONTENT:
                        if has_content:
                            return _BAD, num_said, at
                        has_content, content_start, content_end = True, start, close
                    elif start != close:
                        if has_thought:
                            return _BAD, num_said, at
                        has_thought, thought_start, thought_end = True, start, close
            else:
                if use == ACTIVE and data[i] != 110:
                    is_active = True
                i = _skip_value(data, i, end, plain, at)
                if i < 0:
                    return _BAD, num_said, at
            i = _skip_space(data, i, end)
            if i >= end:
                return _BAD, num_said, at
            if data[i] == 44:
                i = _skip_space(data, i + 1, end)
            elif data[i] == 125:
                break
            else:
                return _BAD, num_said, at
        if kind < 0 or not has_content:
            return _BAD, num_said, at
        if kind == system_kind:
            if content_start < 0:
                odd = _is_odd(plain, ~content_start, ~content_end, False, tag_names, tag_offsets)
            else:
                odd = _is_odd(data, content_start, content_end, False, tag_names, tag_offsets)
            if odd:
                return _BAD, num_said, at
        if kind == thought_kind + 1:
            odd = is_active
            if has_thought:
                if thought_start < 0:
                    odd |= not _says_something(plain, ~thought_start, ~thought_end)
                else:
                    odd |= not _says_something(data, thought_start, thought_end)
            if content_start < 0:
                bad, start, stop, content_start, content_end = _split_thinking(
                    plain, ~content_start, ~content_end, tag_names, tag_offsets
                )
                start, stop, content_start, content_end = ~start, ~stop, ~content_start, ~content_end
            else:
                bad, start, stop, content_start, content_end = _split_thinking(
                    data, content_start, content_end, tag_names, tag_offsets
                )
            if odd or bad or (has_thought and start != stop):
                return _BAD, num_said, at
            if start != stop:
                has_thought, thought_start, thought_end = True, start, stop
            if has_thought:
                message_kinds[num_said] = thought_kind
                message_starts[num_said], message_ends[num_said] = thought_start, thought_end
                num_said += 1
        message_kinds[num_said] = kind
        message_starts[num_said], message_ends[num_said] = content_start, content_end
        num_said += 1
        i = _skip_space(data, i + 1, end)
        if i >= end:
            return _BAD, num_said, at
        if data[i] == 93:
            return i + 1, num_said, at
        if data[i] != 44:
            return _BAD, num_said, at
        i = _skip_space(data, i + 1, end)


@njit
def scan(
    data: U8, max_row_bytes: int, column_names: U8, column_offsets: I64, uses: I8, required: Bools,
    role_names: U8, role_offsets: I64, role_kinds: I8, system_kind: int, thought_kind: int,
    key_names: U8, key_offsets: I64, key_uses: I8, tag_names: U8, tag_offsets: I64, plain: U8,
    row_starts: I64, row_ends: I64, known: Bools, kinds: I8, starts: I64, ends: I64,
    num_messages: I32, message_kinds: I8, message_starts: I64, message_ends: I64,
) -> int:  # fmt: skip
    """Read the lines of a block.

    Args:
        data: the block; its last line may lack the line feed.
        max_row_bytes: length of a line above which it is handed over.
        column_names: names of the wanted columns one behind the other.
        column_offsets: int64 [columns + 1], where each of them begins.
        uses: [columns], how each is read.
        required: [columns], whether a line without it is handed over.
        role_names: names of the speakers that are known, likewise.
        role_offsets: int64 [roles + 1].
        role_kinds: [roles], the kind of a message of that speaker.
        system_kind: the kind that is handed over where it has a tag or says nothing.
        thought_kind: the kind of a message of reasoning; that of an answer follows it.
        key_names: names of the keys of a message, likewise.
        key_offsets: int64 [keys + 1].
        key_uses: [keys], what each is for.
        tag_names: how tags begin, likewise; the first two are around reasoning.
        tag_offsets: int64 [tags + 1].
        plain: as long as the block at least; filled.
        row_starts: of each line that is not blank, filled, as all that follows.
        row_ends: without its line feed.
        known: [rows], whether it is not handed over.
        kinds: [columns, rows], what is noted of a value.
        starts: [columns, rows], where it begins.
        ends: [columns, rows], where it ends.
        num_messages: [rows].
        message_kinds: [messages of all rows].
        message_starts: of their texts.
        message_ends: likewise.

    Returns:
        The number of lines that are not blank.
    """
    size, num_columns = len(data), len(uses)
    row, num_said, at = 0, 0, 0
    begin = 0
    while begin < size:
        first_said, first_at = num_said, at
        for c in range(num_columns):
            kinds[c, row] = ABSENT
        seen = np.uint64(0)
        is_known = False
        i = _skip_space(data, begin, size)
        # Once, so that each `break` goes on behind the object.
        while i < size and data[i] == 123:
            i = _skip_space(data, i + 1, size)
            is_open = not (i < size and data[i] == 125)
            while is_open:
                if i >= size or data[i] != 34:
                    break
                key = i + 1
                close, escaped = _text_end(data, key, size)
                if close < 0 or escaped:
                    break
                i = _skip_space(data, close + 1, size)
                if i >= size or data[i] != 58:
                    break
                i = _skip_space(data, i + 1, size)
                if i >= size:
                    break
                c = _find(data, key, close, column_names, column_offsets)
                here = data[i]
                if c < 0:
                    after = _skip_value(data, i, size, plain, at)
                elif seen >> np.uint64(c) & np.uint64(1):
                    break
                else:
                    seen |= np.uint64(1) << np.uint64(c)
                    use = uses[c]
                    after = _BAD
                    if here == 110:
                        after = _skip_word(data, i, size)
                    elif use == MESSAGES:
                        if here == 91:
                            after, num_said, at = _messages(
                                data, i, size, role_names, role_offsets, role_kinds, system_kind, thought_kind,
                                key_names, key_offsets, key_uses, tag_names, tag_offsets, plain, at,
                                message_kinds, message_starts, message_ends, num_said,
                            )  # fmt: skip
                            kinds[c, row] = OTHER
                    elif use == REFUSED:
                        break
                    elif here == 34:
                        close, escaped = _text_end(data, i + 1, size)
                        if close >= 0:
                            after = close + 1
                            kinds[c, row] = TEXT
                            starts[c, row], ends[c, row] = i + 1, close
                            if escaped:
                                stop = _unescape(data, i + 1, close, plain, at)
                                if stop < 0:
                                    after = _BAD
                                starts[c, row], ends[c, row] = ~at, ~stop
                                at = stop
                    elif here == 45 or 48 <= here <= 57:
                        after, whole = _skip_number(data, i, size)
                        starts[c, row], ends[c, row] = i, after
                        if whole and not (here == 45 and data[i + 1] == 48):
                            kinds[c, row] = WHOLE
                        else:
                            kinds[c, row] = FLOAT
                        if use == SAID or (use == NAMED and kinds[c, row] != WHOLE):
                            break
                    elif use == KEPT:
                        after = _skip_value(data, i, size, plain, at)
                        starts[c, row], ends[c, row] = i, after
                        kinds[c, row] = BOOLEAN if here == 116 or here == 102 else OTHER
                if after < 0:
                    break
                i = _skip_space(data, after, size)
                if i >= size:
                    break
                if data[i] == 44:
                    i = _skip_space(data, i + 1, size)
                elif data[i] == 125:
                    is_open = False
                else:
                    break
            if not is_open:
                i = _skip_space(data, i + 1, size)
                is_known = i >= size or data[i] == 10
            break
        if not is_known:
            while i < size and data[i] != 10:
                i += 1
        is_blank = True
        if is_known:
            is_blank = False
            if i - begin > max_row_bytes:
                is_known = False
            for c in range(num_columns):
                if required[c] and kinds[c, row] == ABSENT:
                    is_known = False
        else:
            for k in range(begin, i):
                if not (data[k] == 32 or 9 <= data[k] <= 13):
                    is_blank = False
                    break
        if not is_known:
            num_said, at = first_said, first_at
        if not is_blank:
            row_starts[row], row_ends[row] = begin, i
            known[row] = is_known
            num_messages[row] = num_said - first_said
            row += 1
        begin = i + 1
    return row


@njit
def gather(data: U8, plain: U8, starts: I64, offsets: I64, out: U8) -> None:
    """Copy texts, of either buffer, one behind the other.

    Args:
        data: the block.
        plain: the texts that had escapes.
        starts: [texts].
        offsets: int64 [texts + 1], where each of them goes.
        out: filled.
    """
    for i in range(len(starts)):
        at, size = offsets[i], offsets[i + 1] - offsets[i]
        if size == 0:
            continue
        if starts[i] < 0:
            _copy(out, at, plain, ~starts[i], size)
        else:
            _copy(out, at, data, starts[i], size)
