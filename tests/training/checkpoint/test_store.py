"""Receipts, manifests and retention, and whole checkpoints on a real S3 server."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import DataError, SourceError
from etl.storage import retry
from etl.storage.location import Location
from tests.services.process import free_ports
from tests.training.checkpoint_ranks import digests, engine_of, launch, make_engine, step
from training.checkpoint.checkpoints import Checkpoints
from training.checkpoint.config import CheckpointConfig
from training.checkpoint.store import (
    MANIFEST,
    CheckpointFile,
    CheckpointManifest,
    CheckpointReceipt,
    Commit,
    Retention,
    Upload,
    check,
    complete_tags,
    download,
    new_tag,
    read_manifest,
    retain,
)
from training.checkpoint.universal import ShardLayout
from training.launch.process_group import world

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")


def manifest(step=1, score=None, ranks=1):
    layout = ShardLayout(world=ranks, zero_stage=0, bf16=False, groups="")
    return CheckpointManifest(
        step=step, payload={"step": step}, score=score, identity={}, layout=layout, optimizer="AdamW", receipts=()
    )


def upload(root, tag, folder, *, rank=0, commit=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"weights-{rank}").write_bytes(os.urandom(1000))
    return Upload(root, tag, folder, rank, commit)


def commit_of(ranks, timeout_s=30.0, keep=2):
    return Commit(manifest(ranks=ranks), Retention(keep, 0), timeout_s)


@pytest.fixture
def root(tmp_path):
    return Location.of(tmp_path / "root")


def test_the_manifest_comes_when_all_receipts_are_there(root, tmp_path):
    tag = new_tag(1)
    first = upload(root, tag, tmp_path / "0", rank=0, commit=commit_of(2))
    assert first.wait_for_files()
    assert complete_tags(root) == []
    assert upload(root, tag, tmp_path / "1", rank=1).wait_for_end()
    assert first.wait_for_end()
    assert complete_tags(root) == [tag]
    found = read_manifest(root / tag)
    assert [(receipt.rank, [file.name for file in receipt.files]) for receipt in found.receipts] == [
        (0, ["weights-0"]),
        (1, ["weights-1"]),
    ]
    for receipt in found.receipts:
        for file in receipt.files:
            check(root / tag / file.name, file)


def test_a_receipt_that_never_comes_is_told(root, tmp_path):
    first = upload(root, new_tag(1), tmp_path / "0", commit=commit_of(2, timeout_s=0.1))
    assert not first.wait_for_end()
    assert "rank 1 has written no receipt within commit_timeout_s = 0.1" in str(first.error)


def test_giving_up_ends_the_wait_for_receipts(root, tmp_path):
    first = upload(root, new_tag(1), tmp_path / "0", commit=commit_of(2, timeout_s=600.0))
    assert first.wait_for_files()
    first.give_up()
    assert first.wait_for_end()
    assert complete_tags(root) == []


def test_two_writers_of_one_checkpoint_are_told(root, tmp_path):
    tag = new_tag(1)
    assert upload(root, tag, tmp_path / "0").wait_for_end()
    second = upload(root, tag, tmp_path / "other", rank=0)
    assert not second.wait_for_end()
    assert "File exists" in str(second.error)
    (tmp_path / "other" / "weights-0").unlink()
    third = Upload(root, tag, tmp_path / "other", 0, None)
    assert not third.wait_for_end()
    assert "another run writes to this root" in str(third.error)


def test_a_damaged_manifest_is_told(root, tmp_path):
    tag = new_tag(1)
    (root / tag / "manifest.json").replace(b'{"step": 1}')
    with pytest.raises(DataError, match=r"manifest\.json is damaged: .* remove it to resume from an earlier one"):
        read_manifest(root / tag)


def test_a_download_appears_only_when_it_is_right(root, tmp_path):
    (root / "file").replace(b"content")
    wrong = CheckpointFile(name="file", bytes=7, sha256="0" * 64)
    with pytest.raises(DataError, match="does not match its receipt"):
        download(root / "file", wrong, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@given(
    scores=st.dictionaries(st.integers(0, 50).map(lambda n: f"step-{n:08d}-00000000"), st.none() | st.floats(0, 9)),
    keep=st.integers(1, 4),
    best=st.integers(0, 4),
)
def test_what_is_kept(scores, keep, best):
    kept = Retention(keep, best).kept(scores)
    gone = set(scores) - kept
    assert kept <= set(scores)
    assert len(kept) <= keep + best
    assert len(kept) >= min(keep, len(scores))
    scored = [tag for tag in kept if scores[tag] is not None]
    for tag in gone:
        assert all(tag < newer for newer in sorted(kept)[-keep:])
        if scores[tag] is not None:
            assert sum(scores[other] <= scores[tag] for other in scored) >= best


def test_a_step_that_was_saved_twice_takes_one_place():
    tags = ["step-00000001-00000000000a", "step-00000002-00000000000b", "step-00000002-00000000000c"]
    scores = {tags[0]: 3.0, tags[1]: 1.0, tags[2]: 2.0}
    assert Retention(2, 0).kept(scores) == {tags[0], tags[2]}
    assert Retention(1, 1).kept(scores) == {tags[2]}


def test_retention_touches_nothing_but_checkpoints(root):
    old, new = "step-00000001-00000000000a", "step-00000002-00000000000b"
    for number, tag in enumerate((old, new), start=1):
        (root / tag / "manifest.json").replace(manifest(number).model_dump_json().encode())
        (root / tag / "weights").replace(b"x")
    (root / "step-00000003-00000000000c/weights").replace(b"half written")
    (root / "notes/manifest.json").replace(b"a user's own")
    retain(root, old, Retention(1, 0))
    assert complete_tags(root) == [old, new]
    retain(root, new, Retention(1, 0))
    assert [path for path, _ in root.walk()] == ["notes/manifest.json", f"{new}/manifest.json", f"{new}/weights"]


@pytest.fixture(scope="module")
def server(s3):
    s3.bucket("checkpoints")
    return s3


@pytest.fixture(scope="module")
def here():
    with world() as only:
        yield only


def test_on_s3_a_kill_before_the_manifest_leaves_the_checkpoint_before_it(server, here, tmp_path):
    place = Location.of("s3://checkpoints/run", server.options)
    common = {"do": "save", "bf16": True, "root": place.url, "options": server.options}
    plan = [{"stage": 1, "steps": 3, "also_at": 2, "dies": True, "scratch": str(tmp_path / "killed"), **common}]
    assert launch(plan, 1, tmp_path) == [-9]
    written = {path.partition("/")[0] for path, _ in place.walk()}
    assert sorted(tag.rpartition("-")[0] for tag in written) == ["step-00000002", "step-00000003"]
    (half_written,) = written - set(complete_tags(place))
    assert (place / half_written / "_receipts/00000.json").exists()

    checkpoints = Checkpoints(place, tmp_path / "scratch", CheckpointConfig(keep=1), here, {})
    found = checkpoints.newest()
    assert found.payload == {"step": 2}
    states = []
    # As it was, and converted.
    for stage in (1, 2):
        engine = make_engine({"stage": stage, "bf16": True})
        checkpoints.load(engine_of(engine), found, seed=0)
        states.append(digests(engine))
    assert states[0] == states[1]
    step(engine, 3)
    checkpoints.save(engine_of(engine), {"step": 3})
    checkpoints.wait()
    assert checkpoints.newest().payload == {"step": 3}
    assert (
        {path.partition("/")[0] for path, _ in place.walk()} == set(complete_tags(place)) == {checkpoints.newest().tag}
    )
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


def test_a_store_that_cannot_be_reached_is_told_and_the_files_stay(server, here, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_CONTACT_S", 0.1)
    place = Location.of("s3://checkpoints/other", server.options)
    checkpoints = Checkpoints(place, tmp_path / "scratch", CheckpointConfig(), here, {})
    engine = make_engine({"stage": 0, "bf16": False})
    step(engine, 0)
    checkpoints.save(engine_of(engine), {"step": 1})
    checkpoints.wait()
    (port,) = free_ports(1)
    one_try = {"config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": 1}}}
    checkpoints.root = Location(place.url, {**server.options, **one_try, "endpoint_url": f"http://127.0.0.1:{port}"})
    checkpoints.save(engine_of(engine), {"step": 2})
    with pytest.raises(
        SourceError, match=r"step-00000002-\w+ is not complete .*s3://checkpoints/other.*its files are kept in"
    ):
        checkpoints.wait()
    assert len([path for path in (tmp_path / "scratch" / "saves").rglob("*") if path.is_file()]) >= 2
    checkpoints.root = place
    assert checkpoints.newest().payload == {"step": 1}


@pytest.mark.parametrize("name", ["../victim", "/etc/x", "a/b", "..", "", "x\0y", "\x1b[2J"])
def test_a_manifest_whose_files_lie_elsewhere_is_refused(root, name):
    """security.md S8: `download` writes a file under the name that the manifest gives it."""
    whole = manifest().model_copy(update={"receipts": (CheckpointReceipt(rank=0, files=()),)})
    tree = json.loads(whole.model_dump_json())
    tree["receipts"][0]["files"] = [{"name": name, "bytes": 1, "sha256": "0" * 64}]
    place = root / new_tag(1)
    (place / MANIFEST).create(json.dumps(tree).encode())
    with pytest.raises(DataError, match=r"manifest\.json is damaged: receipts\.0\.files\.0\.name: must "):
        read_manifest(place)
