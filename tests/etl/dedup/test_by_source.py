"""The report by source on counts that were added up by hand."""

from etl.dedup.by_source import DuplicateCounts, by_source, lines, subsets


def counts() -> list[DuplicateCounts]:
    """100 rows of a; 20 of b, all of which are in a; 50 of c without a duplicate; 4 of d that are all dropped."""
    exact = DuplicateCounts(
        "exact",
        {"a": 100, "b": 20, "c": 50, "d": 4},
        {"b": 15, "d": 4},
        {"a": {"b": 15}, "b": {"a": 15}, "d": {"a": 4}},
    )
    near = DuplicateCounts(
        "near", {"a": 100, "b": 5, "c": 50}, {"a": 5, "b": 4}, {"a": {"b": 4, "a": 2}, "b": {"a": 4}}
    )
    return [exact, near]


def test_rates_factors_and_overlaps() -> None:
    report = by_source(counts())
    assert report["a"] == {
        "rows": 100,
        "removed": {"exact": 0, "near": 5},
        "removed_share": 0.05,
        "over_select": round(100 / 95, 6),
        "in_others": {"b": {"exact": 15, "near": 4, "share": 0.19}},
    }
    assert report["b"]["over_select"] == 20.0
    assert report["b"]["in_others"] == {"a": {"exact": 15, "near": 4, "share": 0.95}}
    assert report["c"]["over_select"] == 1.0
    assert report["d"]["over_select"] is None
    assert report["c"]["in_others"] == {}


def test_a_source_that_stands_in_another_is_named() -> None:
    report = by_source(counts())
    assert list(subsets(report)) == [("b", "a", 0.95), ("d", "a", 1.0)]
    said = list(lines(report))
    assert "warning: 95.0% of b is in a, too: a subset of it" in said
    assert "d: all 4 rows are duplicates of others" in said
    assert not any(line.startswith("c:") for line in said)


def test_a_share_is_at_most_one() -> None:
    exact = DuplicateCounts("exact", {"a": 10, "b": 10}, {}, {"a": {"b": 8}})
    near = DuplicateCounts("near", {"a": 10, "b": 10}, {}, {"a": {"b": 8}})
    assert by_source([exact, near])["a"]["in_others"]["b"]["share"] == 1.0
