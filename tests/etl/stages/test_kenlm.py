"""A run that trains its own n-gram model."""

import pyarrow as pa
import pytest

from etl.errors import ConfigError
from etl.mixture.sampling import in_sample, purpose_seed
from etl.scoring import kenlm_train
from etl.scoring.perplexity import SAMPLE_PURPOSE
from tests.engines.inprocess import IdleEngine, InProcessEngine
from tests.etl.stages.toys import files, manifests, mixed_rows, read, run, scores, stage, whole_recipe, write_parquet

STAGES = ["filter", "dedup", "kenlm", "score", "tokenize", "split", "layout"]


@pytest.fixture(autouse=True)
def kaldingram(monkeypatch):
    """lmplz may be on PATH here and not elsewhere."""
    monkeypatch.setattr(kenlm_train, "backend", lambda: "kaldingram")
    monkeypatch.setattr("etl.stages.kenlm.backend", lambda: "kaldingram")


def recipe(tmp_path, output, **kenlm):
    source = write_parquet(tmp_path / "a.parquet", mixed_rows(120))
    options = {"order": 2, "fraction": 0.3, "seed": 4} | kenlm
    return whole_recipe(output, {"a": source}, "run:kenlm", stages=STAGES, kenlm=options)


def test_model_is_trained_once_on_the_sample_of_living_rows(tmp_path):
    run(recipe(tmp_path, tmp_path / "out"))
    rows = read(stage(tmp_path / "out", "near"))
    alive = [item["id"] for item in rows if item["verdict"] is None]
    chosen = in_sample(pa.array(alive, pa.binary(16)), purpose_seed(SAMPLE_PURPOSE, 4), 0.3).to_pylist()
    sampled = {key for key, hit in zip(alive, chosen, strict=True) if hit}
    assert {item["id"] for item in read(stage(tmp_path / "out", "kenlm_sample"))} == sampled
    assert 10 < len(sampled) < len(alive)
    scored = read(stage(tmp_path / "out", "score"))
    assert {item["id"] for item in scored if item["in_kenlm_sample"] and item["verdict"] is None} == sampled
    assert all((item["perplexity"] is None) == (item["verdict"] is not None) for item in scored)
    before = files(tmp_path / "out")
    run(recipe(tmp_path, tmp_path / "out"), IdleEngine())
    assert files(tmp_path / "out") == before


def test_model_and_scores_are_the_same_in_another_folder(tmp_path):
    run(recipe(tmp_path, tmp_path / "one"))
    run(recipe(tmp_path, tmp_path / "two"), InProcessEngine(batch_rows=100, seed=8))
    assert manifests(tmp_path / "one") == manifests(tmp_path / "two")


def test_other_sample_trains_and_scores_anew(tmp_path):
    run(recipe(tmp_path, tmp_path / "out"))
    first = stage(tmp_path / "out", "kenlm").manifest
    engine = InProcessEngine()
    run(recipe(tmp_path, tmp_path / "out", seed=5), engine)
    assert stage(tmp_path / "out", "kenlm").manifest.content_digest != first.content_digest
    assert {"kenlm_sample", "score"} <= {name for name, _ in engine.ran}
    assert not {"ingest", "filter", "exact", "near"} & {name for name, _ in engine.ran}


def test_sample_without_a_row(tmp_path):
    with pytest.raises(ConfigError, match="raise the fraction"):
        run(recipe(tmp_path, tmp_path / "out", fraction=1e-12))


def test_score_without_the_stage_that_trains_its_model(tmp_path):
    with pytest.raises(ValueError, match="stages must list 'kenlm' before 'score'"):
        whole_recipe(tmp_path, {"a": "a.parquet"}, "run:kenlm", score=scores("run:kenlm"))
