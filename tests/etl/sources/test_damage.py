"""Damaged files of every format: whole rows, bad rows that are counted, or a SourceError that names the file.

Real files are cut, and bytes of them are changed, inserted and removed, anywhere. Only those three may come of it. No
row may be missing without an error where the format shows that one is.
"""

import gzip
import json
import lzma
from bz2 import compress as bz2_compress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import SourceError
from tests.etl.sources.test_read import lines_by_hand
from tests.etl.sources.toysources import example, rows_of

CHECKED: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
PACK = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".zst": lambda data: zstd.compress(data, options=CHECKED),
    ".bz2": bz2_compress,
    ".xz": lzma.compress,
}
ROWS = [example(n, why="since " * (n % 3), lang="en", m={"x": [n, None]}) for n in range(24)]
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]
MEMBERS = [b"".join(LINES[start : start + 8]) for start in (0, 8, 16)]

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["cut", "flip", "insert", "delete"]),
        st.floats(0, 1, exclude_max=True),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=3,
)


def damaged(data: bytes, changes) -> bytes:
    for kind, place, piece in changes:
        at = int(place * len(data))
        if kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        elif kind == "delete":
            data = data[:at] + data[at + len(piece) :]
        else:
            end = min(len(data), at + len(piece))
            data = data[:at] + bytes(a ^ b for a, b in zip(data[at:end], piece, strict=False)) + data[end:]
    return data


def read(path, split_bytes=1 << 30):
    """The rows and bad rows of a file, or None where it is refused with its name; anything else is a failure."""
    try:
        return rows_of(path, split_bytes=split_bytes)
    except SourceError as error:
        told = str(error)
    assert path.name in told
    assert "\n" not in told
    return None


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("damage")


@settings(max_examples=60)
@given(changes=CHANGES, split_bytes=st.sampled_from([100, 1 << 30]))
def test_damaged_jsonl(scratch, changes, split_bytes):
    path = scratch / "x.jsonl"
    path.write_bytes(damaged(b"".join(LINES), changes))
    got = read(path, split_bytes)
    good, bad = lines_by_hand(path.read_bytes())
    assert got is not None
    assert len(got[0]) + len(got[1]) == len(good) + len(bad)


@pytest.mark.parametrize("suffix", PACK)
@settings(max_examples=60)
@given(changes=CHANGES)
def test_damaged_compressed_jsonl(scratch, suffix, changes):
    """Checksums show every change, so what is read is made of whole members."""
    path = scratch / f"x.jsonl{suffix}"
    path.write_bytes(damaged(b"".join(map(PACK[suffix], MEMBERS)), changes))
    got = read(path)
    if got is not None:
        assert got[1] == []
        ids = [row["source_example_id"] for row in got[0]]
        groups = [ids[start : start + 8] for start in range(0, len(ids), 8)]
        assert all(group in [[f"e{n}" for n in range(start, start + 8)] for start in (0, 8, 16)] for group in groups)


@pytest.mark.parametrize("suffix", PACK)
def test_compressed_jsonl_that_is_cut_anywhere(tmp_path, suffix):
    """Whole at the end of each member, an error at each other byte."""
    members = [PACK[suffix](member) for member in MEMBERS]
    data = b"".join(members)
    borders = {len(b"".join(members[:count])): 8 * count for count in (1, 2, 3)}
    path = tmp_path / f"x.jsonl{suffix}"
    for end in {*range(0, len(data), 3), *borders, *(border - 1 for border in borders)}:
        path.write_bytes(data[:end])
        got = read(path)
        assert (None if got is None else len(got[0])) == borders.get(end)


PARQUET = {
    "plain": {"compression": "none", "use_dictionary": False},
    "snappy": {"compression": "snappy"},
    "zstd": {"compression": "zstd", "write_page_checksum": True, "data_page_version": "2.0"},
    "gzip": {"compression": "gzip", "use_dictionary": False},
}


def parquet(path, **options) -> bytes:
    table = pa.Table.from_pylist(ROWS)
    table = table.append_column("task", pa.array(["sum"] * len(ROWS)).dictionary_encode())
    pq.write_table(table, path, row_group_size=8, **options)
    return path.read_bytes()


@pytest.mark.parametrize("kind", PARQUET)
@settings(max_examples=60)
@given(changes=CHANGES, split_bytes=st.sampled_from([1, 1 << 30]))
def test_damaged_parquet(scratch, kind, changes, split_bytes):
    path = scratch / f"{kind}.parquet"
    path.write_bytes(damaged(parquet(path, **PARQUET[kind]), changes))
    got = read(path, split_bytes)
    if got is not None:
        assert len(got[0]) + len(got[1]) == pq.read_metadata(path).num_rows


@pytest.mark.parametrize("kind", PARQUET)
def test_parquet_that_is_cut_anywhere(tmp_path, kind):
    path = tmp_path / "x.parquet"
    data = parquet(path, **PARQUET[kind])
    for end in range(0, len(data), 29):
        path.write_bytes(data[:end])
        assert read(path) is None
