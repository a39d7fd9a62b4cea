"""What the ending of a file's name says: how its rows are written and how its bytes are packed, in any letter case."""

import posixpath

FORMATS = (".parquet", ".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".arrow", ".feather", ".txt", ".warc", ".wet")
"""The usual endings, as messages name them."""
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
"""What may stand behind them."""

_FORMATS = {
    ".parquet": "parquet", ".pq": "parquet", ".parq": "parquet",
    ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".jsonlines": "jsonl", ".jl": "jsonl",
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
    ".txt": "text", ".warc": "warc", ".wet": "warc",
}  # fmt: skip
_COMPRESSIONS = {
    ".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".bzip2": "bz2", ".xz": "xz",
}  # fmt: skip
"""Ending -> name of the compression in fsspec."""


def format_of(name: str) -> str | None:
    """`parquet`, `jsonl` (any JSON), `csv`, `tsv`, `arrow`, `text` or `warc`; None where the ending is no one's.

    One compression may stand behind it.
    """
    stem, ending = posixpath.splitext(name.lower())
    if ending in _COMPRESSIONS:
        ending = posixpath.splitext(stem)[1]
    return _FORMATS.get(ending)


def compression_of(name: str) -> str | None:
    """What fsspec calls the compression of a file; None where there is none.

    Parquet packs its pages itself, whatever its name says: `a.parquet.gzip` is how pandas' documentation calls a
    Parquet file with such pages.
    """
    return None if format_of(name) == "parquet" else _COMPRESSIONS.get(posixpath.splitext(name.lower())[1])


def is_json_document(name: str) -> bool:
    """Whether a name says that the file is one JSON text, `.json`, though many such files hold lines."""
    stem, ending = posixpath.splitext(name.lower())
    return ending == ".json" or (ending in _COMPRESSIONS and stem.endswith(".json"))
