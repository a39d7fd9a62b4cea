"""The one way to read JSON objects of a folder: what is refused, in which words, and at which bounds."""

import json
import math
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.config import Config
from etl.errors import DataError
from etl.storage.location import Location
from etl.storage.manifest import Manifest, Part, Plan, Receipt, to_json
from etl.storage.untrusted import (
    Count,
    Counts,
    FileName,
    Hex32,
    NotOursError,
    RelativePath,
    Seconds,
    Sha256,
    Text,
    parse_object,
    parse_tree,
    read_object,
    shown,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


class Toy(Config):
    """One field of each type."""

    path: RelativePath = "a/b.parquet"
    file: FileName = "b"
    name: Hex32 = "0" * 32
    sha256: Sha256 = "0" * 64
    text: Text = ""
    count: Count = 0
    seconds: Seconds = 0.0
    counts: Counts = {}


def refusal(**fields) -> str:
    with pytest.raises(NotOursError) as error:
        parse_object(json.dumps(fields).encode(), Toy)
    return str(error.value)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_json_reads_back(tree):
    assert parse_tree(json.dumps(tree, ensure_ascii=False).encode()) == tree
    assert parse_tree(json.dumps(tree).encode()) == tree


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "it is not JSON ("),
        (b"{", "it is not JSON ("),
        (b'{"a": 1} x', "it is not JSON ("),
        (b"[]", "it is not a JSON object"),
        (b"null", "it is not a JSON object"),
        (b'{"a": "\xff"}', "it is not JSON ("),
        (b'{"a": "\\ud800"}', "it is not JSON ("),
        (b'\xef\xbb\xbf{"a": 1}', "it is not JSON ("),
        (b'{"a": NaN}', "it is not JSON ("),
        (b'{"a": -Infinity}', "it is not JSON ("),
        (b'{"a": 1e400}', "the number 1e400 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "it is not JSON ("),
        (b'{"a": ' + b"[" * 250 + b"]" * 250 + b"}", "it is not JSON ("),
        (b"[" * 100_000, "it is not JSON ("),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' is given twice"),
    ],
)
def test_what_is_no_json_object(data, told):
    with pytest.raises(NotOursError) as error:
        parse_tree(data)
    assert str(error.value).startswith(told)


UP = ["", ".", "..", "../x", "x/..", "a/../b", "a/./b", "/abs", "a//b", "a/", "file:///etc/x", "s3://b/x", "x::file:a"]
ODD = ["a\\b", "a\0b", "a\nb", "\x1b[2J", "a\x7f", "a\u202eb", "x" * 5000]


@pytest.mark.parametrize("path", UP + ODD)
def test_paths_that_lead_out_or_cannot_be_shown(path):
    told = refusal(path=path)
    assert told.startswith("path: must ")
    assert told.isprintable()
    assert len(told) < 400
    assert refusal(file=path).startswith("file: must ")


@pytest.mark.parametrize("path", ["a", ".a", "..a", "...", "a..", "a/.b/..c", "k=v/é/part-0.parquet", "a b", "x:y"])
def test_paths_that_lead_down(path):
    assert Toy(path=path).path == path


def test_a_name_of_a_file_has_one_piece():
    assert Toy(file="..a").file == "..a"
    assert refusal(file="a/b").startswith("file: must match pattern")


@given(st.lists(st.sampled_from(["..", ".", "", "a", "...", "é"]), min_size=1, max_size=5).map("/".join))
def test_a_path_is_taken_where_it_is_its_own_normal_form_below_the_folder(path):
    is_below = os.path.normpath(path) == path and not path.startswith(("..", "/")) and path != "."
    # normpath keeps names that only begin with two dots.
    is_below |= os.path.normpath(path) == path and path.startswith("...")
    try:
        assert Toy(path=path).path == path
    except ValueError:
        assert not is_below
    else:
        assert is_below


BEYOND: dict[str, list[Any]] = {
    "name": ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "../" + "0" * 29, "0" * 32 + "\n", 5],
    "sha256": ["", "0" * 32, "0" * 64 + "\n", None],
    "text": ["\x1b]0;x\x07", "a\nb", "x" * 5000, {}],
    "count": [-1, 2**63, 2**70, 1.5, 1e30, "1", True, None, []],
    "seconds": [-1, 1e30, "x", None, {}],
    "counts": [[], {"a": -1}, {"a": {"b": 2**63}}, {"a": 1.0}, {"a": "x"}, {"a": True}],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BEYOND.items() for value in values])
def test_values_beyond_their_bounds(field, value):
    assert refusal(**{field: value}).startswith(f"{field}: ")


def test_a_message_names_the_first_fields_and_repeats_little_of_them():
    told = refusal(path="\x1b" * 10_000, count=-1, name="x", text="\0", seconds="y")
    assert told.count(";") >= 3
    assert told.endswith("; and 2 more")
    assert told.isprintable()
    assert len(told) < 1500
    assert "unknown key '\\x1b[2J'" in refusal(**{"\x1b[2J": 1})
    assert len(shown({"x": "y" * 10_000})) < 120


def test_an_object_of_a_folder(tmp_path):
    place = Location.of(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError):
        read_object(place, Toy, "remove it")
    place.create(to_json(Toy(count=3)))
    assert read_object(place, Toy, "remove it") == Toy(count=3)
    with pytest.raises(DataError, match=r"x.json has more than 10 bytes"):
        read_object(place, Toy, "remove it", limit=10)
    place.replace(b'{"count": -1}')
    with pytest.raises(DataError, match=r"x.json is damaged: count: must be greater than .* \(got -1\); remove it"):
        read_object(place, Toy, "remove it")


def test_a_pipe_and_a_folder_are_no_objects(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(DataError, match=f"cannot read .*/{name} .*not a regular file"):
            read_object(Location.of(tmp_path) / name, Toy, "remove it")


def test_an_empty_object_is_read(folder):
    (folder / "empty").create(b"")
    assert (folder / "empty").read_at_most(10) == b""
    (folder / "ten").create(b"0123456789")
    assert (folder / "ten").read_at_most(10) == b"0123456789"
    with pytest.raises(DataError, match="more than 9 bytes"):
        (folder / "ten").read_at_most(9)


@pytest.mark.parametrize("piece", ["..", ".", "../x", "a/../b", "a/."])
def test_no_place_is_joined_that_lies_elsewhere(folder, piece):
    with pytest.raises(DataError, match="is not a place below"):
        folder / piece


PART = {"split": 0, "path": "p.parquet", "rows": 1, "bytes": 1, "sha256": "0" * 64, "row_groups": [1]}
RECEIPT = {"split": 0, "rows_in": 1, "rows_out": 1, "content_digest": "0" * 32, "parts": [PART]}
MANIFEST = {
    "stage": "toy",
    "table": "TOY",
    "fingerprint": "0" * 32,
    "receipts": "0" * 32,
    "content_digest": "0" * 32,
    "made_from": {},
    "rows_in": 1,
    "rows_out": 1,
    "accounting": {},
    "splits": 1,
    "parts": [PART],
}
PLAN = {"fingerprint": "0" * 32, "splits": [1]}


@pytest.mark.parametrize(
    ("model", "tree", "changes"),
    [
        (Part, PART, {"path": "../x"}),
        (Part, PART, {"rows": -1}),
        (Part, PART, {"split": 10**9}),
        (Receipt, RECEIPT, {"split": 1}),
        (Receipt, RECEIPT, {"rows_in": math.inf}),
        (Receipt, RECEIPT, {"distributions": {"x": "y"}}),
        (Manifest, MANIFEST, {"receipts": "../../x"}),
        (Manifest, MANIFEST, {"splits": 10**9}),
        (Manifest, MANIFEST, {"splits": 0}),
        (Manifest, MANIFEST, {"stage": "../x"}),
        (Manifest, MANIFEST, {"accounting": {"a": {"b": {"in": -1}}}}),
        (Plan, PLAN, {"fingerprint": ""}),
        (Plan, PLAN, {"splits": 5}),
    ],
)
def test_the_objects_of_a_dataset_are_bounded(model, tree, changes):
    """security.md S2, S8, S10."""
    parse_object(json.dumps(tree).encode(), model)
    with pytest.raises(NotOursError):
        parse_object(json.dumps({**tree, **changes}).encode(), model)
