"""Files of a checkpoint are data: a class that could run code is refused by every reader, DeepSpeed's own too."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from etl.errors import DataError
from training.checkpoint import tensors_only
from training.checkpoint.checkpoints import _random_states, _set_random_states


class Touch:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_foreign_class_is_refused_and_runs_nothing(tmp_path):
    torch.save({"weights": torch.ones(2), "more": Touch(tmp_path / "ran")}, tmp_path / "file.pt")
    with pytest.raises(DataError, match="could run code"):
        tensors_only.load(tmp_path / "file.pt")
    with pytest.raises(DataError, match="could run code"), tensors_only.tensors_only():
        torch.load(tmp_path / "file.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()


def draws():
    return random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002  # the global generator


def test_random_states_go_through_a_file_and_those_of_earlier_versions_too(tmp_path):
    earlier = {**_random_states(), "numpy": np.random.get_state()}  # noqa: NPY002  # as above
    torch.save(_random_states(), tmp_path / "now.pt")
    torch.save(earlier, tmp_path / "earlier.pt")
    expected = draws()
    for name in ("now.pt", "earlier.pt"):
        _set_random_states(tensors_only.load(tmp_path / name))
        assert draws() == expected
