"""Writes the row effects of one transaction, compare-and-set, in few statements per table and kind.

A statement is of at most MOST_ROWS rows: however much a batch comes to, each is done well within the time that one may
take, and PostgreSQL does not wait for the next for longer than an open transaction may be idle.

The caller has locked the lease row at its epoch (``store.lease.lock_epoch``) in the same transaction and commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from sqlalchemy import Connection

from orchestrator.effects import RowEffect
from orchestrator.errors import StaleMemory
from orchestrator.records import Heartbeat, Reservation
from orchestrator.states import Entity
from orchestrator.store.artifact_presence import write_missed
from orchestrator.store.columns import (
    COLUMNS,
    DELAYS,
    NEW_ATTEMPT,
    NEW_TASK,
    NEW_TASK_DEFAULTS,
    insert_attempts_statement,
    insert_tasks_statement,
    update_statement,
)
from orchestrator.store.fold import NetChanges, RowChange, fold, state_on_joining
from orchestrator.store.leavings import write_artifacts, write_cached, write_circuits, write_learned, write_models
from orchestrator.store.text_safety import storable_json

R = TypeVar("R")

_EVENTS = """
INSERT INTO events (tenant_id, run_id, task, entity, entity_id, before, after, reason, message, cause, actor, token,
                    detail, epoch)
SELECT r.tenant_id, v.run_id, v.task, v.entity, v.entity_id, v.before, v.after, v.reason, v.message, v.cause, v.actor,
       v.token, v.detail, %s
FROM jsonb_to_recordset(%s::jsonb) AS v(n int, run_id uuid, task text, entity text, entity_id text, before text,
     after text, reason text, message text, cause text, actor text, token text, detail jsonb)
LEFT JOIN runs r ON r.id = v.run_id
ORDER BY v.n
"""

_RESERVE = """
INSERT INTO reservations AS t (attempt_id, host_id, worker_id, cpu, memory, gpus, gpu_memory, devices, zombie)
SELECT attempt_id, host_id, worker_id, cpu, memory, gpus, gpu_memory,
       ARRAY(SELECT jsonb_array_elements_text(devices)), zombie
FROM jsonb_to_recordset(%s::jsonb) AS v(attempt_id uuid, host_id text, worker_id text, cpu int, memory bigint,
     gpus int, gpu_memory bigint, devices jsonb, zombie boolean)
ON CONFLICT (attempt_id) DO UPDATE SET host_id = excluded.host_id, worker_id = excluded.worker_id,
    cpu = excluded.cpu, memory = excluded.memory, gpus = excluded.gpus, gpu_memory = excluded.gpu_memory,
    devices = excluded.devices, zombie = excluded.zombie
"""

_RELEASE = "DELETE FROM reservations WHERE attempt_id = ANY(%s::uuid[])"

_HOSTS = """
INSERT INTO hosts AS t (id, hostname, boot_id, cpu, memory, gpus, labels)
SELECT id, hostname, boot_id, cpu, memory, gpus, labels
FROM jsonb_to_recordset(%s::jsonb) AS v(id text, hostname text, boot_id text, cpu int, memory bigint, gpus jsonb,
     labels jsonb)
ON CONFLICT (id) DO UPDATE SET hostname = excluded.hostname, boot_id = excluded.boot_id, cpu = excluded.cpu,
    memory = excluded.memory, gpus = excluded.gpus, labels = excluded.labels, updated_at = clock_timestamp()
WHERE (t.hostname, t.boot_id, t.cpu, t.memory, t.gpus, t.labels) IS DISTINCT FROM
      (excluded.hostname, excluded.boot_id, excluded.cpu, excluded.memory, excluded.gpus, excluded.labels)
"""

_WORKERS = """
INSERT INTO workers AS t (id, host_id, name, state, queues, slots, boot_id, labels, version, environment, store_scope,
                          heartbeat_seq, seen_at)
SELECT id, host_id, name, state, ARRAY(SELECT jsonb_array_elements_text(queues)), slots, boot_id, labels, version,
       environment, store_scope, heartbeat_seq, clock_timestamp()
FROM jsonb_to_recordset(%s::jsonb) AS v(id text, host_id text, name text, state text, queues jsonb, slots int,
     boot_id text, labels jsonb, version text, environment text, store_scope text, heartbeat_seq bigint)
ON CONFLICT (id) DO UPDATE SET queues = excluded.queues, slots = excluded.slots, labels = excluded.labels,
    version = excluded.version, environment = excluded.environment, heartbeat_seq = excluded.heartbeat_seq,
    seen_at = excluded.seen_at
"""

_REJOIN = """
UPDATE workers AS t SET state = v.state, reason = '', ended_at = NULL, draining = false, drain_until = NULL
FROM jsonb_to_recordset(%s::jsonb) AS v(id text, state text)
WHERE t.id = v.id AND (t.state <> v.state OR t.draining OR t.drain_until IS NOT NULL)
"""
"""An incarnation that was given up and speaks again: its row exists, the leader's memory has lost it and its drain."""

_COMMANDS = """
UPDATE commands AS t SET applied_at = clock_timestamp(), result = v.result
FROM jsonb_to_recordset(%s::jsonb) AS v(id bigint, result text)
WHERE t.id = v.id AND t.applied_at IS NULL
"""

_COUNTS = """
INSERT INTO refusals AS t (what, count, last_detail)
SELECT what, count, detail FROM jsonb_to_recordset(%s::jsonb) AS v(what text, count bigint, detail text)
ON CONFLICT (what) DO UPDATE SET count = t.count + excluded.count, last_at = clock_timestamp(),
    last_detail = excluded.last_detail
"""


MOST_ROWS = 2_000


def write(connection: Connection, effects: Iterable[RowEffect], epoch: int) -> None:
    """Write the effects in the caller's transaction.

    :param epoch: of the leader; kept in every audit row.
    :raises StaleMemory: a row is not in the state (or has not the token) an effect expects; roll back and rebuild.
    """
    net = fold(effects)
    _write_workers(connection, net)
    # Ended attempts first: a task run may hold only one live attempt at any moment (I2, a unique index).
    _update(connection, Entity.ATTEMPT, net.updates[Entity.ATTEMPT].values())
    _insert_tasks(connection, list(net.new_tasks.values()))
    _insert_attempts(connection, list(net.new_attempts.values()))
    _update(connection, Entity.TASK_RUN, net.updates[Entity.TASK_RUN].values())
    _update(connection, Entity.RUN, net.updates[Entity.RUN].values())
    _update(connection, Entity.WORKER, net.updates[Entity.WORKER].values())
    _write_reservations(connection, net)
    _write_leavings(connection, net)
    for events in _parts(net.events):
        rows = [{**row, "n": n} for n, row in enumerate(events)]
        connection.exec_driver_sql(_EVENTS, (epoch, storable_json(rows)))
    _close_commands(connection, net.closed_commands)
    if net.counts:
        rows = [{"what": what, "count": count, "detail": detail} for what, (count, detail) in net.counts.items()]
        connection.exec_driver_sql(_COUNTS, (storable_json(rows),))


def _update(connection: Connection, entity: Entity, rows: Iterable[RowChange]) -> None:
    changes = list(rows)
    if not changes:
        return
    named = [frozenset(row.columns) for row in changes]
    always, union = frozenset.intersection(*named), frozenset.union(*named)
    if unknown := union - COLUMNS[entity].keys():
        raise ValueError(f"The {entity} has no column {', '.join(sorted(unknown))} that an effect may change.")
    statement, written = update_statement(entity, always, union - always), 0
    for part in _parts(changes):
        documents = [
            {"id": row.id, "before": row.before, "after": row.after, "token": row.token, "c": _document(row.columns)}
            for row in part
        ]
        written += connection.exec_driver_sql(statement, (storable_json(documents),)).rowcount
    if written != len(changes):
        raise StaleMemory(
            f"{len(changes) - written} of {len(changes)} rows of {entity} are not in the state the scheduler remembers."
        )


def _insert_attempts(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    names = frozenset[str]().union(*rows)
    if unknown := names - NEW_ATTEMPT.keys():
        raise ValueError(f"An attempt has no column {', '.join(sorted(unknown))}.")
    defaults: Mapping[str, Any] = {"reason": "", "message": ""}
    statement = insert_attempts_statement(names)
    for part in _parts(rows):
        documents = [_document({name: row.get(name, defaults.get(name)) for name in names}) for row in part]
        connection.exec_driver_sql(statement, (storable_json(documents),))


def _insert_tasks(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    names = frozenset[str]().union(*rows)
    if unknown := names - NEW_TASK.keys():
        raise ValueError(f"A task run has no column {', '.join(sorted(unknown))}.")
    statement, written = insert_tasks_statement(names), 0
    for part in _parts(rows):
        documents = [_document({name: row.get(name, NEW_TASK_DEFAULTS.get(name)) for name in names}) for row in part]
        written += connection.exec_driver_sql(statement, (storable_json(documents),)).rowcount
    if written != len(rows):
        raise StaleMemory(f"{len(rows) - written} of {len(rows)} task runs that were to be made are there already.")


def _parts(rows: Sequence[R]) -> Iterator[Sequence[R]]:
    for at in range(0, len(rows), MOST_ROWS):
        yield rows[at : at + MOST_ROWS]


def _write_leavings(connection: Connection, net: NetChanges) -> None:
    write_models(connection, net.models)
    write_artifacts(connection, net.artifacts)
    write_missed(connection, net.missed)
    write_cached(connection, net.published)
    write_learned(connection, net.learned.values())
    write_circuits(connection, net.circuits.values())


def _document(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns as JSON values: ``("in", seconds)`` becomes the seconds."""
    return {name: _delay(value) if name in DELAYS else value for name, value in columns.items()}


def _delay(value: Any) -> float | None:
    if value is None:
        return None
    kind, seconds = value
    if kind != "in":
        raise ValueError(f"A time is written as ('in', seconds), not {value!r}.")
    return float(seconds)


def _write_workers(connection: Connection, net: NetChanges) -> None:
    if not net.heartbeats:
        return
    beats = list(net.heartbeats.values())
    hosts = {beat.host_id: _host_row(beat) for beat in beats}
    connection.exec_driver_sql(_HOSTS, (storable_json(list(hosts.values())),))
    connection.exec_driver_sql(_WORKERS, (storable_json([_worker_row(beat) for beat in beats]),))
    if net.joined:
        rows = [{"id": id_, "state": state_on_joining(net.heartbeats[id_])} for id_ in sorted(net.joined)]
        connection.exec_driver_sql(_REJOIN, (storable_json(rows),))


def _host_row(beat: Heartbeat) -> dict[str, Any]:
    gpus = [asdict(gpu) for gpu in beat.capacity.gpus]
    return {
        "id": beat.host_id,
        "hostname": beat.hostname,
        "boot_id": beat.boot_id,
        "cpu": beat.capacity.cpu,
        "memory": beat.capacity.memory,
        "gpus": gpus,
        "labels": dict(beat.labels),
    }


def _worker_row(beat: Heartbeat) -> dict[str, Any]:
    return {
        "id": beat.worker_id,
        "host_id": beat.host_id,
        "name": beat.name,
        "state": state_on_joining(beat),
        "queues": list(beat.queues),
        "slots": beat.slots,
        "boot_id": beat.boot_id,
        "labels": dict(beat.labels),
        "version": beat.version,
        "environment": beat.environment,
        "store_scope": beat.store_scope,
        "heartbeat_seq": beat.seq,
    }


def _write_reservations(connection: Connection, net: NetChanges) -> None:
    if net.released:
        connection.exec_driver_sql(_RELEASE, (sorted(net.released),))
    if net.reserved:
        rows = [_reservation_row(reservation) for reservation in net.reserved.values()]
        connection.exec_driver_sql(_RESERVE, (storable_json(rows),))


def _reservation_row(reservation: Reservation) -> dict[str, Any]:
    held = reservation.resources
    return {
        "attempt_id": reservation.attempt_id,
        "host_id": reservation.host_id,
        "worker_id": reservation.worker_id,
        "cpu": held.cpu,
        "memory": held.memory,
        "gpus": held.gpus,
        "gpu_memory": held.gpu_memory,
        "devices": list(reservation.devices),
        "zombie": reservation.zombie,
    }


def _close_commands(connection: Connection, closed: Mapping[int, str]) -> None:
    if not closed:
        return
    rows = [{"id": command_id, "result": result} for command_id, result in closed.items()]
    if connection.exec_driver_sql(_COMMANDS, (storable_json(rows),)).rowcount != len(rows):
        raise StaleMemory("A command that was just applied is closed already.")
