import json

import pytest

from etl import conf
from etl.errors import ConfigError
from training.evaluate.report import EvaluateConfig, evaluate_conf

# peft and the evaluation harness import deprecated parts of others.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_model_is_compared_with_baselines(corpus, model, teacher, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    llama = LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )  # fmt: skip
    LlamaForCausalLM(llama).save_pretrained(tmp_path / "llama")
    more = [
        f"model={model}", f"baselines={json.dumps({'teacher': teacher, 'llama': str(tmp_path / 'llama')})}",
        f"suites.held_out.corpus={corpus}", "suites.held_out.max_packs=1", f"suites.format.corpus={corpus}",
        "suites.format.max_new_tokens=2", f"output={tmp_path / 'report'}",
    ]  # fmt: skip
    config = conf.load(EvaluateConfig, "demo", "evaluate", more)
    report = evaluate_conf(config)
    assert set(report.results["held_out"]) == {"model", "teacher"}
    assert report.results["held_out"]["model"]["loss"] != report.results["held_out"]["teacher"]["loss"]
    assert "has no tokenizer.json" in report.skipped["held_out"]["llama"]
    stored = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert stored["results"] == report.results
    table = (tmp_path / "report" / "evaluation.md").read_text().splitlines()
    assert table[0] == "| suite | metric | model | teacher | llama |"
    loss = [f"{report.results['held_out'][name]['loss']:.4g}" for name in ("model", "teacher")]
    assert table[2] == f"| held_out | loss | {loss[0]} | {loss[1]} | – |"
    assert evaluate_conf(config) == report


def test_what_is_no_model_is_refused(tmp_path):
    more = [f"model={tmp_path}", f"output={tmp_path}"]
    with pytest.raises(ConfigError, match=r"has no config\.json; give the local folder"):
        evaluate_conf(conf.load(EvaluateConfig, "demo", "evaluate", more))
    with pytest.raises(ConfigError, match="a baseline cannot be named 'model'"):
        conf.load(EvaluateConfig, "demo", "evaluate", [*more, "baselines.model=x"])
