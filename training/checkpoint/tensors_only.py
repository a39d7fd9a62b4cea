"""Reads torch's pickled files as data: tensors, plain values and the few classes below; any other class is refused.

A checkpoint from somebody else may come with matching checksums, so those prove nothing. DeepSpeed reads its files
with a call of its own that accepts everything; an environment variable of torch overrides that.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from etl.errors import DataError

_FORCE: Final = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_OF_DEEPSPEED: Final = [LossScaler, ZeroStageEnum, fragment_address]
"""Objects other than tensors in the optimizer files of DeepSpeed 0.19: settings and places, no code."""
_OF_NUMPY: Final[list[Any]] = [np.empty(0).__reduce__()[0], np.ndarray, np.dtype, np.dtypes.UInt32DType]
"""In the random states of checkpoints that earlier versions wrote."""


@contextmanager
def tensors_only() -> Iterator[None]:
    """While inside, every `torch.load` of this process reads only data, regardless of its arguments.

    Raises:
        DataError: a file names another class.
    """
    before = os.environ.get(_FORCE)
    os.environ[_FORCE] = "1"
    try:
        with torch.serialization.safe_globals([*_OF_DEEPSPEED, *_OF_NUMPY]):
            yield
    except pickle.UnpicklingError as error:
        raise DataError(
            "a file of the checkpoint is damaged, or contains more than tensors and plain values. That could run "
            f"code, so it is not read: {str(error).splitlines()[0]}"
        ) from error
    finally:
        if before is None:
            del os.environ[_FORCE]
        else:
            os.environ[_FORCE] = before


def load(path: Path, **more: Any) -> Any:
    """The result of `torch.load` for a file of tensors and plain values; `more` is passed to it.

    Raises:
        DataError: the file names a class that is not known here.
    """
    with tensors_only():
        return torch.load(path, **more)
