"""Settings for torch, DeepSpeed and transformers before they are loaded: how to wait, and what to log.

They ask the environment once, while they are imported, so the package does this when it is imported itself, whoever
starts it: `stillhouse`, `python -m training.train`, torchrun, a worker of an engine. What a user has set stays.

On a machine without a GPU the threads of OpenMP sleep where they wait for each other (OMP_WAIT_POLICY=passive). Left to
itself GNU's OpenMP, which comes with torch, spins for some milliseconds, and a thread that spins takes the core from
the very thread that it waits for as soon as anything else runs on the machine. Where a GPU is, the CPU's threads matter
little and nothing is set.

Libraries say only what is an error, on standard error; STILLHOUSE_LIBRARY_LINES=1 leaves them as they are. Errors of
C++, NCCL and CUDA are never kept back.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

LIBRARY_LINES = "STILLHOUSE_LIBRARY_LINES"
_OPENMP = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
"""Each says how threads wait; one that is set is the user's choice."""
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""There where a driver of NVIDIA, AMD or WSL serves this process; asking torch would load it."""
_QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def prepare() -> None:
    """Set what is not set. Call it before torch is imported."""
    has_gpu = any(Path(device).exists() for device in _GPUS)
    for name, value in defaults(os.environ, has_gpu).items():
        os.environ[name] = value
    if not os.environ.get(LIBRARY_LINES):
        # DeepSpeed sets the level and the handler of its logger while it is imported, and talks at once.
        logging.getLogger("DeepSpeed").addFilter(_is_error)


def defaults(environment: Mapping[str, str], has_gpu: bool) -> dict[str, str]:
    """The variables to be added to an environment, with their values."""
    found = {} if has_gpu or any(map(environment.get, _OPENMP)) else {"OMP_WAIT_POLICY": "passive"}
    if not environment.get(LIBRARY_LINES):
        found |= {name: value for name, value in _QUIET.items() if name not in environment}
    return found


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
