"""Whole files on a local disk: by rename, by hard link, and distinguished by time and size."""

import os
from pathlib import Path

from etl.storage.local_files import link_local, local_stamp, temporary_beside


def test_a_temporary_file_is_beside_its_target_and_goes_unless_it_is_renamed(tmp_path):
    target = tmp_path / "new" / "a.json"
    with temporary_beside(str(target)) as name:
        temporary = Path(name)
        temporary.write_bytes(b"1")
        assert temporary.parent == target.parent
        temporary.replace(target)
    with temporary_beside(str(target)) as name:
        Path(name).write_bytes(b"2")
    assert [(path.name, path.read_bytes()) for path in target.parent.iterdir()] == [("a.json", b"1")]


def test_a_link_is_made_once_and_never_over_another_file(tmp_path):
    path = tmp_path / "a.json"
    assert link_local(str(path), b"first")
    assert not link_local(str(path), b"second")
    assert [item.read_bytes() for item in tmp_path.iterdir()] == [b"first"]


def test_a_stamp_changes_with_size_and_time(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"12")
    os.utime(path, ns=(5, 5))
    stamp = local_stamp(path.stat())
    os.utime(path, ns=(5, 6))
    assert local_stamp(path.stat()) != stamp
    path.write_bytes(b"123")
    os.utime(path, ns=(5, 5))
    assert local_stamp(path.stat()) != stamp
    path.write_bytes(b"34")
    os.utime(path, ns=(5, 5))
    assert local_stamp(path.stat()) == stamp
