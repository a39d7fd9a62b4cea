"""A tiny teacher of the corpus's vocabulary, and a small Harmony corpus with the columns that rescoring reads."""

import json
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa

from etl.harmony.render import Effort
from etl.harmony.step import HarmonyStep
from etl.harmony.vocabulary import CONTROL_TOKENS, VOCAB_SIZE
from etl.schema import MESSAGE, PROMPT, SPAN_KINDS, VERDICT
from etl.storage.dataset import Dataset
from tests.datasets import write_dataset
from training.models.tokenizer import harmony_tokens

WORDS = [
    "the",
    "cat",
    "sat",
    "and",
    "saw",
    "42",
    "dogs;",
    "naïve",
    "größe",
    "猫は魚を食べる\nwhile",
    "x",
    "=",
    "y**2",
    "# done",
]


def save_tokenizer(folder: Path) -> None:
    """The vocabulary of o200k_harmony as a tokenizer.json (without merges: nothing is encoded with it)."""
    vocab = {text: token for token, text in harmony_tokens().items() if token not in CONTROL_TOKENS}
    added = [{"id": token, "content": text} for token, text in CONTROL_TOKENS.items()]
    tokenizer = {"model": {"type": "BPE", "vocab": vocab, "merges": []}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")


def save_teacher(folder: Path, max_tokens: int = 4096) -> Path:
    """A random GPT-OSS of 2 layers and hidden 8, with sinks and a window of 16 tokens."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(
        num_hidden_layers=2,
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        vocab_size=VOCAB_SIZE,
        sliding_window=16,
        initializer_range=0.5,
        max_position_embeddings=max_tokens,
    )
    config._attn_implementation = "eager"
    model = GptOssForCausalLM(config)
    torch.nn.init.normal_(model.model.layers[0].self_attn.sinks)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def conversation(generator: np.random.Generator, turns: int) -> list[dict[str, str | None]]:
    """Turns of a user, reasoning and an answer."""
    out: list[dict[str, str | None]] = []
    for _ in range(turns):
        for role, channel in (("user", None), ("assistant", "analysis"), ("assistant", "final")):
            text = " ".join(generator.choice(WORDS, int(generator.integers(1, 8))))
            out.append({"role": role, "channel": channel, "recipient": None, "content": text})
    return out


def documents(num: int, seed: int, effort: Effort = "medium") -> pa.Table:
    """Rows with one to three turns; every sixth is a raw document. `ifd` is null for every seventh."""
    generator = np.random.default_rng(seed)
    messages, names = [], []
    for number in range(num):
        text = [{"role": "text", "channel": None, "recipient": None, "content": " ".join(WORDS)}]
        messages.append(text if number % 6 == 5 else conversation(generator, 1 + number % 3))
        names.append(str(uuid.UUID(int=seed * 1_000_000 + number)))
    batch = pa.RecordBatch.from_arrays(
        [pa.array(messages, pa.list_(MESSAGE)), pa.nulls(num, VERDICT)],
        schema=pa.schema([PROMPT.field("messages"), pa.field("verdict", VERDICT)]),
    )
    rendered = pa.Table.from_batches([HarmonyStep(reasoning_effort=effort).open()(batch)])
    hard = [None if number % 7 == 6 else float(generator.uniform(0.2, 1.0)) for number in range(num)]
    wanted = ["messages", "input_ids", "n_tokens", *(f"n_{kind}" for kind in SPAN_KINDS), "spans", "reasoning_effort"]
    table = rendered.select(wanted)
    table = table.append_column("ifd", pa.array(hard, pa.float64()))
    table = table.add_column(0, "source_dataset", pa.array([f"source-{number % 2}" for number in range(num)]))
    return table.add_column(0, "id", pa.array(names))


def write_corpus(folder: object, num: int = 8, effort: Effort = "medium") -> Dataset:
    """A committed corpus of three training cells and one validation cell."""
    cells = {
        ("train", "B1", "C1"): (num, 1),
        ("train", "B2", "C1"): (num // 2, 2),
        ("train", "B2", "C2"): (num // 4, 3),
    }
    tables = {
        f"split={split}/skill_bucket={skill}/ctx_bucket={ctx}": documents(rows, seed, effort)
        for (split, skill, ctx), (rows, seed) in {**cells, ("validation", "B1", "C1"): (3, 4)}.items()
    }
    return write_dataset(str(folder), "corpus", "CORPUS", tables)
