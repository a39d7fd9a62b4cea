"""Which files a pattern finds, what identifies them, and where they are cut."""

import gzip
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import SourceError
from etl.sources.files import OPEN_BYTES, cut, list_files, split_bytes_of
from etl.sources.sample import sample_folder
from etl.sources.spec import Source
from etl.storage.location import Location


@pytest.fixture(params=["local", "memory"])
def tree(request, tmp_path):
    """A folder with files that are data and files that are not."""
    folder = Location.of(tmp_path / "in" if request.param == "local" else f"memory://{uuid.uuid4().hex}")
    for name in (
        "a.jsonl", "b.json", "sub/c.ndjson", "sub/d.jsonl.gz", "sub/deep/e.jsonl.zst",
        "notes.txt", "readme.md.gz", ".hidden.jsonl", "_SUCCESS", "_receipts/1.json", "sub/.tmp/f.jsonl",
        "sub/_g.jsonl",
    ):  # fmt: skip
        (folder / name).create(name.encode())
    yield folder
    folder.remove_tree()


def source(path, **more) -> Source:
    return Source(spec="toy", path=str(path) if not isinstance(path, tuple) else path, **more)


def listed(path) -> list[str]:
    return [file.relative for file in list_files("toy", source(path), {})]


def test_a_folder_gives_its_data_files_sorted(tree):
    names = ["a.jsonl", "b.json", "sub/c.ndjson", "sub/d.jsonl.gz", "sub/deep/e.jsonl.zst"]
    assert listed(tree) == names
    assert listed(f"{tree}/") == names
    found = list_files("toy", source(tree), {})
    assert [file.bytes for file in found] == [len(name) for name in names]
    assert [Location.of(file.url).read().decode() for file in found] == names


def test_globs_leave_hidden_files_out_like_a_shell(tree):
    assert listed(tree / "*.json*") == ["a.jsonl", "b.json"]
    assert listed(tree / "sub/*.ndjson") == ["c.ndjson"]
    assert listed(tree / "**/*.jsonl*") == ["a.jsonl", "sub/d.jsonl.gz", "sub/deep/e.jsonl.zst"]
    assert listed(tree / "s?b/[a-c].ndjson") == ["sub/c.ndjson"]


def test_a_folder_that_a_glob_matches_is_no_file(tree):
    (tree / "sub/x.jsonl/y.jsonl").create(b"{}")
    assert listed(tree / "sub/*.jsonl*") == ["d.jsonl.gz"]


def test_one_file(tree):
    (file,) = list_files("toy", source(tree / "sub/c.ndjson"), {})
    assert (file.relative, file.bytes) == ("c.ndjson", 12)
    assert listed(tree / ".hidden.jsonl") == [".hidden.jsonl"]


def test_a_list_of_patterns_names_each_file_once(tree):
    paths = (f"{tree}/a.jsonl", f"{tree}/*.json*", f"{tree}/sub/*.gz")
    assert listed(paths) == ["a.jsonl", "b.json", "d.jsonl.gz"]


def test_the_order_does_not_depend_on_the_order_of_a_list(tree):
    paths = (f"{tree}/b.json", f"{tree}/a.jsonl")
    assert list_files("toy", source(paths), {}) == list_files("toy", source(paths[::-1]), {})


def test_the_embedded_sample(tmp_path):
    found = list_files("toy", source("sample:synth"), {})
    assert found
    assert all(Location.of(file.url).path.startswith(str(sample_folder())) for file in found)


@pytest.mark.parametrize("path", ["none.jsonl", "*.parquet", "none/", "_SUCCES?", "sub/.tmp2"])
def test_a_pattern_without_a_file_is_an_error_that_says_what_to_check(tree, path):
    with pytest.raises(SourceError, match=r"source 'toy': no file of .* matches .*; check sources\.toy\.path"):
        listed(tree / path)


def test_a_file_that_cannot_be_read_is_refused_when_it_was_named(tree):
    with pytest.raises(SourceError, match=r"readme\.md\.gz is not one of .*\.parquet"):
        listed(tree / "readme.md.gz")


def test_one_empty_pattern_of_a_list_is_an_error(tree):
    with pytest.raises(SourceError, match=r"no file .* matches .*none\.jsonl"):
        listed((f"{tree}/a.jsonl", f"{tree}/none.jsonl"))


def test_the_etag_is_of_the_content(tree):
    def etag() -> str:
        return list_files("toy", source(tree / "a.jsonl"), {})[0].etag

    first = etag()
    (tree / "a.jsonl").replace(b"A.jsonl")
    assert etag() != first
    (tree / "a.jsonl").replace(b"a.jsonl")
    assert etag() == first


def test_an_etag_of_the_store_is_taken_as_it_is(tmp_path, monkeypatch):
    place = Location.of(f"memory://{uuid.uuid4().hex}/a.jsonl")
    place.create(b"{}")
    info = place.fs.info(place.path)
    monkeypatch.setattr(type(place.fs), "info", lambda *_, **__: info | {"ETag": '"abc"'})
    assert list_files("toy", source(place), {})[0].etag == "abc"


def pieces(path, split_bytes) -> list[list[tuple[str, int, int]]]:
    given = source(path)
    return [
        [(piece.file.relative, piece.start, piece.end) for piece in split.pieces]
        for split in cut("toy", given, list_files("toy", given, {}), split_bytes, {})
    ]


def splits(path, split_bytes) -> list[tuple[str, int, int]]:
    """Where each split has only one piece."""
    return [piece for (piece,) in pieces(path, split_bytes)]


def test_jsonl_is_cut_at_byte_ranges_and_a_compressed_file_is_not_cut(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"x" * 25)
    (tmp_path / "b.jsonl").write_bytes(b"")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"x" * 1000, mtime=0))
    size = (tmp_path / "c.jsonl.gz").stat().st_size
    assert splits(tmp_path, 10) == [
        ("a.jsonl", 0, 10),
        ("a.jsonl", 10, 20),
        ("a.jsonl", 20, 25),
        ("c.jsonl.gz", 0, size),
    ]
    assert splits(tmp_path / "a.jsonl", 25) == [("a.jsonl", 0, 25)]


def test_parquet_is_cut_at_row_groups(tmp_path):
    table = pa.table({"n": list(range(100))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="none", use_dictionary=False)
    group = round((tmp_path / "a.parquet").stat().st_size / 10)
    assert splits(tmp_path, 1) == [("a.parquet", n, n + 1) for n in range(10)]
    assert splits(tmp_path, 3 * group) == [("a.parquet", *ends) for ends in ((0, 3), (3, 6), (6, 9), (9, 10))]
    nearest = [splits(tmp_path, round(size * group))[0][2] for size in (2.4, 2.6, 3.4, 3.6)]
    assert nearest == [2, 3, 3, 4]
    whole = (tmp_path / "a.parquet").stat().st_size
    assert splits(tmp_path, whole - 1)[0][1:] == (0, 9 + (10 * group < whole))
    assert splits(tmp_path, whole) == [("a.parquet", 0, whole)], "its footer is not asked for"


def test_files_share_a_split_in_the_order_of_the_listing(tmp_path):
    for name, size in (("a", 9000), ("b", 1), ("c", 5000), ("d", 0), ("e", 12000), ("f", 5000)):
        (tmp_path / f"{name}.jsonl").write_bytes(b"x" * size)
    whole = [[("b.jsonl", 0, 1), ("c.jsonl", 0, 5000)], [("e.jsonl", 0, 10_000)]]
    assert pieces(tmp_path, 10_000) == [
        [("a.jsonl", 0, 9000)], *whole, [("e.jsonl", 10_000, 12_000), ("f.jsonl", 0, 5000)],
    ]  # fmt: skip
    assert pieces(tmp_path, 1 << 20) == [[(f"{name}.jsonl", 0, size) for name, size in (
        ("a", 9000), ("b", 1), ("c", 5000), ("e", 12_000), ("f", 5000),
    )]]  # fmt: skip


def test_a_file_counts_for_its_opening_however_small_it_is(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.jsonl").write_bytes(b"{}")
    assert [len(split) for split in pieces(tmp_path, 4 * OPEN_BYTES)] == [4, 4, 2]


@pytest.mark.parametrize(
    ("input_bytes", "split_bytes"),
    [
        (0, 4 << 20), (96 << 20, 4 << 20), (96 << 20 | 24, (4 << 20) + 1), (1 << 30, (1 << 30) // 24),
        (24 * 128 << 20, 128 << 20), (1 << 50, 128 << 20),
    ],
)  # fmt: skip
def test_without_a_number_of_the_recipe_splits_follow_the_input_alone(input_bytes, split_bytes):
    assert split_bytes_of(input_bytes) == split_bytes


def test_parquet_that_is_cut_short_is_a_source_error(tmp_path):
    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-5])
    with pytest.raises(SourceError, match=r"a\.parquet is not a readable Parquet file"):
        splits(tmp_path, 10)
