"""Paragraphs, lines and sentences that occur elsewhere too: which copy is kept, what is left, what later stages see."""

import itertools
import random

import pyarrow as pa
import pytest

from etl.dedup.survivor import Survivor
from etl.dedup.units import UNITS_VERSION, UnitDedup
from etl.rows import Rows
from etl.run.run import context_of
from etl.schema import MESSAGE, PROMPT, REMOVED
from etl.stages.dedup.units import FindUnits, UnitMark, dedup_units
from tests.engines.inprocess import IdleEngine, InProcessEngine
from tests.etl.rows import asked, say
from tests.etl.stages.dedup.toys import groups_of, marked
from tests.etl.stages.toybatches import EARLIER, rows_of
from tests.etl.stages.toys import make_recipe, read, row, run, stage, text_recipe, write_jsonl
from tests.etl.storage.builds import commit

LICENCE = "This text may be used by anyone for any purpose, without a fee."
HEADER = "A header of six words only"


def own(number, count=10):
    """A paragraph that no other number has."""
    rng = random.Random(number)
    return " ".join(f"w{rng.randrange(10**9)}" for _ in range(count))


def document(number, text):
    return {"id": f"d{number}", "text": text}


def units_of(unit, near=None, **more):
    """The section `dedup`, for only one kind of unit."""
    return {"exact": None, "near": near, "units": [{"unit": unit}], **more}


def texts_of(result):
    """Example id to text, for all rows as the last stage left them."""
    found = {}
    for split in result.rows.splits:
        for batch in result.rows.ref.read(split, ["source_dataset", "source_example_id", "messages"]):
            for item in batch.to_pylist():
                found[item["source_example_id"]] = item["messages"][0]["content"]
    return found


def dropped(result):
    return {(item["stage"], item["step"], item["reason"], item["value"]) for item in read(result.dropped)}


def test_the_copy_of_the_preferred_source_stays(tmp_path):
    documents = {
        "a": [document(1, f"{LICENCE}\n\n{own(1)}\n"), document(2, f"{own(2)}\n\n{LICENCE}\n\n{own(3)}")],
        "b": [document(3, f"{HEADER}\n\n{LICENCE}\n\n{own(4)}"), document(4, f"{HEADER}\n\n{own(5)}")],
    }
    section = units_of("paragraph", survivor={"sources": ["b"]})
    result = run(text_recipe(tmp_path / "out", documents, stages=["dedup"], dedup=section))
    assert texts_of(result) == {
        "d1": f"{own(1)}\n",
        "d2": f"{own(2)}\n\n{own(3)}",
        "d3": f"{HEADER}\n\n{LICENCE}\n\n{own(4)}",
        "d4": f"{HEADER}\n\n{own(5)}",
    }
    size, own_sizes = len(LICENCE), [len(own(n)) for n in range(6)]
    hits, table = stage(tmp_path / "out", "paragraph_hits").manifest, stage(tmp_path / "out", "paragraph")
    assert hits.distributions == {
        "a": {
            "seen": 5, "bytes_seen": 2 * size + sum(own_sizes[1:4]), "removed": 2, "bytes_removed": 2 * size,
            "kept_in": {"b": 2},
        },
        "b": {
            "seen": 3, "bytes_seen": size + sum(own_sizes[4:]), "removed": 0, "bytes_removed": 0, "kept_in": {},
        },
    }  # fmt: skip
    assert table.manifest.findings["dedup_rate"]["a"]["units"] == 0.4
    assert table.manifest.findings["dedup_rate"]["b"] == {"units": 0.0, "bytes": 0.0}
    assert table.manifest.accounting["a"]["paragraph"] == {"in": 2, "made": 0, "kept": 2}
    assert sorted(item["num_paragraphs_removed"] for item in read(table)) == [0, 0, 1, 1]


def test_within_a_source_the_smallest_id_keeps_its_copy(tmp_path):
    documents = {"a": [document(n, f"{LICENCE}\n\n{own(n)}") for n in range(20)]}
    result = run(text_recipe(tmp_path / "out", documents, stages=["dedup"], dedup=units_of("paragraph")))
    base = {item["source_example_id"]: item["id"] for item in read(result.rows.base.result())}
    first = min(base, key=base.__getitem__)
    assert {key for key, text in texts_of(result).items() if LICENCE in text} == {first}


def test_a_repeat_in_one_document_goes_and_its_first_place_stays(tmp_path):
    lines = [LICENCE, HEADER, own(1), LICENCE, HEADER, LICENCE]
    documents = {"a": [document(1, "\n".join(lines) + "\n")]}
    result = run(text_recipe(tmp_path / "out", documents, stages=["dedup"], dedup=units_of("line")))
    assert texts_of(result) == {"d1": "\n".join([LICENCE, HEADER, own(1), HEADER]) + "\n"}


def test_sentences_are_compared_in_their_normal_form(tmp_path):
    said = "In der früh\u0065n Zeit war alles ganz anders als heute."
    again = "In der fru\u0308hen  Zeit war\u00a0alles ganz anders als heute."
    documents = {"a": [document(1, f"{own(1)}. {said} Yes."), document(2, f"{own(2)}. {again} No.")]}
    result = run(text_recipe(tmp_path / "out", documents, stages=["dedup"], dedup=units_of("sentence")))
    whole = {"d1": documents["a"][0]["text"], "d2": documents["a"][1]["text"]}
    cut = {"d1": f"{own(1)}. Yes.", "d2": f"{own(2)}. No."}
    assert texts_of(result) in ({**whole, "d1": cut["d1"]}, {**whole, "d2": cut["d2"]})


def test_a_document_with_too_little_left_is_dropped_and_says_so(tmp_path):
    rows = [
        document(1, f"{LICENCE}\n\n{own(1)}"),
        document(2, LICENCE),
        document(3, f"{LICENCE}\n\nfive words are left here"),
    ]
    documents = {"a": rows[:1], "b": rows[1:]}
    section = units_of("paragraph", survivor={"sources": ["a"]})
    result = run(text_recipe(tmp_path / "out", documents, stages=["dedup"], dedup=section))
    assert dropped(result) == {
        ("dedup", "paragraph", "only_duplicate_units", "0"),
        ("dedup", "paragraph", "only_duplicate_units", "5"),
    }
    assert texts_of(result) == {"d1": rows[0]["text"], "d2": "", "d3": "five words are left here"}
    assert result.accounting["b"]["paragraph"] == {"in": 2, "made": 0, "kept": 0, "only_duplicate_units": 2}


def test_the_units_that_were_found_go_from_their_row_and_no_other():
    """Two units of row 1, the last of its row group; all of row 2; row 3 was dropped before; row 4 is no document."""
    document = [say("text", "one two\nthree four\nfive six seven")]
    messages = [document] * 4 + [asked("a\nb", "c")]
    texts = [pa.array(messages[:2], pa.list_(MESSAGE)), pa.array(messages[2:], pa.list_(MESSAGE))]
    groups = groups_of([2, 3], dropped=[3])
    groups = [group.append_column("messages", text) for group, text in zip(groups, texts, strict=True)]
    mark = UnitMark("line", UnitDedup(unit="line", min_words=3, min_left_words=2))
    hits = [(1, 2), (1, 0), (2, 0), (2, 1), (2, 2), (3, 1)]
    chunks = marked(mark, groups, hits)
    found = [
        ([(cut["start"], cut["end"]) for cut in row["removed"] or []], row["num_lines_removed"], row["verdict"])
        for row in rows_of(chunks)
    ]
    gone = {"step": "line", "reason": "only_duplicate_units", "value": "0"}
    assert found == [
        ([], 0, None), ([(0, 8), (18, 33)], 2, None), ([(0, 33)], 3, gone), ([(8, 19)], 1, EARLIER), ([], 0, None),
    ]  # fmt: skip
    assert [chunk.accounting["toy"]["line"] for chunk in chunks] == [
        {"in": 2, "made": 0, "kept": 2}, {"in": 2, "made": 0, "kept": 1, "only_duplicate_units": 1},
    ]  # fmt: skip
    semantic = {"units": UNITS_VERSION, "unit": "line", "min_left_words": 2}
    assert (mark.semantic, mark.columns.names) == (semantic, ["removed", "num_lines_removed"])


def test_short_documents_that_lose_nothing_stay(tmp_path):
    documents = {"a": [document(1, "short"), document(2, "short"), document(3, "")]}
    result = run(text_recipe(tmp_path / "out", documents, stages=["dedup"], dedup=units_of("line")))
    assert not read(result.dropped)
    assert not any(item["removed"] for item in read(stage(tmp_path / "out", "line")))


def test_conversations_pass_untouched(tmp_path):
    rows = [row(n, LICENCE, f"{LICENCE}\n\n{LICENCE}") for n in range(3)]
    sources = {"toy": write_jsonl(tmp_path / "in.jsonl", rows)}
    recipe = make_recipe(tmp_path / "out", sources, stages=["dedup"], dedup=units_of("paragraph"))
    result = run(recipe)
    assert not read(result.dropped)
    assert stage(tmp_path / "out", "paragraph_hits").manifest.rows_in == 0
    assert not any(item["removed"] for item in read(stage(tmp_path / "out", "paragraph")))


def test_rows_with_a_verdict_take_no_part(tmp_path):
    text = f"{LICENCE}\n\n{own(1)}"
    documents = {"a": [document(1, text), document(2, text), document(3, f"{own(3)}\n\n{own(4)}")]}
    section = {"near": None, "units": [{"unit": "paragraph"}]}
    result = run(text_recipe(tmp_path / "out", documents, stages=["dedup"], dedup=section))
    assert {item["reason"] for item in read(result.dropped)} == {"exact_duplicate"}
    assert texts_of(result) == {item["id"]: item["text"] for item in documents["a"]}


def test_paragraphs_then_sentences(tmp_path):
    said = [f"Sentence {name} has {own(number, 7)}." for number, name in enumerate("abcde")]
    rows = [
        document(1, f"{said[0]} {said[1]}\n\n{said[2]}"),
        document(2, f"{said[0]} {said[1]}\n\n{said[2]} {said[3]}"),
    ]
    section = {"exact": None, "near": None, "units": [{"unit": "paragraph"}, {"unit": "sentence"}]}
    section["survivor"] = {"sources": ["a"]}
    result = run(text_recipe(tmp_path / "out", {"a": rows[:1], "b": rows[1:]}, stages=["dedup"], dedup=section))
    assert texts_of(result) == {"d1": rows[0]["text"], "d2": said[3]}
    b = read(stage(tmp_path / "out", "sentence"))
    assert sorted(item["num_sentences_removed"] for item in b) == [0, 1]
    assert REMOVED.name not in result.rows.schema.names
    inputs = stage(tmp_path / "out", "sentence_hits").manifest.made_from["inputs"]
    assert set(inputs) == {"ingest", "paragraph"}


def some_documents(count, seed):
    """Documents of shared and own paragraphs, some equal, with the same shared ones in many."""
    rng = random.Random(seed)
    shared = [own(1000 + n) for n in range(8)]
    rows = []
    for number in range(count):
        parts = [
            rng.choice(shared) if rng.random() < 0.5 else own(rng.randrange(10**6)) for _ in range(rng.randrange(5))
        ]
        rows.append(document(number, rng.choice(["\n\n", "\n", " \n \n"]).join(parts)))
    return rows


def test_the_same_content_from_any_cut_order_and_engine(tmp_path):
    rows = some_documents(60, 3)
    digests = set()
    shuffled = random.Random(1).sample(rows, len(rows))
    for number, (split_bytes, documents) in enumerate(itertools.product([1 << 20, 9000, 2000], [rows, shuffled])):
        documents = {"a": documents[:40], "b": documents[40:]} if documents is rows else {
            "a": [r for r in documents if r in rows[:40]], "b": [r for r in documents if r in rows[40:]]
        }  # fmt: skip
        cutting = {"split_bytes": split_bytes, "bucket_bytes": split_bytes}
        out = tmp_path / f"{number}"
        section = units_of("paragraph") | {"units": [{"unit": "paragraph"}, {"unit": "line"}]}
        result = run(
            text_recipe(out, documents, run=cutting, stages=["dedup"], dedup=section), InProcessEngine(seed=number)
        )
        assert (len(result.rows.splits) > 5) == (split_bytes == 2000)
        names = ("paragraph", "line", "dropped")
        digests.add((*(stage(out, name).manifest.content_digest for name in names), *sorted(texts_of(result).items())))
    assert len(digests) == 1


def test_what_is_left_is_what_a_plain_reading_leaves(tmp_path):
    rows = some_documents(50, 5)
    result = run(text_recipe(tmp_path / "out", {"a": rows}, stages=["dedup"], dedup=units_of("line")))
    ids = {item["source_example_id"]: item["id"] for item in read(result.rows.base.result())}
    seen, expected = set(), {}
    for item in sorted(rows, key=lambda item: ids[item["id"]]):
        expected[item["id"]] = []
        for line in filter(None, map(str.strip, item["text"].split("\n"))):
            if line not in seen:
                expected[item["id"]].append(line)
            seen.add(line)
    left = {key: [line.strip() for line in text.split("\n") if line.strip()] for key, text in texts_of(result).items()}
    assert left == expected
    assert sum(map(len, left.values())) == len(seen) < sum(len(item["text"].split("\n")) for item in rows)


def test_near_dedup_sees_the_text_that_is_left(tmp_path):
    """Two documents that are near duplicates only because of what both share, and two that are so without it."""
    shared = "\n\n".join(own(n, 30) for n in range(10))
    twin = own(50, 60)
    rows = [document(1, f"{shared}\n\n{own(60, 20)}"), document(2, f"{shared}\n\n{own(61, 20)}")]
    rows += [document(3, f"{own(62, 200)}\n\n{twin} x y z"), document(4, f"{own(62, 200)}\n\n{twin} p q r")]
    near = {"threshold": 0.7, "num_canaries": 0}
    before = run(text_recipe(tmp_path / "before", {"a": rows}, stages=["dedup"], dedup={"exact": None, "near": near}))
    assert len(read(before.dropped)) == 2
    after = run(text_recipe(tmp_path / "after", {"a": rows}, stages=["dedup"], dedup=units_of("paragraph", near=near)))
    lost = read(after.dropped)
    assert [(item["step"], item["reason"]) for item in lost] == []
    inputs = stage(tmp_path / "after", "candidates").manifest.made_from["inputs"]
    assert "paragraph" in inputs


def test_a_second_run_does_nothing_and_another_choice_runs_again(tmp_path):
    documents = {"a": some_documents(20, 7)}
    recipe = text_recipe(tmp_path / "out", documents, stages=["dedup"], dedup=units_of("line"))
    run(recipe)
    run(recipe, IdleEngine())
    engine = InProcessEngine()
    run(
        text_recipe(tmp_path / "out", documents, stages=["dedup"], dedup=units_of("line", survivor={"highest": False})),
        engine,
    )
    assert {name for name, _ in engine.ran} >= {"line_hits"}


def test_a_hot_unit_streams(tmp_path):
    """A reducer that gets one unit 20,000 times holds a batch, and writes the hits in row groups."""
    size = 20_000
    columns = {
        "bucket": pa.array([0] * size, pa.int32()),
        "unit": pa.array([b"u" * 16] * size),
        "preference": pa.array([0] * size),
        "id": pa.array([b"i" * 16] * size),
        "digest": pa.array([0] * size),
        "row": pa.array(range(size), pa.int64()),
        "place": pa.array([3] * size, pa.int32()),
        "source": pa.array([0] * size, pa.int32()),
        "num_bytes": pa.array([60] * size, pa.int32()),
    }
    taken = 0

    def batches():
        nonlocal taken
        for batch in pa.table(columns).to_batches(max_chunksize=100):
            taken += 1
            yield batch

    chunks = FindUnits(("a",))(0, batches())
    *written, last = list(chunks)
    rows = [row for chunk in written for row in chunk.batch.column("row").to_pylist()]
    assert rows == list(range(1, size))
    assert last.rows_in == size
    assert last.distributions["a"] == {
        "seen": size, "bytes_seen": 60 * size, "removed": size - 1, "bytes_removed": 60 * (size - 1),
        "kept_in": {"a": size - 1},
    }  # fmt: skip


def test_how_many_words_must_be_left(tmp_path):
    documents = {"a": [document(1, LICENCE)], "b": [document(2, f"{LICENCE}\n\nfive words are left here")]}
    lost = {}
    for fewest in (5, 6):
        section = {"unit": "paragraph", "min_left_words": fewest}
        dedup = units_of("paragraph", survivor={"sources": ["a"]}) | {"units": [section]}
        lost[fewest] = dropped(run(text_recipe(tmp_path / f"{fewest}", documents, stages=["dedup"], dedup=dedup)))
    assert lost == {5: set(), 6: {("dedup", "paragraph", "only_duplicate_units", "5")}}


@pytest.mark.parametrize("licences", [("one", "two"), ("two", "one")])
def test_which_of_two_rows_of_one_id_keeps_a_unit_does_not_depend_on_their_order(tmp_path, licences):
    recipe = text_recipe(tmp_path / "out", {"toy": []})
    made = {"id": b"i" * 16, "source_dataset": "toy", "source_example_id": "1", "split_key": "1", "skill_bucket": "B5"}
    rows = [made | {"messages": [say("text", LICENCE)], "license": licence} for licence in licences]
    splits = [[pa.RecordBatch.from_pylist([item], schema=PROMPT)] for item in rows]
    base = Rows.of(commit(recipe.place / "ingest", PROMPT, splits, "ingest"))
    context = context_of(recipe, InProcessEngine())
    done = dedup_units(context, base, UnitDedup(unit="line"), Survivor())
    left = [
        item for split in (0, 1) for batch in done.ref.read(split, ["license", "verdict"]) for item in batch.to_pylist()
    ]
    assert [item["license"] for item in left if item["verdict"] is None] == ["one"]
