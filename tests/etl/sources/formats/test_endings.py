"""What the ending of a name means, in any case and spelling."""

import pytest

from etl.sources.formats.endings import compression_of, format_of


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("a.parquet", "parquet", None),
        ("a.Parquet", "parquet", None),
        ("a.pq", "parquet", None),
        ("part.snappy.parquet", "parquet", None),
        ("a.parquet.gzip", "parquet", None),
        ("a.jsonl", "jsonl", None),
        ("A.JSONL", "jsonl", None),
        ("a.NDJson", "jsonl", None),
        ("a.jsonlines", "jsonl", None),
        ("a.json.GZ", "jsonl", "gzip"),
        ("a.jsonl.gzip", "jsonl", "gzip"),
        ("a.jsonl.zstd", "jsonl", "zstd"),
        ("a.JSONL.Zst", "jsonl", "zstd"),
        ("a.ndjson.bz2", "jsonl", "bz2"),
        ("a.json.xz", "jsonl", "xz"),
        ("x.parquet/a.jsonl.gz", "jsonl", "gzip"),
        ("a.csv", "csv", None),
        ("a.TSV.gz", "tsv", "gzip"),
        ("a.arrow", "arrow", None),
        ("a.feather", "arrow", None),
        ("a.txt", "text", None),
        ("a.TXT.zst", "text", "zstd"),
        ("a.md", None, None),
        ("a.gz", None, "gzip"),
        ("a.jsonl.gz.zst", None, "zstd"),
        ("a.jsonl.bak", None, None),
        ("jsonl", None, None),
        (".jsonl", None, None),
        ("x.jsonl/a", None, None),
    ],
)
def test_format_and_compression_of_a_name(name, kind, compression):
    assert (format_of(name), compression_of(name)) == (kind, compression)
