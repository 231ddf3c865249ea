"""Turns rows into the records the rules speak of; lengths of time become the leader's monotonic seconds (I14)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import RowMapping

from orchestrator.records import (
    AttemptRecord,
    Capacity,
    GpuDevice,
    HostRecord,
    Reservation,
    Resources,
    RunRecord,
    TaskRunRecord,
    WorkerRecord,
)
from orchestrator.states import AttemptState, RunState, TaskState, WorkerState


def run_record(row: RowMapping, now: float, learned: Mapping[str, int]) -> RunRecord:
    """Return the run.

    :param learned: what earlier runs of its pipeline have taught of the memory its tasks need.
    """
    return RunRecord(
        id=row["id"],
        tenant_id=row["tenant_id"],
        state=RunState(row["state"]),
        reason=row["reason"],
        generation=row["generation"],
        priority=row["priority"],
        order=row["seq"],
        pipeline_id=row["pipeline_id"],
        pipeline=row["pipeline"],
        parameters=row["parameters"],
        parent_task_run_id=row["parent_task_run_id"],
        depth=row["depth"],
        paused_with_parent=row["paused_with_parent"],
        deadline_at=_later(now, row["deadline_left"]),
        learned=learned,
        message=row["message"],
    )


def task_run_record(row: RowMapping, now: float) -> TaskRunRecord:
    """Return the task run without its outputs."""
    return TaskRunRecord(
        id=row["id"],
        run_id=row["run_id"],
        name=row["name"],
        state=TaskState(row["state"]),
        reason=row["reason"],
        message=row["message"],
        generation=row["generation"],
        attempts=row["attempts"],
        failures=row["failures"],
        losses=row["losses"],
        attempt_id=row["attempt_id"],
        retry_at=_later(now, row["retry_left"]),
        local_to=row["local_to"],
        parent_id=row["parent_id"],
        map_index=row["map_index"],
        map_key=row["map_key"],
        item=row["item"],
        memory=row["memory"],
        queue=row["queue"],
        child_run_id=row["child_run_id"],
        wait_token=row["wait_token"],
        cache_key=row["cache_key"],
        deadline_at=_later(now, row["deadline_left"]),
        ready_at=_earlier(now, row["ready_since"]),
        resumed=row["resumed"],
        awaits_turn=row["awaits_turn"],
        superseded=row["superseded"],
        begun=row["begun"],
    )


def attempt_record(row: RowMapping, now: float) -> AttemptRecord:
    return AttemptRecord(
        id=row["id"],
        run_id=row["run_id"],
        task_run_id=row["task_run_id"],
        number=row["number"],
        queue=row["queue"],
        resources=_resources(row),
        host_id=row["host_id"],
        worker_id=row["worker_id"],
        token=row["token"],
        state=AttemptState(row["state"]),
        devices=tuple(row["devices"]),
        seq=row["seq"],
        nonce=row["nonce"],
        direct=row["direct"],
        hinted_at=_earlier(now, row["hinted_since"]) or now,
        granted_at=_earlier(now, row["granted_since"]),
        deadline=_later(now, row["deadline_left"]),
        cancel=row["cancel"],
        cancel_grace=row["cancel_grace"],
        keeper_id=row["keeper_id"],
        orphaned_at=_earlier(now, row["orphaned_since"]),
    )


def reservation_record(row: RowMapping) -> Reservation:
    return Reservation(
        attempt_id=row["attempt_id"],
        host_id=row["host_id"],
        worker_id=row["worker_id"],
        resources=_resources(row),
        devices=tuple(row["devices"]),
        zombie=row["zombie"],
    )


def host_record(row: RowMapping) -> HostRecord:
    gpus = tuple(_gpu(device) for device in row["gpus"])
    return HostRecord(row["id"], row["boot_id"], Capacity(row["cpu"], row["memory"], gpus))


def worker_record(row: RowMapping, now: float) -> WorkerRecord:
    return WorkerRecord(
        id=row["id"],
        host_id=row["host_id"],
        boot_id=row["boot_id"],
        state=WorkerState(row["state"]),
        queues=frozenset(row["queues"]),
        slots=row["slots"],
        labels=row["labels"],
        store_scope=row["store_scope"],
        seen_at=_earlier(now, row["ended_since"]) or now,
        seq=row["heartbeat_seq"],
        hostname=row["hostname"],
        name=row["name"],
        version=row["version"],
        draining=row["draining"],
        drain_until=_later(now, row["drain_left"]),
    )


def _gpu(device: Mapping[str, Any]) -> GpuDevice:
    return GpuDevice(device["uuid"], device.get("model", ""), int(device.get("memory", 0)), device.get("busy_with", ""))


def _resources(row: RowMapping) -> Resources:
    return Resources(cpu=row["cpu"], memory=row["memory"], gpus=row["gpus"], gpu_memory=row["gpu_memory"])


def _later(now: float, left: float | None) -> float | None:
    return None if left is None else now + left


def _earlier(now: float, since: float | None) -> float | None:
    """Return when it was; a database clock that went back must not put it into the future."""
    return None if since is None else now - max(0.0, since)
