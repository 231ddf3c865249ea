"""A plan as JSON: as it is stored with its version, and as the validation of a definition shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.expressions.templates import holds_template
from orchestrator.graph import depth
from orchestrator.records import (
    ApprovalPlan,
    CachePlan,
    ChildPlan,
    ConcurrencyLimit,
    EventPlan,
    InputLink,
    MapPlan,
    Plan,
    PlannedTask,
    RateLimit,
    RepeatPlan,
    Resources,
    RetryPolicy,
    RetryRule,
    RunInput,
)
from orchestrator.rules import RULES
from orchestrator.spec import ON_DRAIN, ON_WORKER_LOSS
from orchestrator.spec_kinds import ON_APPROVAL_TIMEOUT, ON_EVENT_TIMEOUT, ON_MAX, ON_REJECT
from orchestrator.spec_policies import CACHE_MODES, CACHE_SCOPES, ON_LIMIT, RETRY_ACTIONS

if TYPE_CHECKING:
    from orchestrator.compile import Compiled

FORMAT = 1
_LATER_FIELDS: dict[str, Any] = {
    "on_drain": "wait",
    "on_worker_loss": "kill",
    "when": "",
    "map": None,
    "repeat": None,
    "body": None,
    "is_group": False,
    "child": None,
    "approval": None,
    "event": None,
    "teardown": False,
    "setups": (),
    "memory_auto": False,
    "max_queued": None,
    "progress_timeout": None,
    "deadline": None,
    "outputs_schema": None,
    "cache": None,
    "concurrency": (),
    "rate_limit": None,
    "operator_version": "",
}
"""Fields that came after format 1: left out while they say nothing new, so that the releases before them, which take
every stored field for one of theirs, read the plans of definitions that do not use them."""
_RETRY_LATER: dict[str, Any] = {"rules": (), "infrastructure": None}
_PLAN_LATER: dict[str, Any] = {"deadline": None, "max_active_runs": None, "concurrency": (), "reads": ()}
"""Of the plan itself; those before format 1 had them pass over what stands beside the tasks."""
_TEMPLATES = "templates"
"""Stored in place of ``verbatim``: the parameters that hold templates. A plan without it is one in which ``{{`` means
nothing, be it older than templates."""

_WORDS: dict[type, dict[str, Iterable[str]]] = {
    PlannedTask: {"trigger_rule": RULES, "on_drain": ON_DRAIN, "on_worker_loss": ON_WORKER_LOSS},
    MapPlan: {"success": ("all", "any", "min_count", "min_ratio")},
    RepeatPlan: {"on_max": ON_MAX},
    ApprovalPlan: {"on_timeout": ON_APPROVAL_TIMEOUT, "on_reject": ON_REJECT},
    EventPlan: {"on_timeout": ON_EVENT_TIMEOUT},
    ConcurrencyLimit: {"on_limit": ON_LIMIT},
    CachePlan: {"mode": CACHE_MODES, "scope": CACHE_SCOPES},
    RetryRule: {"action": RETRY_ACTIONS},
}

T = TypeVar("T")


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan for a JSON column; :func:`plan_from_json` turns it into an equal plan."""
    return {"format": FORMAT, **_level_to_json(plan)}


def plan_from_json(stored: Mapping[str, Any]) -> Plan:
    """Return the plan of what :func:`plan_to_json` made, also of an older release.

    :raises ValueError: the format, or a field, is one that this release does not know. It may change what the task
        means, so it is not passed over. Or what is stored is no plan.
    """
    form = stored.get("format") if isinstance(stored, Mapping) else None
    if form != FORMAT:
        raise ValueError(f"A stored plan has format {form!r} and this release reads {FORMAT}; run the newer release.")
    try:
        return _level_from_json({name: value for name, value in stored.items() if name != "format"})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The stored plan lacks a part, or has a wrong one: {error!r}.") from error


def _level_to_json(plan: Plan) -> dict[str, Any]:
    """Return a plan or the body of a container, without the format."""
    values: dict[str, Any] = {"tasks": [_task_to_json(task) for task in plan.tasks]}
    for name, usual in _PLAN_LATER.items():
        if (value := getattr(plan, name)) != usual:
            values[name] = _plain(value)
    return values


def _level_from_json(stored: Mapping[str, Any]) -> Plan:
    read = dict(stored)
    read["tasks"] = tuple(_task_from_json(task) for task in stored["tasks"])
    read["concurrency"] = _several(ConcurrencyLimit, stored.get("concurrency", ()))
    read["reads"] = tuple(stored.get("reads", ()))
    return _read(Plan, read)


def _task_to_json(task: PlannedTask) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in _TASK_FIELDS:
        value = getattr(task, name)
        if name == "body" and value is not None:
            values[name] = _level_to_json(value)
        elif name not in _LATER_FIELDS or value != _LATER_FIELDS[name]:
            values[name] = _plain(value)
    values["labels"] = dict(task.labels)
    for name, usual in _RETRY_LATER.items():
        if getattr(task.retry, name) == usual:
            del values["retry"][name]
    if templates := [name for name, value in task.templated.items() if holds_template(value)]:
        values[_TEMPLATES] = sorted(templates)
    return values


def _plain(value: Any) -> Any:
    """Return a record, or several, as JSON."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if (names := _FIELDS.get(type(value))) is not None:
        return {name: _plain(getattr(value, name)) for name in names}
    return value


def _task_from_json(values: Mapping[str, Any]) -> PlannedTask:
    read: dict[str, Any] = {name: value for name, value in values.items() if name != _TEMPLATES}
    if "verbatim" in read:
        raise ValueError("A stored plan says 'verbatim' of a PlannedTask, which is never stored.")
    for name in ("upstream", "connections", "setups"):
        read[name] = tuple(values.get(name, ()))
    read["labels"] = tuple(sorted(values.get("labels", {}).items()))
    read["resources"] = _read(Resources, values.get("resources", {}))
    read["retry"] = _retry(values.get("retry", {}))
    read["links"] = _several(InputLink, values.get("links", ()))
    read["run_inputs"] = _several(RunInput, values.get("run_inputs", ()))
    read["concurrency"] = _several(ConcurrencyLimit, values.get("concurrency", ()))
    for name, one in _ONE.items():
        if values.get(name) is not None:
            read[name] = one(values[name])
    templates = frozenset(values.get(_TEMPLATES, ()))
    read["verbatim"] = tuple(
        sorted(
            name
            for name, value in values.get("parameters", {}).items()
            if name not in templates and holds_template(value)
        )
    )
    return _read(PlannedTask, read)


def _retry(values: Mapping[str, Any]) -> RetryPolicy:
    rules = tuple(
        _read(RetryRule, {**rule, **{name: tuple(rule.get(name, ())) for name in _LISTS_OF_RULES}})
        for rule in values.get("rules", ())
    )
    return _read(RetryPolicy, {**values, "rules": rules})


def _several(kind: type[T], stored: Iterable[Mapping[str, Any]]) -> tuple[T, ...]:
    return tuple(_read(kind, values) for values in stored)


_LISTS_OF_RULES = ("reasons", "exit_codes", "exceptions", "messages")
_ONE: dict[str, Callable[[Any], Any]] = {
    "map": lambda values: _read(MapPlan, values),
    "repeat": lambda values: _read(RepeatPlan, values),
    "body": lambda values: _level_from_json(values),
    "child": lambda values: _read(ChildPlan, values),
    "approval": lambda values: _read(ApprovalPlan, values),
    "event": lambda values: _read(EventPlan, values),
    "cache": lambda values: _read(CachePlan, {**values, "key": tuple(values.get("key", ()))}),
    "rate_limit": lambda values: _read(RateLimit, values),
}
_FIELDS = {
    kind: tuple(field.name for field in fields(kind))
    for kind in (
        ApprovalPlan, CachePlan, ChildPlan, ConcurrencyLimit, EventPlan, InputLink, MapPlan, RateLimit, RepeatPlan,
        Resources, RetryPolicy, RetryRule, RunInput,
    )
}  # fmt: skip
_TASK_FIELDS = tuple(field.name for field in fields(PlannedTask) if field.name != "verbatim")


def _read(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return the record, or say which field or word this release does not know, or which part is not there."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - known):
        raise ValueError(
            f"A stored plan says {', '.join(map(repr, unknown))} of a {kind.__name__}, which this release does not "
            "know; run the newer release."
        )
    try:
        record = kind(**values)
    except TypeError as error:
        raise ValueError(f"A stored plan lacks a part of a {kind.__name__}: {error}.") from error
    for name, words in _WORDS.get(kind, {}).items():
        if (word := getattr(record, name)) not in words:
            raise ValueError(
                f"A stored plan says {name} {word!r}, which this release does not know; run the newer release."
            )
    return record


def describe(compiled: Compiled) -> dict[str, Any]:
    """Return what validation shows: order, queues, resources, where inputs come from, and what a run has to give."""
    tasks = compiled.plan.tasks
    upstreams = {task.name: task.upstream for task in tasks}
    order = [task.name for task in tasks]
    return {
        "order": order,
        "depth": depth(upstreams, order),
        "tasks": [_described(task) for task in tasks],
        "run_needs": [asdict(need) for need in compiled.run_needs],
        "run_parameters": list(compiled.plan.reads),
        "connections": list(compiled.connections),
        "content_hash": compiled.content_hash,
    }


def _described(task: PlannedTask) -> dict[str, Any]:
    return {
        "name": task.name,
        "kind": kind_of_task(task),
        "operator": task.operator,
        "upstream_tasks": list(task.upstream),
        "trigger_rule": task.trigger_rule,
        "when": task.when,
        "teardown": task.teardown,
        "queue": task.queue,
        "cpu": task.resources.cpu / 1000,
        "memory_gb": task.resources.memory / 2**30,
        "gpu": task.resources.gpus,
        "gpu_memory_gb": task.resources.gpu_memory / 2**30,
        "inputs": {link.parameter: {"kind": link.kind, "task": link.source} for link in task.links},
        "retries": task.retry.retries,
        "timeout_seconds": task.timeout,
        "on_drain": task.on_drain,
        "on_worker_loss": task.on_worker_loss,
        "body": [_described(inner) for inner in task.body.tasks] if task.body is not None else [],
    }


def kind_of_task(task: PlannedTask) -> str:
    """Return what a task is: ``map``, ``repeat``, ``pipeline``, ``approval``, ``event`` or ``operator``."""
    kinds: dict[str, object] = {
        "map": task.map,
        "repeat": task.repeat,
        "pipeline": task.child,
        "approval": task.approval,
        "event": task.event,
    }
    return next((kind for kind, is_so in kinds.items() if is_so is not None), "operator")
