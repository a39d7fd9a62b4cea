"""Names that follow from content: of files, and of JSON values in any order of keys."""

import hashlib
import subprocess
import sys

import pytest
import xxhash

from etl.digests import canonical_json, digest_of, file_sha256


def test_file_sha256_sees_a_change(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"ranks")
    assert file_sha256(path) == hashlib.sha256(b"ranks").hexdigest()
    path.write_bytes(b"other ranks")
    assert file_sha256(str(path)) == hashlib.sha256(b"other ranks").hexdigest()


def test_a_file_that_does_not_change_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"ranks")
    digest = file_sha256(path)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert file_sha256(path) == digest


def test_equal_values_have_one_digest():
    value = {"b": [1, 2.5, None], "a": {"é": True}}
    assert canonical_json(value) == '{"a":{"é":true},"b":[1,2.5,null]}'
    assert digest_of(value) == digest_of({"a": {"é": True}, "b": (1, 2.5, None)})
    assert digest_of(value) == f"{xxhash.xxh64_intdigest(canonical_json(value).encode()):016x}"
    assert digest_of(value) != digest_of({**value, "b": [1, 2.5]})


def test_what_json_cannot_say_has_no_digest():
    with pytest.raises(ValueError, match="JSON compliant"):
        digest_of(float("nan"))


def test_naming_things_loads_no_compiler():
    code = "import etl.digests, sys; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
