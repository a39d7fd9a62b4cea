"""Benchmarks as files: where they are, which columns hold questions and answers, and how they are read as items.

A benchmark is small (GSM8K's test set has 1,319 items, MATH's 5,000), so its files are read whole as Python objects,
about 50,000 items a second; this happens once for each change of the files (`etl.filters.contamination`). A path is
whatever `etl.artefacts` takes (a local file, any fsspec URL, `package:NAME/path`), or a glob or a folder. Those are
listed as sources are: links are followed, and suffixes match in any letter case (`etl.sources.listing`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import orjson
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from etl.artefacts import PACKAGE, fetch
from etl.config import Config
from etl.errors import ConfigError, DataError, SourceError, decoding
from etl.sources.compressed import unpacked
from etl.sources.formats.endings import COMPRESSIONS, FORMATS, compression_of, format_of
from etl.sources.listing import list_pattern, pattern_of, summary, told
from etl.storage.location import Location


class Benchmark(Config):
    """One benchmark: its files, and the columns that hold its texts.

    A column may be a path into nested objects, `a.b`. Several columns are joined by newlines, and so are the elements
    of a list (the choices of a question); a number is read as its digits.
    """

    located: ClassVar[frozenset[str]] = frozenset({"path"})

    path: tuple[str, ...] = Field(min_length=1)
    """Files: a path, glob, folder or URL, or a list of them. .parquet, .jsonl, .ndjson, .json (one object per line, or
    one array); all but Parquet also with .gz, .zst, .bz2, .xz."""
    question_columns: tuple[str, ...] = Field(min_length=1)
    """Column or columns of the question."""
    answer_columns: tuple[str, ...] = ()
    """Column or columns of the reference answer; if empty, answers are not compared."""
    id_column: str | None = Field(default=None, min_length=1)
    """Column with the name of an item; null: its position, counted from 0 over all files in path order."""

    @field_validator("path", "question_columns", "answer_columns", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def benchmark_files(name: str, benchmark: Benchmark) -> list[Path]:
    """The local files of a benchmark; remote ones are copied into the cache.

    Raises:
        ConfigError: there is no file, or one has an unsupported suffix.
        SourceError: the store cannot be reached, or a link is broken.
    """
    key = f"benchmarks.{name}.path"
    try:
        urls = sorted({url for pattern in benchmark.path for url in _expand(pattern)})
        return [fetch(url, None) for url in urls]
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    except (DataError, SourceError) as error:
        raise SourceError(f"{key}: {error}") from error


def _expand(pattern: str) -> Iterator[str]:
    """The URLs that a path, glob or folder names, found in the way of a source's files."""
    if pattern.startswith(PACKAGE):
        yield _readable(pattern)
        return
    place = Location.of(pattern)
    if place.ask("list", lambda: pattern_of(place)) is None:
        yield _readable(place.url)
        return
    listing = place.ask("list", lambda: list_pattern(place, _format_of))
    if not listing.files:
        there = "".join(f" ({line})" for line in told(summary(listing.left_out.values())))
        raise ConfigError(f"no file of {FORMATS} matches {pattern}; correct the path{there}")
    for found in listing.files:
        yield place.fs.unstrip_protocol(found.path) if "://" in place.url else found.path


def _format_of(name: str) -> str | None:
    """How a benchmark's file is read; None for one that is not read."""
    found = format_of(name)
    return found if found in ("parquet", "jsonl") else None


def _readable(url: str) -> str:
    if _format_of(url) is None:
        raise ConfigError(f"{url} is neither Parquet nor JSON (possibly compressed: {COMPRESSIONS}); convert it")
    return url


def read_items(name: str, benchmark: Benchmark, files: list[Path]) -> Iterator[tuple[str, str, str]]:
    """(item, question, answer) of each row; an absent text is empty.

    Raises:
        ConfigError: no row has a column, a column is neither text nor number, or there is no question at all.
        SourceError: a file is damaged.
    """
    rows = [row for file in files for row in _read_file(name, file)]
    columns = [*benchmark.question_columns, *benchmark.answer_columns, *filter(None, [benchmark.id_column])]
    for column in columns:
        if rows and not any(_has(row, column) for row in rows):
            raise ConfigError(
                f"benchmarks.{name}: no row has the column '{column}'; the first row has {sorted(rows[0])}"
            )
    questions = [_joined(name, row, benchmark.question_columns) for row in rows]
    if not any(question.strip() for question in questions):
        where = ", ".join(map(str, files))
        raise ConfigError(
            f"benchmarks.{name}: {where} holds no text in {list(benchmark.question_columns)} ({len(rows)} rows); "
            "give another file or column, or remove the benchmark"
        )
    for position, (row, question) in enumerate(zip(rows, questions, strict=True)):
        item = None if benchmark.id_column is None else _text(name, benchmark.id_column, _get(row, benchmark.id_column))
        yield item or str(position), question, _joined(name, row, benchmark.answer_columns)


def _read_file(name: str, file: Path) -> list[dict[str, Any]]:
    try:
        rows = _read_parquet(file) if format_of(file.name) == "parquet" else _read_json(file)
    except (DataError, SourceError) as error:
        raise SourceError(f"benchmarks.{name}: {error}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ConfigError(
                f"benchmarks.{name}: row {number} of {file} is a {type(row).__name__}; a row must be an object "
                "with columns"
            )
    return rows


def _read_parquet(file: Path) -> list[Any]:
    with decoding(str(file)):
        return pq.read_table(file).to_pylist()


def _read_json(file: Path) -> list[Any]:
    with Location.of(file).open() as stored:
        data = unpacked(compression_of(file.name), str(file), stored).read()
    data = data.removeprefix(b"\xef\xbb\xbf").strip()
    with decoding(str(file)):
        if data.startswith(b"["):
            return orjson.loads(data)
        return [orjson.loads(line) for line in data.split(b"\n") if line.strip()]


_ABSENT: Final = object()


def _lookup(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column or of a path of columns; `_ABSENT` if there is none."""
    if column in row:
        return row[column]
    value: Any = row
    for piece in column.split("."):
        if not isinstance(value, dict) or piece not in value:
            return _ABSENT
        value = value[piece]
    return value


def _has(row: Mapping[str, Any], column: str) -> bool:
    return _lookup(row, column) is not _ABSENT


def _get(row: Mapping[str, Any], column: str) -> Any:
    value = _lookup(row, column)
    return None if value is _ABSENT else value


def _joined(name: str, row: Mapping[str, Any], columns: tuple[str, ...]) -> str:
    return "\n".join(text for column in columns if (text := _text(name, column, _get(row, column))))


def _text(name: str, column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "\n".join(text for element in value if (text := _text(name, column, element)))
    if isinstance(value, str | int | float):
        return str(value)
    raise ConfigError(
        f"benchmarks.{name}: column '{column}' holds a {type(value).__name__}, but text is needed; give a key "
        f"inside it, such as '{column}.text'"
    )
