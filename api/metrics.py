"""Prometheus metrics: gauges are read from the rows at the scrape, so they are right whichever process answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flask import Response
from flask.views import MethodView
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.access import caller
from api.live import RedisFacts
from api.resource import Resource, needs
from api.services import services
from orchestrator.errors import NotFound, StoreUnavailable
from orchestrator.states import TASK_TERMINAL, RunState, TaskState
from orchestrator.store.api_keys import Role
from orchestrator.store.reports import Gauges, read_gauges

blueprint = Resource("metrics", __name__, url_prefix="/monitoring", description="Figures for Prometheus.")


@blueprint.route("/metrics")
class Metrics(MethodView):
    @needs(Role.VIEWER)
    @blueprint.also(200, {"type": "string"}, content_type="text/plain", description="Prometheus' text format.")
    def get(self) -> Response:
        """Show the metrics. Runs and tasks are those of the key's tenant; hosts and workers are the site's."""
        if not services().settings.enable_metrics:
            raise NotFound("Metrics are off here (ENABLE_METRICS).")
        with services().engine.connect() as connection:
            gauges = read_gauges(connection, caller().tenant_id)
        try:
            facts: RedisFacts | None = services().live.facts()
        except StoreUnavailable:
            facts = None
        registry = CollectorRegistry()
        registry.register(_Rows(gauges, facts))
        text = generate_latest(registry) + generate_latest(services().metrics.registry)
        return Response(text, content_type=CONTENT_TYPE_LATEST)


class _Rows(Collector):
    """Shows one reading of the rows."""

    def __init__(self, gauges: Gauges, facts: RedisFacts | None) -> None:
        self._gauges = gauges
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        yield from _work(self._gauges)
        yield from _hosts(self._gauges)
        yield from _control(self._gauges, self._facts)


def _work(gauges: Gauges) -> Iterator[Metric]:
    runs = {state.value: 0 for state in RunState} | {row["state"]: row["count"] for row in gauges.runs}
    by_state = [([state], count) for state, count in runs.items()]
    yield _gauge("orchestrator_runs", "Runs by state.", ["state"], by_state)
    open_states = {state.value for state in TaskState if state not in TASK_TERMINAL}
    silent = open_states - {row["state"] for row in gauges.tasks}
    yield _gauge(
        "orchestrator_open_tasks",
        "Task runs of active runs that have not ended.",
        ["state", "reason"],
        [([row["state"], row["reason"]], row["count"]) for row in gauges.tasks]
        + [([state, ""], 0) for state in sorted(silent)],
    )
    yield _gauge(
        "orchestrator_queue_attempts",
        "Attempts by queue: dispatched ones wait for a worker's claim.",
        ["queue", "state"],
        [([row["queue"], row["state"]], row["count"]) for row in gauges.queues],
    )
    yield _gauge(
        "orchestrator_queue_oldest_seconds",
        "Age of the oldest attempt by queue.",
        ["queue", "state"],
        [([row["queue"], row["state"]], row["oldest_seconds"]) for row in gauges.queues],
    )


def _hosts(gauges: Gauges) -> Iterator[Metric]:
    yield _gauge(
        "orchestrator_workers",
        "Live workers by state.",
        ["state"],
        [([row["state"]], row["count"]) for row in gauges.workers],
    )
    yield _gauge(
        "orchestrator_worker_slots",
        "Slots of live workers by state.",
        ["state"],
        [([row["state"]], row["slots"]) for row in gauges.workers],
    )
    parts = [("cpu_cores", "cpu", 1000), ("memory_bytes", "memory", 1), ("gpus", "gpus", 1)]
    for what, prefix in (("capacity", ""), ("reserved", "reserved_")):
        for name, column, unit in parts:
            yield _gauge(
                f"orchestrator_host_{what}_{name}",
                f"What a host has {what if what == 'reserved' else 'in all'}.",
                ["host"],
                [([row["hostname"] + "/" + row["id"]], row[prefix + column] / unit) for row in gauges.hosts],
            )


def _control(gauges: Gauges, facts: RedisFacts | None) -> Iterator[Metric]:
    refused = CounterMetricFamily("orchestrator_refusals", "What was refused, by kind.", labels=["what"])
    for row in gauges.refusals:
        refused.add_metric([row["what"]], row["count"])
    yield refused
    leader = gauges.leader
    held = leader is not None and leader.held
    yield _gauge("orchestrator_leader_held", "Whether a scheduler leads.", [], [([], int(held))])
    if leader is not None:
        yield _gauge("orchestrator_leader_epoch", "Epoch of the leader.", [], [([], leader.epoch)])
        yield _gauge("orchestrator_leader_age_seconds", "Since the lease was renewed.", [], [([], leader.age)])
    yield _gauge("orchestrator_open_commands", "Commands not yet applied.", [], [([], gauges.open_commands)])
    yield _gauge("orchestrator_redis_up", "Whether Redis answers the API.", [], [([], int(facts is not None))])
    if facts is not None:
        yield _gauge(
            "orchestrator_stream_waiting",
            "Entries not yet taken from a stream.",
            ["stream"],
            [(["reports"], facts.waiting_reports), (["logs"], facts.waiting_log_chunks)],
        )


def _gauge(
    name: str, help: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], Any]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help, labels=labels)
    for values, value in samples:
        family.add_metric(values, float(value))
    return family
