import hashlib
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from etl import conf
from etl.errors import ConfigError, DataError
from etl.harmony.step import HarmonyStep
from etl.storage.dataset import Dataset
from etl.storage.location import Location
from tests.datasets import write_dataset
from tests.training.corpora import VOCAB, write_corpus
from tests.training.teachers import documents
from training.config import TrainConfig
from training.export.export import MANIFEST, export
from training.models.config import student_factory
from training.train import train

# DeepSpeed, peft and what they import late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

SHORT = [
    "data.pack_tokens=256", "data.global_batch_packs=2", "data.lanes=2", "data.segment_tokens=1024",
    "stages.0.tokens=700", "evaluate=null", "optimizer.schedule.warmup_tokens=256", "metrics.tensorboard=false",
]  # fmt: skip
TINY = {
    "layers": 2, "hidden": 8, "heads": 2, "kv_heads": 1, "head_dim": 4, "intermediate": 8, "experts": 2,
    "experts_per_token": 1, "vocab": 201_088, "init_std": 0.3,
}  # fmt: skip


class Tied(nn.Module):
    """A user's student whose head is its embedding, with a weight of two names."""

    head_weight = "embed.weight"

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 8)
        self.one = nn.Linear(8, 8)
        self.two = nn.Linear(8, 8)
        self.two.weight = self.one.weight
        self.register_buffer("steps", torch.tensor([3, 4]))

    def forward(self, input_ids, position_ids, cu_seqlens):
        return torch.tanh(self.two(self.one(self.embed(input_ids)[0]))), ()


@student_factory
def build_tied(params):
    return Tied()


def run(corpus, output, model, deepspeed="zero1_fp32"):
    more = [
        f"deepspeed=conf/deepspeed/{deepspeed}.json",
        f"data.corpus={corpus}",
        f"output={output}",
        f"model={json.dumps(model)}",
    ]
    config = conf.load(TrainConfig, "demo", "training", [*SHORT, *more])
    result = train(config)
    return result.checkpoint


def trained(checkpoint):
    """The module's weights as DeepSpeed wrote them."""
    (path,) = Location.of(checkpoint).fs.glob(f"{checkpoint}/mp_rank_00_model_states.pt")
    found = torch.load(path, weights_only=False)["module"]
    return {name.removeprefix("student.network."): value for name, value in found.items()}


@pytest.fixture(scope="module")
def harmony_run(tmp_path_factory):
    """A run of a GPT-OSS of hidden 8 on a Harmony corpus, and its checkpoint."""
    folder = tmp_path_factory.mktemp("harmony")
    tables = {}
    for split, seed in (("train", 1), ("validation", 2)):
        table = documents(12, seed)
        table = table.append_column("sampling_weight", pa.array(np.ones(len(table))))
        table = table.append_column("license", pa.array(["CC-BY-4.0", None] * (len(table) // 2)))
        tables[f"split={split}/skill_bucket=B1/ctx_bucket=C1"] = table
    write_dataset(str(folder / "corpus"), "layout", "CORPUS", tables)
    model = {"factory": "training.models.gpt_oss:build", "params": TINY}
    return folder / "run", run(folder / "corpus", folder / "run", model)


@pytest.fixture(scope="module")
def exported(harmony_run, tmp_path_factory):
    target = tmp_path_factory.mktemp("exported") / "model"
    assert export(str(harmony_run[0]), str(target)) == str(target)
    return target


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_weights_are_the_masters_rounded_once(harmony_run, exported):
    written = load_file(exported / "model.safetensors")
    masters = trained(harmony_run[1])
    assert set(written) == set(masters) - {"student.lm_head.weight"}
    for name, value in written.items():
        assert torch.equal(value, masters[name].bfloat16()), name


def test_transformers_loads_the_folder_and_generates(exported):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    assert (model.dtype, type(model).__name__) == (torch.bfloat16, "GptOssForCausalLM")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    ids = torch.tensor([prompt.input_ids])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert torch.equal(made[0, : ids.shape[1]], ids[0])
    assert made.shape[1] > ids.shape[1]
    assert len({path.stat().st_mode for path in exported.iterdir()}) == 1
    assert model.generation_config.eos_token_id == [200_002, 200_012, 199_999]


def test_the_manifest_says_what_was_trained_on(harmony_run, exported):
    output, checkpoint = harmony_run
    manifest = json.loads((exported / MANIFEST).read_text())
    corpus = str(output.parent / "corpus")
    digest = Dataset.open(corpus).manifest.content_digest
    assert manifest["corpora"][corpus]["content_digest"] == digest
    assert "parts" not in manifest["corpora"][corpus]
    assert manifest["checkpoint"]["name"] == checkpoint.rpartition("/")[2]
    assert manifest["config"]["stages"][0]["tokens"] == 700
    assert (manifest["seed"], manifest["tokenizer"], manifest["teacher_tables"]) == (0, "o200k_harmony", {})
    (records,) = manifest["decisions"].values()
    assert [record["segment"] for record in records] == list(range(len(records)))
    assert records[0]["kind"] == "initial"
    assert sum(manifest["licenses"].values()) == manifest["ledger"]["total"]["tokens"] == manifest["tokens"]
    assert set(manifest["licenses"]) == {"CC-BY-4.0", "unknown"}


def test_a_model_card_and_the_licences_lie_in_the_export(exported):
    card = (exported / "README.md").read_text()
    manifest = json.loads((exported / MANIFEST).read_text())
    assert f"after {manifest['checkpoint']['step']:,} steps and {manifest['tokens']:,} tokens" in card
    assert f"| CC-BY-4.0 | {manifest['licenses']['CC-BY-4.0']:,} |" in card
    assert f"| unknown | {manifest['licenses']['unknown']:,} |" in (exported / "LICENSES.md").read_text()
    assert str(exported.parent.parent) not in card


def test_the_template_begins_as_the_corpus_does(harmony_run, exported, tmp_path, capsys):
    """The corpus here does not record the preamble; a copy of the run's record does."""
    from transformers import AutoTokenizer

    turn = [{"role": "user", "content": "hi"}]
    assumed = json.loads((exported / MANIFEST).read_text())["preamble"]
    assert assumed["corpus"] is None
    assert (
        "does not record the preamble; the chat template begins as the step `harmony` does by default"
        in assumed["notes"][0]
    )
    shutil.copytree(harmony_run[0], tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    ((url, manifest),) = record["corpora"].items()
    step = HarmonyStep(developer="Be brief.", reasoning_effort="high", conversation_start_date="2026-01-01")
    manifest["findings"] = step.findings()
    path.write_text(json.dumps(record))
    capsys.readouterr()
    export(str(tmp_path / "run"), str(tmp_path / "model"))
    assert capsys.readouterr().err == ""
    said = json.loads((tmp_path / "model" / MANIFEST).read_text())["preamble"]
    assert (said["corpus"], said["notes"], said["effort"], said["developer"]) == (url, [], "high", "Be brief.")
    made = AutoTokenizer.from_pretrained(tmp_path / "model").apply_chat_template(turn, tokenize=False)
    assert made == AutoTokenizer.from_pretrained(exported).apply_chat_template(
        turn, tokenize=False, developer_instructions="Be brief.", reasoning_effort="high",
        conversation_start_date="2026-01-01",
    )  # fmt: skip
    assert "Current date: 2026-01-01\n\nReasoning: high" in made


def test_an_export_of_the_checkpoint_replaces_it_with_the_same_bytes(harmony_run, exported):
    before = contents(exported)
    (exported / "stale.bin").write_bytes(b"of an older export")
    export(harmony_run[1], str(exported))
    assert contents(exported) == before
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_an_object_store_gets_the_manifest_last(tmp_path, monkeypatch):
    write_corpus(tmp_path / "corpus", 24)
    run(tmp_path / "corpus", tmp_path / "run", {"factory": f"{__name__}:build_tied", "params": {}})
    target = Location.of(f"memory://{uuid.uuid4().hex}/model")
    (target / MANIFEST).replace(b"of an older export")
    (target / "stale.bin").replace(b"of an older export")
    order = []
    upload = Location.upload
    monkeypatch.setattr(Location, "upload", lambda self, file: (order.append(self.name), upload(self, file)))
    export(str(tmp_path / "run"), target.url, allow_code=True)
    assert order == ["LICENSES.md", "README.md", "config.json", "model.safetensors", MANIFEST]
    assert sorted(path for path, _ in target.walk()) == order


def test_a_users_factory_keeps_its_names_and_says_how_to_build_it(tmp_path):
    write_corpus(tmp_path / "corpus", 24)
    checkpoint = run(tmp_path / "corpus", tmp_path / "run", {"factory": f"{__name__}:build_tied", "params": {}})
    export(str(tmp_path / "run"), str(tmp_path / "model"), allow_code=True)
    written, masters = load_file(tmp_path / "model" / "model.safetensors"), trained(checkpoint)
    network = Tied().bfloat16()
    network.load_state_dict(written)
    assert torch.equal(network.two.weight, masters["one.weight"].bfloat16())
    assert network.steps.tolist() == [3, 4]
    said = json.loads((tmp_path / "model" / "config.json").read_text())
    assert said == {"factory": f"{__name__}:build_tied", "params": {}}
    assert json.loads((tmp_path / "model" / MANIFEST).read_text())["tokenizer"] is None


@pytest.mark.parametrize("deepspeed", ["zero0_fp32", "zero3_fp32", "zero2_bf16"])
def test_every_zero_stage_is_exported(tmp_path, deepspeed):
    write_corpus(tmp_path / "corpus", 24)
    torch.manual_seed(0)
    initial = Tied().state_dict()
    found = {}
    for name in ("zero1_fp32", deepspeed):
        run(tmp_path / "corpus", tmp_path / name, {"factory": f"{__name__}:build_tied", "params": {}}, name)
        export(str(tmp_path / name), str(tmp_path / f"{name}-model"), allow_code=True)
        found[name] = load_file(tmp_path / f"{name}-model" / "model.safetensors")
    reference, other = found.values()
    assert reference.keys() == other.keys() == initial.keys()
    for name, value in reference.items():
        if "fp32" in deepspeed:
            torch.testing.assert_close(other[name], value, rtol=0.01, atol=1e-3)
        else:
            # AdamW's first steps go by the sign of a gradient, which bfloat16 may turn where it is near 0.
            is_near = torch.isclose(other[name].float(), value.float(), rtol=0.01, atol=4e-3)
            assert is_near.float().mean() > 0.95, name
    assert (reference["one.bias"].float() - initial["one.bias"]).abs().min() > 0.003


def test_adapters_are_added_and_the_tokenizer_of_other_weights_goes_along(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    write_corpus(tmp_path / "corpus", 24)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, attention_dropout=0.0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    model = {
        "factory": "training.models.causal_lm:build",
        "params": {"weights": str(tmp_path / "base")},
        "lora": {"r": 2, "alpha": 6, "targets": ["q_proj"]},
    }
    checkpoint = run(tmp_path / "corpus", tmp_path / "run", model)
    export(str(tmp_path / "run"), str(tmp_path / "model"))
    masters, name = trained(checkpoint), "model.layers.0.self_attn.q_proj"
    down, up = masters[f"{name}.lora_A.default.weight"], masters[f"{name}.lora_B.default.weight"]
    assert up.abs().sum() > 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = (masters[f"{name}.base_layer.weight"] + 3.0 * up @ down).bfloat16()
    assert torch.equal(loaded.get_parameter(f"{name}.weight"), expected)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == (tmp_path / "base" / "tokenizer.json").read_bytes()
    assert not (tmp_path / "model" / "chat_template.jinja").exists()


def test_what_is_no_run_and_what_is_in_the_way_is_refused(harmony_run, tmp_path):
    with pytest.raises(ConfigError, match=r"has no run\.json; give the `output` of a training run"):
        export(str(tmp_path), str(tmp_path / "model"))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    for target in (tmp_path / "precious", tmp_path / "precious" / "thesis.txt"):
        with pytest.raises(ConfigError, match="contains something that is not an export"):
            export(str(harmony_run[0]), str(target))
    assert [path.name for path in tmp_path.rglob("*")] == ["precious", "thesis.txt"]


def test_a_damaged_checkpoint_leaves_no_trace(harmony_run, tmp_path):
    output, checkpoint = harmony_run
    (path,) = (file for file in output.rglob("mp_rank_00_model_states.pt"))
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"?")
    try:
        with pytest.raises(DataError, match="does not match its receipt"):
            export(checkpoint, str(tmp_path / "model"))
    finally:
        path.write_bytes(data)
    assert not list(tmp_path.iterdir())


def gadget(tmp_path):
    """A function of the standard library that runs what its argument says."""
    started = {"()": "subprocess.Popen", "args": ["touch", str(tmp_path / "ran")]}
    return {"factory": "logging.config:dictConfig", "params": {"version": 1, "formatters": {"x": started}}}


@pytest.mark.parametrize(
    ("factory", "allow_code", "said"),
    [
        ("logging.config:dictConfig", False, "add --allow-code"),
        ("logging.config:dictConfig", True, "is not marked as a factory"),
        ("acme_absent:build", False, "add --allow-code"),
        (f"{__name__}:build_tied", False, "add --allow-code"),
        ("training.models.factory:copy", False, "is not marked as a factory"),
    ],
)
def test_what_the_files_of_a_run_name_is_not_run(harmony_run, tmp_path, factory, allow_code, said):
    shutil.copytree(harmony_run[0], tmp_path / "run")
    (path,) = (tmp_path / "run/checkpoints").glob("step-*/manifest.json")
    manifest = json.loads(path.read_text())
    manifest["identity"] |= {**gadget(tmp_path), "factory": factory}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=said):
        export(str(tmp_path / "run"), str(tmp_path / "model"), allow_code)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "model").exists()


def test_pickles_among_the_files_of_a_run_are_not_run(harmony_run, tmp_path):
    shutil.copytree(harmony_run[0], tmp_path / "run")
    (folder,) = (tmp_path / "run/checkpoints").glob("step-*")
    path = folder / "mp_rank_00_model_states.pt"
    torch.save({"module": Touch(tmp_path / "ran")}, path)
    manifest = json.loads((folder / "manifest.json").read_text())
    (entry,) = [f for receipt in manifest["receipts"] for f in receipt["files"] if f["name"] == path.name]
    entry |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="could run code"):
        export(str(tmp_path / "run"), str(tmp_path / "model"))
    assert not (tmp_path / "ran").exists()


class Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
