"""The model card and the note on licences, from a manifest of an export."""

import copy

import yaml

from training.export.card import card_files

ROWS = [
    {"source_dataset": "synth", "license": "CC-BY-4.0", "tokens": 600},
    {"source_dataset": "a|b\n# c", "license": None, "tokens": 300},
    {"source_dataset": None, "license": "MIT", "tokens": 100},
]
PREAMBLE = {
    "corpus": "out/corpus", "notes": ("/home/me/x has another preamble",), "identity": "You.", "developer": "A.\nB.",
    "effort": "high", "start_date": None, "knowledge_cutoff": "2024-06",
}  # fmt: skip
MANIFEST = {
    "stillhouse": "1.2",
    "checkpoint": {"name": "step-00000007-ab", "step": 7, "held_out_loss": 1.25},
    "model": {"factory": "training.models.causal_lm:build", "params": {"weights": "/home/me/models/tiny_base/"}},
    "tokenizer": "o200k_harmony",
    "preamble": PREAMBLE,
    "tokens": 1000,
    "supervised_tokens": 400,
    "config": {"stages": [{"name": "train", "tokens": 2000}]},
    "ledger": {"rows": ROWS},
}


def made(manifest=MANIFEST, is_of_transformers=True):
    return {name: data.decode() for name, data in card_files(manifest, is_of_transformers).items()}


def test_the_front_matter_is_what_the_hub_reads():
    _, front, body = made()["README.md"].split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "license": "other",
        "license_name": "see-licenses", "license_link": "LICENSES.md", "base_model": "tiny_base",
        "datasets": ["a|b\n# c", "synth"], "tags": ["stillhouse"],
    }  # fmt: skip
    assert body.startswith("\n# A model trained with Stillhouse 1.2\n")


def test_the_card_says_what_it_was_trained_on_and_how_it_is_prompted():
    card = made()["README.md"]
    for said in (
        "It began with the weights tiny\\_base.", "after 7 steps and 1,000 tokens, of which 400 were targets",
        "Held-out loss: 1.2500.", "| synth | 600 | 60.0% |", "| a\\|b # c | 300 | 30.0% |", "| MIT | 100 | 10.0% |",
        "| unknown | 300 | 30.0% |", "identity: You.", "effort: high", "`<|return|>` (200,002)", "`<|call|>` (200,012)",
        "`<|endoftext|>` (199,999)", "Note: this preamble was assumed, or other corpora of the run have others",
    ):  # fmt: skip
        assert said in card, said
    assert "/home/me" not in card
    assert "out/corpus" not in card
    assert "\n# c" not in card.split("---\n", 2)[2]


def test_licences_are_named_with_their_tokens_and_what_is_unknown():
    said = made()["LICENSES.md"]
    for line in ("| CC-BY-4.0 | 600 | 60.0% |", "| unknown | 300 | 30.0% |", "| a\\|b # c | 300 | 100.0% |"):
        assert line in said
    assert "Of 300 tokens (30.0%) the corpora say no licence" in said
    assert "The weights that the run began with, tiny\\_base, have a licence of their own." in said
    known = copy.deepcopy(MANIFEST) | {"ledger": {"rows": ROWS[:1]}, "model": {"params": {}}}
    assert "say no licence" not in made(known)["LICENSES.md"]
    assert "of their own" not in made(known)["LICENSES.md"]


def test_a_model_of_another_tokenizer_has_no_prompts_of_harmony():
    other = MANIFEST | {
        "preamble": None,
        "model": {"params": {}},
        "checkpoint": MANIFEST["checkpoint"] | {"held_out_loss": None},
    }
    card = made(other, is_of_transformers=False)["README.md"]
    assert "library_name" not in card
    assert "base_model" not in card
    assert "<|return|>" not in card
    assert "It began with random weights." in card
    assert "Held-out loss: not measured." in card
