"""What tests of several rooms share: a folder on two kinds of store, and one n-gram model."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.scoring.kenlm_train import train
from etl.storage.location import Location
from tests.etl.stages.toys import mixed_rows


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path) -> Iterator[Location]:
    """On the local disk and in fsspec's memory, so that what is promised is tried on both."""
    if request.param == "local":
        yield Location.of(tmp_path / "data")
        return
    place = Location.of(f"memory://{uuid.uuid4().hex}")
    yield place
    place.remove_tree()


@pytest.fixture(scope="session")
def ngram_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of text like that of the toy rows."""
    lines = [item["synthetic_answer"] for item in mixed_rows(60, seed=99) if item["synthetic_answer"]]
    return train(lines, 2, tmp_path_factory.mktemp("ngram") / "model", 1_000_000).path
