"""The objective of docs/how-to/add-a-loss.md: as the union reads it, in a step, in a run, and in the run's record."""

import json
from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter

from etl import conf
from etl.errors import ConfigError
from tests.acme import importable, write_package
from tests.training.losses.toy_steps import pack_of, run, states
from tests.training.toy_runs import configuration
from training.losses.objective import AnyObjective, CrossEntropy
from training.train import train

# DeepSpeed and what it imports late use deprecated parts of torch.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning:torch")

FADING = {"kind": "acme_filters.objectives:Fading", "half": 4.0}


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    with importable(write_package(tmp_path_factory.mktemp("outside")), "acme_filters"):
        yield


def objective(**fields):
    return TypeAdapter(AnyObjective).validate_python(FADING | fields)


def test_it_is_a_loss_as_the_others_are():
    fading, packs = objective(), [pack_of(seed) for seed in (1, 2)]
    report, total, _ = run(fading, packs, [states(0), states(1)])
    plain = run(CrossEntropy(), packs, [states(0), states(1)])
    assert report == plain.report
    assert 0.2 * plain.total < total < plain.total
    assert run(objective(half=1e12), packs, [states(0), states(1)]).total == pytest.approx(plain.total, rel=1e-9)


def test_a_token_counts_by_its_place_in_its_document():
    pack = pack_of(1)
    first = np.flatnonzero(pack.target_kind >= 0)[:1]
    alone = replace(pack, target_kind=np.where(np.isin(np.arange(16), first), pack.target_kind, -1).astype(np.int8))
    place = int(pack.position_ids[first[0]])
    plain = run(CrossEntropy(), [alone], [states(0)])
    assert run(objective(), [alone], [states(0)]).total == pytest.approx(plain.total / (1 + place / 4), rel=1e-12)


def test_a_run_takes_it_and_says_what_it_was(corpus, tmp_path):
    arms = [{"name": "fading", "objective": FADING}]
    config = configuration(corpus, tmp_path, stages=[{"name": "only", "tokens": 600, "arms": arms}])
    result = train(config)
    assert (result.complete, result.steps > 1) == (True, True)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["stages"][0]["arms"][0]["objective"]["kind"] == FADING["kind"]
    assert record["code"] == {FADING["kind"]: {"version": 1, "code": config.stages[0].arms[0].objective.code()["code"]}}
    assert conf.check(type(config), record["config"], "run.json") == config


def test_a_loss_that_is_none_is_told(corpus, tmp_path):
    arms = [{"objective": {"kind": "acme_filters.answers:LongAnswers"}}]
    with pytest.raises(ConfigError, match=r"arms\.0\.objective\.kind: .*LongAnswers is a Step, not an Objective"):
        configuration(corpus, tmp_path, stages=[{"tokens": 600, "arms": arms}])
