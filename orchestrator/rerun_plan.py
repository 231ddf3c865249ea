"""What a rerun would do, before it does it: which task runs run again, which are kept, and what of those is missing.

Pure. What runs again is worked out by the leader's own rules (``kernel.choosing``), on nodes made from the rows as its
own are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import InvalidDefinition, Problem
from orchestrator.kernel.choosing import Choice, chosen_by, tasks_named, with_all_below
from orchestrator.kernel.following import Following
from orchestrator.kernel.nodes import RunNode, TaskNode
from orchestrator.kernel.scopes import populate, recount
from orchestrator.kernel.shape import Shape
from orchestrator.records import Plan, RunRecord, TaskRunRecord
from orchestrator.states import RunState, TaskState

FAILED = "failed"
KEPT = frozenset({TaskState.SUCCESS, TaskState.SKIPPED})
NO_RUN = RunRecord("", "", RunState.FAILED)

Chosen = str | Sequence[str]
"""``failed``, ``all``, or names of task runs: ``train``, ``train[3]``, ``folds[2].train``; with the key of an item in
place of its index, and ``folds[2]`` for all of an index."""


@dataclass(frozen=True, slots=True)
class PastTask:
    """A task run of the run that is to run again."""

    id: str
    name: str
    state: TaskState
    parent_id: str | None = None
    map_index: int | None = None
    map_key: str = ""
    attempts: int = 0
    reason: str = ""
    resumed: bool = False
    """Of a container: whether it was to go on with what is inside of it, and did not come to that."""
    item: Any = None
    """Told, as ``outputs`` are, where what runs again hangs on it (``kernel.following``)."""
    outputs: Mapping[str, Any] | None = None
    begun: bool = True
    """Whether it had begun before it was over."""


@dataclass(frozen=True, slots=True)
class RerunPlan:
    """What a rerun would do."""

    chosen: tuple[str, ...]
    """Where it starts: what was asked for, and what has to join because its outputs are gone."""
    again: tuple[str, ...]
    """All that runs again; what a container of these is expanded into anew is not listed."""
    reused: tuple[str, ...]
    """What has succeeded (or was skipped) and is kept."""
    kept: tuple[str, ...]
    """What did not succeed and is kept all the same, for nobody has chosen it."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """By the name of a task run that joins for it, a sentence about what is gone."""
    why: Mapping[str, str] = field(default_factory=dict, compare=False)
    """By the name of each task run that runs again, a word: ``chosen``, ``gone``, ``inside`` (a part of what is inside
    of it runs again), ``setup`` (what it had set up was taken down), ``downstream``; of a new run also
    ``not_succeeded``, ``changed`` and ``parameters``."""
    read: tuple[str, ...] = field(default=(), compare=False)
    """Of what is kept, the task runs of the run that is over whose outputs something that runs again may read, with
    all inside of them."""


def plan_rerun(
    plan: Plan,
    past: Sequence[PastTask],
    chosen: Chosen,
    gone: Mapping[str, str] | None = None,
    *,
    run: RunRecord = NO_RUN,
) -> RerunPlan:
    """Work out what a rerun of a run of this plan would do.

    :param past: all task runs that count.
    :param gone: by the name of a task run, a sentence about an output of it that is not there any more. One that
        something that runs again may read runs again too.
    :param run: its id, pipeline and parameters are what maps may name.
    :raises InvalidDefinition: there is no task run of a name that was chosen.
    """
    known, gone = run_of(plan, past, run), gone or {}
    starts = _starts(known, chosen)
    missing: dict[str, str] = {}
    following = Following(known)
    while True:
        choice = with_all_below(known, starts, following)
        read = list(_read_by(choice))
        joining = [node for node in read if node.name in gone]
        if not joining:
            break
        missing.update({node.name: gone[node.name] for node in joining})
        starts += joining
    again, begun = set(choice.nodes), set(starts)

    def why(node: TaskNode) -> str:
        if node in choice.resumed:
            return "inside"
        if node in choice.setups:
            return "setup"
        if node not in begun:
            return "downstream"
        return "gone" if node.name in missing else "chosen"

    nodes = {node.id: node for node in known.tasks}
    ordered = [nodes[row.id] for row in past if row.id in nodes]
    anew = again - choice.resumed
    gone_on = [node for node in ordered if node not in again and not choice.is_cut(node)]
    kept = [node for node in gone_on if not any(scope.owner in anew for scope in node.scope.outward())]
    return RerunPlan(
        tuple(dict.fromkeys(node.name for node in starts)),
        tuple(node.name for node in ordered if node in again),
        tuple(node.name for node in kept if node.state in KEPT),
        tuple(node.name for node in kept if node.state not in KEPT),
        missing,
        {node.name: why(node) for node in ordered if node in again},
        tuple(node.name for node in read),
    )


def run_of(plan: Plan, past: Iterable[PastTask], record: RunRecord = NO_RUN) -> RunNode:
    """Return the run as the leader's rules see it."""
    run = RunNode(record, Shape(plan))
    rows = [
        TaskRunRecord(
            row.id,
            "",
            row.name,
            row.state,
            row.reason,
            attempts=row.attempts,
            parent_id=row.parent_id,
            map_index=row.map_index,
            map_key=row.map_key,
            item=row.item,
            outputs=row.outputs,
            resumed=row.resumed,
            begun=row.begun,
        )
        for row in past
    ]
    populate(run, rows)
    recount(run)
    return run


def _starts(run: RunNode, chosen: Chosen) -> list[TaskNode]:
    if not isinstance(chosen, str):
        unknown = [
            Problem(f"/from/{at}", f"The run has no task {name!r}.")
            for at, name in enumerate(chosen)
            if not tasks_named(run, name)
        ]
        if unknown:
            raise InvalidDefinition(unknown)
    return chosen_by(run, chosen)


def _read_by(choice: Choice) -> Iterator[TaskNode]:
    """Yield the kept task runs whose outputs something that runs again may read, with all inside of them."""
    again, open_nodes = set(choice.nodes), list(choice.nodes)
    seen = set(open_nodes)
    while open_nodes:
        node = open_nodes.pop()
        for at in node.scope.shape.upstream[node.position]:
            up = node.scope.tasks[at]
            if up not in seen:
                seen.add(up)
                open_nodes.append(up)
                yield from (inner for inner in _with_all_inside(up) if inner not in again)


def _with_all_inside(node: TaskNode) -> Iterator[TaskNode]:
    yield node
    for scope in [] if node.inside is None else node.inside.scopes:
        for inner in scope.tasks:
            yield from _with_all_inside(inner)
