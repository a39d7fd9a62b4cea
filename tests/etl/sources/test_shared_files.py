"""Every file of the shared data is read: accounts add up, and at least 95 % of what is sound is kept.

A file that neither READ nor NOT_ROWS names fails the test, so that a new one is not forgotten.
"""

import fnmatch
import json

import pytest

from etl.engines.local import LocalEngine
from etl.run.recipe import Recipe
from etl.run.run import run_recipe
from etl.storage.dataset import Dataset

ALPACA = {"shape": "columns", "prompt": "{instruction}\n\n{input}", "final": "output"}
MESSAGES = {"shape": "messages"}
SHAREGPT = {"shape": "messages", "messages": "conversations"}
TEXT = {"shape": "text", "text": "text"}
SYNTH = {"shape": "columns", "user": "query", "analysis": "synthetic_reasoning", "final": "synthetic_answer"}
NEMO_MARKS = {
    "<extra_id_0>System\n": "system", "<extra_id_1>User\n": "user", "<extra_id_1>Assistant\n": "assistant",
    "<extra_id_2>": "nobody",
}  # fmt: skip


def columns(user, final, **more):
    return {"shape": "columns", "user": user, "final": final, **more}


def prompts(**more):
    return {"shape": "prompts", **more}


def verifiable(user, **more):
    return {"shape": "verifiable", "user": user, **more}


def preference(**more):
    return {"shape": "preference", **more}


LINES = {"text_rows": "line"}
"""Of a source of plain text."""

READ = {
    "alpaca_libre/*.gz": ALPACA,
    "alpaca_zh/*.gz": ALPACA,
    "bench_corpus/instruct.parquet": columns("instruction", "response"),
    "codealpaca/*.gz": ALPACA,
    "commoncrawl_sample/*.jsonl.gz": TEXT,
    "commoncrawl_sample/*.warc.gz": TEXT,
    "commoncrawl_sample/*.wet.gz": TEXT,
    "competition_math/deepscaler*": verifiable("problem", answer="answer"),
    "competition_math/math_test*": columns("problem", "solution"),
    "dedup_articles/articles_1000.jsonl.gz": TEXT,
    "dedup_licences/spdx*": TEXT,
    "field_cases/array/*": TEXT,
    "field_cases/arrayl/*": TEXT,
    "field_cases/date/*": SYNTH,
    "field_cases/deep/*": {**SYNTH, "meta": ["constraints"]},
    "field_cases/empty_answers.jsonl": SYNTH,
    "field_cases/eos/*": TEXT,
    "field_cases/hash/*": TEXT,
    "field_cases/indent/*": TEXT,
    "field_cases/kenlm_tiny/*": TEXT,
    "field_cases/noword/*": TEXT,
    "field_cases/ops/*": TEXT,
    "field_cases/pretty/*": TEXT,
    "field_cases/skip/*": TEXT,
    "field_cases/zh_small/*": TEXT,
    "function_calling/*.gz": prompts(user="question", tools="function"),
    "gpteacher/*.gz": {**ALPACA, "final": "response"},
    "gsm8k/*.gz": columns("question", "answer"),
    "humaneval/*.gz": verifiable("prompt", tests="test", final="canonical_solution"),
    "instruction_eval_prompts/koala*": prompts(user="prompt"),
    "instruction_eval_prompts/lima*": prompts(user="conversations"),
    "instruction_eval_prompts/mt_b*": prompts(user="turns"),
    "instruction_eval_prompts/sinst*": prompts(prompt="{instruction}\n\n{instances.0.input}"),
    "instruction_eval_prompts/vic*": prompts(user="text"),
    "instruction_eval_prompts/wiz*": prompts(user="Instruction"),
    "langid_udhr/*.gz": {"shape": "text", "text": "paragraphs.0"},
    "llamafactory_demos/alpaca*": ALPACA,
    "llamafactory_demos/c4*": TEXT,
    "llamafactory_demos/dpo*": preference(prompt="conversations", chosen="chosen", rejected="rejected"),
    "llamafactory_demos/glaive*": SHAREGPT,
    "llamafactory_demos/identity*": ALPACA,
    "llamafactory_demos/kto*": preference(completion="messages", label="label"),
    "llamafactory_demos/reason*": MESSAGES,
    "llamafactory_demos/v1*": MESSAGES,
    "mbpp/*.gz": verifiable("text", tests="test_list", final="code"),
    "native_samples/ace*": verifiable("question", tests="test_cases"),
    "native_samples/code_inst*": MESSAGES,
    "native_samples/dolci*": verifiable("messages", answer="ground_truth"),
    "native_samples/dolly*": columns("prompt", "response"),
    "native_samples/firefly*": {"shape": "pairs"},
    "native_samples/glaive*": columns("question", "answer"),
    "native_samples/hh_*": preference(chosen="chosen", rejected="rejected"),
    "native_samples/latex*": {**TEXT, "meta": ["meta.url"]},
    "native_samples/magpie*": preference(prompt="instruction", responses="responses", rewards="rewards_armorm.*.score"),
    "native_samples/messages_plain*": MESSAGES,
    "native_samples/nemo_rm*": {"shape": "transcript", "text": "text", "between": "\n", "marks": NEMO_MARKS},
    "native_samples/nemo_sft*": {**SHAREGPT, "system": "system"},
    "native_samples/nemo_skills*": verifiable("problem", answer="expected_answer", final="generation"),
    "native_samples/open_tora*": MESSAGES,
    "native_samples/openr1*": {**MESSAGES, "meta": ["problem_type"]},
    "native_samples/slimorca*": SHAREGPT,
    "native_samples/tokenb*": ALPACA,
    "native_samples/tool_call*": MESSAGES,
    "native_samples/tora_out*": columns("question", "code.0"),
    "native_samples/ultra*": preference(prompt="prompt", chosen="chosen", rejected="rejected"),
    "native_samples/verl*": verifiable("prompt", answer="reward_model.ground_truth", example_id="extra_info.index"),
    # Trees of messages: until a shape reads them, the message that each begins with.
    "oasst1_messages_en/*.gz": TEXT,
    "oasst2_trees/*.gz": prompts(user="prompt.text"),
    "oasst_export_sample/*.gz": prompts(user="prompt.text"),
    "redpajama_samples/*.gz": TEXT,
    "self_instruct/*.gz": columns("instruction", "instances.0.output"),
    "sharegpt_dummy/*.gz": SHAREGPT,
    "synth_harmony_golden/rows.jsonl.gz": SYNTH,
    "wiki_text/*.gz": TEXT | LINES,
}
"""Files -> how their rows are read; the first that fits."""

NOT_SOUND = {
    "alpaca_libre/alpaca_libre_tasks_v1.jsonl.gz": ({"blank_answer": 237}, "its author had not filtered it"),
    "field_cases/deep/a.jsonl": ({"quarantined:too_deep": 1}, "one of two rows is nested too deep to be written"),
    "field_cases/empty_answers.jsonl": (
        {"blank_answer": 2, "blank_prompt": 1, "quarantined:missing_synthetic_answer": 1},
        "blank and absent questions and answers",
    ),
    "llamafactory_demos/kto_en_demo.jsonl.gz": ({"undesirable": 150}, "half of the answers are labelled bad"),
    "native_samples/openr1_math_220k.jsonl": ({"quarantined:unclosed_thinking": 1}, "its one row was cut"),
}
"""Files of which less than 95 % can be kept: what is lost, and why."""

NOT_ROWS = {
    "*.md": "words about the files",
    "bench_corpus/corpus.parquet": "205 MB of text, read by the benchmarks",
    "bench_corpus/*_pairs.parquet": "pairs of row numbers: what dedup should find",
    "commoncrawl_sample/*.wat.gz": "metadata of pages, no text",
    "competition_math/contamination_truth.jsonl.gz": "pairs of row numbers",
    "dedup_articles/articles_1000_truth.jsonl.gz": "pairs of ids",
    "dedup_licences/pairs_*": "pairs of ids",
    "field_cases/*.py": "a program",
    "field_cases/*.yaml": "a recipe",
    "field_cases/zst_*/*": "damaged; the error is another test's",
    "llamafactory_demos/dataset_info.json": "a list of data sets",
    "native_samples/openai_list*": "each line is a list, which a reader of objects refuses; another test's",
    "synth_harmony_golden/*.bin": "tokens of another library",
    "synth_harmony_golden/*.idx": "tokens of another library",
    "synth_harmony_golden/*manifest.json": "how the tokens were made",
}
"""Files -> why they are not among those that are read."""


def kind_of(name, table):
    return next((pattern for pattern in table if fnmatch.fnmatch(name, pattern)), None)


def data_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_every_file_has_a_description_or_a_reason(shared_data):
    found = data_files(shared_data)
    assert [name for name in found if (kind_of(name, NOT_ROWS) is None) == (kind_of(name, READ) is None)] == []
    for pattern in [*READ, *NOT_ROWS]:
        assert any(kind_of(name, NOT_ROWS) == pattern or kind_of(name, READ) == pattern for name in found), pattern


@pytest.fixture(scope="module")
def accounts(shared_data, tmp_path_factory):
    """Of each file that is read, the account of ingest."""
    folder = tmp_path_factory.mktemp("shared")
    sources, names = {}, {}
    for number, keys in enumerate(READ.values()):
        described = {key: value for key, value in keys.items() if key not in LINES}
        (folder / f"{number}.yaml").write_text(json.dumps({"skill_bucket": "chat", **described}))
    for name in data_files(shared_data):
        if kind_of(name, NOT_ROWS) is None and (pattern := kind_of(name, READ)) is not None:
            source = f"s{len(sources)}"
            names[source] = name
            sources[source] = {
                "spec": str(folder / f"{list(READ).index(pattern)}.yaml"),
                "path": str(shared_data / name),
                "may_be_empty": True,
                **{key: value for key, value in READ[pattern].items() if key in LINES},
            }
    tree = {"name": "shared", "output": str(folder / "out"), "sources": sources, "stages": [], "max_bad_fraction": 1.0}
    run_recipe(Recipe.model_validate(tree), LocalEngine(), lambda line: None)
    manifest = Dataset.open(str(folder / "out" / "ingest")).manifest
    quarantine = Dataset.open(str(folder / "out" / "quarantine")).manifest
    found = {name: manifest.account(source, "ingest") for source, name in names.items()}
    assert manifest.rows_in == sum(account["in"] for account in found.values())
    assert quarantine.rows_out == sum(map(quarantined, found.values()))
    return found


def quarantined(account):
    return sum(rows for reason, rows in account.items() if reason.startswith("quarantined:"))


def test_accounts_add_up_and_what_is_sound_is_kept(accounts):
    too_few = {}
    for name, account in accounts.items():
        lost = sum(rows for reason, rows in account.items() if reason not in ("in", "made", "kept"))
        assert account["in"] + account["made"] == account["kept"] + lost, name
        if account["kept"] < 0.95 * account["in"] or account["in"] == 0:
            too_few[name] = {reason: rows for reason, rows in account.items() if reason not in ("in", "made", "kept")}
    assert too_few == {name: losses for name, (losses, _) in NOT_SOUND.items()}


def test_the_malformed_lines_of_alpaca_libre(accounts):
    account = accounts["alpaca_libre/alpaca_libre_tasks_v2.jsonl.gz"]
    assert (account["in"], account["quarantined:invalid_json"]) == (2294, 14)


@pytest.mark.parametrize("case", ["array", "arrayl", "pretty"])
def test_a_field_case_of_an_array_has_20_rows(accounts, case):
    assert accounts[f"field_cases/{case}/a.json"] == {"in": 20, "made": 0, "kept": 20}
