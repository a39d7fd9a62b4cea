"""What verification finds: each kind of damage by its name, and nothing where there is no damage."""

import json

import pytest

from etl.errors import DataError
from etl.storage.dataset import MANIFEST, RECEIPTS, Dataset
from etl.storage.location import Location
from etl.storage.verify import verify
from tests.etl.storage.builds import InLine, begin, chunks_of, job

SPLITS = [[[1, 2], [3]], [[4]]]


@pytest.fixture
def output(folder):
    """Two datasets below one folder."""
    for stage in ("ingest", "rounds/cut-0"):
        engine = InLine()
        engine.map(job(folder / stage), SPLITS, chunks_of)
        engine.settle()
    return folder


def found(folder: Location) -> list[tuple[str, str]]:
    """(kind, path below the output) of every difference."""
    root = folder.fs.unstrip_protocol(folder.path) if "://" in folder.url else folder.path
    return [
        (item.kind, f"{item.dataset.removeprefix(folder.url).removeprefix(root)}/{item.path}".lstrip("/"))
        for item in verify(folder)
    ]


def parts(output: Location, stage: str = "ingest") -> list[str]:
    return sorted(path for path, _ in (output / stage).walk() if not path.startswith("_"))


def edit(output: Location, change) -> None:
    """Change the manifest of `ingest` by hand."""
    tree = json.loads((output / "ingest" / MANIFEST).read())
    change(tree)
    (output / "ingest" / MANIFEST).replace(json.dumps(tree).encode())


def test_an_untouched_output_has_no_difference(output):
    assert found(output) == []
    assert found(output / "ingest") == []


def test_a_folder_without_datasets(folder):
    (folder / "notes.txt").create(b"x")
    with pytest.raises(DataError, match="there is no dataset at or below"):
        list(verify(folder))


def test_a_missing_part(output):
    (output / "ingest" / parts(output)[1]).remove()
    assert found(output) == [("missing", f"ingest/{parts_of_twin(output)[1]}")]


def parts_of_twin(output: Location) -> list[str]:
    """The second dataset has the same rows in the same cut, so the same names."""
    return parts(output, "rounds/cut-0")


def test_a_part_that_is_cut_short(output):
    place = output / "ingest" / parts(output)[0]
    place.replace(place.read()[:-1])
    assert found(output) == [("short", f"ingest/{parts(output)[0]}")]


def test_a_part_of_the_same_size_with_another_byte(output):
    place = output / "ingest" / parts(output)[0]
    data = bytearray(place.read())
    data[40] ^= 1
    place.replace(bytes(data))
    assert found(output) == [("changed", f"ingest/{parts(output)[0]}")]


def test_an_object_that_no_manifest_names(output):
    (output / "ingest/part-00000-0000000000000000.parquet").create(b"x")
    (output / "ingest/deep/stray.txt").create(b"x")
    (output / "ingest/_notes").create(b"x")
    assert found(output) == [
        ("orphan", "ingest/deep/stray.txt"),
        ("orphan", "ingest/part-00000-0000000000000000.parquet"),
    ]


def test_a_damaged_manifest(output):
    (output / "ingest" / MANIFEST).replace(b"{")
    assert found(output) == [("changed", f"ingest/{MANIFEST}")]


def test_a_build_that_did_not_end(output):
    _, _, writer = begin(job(output / "later"), SPLITS)
    writer.write(0, chunks_of(SPLITS[0]))
    assert found(output) == [("uncommitted", "later/_plan.json")]


def test_an_account_that_does_not_close(output):
    edit(output, lambda tree: tree["accounting"]["toy"]["toy"].update(kept=5))
    assert found(output) == [("account", f"ingest/{MANIFEST}")]


def test_a_content_digest_that_does_not_hold(output):
    edit(output, lambda tree: tree.update(content_digest="0" * 32))
    assert found(output) == [("content", f"ingest/{MANIFEST}")]


def test_row_counts_that_do_not_hold(output):
    edit(output, lambda tree: (tree.update(rows_out=9), tree["parts"][0].update(row_groups=[3])))
    assert found(output) == [
        ("receipt", f"ingest/{receipts(output)[0]}"),
        ("rows", f"ingest/{parts(output)[0]}"),
        ("rows", f"ingest/{MANIFEST}"),
    ]


def build(folder: Location, splits) -> None:
    engine = InLine()
    engine.map(job(folder), splits, chunks_of)
    engine.settle()


def receipts(output: Location) -> list[str]:
    return sorted(path for path, _ in (output / "ingest").walk() if path.startswith(RECEIPTS))


def test_a_missing_receipt_and_a_damaged_one(output):
    first, second = receipts(output)
    (output / "ingest" / first).remove()
    (output / "ingest" / second).replace(b"{")
    assert found(output) == [("receipt", f"ingest/{first}"), ("receipt", f"ingest/{second}")]


def test_a_dataset_inside_another_ones_folder_is_no_orphan(output):
    build(output / "ingest/deeper", SPLITS)
    (output / "ingest/deeper/stray").create(b"x")
    assert found(output) == [("orphan", "ingest/deeper/stray")]


def test_many_parts_keep_their_order_and_one_digest(folder):
    build(folder / "many", [[[n], [n, n]] for n in range(23)])
    assert found(folder) == []
    named = [part.path for part in Dataset.open(folder / "many").manifest.parts]
    for path in named[::5]:
        (folder / "many" / path).remove()
    assert found(folder) == [("missing", f"many/{path}") for path in named[::5]]


def test_a_store_that_fails_is_not_taken_for_damage(output, monkeypatch):
    def fails(*_):
        raise DataError("the store still fails")

    monkeypatch.setattr(Location, "open", fails)
    with pytest.raises(DataError, match="still fails"):
        found(output)


def test_files_are_checked_by_their_bytes_alone(output, tmp_path):
    file = tmp_path / "local"
    file.write_bytes(b"weights")
    build, plan, writer = begin(job(output / "model"), [0])
    writer.write_files(0, "model", {".bin": file}, 3, {})
    (part,) = build.commit(plan).manifest.parts
    assert found(output) == []
    (output / "model" / part.path).replace(b"weighty")
    assert found(output) == [("changed", f"model/{part.path}")]


def test_all_that_is_wrong_is_told_at_once(output):
    (output / "rounds/cut-0" / parts(output)[0]).remove()
    (output / "ingest/stray").create(b"")
    (output / "ingest" / parts(output)[1]).replace(b"")
    kinds = [kind for kind, _ in found(output)]
    assert kinds == ["short", "orphan", "missing"]
