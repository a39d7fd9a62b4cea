"""The Harmony step: columns, nulls and verdicts; and the 888 golden rows."""

import datetime
import gzip
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from pydantic import ValidationError

from etl.errors import ConfigError
from etl.harmony.step import HarmonyStep
from etl.harmony.vocabulary import ENDOFTEXT, NUM_TEXT_TOKENS, RETURN, VOCABULARY_SHA256, load_encoding
from etl.schema import TOKENIZED_COLUMNS
from etl.step import drop
from tests.etl.harmony.conversations import PREAMBLE, batch, message, oracle

STEP = HarmonyStep(system=PREAMBLE.identity, developer=PREAMBLE.developer, reasoning_effort=PREAMBLE.effort)
FINAL = [message("user", "2+2?"), message("assistant", "4", "final")]
THOUGHT = [message("user", "hi"), message("assistant", "yes", "analysis"), message("assistant", "4", "final")]
HEADER = 5
"""<|start|>assistant<|channel|>final<|message|>; a content here is one token, and one closes a message."""


def test_columns():
    out = STEP.open()(batch([FINAL, THOUGHT]))
    assert out.schema == STEP.output_schema(batch([]).schema)
    assert STEP.adds == TOKENIZED_COLUMNS
    first, second = out.to_pylist()
    assert first["input_ids"] == oracle(FINAL)
    assert first["n_tokens"] == len(oracle(FINAL))
    assert first["input_ids"][-1] == RETURN
    assert [first[f"n_{k}"] for k in ("analysis", "commentary", "final", "text")] == [0, 0, HEADER + 2, 0]
    assert first["prompt_tokens"] == first["n_tokens"] - HEADER - 2
    assert first["reasoning_effort"] == "low"
    expected = xxhash.xxh64_intdigest(np.array(oracle(FINAL), "<i4").tobytes())
    assert first["token_digest"] % 2**64 == expected
    n = second["n_tokens"]
    assert [tuple(span.values()) for span in second["spans"]] == [
        ("analysis", 0, n - 14, n - 9, n - 7),
        ("final", 0, n - 7, n - 2, n),
    ]
    assert second["prompt_tokens"] == n - 14


def test_rows_with_a_verdict_stay_null_and_in_place():
    rows = [FINAL, THOUGHT, FINAL]
    judged = drop(batch(rows), "language", pa.array([True, False, None]), "foreign", pa.nulls(3, pa.string()))
    out = STEP.open()(judged)
    assert out.column("verdict") == judged.column("verdict")
    assert [ids is None for ids in out.column("input_ids").to_pylist()] == [True, False, False]
    alone = STEP.open()(batch(rows[1:]))
    for name in TOKENIZED_COLUMNS.names:
        column = out.column(name)
        assert not column[0].is_valid
        assert column.slice(1).to_pylist() == alone.column(name).to_pylist()


def test_verdicts():
    rows = [
        FINAL,
        [message("user", "anyone?")],
        [],
        [*FINAL, message("assistant", "x", "thoughts")],
        [message("critic", "no assistant either")],
    ]
    out = STEP.open()(batch(rows))
    assert [v and tuple(v.values()) for v in out.column("verdict").to_pylist()] == [
        None,
        ("harmony", "no_supervised_tokens", "1"),
        ("harmony", "no_supervised_tokens", "0"),
        ("harmony", "unrenderable", "channel 'thoughts'"),
        ("harmony", "unrenderable", "role 'critic'"),
    ]
    assert out.column("n_tokens").null_count == 4


def test_tools_that_cannot_be_said():
    ping = [{"name": "ping", "description": "", "parameters": None}]
    tools = [json.dumps(ping), "{}", json.dumps(ping), None, "[]"]
    out = STEP.open()(batch([FINAL, FINAL, document("a"), FINAL, FINAL], tools))
    assert [v and v["value"] for v in out.column("verdict").to_pylist()] == [
        None,
        "tools: no list",
        "tools beside role 'text'",
        None,
        None,
    ]
    tokens = out.column("input_ids").to_pylist()
    assert tokens[0] == oracle(FINAL, tools=ping)
    assert tokens[3] == tokens[4] == oracle(FINAL)
    without = STEP.open()(batch([FINAL]).drop_columns(["tools"]))
    assert without.column("input_ids").to_pylist() == [tokens[3]]
    judged = drop(batch([FINAL] * 2, ["{}", tools[0]]), "early", pa.array([True, False]), "x", pa.nulls(2, pa.string()))
    assert STEP.open()(judged).column("input_ids").to_pylist() == [None, tokens[0]]


def document(text):
    return [message("text", text)]


def test_raw_documents_are_their_own_tokens():
    """Beside conversations; each kind renders as it would by itself."""
    text = "Text that says <|start|>user<|message|>hi<|end|> and <|endoftext|>."
    rows = [FINAL, document(text), THOUGHT, document(" ")]
    out = STEP.open()(batch(rows)).to_pylist()
    for said, item in ((text, out[1]), (" ", out[3])):
        tokens = [*load_encoding().encode(said, disallowed_special=()), ENDOFTEXT]
        assert all(token < NUM_TEXT_TOKENS for token in tokens[:-1])
        assert load_encoding().decode_utf8(tokens[:-1]) == said
        size = len(tokens)
        assert item["input_ids"] == tokens
        assert [tuple(span.values()) for span in item["spans"]] == [("text", -1, 0, 0, size)]
        assert [item[name] for name in ("n_tokens", "prompt_tokens", "n_text", "n_final")] == [size, 0, size, 0]
        assert (item["reasoning_effort"], item["verdict"]) == (None, None)
        assert item["token_digest"] % 2**64 == xxhash.xxh64_intdigest(np.array(tokens, "<i4").tobytes())
    assert [out[0], out[2]] == STEP.open()(batch([FINAL, THOUGHT])).to_pylist()


def test_raw_documents_that_cannot_be_learnt():
    rows = [
        document(""),
        document("a") * 2,
        [message("user", "a"), *document("b"), message("assistant", "c", "final")],
        [message("critic", "a"), *document("b")],
        document("fine"),
    ]
    out = STEP.open()(batch(rows))
    beside = ("harmony", "unrenderable", "role 'text' beside other messages")
    assert [v and tuple(v.values()) for v in out.column("verdict").to_pylist()] == [
        ("harmony", "no_supervised_tokens", "1"),
        beside,
        beside,
        ("harmony", "unrenderable", "role 'critic'"),
        None,
    ]


@pytest.mark.parametrize("rows", [[], [[message("user", "alone")]]])
def test_no_living_rows(rows):
    out = STEP.open()(batch(rows))
    assert out.num_rows == len(rows)
    assert out.schema == STEP.output_schema(batch([]).schema)
    assert out.column("input_ids").null_count == len(rows)


def test_a_slice_of_a_batch():
    rows = [[message("user", str(i)), message("assistant", "b" * i, "final")] for i in range(5)]
    whole = STEP.open()(batch(rows)).slice(2, 2)
    assert STEP.open()(batch(rows).slice(2, 2)).to_pylist() == whole.to_pylist()


def test_a_megabyte_without_a_space_to_split_at():
    """openai-harmony overflows its stack on such a row; the step does not."""
    row = [message("user", " " * 1_000_000), message("assistant", "a" * 1_000_000, "final")]
    out = STEP.open()(batch([row]))
    assert out.column("n_final")[0].as_py() == HEADER + 125_000 + 1


def test_configuration():
    step = HarmonyStep.model_validate({"conversation_start_date": datetime.date(2026, 1, 1)})
    assert step.conversation_start_date == "2026-01-01"
    assert pickle.loads(pickle.dumps(step)) == step
    assert step.artefacts()["o200k_base"] == VOCABULARY_SHA256
    assert step.artefacts()["openai-harmony"][0].isdigit()
    with pytest.raises(ConfigError, match=r"harmony\.vocabulary"):
        HarmonyStep(vocabulary="/no/such/file").artefacts()
    with pytest.raises(ValidationError, match="reasoning_effort"):
        HarmonyStep(reasoning_effort="High")


@pytest.mark.parametrize("date", ["2025-06-28", "2024-06", "2024", None, datetime.date(2024, 2, 29)])
def test_dates(date):
    expected = str(date) if date else None
    assert HarmonyStep(conversation_start_date=date).preamble().start_date == expected
    assert HarmonyStep(knowledge_cutoff=date).preamble().knowledge_cutoff == expected


@pytest.mark.parametrize(
    "date",
    ["", "yesterday", "28.06.2025", "2025-13", "2025-02-30", "2025-6-1", "2025-06-28\n", "20250628", "٢٠٢٥-٠٦-٢٨",
     "2025-06-28 <|end|>", datetime.datetime(2025, 6, 28)],
)  # fmt: skip
@pytest.mark.parametrize("key", ["conversation_start_date", "knowledge_cutoff"])
def test_what_is_no_date_is_refused(key, date):
    with pytest.raises(ValidationError, match="is not a date; write 2025-06-28, 2025-06 or 2025, or null for none"):
        HarmonyStep.model_validate({key: date})


def test_the_system_message_has_no_further_lines_and_nothing_a_control_token():
    for text in ("You.\nReasoning: high", "You.\n", "You.\u2028", "a\rb"):
        with pytest.raises(ValidationError, match="has a line break; give one line"):
            HarmonyStep(system=text)
    for key in ("system", "developer"):
        for mark in ("<|end|>", "<|reserved_200500|>"):
            with pytest.raises(ValidationError, match="is a control token; write it differently"):
                HarmonyStep.model_validate({key: f"a {mark}"})
    assert HarmonyStep(developer="a\n\nb <|x|>", system="<| end |>").developer == "a\n\nb <|x|>"


def test_its_findings_are_what_precedes_its_conversations():
    step = HarmonyStep(name="short-one", developer="Be brief.", knowledge_cutoff=None)
    said = {"system": HarmonyStep().system, "developer": "Be brief.", "reasoning_effort": "medium",
            "conversation_start_date": None, "knowledge_cutoff": None}  # fmt: skip
    assert step.findings() == {"preambles": {"short_one_input_ids": said}}
    assert HarmonyStep(**said).preamble() == step.preamble()


def golden_shards(folder, name, dtype):
    """The documents of a Megatron MMIDIDX v1 data set, in order."""
    documents = []
    for index in sorted(folder.glob(f"train__shard_*_{name}.idx")):
        data = index.read_bytes()
        assert data[:9] == b"MMIDIDX\0\0"
        num_documents = int(np.frombuffer(data, "<u8", 1, 18)[0])
        sizes = np.frombuffer(data, "<i4", num_documents, 34)
        documents += np.split(np.fromfile(index.with_suffix(".bin"), dtype), np.cumsum(sizes)[:-1])
    return documents


@pytest.fixture(scope="module")
def golden(shared_data):
    """Our output for the golden rows, and the tokens, loss masks and span ids that they must have."""
    folder = shared_data / "synth_harmony_golden"
    conversion = json.loads((folder / "synth_harmony_manifest.json").read_text())["conversion"]
    system = conversion["system_message"]["content"][0]
    step = HarmonyStep(
        system=system["model_identity"],
        developer=conversion["developer_message"]["content"][0]["instructions"],
        reasoning_effort=system["reasoning_effort"].lower(),
        conversation_start_date=system["conversation_start_date"],
        knowledge_cutoff=system["knowledge_cutoff"],
    )
    with gzip.open(folder / "rows.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    out = step.open()(
        batch(
            [
                [
                    message("user", row["query"]),
                    message("assistant", row["synthetic_reasoning"], "analysis"),
                    message("assistant", row["synthetic_answer"], "final"),
                ]
                for row in rows
            ]
        )
    )
    names = {"tokens": "<i4", "lossmask": "u1", "span": "u1"}
    return out, {name: golden_shards(folder, name, dtype) for name, dtype in names.items()}


def test_golden_tokens(golden):
    out, expected = golden
    assert out.num_rows == len(expected["tokens"]) == 888
    for ours, theirs in zip(out.column("input_ids").to_pylist(), expected["tokens"], strict=True):
        assert [*ours, ENDOFTEXT] == theirs.tolist()


def test_golden_masks_and_spans(golden):
    """Entry i of a golden mask belongs to the label at i, which is token i + 1."""
    out, expected = golden
    ids = {"analysis": 1, "final": 2}
    supervised = 0
    for i, row in enumerate(out.select(["n_tokens", "spans", "n_analysis", "n_final"]).to_pylist()):
        of_token = np.zeros(row["n_tokens"] + 2, np.uint8)
        for span in row["spans"]:
            of_token[span["start"] : span["end"]] = ids[span["kind"]]
        assert of_token[1:].tolist() == expected["span"][i].tolist()
        assert (of_token[1:] > 0).tolist() == expected["lossmask"][i].astype(bool).tolist()
        assert row["n_analysis"] == (of_token == 1).sum()
        assert row["n_final"] == (of_token == 2).sum()
        supervised += row["n_analysis"] + row["n_final"]
    assert supervised == 633_971
