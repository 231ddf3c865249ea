"""The GPUs of this host by UUID, who uses them, and how much of their memory; none where there is no driver."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.logs import get_logger
from orchestrator.records import GpuDevice

log = get_logger(__name__)

_NOTHING_VISIBLE = frozenset({"", "-1", "none", "void", "NoDevFiles"})


class Nvml(Protocol):
    """What we use of ``pynvml``."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: N802 (the library's names)
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: Any) -> str: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Any) -> str: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any: ...  # noqa: N802
    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]: ...  # noqa: N802
    def nvmlDeviceGetMigMode(self, handle: Any) -> Sequence[int]: ...  # noqa: N802


def load_nvml() -> Nvml | None:
    """Return the driver's library, or ``None`` where there is no NVIDIA driver."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as error:  # noqa: BLE001 (a broken driver must not keep a CPU worker from starting)
        log.debug("no_gpus", why=repr(error))
        return None
    library: Nvml = pynvml
    return library


class Gpus:
    """The devices that this worker may offer.

    :param mask: the worker's own ``CUDA_VISIBLE_DEVICES``: indices (in the order of the bus) or UUIDs; ``None``: all.
    :param is_ours: says whether a process belongs to a task of this host.
    """

    def __init__(self, nvml: Nvml | None, mask: str | None, is_ours: Callable[[int], bool]) -> None:
        self._nvml = nvml
        self._is_ours = is_ours
        self._handles = _visible(_handles(nvml), mask)

    def devices(self) -> tuple[GpuDevice, ...]:
        """Return the devices as they are now; one that can't be used says why."""
        return tuple(self._device(uuid, handle) for uuid, handle in self._handles.items())

    def obstacle(self, devices: Sequence[str]) -> str:
        """Return why these devices can't be handed to a task now; empty when they can."""
        for uuid in devices:
            if uuid not in self._handles:
                return f"this worker has no device {uuid}"
            try:
                others = self._processes(self._handles[uuid])
            except self._driver_error as error:
                return f"the driver can't say who uses device {uuid}: {error}"
            if others:
                return f"device {uuid} is used by {_describe(others[0].pid)}"
        return ""

    def used_memory(self, devices: Sequence[str]) -> int:
        """Return the bytes that processes hold on these devices."""
        handles = [self._handles[uuid] for uuid in devices if uuid in self._handles]
        try:
            return sum(process.usedGpuMemory or 0 for handle in handles for process in self._processes(handle))
        except self._driver_error:
            return 0

    def _device(self, uuid: str, handle: Any) -> GpuDevice:
        assert self._nvml is not None
        try:
            name, memory = self._nvml.nvmlDeviceGetName(handle), int(self._nvml.nvmlDeviceGetMemoryInfo(handle).total)
        except self._nvml.NVMLError as error:
            return GpuDevice(uuid, busy_with=f"the driver can't read it: {error}")
        why = "split by MIG, which is not placed on" if self._is_split(handle) else self._foreign_use(handle)
        return GpuDevice(uuid, model=name, memory=memory, busy_with=why)

    def _foreign_use(self, handle: Any) -> str:
        try:
            foreign = [process.pid for process in self._processes(handle) if not self._is_ours(process.pid)]
        except self._driver_error as error:
            return f"the driver can't say who uses it: {error}"
        return _describe(foreign[0]) if foreign else ""

    @property
    def _driver_error(self) -> type[Exception]:
        assert self._nvml is not None
        return self._nvml.NVMLError

    def _is_split(self, handle: Any) -> bool:
        assert self._nvml is not None
        try:
            return bool(self._nvml.nvmlDeviceGetMigMode(handle)[0])
        except self._nvml.NVMLError:  # a model that knows no MIG
            return False

    def _processes(self, handle: Any) -> list[Any]:
        assert self._nvml is not None
        return self._nvml.nvmlDeviceGetComputeRunningProcesses(handle)


def is_task_process(pid: int, attempts: Path) -> bool:
    """Say whether a process belongs to an attempt of any worker of this host: by its environment or its folder."""
    try:
        if b"ORCHESTRATOR_INCARNATION=" in Path(f"/proc/{pid}/environ").read_bytes():
            return True
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(attempts)
    except OSError:
        return False


def _handles(nvml: Nvml | None) -> dict[str, Any]:
    if nvml is None:
        return {}
    found: dict[str, Any] = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found[nvml.nvmlDeviceGetUUID(handle)] = handle
        except nvml.NVMLError as error:  # fallen off the bus
            log.warning("gpu_unreadable", index=index, error=str(error))
    return found


def _visible(handles: Mapping[str, Any], mask: str | None) -> dict[str, Any]:
    """Return what the mask lets through; like CUDA, stop at the first entry that names no device."""
    if mask is None:
        return dict(handles)
    uuids = list(handles)
    chosen: dict[str, Any] = {}
    for entry in () if mask.strip() in _NOTHING_VISIBLE else map(str.strip, mask.split(",")):
        if entry.isdigit():
            names = uuids[int(entry) : int(entry) + 1]
        else:
            names = [uuid for uuid in uuids if uuid.startswith(entry)]
        if len(names) != 1:
            break
        chosen[names[0]] = handles[names[0]]
    return chosen


def _describe(pid: int) -> str:
    try:
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"process {pid}"
