"""Each suite against losses a token at a time, judged by hand, or a model that says what the test gives it."""

import functools
import gzip
import json
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from etl.errors import ConfigError, DataError
from etl.harmony.vocabulary import ENDOFTEXT, load_encoding
from etl.schema import SPAN_KINDS
from tests.datasets import write_dataset
from training.evaluate.suites import FormatSuite, HeldOutSuite, LmEvalSuite, ReasoningSuite, judge

# The evaluation harness imports deprecated parts of others.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@functools.lru_cache(maxsize=2)
def loaded(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


@functools.lru_cache(maxsize=2)
def logits(folder, ids):
    """float32 [tokens, vocabulary] of a row by itself, by transformers."""
    with torch.no_grad():
        return loaded(folder)(torch.tensor([ids])).logits[0]


def log_probabilities(folder, ids, positions):
    """float64 [positions, vocabulary]: the prediction for the token at each."""
    return logits(folder, tuple(ids))[[at - 1 for at in positions]].double().log_softmax(-1)


def expected_sums(table, model, teacher):
    """Tokens, loss and divergence by span kind, a row and a token at a time."""
    found = np.zeros((3, len(SPAN_KINDS)))
    for row in table.to_pylist():
        ids = row["input_ids"]
        for span in row["spans"]:
            positions = range(max(span["start"], 1), span["end"])
            ours, theirs = (log_probabilities(folder, ids, positions) for folder in (model, teacher))
            for at, p, q in zip(positions, theirs, ours, strict=True):
                divergence = float((p.exp() * (p - q)).sum())
                found[:, SPAN_KINDS.index(span["kind"])] += 1, -float(q[ids[at]]), divergence
    return found


def test_held_out_loss_and_divergence_equal_those_of_single_rows(tables, corpus, model, teacher, models):
    suite = HeldOutSuite(corpus=corpus, pack_tokens=1024, max_packs=100, teacher=teacher)
    found = suite.run(models, model, seed=0)
    sums = {cell: expected_sums(table, model, teacher) for cell, table in tables.items()}
    for cell, (tokens, nll, divergence) in {**sums, "": sum(sums.values())}.items():
        prefix = f"{cell}." if cell else ""
        assert found[f"{prefix}loss"] == pytest.approx(nll.sum() / tokens.sum(), rel=1e-5)
        assert found[f"{prefix}kl"] == pytest.approx(divergence.sum() / tokens.sum(), rel=1e-4)
    tokens, nll, _ = sum(sums.values())
    assert found["loss.final"] == pytest.approx(nll[SPAN_KINDS.index("final")] / tokens[SPAN_KINDS.index("final")])
    assert found["kl"] > 0.01


def test_a_teacher_of_another_tokenizer_is_refused(corpus, model, models, tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    with pytest.raises(ConfigError, match=r"has 1 tokens, that of the corpus .* 201,088"):
        HeldOutSuite(corpus=corpus, teacher=str(tmp_path)).run(models, model, 0)


def test_ids_that_a_model_has_no_row_for_are_refused(tables, model, models, tmp_path):
    table = tables["B2/C1"]
    ids = [[300_000, *row[1:]] for row in table["input_ids"].to_pylist()]
    table = table.set_column(
        table.schema.get_field_index("input_ids"), "input_ids", pa.array(ids, pa.list_(pa.int32()))
    )
    table = table.append_column("sampling_weight", pa.array(np.ones(len(table))))
    cells = {"split=validation/skill_bucket=B2/ctx_bucket=C1": table}
    write_dataset(str(tmp_path), "layout", "CORPUS", cells)
    with pytest.raises(ConfigError, match=r"has the token id 300,000, .* but the model has 201,088"):
        HeldOutSuite(corpus=str(tmp_path), pack_tokens=1024).run(models, model, 0)


def test_documents_that_fit_in_no_pack_are_an_error(corpus, model, models):
    with pytest.raises(ConfigError, match=r"no document of the split validation of .* fits pack_tokens = 8"):
        HeldOutSuite(corpus=corpus, pack_tokens=8).run(models, model, 0)


START = "<|start|>assistant"
THINKS = f"<|channel|>analysis<|message|>hm<|end|>{START}"
PREAMBLE = f"<|channel|>commentary<|message|>I look.<|end|>{START}"
FINAL = "<|channel|>final<|message|>4"
CALL = " to=f.g<|channel|>commentary<|message|>{}<|call|>"


@pytest.mark.parametrize(
    ("text", "verdict", "thinks"),
    [
        (f"{THINKS}{FINAL}<|return|>", "valid", True),
        (f"{FINAL}<|return|>", "valid", False),
        (f"{PREAMBLE}{FINAL}<|return|>", "valid", False),
        (f"{THINKS}{PREAMBLE}{THINKS}{FINAL}<|return|>", "valid", True),
        (f"{THINKS}<|channel|>final<|message|><|return|>", "empty", True),
        ("<|channel|>final<|message|> \n<|return|>", "empty", False),
        ("<|channel|>analysis<|message|>hm<|return|>", "malformed", False),
        (f"{FINAL}<|end|>{START}{FINAL}<|return|>", "malformed", False),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>user<|message|>4<|return|>", "malformed", False),
        ("four<|return|>", "malformed", False),
        (f"{FINAL}<|endoftext|>", "malformed", False),
        ("four<|endoftext|>", "malformed", False),
        ("<|channel|>analysis<|message|>hm<|end|>", "truncated", False),
        (FINAL, "truncated", False),
        ("", "truncated", False),
        (f"{PREAMBLE}{CALL}", "call", False),
        (f"{THINKS}{CALL}", "call", True),
        ("<|channel|>commentary<|message|>{}<|call|>", "malformed", False),
    ],
)  # fmt: skip
def test_a_completion_is_judged(text, verdict, thinks):
    assert judge(load_encoding().encode(text, allowed_special="all")) == (verdict, thinks)


class Actor:
    """Stands for a model that says what the test gives it."""

    def __init__(self, said):
        self.said, self.prompts = said, []

    def generator(self, folder):
        return self

    def prompt(self, question):
        self.prompts.append(question)
        return [len(self.prompts)]

    def complete(self, prompts, max_new_tokens, batch_size):
        self.asked = prompts
        return [self.said[number % len(self.said)] for number in range(len(prompts))]

    def answer(self, tokens):
        return tokens


def test_format_is_the_share_of_valid_completions_of_real_prompts(corpus):
    encode = load_encoding().encode
    valid = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>"
    actor = Actor([encode(text, allowed_special="all") for text in (valid, valid, "<|return|>", "on and on")])
    found = FormatSuite(corpus=corpus, prompts=8).run(actor, "", 0)
    assert found == {
        "valid": 0.5, "call": 0.0, "empty": 0.0, "truncated": 0.25, "malformed": 0.25, "analysis": 0.5, "prompts": 8.0
    }  # fmt: skip
    for prompt in actor.asked:
        text = load_encoding().decode(prompt)
        assert text.startswith("<|start|>system<|message|>")
        assert text.endswith("<|end|><|start|>assistant")
        assert text.count("<|start|>user<|message|>") == 1


def test_a_split_without_a_prompt_that_is_short_enough_is_an_error(corpus):
    with pytest.raises(DataError, match=r"has no conversation in the split validation; give another corpus"):
        FormatSuite(corpus=corpus, max_prompt_tokens=1).run(Actor([[]]), "", 0)


def test_questions_are_answered_and_compared(tmp_path):
    rows = [{"q": "1+1?", "a": "so #### 2"}, {"q": "2+2?", "a": "4"}, {"q": "?", "a": "7"}, {"q": "??", "a": "7"}]
    shares = {"exact_match": 0.25, "answered": 0.75, "guessed": 0.25, "unparseable": 0.25, "no_final": 0.25}
    path = tmp_path / "questions.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    actor = Actor(["\\boxed{2.0}", "It is 5", None, "\\boxed{\\frac{}"])
    suite = ReasoningSuite(file=str(path), question="q", answer="a", instruction="Think.")
    assert suite.run(actor, "", 0) == {**shares, "questions": 4.0}
    assert actor.prompts[0] == "1+1?\n\nThink."
    with pytest.raises(DataError, match=r"line 1 of .* has no 'question' and 'a'"):
        ReasoningSuite(file=str(path), answer="a").run(actor, "", 0)
    for name in ("none.jsonl", "", "questions.jsonl.gz/part"):
        with pytest.raises(ConfigError, match="there is no file"):
            ReasoningSuite(file=str(tmp_path / name)).run(actor, "", 0)


def test_a_file_without_questions_is_refused(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("\n")
    with pytest.raises(DataError, match="has no question; give another file"):
        ReasoningSuite(file=str(path)).run(Actor(["2"]), "", 0)


@pytest.mark.parametrize("damage", ["cut", "changed", "no gzip", "not UTF-8", "no UTF-8 inside"])
def test_questions_that_cannot_be_read_are_refused(tmp_path, damage):
    line = json.dumps({"question": "1+1?", "answer": "2"}).encode()
    packed = gzip.compress(line)
    name, data = {
        "cut": ("q.jsonl.gz", packed[:-10]),
        "changed": ("q.jsonl.gz", packed[:14] + bytes([packed[14] ^ 255]) + packed[15:]),
        "no gzip": ("q.jsonl.gz", line),
        "not UTF-8": ("q.jsonl", line.replace(b"1+1", b"\xff")),
        "no UTF-8 inside": ("q.jsonl.gz", gzip.compress(b"\xff" + line)),
    }[damage]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"q\.jsonl.* is damaged, or not UTF-8 text \(.*\); replace it"):
        ReasoningSuite(file=str(path)).run(Actor(["2"]), "", 0)


def test_only_the_first_questions_are_asked_of_a_plain_file(tmp_path):
    rows = [{"question": f"{number}?", "answer": str(number)} for number in range(5)]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    actor = Actor(["0"])
    suite = ReasoningSuite(file=str(path), instruction="", questions=2)
    found = suite.run(actor, "", 0)
    assert (found["exact_match"], found["answered"], found["questions"]) == (0.5, 1.0, 2.0)
    assert actor.prompts == ["0?", "1?"]


def test_real_questions_have_answers(shared_data):
    path = shared_data / "gsm8k" / "test.jsonl.gz"
    suite = ReasoningSuite(file=str(path), questions=500)
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").splitlines()
    golds = [json.loads(line)["answer"] for line in lines[:500]]
    actor = Actor([gold.rpartition("####")[0] + f"The answer is {gold.rpartition('####')[2]}." for gold in golds])
    found = suite.run(actor, "", 0)
    assert (found["exact_match"], found["answered"], found["questions"]) == (1.0, 1.0, 500.0)


def task_folder(folder):
    rows = [{"q": f"{i} + 1 =", "choices": [str(i), str(i + 1), "7"], "label": 1} for i in range(5)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "toy.yaml").write_text(json.dumps(task))
    return rows


def test_the_harness_runs_a_local_task(model, models, tmp_path):
    pytest.importorskip("lm_eval")
    rows = task_folder(tmp_path)
    found = LmEvalSuite(folder=str(tmp_path), tasks=["toy"]).run(models, model, 0)
    tokenizer = models.generator(model).tokenizer
    right = 0
    for question in rows:
        scores = []
        for choice in question["choices"]:
            context = tokenizer(question["q"]).input_ids
            ids = tokenizer(f"{question['q']} {choice}").input_ids
            positions = range(len(context), len(ids))
            logp = log_probabilities(model, ids, positions)
            scores.append(sum(float(row[ids[at]]) for at, row in zip(positions, logp, strict=True)))
        right += int(np.argmax(scores)) == question["label"]
    assert found == {"toy.acc": right / 5}
    with pytest.raises(ConfigError, match="has no task 'tory'; it has: toy"):
        LmEvalSuite(folder=str(tmp_path), tasks=["tory"]).run(models, model, 0)


def test_the_harness_puts_nothing_before_a_text_that_no_corpus_has(model, models, monkeypatch, tmp_path):
    """Texts get no token; an empty context is the end of another text."""
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    task_folder(tmp_path)
    made = []
    begin = HFLM.__init__
    monkeypatch.setattr(HFLM, "__init__", lambda self, **given: (begin(self, **given), made.append(self))[0])
    LmEvalSuite(folder=str(tmp_path), tasks=["toy"], limit=1).run(models, model, 0)
    (harness,) = made
    hi = load_encoding().encode("hi")
    assert harness.tok_encode("hi") == hi
    assert harness.tok_batch_encode(["hi"])[0].tolist() == [hi]
    assert harness.prefix_token_id == ENDOFTEXT
    alone = HFLM(pretrained=models.generator(model).model, tokenizer=models.generator(model).tokenizer, device="cpu")
    assert (alone.tok_encode("hi"), alone.prefix_token_id) == (hi, ENDOFTEXT)


def test_without_the_harness_its_suite_says_what_to_install(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"install stillhouse\[eval\]"):
        LmEvalSuite(folder="tasks", tasks=["toy"]).run(models, "", 0)
