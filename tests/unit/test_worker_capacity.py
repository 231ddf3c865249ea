"""What a host offers: parsing of limits, and GPUs through a fake driver."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.config import GIB, load_settings
from orchestrator.records import Capacity, GpuDevice
from workers import capacity, cgroups
from workers.gpus import Gpus, is_task_process


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None), ("max", None), ("0 100000", None), ("5 0", None)],
)
def test_a_cpu_quota_is_read_as_cores(text: str, cores: float | None) -> None:
    assert capacity.parse_cpu_max(text) == cores


@pytest.mark.parametrize(
    ("text", "limit"), [("1073741824\n", GIB), ("max\n", None), ("9223372036854771712", None), ("", None), ("-1", None)]
)
def test_a_memory_limit_is_read_as_bytes(text: str, limit: int | None) -> None:
    assert capacity.parse_memory_limit(text) == limit


def fake_cgroups(tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cgroups, "MOUNT", tmp_path)
    monkeypatch.setattr(cgroups, "own_group", lambda controller: tmp_path / "a/b" if not controller else None)


def test_the_smallest_limit_above_us_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000", "a/b/memory.max": "max", "a/memory.max": "4096"}
    fake_cgroups(tmp_path, files, monkeypatch)
    assert capacity.cpu_quota() == 1.0
    assert capacity.memory_limit() == 4096


@pytest.mark.parametrize(
    ("limit", "offered"),
    [
        (None, 16 * GIB),
        (16 * GIB, 16 * GIB),
        (2**40, 16 * GIB),
        (4 * GIB, 4 * GIB - capacity.OWN_MEMORY),
        (GIB, GIB - capacity.OWN_MEMORY),
        (GIB // 4, GIB // 8),
    ],
)
def test_of_a_limit_on_its_memory_the_worker_keeps_its_own_share(limit: int | None, offered: int) -> None:
    assert capacity.memory_for_tasks(16 * GIB, limit) == offered


def test_a_setting_below_what_the_limit_leaves_is_offered_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_cgroups(tmp_path, {"a/memory.max": str(GIB), "a/b/memory.max": "max"}, monkeypatch)
    assert capacity.measure(load_settings({}), ()).memory == GIB - capacity.OWN_MEMORY
    assert capacity.measure(load_settings({"MAX_MEMORY_GB": "0.5"}), ()).memory == GIB // 2


def test_no_cgroup_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cgroups(tmp_path, {}, monkeypatch)
    assert capacity.cpu_quota() is None
    assert capacity.memory_limit() is None


def test_settings_lower_what_is_measured_and_never_raise_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cgroups(tmp_path, {}, monkeypatch)
    devices = (GpuDevice("GPU-1"), GpuDevice("GPU-2"))
    low = load_settings({"MAX_CPU_CORES": "0.5", "MAX_MEMORY_GB": "0.25", "MAX_GPU_COUNT": "1"})
    assert capacity.measure(low, devices) == Capacity(500, GIB // 4, devices[:1])
    high = load_settings({"MAX_CPU_CORES": "4096", "MAX_MEMORY_GB": "1e6", "MAX_GPU_COUNT": "64"})
    measured = capacity.measure(load_settings({}), devices)
    assert capacity.measure(high, devices) == measured
    assert measured.cpu == len(os.sched_getaffinity(0)) * 1000


class NvmlError(Exception):
    pass


class FakeNvml:
    """Two devices; the second is told to be broken, split or busy by the tests."""

    NVMLError: type[Exception] = NvmlError

    def __init__(self) -> None:
        self.processes: dict[int, list[Any]] = {0: [], 1: []}
        self.split = {0: False, 1: False}
        self.broken = {0: False, 1: False}
        self.silent = {0: False, 1: False}

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{'ab'[handle]}000"

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        if self.broken[handle]:
            raise NvmlError("GPU is lost")
        return "H200"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=80 * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:  # noqa: N802
        if self.silent[handle]:
            raise NvmlError("Unknown Error")
        return self.processes[handle]

    def nvmlDeviceGetMigMode(self, handle: int) -> Sequence[int]:  # noqa: N802
        if handle == 0:
            raise NvmlError("Not Supported")
        return [int(self.split[handle]), 0]


def test_no_driver_is_no_devices() -> None:
    gpus = Gpus(None, None, lambda pid: False)
    assert gpus.devices() == ()
    assert gpus.obstacle([]) == ""
    assert "no device" in gpus.obstacle(["GPU-a000"])


@pytest.mark.parametrize(
    ("mask", "uuids"),
    [
        (None, ["GPU-a000", "GPU-b000"]),
        ("", []),
        ("-1", []),
        ("1", ["GPU-b000"]),
        ("1,0", ["GPU-b000", "GPU-a000"]),
        ("GPU-b", ["GPU-b000"]),
        ("0,7,1", ["GPU-a000"]),
        ("GPU-", []),
    ],
)
def test_the_workers_own_mask_hides_devices(mask: str | None, uuids: list[str]) -> None:
    assert [device.uuid for device in Gpus(FakeNvml(), mask, lambda pid: False).devices()] == uuids


def test_a_foreign_process_makes_a_device_busy_and_one_of_ours_does_not() -> None:
    nvml = FakeNvml()
    nvml.processes[0] = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=7)]
    theirs = Gpus(nvml, None, lambda pid: False)
    assert str(os.getpid()) in theirs.devices()[0].busy_with
    assert theirs.devices()[1].busy_with == ""
    ours = Gpus(nvml, None, lambda pid: True)
    assert ours.devices()[0].busy_with == ""
    assert "is used by" in ours.obstacle(["GPU-a000"]), "not handed out again before it is free"
    assert ours.used_memory(["GPU-a000", "GPU-b000"]) == 7


def test_a_device_whose_users_the_driver_can_not_name_is_not_handed_out() -> None:
    nvml = FakeNvml()
    nvml.silent[0] = True
    gpus = Gpus(nvml, None, lambda pid: True)
    assert "Unknown Error" in gpus.obstacle(["GPU-a000"])
    assert "Unknown Error" in gpus.devices()[0].busy_with
    assert gpus.obstacle(["GPU-b000"]) == gpus.devices()[1].busy_with == ""
    assert gpus.used_memory(["GPU-a000"]) == 0


def test_a_broken_or_split_device_says_why_it_is_not_offered() -> None:
    nvml = FakeNvml()
    nvml.broken[0] = True
    nvml.split[1] = True
    first, second = Gpus(nvml, None, lambda pid: False).devices()
    assert "GPU is lost" in first.busy_with
    assert "MIG" in second.busy_with


def test_a_process_of_a_task_is_known_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_task_process(os.getpid(), tmp_path)
    monkeypatch.chdir(tmp_path)
    assert is_task_process(os.getpid(), tmp_path)
    assert not is_task_process(2**22 + 1, tmp_path)
