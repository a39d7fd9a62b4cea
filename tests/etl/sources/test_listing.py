"""Which files a pattern names, through links too, and what is reported of the rest."""

import os
import uuid

import pytest

from etl.errors import SourceError
from etl.sources.files import list_source
from etl.sources.listing import FOLDER, Pattern, told
from etl.sources.spec import Source
from etl.storage.location import Location


def listed(path):
    found = list_source("toy", Source(spec="toy", path=str(path)), {})
    return [file.relative for file in found.files], found.left_out


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def counted(*names, files=None):
    return {"files": len(names) if files is None else files, "names": list(names)}


# --- what is left out ---


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_every_file_that_is_not_read_is_counted_by_its_reason(tmp_path, kind):
    folder = Location.of(tmp_path / "in" if kind == "local" else f"memory://{uuid.uuid4().hex}")
    endings = [f"n{number}.doc" for number in range(7)]
    hidden = ["_SUCCESS", "_manifest.json", ".a.jsonl", ".git/x/y.jsonl", "_temporary/z.jsonl", "sub/_b.jsonl"]
    for name in ("a.JSONL", "sub/b.jsonl.zstd", "sub/data.doc", "_c=1/d.pq", *endings, *hidden):
        (folder / name).create(b"x")
    files, left_out = listed(folder)
    assert files == ["_c=1/d.pq", "a.JSONL", "sub/b.jsonl.zstd"]
    assert left_out == {
        "hidden": counted(*sorted(hidden)[:5], files=6),
        "unknown ending": counted(*endings[:5], files=8),
    }
    assert list(told(left_out))[1] == "8 skipped (unknown ending): n0.doc, n1.doc, n2.doc, n3.doc, n4.doc, …"
    folder.remove_tree()


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_glob_tells_what_it_names_and_does_not_read(tmp_path, kind):
    folder = Location.of(tmp_path / "in" if kind == "local" else f"memory://{uuid.uuid4().hex}")
    for name in ("a.jsonl", "b.doc", "sub/c.jsonl", "_d", ".e/f.jsonl", "x/y/z.doc"):
        (folder / name).create(b"x")
    files, left_out = listed(folder / "*")
    assert files == ["a.jsonl"]
    assert left_out == {
        "unknown ending": counted("b.doc"),
        "hidden": counted(".e/", "_d"),
        FOLDER: counted("sub/", "x/"),
    }
    assert listed(folder / "*/*") == (["sub/c.jsonl"], {"hidden": counted(".e/f.jsonl"), FOLDER: counted("x/y/")})
    assert listed(folder / "*.jsonl") == (["a.jsonl"], {})
    folder.remove_tree()


def test_nothing_is_left_out_twice_and_nothing_that_is_read(tmp_path):
    fill(tmp_path, "a.jsonl", ".b.jsonl", "c.doc")
    paths = (str(tmp_path), f"{tmp_path}/*", f"{tmp_path}/.b.jsonl")
    found = list_source("toy", Source(spec="toy", path=paths), {})
    assert [file.relative for file in found.files] == [".b.jsonl", "a.jsonl"]
    assert found.left_out == {"unknown ending": counted("c.doc")}


def test_where_nothing_is_read_the_error_tells_what_is_there(tmp_path):
    fill(tmp_path, "a.doc", "_b.jsonl")
    with pytest.raises(SourceError, match=r"no file .*\(1 skipped \(hidden\): _b\.jsonl; .*ending\): a\.doc\)"):
        listed(tmp_path)


def test_what_is_no_file_is_told(tmp_path):
    fill(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "b.jsonl")
    assert listed(tmp_path) == (["a.jsonl"], {"not a regular file": counted("b.jsonl")})


# --- links ---


@pytest.fixture
def cache(tmp_path):
    """What a hub cache looks like: a snapshot of links to blobs that have no ending, and a link to a folder."""
    fill(tmp_path, "blobs/0a", "blobs/0b", "other/deep/c.jsonl")
    snapshot = tmp_path / "snapshots" / "rev"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data" / "a.jsonl").symlink_to("../../../blobs/0a")
    (snapshot / "README.md").symlink_to("../../blobs/0b")
    (snapshot / "more").symlink_to("../../other")
    return tmp_path


@pytest.mark.parametrize("pattern", ["", "/**/*.jsonl", "/**"])
def test_links_are_followed_to_files_and_folders(cache, pattern):
    files, left_out = listed(f"{cache}/snapshots/rev{pattern}")
    assert files == ["data/a.jsonl", "more/deep/c.jsonl"]
    assert left_out == ({"unknown ending": counted("README.md")} if pattern != "/**/*.jsonl" else {})


@pytest.mark.parametrize(
    ("pattern", "files"),
    [("data/*.jsonl", ["a.jsonl"]), ("*/*/*.jsonl", ["more/deep/c.jsonl"]), ("data/a.jsonl", ["a.jsonl"]),
     ("more", ["deep/c.jsonl"]), ("m*/d[e]ep/*", ["more/deep/c.jsonl"]), ("data/../more/deep/c.jsonl", ["c.jsonl"])],
)  # fmt: skip
def test_the_ending_is_that_of_the_link(cache, pattern, files):
    assert listed(cache / "snapshots/rev" / pattern) == (files, {})


def test_a_link_reads_as_its_own_name_says(cache):
    found = list_source("toy", Source(spec="toy", path=f"{cache}/snapshots/rev/data/a.jsonl"), {})
    (file,) = found.files
    assert (file.url, file.bytes) == (f"{cache}/snapshots/rev/data/a.jsonl", 8)
    assert Location(file.url).read() == b"blobs/0a"


@pytest.mark.parametrize("pattern", ["", "/*.jsonl", "/gone.jsonl", "/**/*.jsonl", "/g*/x.jsonl"])
def test_a_broken_link_is_named(tmp_path, pattern):
    fill(tmp_path, "in/a.jsonl")
    (tmp_path / "in/gone.jsonl").symlink_to("../blobs/none")
    with pytest.raises(SourceError, match=r"source 'toy': .*/in/gone\.jsonl is a link to \.\./blobs/none, which"):
        listed(f"{tmp_path}/in{pattern}")


def test_a_broken_link_that_is_not_asked_for_is_nobodys_business(tmp_path):
    fill(tmp_path, "in/a.jsonl")
    (tmp_path / "in/gone").symlink_to("none")
    (tmp_path / "in/_gone.jsonl").symlink_to("none")
    assert listed(tmp_path / "in/*.jsonl") == (["a.jsonl"], {"hidden": counted("_gone.jsonl")})
    assert listed(tmp_path / "in/a*/../a.jsonl")[0] == ["a.jsonl"]


def test_a_cycle_ends_and_is_told(tmp_path):
    fill(tmp_path, "in/a.jsonl", "in/sub/b.jsonl", "far/c.jsonl")
    (tmp_path / "in/self").symlink_to(".")
    (tmp_path / "in/sub/up").symlink_to("..")
    (tmp_path / "in/far").symlink_to("../far")
    (tmp_path / "far/back").symlink_to("../in")
    files, left_out = listed(tmp_path / "in")
    assert files == ["a.jsonl", "far/c.jsonl", "sub/b.jsonl"]
    assert left_out == {"a link to a folder above it": counted("far/back/", "self/", "sub/up/")}


def test_a_link_to_itself_is_named(tmp_path):
    fill(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to("b.jsonl")
    with pytest.raises(SourceError, match=r"b\.jsonl is a link that leads back to itself"):
        listed(tmp_path)


# --- patterns ---


@pytest.mark.parametrize("name", ["set #1", "set [1]", "a*b", "what?", "50%", "a: b", "no", "~", "ü{x}"])
def test_a_path_that_is_there_is_that_path(tmp_path, name):
    fill(tmp_path, f"{name}/a.jsonl", "set 1/wrong.jsonl", "axb/wrong.jsonl", "what!/wrong.jsonl")
    assert listed(tmp_path / name) == (["a.jsonl"], {})
    assert listed(tmp_path / name / "*.jsonl") == (["a.jsonl"], {})
    assert listed(tmp_path / name / "a.jsonl") == (["a.jsonl"], {})


def test_two_stars_are_a_whole_part(tmp_path):
    fill(tmp_path, "a/b.jsonl")
    with pytest.raises(SourceError, match=r"'\*\*' is a whole part of a path"):
        listed(tmp_path / "a**/b.jsonl")


@pytest.mark.parametrize(
    ("wanted", "entered", "not_entered"),
    [
        (None, ["a", "a/b"], []),
        ("*.jsonl", [], ["a", "a/b"]),
        ("a*/x/*.jsonl", ["ab", "ab/x"], ["b", "ab/y", "ab/x/z"]),
        ("a/**/x", ["a", "a/b", "a/b/c"], ["b"]),
        ("**", ["a", "a/b"], []),
    ],
)
def test_folders_that_a_pattern_looks_into(wanted, entered, not_entered):
    pattern = Pattern("/data", wanted)
    assert all(map(pattern.enters, entered))
    assert not any(map(pattern.enters, not_entered))
