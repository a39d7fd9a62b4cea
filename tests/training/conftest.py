import gc

import pytest

from tests.training.corpora import write_corpus


def pytest_collection_finish():
    """What has been imported is not looked through again: DeepSpeed collects garbage several times an engine."""
    gc.freeze()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """The made-up corpus: 90 documents in B1/C1 and 30 in B3/C1 to train on, 12 held out. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    write_corpus(folder)
    return folder
