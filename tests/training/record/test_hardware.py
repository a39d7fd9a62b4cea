from types import SimpleNamespace

import psutil
import pynvml
import pytest
import torch

from training.record.hardware import Hardware, over_ranks

GIB = 2**30


def test_without_an_nvidia_device_there_are_the_hosts_fields_only():
    with Hardware(torch.device("cpu")) as hardware:
        found = hardware.read()
    assert found.keys() == {"host_rss_bytes", "host_available_bytes"}
    assert 0 < found["host_rss_bytes"] < psutil.virtual_memory().total
    assert 0 < found["host_available_bytes"] < psutil.virtual_memory().total


@pytest.fixture
def device(monkeypatch):
    """A made-up CUDA device as torch sees it."""
    properties = SimpleNamespace(uuid="5f-aa", total_memory=140 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 90 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 100 * GIB)
    return torch.device("cuda", 0)


def driver(monkeypatch, utilisation):
    closed = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: closed.append(True))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: {"GPU-5f-aa": "handle"}[uuid])
    memory = SimpleNamespace(used=101 * GIB, total=141 * GIB)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: {"handle": memory}[handle])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", utilisation)
    return closed


def test_an_nvidia_device_is_asked_by_its_uuid(device, monkeypatch):
    closed = driver(monkeypatch, lambda _: SimpleNamespace(gpu=87))
    with Hardware(device) as hardware:
        found = hardware.read()
    assert {name: value for name, value in found.items() if name.startswith("gpu")} == {
        "gpu_utilization": 0.87,
        "gpu_memory_used_bytes": 101 * GIB,
        "gpu_memory_total_bytes": 141 * GIB,
        "gpu_peak_allocated_bytes": 90 * GIB,
        "gpu_headroom_bytes": 40 * GIB,
    }
    assert closed == [True]


def test_a_field_that_the_device_does_not_have_is_absent_with_its_reason(device, monkeypatch):
    def unsupported(_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    driver(monkeypatch, unsupported)
    with Hardware(device) as hardware:
        found = hardware.read()
    assert "gpu_utilization" not in found
    assert found["nvml"] == "Not Supported"
    assert found["gpu_memory_used_bytes"] == 101 * GIB


def test_a_device_without_the_drivers_library_has_torchs_numbers(device, monkeypatch):
    def missing():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with Hardware(device) as hardware:
        found = hardware.read()
    assert found["nvml"] == "NVML Shared Library Not Found"
    assert found["gpu_headroom_bytes"] == 40 * GIB


def test_over_ranks_memory_is_the_tightest_and_utilisation_the_mean():
    first = {"host_rss_bytes": 5, "host_available_bytes": 7, "gpu_utilization": 0.5, "gpu_headroom_bytes": 3}
    second = {"host_rss_bytes": 6, "host_available_bytes": 2, "gpu_utilization": 1.0, "gpu_headroom_bytes": 4}
    assert over_ranks([first, second]) == {
        "host_rss_bytes": 6,
        "host_available_bytes": 2,
        "gpu_utilization": 0.75,
        "gpu_headroom_bytes": 3,
    }
    assert over_ranks([{**first, "nvml": "Unknown Error"}, {}]) == {**first, "nvml": "Unknown Error"}
    assert over_ranks([]) == {}
