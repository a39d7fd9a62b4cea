"""Exact duplicates: what counts as equal, which copy is kept, what is counted by source."""

import random
import re
import unicodedata
import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.hashing import hash_columns, signed
from etl.schema import PROMPT_CONTENT
from etl.stages.dedup.exact import CONTENT, FindLosers, content_form
from tests.etl.stages.dedup.toys import dedup
from tests.etl.stages.toybatches import cut_at, distributions_of, identity, rows_in, rows_of
from tests.etl.stages.toys import plain_rows, read, row, stage, verdicts


def row_digests(dataset):
    """Row digest by id, as a signed integer."""
    table = pa.Table.from_batches(dataset.read()).combine_chunks()
    digests = signed(hash_columns([table[name].combine_chunks() for name in PROMPT_CONTENT]))
    return dict(zip(table["id"].to_pylist(), digests.to_pylist(), strict=True))


def test_exact_duplicates_leave_the_smallest_row_digest(tmp_path):
    rows = [item | {"synth_id": f"{item['synth_id']}-{copy}"} for item in plain_rows(30) for copy in range(1, 4)]
    random.Random(0).shuffle(rows)
    dedup(tmp_path, rows, exact={})
    base = stage(tmp_path / "out", "ingest")
    digests = row_digests(base)
    content = {item["id"]: item["messages"][0]["content"] for item in read(base)}
    expected = {}
    for text in set(content.values()):
        group = sorted((digests[key], key) for key in content if content[key] == text)
        survivor = group[0][1]
        for _, key in group[1:]:
            expected[key] = ("exact", "exact_duplicate", str(uuid.UUID(bytes=survivor)))
    assert len(expected) == 60
    assert verdicts(tmp_path / "out", "exact") == expected


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("a  b", "a\nb ", True),
        (unicodedata.normalize("NFC", "café é"), unicodedata.normalize("NFD", "café é"), True),
        ("a b", "a\u00a0b", True),
        ("a b", "A b", False),
        ("x²", "x2", False),
        ("a b", "ab", False),
        ("a  b", "a\n b ", False),
        ("a\nb\n\nc", "a b c", True),
        ("if a:\n  b\n  c", "if a:\n  b\nc", False),
        ("if a:\n  b\n  c", "if a: b c", False),
        ("if a:\n  b", "if a:  \r\n  b\n", True),
        ("  a\nb", "a b", True),
    ],
)
def test_what_counts_as_equal(tmp_path, first, second, same):
    dedup(tmp_path, [row(1, first, "yes"), row(2, second, "yes"), row(3, "yes", first)], exact={})
    assert len(verdicts(tmp_path / "out", "exact")) == int(same)


laid_out = st.lists(st.text(st.sampled_from("ab \t\r\n\u3000"), max_size=8), min_size=2, max_size=8)


@given(laid_out, st.sampled_from(["B2", "B3", "B5"]))
def test_content_is_equal_where_its_plain_form_is(texts, bucket):
    """The contents of texts against the rule written down in Python."""

    def form(text):
        if bucket != "B5" or re.search(r"[\r\n][^\S\r\n]+\S", text):
            return re.sub(r"[ \t]+\n", "\n", re.sub(r"\r\n?", "\n", text)).rstrip()
        return " ".join(text.split())

    found = content_form(pa.array(texts), np.full(len(texts), bucket != "B5")).to_pylist()
    assert found == [form(text) for text in texts]


def test_by_row_only_messages_that_are_the_same_are_equal(tmp_path):
    rows = [row(1, "a  b", "c"), row(2, "a b", "c"), row(3, "a b", "c"), row(4, "a b", "c", "why")]
    dedup(tmp_path, rows, exact={"by": "row"})
    lost = verdicts(tmp_path / "out", "exact")
    names = {item["id"]: item["source_example_id"] for item in read(stage(tmp_path / "out", "ingest"))}
    assert {names[key] for key in lost} in ({"r2"}, {"r3"})


def test_prompt_and_answer_are_kept_apart(tmp_path):
    dedup(tmp_path, [row(1, "a b", "c"), row(2, "a", "b c"), row(3, "a b", "c", "why")], exact={})
    assert verdicts(tmp_path / "out", "exact") == {}


def test_same_row_twice_leaves_one(tmp_path):
    """Copies that are equal in everything have one id; still only one of them is kept."""
    dedup(tmp_path, [row(1, "q", "a")] * 5 + [row(2, "q2", "a")], exact={})
    rows = read(stage(tmp_path / "out", "exact"))
    assert sum(item["verdict"] is None for item in rows) == 2


groups = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=5)


@given(groups, st.lists(st.integers(0, 25), max_size=5))
def test_all_but_the_first_of_a_content_are_losers_however_the_stream_is_cut(sources_of, cuts):
    """`sources_of` holds the source of each row of each content; the rows arrive sorted."""
    flat = [(content, source) for content, group in enumerate(sources_of) for source in group]
    columns = [
        [0] * len(flat), [bytes([content]) for content, _ in flat], [0] * len(flat), list(range(len(flat))),
        [identity(n) for n in range(len(flat))], list(range(100, 100 + len(flat))), [source for _, source in flat],
    ]  # fmt: skip
    table = pa.table([pa.array(column, field.type) for column, field in zip(columns, CONTENT, strict=True)], CONTENT)
    chunks = list(FindLosers(("a", "b", "c"))(0, cut_at(table, cuts)))
    contents = [content for content, _ in flat]
    firsts = [contents.index(content) for content in contents]
    lost = [n for n in range(len(flat)) if firsts[n] != n]
    assert rows_of(chunks) == [{"row": 100 + n, "id": identity(n), "survivor": identity(firsts[n])} for n in lost]
    assert rows_in(chunks) == len(flat)
    counts = distributions_of(chunks)
    for code, name in enumerate(("a", "b", "c")):
        assert counts["rows"].get(name, 0) == sum(source == code for _, source in flat)
        assert counts["removed"].get(name, 0) == sum(flat[n][1] == code for n in lost)
    shared = [n for n, (content, source) in enumerate(flat) if source == 0 and 1 in sources_of[content]]
    assert counts["overlap"].get("a", {}).get("b", 0) == len(shared)
