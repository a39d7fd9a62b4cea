"""Compressed files: their contents, whatever wrote them, and an error for each cut and change that can be seen."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tracemalloc

import pytest
from backports import zstd

from etl.errors import SourceError
from etl.sources.compressed import _FORMATS, unpacked

CHECKED: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
PACK = {
    "gzip": gzip.compress,
    "zstd": lambda data: zstd.compress(data, options=CHECKED),
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
TEXT = b"".join(b'{"id": "e%d", "text": "%d"}\n' % (n, 7**n) for n in range(12))


def read(compression: str, stored: bytes) -> bytes:
    return unpacked(compression, "/in/a.jsonl.x", io.BytesIO(stored)).read()


def is_refused(compression: str, stored: bytes) -> bool:
    """Whether the file is an error that names it; what is read of it otherwise must be looked at."""
    try:
        read(compression, stored)
    except SourceError as error:
        return str(error).startswith("/in/a.jsonl.x cannot be read")
    return False


def test_every_compression_is_tested():
    assert set(PACK) == set(_FORMATS)


def test_what_is_not_compressed_is_read_as_it_is():
    stored = io.BytesIO(b"\x1f\x8b")
    assert unpacked(None, "/in/a.jsonl", stored) is stored


@pytest.mark.parametrize("compression", PACK)
def test_members_follow_one_another(compression):
    pack = PACK[compression]
    for texts in ([b""], [TEXT], [TEXT, TEXT], [b"", TEXT, b""], [b"%d\n" % n for n in range(300)]):
        assert read(compression, b"".join(map(pack, texts))) == b"".join(texts)


@pytest.mark.parametrize("compression", PACK)
def test_a_cut_at_any_byte_but_the_border_of_members_is_an_error(compression):
    members = [PACK[compression](TEXT[:100]), PACK[compression](b""), PACK[compression](TEXT)]
    stored = b"".join(members)
    borders = {len(b"".join(members[:count])) for count in (1, 2, 3)}
    assert [end for end in range(len(stored) + 1) if not is_refused(compression, stored[:end])] == sorted(borders)


@pytest.mark.parametrize("compression", PACK)
def test_a_changed_byte_gives_an_error_or_the_same_text(compression):
    """The same text: names, times and the like in a header decide nothing."""
    stored = PACK[compression](TEXT)
    for place in range(len(stored)):
        changed = stored[:place] + bytes([stored[place] ^ 0x41]) + stored[place + 1 :]
        assert is_refused(compression, changed) or read(compression, changed) == TEXT, place


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("tail", [b"x", b"trailing garbage", b"\n", TEXT])
def test_what_follows_a_member_and_is_none_is_an_error(compression, tail):
    assert is_refused(compression, PACK[compression](TEXT) + tail)


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize("stored", [b"", b"\0", b"\0" * 64, TEXT], ids=["empty", "zero", "zeros", "plain"])
def test_a_file_that_is_not_compressed_is_an_error(compression, stored):
    assert is_refused(compression, stored)


@pytest.mark.parametrize(
    ("compression", "allowed"), [("gzip", {1, 4, 70_000}), ("xz", {4, 70_000}), ("zstd", set()), ("bz2", set())]
)
def test_zeros_after_a_member_are_padding_where_the_format_says_so(compression, allowed):
    packed = PACK[compression](TEXT)
    for count in (1, 4, 70_000):
        for tail, text in ((b"", TEXT), (packed, TEXT + TEXT)):
            stored = packed + bytes(count) + tail
            assert is_refused(compression, stored) if count not in allowed else read(compression, stored) == text


def test_skippable_frames_of_zstd_hold_nothing():
    packed = PACK["zstd"](TEXT)
    skipped = struct.pack("<II", 0x184D2A50, 5) + b"hello"
    assert read("zstd", skipped + packed + skipped + packed + skipped) == TEXT + TEXT
    assert is_refused("zstd", packed + skipped[:-1])


def test_optional_header_fields_of_gzip():
    packed = io.BytesIO()
    with gzip.GzipFile("named.txt", "wb", fileobj=packed) as file:
        file.write(TEXT)
    assert read("gzip", packed.getvalue()) == TEXT


@pytest.mark.parametrize("window_log", [27, 31])
def test_a_frame_of_zstd_with_a_large_window_is_read(window_log):
    """Without a length in its header, so that the window is what the frame says: 128 MiB and 2 GiB."""
    options = {zstd.CompressionParameter.window_log: 20, zstd.CompressionParameter.content_size_flag: 0}
    stored = bytearray(zstd.compress(TEXT, options=options))
    assert stored[4] & 0x20 == 0  # not a single segment: the window descriptor follows
    stored[5] = (window_log - 10) << 3
    assert read("zstd", bytes(stored)) == TEXT
    stored[5] = (32 - 10) << 3
    with pytest.raises(SourceError, match="too much memory"):
        read("zstd", bytes(stored))


@pytest.mark.parametrize("compression", PACK)
def test_a_file_that_holds_a_thousand_times_its_size_is_read_in_pieces(compression):
    size = 48 << 20
    stored = PACK[compression](bytes(size))
    tracemalloc.start()
    stream = unpacked(compression, "a", io.BytesIO(stored))
    total = sum(len(piece) for piece in iter(lambda: stream.read(1 << 20), b""))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == size
    assert peak < 16 << 20


@pytest.mark.parametrize("compression", PACK)
def test_pieces_of_any_size_are_the_whole(compression):
    draw = random.Random(0)
    text = draw.randbytes(300_000)
    stored = PACK[compression](text[:200_000]) + PACK[compression](text[200_000:])
    stream, pieces = unpacked(compression, "a", io.BytesIO(stored)), []
    while piece := stream.read(draw.choice([1, 1000, 65_536, 100_000])):
        pieces.append(piece)
    assert b"".join(pieces) == text
