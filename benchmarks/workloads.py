"""The workloads, by name: how many tasks, and their shape as our pipeline definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Workload:
    """``chain``: each task after the one before. ``fan``: one, then ``size`` side by side, then one."""

    name: str
    size: int

    @property
    def tasks(self) -> int:
        """How many tasks it consists of."""
        return self.size if self.name == "chain" else self.size + 2

    def definition(self) -> dict[str, Any]:
        """Return the pipeline that does this work with no-op tasks."""
        if self.name == "chain":
            upstream = {f"t{i}": [f"t{i - 1}"] if i else [] for i in range(self.size)}
        else:
            middle = [f"m{i}" for i in range(self.size)]
            upstream = {"first": [], **{name: ["first"] for name in middle}, "last": middle}
        tasks = [
            {"name": name, "operator": "noop", "upstream_tasks": above, "cpu": 0.01, "memory_gb": 0.05}
            for name, above in upstream.items()
        ]
        return {"name": f"bench-{self.name}-{self.size}", "tasks": tasks}


def standard(chain: int, fan: int) -> tuple[Workload, ...]:
    """Return the workloads at these sizes."""
    return (Workload("chain", chain), Workload("fan", fan))
