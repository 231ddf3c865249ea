"""Runs that are tasks of other runs: made by the leader, in the transaction of the transition that asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select

from orchestrator.compile import Site, run_problems
from orchestrator.effects import StartChild
from orchestrator.errors import InvalidDefinition, NotFound
from orchestrator.events import ChildRefused, RunSubmitted
from orchestrator.store.definitions import find_run_target, read_version
from orchestrator.store.loader import load_runs
from orchestrator.store.plans import PlanCache
from orchestrator.store.run_requests import NewRun, NewTask, insert_run
from orchestrator.store.tables import pipelines, runs

MOST_DEPTH = 8
"""How many runs a run may be inside of: a pipeline that runs itself must end."""


def start_child(
    connection: Connection, plans: PlanCache, effect: StartChild, inherited: Mapping[str, Any], site: Site, now: float
) -> RunSubmitted | ChildRefused | None:
    """Insert the run with its task runs and return it as submitted, or why it can't be.

    ``None`` while its pipeline is paused: it is queued, and is taken in like any other when the pipeline goes on.

    :param inherited: parameters of the run that it is a task of.
    """
    if effect.depth > MOST_DEPTH:
        message = f"Runs lie at most {MOST_DEPTH} deep inside of each other, and this one would be deeper."
        return ChildRefused(effect.task_run_id, message)
    if connection.execute(select(runs.c.id).where(runs.c.id == effect.child_run_id)).first() is None:
        try:
            _insert(connection, plans, effect, inherited, site)
        except NotFound as error:
            return ChildRefused(effect.task_run_id, f"{error} Save it, or name another one.")
        except InvalidDefinition as error:
            return ChildRefused(effect.task_run_id, f"Its run can't start: {error}")
        except ValueError as error:
            return ChildRefused(effect.task_run_id, f"The plan of {effect.child.pipeline!r} can't be read: {error}")
    return _submitted(connection, plans, effect, now)


def _insert(
    connection: Connection, plans: PlanCache, effect: StartChild, inherited: Mapping[str, Any], site: Site
) -> None:
    child = effect.child
    target = find_run_target(connection, effect.tenant_id, name=child.pipeline, version=child.version)
    found = plans.get(connection, {target.version_id})
    if (why := found.unreadable.get(target.version_id)) is not None:
        raise ValueError(why)
    plan = found.readable[target.version_id]
    defaults = read_version(connection, effect.tenant_id, target.version_id)["definition"].get("parameters", {})
    given = {**(inherited if child.inherit else {}), **effect.parameters}
    if problems := run_problems(plan, given, site, defaults):
        raise InvalidDefinition(problems)
    parent = connection.execute(select(runs.c.triggered_by).where(runs.c.id == effect.run_id)).scalar_one()
    insert_run(
        connection,
        NewRun(
            id=effect.child_run_id,
            tenant_id=effect.tenant_id,
            pipeline_id=target.pipeline_id,
            version_id=target.version_id,
            tasks=[NewTask(task.name, task.operator) for task in plan.tasks],
            parameters={**defaults, **given},
            triggered_by=parent,
            actor="scheduler",
            priority=effect.priority,
            trigger="pipeline",
            parent_run_id=effect.run_id,
            parent_task_run_id=effect.task_run_id,
            depth=effect.depth,
        ),
    )


def _submitted(connection: Connection, plans: PlanCache, effect: StartChild, now: float) -> RunSubmitted | None:
    is_paused = connection.execute(
        select(pipelines.c.paused)
        .join(runs, pipelines.c.id == runs.c.pipeline_id)
        .where(runs.c.id == effect.child_run_id)
    ).scalar_one()
    if is_paused:
        return None
    return next((replace(run, hold=False) for run in load_runs(connection, plans, now, [effect.child_run_id])), None)
