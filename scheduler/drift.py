"""Compares the leader's memory with the rows, so that a difference nobody foresaw can't hang a run (I4)."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, text

from orchestrator.kernel import Kernel
from orchestrator.states import RunState

_RUNS = text("SELECT CAST(id AS text), state FROM runs WHERE state IN ('running', 'paused', 'cancelling')")
_TASK_RUNS = text("SELECT CAST(id AS text), state FROM task_runs WHERE run_id = ANY(CAST(:ids AS uuid[]))")
_ATTEMPTS = text("SELECT CAST(id AS text), state FROM attempts WHERE state IN ('dispatched', 'running')")
_RESERVATIONS = text("SELECT CAST(attempt_id AS text), host_id FROM reservations")


def find_drift(connection: Connection, kernel: Kernel) -> str | None:
    """Return a sentence about the first difference between the rows and the kernel's index, or ``None``."""
    remembered = {run.id: run for run in kernel.runs.values() if run.state is not RunState.QUEUED}
    runs = {row[0]: row[1] for row in connection.execute(_RUNS) if row[0] not in kernel.unreadable}
    tasks = {row[0]: row[1] for row in connection.execute(_TASK_RUNS, {"ids": list(runs)})}
    attempts = {row[0]: row[1] for row in connection.execute(_ATTEMPTS) if row[0] not in kernel.left_alone}
    held = {row[0]: row[1] for row in connection.execute(_RESERVATIONS)}
    return (
        _difference("run", runs, {run.id: run.state for run in remembered.values()})
        or _difference("task run", tasks, {t.id: t.state for run in remembered.values() for t in run.tasks})
        or _difference("attempt", attempts, {a.id: a.state for a in kernel.attempts.values()})
        or _difference("reservation", held, {r.attempt_id: r.host_id for r in kernel.reservations()})
    )


def _difference(what: str, rows: Mapping[str, str], memory: Mapping[str, str]) -> str | None:
    for id_ in rows.keys() | memory.keys():
        row, remembered = rows.get(id_), memory.get(id_)
        if row != remembered:
            return f"The {what} {id_} is {row or 'not there'} in the rows and {remembered or 'unknown'} in memory."
    return None
