"""Artefacts are found, checked and copied once; every failure names the URI and what to do."""

import gzip
import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from etl import artefacts
from etl.artefacts import cache_dir, fetch
from etl.errors import ConfigError

TEXT = b"ranks\n" * 1000
SHA256 = hashlib.sha256(TEXT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("STILLHOUSE_CACHE", str(folder))
    return folder


@pytest.fixture
def memory():
    file_system = fsspec.filesystem("memory")
    yield file_system
    file_system.store.clear()


def test_cache_dir_takes_the_first_that_is_named(tmp_path, monkeypatch):
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("STILLHOUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg/stillhouse"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home/.cache/stillhouse"
    assert cache_dir().is_dir()


@pytest.mark.parametrize("home", ["/proc/nobody", "", None])
def test_without_a_writable_home_the_cache_is_private_to_the_user(home, tmp_path, monkeypatch):
    for name in ("STILLHOUSE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(artefacts, "_writable", lambda path: path.is_relative_to(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_dir()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_dir() == folder


def test_a_temporary_cache_that_others_can_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("STILLHOUSE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cache_dir().chmod(0o777)
    with pytest.raises(ConfigError, match="STILLHOUSE_CACHE"):
        cache_dir()


def test_a_cache_that_the_user_names_must_be_writable(monkeypatch):
    monkeypatch.setenv("STILLHOUSE_CACHE", "/proc/nowhere")
    with pytest.raises(ConfigError, match="STILLHOUSE_CACHE=/proc/nowhere"):
        cache_dir()


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_local_file_is_used_where_it_lies(scheme, tmp_path, cache):
    path = tmp_path / "a"
    path.write_bytes(TEXT)
    assert fetch(f"{scheme}{path}", SHA256) == path
    assert fetch(f"{scheme}{path}", None) == path
    assert not cache.exists()


def test_a_packed_file_is_unpacked_into_the_cache(tmp_path, cache):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT))
    path = fetch(f"{tmp_path}/a.txt.gz#gunzip", SHA256)
    assert path == cache / "artefacts" / SHA256 / "a.txt"
    assert path.read_bytes() == TEXT


def test_a_remote_file_is_copied_once(memory, cache):
    memory.pipe_file("/models/a", TEXT)
    path = fetch("memory://models/a", SHA256)
    memory.rm_file("/models/a")
    assert fetch("memory://models/a", SHA256) == path
    assert path.read_bytes() == TEXT
    assert sorted(p.name for p in path.parent.iterdir()) == ["a", "a.lock"]


def test_a_damaged_copy_is_replaced(memory):
    memory.pipe_file("/models/a", TEXT)
    path = fetch("memory://models/a", SHA256)
    path.write_bytes(b"half")
    assert fetch("memory://models/a", SHA256).read_bytes() == TEXT


def test_without_a_digest_a_changed_object_is_copied_again(memory):
    memory.pipe_file("/models/a", b"one")
    assert fetch("memory://models/a", None).read_bytes() == b"one"
    memory.pipe_file("/models/a", b"other")
    assert fetch("memory://models/a", None).read_bytes() == b"other"


def test_many_processes_copy_once(memory, monkeypatch):
    memory.pipe_file("/models/a", TEXT)
    copies = []
    copy = artefacts._copy
    monkeypatch.setattr(artefacts, "_copy", lambda *args: (copies.append(args), copy(*args)))
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: fetch("memory://models/a", SHA256), range(8)))
    assert len(paths) == len(copies) == 1


def test_a_file_of_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "carrier"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data.bin").write_bytes(TEXT)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert fetch("package:carrier/data.bin", SHA256) == package / "data.bin"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("package:no_such_package/a", "'no_such_package' is not installed here; install it"),
        ("package:json", "not of the form package:NAME/path"),
        ("package:json/no_such_file", "there is no file"),
        ("/no/such/file", "there is no file /no/such/file"),
        ("/no/such/file.gz#gunzip", "there is no file /no/such/file.gz"),
        ("memory://no/such", "cannot be read"),
        ("nosuchscheme://a/b", "cannot be read"),
    ],
)
@pytest.mark.parametrize("sha256", [None, SHA256])
def test_absent_artefacts_are_named(uri, says, sha256):
    with pytest.raises(ConfigError, match=says) as caught:
        fetch(uri, sha256)
    assert uri in str(caught.value)


def test_a_wrong_digest_names_both_and_leaves_nothing(tmp_path, memory, cache):
    (tmp_path / "a").write_bytes(b"another version")
    memory.pipe_file("/models/a", b"another version")
    got = hashlib.sha256(b"another version").hexdigest()
    for uri in (f"{tmp_path}/a", "memory://models/a"):
        with pytest.raises(ConfigError, match=f"sha256 {got}, expected {SHA256}") as caught:
            fetch(uri, SHA256)
        assert uri in str(caught.value)
        assert "replace the file" in str(caught.value)
    assert [p.name for p in cache.rglob("*") if p.is_file()] == ["a.lock"]


@pytest.mark.parametrize("damage", ["none of it", "cut", "a byte of the stream"])
def test_a_file_that_is_not_whole_gzip_is_named(tmp_path, damage):
    packed = gzip.compress(TEXT, mtime=0)
    changed = packed[:12] + bytes([packed[12] ^ 0xFF]) + packed[13:]
    (tmp_path / "a.gz").write_bytes({"none of it": TEXT, "cut": packed[:-9]}.get(damage, changed))
    with pytest.raises(ConfigError, match="cannot be read"):
        fetch(f"{tmp_path}/a.gz#gunzip", SHA256)


def test_works_in_a_process_with_no_home_and_an_empty_working_folder(tmp_path):
    root = Path(__file__).resolve().parents[2]
    code = (
        "from etl.artefacts import cache_dir, fetch;print(cache_dir()); print(fetch('package:json/__init__.py', None))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={"HOME": "/proc/nobody", "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    folder, found = map(Path, done.stdout.splitlines())
    assert folder.parent == tmp_path
    assert found.name == "__init__.py"
