"""The protocol that commits a dataset: resumed, raced, and read by strangers; tests/faults kills it."""

import hashlib
import json
from pathlib import Path

import pytest

from etl.errors import DataError
from etl.hashing import ContentDigest
from etl.storage.build import Build, Chunk
from etl.storage.dataset import CLOSED, MANIFEST, PLAN, TASK_COSTS, Dataset, receipt_path
from etl.storage.location import Location
from etl.storage.manifest import to_json
from tests.etl.storage.builds import (
    NUMBERS,
    SPLITS,
    InLine,
    Plain,
    begin,
    build,
    chunks_of,
    commit,
    counted,
    job,
    numbers,
    values,
)

ALL = [1, 2, 3, 4, 5, 6, 7]


def manifest_bytes(folder: Location) -> bytes:
    return (folder / MANIFEST).read()


def data_files(folder: Location) -> list[str]:
    return [path for path, _ in folder.walk() if not path.startswith("_")]


def test_what_a_manifest_says(folder):
    manifest = build(folder).manifest
    assert (manifest.stage, manifest.table, manifest.splits) == ("toy", "NUMBERS", 3)
    assert (manifest.rows_in, manifest.rows_out) == (11, 7)
    assert manifest.accounting == {"toy": {"toy": {"in": 11, "made": 0, "kept": 7, "odd": 4}}}
    assert [(part.split, part.rows, part.row_groups) for part in manifest.parts] == [(0, 3, (2, 1)), (2, 4, (1, 3))]
    digest = ContentDigest()
    digest.add(numbers(*reversed(ALL)))
    assert manifest.content_digest == str(digest)
    assert data_files(folder) == sorted(part.path for part in manifest.parts)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 1}'])
def test_a_damaged_manifest_is_a_data_error_and_is_rebuilt(folder, text):
    build(folder)
    good = manifest_bytes(folder)
    (folder / MANIFEST).replace(text)
    with pytest.raises(DataError, match=r"_manifest\.json is damaged"):
        Dataset.open(folder)
    engine = InLine()
    build(folder, engine)
    assert manifest_bytes(folder) == good
    assert engine.asked == []


def test_a_committed_dataset_is_adopted(folder):
    build(folder)
    before = dict(folder.walk())
    engine = InLine()
    assert values(build(folder, engine)) == ALL
    assert engine.asked == []
    assert dict(folder.walk()) == before


def test_a_build_goes_on_where_it_stopped(folder):
    def only_the_first(split):
        if split == SPLITS[2]:
            raise RuntimeError("the task failed")
        return chunks_of(split)

    with pytest.raises(RuntimeError):
        build(folder, fn=only_the_first)
    engine = InLine()
    resumed = build(folder, engine)
    assert engine.asked == [[2]]
    assert manifest_bytes(folder) == to_bytes(build(folder / "fresh"))
    assert values(resumed) == ALL


def to_bytes(dataset: Dataset) -> bytes:
    return manifest_bytes(dataset.folder)


def test_a_resumed_build_keeps_the_plan_that_it_began_with(folder):
    begin(job(folder), SPLITS)
    build(folder, splits=[[[9]]], is_piece=lambda split: split in SPLITS)
    assert values(Dataset.open(folder)) == ALL


@pytest.mark.parametrize("splits", [[], [*SPLITS, [[9]]], [[[9]]]])
def test_a_plan_of_the_same_work_with_foreign_splits_is_not_resumed(folder, splits):
    begin(job(folder), splits)
    build(folder, splits=SPLITS, is_piece=lambda split: split in SPLITS)
    assert values(Dataset.open(folder)) == ALL


def test_splits_that_the_work_decides_are_those_of_this_run(folder):
    begin(job(folder), SPLITS[:1])
    build(folder, splits=SPLITS)
    assert values(Dataset.open(folder)) == ALL


def test_a_split_without_a_receipt_is_not_committed(folder):
    begun, plan, writer = begin(job(folder), SPLITS)
    writer.write(0, chunks_of(SPLITS[0]))
    with pytest.raises(DataError, match=r"split 1 of .* was not written"):
        begun.commit(plan)
    assert not (folder / MANIFEST).exists()


def test_the_first_attempt_wins_and_the_part_of_the_other_goes(folder):
    begun, plan, writer = begin(job(folder), [0])
    first = writer.write(0, [counted(numbers(1, 2))])
    assert writer.write(0, [counted(numbers(8, 9))]) == first
    assert data_files(folder) == [first.parts[0].path]
    dataset = begun.commit(plan)
    assert values(dataset) == [1, 2]
    assert data_files(folder) == [dataset.manifest.parts[0].path]


def test_a_straggler_of_a_committed_build_leaves_nothing(folder):
    begun, plan, writer = begin(job(folder), [0])
    writer.write(0, [counted(numbers(1, 2))])
    dataset = begun.commit(plan)
    writer.write(0, [counted(numbers(8, 9))])
    assert data_files(folder) == [dataset.manifest.parts[0].path]


def test_a_straggler_of_a_build_that_was_given_up_leaves_nothing(folder):
    _, _, late = begin(job(folder, semantic={"version": 1}), [0])
    dataset = build(folder, splits=[[[9]]], semantic={"version": 2})
    with pytest.raises(DataError, match="was abandoned for another one"):
        late.write(0, [counted(numbers(8))])
    assert data_files(folder) == [dataset.manifest.parts[0].path]
    assert build(folder, splits=[[[8]]], semantic={"version": 1}).manifest.rows_out == 1


def test_a_lost_part_of_a_build_that_is_cleared_is_removed_without_a_listing(folder, monkeypatch):
    _, _, writer = begin(job(folder, semantic={"version": 1}), [0])
    writer.write(0, [counted(numbers(8))])
    monkeypatch.setattr(Location, "remove_children", lambda *_, **__: None)
    dataset = build(folder, splits=[[[9]]], semantic={"version": 2})
    assert data_files(folder) == [dataset.manifest.parts[0].path]


def test_an_attempt_that_writes_the_same_bytes_changes_nothing(folder):
    begun, plan, writer = begin(job(folder), [0])
    for _ in range(2):
        writer.write(0, [counted(numbers(1, 2))])
    assert values(begun.commit(plan)) == [1, 2]
    assert len(data_files(folder)) == 1


def test_an_attempt_that_fails_leaves_nothing(folder):
    begun, plan, writer = begin(job(folder), [0])

    def chunks():
        yield counted(numbers(1))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        writer.write(0, chunks())
    assert data_files(folder) == []
    assert begun.missing(plan) == [0]


def test_another_fingerprint_clears_the_folder(folder):
    build(folder, semantic={"version": 1})
    (folder / "part-00000-stray.parquet").create(b"x")
    engine = InLine()
    build(folder, engine, splits=[[[9]]], semantic={"version": 2})
    assert engine.asked == [[0]]
    assert values(Dataset.open(folder)) == [9]
    assert len(data_files(folder)) == 1
    assert len([path for path, _ in folder.walk() if path.startswith("_receipts/")]) == 1


@pytest.fixture
def bases(folder):
    """The same rows in two cuts."""
    rows = [numbers(1, 2), numbers(3)]
    return commit(folder / "one", NUMBERS, [rows]), commit(folder / "two", NUMBERS, [[batch] for batch in rows])


def test_another_base_builds_again_under_the_same_fingerprint(folder, bases):
    first = build(folder / "x", base=bases[0]).manifest
    engine = InLine()
    second = build(folder / "x", engine, splits=[[[1, 2, 3], [4, 5, 6, 7]]], base=bases[1]).manifest
    assert engine.asked == [[0]]
    assert (first.fingerprint, first.content_digest) == (second.fingerprint, second.content_digest)
    assert (first.base, second.base) == (bases[0].manifest.cut, bases[1].manifest.cut)
    assert [part.row_groups for part in second.parts] == [(3, 4)]


def test_an_interrupted_build_on_another_base_is_not_gone_on_with(folder, bases):
    _, _, writer = begin(job(folder / "x", base=bases[0]), SPLITS)
    writer.write(0, chunks_of(SPLITS[0]))
    engine = InLine()
    build(folder / "x", engine, base=bases[1])
    assert engine.asked == [[0, 1, 2]]


@pytest.mark.parametrize(
    "plan", [b"", b"{", b"{}", b'{"fingerprint":"x","splits":[]}', b'{"fingerprint":"' + b"0" * 32 + b'","splits":{}}']
)
def test_a_folder_whose_plan_is_none_belongs_to_nobody(folder, plan):
    (folder / "precious.txt").create(b"precious")
    (folder / PLAN).create(plan)
    with pytest.raises(DataError, match=r"_plan.json is damaged: .*; so the folder may not belong to a run"):
        build(folder)
    with pytest.raises(DataError, match=r"_plan.json is damaged"):
        Build(job(folder)).give_up()
    assert [path for path, _ in folder.walk()] == [PLAN, "precious.txt"]


def test_what_a_straggler_took_is_in_nobodys_way(folder):
    """Its build was cleared a moment ago, and the next one was killed before it had a plan."""
    (folder / TASK_COSTS / ("0" * 32) / "00000.json").create(b"{}")
    assert values(build(folder)) == [1, 2, 3, 4, 5, 6, 7]


def test_a_mark_of_a_build_that_was_given_up_makes_nothing_ours(folder):
    (folder / CLOSED / ("0" * 32)).create(b"")
    (folder / "precious.txt").create(b"precious")
    with pytest.raises(DataError, match="so no run of ours wrote it"):
        build(folder)
    assert (folder / "precious.txt").exists()


HOSTILE = ["../victim/x.txt", "..", "a/../../victim/x.txt", "/{victim}/x.txt", "file:///{victim}/x.txt", "./x", "a//x"]


@pytest.mark.parametrize("path", HOSTILE)
def test_a_receipt_that_names_what_lies_elsewhere_removes_nothing(tmp_path, path):
    """security.md S2."""
    victim, folder = tmp_path / "victim/x.txt", Location.of(tmp_path / "out")
    victim.parent.mkdir()
    victim.write_text("precious")
    _, plan, writer = begin(job(folder, semantic={"version": 0}), SPLITS)
    receipt = json.loads(to_json(writer.write(0, chunks_of(SPLITS[0]))))
    receipt["parts"][0]["path"] = path.format(victim=victim.parent)
    place = folder / receipt_path(plan.name, 0)
    place.replace(json.dumps(receipt).encode())
    with pytest.raises(DataError, match=r"00000.json is damaged: parts.0.path: must be a path inside the folder"):
        build(folder)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("below", ["", "_receipts", "_closed", "split=train"])
def test_nothing_is_written_or_removed_behind_a_link(tmp_path, below):
    victim, folder = tmp_path / "victim", Location.of(tmp_path / "out/toy")
    victim.mkdir()
    (victim / "x.txt").write_text("precious")
    link = Path(folder.path) / below
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim)
    for changes in ({}, {"semantic": {"version": 0}}):
        with pytest.raises(
            DataError, match=r"is a link to a folder, and a run does not write or remove anything behind links"
        ):
            build(folder, **changes)
    assert [path.name for path in victim.iterdir()] == ["x.txt"]


def test_a_part_behind_a_link_is_not_removed(tmp_path):
    victim, folder = tmp_path / "victim", Location.of(tmp_path / "out")
    victim.mkdir()
    (victim / "x").write_text("precious")
    Path(folder.path).mkdir()
    (Path(folder.path) / "link").symlink_to(victim)
    with pytest.raises(DataError, match="link is a link, and its target is not ours to remove"):
        folder.remove_all(["link/x"])
    assert (victim / "x").exists()


def test_a_plan_that_was_written_just_now_has_no_receipts_to_read(folder, monkeypatch):
    begun = Build(job(folder))
    plan = begun.plan(SPLITS)
    with monkeypatch.context() as patch:
        patch.setattr(Location, "read_at_most", lambda location, _: pytest.fail(f"{location} was read"))
        assert begun.missing(plan) == [0, 1, 2]
    begun.writer(plan).write(1, chunks_of(SPLITS[1]))
    assert begun.missing(plan) == [0, 2]
    assert Build(job(folder)).missing(plan) == [0, 2]


def test_a_damaged_receipt_is_a_data_error_that_names_it(folder):
    begun, plan, _ = begin(job(folder), SPLITS)
    (folder / f"_receipts/{plan.name}/00001.json").create(b"")
    with pytest.raises(DataError, match=r"00001\.json is damaged"):
        begun.missing(plan)


@pytest.mark.parametrize("damage", ["gone", "short"])
def test_a_split_whose_part_is_gone_or_short_is_done_again(folder, damage):
    dataset = build(folder)
    whole = manifest_bytes(folder)
    part = dataset.part_location(dataset.manifest.parts[1])
    data = part.read()
    (folder / MANIFEST).remove()
    part.remove()
    if damage == "short":
        part.create(data[:-1])
    engine = InLine()
    build(folder, engine)
    assert engine.asked == [[dataset.manifest.parts[1].split]]
    assert manifest_bytes(folder) == whole
    assert part.read() == data


def test_a_plan_that_another_run_writes_first_is_refused(folder, monkeypatch):
    monkeypatch.setattr(Location, "create", lambda *_: False)
    with pytest.raises(DataError, match="another run is writing"):
        Build(job(folder)).plan(SPLITS)


def test_accounts_that_do_not_close_are_refused(folder):
    begun, plan, writer = begin(job(folder), [0])
    writer.write(0, [Chunk(numbers(1), 2, {"web": {"step": {"in": 2, "made": 0, "kept": 1}}})])
    with pytest.raises(DataError, match=r"does not add up: web/step: in \+ made exceeds kept \+ dropped by 1 rows"):
        begun.commit(plan)
    assert not (folder / MANIFEST).exists()


def test_thresholds_and_inherited_accounts_are_in_the_manifest(folder):
    earlier = {"in": 3, "made": 0, "kept": 3}
    told = job(folder).with_thresholds({"cut": {"all": 1}}).with_inherited({"toy": {"earlier": earlier}})
    assert told.fingerprint == job(folder).fingerprint
    manifest = InLine().map(told, SPLITS, chunks_of).result().manifest
    assert manifest.thresholds == {"cut": {"all": 1}}
    assert manifest.accounting["toy"]["earlier"] == earlier
    assert manifest.accounting["toy"]["toy"]["in"] == 11


def test_chunks_of_counts_alone(folder):
    begun, plan, writer = begin(job(folder), [0])
    counts = {"toy": {"toy": {"in": 1, "made": 0, "kept": 0, "odd": 1}}}
    writer.write(
        0, [Chunk(None, 1, counts, {"h": {"1": 2}}), counted(numbers()), Chunk(None, 1, counts, {"h": {"1": 3}})]
    )
    manifest = begun.commit(plan).manifest
    assert (manifest.rows_in, manifest.rows_out, manifest.parts) == (3, 0, ())
    assert manifest.accounting == {"toy": {"toy": {"in": 3, "made": 0, "kept": 0, "odd": 3}}}
    assert manifest.distributions == {"h": {"1": 5}}


def partitioned(split):
    for n in split:
        yield counted(numbers(n, n + 10), partition=f"parity={n % 2}/tens={n // 10}")


def test_partitions_are_folders_with_a_part_for_each_run_of_chunks(tmp_path):
    dataset = build(Location.of(tmp_path), splits=[[1, 3, 2, 4], [5, 6]], fn=partitioned)
    parts = [(part.split, part.path.rpartition("/")[0], part.row_groups) for part in dataset.manifest.parts]
    assert parts == [
        (0, "parity=1/tens=0", (2, 2)),
        (0, "parity=0/tens=0", (2, 2)),
        (1, "parity=1/tens=0", (2,)),
        (1, "parity=0/tens=0", (2,)),
    ]
    assert values(dataset) == [1, 2, 3, 4, 5, 6, 11, 12, 13, 14, 15, 16]
    assert Plain.read(dataset.folder) == Plain(values(dataset), values(dataset))


@pytest.mark.parametrize("contents", [[b"weights"], [b"tokens", b"index"]])
def test_files_are_committed_as_they_are(folder, tmp_path, contents):
    files = {}
    for suffix, content in zip((".bin", ".idx"), contents, strict=False):
        files[suffix] = tmp_path / f"local{suffix}"
        files[suffix].write_bytes(content)
    begun, plan, writer = begin(job(folder), [0])
    receipt = writer.write_files(0, "model", files, 7, {"words": 5})
    assert writer.write_files(0, "model", files, 7, {"words": 5}) == receipt
    manifest = begun.commit(plan).manifest
    shas = [hashlib.sha256(content).hexdigest() for content in contents]
    name = shas[0] if len(shas) == 1 else hashlib.sha256("".join(shas).encode()).hexdigest()
    assert [part.path for part in manifest.parts] == [f"model-{name[:16]}{suffix}" for suffix in files]
    assert [part.sha256 for part in manifest.parts] == shas
    assert [(folder / part.path).read() for part in manifest.parts] == contents
    assert manifest.content_digest == f"{sum(int(sha[:32], 16) for sha in shas) % 2**128:032x}"
    assert (manifest.rows_in, manifest.rows_out, manifest.distributions) == (7, 0, {"words": 5})
    assert data_files(folder) == sorted(part.path for part in manifest.parts)
    assert (manifest.holds_files, build(folder / "table").manifest.holds_files) == (True, False)
