"""No row and no row group takes more memory than its limit, however large a small file becomes when it is unpacked."""

import bz2
import gc
import gzip
import json
import lzma
import re
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from etl.errors import SourceError
from etl.sources import raw, row_groups
from etl.sources.files import cut, list_files
from etl.sources.read import read_split
from etl.sources.row_groups import MAX_ROW_BYTES, Limits
from etl.sources.spec import Source
from tests.etl.sources.toysources import SHAPE, example, rows_of, table

MB = 1_000_000
FIRST = json.dumps(example(1)).encode() + b"\n"
LAST = b"\n" + json.dumps(example(2)).encode() + b"\n"


class Peak:
    """The most bytes that the process held inside the block, beyond what it held before."""

    def __enter__(self) -> "Peak":
        gc.collect()
        pa.default_memory_pool().release_unused()
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.num_bytes = _status("VmHWM") - self._before


def _status(name: str) -> int:
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def deflated(blocks: int) -> bytes:
    """A gzip file of FIRST, blocks of a MB of `x`, and LAST; the blocks are packed once, since each is independent."""
    block = b"x" * MB
    pack = zlib.compressobj(9, wbits=-15)
    first = pack.compress(FIRST) + pack.flush(zlib.Z_FULL_FLUSH)
    packed = pack.compress(block) + pack.flush(zlib.Z_FULL_FLUSH)
    last = pack.compress(LAST) + pack.flush()
    checksum = zlib.crc32(FIRST)
    for _ in range(blocks):
        checksum = zlib.crc32(block, checksum)
    size = len(FIRST) + blocks * MB + len(LAST)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    tail = zlib.crc32(LAST, checksum).to_bytes(4, "little") + size.to_bytes(4, "little")
    return head + first + packed * blocks + last + tail


def test_s10_a_gzip_of_one_line_of_400_mb_is_quarantined_in_less_than_twice_the_limit(tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(deflated(400))
    assert (tmp_path / "x.jsonl.gz").stat().st_size < 2 * MB
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    with Peak() as peak:
        ((batch, (bad,)),) = read_split(source, SHAPE, split, {}, Limits())
    assert peak.num_bytes < 2 * MAX_ROW_BYTES == 128 * MB
    assert batch["source_example_id"].to_pylist() == ["e1", "e2"]
    assert (bad.position, bad.reason, bad.raw) == (len(FIRST), "too_long", b"x" * (1 << 20))
    assert bad.detail == "400,000,000 bytes, above max_row_bytes=64000000"


PACKED = {"xz": lzma.compress, "zst": zstd.compress, "bz2": bz2.compress, "gz": gzip.compress}


@pytest.mark.parametrize("ending", PACKED)
def test_s10_a_bomb_of_any_compression_is_held_up_to_the_limit(tmp_path, ending):
    (tmp_path / f"x.jsonl.{ending}").write_bytes(PACKED[ending](FIRST + b"x" * 40 * MB + LAST))
    with Peak() as peak:
        rows, bad = rows_of(tmp_path, limits=Limits(row_bytes=4 * MB))
    assert peak.num_bytes < 24 * MB
    assert [row["source_example_id"] for row in rows] == ["e1", "e2"]
    assert bad == [(len(FIRST), "too_long")]


@pytest.mark.parametrize("split_bytes", [100_000, 1_500_000, 1 << 30])
def test_s10_a_line_across_many_splits_is_one_bad_row(tmp_path, split_bytes):
    (tmp_path / "x.jsonl").write_bytes(FIRST + b"x" * 4 * MB + LAST)
    rows, bad = rows_of(tmp_path, split_bytes=split_bytes, limits=Limits(row_bytes=2 * MB))
    assert [row["source_example_id"] for row in rows] == ["e1", "e2"]
    assert bad == [(len(FIRST), "too_long")]


# --- Parquet ---------------------------------------------------------------------------------------------------------


def repeated(path: Path, size: int, count: int, store_schema: bool = True) -> None:
    """A file of a few KB whose one row group holds a text of `size` bytes `count` times, by a dictionary."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), ["q" * size])
    pq.write_table(
        table(count, q=text), path, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=store_schema
    )


@pytest.mark.parametrize("as_arrow", [True, False], ids=["a dictionary for Arrow", "text"])
def test_s10_a_row_group_that_grows_by_its_dictionary_is_an_error_while_it_is_decoded(tmp_path, as_arrow):
    repeated(tmp_path / "x.parquet", MB, 300, as_arrow)
    assert (tmp_path / "x.parquet").stat().st_size < 20_000
    assert pq.ParquetFile(tmp_path / "x.parquet").metadata.row_group(0).total_byte_size < 2 * MB
    with Peak() as peak, pytest.raises(SourceError) as raised:
        rows_of(tmp_path, limits=Limits(row_group_bytes=20 * MB))
    assert peak.num_bytes < 250 * MB  # three times the least batch, 64 rows; the row group has 300 MB
    said = str(raised.value)
    assert re.search(r"x\.parquet: row group 0 \(rows 0 to 299\) has \d+,\d+,\d+ bytes or more", said)
    assert "run.max_row_group_bytes=20000000; write the file with smaller row groups, or raise the limit" in said


def test_s10_a_row_group_below_the_limit_is_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "ROW_GROUP_BYTES", 2 * MB)
    monkeypatch.setattr(row_groups, "_DECODED_BYTES", 4 * MB)
    repeated(tmp_path / "x.parquet", MB // 4, 600)
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    with Peak() as peak:
        rows = sum(batch.num_rows for batch, _ in read_split(source, SHAPE, split, {}, Limits()))
    assert rows == 600
    assert peak.num_bytes < 120 * MB


def test_s10_the_footer_alone_refuses_a_row_group(tmp_path, monkeypatch):
    pq.write_table(table(1000), tmp_path / "x.parquet")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", None)
    with pytest.raises(SourceError, match=r"row group 0 \(rows 0 to 999\) has .* above run.max_row_group_bytes=5000"):
        rows_of(tmp_path, limits=Limits(row_group_bytes=5000))


def test_a_parquet_row_whose_texts_are_too_long_together_is_quarantined(tmp_path, monkeypatch):
    monkeypatch.setattr(raw, "RAW_BYTES", 10)
    rows = [example(1), example(2, q="q" * 60, a="a" * 37), example(3, a="b" * 99), example(4, q="q" * 60, a="a" * 38)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    source = Source(spec="toy", path=str(tmp_path))
    (split,) = cut("toy", source, list_files("toy", source, {}), 1 << 30, {})
    ((batch, bad),) = read_split(source, SHAPE, split, {}, Limits(row_bytes=99))
    assert batch["source_example_id"].to_pylist() == ["e1", "e2"]
    assert [(row.position, row.reason, row.raw) for row in bad] == [
        (2, "too_long", b"b" * 10),
        (3, "too_long", b"q" * 10),
    ]
    assert bad[0].detail == "103 bytes, above max_row_bytes=99"
