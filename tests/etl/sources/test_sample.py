"""The embedded sample: its promised shape, and the derived texts on functions whose outline is known."""

import ast
import importlib.util
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import ConfigError
from etl.sources import sample

SOURCE = '''
class Cask:
    @property
    def fill(self, litres, *extra, limit=40):
        """Fill the cask. Never spills.

        Raises ValueError when it would.
        """
        if litres > limit:
            raise ValueError(litres)
        for part in extra:
            litres = add(litres, part)
        return litres
'''


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    sample.write_sample(folder)
    return folder


def rows_of(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_every_parquet_source_has_the_native_schema_and_unique_ids(written):
    for name, at_least in {"stdlib": 2000, "licences": 100, "dialogue": 1000}.items():
        for path in (written / name).iterdir():
            assert pq.read_schema(path) == sample.SYNTH
        rows = rows_of(written / name)
        assert len(rows) >= at_least
        assert len({row["synth_id"] for row in rows}) == len(rows)
        assert all(row["query"] and row["synthetic_answer"] for row in rows)
        assert all(value is not None for row in rows for value in row.values())


def test_the_largest_source_is_two_files_of_several_row_groups(written):
    files = [pq.ParquetFile(path) for path in sorted((written / "stdlib").iterdir())]
    assert len(files) == 2
    assert all(file.num_row_groups >= 3 for file in files)


def test_size_is_what_the_page_says(written):
    rows = [row for name in ("stdlib", "licences", "dialogue") for row in rows_of(written / name)]
    text = sum(len(row["query"]) + len(row["synthetic_reasoning"]) + len(row["synthetic_answer"]) for row in rows)
    assert 3_000 <= len(rows) <= 5_000
    assert 4e6 <= text <= 8e6


def test_a_second_writing_touches_nothing(written):
    before = {path: path.stat().st_mtime_ns for path in sorted(written.rglob("*.*"))}
    sources = sample.write_sample(written)
    assert {path: path.stat().st_mtime_ns for path in sorted(written.rglob("*.*"))} == before
    assert sources["stdlib"] == str(written / "stdlib" / "*.parquet")
    assert sources["synth"] == str(written / "synth" / "*.jsonl")


def test_a_damaged_file_is_written_again(written):
    path = written / "licences" / "part-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(b"cut short")
    sample.write_sample(written)
    assert path.read_bytes() == whole


def test_every_language_of_the_dialogues_is_there(written):
    assert {row["language"] for row in rows_of(written / "dialogue")} == set(sample.LANGUAGES.values())


def test_licences_repeat_each_other(written):
    texts = [row["synthetic_answer"] for row in rows_of(written / "licences")]
    assert len(set(texts)) < len(texts)


def test_the_hand_written_rows_have_exactly_the_native_columns():
    lines = (Path(sample.__file__).parents[2] / "conf" / "sample" / "synth.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) >= 40
    assert all(list(row) == sample.SYNTH.names for row in rows)
    assert len({row["query"] for row in rows}) == len(rows)
    assert len({row["language"] for row in rows}) >= 10
    assert all(row["words"] == len(row["synthetic_answer"].split()) for row in rows)
    assert pa.Table.from_pylist(rows, schema=sample.SYNTH).num_rows == len(rows)


def test_the_flawed_file_has_three_unreadable_rows_and_exact_copies():
    folder = Path(sample.__file__).parents[2] / "conf" / "sample"
    good = {json.dumps(json.loads(line)) for line in (folder / "synth.jsonl").read_text("utf-8").split("\n")[:-1]}
    unreadable = copies = 0
    for line in (folder / "synth_flawed.jsonl").read_text("utf-8").split("\n")[:-1]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            unreadable += 1
            continue
        if isinstance(row, dict) and "query" in row:
            copies += json.dumps(row) in good
        else:
            unreadable += 1
    assert (unreadable, copies) == (3, 3)


@pytest.fixture
def function(tmp_path: Path) -> sample._Function:
    path = tmp_path / "casks.py"
    path.write_text(SOURCE)
    [found] = sample._functions_of(path, "casks")
    return found


def test_outline_names_arguments_guards_loops_helpers_and_result(function):
    assert sample._outline(function).split("\n") == [
        "Purpose of `Cask.fill`: Fill the cask.",
        "Arguments: `litres`, `limit`, `*extra`; 1 of them without a default.",
        "- Guard: when `litres > limit`, raise `ValueError(litres)`.",
        "- Loop: `part` runs over `extra`.",
        "- Result: `litres`.",
        "Helpers that it needs: `ValueError`, `add`.",
    ]


def test_the_code_row_is_the_source_and_the_docstring_row_leaves_it_out(function):
    source = sample._implemented(function)["synthetic_answer"]
    assert source.startswith('```python\n@property\ndef fill(self, litres, *extra, limit=40):\n    """Fill the cask.')
    row = sample._documented(function)
    assert row["synthetic_answer"] == "Fill the cask. Never spills.\n\nRaises ValueError when it would."
    assert "Fill the cask" not in row["query"]
    bare = row["query"].split("```python\n")[1].removesuffix("```")
    expected = "@property\ndef fill(self, litres, *extra, limit=40):\n    if litres"
    assert ast.unparse(ast.parse(bare)).startswith(expected)


def test_pieces_of_a_topic_join_to_the_whole():
    text = "\n\n".join("x" * 900 for _ in range(7))
    pieces = list(sample._pieces(text))
    assert "\n\n".join(pieces) == text
    assert [len(piece) for piece in pieces] == [1802, 1802, 1802, 900]


def test_without_the_dialogue_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"chatterbot-corpus.* is not installed; install the extra `demo`"):
        list(sample._dialogues())


def test_a_python_without_sources_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sample.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match="no source code of its standard library"):
        list(sample._functions())
