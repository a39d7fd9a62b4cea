"""The chain benchmark without datatrove: its inputs, its arithmetic, and one run of the local engine."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.filters.language import classifier
from etl.filters.language_text import judged_texts
from etl.storage.costs import CostSum, RunCosts, StageCosts
from tests.benchmarks.bench_chain import (
    PEER,
    Outcome,
    Run,
    by_stage,
    growth_lines,
    main,
    marginal,
    our_chain,
    peer_cpu_s,
    stage_rows,
)
from tests.benchmarks.chain_corpora import Input, input_of_rows, input_of_size, reordered
from tests.benchmarks.process_tree import TreeUse

ENGLISH = (
    "The river ran low that summer, and the ferry stayed at its landing for weeks.\nHardly anybody in the village "
    "minded it much! Children walked across on the stones."
)
TEXTS = [
    ENGLISH,
    "Der Fluss war in jenem Sommer so flach, dass die Fähre wochenlang am Ufer blieb. Im Dorf störte das kaum jemand.",
    "Cet été-là, la rivière était si basse que le bac resta à quai pendant des semaines. Personne ne s'en plaignit.",
    "One. Two.\n\nThree four",
]


def grams(text):
    words = text.split()
    return {tuple(words[at : at + 5]) for at in range(len(words) - 4)}


@pytest.fixture
def corpus(tmp_path):
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "corpus.parquet")
    return tmp_path / "corpus.parquet"


def test_words_change_places_within_sentences_as_their_number_says():
    changed = reordered("a b c d e. f g h\ni j k l m", 1)
    assert changed[11:] != "f g h\ni j k l m"
    first, second, third = re.split(r" (?=[fgh] [fgh] [fgh])|\n", changed)
    assert [sorted(part.split()) for part in (first, second, third)] == [
        ["a", "b", "c", "d", "e."],
        ["f", "g", "h"],
        ["i", "j", "k", "l", "m"],
    ]
    renamed = dict(zip(["a", "b", "c", "d", "e."], "ijklm", strict=True))
    assert [renamed[word] for word in first.split()] == third.split()
    assert reordered(ENGLISH, 2) == reordered(ENGLISH, 2)


@pytest.mark.parametrize("text", TEXTS)
def test_copies_have_the_words_of_a_text_and_not_its_n_grams(text):
    copies = [text, *(reordered(text, copy) for copy in range(1, 5))]
    assert all(sorted(copy.split()) == sorted(text.split()) for copy in copies)
    assert {len(copy.encode()) for copy in copies} == {len(text.encode())}
    for place, copy in enumerate(copies):
        assert not any(grams(copy) & grams(other) for other in copies[:place])


def test_copies_keep_the_label_and_the_score_of_their_language():
    copies = TEXTS + [reordered(text, copy) for copy in range(1, 5) for text in TEXTS]
    labels, scores = classifier().predict(*judged_texts(pa.array(copies), None))
    assert len(set(labels[:3].tolist())) == 3
    assert labels.reshape(5, 4).tolist() == [labels[:4].tolist()] * 5
    assert abs(scores.reshape(5, 4) - scores[:4]).max() < 1e-4


def test_a_size_within_the_corpus_is_its_first_documents(corpus, tmp_path):
    lengths = [len(text.encode()) for text in TEXTS]
    source = input_of_size(corpus, (sum(lengths[:2]) + 3) / 1e6, tmp_path / "input")
    assert (source.num_rows, source.num_bytes, source.copies) == (2, sum(lengths[:2]), 1)
    assert [pq.read_table(path).to_pylist() for path in sorted(source.folder.iterdir())] == [
        [{"id": 0, "text": TEXTS[0]}],
        [{"id": 1, "text": TEXTS[1]}],
    ]


def test_a_size_beyond_the_corpus_is_copies_with_ids_of_their_own(corpus, tmp_path):
    size = sum(len(text.encode()) for text in TEXTS)
    source = input_of_size(corpus, 2.9 * size / 1e6, tmp_path / "input")
    assert (source.num_rows, source.num_bytes, source.copies) == (12, 3 * size, 3)
    rows = pq.read_table(source.folder).sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == list(range(12))
    assert [row["text"] for row in rows] == TEXTS + [reordered(text, copy) for copy in (1, 2) for text in TEXTS]


def runs_of(*cpu_s):
    return [Run(TreeUse(0, 1.0, taken, {"driver": taken}, 0, 0), Outcome(1, 1, 1)) for taken in cpu_s]


INPUTS = [Input(Path("x"), 1, size * 1_000_000, copies) for size, copies in ((1, 1), (51, 1), (201, 1), (1001, 5))]


def test_the_fixed_cost_is_taken_off_before_the_cost_of_a_megabyte():
    ours = our_chain("local", 2)
    name = ours.name
    runs = {(name, 0): runs_of(4, 2, 3), (name, 1): runs_of(13), (name, 2): runs_of(43, 39), (name, 3): runs_of(253)}
    assert [marginal(INPUTS, runs, name, place) for place in (1, 2, 3)] == pytest.approx([0.2, 0.19, 0.25])
    assert growth_lines([ours], INPUTS, runs) == [
        "- Stillhouse, local, 2 processes: s a MB more, relative to the first size: 1.00, 0.95, 1.25."
    ]


def test_beyond_its_largest_size_datatrove_s_last_rate_counts():
    runs = {(PEER, 0): runs_of(9), (PEER, 1): runs_of(80), (PEER, 2): runs_of(402, 400, 404)}
    assert [peer_cpu_s(INPUTS, runs, place) for place in range(4)] == [9, 80, 402, 2002]
    assert peer_cpu_s(INPUTS, {}, 0) is None


def test_stages_add_up_their_datasets_and_the_engine_around_them():
    def stage(label, **cpu_s):
        datasets = {name: CostSum(cpu_s=seconds, engine_cpu_s=0.5) for name, seconds in cpu_s.items()}
        return StageCosts(label=label, sum=CostSum(), datasets=datasets)

    stages = (
        stage("filter", filter=4),
        stage("dedup", exact_hits=1, exact=2, sets=8, near=16),
        stage("layout", corpus=32),
    )
    costs = RunCosts(input_rows=1, stages=stages, total=CostSum(), core_hours=0)
    found = by_stage(costs)
    expected = {"language": 4.5, "exact dedup": 4.0, "near dedup": 25.0, "layout": 32.5}
    assert list(found.items()) == list(expected.items())
    runs = [Run(TreeUse(0, 1, 1, {}, 0, 0), Outcome(1, 1, 1, {"layout": seconds})) for seconds in (5.0, 1.0, 4.0)]
    assert stage_rows(INPUTS[1], [runs, runs[:1]]) == [["layout", "4.00 (12.8)", "5.00 (10.2)"]]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """The benchmark sets MASTER for the processes that it measures; the next test must not have it."""
    monkeypatch.setenv("MASTER", "local[2]")


def test_the_quick_form_prints_what_a_run_took_and_kept(corpus, tmp_path, capsys):
    main(["--quick", "--corpus", str(corpus), "--folder", str(tmp_path / "bench")])
    row = next(line for line in capsys.readouterr().out.splitlines() if "Stillhouse, local" in line)
    assert "1 / 1" in row


def test_a_corpus_that_cannot_be_taken_is_named(tmp_path, capsys):
    pq.write_table(pa.table({"body": ["a"]}), tmp_path / "other.parquet")
    for name, words in (("none", "there is no"), ("other", "has no column text, but body")):
        with pytest.raises(SystemExit):
            main(["--corpus", str(tmp_path / f"{name}.parquet")])
        assert words in capsys.readouterr().err


def test_a_fixed_number_of_documents(corpus, tmp_path):
    assert input_of_rows(corpus, 3, tmp_path / "input").num_rows == 3
