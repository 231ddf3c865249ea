"""Makes the plan of a definition that was found in order: what the scheduler needs to know of each task."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from orchestrator.compile_graph import Flow, Placed
from orchestrator.compile_names import is_inner
from orchestrator.compile_site import Site
from orchestrator.documents import fingerprint
from orchestrator.expressions.templates import holds_template
from orchestrator.lasting import maker_of
from orchestrator.operator import Operator
from orchestrator.operator_checks import Declaration
from orchestrator.records import (
    ApprovalPlan,
    CachePlan,
    ChildPlan,
    ConcurrencyLimit,
    EventPlan,
    MapPlan,
    Plan,
    PlannedTask,
    RateLimit,
    RepeatPlan,
    Resources,
    RetryPolicy,
    RetryRule,
)
from orchestrator.spec import PipelineSpec, TaskSpec
from orchestrator.spec_kinds import DEFAULT_SIZE
from orchestrator.spec_policies import memory_factor
from orchestrator.wiring import Wiring

BACKOFF_FACTOR = 2.0
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Parts:
    """What was found out of the tasks, by their names."""

    flow: Flow
    wirings: Mapping[str, Wiring]
    declared: Mapping[str, Declaration]
    verbatim: Mapping[str, frozenset[str]]
    operators: Mapping[str, type[Operator]]
    site: Site
    version_of: Callable[[type[Operator]], str]
    reads: frozenset[str]
    """Parameters of the run that templates of tasks read."""
    policies: dict[tuple[RetryPolicy, object], RetryPolicy] = field(default_factory=dict)
    """Those with rules, by what they are without them and the rules as written: most tasks say the same."""


def make_plan(spec: PipelineSpec, tasks: Sequence[Placed], parts: Parts) -> Plan:
    """Return the plan, with the bodies of its containers."""
    inside: dict[str, list[Placed]] = {}
    for task in sorted(tasks, key=lambda task: parts.flow.position[task.spec.name]):
        inside.setdefault(task.container, []).append(task)
    return Plan(
        tasks=_level("", inside, parts),
        deadline=spec.deadline_seconds,
        max_active_runs=spec.max_active_runs,
        concurrency=_limits(spec.concurrency),
        reads=tuple(sorted(parts.reads - spec.parameters.keys())),
    )


def _level(container: str, inside: Mapping[str, Sequence[Placed]], parts: Parts) -> tuple[PlannedTask, ...]:
    return tuple(_planned(task, inside, parts) for task in inside[container])


_planned_task = maker_of(PlannedTask)


def _planned(task: Placed, inside: Mapping[str, Sequence[Placed]], parts: Parts) -> PlannedTask:
    spec = task.spec
    if task.body:
        body = Plan(_level(spec.name, inside, parts))
        return _planned_task(spec.name, "group", **_in_graph(spec), **_container(spec), body=body, is_group=True)
    own = _executed(spec, parts) if spec.operator else _waiting(spec)
    if spec.map is None and spec.repeat is None:
        return _planned_task(spec.name, **own, **_in_graph(spec))
    # What decides when a container starts and ends is its own, the rest is of its body.
    asks_each = is_inner(spec)
    inner = _planned_task(spec.name, **own, when=spec.when if asks_each else "")
    outer = {**_in_graph(spec), **({"when": ""} if asks_each else {})}
    return _planned_task(spec.name, own["operator"], **outer, **_container(spec), body=Plan((inner,)))


def _container(spec: TaskSpec) -> dict[str, Any]:
    return {
        "map": None if spec.map is None else _map(spec.map),
        "repeat": None if spec.repeat is None else _repeat(spec.repeat),
    }


def _in_graph(spec: TaskSpec) -> dict[str, Any]:
    """Return what every kind of task says of its place in the graph."""
    return {
        "upstream": spec.upstream_tasks,
        "trigger_rule": "all_done" if spec.teardown else spec.trigger_rule,
        "critical": spec.critical,
        "when": spec.when,
        "teardown": bool(spec.teardown),
        "setups": spec.teardown if isinstance(spec.teardown, tuple) else (),
        "deadline": spec.deadline_seconds,
    }


def _waiting(spec: TaskSpec) -> dict[str, Any]:
    """Return what a task says that no worker executes."""
    if spec.pipeline is not None:
        child = spec.pipeline
        version = child.get("version")
        plan = ChildPlan(
            pipeline=child["name"],
            version=None if version is None else int(version),
            parameters=child.get("parameters", {}),
            wait=child.get("wait", True),
            inherit=child.get("inherit", True),
        )
        return {"operator": "pipeline", "child": plan}
    if spec.approval is not None:
        approval = spec.approval
        wait = ApprovalPlan(
            message=approval["message"],
            input=approval.get("input"),
            timeout=_seconds(approval, "timeout_seconds"),
            on_timeout=approval.get("on_timeout", "fail"),
            on_reject=approval.get("on_reject", "fail"),
        )
        return {"operator": "approval", "approval": wait}
    event = spec.event or {}
    report = EventPlan(
        timeout=_seconds(event, "timeout_seconds"),
        on_timeout=event.get("on_timeout", "fail"),
        payload=event.get("payload"),
    )
    return {"operator": "event", "event": report}


def _executed(spec: TaskSpec, parts: Parts) -> dict[str, Any]:
    """Return what a task says that a worker executes."""
    site, wiring, declared = parts.site, parts.wirings[spec.name], parts.declared[spec.name]
    resources = _resources(spec, site)
    cache = _cache(spec.cache)
    return {
        "operator": spec.operator,
        "queue": spec.queue or queue_of(resources, site),
        "resources": resources,
        "labels": tuple(sorted(spec.labels.items())),
        "retry": _retry(spec, site, parts.policies),
        "timeout": spec.timeout_seconds,
        "grace": site.grace if spec.grace_seconds is None else spec.grace_seconds,
        "exclusive": spec.exclusive,
        "on_drain": spec.on_drain,
        "on_worker_loss": spec.on_worker_loss,
        "links": wiring.links,
        "parameters": spec.parameters,
        "verbatim": tuple(
            name for name in sorted(parts.verbatim[spec.name]) if holds_template(spec.parameters.get(name))
        )
        if parts.verbatim[spec.name]
        else (),
        "connections": declared.connections,
        "run_inputs": wiring.run_inputs,
        "memory_auto": spec.memory_gb == "auto",
        "max_queued": spec.max_queued_seconds,
        "progress_timeout": spec.progress_timeout_seconds,
        "outputs_schema": spec.outputs,
        "cache": cache,
        "concurrency": _limits(spec.concurrency),
        "rate_limit": None if spec.rate_limit is None else _rate(spec.rate_limit),
        "operator_version": parts.version_of(parts.operators[spec.operator]) if cache is not None else "",
    }


def _resources(task: TaskSpec, site: Site) -> Resources:
    defaults = site.default_task_resources.get(task.operator, {})
    cpu = defaults.get("cpu", 0.5) if task.cpu is None else task.cpu
    # What is to be learned begins with the site's default.
    memory = task.memory_gb if isinstance(task.memory_gb, float) else defaults.get("memory_gb", 0.5)
    # A GPU in the defaults is ignored: a site's guess must not take a device from who asks for one.
    return _shared_resources(
        max(1, math.ceil(round(cpu * 1000, 6))),
        _bytes(memory),
        task.gpu,
        round(task.gpu_memory_gb * GIB),
    )


# Most tasks say the same: one record stands for all of them.
_shared_resources = lru_cache(maxsize=1024, typed=True)(Resources)
_shared_policy = lru_cache(maxsize=1024, typed=True)(RetryPolicy)
_shared_limit = lru_cache(maxsize=1024, typed=True)(ConcurrencyLimit)


def queue_of(resources: Resources, site: Site) -> str:
    """Return the queue that follows from the resources."""
    if resources.gpus:
        return "gpu"
    return "highmem" if resources.memory > site.highmem_threshold * GIB else "cpu"


def _retry(task: TaskSpec, site: Site, known: dict[tuple[RetryPolicy, object], RetryPolicy]) -> RetryPolicy:
    delay = site.retry_delay if task.retry_delay_seconds is None else task.retry_delay_seconds
    # The site's cap is for its own delays; a task that asks for a longer one gets it.
    most = max(site.retry_max_delay, delay) if task.retry_max_delay_seconds is None else task.retry_max_delay_seconds
    retries = site.retries if task.retries is None else task.retries
    factor = BACKOFF_FACTOR if task.retry_backoff_factor is None else task.retry_backoff_factor
    policy = _shared_policy(retries, delay, factor, most)
    if task.retry is None:
        return policy
    written = (policy, fingerprint(task.retry))
    if written not in known:
        known[written] = _with_rules(policy, task.retry)
    return known[written]


def _with_rules(policy: RetryPolicy, retry: Mapping[str, Any]) -> RetryPolicy:
    infrastructure = retry.get("infrastructure")
    return replace(
        policy,
        rules=tuple(_rule(rule) for rule in retry.get("on", ())),
        jitter=float(retry.get("jitter", policy.jitter)),
        infrastructure=None if infrastructure is None else int(infrastructure),
    )


def _rule(rule: Mapping[str, Any]) -> RetryRule:
    match, more = rule["match"], rule.get("resources", {})
    memory, most = more.get("memory_gb"), more.get("max_memory_gb")
    return RetryRule(
        action=rule["action"],
        reasons=_listed(match.get("reason")),
        exit_codes=tuple(int(code) for code in _listed(match.get("exit_code"))),
        exceptions=_listed(match.get("exception")),
        messages=_listed(match.get("message")),
        delay=_seconds(rule, "delay_seconds"),
        memory_factor=memory_factor(memory) if isinstance(memory, str) else None,
        memory=_bytes(memory) if isinstance(memory, (int, float)) else None,
        memory_max=None if most is None else _bytes(most),
        queue=more.get("queue", ""),
    )


def _map(map_: Mapping[str, Any]) -> MapPlan:
    success = map_.get("success", "all")
    least = 0.0
    if isinstance(success, Mapping):
        ((success, number),) = success.items()
        least = float(number)
    parallel = map_.get("max_parallel")
    return MapPlan(
        over=map_["over"],
        max_parallel=None if parallel is None else int(parallel),
        max_size=int(map_.get("max_size", DEFAULT_SIZE)),
        success=success,
        least=least,
        fail_fast=map_.get("fail_fast", False),
        key=map_.get("key", ""),
    )


def _repeat(repeat: Mapping[str, Any]) -> RepeatPlan:
    return RepeatPlan(
        until=repeat["until"],
        max=int(repeat["max"]),
        delay=float(repeat.get("delay_seconds", 0.0)),
        on_max=repeat.get("on_max", "fail"),
    )


def _cache(cache: bool | Mapping[str, Any] | None) -> CachePlan | None:
    if not cache and not isinstance(cache, Mapping):
        return None
    said: Mapping[str, Any] = cache if isinstance(cache, Mapping) else {}
    return CachePlan(
        mode=said.get("mode", "read_write"),
        key=_listed(said.get("key")),
        ttl=_seconds(said, "ttl_seconds"),
        scope=said.get("scope", "pipeline"),
        single_flight=said.get("single_flight", True),
    )


def _limits(limits: Sequence[Mapping[str, Any]]) -> tuple[ConcurrencyLimit, ...]:
    if not limits:
        return ()
    return tuple(_shared_limit(limit["key"], int(limit["limit"]), limit.get("on_limit", "queue")) for limit in limits)


def _rate(rate: Mapping[str, Any]) -> RateLimit:
    return RateLimit(rate["key"], int(rate["units"]), float(rate["per_seconds"]))


def _listed(value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _seconds(said: Mapping[str, Any], name: str) -> float | None:
    return None if said.get(name) is None else float(said[name])


def _bytes(gib: float) -> int:
    return max(1, round(gib * GIB))
