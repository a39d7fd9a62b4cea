"""Free memory and utilisation of the device: NVML and torch for an NVIDIA GPU, psutil for the host.

A run never fails for want of a number: without an NVIDIA device there are only host fields, and where the driver cannot
be asked (no library in the image, a field that a partitioned device does not have) the fields are absent and `nvml`
says why. A reading costs under a millisecond.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import psutil
import pynvml
import torch

Reading = dict[str, float | int | str]
"""Bytes are int, `gpu_utilization` is from 0 to 1, `nvml` the reason why fields are missing."""


class Hardware:
    """The device of one rank and its host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._process = psutil.Process()
        self._stack = ExitStack()
        self._handle: Any = None
        self._unavailable: str | None = None

    def __enter__(self) -> "Hardware":
        if self._device.type == "cuda":
            try:
                pynvml.nvmlInit()
                self._stack.callback(pynvml.nvmlShutdown)
                # By UUID: NVML does not know CUDA_VISIBLE_DEVICES, so its numbers are not torch's.
                uuid = str(torch.cuda.get_device_properties(self._device).uuid)
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            except pynvml.NVMLError as error:
                self._unavailable = str(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self) -> Reading:
        """Now: `host_rss_bytes` (this process), `host_available_bytes`, and on an NVIDIA device

        `gpu_utilization` (of the last sampling period of the driver), `gpu_memory_used_bytes` and `_total_bytes` (all
        processes), `gpu_peak_allocated_bytes` (tensors of this process) and `gpu_headroom_bytes` (what is left of the
        device above this process's highest reservation).
        """
        reading: Reading = {
            "host_rss_bytes": int(self._process.memory_info().rss),
            "host_available_bytes": int(psutil.virtual_memory().available),
        }
        if self._device.type == "cuda":
            reading |= _torch_memory(self._device)
        if self._handle is not None:
            reading |= _of_driver(self._handle)
        if self._unavailable is not None:
            reading["nvml"] = self._unavailable
        return reading


def _torch_memory(device: torch.device) -> Reading:
    total = int(torch.cuda.get_device_properties(device).total_memory)
    return {
        "gpu_peak_allocated_bytes": int(torch.cuda.max_memory_allocated(device)),
        "gpu_headroom_bytes": total - int(torch.cuda.max_memory_reserved(device)),
    }


def _of_driver(handle: Any) -> Reading:
    reading: Reading = {}
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        reading["gpu_memory_used_bytes"] = int(memory.used)
        reading["gpu_memory_total_bytes"] = int(memory.total)
        reading["gpu_utilization"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
    except pynvml.NVMLError as error:
        reading["nvml"] = str(error)
    return reading


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


_OVER_RANKS: dict[str, Callable[[Sequence[Any]], Any]] = {
    "host_rss_bytes": max,
    "host_available_bytes": min,
    "gpu_utilization": _mean,
    "gpu_memory_used_bytes": max,
    "gpu_memory_total_bytes": min,
    "gpu_peak_allocated_bytes": max,
    "gpu_headroom_bytes": min,
    "nvml": min,
}


def over_ranks(readings: Sequence[Reading]) -> Reading:
    """One reading for the run: the tightest memory of any rank, the mean utilisation."""
    return {
        name: merged([reading[name] for reading in readings if name in reading])
        for name, merged in _OVER_RANKS.items()
        if any(name in reading for reading in readings)
    }
