"""Reruns as a new run, linked to the first, that takes over what is kept of it."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, select, text

from orchestrator.cache_key import may_read_all
from orchestrator.compile import Site, run_problems
from orchestrator.documents import all_texts
from orchestrator.errors import Conflict, InvalidDefinition, Problem
from orchestrator.expressions.templates import references
from orchestrator.kernel.choosing import with_all_below
from orchestrator.kernel.following import REUSED
from orchestrator.plan_json import plan_from_json
from orchestrator.records import Plan, PlannedTask
from orchestrator.rerun_plan import FAILED, KEPT, Chosen, PastTask, RerunPlan, plan_rerun, run_of
from orchestrator.states import TaskState
from orchestrator.store.beside_rows import planned_tasks
from orchestrator.store.definitions import find_run_target, read_version
from orchestrator.store.reruns import Past, gone_outputs, read_past, require_over
from orchestrator.store.run_requests import NewRun, NewTask, insert_run
from orchestrator.store.tables import runs, task_runs
from orchestrator.store.text_safety import storable_json

PINNED, LATEST = "pinned", "latest"

_INSIDE = text(
    "WITH RECURSIVE inside AS (SELECT id, parent_id FROM task_runs WHERE parent_id = ANY(CAST(:ids AS uuid[])) "
    "AND NOT superseded UNION ALL SELECT t.id, t.parent_id FROM inside i JOIN task_runs t "
    "ON t.parent_id = i.id AND NOT t.superseded) "
    "SELECT CAST(id AS text) AS id, CAST(parent_id AS text) AS parent_id FROM inside"
)
_TAKE_OVER = text(
    "UPDATE task_runs AS t SET state = o.state, reason = :reused, message = o.message, outputs = o.outputs, "
    "local_to = o.local_to, child_run_id = o.child_run_id, cached_from = COALESCE(o.cached_from, o.id), "
    "ready_at = o.ready_at, started_at = o.started_at, ended_at = o.ended_at FROM task_runs o "
    "WHERE t.run_id = :run AND t.name = o.name AND o.run_id = :origin AND o.parent_id IS NULL AND o.name = ANY(:names)"
).bindparams(reused=REUSED)
_COPY = text(
    "INSERT INTO task_runs (id, tenant_id, run_id, name, position, operator, state, reason, message, outputs, "
    "local_to, parent_id, map_index, map_key, item, child_run_id, cached_from, ready_at, started_at, ended_at) "
    "SELECT c.id, o.tenant_id, :run, o.name, o.position, o.operator, o.state, :reused, o.message, o.outputs, "
    "o.local_to, c.parent_id, o.map_index, o.map_key, o.item, o.child_run_id, COALESCE(o.cached_from, o.id), "
    "o.ready_at, o.started_at, o.ended_at FROM jsonb_to_recordset(CAST(:copies AS jsonb)) "
    "AS c(id uuid, parent_id uuid, origin uuid) JOIN task_runs o ON o.id = c.origin"
).bindparams(reused=REUSED)
_TELL = text(
    "INSERT INTO events (tenant_id, run_id, task, entity, entity_id, after, reason, message, cause, actor, epoch) "
    "SELECT tenant_id, run_id, name, 'task_run', id, state, reason, '', 'request', :actor, 0 FROM task_runs "
    "WHERE run_id = :run AND reason = :reused ORDER BY parent_id NULLS FIRST, map_index, position"
).bindparams(reused=REUSED)


@dataclass(frozen=True, slots=True)
class LinkedRerun:
    """A new run that takes over what it may of one that is over."""

    run_id: str
    """Of the new run."""
    actor: str
    triggered_by: str
    chosen: Chosen = FAILED
    version: str | int = PINNED
    """``pinned``: that of the first run. ``latest``: the pipeline's current one. Or its number."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Put over those of the first run."""


@dataclass(frozen=True, slots=True)
class _Planned:
    """A new run that may be started."""

    past: Past
    plan: Plan
    target: str
    """Id of the version that it follows."""
    parameters: Mapping[str, Any]
    priority: int
    does: RerunPlan


def preview_linked(connection: Connection, tenant_id: str, run_id: str, wanted: LinkedRerun, site: Site) -> RerunPlan:
    """Return what :func:`start_linked` would do, in names of the new run's own tasks; same errors."""
    return _planned(connection, tenant_id, run_id, wanted, site).does


def start_linked(connection: Connection, tenant_id: str, run_id: str, wanted: LinkedRerun, site: Site) -> RerunPlan:
    """Insert a new run that takes over what is kept of this one, and runs the rest.

    Besides what is chosen and what is downstream of it, everything runs that has not succeeded, that another version or
    other parameters make another task, or whose outputs are gone. A container is taken over as a whole or not at all.

    :raises NotFound: no such run of this tenant, or its pipeline was deleted.
    :raises Conflict: it has not ended, or nothing of it would run, or it was started again while it was read.
    :raises InvalidDefinition: a name is none of its tasks, or of the version's; its parameters are refused.
    """
    planned = _planned(connection, tenant_id, run_id, wanted, site)
    past, plan, found = planned.past, planned.plan, planned.does
    insert_run(
        connection,
        NewRun(
            id=wanted.run_id,
            tenant_id=tenant_id,
            pipeline_id=past.row.pipeline_id,
            version_id=planned.target,
            tasks=[NewTask(task.name, task.operator) for task in plan.tasks],
            parameters=planned.parameters,
            triggered_by=wanted.triggered_by,
            actor=wanted.actor,
            priority=planned.priority,
            trigger="rerun",
            rerun_of=run_id,
        ),
    )
    _take_over(connection, run_id, wanted, [name for name in found.reused if name in _names(plan)])
    _require_unchanged(connection, past)
    return found


def _planned(connection: Connection, tenant_id: str, run_id: str, wanted: LinkedRerun, site: Site) -> _Planned:
    past = read_past(connection, tenant_id, run_id)
    require_over(past.row)
    plan, target, defaults, priority = _version(connection, tenant_id, past, wanted)
    given = {**past.row.parameters, **wanted.parameters}
    if problems := run_problems(plan, given, site, defaults, wanted.parameters):
        raise InvalidDefinition(problems)
    found = _linked(connection, tenant_id, past, plan, wanted)
    if not found.again:
        raise Conflict(f"Nothing of run {run_id} would run again; name tasks, or run all of them with `all`.")
    return _Planned(past, plan, target, {**defaults, **given}, priority, found)


def _require_unchanged(connection: Connection, past: Past) -> None:
    """Refuse what was read of the run while the leader started it again: reading takes no lock, which that would wait
    for.

    Whatever changes a task run of a run that is over raises the run's generation, in the same transaction: where that
    is as it was before the first row was read, all rows were of one moment.

    :raises Conflict: it is not.
    """
    r = runs.c
    now = connection.execute(select(r.state, r.generation).where(r.id == past.id)).one()
    if (now.state, now.generation) != (past.row.state, past.row.generation):
        raise Conflict(f"Run {past.id} was run again or marked meanwhile; look at it, and ask again once it has ended.")


def _version(
    connection: Connection, tenant_id: str, past: Past, wanted: LinkedRerun
) -> tuple[Plan, str, Mapping[str, Any], int]:
    """Return the plan that the new run follows, its version's id, the definition's parameters and its priority."""
    row = past.row
    number = wanted.version if isinstance(wanted.version, int) else None
    if wanted.version == PINNED:
        number = read_version(connection, tenant_id, row.version_id)["version"]
    target = find_run_target(connection, tenant_id, pipeline_id=row.pipeline_id, version=number)
    stored = read_version(connection, tenant_id, target.version_id)
    try:
        plan = plan_from_json(stored["plan"])
    except ValueError as error:
        raise Conflict(f"Version {target.version} of {target.pipeline_name!r} can't be read here: {error}") from error
    definition = stored["definition"]
    return plan, target.version_id, definition.get("parameters", {}), int(definition.get("priority", 0))


def _linked(connection: Connection, tenant_id: str, past: Past, plan: Plan, wanted: LinkedRerun) -> RerunPlan:
    """Work out what the new run runs and takes over, task by task of its own plan."""
    names = _names(plan)
    if not isinstance(wanted.chosen, str):
        _require_names(wanted.chosen, names)
    top = [task for task in past.tasks if task.parent_id is None]
    former = {task.name: task for task in past.plan.tasks}
    states = {task.name: task.state for task in top}
    known = {name for name in names if name in former}
    chosen = wanted.chosen if isinstance(wanted.chosen, str) else [name for name in wanted.chosen if name in former]
    found = plan_rerun(past.plan, top, chosen)
    why = {name: "changed" for name in names if name not in known or former[name] != names[name]}
    why |= {name: "parameters" for name in known if name not in why and _reads(names[name], wanted.parameters)}
    why |= {name: "not_succeeded" for name in known if name not in why and states.get(name) not in KEPT}
    why |= {
        name: word for name, word in found.why.items() if name in names and (name in found.chosen or name not in why)
    }
    gone, missing = _gone_at_top(connection, tenant_id, past), dict[str, str]()
    while True:
        below = _with_all_below(plan, top, why)
        read = [name for name in _ancestors(plan, below) if name not in below]
        joining = [name for name in read if name in gone]
        if not joining:
            break
        # What runs may read it, for whatever cause it runs.
        why |= dict.fromkeys(joining, "gone")
        missing |= {name: gone[name] for name in joining}
    why |= {name: "setup" for name in below if name not in why and below[name]}
    return RerunPlan(
        (*(name for name in found.chosen if name in names), *missing),
        tuple(name for name in names if name in below),
        tuple(name for name in names if name not in below),
        (),
        missing,
        {name: why.get(name, "downstream") for name in names if name in below},
        _with_inside(past, read),
    )


def _gone_at_top(connection: Connection, tenant_id: str, past: Past) -> dict[str, str]:
    """Return what is gone by the names of the run's own tasks: containers are taken over as a whole."""
    by_id = {task.id: task for task in past.tasks}
    by_name = {task.name: task for task in past.tasks}
    found: dict[str, str] = {}
    for name, why in gone_outputs(connection, tenant_id, past.id).items():
        task = by_name.get(name)
        while task is not None and task.parent_id is not None:
            task = by_id.get(task.parent_id)
        if task is not None:
            found.setdefault(task.name, why)
    return found


def _require_names(chosen: Any, names: Mapping[str, PlannedTask]) -> None:
    problems = []
    for at, name in enumerate(chosen):
        if name in names:
            continue
        message = f"The version that is to run has no task {name!r}; it was removed or renamed."
        if "[" in name:
            message = f"{name!r} is an index of a container; a new run runs {name.partition('[')[0]!r} as a whole."
        problems.append(Problem(f"/from/{at}", message))
    if problems:
        raise InvalidDefinition(problems)


def _names(plan: Plan) -> dict[str, PlannedTask]:
    return {task.name: task for task in plan.tasks}


def _reads(task: PlannedTask, patched: Mapping[str, Any]) -> bool:
    """Say whether a change of these parameters of the run may make it another task."""
    if not patched:
        return False
    for _, one in planned_tasks(Plan((task,))):
        written = [one.templated, one.map.over if one.map else None, one.map.key if one.map else ""]
        written += [one.child.parameters if one.child else None, list(one.cache.key) if one.cache else []]
        named = {path[1] for path in references(written) if path[0] == "params" and len(path) > 1}
        if named & patched.keys() or any(wanted.parameter in patched for wanted in one.run_inputs):
            return True
        if any(link.parameter in patched for link in one.links) or ("params",) in references(written):
            return True
        conditions = [one.when, one.repeat.until if one.repeat else ""]
        if any("params" in condition for condition in all_texts(conditions)):
            return True
        # A run that is a task inherits them, and what is not known to read its inputs alone may read them all.
        if (one.child is not None and one.child.inherit) or may_read_all(one):
            return True
    return False


def _with_all_below(plan: Plan, top: Sequence[PastTask], names: Iterable[str]) -> dict[str, bool]:
    """Return what of the new run runs with these tasks, by the rules of a rerun in place; and whether it does because a
    teardown of the first run has taken down what it had set up."""
    past = {task.name: replace(task, id=task.name) for task in top}
    run = run_of(plan, [past.get(task.name, PastTask(task.name, task.name, TaskState.PENDING)) for task in plan.tasks])
    wanted = set(names)
    choice = with_all_below(run, [node for node in run.root.tasks if node.name in wanted])
    return {node.name: node in choice.setups for node in choice.nodes}


def _ancestors(plan: Plan, names: Collection[str]) -> list[str]:
    """Return what is upstream of these tasks, however far, in the plan's order; with those of them that are."""
    found: set[str] = set()
    for task in reversed(plan.tasks):
        if task.name in names or task.name in found:
            found.update(task.upstream)
    return [task.name for task in plan.tasks if task.name in found]


def _with_inside(past: Past, names: Sequence[str]) -> tuple[str, ...]:
    """Return the task runs of the run that is over that are these of its own tasks, or inside of them."""
    parents = {task.id: task.parent_id for task in past.tasks}
    wanted = {task.id for task in past.tasks if task.parent_id is None and task.name in names}

    def outermost(id_: str) -> str:
        while (parent := parents.get(id_)) is not None:
            id_ = parent
        return id_

    return tuple(task.name for task in past.tasks if outermost(task.id) in wanted)


def _take_over(connection: Connection, origin: str, wanted: LinkedRerun, names: list[str]) -> None:
    """Let these tasks of the new run be what they are in its origin, with all inside of them."""
    if not names:
        return
    connection.execute(_TAKE_OVER, {"run": wanted.run_id, "origin": origin, "names": names})
    t = task_runs.c
    ids = {
        (row.run_id, row.name): row.id
        for row in connection.execute(
            select(t.id, t.run_id, t.name).where(
                t.run_id.in_([origin, wanted.run_id]), t.name.in_(names), t.parent_id.is_(None)
            )
        )
    }
    new_ids = {ids[origin, name]: ids[wanted.run_id, name] for name in names}
    inside = connection.execute(_INSIDE, {"ids": list(new_ids)}).all()
    new_ids |= {row.id: str(uuid.uuid4()) for row in inside}
    copies = [{"id": new_ids[row.id], "parent_id": new_ids[row.parent_id], "origin": row.id} for row in inside]
    if copies:
        connection.execute(_COPY, {"run": wanted.run_id, "copies": storable_json(copies)})
    connection.execute(_TELL, {"run": wanted.run_id, "actor": wanted.actor})
