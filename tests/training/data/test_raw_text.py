"""Raw documents from a file to the trainer: repeated units are dropped, every token that is left is learnt."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from etl.harmony.vocabulary import ENDOFTEXT, load_encoding
from etl.schema import SPAN_KINDS
from tests.etl.stages.toys import row, run, text_recipe, write_jsonl
from training.data.collate import collate
from training.data.reader import CorpusReader

TEXT = SPAN_KINDS.index("text")
LICENCE = "This text may be used by anyone for any purpose, without a fee."
DOCUMENTS = [
    {"id": "one", "text": f"{LICENCE}\n\nA first document says <|endoftext|> and <|start|>system, as text."},
    {"id": "two", "text": f"A second document is about something else altogether, isn’t it?\n\n{LICENCE}\n"},
    {"id": "three", "text": "短い文書。"},
]
LEFT = {item["id"]: item["text"] for item in DOCUMENTS}
LEFT["two"] = "A second document is about something else altogether, isn’t it?\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two sources of raw text and one of conversations, laid out."""
    folder = tmp_path_factory.mktemp("raw")
    documents = {"first": DOCUMENTS[:1], "more": DOCUMENTS[1:]}
    section = {"near": None, "survivor": {"sources": ["first"]}, "units": [{"unit": "paragraph"}]}
    stages = ["dedup", "tokenize", "split", "layout"]
    layout = {"validation_fraction": 0.0}
    recipe = text_recipe(folder / "out", documents, stages=stages, dedup=section, layout=layout)
    tree = recipe.model_dump(mode="json")
    asked = write_jsonl(folder / "asked.jsonl", [row(1, "What is it?", "It is a still.", "A question.")])
    tree["sources"]["asked"] = {"spec": "synth", "path": str(asked)}
    result = run(type(recipe).model_validate(tree))
    assert result.corpus is not None
    return folder / "out" / "corpus"


def expected_tokens(text):
    return [*load_encoding().encode(text, disallowed_special=()), ENDOFTEXT]


def test_the_corpus_holds_the_text_that_is_left_and_its_tokens(corpus):
    rows = {item["source_example_id"]: item for item in pq.read_table(corpus).to_pylist()}
    assert len(rows) == 4
    for key, text in LEFT.items():
        item = rows[key]
        assert [message["content"] for message in item["messages"]] == [text]
        assert item["input_ids"] == expected_tokens(text)
        size = len(item["input_ids"])
        assert item["spans"] == [{"kind": "text", "turn": -1, "start": 0, "content_start": 0, "end": size}]
        assert (item["n_tokens"], item["n_text"], item["prompt_tokens"], item["n_final"]) == (size, size, 0, 0)
        assert (item["reasoning_effort"], item["ctx_bucket"], item["final_span"]) == (None, "C1", None)
    assert {key: item["num_paragraphs_removed"] for key, item in rows.items()} == {
        "one": 0,
        "two": 1,
        "three": 0,
        "r1": 0,
    }
    assert "removed" not in rows["one"]


def test_a_pack_supervises_every_token_of_a_document_but_its_first(corpus):
    reader = CorpusReader(str(corpus), "train")
    index = reader.read_index(reader.whole, seed=0)
    documents = reader.gather(index, np.arange(len(index)))
    pack = collate(documents, int(index.num_tokens.sum()) + 5)
    found = []
    for number in range(len(documents)):
        kinds = pack.target_kind[pack.document == number]
        ids = pack.input_ids[pack.document == number]
        if TEXT in kinds:
            # A row predicts the next token, so that the last row of a document has no target.
            assert kinds.tolist() == [TEXT] * (len(kinds) - 1) + [-1]
            assert pack.targets[pack.document == number][:-1].tolist() == ids[1:].tolist()
            found.append(ids.tolist())
    assert sorted(found) == sorted(map(expected_tokens, LEFT.values()))
    assert pack.span_counts()[TEXT] == sum(len(ids) - 1 for ids in found)
    assert pack.span_counts().sum() > pack.span_counts()[TEXT]
