"""One n-gram model for all tests of stages."""

from pathlib import Path

import pytest

from etl.scoring.kenlm_train import train
from tests.etl.stages.toys import mixed_rows


@pytest.fixture(scope="session")
def ngram_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of text like that of the toy rows."""
    lines = [item["synthetic_answer"] for item in mixed_rows(60, seed=99) if item["synthetic_answer"]]
    return train(lines, 2, tmp_path_factory.mktemp("ngram") / "model", 1_000_000).path
