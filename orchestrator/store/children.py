"""Runs that are tasks of other runs: made by the leader, many at a time, in the transaction that submits them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, select, text

from orchestrator.compile import Site, run_problems
from orchestrator.effects import StartChild
from orchestrator.errors import InvalidDefinition, NotFound
from orchestrator.events import ChildRefused, RunSubmitted
from orchestrator.records import Plan
from orchestrator.store.definitions import find_run_target, read_version
from orchestrator.store.loader import MOST_TASKS, load_runs
from orchestrator.store.plans import PlanCache
from orchestrator.store.run_requests import NewRun, NewTask, insert_runs
from orchestrator.store.tables import pipelines, runs

MOST_DEPTH = 8
"""How many runs a run may be inside of: a pipeline that runs itself must end."""
MOST_BELOW = 10_000
"""Runs that may be made below one that is no task itself, at whatever depth, since it was last started: a map of 100
over its own pipeline would come to 10¹⁶ within the depth that is allowed."""

# A run whose parent is gone stands for itself.
_ROOTS = text(
    "WITH RECURSIVE up AS ("
    "SELECT id AS asked, id, parent_run_id, 0 AS steps FROM runs WHERE id = ANY(CAST(:ids AS uuid[])) "
    "UNION ALL SELECT up.asked, r.id, r.parent_run_id, steps + 1 FROM up JOIN runs r ON r.id = up.parent_run_id "
    "WHERE steps < 100) "
    "SELECT DISTINCT ON (asked) CAST(asked AS text) AS asked, CAST(up.id AS text) AS root, r.runs_below "
    "FROM up JOIN runs r ON r.id = up.id ORDER BY asked, steps DESC"
)
_COUNT = text(
    "UPDATE runs SET runs_below = runs_below + made FROM jsonb_to_recordset(CAST(:made AS jsonb)) "
    "AS m(root uuid, made int) WHERE id = root"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A run that a task asks to be."""

    effect: StartChild
    inherited: Mapping[str, Any]
    """Parameters of the run that it is a task of."""


def start_children(
    connection: Connection,
    plans: PlanCache,
    asked: Iterable[Asked],
    site: Site,
    now: float,
    *,
    most_tasks: int = MOST_TASKS,
    most_below: int = MOST_BELOW,
) -> dict[str, RunSubmitted | ChildRefused | None]:
    """Insert the runs with their task runs; return what became of each by its id, in their order.

    - As many are made as come to ``most_tasks`` task runs, and the first in any case. What is missing among the answers
      is to be asked again.
    - One that can't be made is refused, with a sentence; so is one more than ``most_below`` below the same run.
    - ``None`` while its pipeline is paused: it is queued, and is taken in like any other when the pipeline goes on.
    """
    wanted = {one.effect.child_run_id: one for one in asked}
    there = set(connection.execute(select(runs.c.id).where(runs.c.id.in_(list(wanted)))).scalars())
    below = _Below(connection, {one.effect.run_id for id_, one in wanted.items() if id_ not in there}, most_below)
    made, found = _Made(connection, plans, site, below), dict[str, RunSubmitted | ChildRefused | None]()
    for id_, one in wanted.items():
        if id_ not in there:
            if made.tasks >= most_tasks:
                break
            if (why := made.add(one)) is not None:
                found[id_] = ChildRefused(one.effect.task_run_id, why)
                continue
        found[id_] = None
    insert_runs(connection, made.runs)
    below.save()
    for submitted in _submitted(connection, plans, [id_ for id_, answer in found.items() if answer is None], now):
        found[submitted.run.id] = submitted
    return found


@dataclass(frozen=True, slots=True)
class _Target:
    """What a run of it begins with."""

    pipeline_id: str
    version_id: str
    plan: Plan
    defaults: Mapping[str, Any]


class _Below:
    """How many runs there are below those that are no tasks themselves. Only the leader makes any, in the transaction
    that counts them."""

    def __init__(self, connection: Connection, parents: Collection[str], most: int) -> None:
        """Read it for the runs around these."""
        self._connection = connection
        self._most = most
        rows = connection.execute(_ROOTS, {"ids": sorted(parents)}).all() if parents else []
        self._roots: dict[str, str] = {row.asked: row.root for row in rows}
        self._known: dict[str, int] = {row.root: row.runs_below for row in rows}
        self._made: Counter[str] = Counter()

    def refusal(self, parent_run_id: str) -> str | None:
        """Return why no more may be made in this run."""
        root = self._roots[parent_run_id]
        if self._known[root] + self._made[root] < self._most:
            return None
        return (
            f"{self._most} runs have been made below run {root} since it was started, and no more are allowed. Go over "
            "fewer items, or see to it that no pipeline runs itself."
        )

    def count(self, parent_run_id: str) -> None:
        self._made[self._roots[parent_run_id]] += 1

    def save(self) -> None:
        """Write what was made, so that whoever leads next goes on counting."""
        if self._made:
            made = [{"root": root, "made": count} for root, count in sorted(self._made.items())]
            self._connection.execute(_COUNT, {"made": json.dumps(made)})


class _Made:
    """The runs of one transaction, which often are of the same pipeline and the same parent."""

    def __init__(self, connection: Connection, plans: PlanCache, site: Site, below: _Below) -> None:
        self.runs: list[NewRun] = []
        self.tasks = 0
        self._connection = connection
        self._plans = plans
        self._site = site
        self._below = below
        self._targets: dict[tuple[str, str, int | None], _Target | str] = {}
        self._triggered_by: dict[str, str] = {}

    def add(self, one: Asked) -> str | None:
        """Add the run that is asked for; returns why it can't be made."""
        effect, child = one.effect, one.effect.child
        if effect.depth > MOST_DEPTH:
            return f"Runs lie at most {MOST_DEPTH} deep inside of each other, and this one would be deeper."
        if (why := self._below.refusal(effect.run_id)) is not None:
            return why
        key = (effect.tenant_id, child.pipeline, child.version)
        target = self._targets.get(key)
        if target is None:
            target = self._targets[key] = self._find(*key)
        if isinstance(target, str):
            return target
        given = {**(one.inherited if child.inherit else {}), **effect.parameters}
        # What a definition hands on is not held against the other one's parameters here: its save warns of it.
        if problems := run_problems(target.plan, given, self._site, target.defaults, named={}):
            return f"Its run can't start: {InvalidDefinition(problems)}"
        self._below.count(effect.run_id)
        self.tasks += len(target.plan.tasks)
        self.runs.append(
            NewRun(
                id=effect.child_run_id,
                tenant_id=effect.tenant_id,
                pipeline_id=target.pipeline_id,
                version_id=target.version_id,
                tasks=[NewTask(task.name, task.operator) for task in target.plan.tasks],
                parameters={**target.defaults, **given},
                triggered_by=self._who(effect.run_id),
                actor="scheduler",
                priority=effect.priority,
                trigger="pipeline",
                parent_run_id=effect.run_id,
                parent_task_run_id=effect.task_run_id,
                depth=effect.depth,
            )
        )
        return None

    def _find(self, tenant_id: str, name: str, version: int | None) -> _Target | str:
        try:
            target = find_run_target(self._connection, tenant_id, name=name, version=version)
        except NotFound as error:
            return f"{error} Save it, or name another one."
        found = self._plans.get(self._connection, {target.version_id})
        if (why := found.unreadable.get(target.version_id)) is not None:
            return f"The plan of {name!r} can't be read: {why}"
        definition = read_version(self._connection, tenant_id, target.version_id)["definition"]
        defaults = definition.get("parameters", {})
        return _Target(target.pipeline_id, target.version_id, found.readable[target.version_id], defaults)

    def _who(self, run_id: str) -> str:
        """Return who has started the run around."""
        if run_id not in self._triggered_by:
            statement = select(runs.c.triggered_by).where(runs.c.id == run_id)
            self._triggered_by[run_id] = self._connection.execute(statement).scalar_one()
        return self._triggered_by[run_id]


def _submitted(connection: Connection, plans: PlanCache, ids: Sequence[str], now: float) -> Iterator[RunSubmitted]:
    """Read those of the runs whose pipelines are not paused."""
    is_paused = (
        select(runs.c.id).join(pipelines, pipelines.c.id == runs.c.pipeline_id).where(runs.c.id.in_(ids))
    ).where(pipelines.c.paused)
    paused = set(connection.execute(is_paused).scalars()) if ids else set[str]()
    for run in load_runs(connection, plans, now, (id_ for id_ in ids if id_ not in paused)):
        yield replace(run, hold=False)
