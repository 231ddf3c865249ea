"""The shape of a plan: positions instead of names, edges both ways, and each task's longest remaining path."""

from __future__ import annotations

from orchestrator.records import Plan


class Shape:
    """Worked out once per plan and shared by all its runs. Tasks are known by their position in the plan."""

    __slots__ = ("critical", "downstream", "plan", "position", "remaining", "rules", "sources", "upstream")

    def __init__(self, plan: Plan) -> None:
        tasks = plan.tasks
        self.plan = plan
        self.position = {task.name: at for at, task in enumerate(tasks)}
        self.upstream = tuple(tuple(self.position[name] for name in dict.fromkeys(task.upstream)) for task in tasks)
        down: list[list[int]] = [[] for _ in tasks]
        for at, ups in enumerate(self.upstream):
            for up in ups:
                down[up].append(at)
        self.downstream = tuple(tuple(positions) for positions in down)
        self.sources = tuple(
            tuple(dict.fromkeys((*self.upstream[at], *(self.position[link.source] for link in task.links))))
            for at, task in enumerate(tasks)
        )
        """Tasks whose outputs a task reads: its upstreams, and the ancestors its inputs are linked to."""
        self.rules = tuple(task.trigger_rule for task in tasks)
        self.critical = tuple(task.critical for task in tasks)
        remaining = [1] * len(tasks)
        for at in range(len(tasks) - 1, -1, -1):
            for child in self.downstream[at]:
                remaining[at] = max(remaining[at], remaining[child] + 1)
        self.remaining = tuple(remaining)
        """Tasks on the longest path from this one to a leaf, itself included."""
