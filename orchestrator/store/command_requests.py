"""What the API asks of the leader: rows of the append-only table of commands, which it applies in its transactions.

Each is checked against the rows as they are; the rules look again when they apply it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from sqlalchemy import Connection, func, insert, select, text

from orchestrator.documents import is_same_json, json_bytes
from orchestrator.errors import Conflict, InvalidDefinition, NotFound, Problem
from orchestrator.states import MARKS, RUN_TERMINAL, TASK_TERMINAL, RunState, TaskState
from orchestrator.store.command_queries import shown_columns, with_state
from orchestrator.store.pages import Row
from orchestrator.store.tables import commands, runs, task_runs, workers

GRACEFUL, FORCE = "graceful", "force"
MOST_OUTPUT_BYTES = 256 * 1024
_WAITS = {"approval": "an approval", "event": "an outside event"}


@dataclass(frozen=True, slots=True)
class Wait:
    """A task run that waits for somebody."""

    tenant_id: str
    run_id: str
    version_id: str
    task: str
    """Its name in the run."""
    state: str
    reason: str


def request_cancel(
    connection: Connection,
    tenant_id: str,
    run_id: str,
    actor: str,
    *,
    task: str | None = None,
    reason: str = "",
    mode: str = GRACEFUL,
    grace_seconds: float | None = None,
) -> Row:
    """Ask the leader to cancel the run, or one task of it; asking twice is no error.

    :param mode: ``force`` leaves no grace and runs no teardown tasks; after ``graceful`` it shortens that.
    :param grace_seconds: between TERM and KILL; ``None``: the task's own.
    :raises NotFound: no such run or task of this tenant.
    :raises Conflict: it has ended already.
    """
    state = _run_state(connection, tenant_id, run_id)
    if state in RUN_TERMINAL:
        raise Conflict(f"Run {run_id} has ended as {state}; there is nothing left to cancel.")
    if task is not None:
        found = _task(connection, tenant_id, run_id, task)
        if TaskState(found.state) in TASK_TERMINAL and not _is_busy_inside(connection, run_id, task):
            raise Conflict(
                f"Task {task!r} of run {run_id} has ended as {found.state}; there is nothing left to cancel."
            )
    payload: dict[str, Any] = {"reason": reason} if reason else {}
    if mode != GRACEFUL:
        payload["mode"] = mode
    if grace_seconds is not None:
        payload["grace_seconds"] = grace_seconds
    return insert_command(connection, tenant_id, "cancel", actor, run_id=run_id, task=task, payload=payload)


def request_pause(
    connection: Connection, tenant_id: str, run_id: str, actor: str, *, pause: bool, reason: str = ""
) -> Row | None:
    """Ask the leader to start nothing more of the run, or to go on with it; what runs is left alone. ``None``: it is
    as asked for already, or will be.

    :raises NotFound: no such run of this tenant.
    :raises Conflict: it is in no state to be paused or resumed.
    """
    state = _run_state(connection, tenant_id, run_id)
    if pause and state not in (RunState.RUNNING, RunState.PAUSED):
        instead = " Cancel it, or pause its pipeline, so that it is not started." if state is RunState.QUEUED else ""
        raise Conflict(f"Run {run_id} is {state}; only a run that is running can be paused.{instead}")
    if not pause and state not in (RunState.RUNNING, RunState.PAUSED):
        raise Conflict(f"Run {run_id} is {state}; there is nothing to resume.")
    kind = "pause" if pause else "resume"
    asked = commands.c.kind.in_(("pause", "resume")), commands.c.run_id == run_id, commands.c.applied_at.is_(None)
    # What was asked for last and is still to be applied is what it will be.
    last = connection.scalar(select(commands.c.kind).where(*asked).order_by(commands.c.id.desc()).limit(1))
    if last is None and state is RunState.PAUSED:
        # One that is paused because of the run around it may be paused for its own sake as well.
        last = None if _is_paused_with_parent(connection, run_id) else "pause"
    elif last is None:
        last = "resume"
    if last == kind:
        return None
    payload = {"reason": reason} if reason else {}
    return insert_command(connection, tenant_id, kind, actor, run_id=run_id, payload=payload)


def request_mark(
    connection: Connection,
    tenant_id: str,
    run_id: str,
    task: str,
    actor: str,
    *,
    state: str,
    reason: str,
    outputs: Mapping[str, Any] | None = None,
) -> Row:
    """Ask the leader to take the task run for a success, a failure or skipped, whatever it is.

    :param reason: why, in the words of who does it; kept in the audit.
    :param outputs: what its downstreams are to find, of a success.
    :raises NotFound: no such run or task of this tenant.
    :raises Conflict: an attempt of it is alive.
    :raises InvalidDefinition: no such state to mark it as, or outputs that can't be stored.
    """
    problems = []
    if state not in MARKS:
        problems.append(Problem("/state", f"{state!r} is none of {', '.join(sorted(MARKS))}."))
    if outputs is not None and state != TaskState.SUCCESS:
        problems.append(Problem("/outputs", "Only a success has outputs."))
    if outputs is not None and json_bytes(outputs) > MOST_OUTPUT_BYTES:
        problems.append(Problem("/outputs", f"The outputs have more than {MOST_OUTPUT_BYTES} bytes as JSON."))
    if problems:
        raise InvalidDefinition(problems)
    found = _task(connection, tenant_id, run_id, task)
    if found.attempt_id is not None and TaskState(found.state) not in TASK_TERMINAL:
        raise Conflict(f"Task {task!r} of run {run_id} is {found.state}; cancel it before it is marked.")
    payload: dict[str, Any] = {"state": state, "reason": reason}
    if outputs is not None:
        payload["outputs"] = dict(outputs)
    return insert_command(connection, tenant_id, "mark", actor, run_id=run_id, task=task, payload=payload)


def request_approval(
    connection: Connection,
    tenant_id: str,
    run_id: str,
    task: str,
    actor: str,
    *,
    approve: bool,
    input: Mapping[str, Any] | None = None,
    reason: str = "",
) -> Row:
    """Tell the leader what a person has decided.

    :param input: what the task asks the person for, checked against its schema by the caller.
    :raises NotFound: no such run or task of this tenant.
    :raises Conflict: it does not wait for an approval.
    """
    found = _task(connection, tenant_id, run_id, task)
    require_wait(found.state, found.reason, task, run_id, "approval")
    payload: dict[str, Any] = {"input": dict(input or {}), "at": _now(connection)}
    if reason:
        payload["reason"] = reason
    return insert_command(
        connection, tenant_id, "approve" if approve else "reject", actor, run_id=run_id, task=task, payload=payload
    )


def find_wait(connection: Connection, token: str) -> Wait:
    """Return the task run that an outside event is reported to by this token, whoever's it is.

    :raises NotFound: no task run has this token.
    """
    row = connection.execute(
        select(
            task_runs.c.tenant_id,
            task_runs.c.run_id,
            runs.c.version_id,
            task_runs.c.name,
            task_runs.c.state,
            task_runs.c.reason,
        )
        .join(runs, runs.c.id == task_runs.c.run_id)
        .where(task_runs.c.wait_token == token)
    ).first()
    if row is None:
        raise NotFound("Nothing waits for an event with this token.")
    return Wait(row.tenant_id, row.run_id, row.version_id, row.name, row.state, row.reason)


def hold_token(connection: Connection, token: str) -> None:
    """Let whoever else reports by this token wait until this transaction ends, so that :func:`find_report` then finds
    what it has written."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(token, 0))))


def find_report(connection: Connection, tenant_id: str, token: str, payload: Any) -> Row | None:
    """Return the report that was made before by this token, unless the leader has refused it.

    :raises Conflict: that one had another payload, and it is the one that counts.
    """
    # In words of the index of events: the tokens of what has ended are in no other row.
    query = select(*shown_columns(), commands.c.payload["payload"].label("reported")).where(
        commands.c.tenant_id == tenant_id, text("kind = 'event'"), commands.c.payload["token"].astext == token
    )
    found = [with_state(dict(row)) for row in connection.execute(query.order_by(commands.c.id)).mappings()]
    first = next((row for row in found if row["state"] != "refused"), None)
    if first is not None and not is_same_json(first.pop("reported"), payload):
        raise Conflict(
            f"The event that task {first['task']!r} of run {first['run_id']} waits for was reported before with "
            "another payload, and only the first report of a token counts."
        )
    return first


def report_event(connection: Connection, token: str, payload: Any, actor: str = "event") -> Row:
    """Tell the leader that what a task waits for has come about; the token is what the caller proves himself by.

    :param payload: any JSON, checked against the task's schema by the caller.
    :raises NotFound: no task run has this token.
    :raises Conflict: it does not wait for it any more.
    """
    wait = find_wait(connection, token)
    require_wait(wait.state, wait.reason, wait.task, wait.run_id, "event")
    told = {"payload": payload, "token": token, "at": _now(connection)}
    return insert_command(connection, wait.tenant_id, "event", actor, run_id=wait.run_id, task=wait.task, payload=told)


def request_drain(
    connection: Connection,
    tenant_id: str,
    worker_id: str,
    actor: str,
    *,
    drain: bool,
    deadline_seconds: float | None = None,
) -> Row:
    """Ask the leader to give the worker no more attempts, or to give it some again.

    :param deadline_seconds: after which the worker preempts what it still runs; ``None``: by its own setting.
    :raises NotFound: no such worker.
    :raises Conflict: it has ended.
    """
    worker = connection.execute(select(workers.c.state, workers.c.ended_at).where(workers.c.id == worker_id)).first()
    if worker is None:
        raise NotFound(f"There is no worker {worker_id!r}.")
    if worker.ended_at is not None or worker.state in {"lost", "drained"}:
        raise Conflict(f"Worker {worker_id} has ended ({worker.state}); a new start of it gets a new id.")
    payload = {"deadline_seconds": deadline_seconds} if deadline_seconds is not None else {}
    kind = "drain" if drain else "undrain"
    return insert_command(connection, tenant_id, kind, actor, worker_id=worker_id, payload=payload)


def insert_command(
    connection: Connection,
    tenant_id: str,
    kind: str,
    actor: str,
    *,
    run_id: str | None = None,
    task: str | None = None,
    worker_id: str | None = None,
    payload: Mapping[str, Any] | None = None,
) -> Row:
    """Append the command and return it as the API shows it."""
    row = (
        connection.execute(
            insert(commands)
            .values(
                tenant_id=tenant_id,
                kind=kind,
                actor=actor,
                run_id=run_id,
                task=task,
                worker_id=worker_id,
                payload=dict(payload or {}),
            )
            .returning(*shown_columns())
        )
        .mappings()
        .one()
    )
    return with_state(dict(row))


def _now(connection: Connection) -> str:
    """Return when it is asked: the rules know no time of day."""
    moment = connection.execute(select(func.clock_timestamp())).scalar_one()
    return str(moment.astimezone(UTC).isoformat(timespec="milliseconds"))


def _run_state(connection: Connection, tenant_id: str, run_id: str) -> RunState:
    state = connection.execute(select(runs.c.state).where(runs.c.tenant_id == tenant_id, runs.c.id == run_id)).scalar()
    if state is None:
        raise NotFound(f"There is no run {run_id!r}.")
    return RunState(state)


def _is_paused_with_parent(connection: Connection, run_id: str) -> bool:
    return bool(connection.scalar(select(runs.c.paused_with_parent).where(runs.c.id == run_id)))


def _task(connection: Connection, tenant_id: str, run_id: str, task: str) -> Any:
    found = connection.execute(
        select(task_runs.c.state, task_runs.c.reason, task_runs.c.attempt_id).where(
            task_runs.c.tenant_id == tenant_id, task_runs.c.run_id == run_id, task_runs.c.name == task
        )
    ).first()
    if found is None:
        raise NotFound(f"Run {run_id} has no task {task!r}.")
    return found


def _is_busy_inside(connection: Connection, run_id: str, task: str) -> bool:
    """Say whether indices of it still run: a map may be decided before."""
    t = task_runs.c
    states = [state.value for state in TASK_TERMINAL]
    query = select(t.id).where(t.run_id == run_id, t.name.startswith(f"{task}[", autoescape=True))
    return connection.execute(query.where(t.state.not_in(states)).limit(1)).first() is not None


def require_wait(state: str, reason: str, task: str, run_id: str, what: str) -> None:
    """Refuse an answer that nobody waits for.

    :raises Conflict: the task run does not wait for an ``approval``, or an ``event``.
    """
    if state != TaskState.WAITING or reason != what:
        raise Conflict(f"Task {task!r} of run {run_id} is {state} and does not wait for {_WAITS[what]}.")
