"""Cuts against a sort: the same rows, the exact number, whatever the order and the parts they come in."""

import itertools
import struct

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from etl.config import Config
from etl.errors import SchemaError
from etl.mixture.cuts import (
    DIGITS,
    HISTOGRAM,
    PercentileCut,
    RankedCut,
    Search,
    ShareCut,
    Threshold,
    add_histograms,
    beyond,
    histogram,
    keys,
)
from etl.pipeline import AnyCut
from etl.schema import ID, VERDICT

EARLIER = {"step": "earlier", "reason": "x", "value": None}
HASH_SEED = 0x637574


def key(n: int) -> bytes:
    return n.to_bytes(16, "big")


def batch_of(rows: list[dict]) -> pa.RecordBatch:
    """Rows of id, score, language, source and verdict; what a row lacks is null."""
    schema = pa.schema(
        [
            ("id", ID),
            ("score", pa.float64()),
            ("language", pa.string()),
            ("source", pa.string()),
            ("source_dataset", pa.string()),
            ("skill_bucket", pa.string()),
            ("verdict", VERDICT),
        ]
    )
    return pa.RecordBatch.from_pylist(rows, schema=schema)


def search(cut: RankedCut, parts: list[list[pa.RecordBatch]]) -> tuple[dict[str, Threshold], int]:
    """The thresholds and the number of rounds, as the stages find them."""
    driver, rounds = Search(cut), 0
    while not driver.done:
        counts = [histogram(cut, iter(part), driver.digit, driver.prefixes) for part in parts]
        assert all(count.schema == HISTOGRAM for count in counts)
        driver.feed(add_histograms(iter(counts)))
        rounds += 1
    return driver.thresholds, rounds


def kept(cut: RankedCut, rows: list[dict], cuts_at: tuple[int, ...] = ()) -> set[bytes]:
    """Ids of the living rows that are kept, found with the rows cut into parts of one or two batches."""
    bounds = [0, *sorted(at % (len(rows) + 1) for at in cuts_at), len(rows)]
    batches = [batch_of(rows[start:end]) for start, end in itertools.pairwise(bounds)]
    parts = [batches[at : at + 2] for at in range(0, len(batches), 2)]
    thresholds, rounds = search(cut, parts)
    assert rounds <= 6
    out = set()
    for batch in batches:
        gone = beyond(cut, batch, thresholds).to_pylist()
        for row, is_gone in zip(batch.to_pylist(), gone, strict=True):
            if not is_gone and row["verdict"] is None:
                out.add(row["id"])
    return out


def rank(score: float, name: bytes) -> tuple[float, int]:
    """What rows are sorted by: the score as float32, then xxh64 of the id."""
    return float(np.float32(score)), xxhash.xxh64_intdigest(name, HASH_SEED)


def first_of(rows: list[dict], number: int, sign: float = 1.0) -> set[bytes]:
    ordered = sorted(rows, key=lambda row: rank(sign * row.get("score", 0.0), row["id"]))
    return {row["id"] for row in ordered[:number]}


SCORES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, -1e-40, float("inf"), float("-inf")]),
    st.floats(-100, 100, width=32),
    st.floats(allow_nan=False, min_value=-1e30, max_value=1e30),
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {"score": SCORES, "language": st.sampled_from(["en", "de", None]), "source": st.sampled_from("ab")},
        optional={"verdict": st.just(EARLIER)},
    ),
    max_size=40,
).map(lambda rows: [row | {"id": key(n)} for n, row in enumerate(rows)])
PLACES = st.lists(st.integers(0, 40), max_size=5).map(tuple)


def alive(rows: list[dict]) -> list[dict]:
    return [row for row in rows if "verdict" not in row]


@given(rows=ROWS, places=PLACES, keep=st.sampled_from([0.01, 0.1, 1 / 3, 0.5, 0.8, 0.9, 1.0]), highest=st.booleans())
@example(
    rows=[{"id": key(n), "score": s} for n, s in enumerate([0.0, -0.0, 0.0, -0.0])], places=(), keep=0.5, highest=True
)
def test_a_percentile_keeps_what_a_sort_would(rows, places, keep, highest):
    cut = PercentileCut(name="c", column="score", keep=keep, order="highest" if highest else "lowest")
    number = int(np.ceil(round(keep * len(alive(rows)), 6)))
    assert kept(cut, rows, places) == first_of(alive(rows), number, -1.0 if highest else 1.0)


@given(rows=ROWS, places=PLACES)
def test_groups_are_cut_apart(rows, places):
    cut = PercentileCut(name="c", column="score", within=("language", "source"), keep=0.6)
    expected = set()
    for language in ("en", "de", None):
        for source in "ab":
            group = [row for row in alive(rows) if (row["language"], row["source"]) == (language, source)]
            expected |= first_of(group, int(np.ceil(round(0.6 * len(group), 6))))
    assert kept(cut, rows, places) == expected


@given(rows=ROWS, places=PLACES, share=st.sampled_from([0.05, 0.25, 0.5, 0.75, 0.9]))
def test_a_share_is_reached_within_a_row_on_either_side(rows, places, share):
    cut = ShareCut(name="c", column="language", values=("en", "fr"), share=share)
    inside = [row for row in alive(rows) if row["language"] == "en"]
    outside = [row for row in alive(rows) if row["language"] != "en"]
    stay = kept(cut, rows, places)
    left_in = {row["id"] for row in inside} & stay
    left_out = {row["id"] for row in outside} & stay
    if not inside or not outside:
        assert stay == {row["id"] for row in alive(rows)}
        return
    # One side is whole, the other the nearest number of rows, those with the smallest hashes.
    assert len(left_in) == len(inside) or len(left_out) == len(outside)
    if len(inside) < share * (len(inside) + len(outside)):
        assert abs(len(left_out) - len(left_in) * (1 - share) / share) <= 0.5
    else:
        assert abs(len(left_in) - len(left_out) * share / (1 - share)) <= 0.5
    no_score = [{"id": row["id"]} for row in outside], [{"id": row["id"]} for row in inside]
    assert left_out == first_of(no_score[0], len(left_out))
    assert left_in == first_of(no_score[1], len(left_in))


@given(rows=ROWS, places=PLACES, seed=st.randoms(use_true_random=False))
def test_neither_order_nor_parts_matter(rows, places, seed):
    shuffled = list(rows)
    seed.shuffle(shuffled)
    for cut in (
        PercentileCut(name="c", column="score", within=("source",), keep=0.3),
        ShareCut(name="c", column="source", values=("a",), share=0.3),
    ):
        assert kept(cut, shuffled, places) == kept(cut, rows)


def test_ties_are_cut_to_the_exact_number():
    rows = [{"id": key(n), "score": 1.0} for n in range(1000)]
    cut = PercentileCut(name="c", column="score", keep=0.377)
    thresholds, rounds = search(cut, [[batch_of(rows)]])
    assert kept(cut, rows) == first_of(rows, 377)
    assert (thresholds["all"].keep, thresholds["all"].total) == (377, 1000)
    assert rounds <= DIGITS


def test_distinct_scores_need_two_rounds():
    rows = [{"id": key(n), "score": n / 7} for n in range(5000)]
    _, rounds = search(PercentileCut(name="c", column="score", keep=0.5), [[batch_of(rows)]])
    assert rounds <= 2


def test_a_share_needs_few_rounds():
    rows = [{"id": key(n), "language": "en" if n % 4 else "de"} for n in range(5000)]
    _, rounds = search(ShareCut(name="c", column="language", values=("en",), share=0.5), [[batch_of(rows)]])
    assert rounds <= 2


SELECTIONS = (
    {"sources": ("a", "c")},
    {"skill_buckets": ("B1",)},
    {"sources": ("a",), "skill_buckets": ("B2",)},
)


@given(rows=ROWS, places=PLACES, chosen=st.sampled_from(SELECTIONS))
@pytest.mark.parametrize(
    "cut",
    [
        PercentileCut(name="c", column="score", within=("language",), keep=0.5),
        ShareCut(name="c", column="language", values=("en",), share=0.5),
    ],
    ids=lambda cut: cut.kind,
)
def test_a_selection_is_cut_as_if_it_were_alone(cut, rows, places, chosen):
    skills = ("B1", "B2", None)
    rows = [row | {"source_dataset": row["source"], "skill_bucket": skills[n % 5 % 3]} for n, row in enumerate(rows)]
    limited = cut.model_copy(update=chosen)
    names = chosen.get("sources", ("a", "b")), chosen.get("skill_buckets", skills)
    inside = [row for row in rows if row["source"] in names[0] and row["skill_bucket"] in names[1]]
    outside = {row["id"] for row in alive(rows)} - {row["id"] for row in inside}
    assert kept(limited, rows, places) == kept(cut, inside) | outside


def test_a_selection_is_in_the_identity_and_only_then():
    cut = ShareCut(name="half", column="language", values=("en",), share=0.5)
    limited = ShareCut(name="half", column="language", values=("en",), share=0.5, sources=("b", "a", "b"))
    assert limited.identity() == {**cut.identity(), "sources": ["a", "b"]}
    assert limited.needed == ("language", "source_dataset")
    with pytest.raises(SchemaError, match=r"cut 'half' reads \['source_dataset'\]"):
        limited.check(pa.schema([("language", pa.string())]))


def test_rows_without_a_score_stay():
    rows = [{"id": key(n), "score": None if n % 2 else float(n)} for n in range(20)]
    cut = PercentileCut(name="c", column="score", keep=0.5)
    assert kept(cut, rows) == {key(n) for n in range(20) if n % 2 or n < 10}


def test_rows_with_a_verdict_neither_count_nor_change():
    rows = [{"id": key(n), "score": float(n), "verdict": EARLIER if n < 5 else None} for n in range(10)]
    cut = PercentileCut(name="c", column="score", keep=0.4)
    assert kept(cut, rows) == {key(5), key(6)}


@pytest.mark.parametrize("keep", [0.25, 1.0])
def test_a_score_may_be_an_integer(keep):
    scores = pa.array([3, 2**31 + 1, -5, 2**40], pa.int64())
    ids = pa.array([key(n) for n in range(4)], ID)
    batch = pa.record_batch([ids, scores, pa.nulls(4, VERDICT)], ["id", "score", "verdict"])
    cut = PercentileCut(name="c", column="score", keep=keep)
    thresholds, _ = search(cut, [[batch]])
    assert beyond(cut, batch, thresholds).to_pylist() == ([True, True, False, True] if keep < 1 else [False] * 4)


@pytest.mark.parametrize(
    "rows", [[], [{"id": key(1), "score": None}], [{"id": key(1), "score": 1.0, "verdict": EARLIER}]]
)
def test_nothing_to_cut(rows):
    cut = PercentileCut(name="c", column="score", keep=0.5)
    assert search(cut, [[batch_of(rows)]]) == ({}, 1)
    assert beyond(cut, batch_of(rows), {}).to_pylist() == [False] * len(rows)
    assert search(cut, []) == ({}, 1)


def test_a_side_too_small_for_the_share_goes_whole():
    rows = [{"id": key(n), "language": "en" if n == 0 else "de"} for n in range(5)]
    cut = ShareCut(name="c", column="language", values=("en",), share=0.9)
    assert kept(cut, rows) == {key(0)}
    assert search(cut, [[batch_of(rows)]])[0]["outside"] == Threshold(keep=0, total=4)


@given(st.lists(SCORES, min_size=2, max_size=2), st.lists(st.binary(min_size=16, max_size=16), min_size=2, max_size=2))
def test_keys_are_in_the_order_of_score_and_hash(scores, ids):
    cut = PercentileCut(name="c", column="score", keep=0.5)
    batch = batch_of([{"id": name, "score": score} for name, score in zip(ids, scores, strict=True)])
    one, other = keys(cut, batch).tolist()
    ranks = [rank(score, name) for name, score in zip(ids, scores, strict=True)]
    assert (one < other, one == other) == (ranks[0] < ranks[1], ranks[0] == ranks[1])
    assert all(0 <= digit < 1 << 16 for digit in one + other)


def test_a_key_by_hand():
    cut = PercentileCut(name="c", column="score", keep=0.5)
    (digits,) = keys(cut, batch_of([{"id": key(3), "score": -1.5}])).tolist()
    (bits,) = struct.unpack(">I", struct.pack(">f", -1.5))
    ordered = struct.pack(">I", bits ^ 0xFFFFFFFF) + xxhash.xxh64_digest(key(3), HASH_SEED)
    assert digits == list(struct.unpack(">6H", ordered))


class Holder(Config):
    cut: AnyCut


def test_a_threshold_reads_back():
    threshold = Threshold(keep=1, total=2, key=(1, 2, 3, 4, 5, 6))
    assert Threshold.model_validate_json(threshold.model_dump_json()) == threshold


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "share", "column": "c", "values": ["x"], "share": 1.0},
        {"kind": "share", "column": "c", "values": ["x"], "share": 0},
        {"kind": "percentile", "column": "c", "keep": 0},
        {"kind": "percentile", "column": "c", "keep": 1.1},
        {"kind": "percentile", "column": "c", "keep": 0.5, "order": "up"},
        {"kind": "quantile"},
    ],
)
def test_settings_without_meaning_are_refused(options):
    with pytest.raises(ValidationError):
        Holder(cut={"name": "n", **options})


@pytest.mark.parametrize("name", ["", "a/b", ".a", "_a", "a b"])
def test_a_cut_is_named_like_a_folder(name):
    with pytest.raises(ValidationError):
        PercentileCut(name=name, column="c", keep=0.5)


def test_the_first_version_of_a_cut_is_left_out_of_its_identity(monkeypatch):
    cut = ShareCut(name="half", column="language", values=("en",), share=0.5)
    first = cut.identity()
    assert first == cut.fingerprinted()
    assert "version" not in first
    monkeypatch.setattr(ShareCut, "version", 2)
    assert cut.identity() == {**first, "version": 2}
