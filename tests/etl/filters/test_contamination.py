"""The step: what is compared with what, spans, formats, errors, the index that is made once, and real benchmarks."""

import gzip
import json
import pickle
import random
import re
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from etl.errors import ConfigError
from etl.filters import contamination
from etl.filters.benchmarks import Benchmark, benchmark_files, read_items
from etl.filters.contamination import HIT, ContaminationStep
from etl.filters.ngram_words import Words, split_texts
from etl.schema import TEXT_ROLE
from tests.etl.rows import asked, conversations, say, verdicts
from tests.etl.stages.toys import make_recipe, plain_rows, read, row, run, stage, write_jsonl

ITEMS = [
    {"q": "A farmer has 12 hens and sells 5 of them at the market. How many hens does he keep?", "a": "He keeps 7."},
    {"q": "Find the value of $x ^ 2 + 3$ when $x = \\left( 4 \\right)$ and then double that value.", "a": "38"},
    {
        "q": "Name three rivers that flow into the Black Sea from the north side.",
        "a": "The Danube, the Dnieper and the Dniester all flow into the Black Sea, and so do many smaller rivers.",
    },
    {"q": "Compute 4!", "a": "24"},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLHOUSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def toy(tmp_path):
    """The toy benchmark as a configuration."""
    path = write_jsonl(tmp_path / "toy.jsonl", ITEMS)
    return {"path": str(path), "question_columns": "q", "answer_columns": "a"}


def step_of(*benchmarks, **fields):
    named = dict(zip(("toy", "other"), benchmarks, strict=False))
    return ContaminationStep(benchmarks=named, **fields)


def hits_of(step, rows):
    return step.open()(conversations(rows)).column("contamination").to_pylist()


def briefly(hits):
    return [(hit["item"], hit["part"], hit["field"], hit["match"]) for hit in hits]


def test_a_verbatim_question_is_dropped_with_its_span(toy):
    prompt = f"🙂 Please: {ITEMS[0]['q']} Thanks!"
    batch = step_of(toy).open()(conversations([asked(prompt, "7"), asked("Hello", "Hi")]))
    assert verdicts(batch) == [("contamination", "contaminated", "toy/0 ngram_13 1"), None]
    assert batch.schema.field("contamination").type == pa.list_(HIT)
    (hit,), clean = batch.column("contamination").to_pylist()
    span = prompt[hit.pop("start") : hit.pop("end")]
    assert span == ITEMS[0]["q"].removesuffix("?")
    assert hit == {
        "benchmark": "toy", "item": "0", "part": "question", "field": "prompt", "match": "ngram_13", "ratio": 1.0,
    }  # fmt: skip
    assert clean == []


def test_tag_gives_no_verdict(toy):
    batch = step_of(toy, action="tag").open()(conversations([asked(ITEMS[0]["q"], "7")]))
    assert verdicts(batch) == [None]
    assert briefly(batch.column("contamination").to_pylist()[0]) == [("0", "question", "prompt", "ngram_13")]


def test_a_dropped_row_is_not_searched(toy):
    rows = [asked(ITEMS[n]["q"], "x") for n in (0, 1, 2)]
    batch = step_of(toy).open()(conversations(rows, dropped=[0, 1]))
    assert [verdict[0] for verdict in verdicts(batch)] == ["earlier", "earlier", "contamination"]
    assert batch.column("contamination")[:2].to_pylist() == [None, None]
    assert batch.column("contamination").to_pylist()[2][0]["item"] == "2"
    assert step_of(toy).open()(conversations([])).column("contamination").to_pylist() == []


def test_what_is_compared_with_what(toy):
    question, answer = ITEMS[2]["q"], ITEMS[2]["a"]
    rows = [
        asked("Rivers?", f"I was asked: {question} It is easy."),
        asked("Rivers?", "As the key says", answer),
        asked(answer, "Indeed."),
        [say(TEXT_ROLE, f"An exam of 1999. {question} {answer} End.")],
        [say("system", question), *asked("Rivers?", "Many.")],
    ]
    got = [briefly(hits) for hits in hits_of(step_of(toy, action="tag"), rows)]
    asked_in_answer, answered = ("2", "question", "answer", "ngram_13"), ("2", "answer", "answer", "ngram_13")
    assert got == [[asked_in_answer], [answered], [], [asked_in_answer, answered], []]
    only_prompts = hits_of(step_of(toy, action="tag", fields=["prompt"]), [*rows, asked(question, answer)])
    assert [briefly(hits) for hits in only_prompts] == [[], [], [], [], [], [("2", "question", "prompt", "ngram_13")]]
    both = hits_of(step_of(toy, fields=["answer", "prompt"]), [asked(question, answer)])[0]
    assert sorted(hit["field"] for hit in both) == ["answer", "prompt"]


def test_short_items_are_hit_only_by_texts_that_say_nothing_else(toy):
    rows = [asked("compute 4", "24"), asked("Compute 4! now", "24"), asked("Compute 5!", "24")]
    assert [briefly(hits) for hits in hits_of(step_of(toy), rows)] == [[("3", "question", "prompt", "near")], [], []]
    rows = [asked("Can you compute 4 for me", "24")]
    assert [briefly(hits) for hits in hits_of(step_of(toy, min_words=2), rows)] == [
        [("3", "question", "prompt", "ngram_13")]
    ]


@pytest.mark.parametrize(
    "text",
    [
        "find the VALUE of $x^{2}+3$ when   $x=(4)$ and then double that value.",
        "Find the value of x^2 + 3 when\n\\(x = 4\\), and then\\, double \\text{that} value",
    ],
)
def test_latex_survives_its_dress(toy, text):
    assert [hit["ratio"] for hit in hits_of(step_of(toy), [asked(text, "")])[0]] == [1.0]


def test_changed_numbers_survive_when_they_are_masked(toy):
    changed = "A farmer has 1,250 hens and sells 0.5 of them at the market. How many hens does he keep?"
    strict = {"ngrams": [{"n": 13, "min_ratio": 0.9}], "near": None}
    assert hits_of(step_of(toy, **strict), [asked(changed, "")]) == [[]]
    (hit,) = hits_of(step_of(toy, mask_numbers=True, **strict), [asked(changed, "")])[0]
    assert hit["ratio"] == 1.0
    assert changed[hit["start"] : hit["end"]] == changed.removesuffix("?")


CHINESE = [
    "小明有15个苹果，给了小红7个，还剩多少个？",
    "一辆汽车3小时行驶240千米，照这样计算，5小时行驶多少千米？",
    "学校买来25盒粉笔，每盒48支，一共有多少支？",
    "若x=3，y=12，则x+2y的值是多少？",
    "計算圓的面積，半徑為6公分，圓周率取3.14。",
    "りんごが12個あります。3個食べました。残りは何個ですか。",
    "1本80円のえんぴつを6本買いました。代金はいくらですか。",
    "มีแอปเปิล 12 ผล กินไป 5 ผล เหลือแอปเปิลกี่ผล",
    "사과가 12개 있습니다. 5개를 먹으면 몇 개가 남습니까?",
]
WRAPPERS = [
    ("请回答下面的问题：", "。请一步一步思考"),
    ("问题", "解答"),
    ("宿題で", "がわかりません"),
    ("", "เท่าไร"),
    ("\n", "\n"),
]


def full_width(text):
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


def decomposed(text):
    return unicodedata.normalize("NFD", text)


def first_number_changed(text):
    return re.sub(r"\d+", lambda found: str(int(found.group()) * 7 + 1), text, count=1)


@pytest.mark.parametrize("around", WRAPPERS)
@pytest.mark.parametrize("change", [str, full_width, decomposed, first_number_changed])
def test_items_without_spaces_are_found_where_nothing_parts_them(tmp_path, around, change):
    path = write_jsonl(tmp_path / "zh.jsonl", [{"q": text} for text in CHINESE])
    step = step_of({"path": str(path), "question_columns": "q"})
    rows = [around[0] + change(text) + around[1] for text in CHINESE]
    found = hits_of(step, [asked(row, "") for row in rows])
    assert [[hit["item"] for hit in hits] for hits in found] == [[str(n)] for n in range(len(CHINESE))]
    for asks, text, (hit,) in zip(rows, CHINESE, found, strict=True):
        if change is not first_number_changed:
            assert (hit["match"], hit["ratio"]) == ("ngram_13", 1.0)
            assert asks[hit["start"] : hit["end"]] == change(text).rstrip("？?。．")


def test_items_of_one_template_are_told_apart(tmp_path):
    items = [f"商店有{a}箱苹果，每箱{b}千克，卖出{c}千克，还剩多少千克？" for a, b, c in [(12, 25, 80), (31, 18, 45)]]
    path = write_jsonl(tmp_path / "zh.jsonl", [{"q": text} for text in items])
    step = step_of({"path": str(path), "question_columns": "q"})
    rows = [
        items[0].replace("25", "26"),
        items[0].replace("25", "26").replace("80", "90"),
        items[1].replace("31", "1.5"),
    ]
    assert [[hit["item"] for hit in hits] for hits in hits_of(step, [asked(row, "") for row in rows])] == [
        ["0"],
        [],
        ["1"],
    ]


def test_an_edited_question_is_near(toy):
    edited = "A farmer has 12 hens and sells 5 of them at the market. How many hens does he still keep?"
    step = step_of(toy, ngrams=[], numbers=None, near={"n": 3, "threshold": 0.7})
    (hit,) = hits_of(step, [asked(edited, "")])[0]
    assert hit["match"] == "near"
    # 17 trigrams and 18: the new word takes one away and brings two.
    assert hit["ratio"] == pytest.approx(16 / 19)
    assert hits_of(step, [asked(edited + " Give me reasons for all that you say and do.", "")]) == [[]]


def test_hits_are_listed_best_first_and_not_too_many(toy, tmp_path):
    copies = write_jsonl(tmp_path / "copies.jsonl", [ITEMS[2] | {"id": f"c{n}"} for n in range(9)])
    other = {"path": str(copies), "question_columns": "q", "id_column": "id"}
    half = " ".join(ITEMS[0]["q"].split()[:16])
    (hits,) = hits_of(step_of(toy, other, max_hits=4), [asked(f"{half} {ITEMS[2]['q']}", "")])
    assert [(hit["benchmark"], hit["item"]) for hit in hits] == [
        ("toy", "2"), ("other", "c0"), ("other", "c1"), ("other", "c2"),
    ]  # fmt: skip
    (hits,) = hits_of(step_of(toy, other, max_hits=99), [asked(f"{half} {ITEMS[2]['q']}", "")])
    assert [hit["ratio"] for hit in hits] == sorted((hit["ratio"] for hit in hits), reverse=True)
    assert (hits[-1]["item"], len(hits)) == ("0", 11)


def test_the_index_is_made_once_and_follows_the_content_of_the_files(toy, tmp_path, monkeypatch):
    step = step_of(toy)
    made = []
    real = contamination.build
    monkeypatch.setattr(contamination, "build", lambda *args: made.append(1) or real(*args))
    first = step.artefacts()
    assert len(first["toy.0"]) == 64
    step.open()
    step_of(toy, action="tag", max_hits=1, fields=["prompt"]).open()
    moved = write_jsonl(tmp_path / "moved" / "t.jsonl", ITEMS)
    there = step_of(toy | {"path": str(moved)})
    assert there.artefacts() == first
    assert there.identity() == step.identity()
    assert made == [1]
    write_jsonl(moved, ITEMS[:2])
    assert there.artefacts() != first
    assert made == [1, 1]
    step_of(toy, mask_numbers=True).open()
    assert made == [1, 1, 1]
    assert step_of(toy, mask_numbers=True).identity() != step.identity()
    assert pickle.loads(pickle.dumps(step)) == step


def test_one_index_serves_steps_that_differ_in_what_they_do_with_a_hit(toy, tmp_path):
    for more in ({}, {"name": "again", "action": "tag"}, {"sources": ["web"], "skill_buckets": ["B2"]}):
        step_of(toy, **more).artefacts()
    assert len(list(tmp_path.glob("cache/artefacts/contamination/*.arrow"))) == 1


def test_a_mistake_in_a_benchmark_is_told_before_there_is_an_index(toy, tmp_path):
    with pytest.raises(ConfigError, match=r"benchmarks\.toy: no row has the column 'qq'"):
        step_of(toy | {"question_columns": "qq"}).artefacts()
    assert not list(tmp_path.glob("cache/artefacts/contamination/*.arrow"))


def test_a_benchmark_of_which_nothing_could_be_found_is_refused(toy):
    with pytest.raises(ConfigError, match=r"benchmarks\.toy: no item has 50 words, and near is null"):
        step_of(toy, min_words=50, near=None).artefacts()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"benchmarks": {}}, "at least 1"),
        ({"ngrams": [], "numbers": None, "near": None}, "nothing would be found"),
        ({"ngrams": [], "mask_numbers": True, "near": None}, "nothing would be found"),
        ({"ngrams": [{"n": 8, "min_ratio": 0.5}, {"n": 8, "min_ratio": 0.7}]}, "more than once"),
        ({"ngrams": [{"n": 99, "min_ratio": 0.5}]}, "64"),
        ({"fields": ["prompt", "prompt"]}, "more than once"),
        ({"fields": ["system"]}, "'prompt' or 'answer'"),
        ({"treshold": 1}, "unknown key 'treshold'"),
    ],
)
def test_a_wrong_configuration_is_refused(toy, fields, told):
    with pytest.raises(ValidationError, match=told):
        ContaminationStep.model_validate({"benchmarks": {"toy": toy}} | fields)


@pytest.mark.parametrize("section", ["filter", "score"])
def test_a_run_drops_contaminated_rows_and_keeps_the_column(tmp_path, toy, section):
    rows = plain_rows(60)
    rows[7] = row(7, ITEMS[0]["q"], "Seven of them.")
    rows[31] = row(31, "Tell me", f"An old exam said: {ITEMS[2]['q'].upper()} and so on")
    source = write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    sections = {section: {"steps": [{"kind": "contamination", "benchmarks": {"toy": toy}}]}, "stages": [section]}
    out = tmp_path / "out"
    result = run(make_recipe(out, {"synth": source}, **sections))
    assert result.accounting["synth"]["contamination"] == {"in": 60, "made": 0, "kept": 58, "contaminated": 2}
    dropped = {item["value"] for item in read(stage(out, "dropped"))}
    assert dropped == {"toy/0 ngram_13 1", "toy/2 ngram_13 1"}
    listed = [item["contamination"] for item in read(stage(out, section))]
    assert sorted(len(hits) for hits in listed) == [0] * 58 + [1, 1]
    fingerprint = stage(out, section).manifest.fingerprint
    write_jsonl(tmp_path / "toy.jsonl", ITEMS[:1])
    run(make_recipe(out, {"synth": source}, **sections))
    assert stage(out, section).manifest.fingerprint != fingerprint
    assert len(read(stage(out, "dropped"))) == 1


def benchmarks_in(shared_data, answers):
    """The four shared benchmarks, with their answers or without."""
    where = {
        "gsm8k": ("gsm8k/test.jsonl.gz", "question", "answer", None),
        "math": ("competition_math/math_test.jsonl.gz", "problem", "solution", None),
        "humaneval": ("humaneval/HumanEval.jsonl.gz", "prompt", "canonical_solution", "task_id"),
        "mbpp": ("mbpp/mbpp.jsonl.gz", "text", "code", "task_id"),
    }
    return {
        name: {
            "path": str(shared_data / path),
            "question_columns": question,
            "answer_columns": [answer] if answers else [],
            "id_column": item,
        }
        for name, (path, question, answer, item) in where.items()
    }


def lines(path):
    """The rows of a JSONL file that are JSON."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def questions_of(benchmarks):
    """(benchmark, item, question) of every item with a word in its question."""
    for name, fields in benchmarks.items():
        benchmark = Benchmark.model_validate(fields)
        for item, question, _ in read_items(name, benchmark, benchmark_files(name, benchmark)):
            yield name, item, question


def missed(items, hits):
    return [
        key for key, found in zip(items, hits, strict=True) if key not in {(h["benchmark"], h["item"]) for h in found}
    ]


@pytest.fixture(scope="module")
def search(shared_data):
    """Tags with all four benchmarks, answers included."""
    step = ContaminationStep(benchmarks=benchmarks_in(shared_data, answers=True), action="tag", max_hits=100)
    return step.open()


def test_every_shared_item_is_found_however_it_is_written(shared_data, search):
    benchmarks = benchmarks_in(shared_data, answers=True)
    items = list(questions_of(benchmarks))
    keys = [(name, item) for name, item, _ in items]
    assert len(keys) == 1319 + 5000 + 164 + 974
    rng = random.Random(0)
    filler = [line["question"] + " " + line["answer"] for line in lines(shared_data / "gsm8k" / "train.jsonl.gz")]

    def embedded(text):
        return f"{rng.choice(filler)} {text} {rng.choice(filler)}"

    def spaced(text):
        return text.upper().replace(" ", "  \n")

    for write in (str, spaced):
        batch = search(conversations([asked(write(text), "") for _, _, text in items]))
        assert missed(keys, batch.column("contamination").to_pylist()) == [], write
    num_words = np.diff(split_texts(pa.array([text for _, _, text in items]), Words(True, False)).bounds)
    long_enough = [(key, item[2]) for key, item, n in zip(keys, items, num_words, strict=True) if n >= 5]
    assert len(long_enough) > 7200
    rows = [[say(TEXT_ROLE, embedded(text))] for _, text in long_enough]
    batch = search(conversations(rows))
    assert missed([key for key, _ in long_enough], batch.column("contamination").to_pylist()) == []


def test_shared_items_with_other_numbers_are_found_when_numbers_are_masked(shared_data):
    benchmarks = benchmarks_in(shared_data, answers=False)
    items = list(questions_of(benchmarks))
    step = ContaminationStep(benchmarks=benchmarks, action="tag", max_hits=2000, mask_numbers=True)
    rng = random.Random(0)
    texts = [re.sub(r"\d+", lambda _: str(rng.randrange(2, 10**6)), text) for _, _, text in items]
    hits = hits_of(step, [asked(text, "") for text in texts])
    assert missed([(name, item) for name, item, _ in items], hits) == []


def test_real_overlap_of_math_is_found(shared_data):
    """Nine rows of the training file equal a test item without punctuation; one of them differs in `22.5` and `225`."""
    folder = shared_data / "competition_math"
    math = {"path": str(folder / "math_test.jsonl.gz"), "question_columns": "problem"}
    rows = [line["problem"] for line in lines(folder / "deepscaler_train_math.jsonl.gz")]
    truth = {line["train_row"]: str(line["test_row"]) for line in lines(folder / "contamination_truth.jsonl.gz")}
    hits = hits_of(ContaminationStep(benchmarks={"math": math}, action="tag"), [asked(text, "") for text in rows])
    found = {number for number, item in truth.items() if item in {hit["item"] for hit in hits[number]}}
    assert len(truth) == 9
    assert {rows[number] for number in truth.keys() - found} == {"Compute $\\tan 225^\\circ$."}


def test_unrelated_shared_text_is_not_hit(shared_data, search):
    """No row of prose and instructions holds an item; a few of GSM8K's own training rows, written by the same people
    as the test rows, are a test question with other numbers."""
    documents = []
    for path in sorted((shared_data / "wiki_text").glob("*.txt.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            documents += [[say(TEXT_ROLE, line)] for line in file]
    for path in sorted((shared_data / "alpaca_libre").glob("*.jsonl.gz")):
        documents += [asked(line["instruction"], line["output"]) for line in lines(path) if line.get("output")]
    assert len(documents) > 8000
    wrong = [hits for hits in search(conversations(documents)).column("contamination").to_pylist() if hits]
    train = [asked(line["question"], line["answer"]) for line in lines(shared_data / "gsm8k" / "train.jsonl.gz")]
    cousins = [hits for hits in search(conversations(train)).column("contamination").to_pylist() if hits]
    told = f"hits in {len(documents)} unrelated rows: {len(wrong)}; in {len(train)} of GSM8K train: {len(cousins)}\n"
    sys.stdout.write(told)
    assert wrong == []
    assert len(cousins) <= 0.001 * len(train)
