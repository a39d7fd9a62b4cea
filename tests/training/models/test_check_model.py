import io

import pytest
import torch
from rich.console import Console
from torch import nn

from tests.training.models import test_factory
from tests.training.models.toys import family
from training.models.check_model import check_model, report
from training.models.config import ModelConfig, student_factory

# peft imports deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Averager(test_factory.Averager):
    """Shared by the students below, each of which breaks the contract in one way."""


class Leaky(Averager):
    """Ignores cu_seqlens."""

    def seen(self, cu_seqlens):
        return super().seen(cu_seqlens[[0, -1]])


class Clairvoyant(Averager):
    """Sees one token ahead."""

    def seen(self, cu_seqlens):
        return super().seen(cu_seqlens).roll(-1, 0)


class Counting(Averager):
    """Depends on the number of documents."""

    def forward(self, input_ids, position_ids, cu_seqlens):
        hidden, router_logits = super().forward(input_ids, position_ids, cu_seqlens)
        return hidden + 1e-3 * len(cu_seqlens), router_logits


class Shapeless(Averager):
    """Router logits of a batch, and no experts_per_token."""

    def forward(self, input_ids, position_ids, cu_seqlens):
        hidden, _ = super().forward(input_ids, position_ids, cu_seqlens)
        return hidden, (torch.zeros(1, len(hidden), 4),)


class Failing(Averager):
    def forward(self, input_ids, position_ids, cu_seqlens):
        raise ValueError("no such thing")


class Unseeded(Averager):
    builds = 0

    def __init__(self, hidden):
        super().__init__(hidden)
        Unseeded.builds += 1
        nn.init.constant_(self.mix.bias, Unseeded.builds)


@student_factory
def build(params):
    return globals()[params["kind"]](8)


def failed(kind):
    findings = check_model(ModelConfig(factory=f"{__name__}:build", params={"kind": kind}), seed=1)
    return {finding.name: finding.measured for finding in findings if not finding.passed}


def test_a_students_contract_is_found_kept():
    findings = check_model(ModelConfig(factory=f"{__name__}:build", params={"kind": "Averager"}), seed=1)
    assert [finding.name for finding in findings if finding.passed] == [
        "head weight", "shapes", "packed = alone, float32", "no gradient across documents",
        "no gradient from unsupervised tokens", "documents without tokens", "packed = alone, bfloat16", "initial state",
    ]  # fmt: skip
    assert len(findings) == 8


def test_a_student_that_ignores_the_borders_of_documents_fails():
    found = failed("Leaky")
    assert set(found) == {
        "packed = alone, float32", "no gradient across documents", "no gradient from unsupervised tokens",
        "packed = alone, bfloat16",
    }  # fmt: skip
    assert found["no gradient across documents"] == "rows 38 to 197 reach 38 other tokens, 0 among them"


def test_a_student_that_looks_ahead_fails():
    found = failed("Clairvoyant")
    assert found["no gradient from unsupervised tokens"] == "rows 38 to 117 reach 1 other tokens, 118 among them"
    assert found["no gradient across documents"] == "rows 38 to 197 reach 1 other tokens, 198 among them"


@pytest.mark.parametrize(
    ("kind", "name", "measured"),
    [
        ("Counting", "documents without tokens", "5 of them change hidden states by 0.005"),
        ("Shapeless", "shapes", "1 router logits of (1, 416, 4), 0 experts a token"),
        ("Failing", "packed = alone, float32", "ValueError: no such thing"),
        ("Unseeded", "initial state", "seed 1 twice: "),
    ],
)
def test_each_breach_is_a_finding(kind, name, measured):
    assert measured in failed(kind)[name]


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_built_in_students_pass_and_equal_transformers(name):
    keys = {**family(name), "max_position_embeddings": 512, "sliding_window": 128}
    config = ModelConfig(
        factory="training.models.causal_lm:build", params={"config": keys}, gradient_checkpointing=True
    )
    findings = check_model(config, seed=1)
    assert all(finding.passed for finding in findings), findings
    assert "equal to transformers" in {finding.name for finding in findings}


def test_a_wrong_window_is_found_by_the_comparison_with_transformers(monkeypatch):
    from training.models import attention

    original = attention.by_document
    monkeypatch.setattr(
        attention, "_by_document_uncompiled",
        lambda *args: original(*args[:5], None if args[5] is None else args[5] + 1, args[6]),
    )  # fmt: skip
    keys = {**family("gpt_oss"), "max_position_embeddings": 512, "sliding_window": 16}
    findings = check_model(ModelConfig(factory="training.models.causal_lm:build", params={"config": keys}), seed=1)
    assert [finding.name for finding in findings if not finding.passed] == ["equal to transformers"]


def test_the_report_names_every_check():
    output = io.StringIO()
    config = ModelConfig(factory=f"{__name__}:build", params={"kind": "Leaky"})
    Console(file=output, width=160).print(report(check_model(config, seed=1)))
    assert output.getvalue().count("FAIL") == 4
    assert output.getvalue().count("pass") == 4
