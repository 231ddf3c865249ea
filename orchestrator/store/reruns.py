"""Reruns in place: what one would do, and the request for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, null, or_, select, text

from orchestrator.errors import Conflict, NotFound
from orchestrator.kernel.following import goes_by_index
from orchestrator.plan_json import plan_from_json
from orchestrator.records import Plan, RunRecord
from orchestrator.rerun_plan import Chosen, PastTask, RerunPlan, plan_rerun
from orchestrator.states import RUN_TERMINAL, RunState, TaskState
from orchestrator.store.artifact_queries import artifact_fates
from orchestrator.store.beside_rows import KeptOutputs, planned_tasks
from orchestrator.store.command_requests import insert_command
from orchestrator.store.definitions import read_version
from orchestrator.store.pages import Row
from orchestrator.store.tables import pipelines, runs, task_runs

_NAMED = text(
    "SELECT t.name, u.uri #>> '{}' AS uri FROM task_runs t, "
    "jsonb_path_query(t.outputs, 'strict $.** ? (@ starts with \"artifact://\")', '{}', true) AS u(uri) "
    "WHERE t.run_id = :run AND t.state = 'success' AND t.outputs IS NOT NULL"
)


@dataclass(frozen=True, slots=True)
class Past:
    """The run that is to run again."""

    id: str
    row: Any
    plan: Plan
    tasks: list[PastTask]

    @property
    def record(self) -> RunRecord:
        """What maps may name of it."""
        row = self.row
        return RunRecord(self.id, "", RunState(row.state), parameters=row.parameters, pipeline=row.pipeline)


def preview_rerun(connection: Connection, tenant_id: str, run_id: str, chosen: Chosen) -> RerunPlan:
    """Return what a rerun in place would do.

    :raises NotFound, Conflict, InvalidDefinition: as :func:`request_rerun`, which it would be refused by.
    """
    return _planned(connection, tenant_id, run_id, chosen)[1]


def request_rerun(connection: Connection, tenant_id: str, run_id: str, actor: str, chosen: Chosen) -> Row:
    """Ask the leader to start a run again that is over; it will do so once for each time that the run has ended.

    :param chosen: ``failed``, ``all``, or the names of task runs; everything downstream of them is run again too, and
        what has left outputs that are gone and are needed.
    :raises NotFound: no such run of this tenant.
    :raises Conflict: it has not ended, or none of its tasks has failed.
    :raises InvalidDefinition: it has no task of a name.
    """
    past, found = _planned(connection, tenant_id, run_id, chosen)
    wanted: Any = chosen if isinstance(chosen, str) and not found.missing else list(found.chosen)
    return insert_command(
        connection,
        tenant_id,
        "rerun",
        actor,
        run_id=run_id,
        payload={"from": wanted, "generation": past.row.generation},
    )


def _planned(connection: Connection, tenant_id: str, run_id: str, chosen: Chosen) -> tuple[Past, RerunPlan]:
    past = read_past(connection, tenant_id, run_id)
    require_over(past.row)
    found = plan_rerun(past.plan, past.tasks, chosen, gone_outputs(connection, tenant_id, run_id), run=past.record)
    if not found.again:
        raise Conflict(f"No task of run {run_id} has failed; name tasks to run again, or run all of them with `all`.")
    return past, found


def read_past(connection: Connection, tenant_id: str, run_id: str) -> Past:
    """Return the run as it ended.

    :raises NotFound: no such run of this tenant.
    :raises Conflict: its plan can't be read.
    """
    r = runs.c
    row = connection.execute(
        select(r.state, r.generation, r.version_id, r.pipeline_id, r.parameters, pipelines.c.name.label("pipeline"))
        .select_from(runs.outerjoin(pipelines, pipelines.c.id == r.pipeline_id))
        .where(r.tenant_id == tenant_id, r.id == run_id)
    ).first()
    if row is None:
        raise NotFound(f"There is no run {run_id!r}.")
    try:
        plan = plan_from_json(read_version(connection, tenant_id, row.version_id)["plan"])
    except ValueError as error:
        raise Conflict(f"The plan of run {run_id} can't be read here: {error}") from error
    return Past(run_id, row, plan, list(_past_tasks(connection, tenant_id, run_id, plan)))


def _past_tasks(connection: Connection, tenant_id: str, run_id: str, plan: Plan) -> Iterator[PastTask]:
    """Yield the task runs that count; with their items and what the rules keep of their outputs only where what runs
    again hangs on these."""
    t, hangs_on_items = task_runs.c, any(goes_by_index(task) for _, task in planned_tasks(plan))
    columns = (t.id, t.name, t.state, t.reason, t.parent_id, t.map_index, t.map_key, t.attempts, t.resumed)
    begun = or_(t.ready_at.is_not(None), t.started_at.is_not(None)).label("begun")
    found = connection.execute(
        select(*columns, begun, t.item if hangs_on_items else null().label("item"))
        .where(t.tenant_id == tenant_id, t.run_id == run_id, ~t.superseded)
        .order_by(t.parent_id.nulls_first(), t.map_index, t.position)
    )
    outputs = KeptOutputs(connection, {run_id: plan} if hangs_on_items else {})
    for one in found:
        yield PastTask(
            one.id,
            one.name,
            TaskState(one.state),
            one.parent_id,
            one.map_index,
            one.map_key,
            one.attempts,
            one.reason,
            resumed=one.resumed,
            item=one.item,
            outputs=outputs.of(one.id),
            begun=one.begun,
        )


def require_over(row: Any) -> None:
    """Refuse a run that is active.

    :raises Conflict: says what to do first.
    """
    if RunState(row.state) not in RUN_TERMINAL:
        raise Conflict(f"The run is {row.state}; cancel it or wait for its end before it is run again.")


def gone_outputs(connection: Connection, tenant_id: str, run_id: str) -> dict[str, str]:
    """Return by its name a sentence about an output of a task run that was removed from the artifact store."""
    named = [(row.name, row.uri) for row in connection.execute(_NAMED, {"run": run_id})]
    fates = artifact_fates(connection, {(tenant_id, uri) for _, uri in named})
    found: dict[str, str] = {}
    for name, uri in named:
        if (tenant_id, uri) in fates:
            found.setdefault(name, fates[tenant_id, uri])
    return found
