"""A worker's heartbeat as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from orchestrator.records import Capacity, GpuDevice, Heartbeat
from orchestrator.wire.messages import MAX_REPORT_BYTES
from orchestrator.wire.strict_json import Fields, decode, encode


def heartbeat_body(heartbeat: Heartbeat) -> bytes:
    values: dict[str, Any] = asdict(heartbeat)
    values["started"] = sorted(heartbeat.started)
    return encode(values, MAX_REPORT_BYTES, "heartbeat")


def heartbeat_from_body(body: bytes) -> Heartbeat:
    fields = decode(body, MAX_REPORT_BYTES, "heartbeat")
    return Heartbeat(
        worker_id=fields.text("worker_id"),
        host_id=fields.text("host_id"),
        boot_id=fields.text("boot_id"),
        hostname=fields.text("hostname"),
        name=fields.text("name"),
        seq=fields.integer("seq"),
        queues=fields.texts("queues"),
        slots=fields.integer("slots"),
        capacity=_capacity(fields.inner("capacity")),
        labels=fields.text_map("labels"),
        running=fields.text_map("running"),
        started=frozenset(fields.texts("started")),
        dead=fields.texts("dead"),
        draining=fields.flag("draining", False),
        store_scope=fields.text("store_scope", "shared"),
        version=fields.text("version", ""),
        environment=fields.text("environment", ""),
    )


def _capacity(fields: Fields) -> Capacity:
    gpus = tuple(
        GpuDevice(gpu.text("uuid"), gpu.text("model", ""), gpu.integer("memory", 0), gpu.text("busy_with", ""))
        for gpu in fields.inners("gpus")
    )
    return Capacity(cpu=fields.integer("cpu"), memory=fields.integer("memory"), gpus=gpus)
