"""Raw files to PROMPT and quarantine."""

import gzip
import json
import shutil

import pyarrow.parquet as pq
import pytest

from etl.errors import SourceError
from etl.run.run import run_recipe
from tests.engines.inprocess import IdleEngine, InProcessEngine
from tests.etl.stages.toys import (
    make_recipe,
    mixed_rows,
    plain_rows,
    read,
    row,
    run,
    stage,
    write_jsonl,
    write_parquet,
)


def flawed_jsonl(path):
    """Ten rows, of which three cannot be read; their byte offsets and reasons."""
    good = [json.dumps(item).encode() for item in plain_rows(7)]
    nameless = row(1, "q", "a")
    del nameless["query"]
    bad = [b'{"synth_id": "x", ', json.dumps(nameless).encode(), b'{"synth_id": "y", "query": "\xff"}']
    lines = [*good[:2], bad[0], *good[2:5], bad[1], bad[2], *good[5:]]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")
    offsets = [sum(len(line) + 1 for line in lines[:number]) for number in (2, 6, 7)]
    return list(zip(offsets, ["invalid_json", "missing_query", "invalid_json"], strict=True))


def test_what_cannot_be_read_is_in_the_quarantine_with_its_place(tmp_path):
    expected = flawed_jsonl(tmp_path / "flawed.jsonl")
    run(make_recipe(tmp_path / "out", {"toy": tmp_path / "flawed.jsonl"}, run={"split_bytes": 1024}))
    rows = sorted(read(stage(tmp_path / "out", "quarantine")), key=lambda item: item["position"])
    assert [(item["position"], item["reason"]) for item in rows] == expected
    assert {(item["source"], item["file"]) for item in rows} == {("toy", "flawed.jsonl")}
    assert [item["source_example_id"] for item in rows] == [None, "r1", None]
    text = (tmp_path / "flawed.jsonl").read_bytes()
    assert [text[item["position"] :].split(b"\n")[0] for item in rows] == [item["raw"] for item in rows]


def test_a_row_says_where_it_was_read(tmp_path):
    """The line at the position in the file, and the row number of Parquet, are the row's, in any cut."""
    lines = [json.dumps(item) for item in plain_rows(9)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("\n\n".join(lines))
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress("\r\n".join(lines).encode()))
    write_parquet(tmp_path / "in" / "c.parquet", plain_rows(9), row_group_size=2)
    texts = {
        "a.jsonl": (tmp_path / "in" / "a.jsonl").read_bytes(),
        "b.jsonl.gz": gzip.decompress((tmp_path / "in" / "b.jsonl.gz").read_bytes()),
    }
    digests = set()
    for split_bytes in (1024, 1 << 20):
        out = tmp_path / str(split_bytes)
        run(make_recipe(out, {"toy": tmp_path / "in"}, run={"split_bytes": split_bytes}))
        digests.add(stage(out, "ingest").manifest.content_digest)
        rows = read(stage(out, "ingest"))
        assert len(rows) == 27
        for item in rows:
            if item["file"] == "c.parquet":
                assert item["source_example_id"] == plain_rows(9)[item["position"]]["synth_id"]
            else:
                line = texts[item["file"]][item["position"] :].split(b"\n")[0]
                assert json.loads(line)["synth_id"] == item["source_example_id"]
    assert len(digests) == 1


def test_what_was_read_and_what_was_not_is_told_and_kept(tmp_path):
    """Each run says it, even one that has nothing to do; the fingerprint does not know what was left out."""
    write_jsonl(tmp_path / "in" / "a.JSONL", plain_rows(3))
    flawed_jsonl(tmp_path / "in" / "b.jsonl")
    (tmp_path / "in" / "c.doc").write_text("x")
    (tmp_path / "in" / "_SUCCESS").write_text("")
    one = write_parquet(tmp_path / "one.parquet", plain_rows(5))
    sizes = [sum(path.stat().st_size for path in (tmp_path / "in").glob("*.[jJ]*")), one.stat().st_size]
    recipe = make_recipe(tmp_path / "out", {"many": tmp_path / "in", "one": one})
    told, fingerprints = [], set()
    for more in ("_none", "_more"):
        lines = []
        run_recipe(recipe, InProcessEngine(), lines.append)
        told.append([line.strip().split(": ", 1) for line in lines if line.split()[:1] in (["many:"], ["one:"])])
        fingerprints.add(stage(tmp_path / "out", "ingest").manifest.fingerprint)
        (tmp_path / "in" / more).write_text("")
    lost = "10 kept, 3 quarantined (invalid_json 2, missing_query 1)"
    reading = [
        ["many", f"13 rows in 2 files, {sizes[0]:,} bytes: {lost}"],
        ["one", f"5 rows in 1 file, {sizes[1]:,} bytes: 5 kept"],
    ]
    ending = ["many", "1 skipped (unknown ending): c.doc"]
    assert told == [
        [["many", "1 skipped (hidden): _SUCCESS"], ending, *reading],
        [["many", "2 skipped (hidden): _SUCCESS, _none"], ending, *reading],
    ]
    assert len(fingerprints) == 1
    left_out = {
        name: {"files": 1, "names": [file]} for name, file in (("hidden", "_SUCCESS"), ("unknown ending", "c.doc"))
    }
    assert stage(tmp_path / "out", "ingest").manifest.findings == {
        "inputs": {
            "many": {"files": 2, "bytes": sizes[0], "left_out": left_out, "columns_not_used": []},
            "one": {"files": 1, "bytes": sizes[1], "left_out": {}, "columns_not_used": []},
        }
    }


def test_account_of_ingest(tmp_path):
    flawed_jsonl(tmp_path / "flawed.jsonl")
    write_parquet(tmp_path / "good.parquet", plain_rows(5))
    sources = {"flawed": tmp_path / "flawed.jsonl", "good": tmp_path / "good.parquet"}
    run(make_recipe(tmp_path / "out", sources))
    manifest = stage(tmp_path / "out", "ingest").manifest
    assert manifest.accounting == {
        "flawed": {
            "ingest": {
                "in": 10,
                "made": 0,
                "kept": 7,
                "quarantined:invalid_json": 2,
                "quarantined:missing_query": 1,
            }
        },
        "good": {"ingest": {"in": 5, "made": 0, "kept": 5}},
    }
    assert (manifest.rows_in, manifest.rows_out) == (15, 12)
    assert stage(tmp_path / "out", "quarantine").manifest.rows_out == 3


def test_bad_rows_of_parquet_are_named_by_their_number(tmp_path):
    rows = plain_rows(120)
    rows[3]["synthetic_answer"] = None
    rows[77]["synth_id"] = None
    write_parquet(tmp_path / "a.parquet", rows)
    run(make_recipe(tmp_path / "out", {"toy": tmp_path / "a.parquet"}))
    found = {(item["position"], item["reason"]) for item in read(stage(tmp_path / "out", "quarantine"))}
    assert found == {(3, "missing_synthetic_answer"), (77, "missing_synth_id")}


@pytest.mark.parametrize(("limit", "fails"), [(0.3, False), (0.29, True), (0.0, True)])
def test_more_bad_rows_than_allowed_fail_the_run(tmp_path, limit, fails):
    flawed_jsonl(tmp_path / "flawed.jsonl")
    recipe = make_recipe(tmp_path / "out", {"toy": tmp_path / "flawed.jsonl"}, max_bad_fraction=limit)
    if not fails:
        run(recipe)
        return
    with pytest.raises(SourceError, match=f"'toy': 3 of 10 rows .* max_bad_fraction={limit};"):
        run(recipe)
    # The places are written down before that, and a second run fails as well, without reading anything again.
    assert stage(tmp_path / "out", "quarantine").manifest.rows_out == 3
    with pytest.raises(SourceError, match="3 of 10 rows"):
        run(recipe, IdleEngine())


def test_bad_rows_of_one_source_do_not_hide_behind_another(tmp_path):
    flawed_jsonl(tmp_path / "flawed.jsonl")
    write_jsonl(tmp_path / "good.jsonl", plain_rows(500))
    sources = {"flawed": tmp_path / "flawed.jsonl", "good": tmp_path / "good.jsonl"}
    with pytest.raises(SourceError, match="'flawed'"):
        run(make_recipe(tmp_path / "out", sources, max_bad_fraction=0.1))


def test_quarantine_after_a_kill_and_another_cut(tmp_path):
    """Ingest was committed under the first cut, so the quarantine has to read the splits of that one."""
    expected = flawed_jsonl(tmp_path / "flawed.jsonl")
    source = {"toy": tmp_path / "flawed.jsonl"}
    run(make_recipe(tmp_path / "out", source, run={"split_bytes": 1 << 20}))
    shutil.rmtree(tmp_path / "out" / "quarantine")
    run(make_recipe(tmp_path / "out", source, run={"split_bytes": 1024}))
    rows = read(stage(tmp_path / "out", "quarantine"))
    assert sorted((item["position"], item["reason"]) for item in rows) == expected


def test_file_names_and_formats_do_not_change_the_rows(tmp_path):
    rows = mixed_rows(40)
    write_parquet(tmp_path / "one" / "z.parquet", rows)
    write_jsonl(tmp_path / "two" / "a.jsonl", rows[25:])
    (tmp_path / "two" / "deep").mkdir()
    packed = write_jsonl(tmp_path / "b.jsonl", rows[:25]).read_bytes()
    (tmp_path / "two" / "deep" / "b.jsonl.gz").write_bytes(gzip.compress(packed))
    digests = set()
    for name in ("one", "two"):
        run(make_recipe(tmp_path / f"out-{name}", {"toy": tmp_path / name}))
        digests.add(stage(tmp_path / f"out-{name}", "ingest").manifest.content_digest)
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["empty.parquet", "empty.jsonl"])
def test_a_source_without_rows_that_may_be_empty(tmp_path, name):
    write = write_parquet if name.endswith("parquet") else write_jsonl
    write(tmp_path / name, [])
    write_jsonl(tmp_path / "some.jsonl", plain_rows(3))
    sources = {"empty": tmp_path / name, "some": tmp_path / "some.jsonl"}
    recipe = make_recipe(tmp_path / "out", sources, stages=["dedup", "tokenize", "layout"])
    assert run(recipe).corpus.manifest.rows_out == 3


def test_run_without_any_row(tmp_path):
    write_parquet(tmp_path / "empty.parquet", [])
    sources = {"empty": tmp_path / "empty.parquet"}
    recipe = make_recipe(tmp_path / "out", sources, stages=["dedup", "tokenize", "layout"])
    result = run(recipe)
    assert result.corpus.manifest.rows_out == 0
    run(recipe, IdleEngine())


def test_absent_column_names_the_file(tmp_path):
    write_jsonl(tmp_path / "in" / "a.jsonl", plain_rows(2))
    bad = tmp_path / "in" / "b.parquet"
    write_parquet(bad, plain_rows(2))
    pq.write_table(pq.read_table(bad).drop_columns(["query"]), bad)
    with pytest.raises(SourceError, match=r"b\.parquet lacks the columns \['query'\]"):
        run(make_recipe(tmp_path / "out", {"toy": tmp_path / "in"}))
