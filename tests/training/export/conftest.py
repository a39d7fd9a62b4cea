"""The tokenizer of an export, once for all tests of this folder."""

import pytest

from etl.harmony.render import Preamble
from training.export.harmony_tokenizer import tokenizer_files

IDENTITY = 'I am "Test", größer; {{ not }} {% a %} template.'
PREAMBLE = Preamble(IDENTITY, "Be brief.\n\nBe kind.", "low", "2025-02-03", None)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    for name, data in tokenizer_files(PREAMBLE).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="session")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
