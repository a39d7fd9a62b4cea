"""The dedup stage as a whole: exact, then near, over several sources."""

import pytest

from etl.errors import SchemaError
from etl.run.run import run_recipe
from tests.engines.inprocess import InProcessEngine
from tests.etl.stages.dedup.toys import dedup, families, two_sources
from tests.etl.stages.toys import (
    make_recipe,
    mixed_rows,
    plain_rows,
    read,
    row,
    run,
    stage,
    verdicts,
    write_jsonl,
    write_parquet,
)


@pytest.mark.parametrize(("priority", "left"), [(["a", "b"], "a"), (["b", "a"], "b"), (["b"], "b")])
def test_the_source_of_highest_priority_keeps_its_copy(tmp_path, priority, left):
    shared = families(2, 8)
    near = {"threshold": 0.6, "num_canaries": 0}
    two_sources(tmp_path, shared, shared, survivor={"sources": priority}, near=near)
    kept = [item for item in read(stage(tmp_path / "out", "near")) if item["verdict"] is None]
    source = {item["id"]: item["source_dataset"] for item in read(stage(tmp_path / "out", "ingest"))}
    assert {source[item["id"]] for item in kept} == {left}
    assert {source[key] for key in verdicts(tmp_path / "out", "exact")} == {"a", "b"} - {left} | (
        {left} if len({item["query"] for item in shared}) < len(shared) else set()
    )


def test_sources_tell_what_they_have_in_common(tmp_path):
    """40 rows of `a`; `b` has 10 of them and nothing else, `a` three rows twice."""
    rows = plain_rows(40)
    lines = []
    sources = {
        "a": write_jsonl(tmp_path / "a.jsonl", rows + [rows[n] | {"synth_id": f"again-{n}"} for n in range(3)]),
        "b": write_jsonl(tmp_path / "b.jsonl", rows[20:30]),
    }
    recipe = make_recipe(
        tmp_path / "out", sources, stages=["dedup"], dedup={"survivor": {"sources": ["a"]}, "near": {"num_canaries": 0}}
    )
    run_recipe(recipe, InProcessEngine(), lines.append)
    found = stage(tmp_path / "out", "clusters").manifest.findings["sources"]
    assert found["a"]["removed"] == {"exact": 3, "near": 0}
    assert found["a"]["over_select"] == round(43 / 40, 6)
    assert found["a"]["in_others"] == {"b": {"exact": 10, "near": 0, "share": round(10 / 43, 6)}}
    assert found["b"]["removed_share"] == 1.0
    assert found["b"]["in_others"]["a"]["share"] == 1.0
    assert any("warning: 100.0% of b is in a" in line for line in lines)


def test_a_dropped_row_is_no_survivor(tmp_path):
    """A duplicate of a row that an earlier stage dropped has to be kept."""
    rows = [row(n, "what is it", "failed after maximum attempts") for n in range(3)] + [row(9, "what is it", "fine")]
    write_jsonl(tmp_path / "in.jsonl", rows)
    run(make_recipe(
        tmp_path / "out", {"toy": tmp_path / "in.jsonl"}, stages=["filter", "dedup"],
        filter={"steps": [{"kind": "answer"}]}, dedup={"near": {"threshold": 0.1, "bands": 64, "rows": 1}},
    ))  # fmt: skip
    final = verdicts(tmp_path / "out", "near")
    assert {verdict[0] for verdict in final.values()} == {"answer"}
    assert len(final) == 3


def test_a_score_that_nothing_adds_is_refused_before_a_row_is_read(tmp_path):
    write_parquet(tmp_path / "in.parquet", plain_rows(3))
    recipe = make_recipe(
        tmp_path / "out", {"toy": tmp_path / "in.parquet"}, stages=["dedup"], dedup={"survivor": {"score": "composite"}}
    )
    with pytest.raises(SchemaError, match="no earlier stage adds the column 'composite'"):
        run(recipe)
    assert not (tmp_path / "out").exists()


def test_rows_that_exact_dedup_dropped_are_no_candidates(tmp_path):
    rows = [item | {"synth_id": f"{item['synth_id']}-{copy}"} for item in plain_rows(10) for copy in range(3)]
    dedup(tmp_path, rows, exact={}, near={"threshold": 0.8, "num_canaries": 0})
    assert stage(tmp_path / "out", "candidates").manifest.rows_out == 0
    assert stage(tmp_path / "out", "pairs").manifest.rows_out == 0
    assert set(verdicts(tmp_path / "out", "near")) == set(verdicts(tmp_path / "out", "exact"))


def test_survivors_do_not_depend_on_the_cut_or_the_order(tmp_path):
    rows = mixed_rows(120)
    found = []
    for number, (batch_rows, buckets, mine) in enumerate([(3, 1 << 10, rows), (1000, 1 << 30, rows[::-1])]):
        folder = tmp_path / str(number)
        write_jsonl(folder / "in.jsonl", mine)
        recipe = make_recipe(
            folder / "out", {"toy": folder / "in.jsonl"}, stages=["dedup"],
            run={"split_bytes": 4096 << 10 * number, "bucket_bytes": buckets},
        )  # fmt: skip
        run(recipe, InProcessEngine(batch_rows=batch_rows, seed=number))
        found.append(verdicts(folder / "out", "near"))
    assert found[0] == found[1]
    assert {verdict[0] for verdict in found[0].values()} == {"ingest", "exact", "near"}
