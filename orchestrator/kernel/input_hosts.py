"""Hosts that alone hold what task runs read; what many read around their container is looked up once for all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from orchestrator.kernel.nodes import TaskNode


class InputHosts:
    """What was looked up while one event is decided."""

    __slots__ = ("_around",)

    def __init__(self) -> None:
        self._around: dict[tuple[str, int], Mapping[str, None]] = {}
        """By container, and position of a task in it."""

    def begin(self) -> None:
        """Another event is decided, and may change where outputs lie."""
        self._around.clear()

    def of(self, node: TaskNode) -> Mapping[str, None]:
        """Return the hosts that alone hold outputs that the task reads, in its own scope and around it."""
        if not node.run.home:
            # No host alone holds any output of its run.
            return {}
        owner, hosts = node.scope.owner, dict.fromkeys(_hosts(node.sources_within()))
        if owner is None:
            return hosts
        around = self._around.get((owner.id, node.position))
        if around is None:
            around = {**dict.fromkeys(_hosts(node.sources_around())), **self.of(owner)}
            self._around[owner.id, node.position] = around
        return {**hosts, **around}


def _hosts(sources: Iterable[TaskNode]) -> Iterator[str]:
    return (host for source in sources for host in source.hosts())
