"""Holds a run that has ended by itself against its plan: each task run is what its upstreams and its inside came to.

Once more and naively: whatever a rerun, a new leader or the order of events has done on the way, the end has to look as
if the run had been run just so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.records import PlannedTask, TaskRunRecord
from orchestrator.states import TaskState
from tests.unit.rule_oracle import settled_as
from tests.unit.simulated_graph import Graph, possible_ends

DECIDED = frozenset({"", "index_failed", "all_skipped", "round_failed", "round_skipped", "max_rounds"})
"""Reasons of containers that were decided by what is inside of them."""


def differences(graph: Graph) -> Iterator[str]:
    """Yield, as sentences, what of this run is not as its plan has it."""
    yield from _of_scope(graph, [row for row in graph.rows if row.parent_id is None])


def _of_scope(graph: Graph, rows: list[TaskRunRecord]) -> Iterator[str]:
    for row in rows:
        task = graph.planned(row)
        states = [state for state in graph.upstream_states(row) if state is not None]
        rule = "all_done" if task.teardown else task.trigger_rule
        was = _was(row, rule)
        if was and (said := settled_as(rule, states)) != was:
            yield f"{row.name} is {row.state} ({row.reason}), and rule {rule} says {said} of {states}"
        if task.body is not None:
            yield from _of_inside(graph, row, task)


def _was(row: TaskRunRecord, rule: str) -> str:
    """Return what its rule has said of it; empty: it was stopped, and nobody knows."""
    if row.state is TaskState.CANCELLED:
        return ""
    if row.state is TaskState.UPSTREAM_FAILED:
        return "upstream_failed"
    return "skip" if row.state is TaskState.SKIPPED and row.reason == rule and not row.begun else "run"


def _of_inside(graph: Graph, row: TaskRunRecord, task: PlannedTask) -> Iterator[str]:
    inside = graph.inside(row)
    for index in sorted(inside):
        yield from _of_scope(graph, inside[index])
    if not row.begun:
        if inside and not row.resumed:
            yield f"{row.name} is {row.state} ({row.reason}), and there is something left inside of it"
        return
    if sorted(inside) != list(range(len(inside))):
        yield f"{row.name} has indices or rounds {sorted(inside)}"
    if row.reason not in DECIDED or row.state is TaskState.CANCELLED:
        return
    results = graph.results(row)
    if task.map is not None:
        if possible_ends(task.map, results) != {row.state}:
            yield f"{row.name} is {row.state} with {results}"
        wanted, items = _items(graph, row, task), [inside[index][0].item for index in sorted(inside)]
        if wanted is not None and not _is_same(items, wanted):
            yield f"{row.name} went over {items}, and would now over {wanted}"
    elif task.repeat is not None:
        yield from _of_rounds(row, task, results)


def _of_rounds(row: TaskRunRecord, task: PlannedTask, results: list[TaskState | None]) -> Iterator[str]:
    assert task.repeat is not None
    after = TaskState.SUCCESS
    if row.reason == "max_rounds":
        after = TaskState.SUCCESS if task.repeat.on_max == "succeed" else TaskState.FAILED
        if len(results) != task.repeat.max:
            yield f"{row.name} has ended by max_rounds after {len(results)}"
    elif row.reason:
        after = TaskState.FAILED if row.reason == "round_failed" else TaskState.SKIPPED
    last = after if row.reason in ("round_failed", "round_skipped") else TaskState.SUCCESS
    if row.state is not after or results != [*[TaskState.SUCCESS] * (len(results) - 1), last]:
        yield f"{row.name} is {row.state} ({row.reason}) after rounds {results}"


def _items(graph: Graph, row: TaskRunRecord, task: PlannedTask) -> list[Any] | None:
    """Return what the map would go over by what there is now; ``None``: only the rules can tell."""
    assert task.map is not None
    over = task.map.over
    if isinstance(over, list):
        return None if "{{" in str(over) else over
    if isinstance(over, dict):
        return list(range(over["range"])) if isinstance(over.get("range"), int) else None
    names = [name for name in task.upstream if str(over).startswith(f"{{{{ tasks.{name}.outputs")]
    if not names:
        return None
    above = graph.beside(row)[names[0]]
    if str(over) == f"{{{{ tasks.{names[0]}.outputs }}}}":
        return _left_by(graph, above)
    left = above.outputs or {}
    found = [value for key, value in left.items() if str(over) == f"{{{{ tasks.{names[0]}.outputs.{key} }}}}"]
    return found[0] if found and isinstance(found[0], list) else None


def _is_same(items: list[Any], wanted: list[Any]) -> bool:
    """Say whether it went over this. What it found nothing in was maybe still open above, in a map decided early."""
    return len(items) == len(wanted) and all(item in (None, want) for item, want in zip(items, wanted, strict=True))


def _left_by(graph: Graph, row: TaskRunRecord) -> list[Any] | None:
    """Return what a map of single tasks has left."""
    task = graph.planned(row)
    if task.map is None or task.is_group or task.body is None or task.body.tasks[0].body is not None:
        return None
    inside = graph.inside(row)
    own = [inside[index][0] for index in sorted(inside)]
    return [one.outputs if one.state is TaskState.SUCCESS else None for one in own]
