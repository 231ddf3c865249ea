"""The shape of a plan: positions instead of names, edges both ways, and each task's longest remaining path."""

from __future__ import annotations

from orchestrator.records import Plan


class Shape:
    """Worked out once per plan and shared by all its runs. Tasks are known by their position in the plan.

    The body of a container has a shape of its own, shared by all its indices and rounds.
    """

    __slots__ = (
        "bodies",
        "critical",
        "depth",
        "downstream",
        "outer_sources",
        "plan",
        "position",
        "remaining",
        "rules",
        "sources",
        "upstream",
    )

    def __init__(self, plan: Plan) -> None:
        tasks = plan.tasks
        self.plan = plan
        self.position = {task.name: at for at, task in enumerate(tasks)}
        self.bodies = tuple(None if task.body is None else Shape(task.body) for task in tasks)
        """By position; ``None`` where the task is no container."""
        self.upstream = tuple(tuple(self.position[name] for name in dict.fromkeys(task.upstream)) for task in tasks)
        down: list[list[int]] = [[] for _ in tasks]
        for at, ups in enumerate(self.upstream):
            for up in ups:
                down[up].append(at)
        self.downstream = tuple(tuple(positions) for positions in down)
        linked = tuple(tuple(link.source for link in task.links) for task in tasks)
        self.sources = tuple(
            tuple(dict.fromkeys((*ups, *(self.position[name] for name in names if name in self.position))))
            for ups, names in zip(self.upstream, linked, strict=True)
        )
        """Tasks whose outputs a task reads: its upstreams, and the ancestors its inputs are linked to."""
        self.outer_sources = tuple(tuple(name for name in names if name not in self.position) for names in linked)
        """Names of such ancestors outside of the body."""
        self.rules = tuple(task.trigger_rule for task in tasks)
        self.critical = tuple(task.critical for task in tasks)
        own = [1 if body is None else max(1, body.depth) for body in self.bodies]
        remaining = list(own)
        for at in range(len(tasks) - 1, -1, -1):
            for child in self.downstream[at]:
                remaining[at] = max(remaining[at], remaining[child] + own[at])
        self.remaining = tuple(remaining)
        """Tasks on the longest path from this one to a leaf, itself (or the longest path of its body) included."""
        self.depth: int = max(remaining, default=0)
