"""What this host offers: the least of what it has, what its cgroup allows and what the site sets (``MAX_*``)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from orchestrator.config import GIB, Settings
from orchestrator.records import Capacity, GpuDevice
from workers import cgroups

OWN_MEMORY = GIB // 4
"""What the worker itself needs of a limit under which it lives with its tasks. Measured: 86 MiB idle, its fork server
among them; a supervisor per attempt, and what its libraries load, come on top."""
_NO_LIMIT = 2**62
"""cgroup v1 says "no limit" as the largest multiple of a page."""


def measure(settings: Settings, gpus: tuple[GpuDevice, ...]) -> Capacity:
    """Return the capacity of this host for our tasks."""
    cpu = min(float(len(os.sched_getaffinity(0))), cpu_quota() or math.inf, settings.max_cpu_cores or math.inf)
    ceiling = settings.max_memory_gb * GIB if settings.max_memory_gb else math.inf
    memory = min(memory_for_tasks(total_memory(Path("/proc/meminfo").read_text()), memory_limit()), ceiling)
    count = len(gpus) if settings.max_gpu_count is None else settings.max_gpu_count
    return Capacity(cpu=int(cpu * 1000), memory=int(memory), gpus=gpus[:count])


def memory_for_tasks(total: int, limit: int | None) -> int:
    """Return what tasks may have of the machine's memory; of a limit the worker keeps its own share, at most half."""
    if limit is None or limit >= total:
        return total
    return limit - min(OWN_MEMORY, limit // 2)


def total_memory(meminfo: str) -> int:
    """Return the bytes of memory in the text of ``/proc/meminfo``."""
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/meminfo names no MemTotal")


def cpu_quota() -> float | None:
    """Return the cores that our cgroup and those above it allow; ``None`` without a limit."""
    found = [parse_cpu_max(text) for text in _texts("", "cpu.max")]
    for group in _lineage("cpu"):
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        found.append(parse_cpu_max(f"{'max' if quota.startswith('-') else quota} {period}"))
    limits = [limit for limit in found if limit is not None]
    return min(limits, default=None)


def parse_cpu_max(text: str) -> float | None:
    """Read ``<quota µs or max> <period µs>``; ``None`` when there is no limit."""
    words = text.split()
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0 or int(words[0]) == 0:
        return None
    return int(words[0]) / int(words[1])


def memory_limit() -> int | None:
    """Return the bytes that our cgroup and those above it allow; ``None`` without a limit."""
    texts = [*_texts("", "memory.max"), *_texts("memory", "memory.limit_in_bytes")]
    limits = [limit for limit in map(parse_memory_limit, texts) if limit is not None]
    return min(limits, default=None)


def parse_memory_limit(text: str) -> int | None:
    """Read a limit in bytes; ``None`` for ``max``, for v1's way to say so, and for nothing."""
    word = text.strip()
    return int(word) if word.isdigit() and 0 < int(word) < _NO_LIMIT else None


def _texts(controller: str, file: str) -> Iterator[str]:
    for group in _lineage(controller):
        yield _text(group / file)


def _lineage(controller: str) -> Iterator[Path]:
    """Yield our cgroup and those above it, up to the mount: any of them may hold the limit."""
    group = cgroups.own_group(controller)
    while group is not None and group.is_relative_to(cgroups.MOUNT) and group != cgroups.MOUNT.parent:
        yield group
        group = group.parent


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
