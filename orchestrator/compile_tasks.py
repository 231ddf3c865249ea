"""Checks one task against the site and its operator, and its fields against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.compile_graph import Flow, Placed
from orchestrator.compile_site import Site
from orchestrator.documents import did_you_mean
from orchestrator.errors import ExpressionError, Problem
from orchestrator.expressions import compile_expression
from orchestrator.operator import Operator
from orchestrator.operator_checks import parameter_faults
from orchestrator.rules import ROOT_RULES
from orchestrator.spec import KINDS, TaskSpec


def task_problems(task: Placed, operators: Mapping[str, type[Operator]], site: Site) -> list[Problem]:
    """Return what is wrong with the task by itself; names of other tasks are checked elsewhere."""
    spec, here = task.spec, task.pointer
    found: list[Problem] = []
    waits_for_none = not spec.upstream_tasks and "upstream_tasks" not in task.faulty
    if waits_for_none and spec.trigger_rule not in ROOT_RULES:
        message = f"A task without upstreams can't have the rule {spec.trigger_rule!r}: nothing ever happens before it."
        found.append(Problem(f"{here}/trigger_rule", f"{message} Choose one of {', '.join(sorted(ROOT_RULES))}."))
    if spec.kind == "operator":
        if spec.operator in operators:
            if "parameters" not in task.faulty:
                found += parameter_faults(operators[spec.operator], spec.parameters, f"{here}/parameters")
        elif task.faulty.isdisjoint(KINDS):
            message = f"There is no operator {spec.operator!r} on this site.{did_you_mean(spec.operator, operators)}"
            found.append(Problem(f"{here}/operator", f"{message} There are {', '.join(operators) or 'none'}."))
    if spec.teardown:
        found += _teardown_problems(spec, here, waits_for_none)
    found += _resource_problems(task, here, site)
    found += _retry_problems(spec, here, site)
    if spec.exclusive:
        found += _contradictions(spec, here)
    return found


def order_problems(task: Placed, flow: Flow, names: frozenset[str], groups: Mapping[str, str]) -> Iterator[Problem]:
    """Yield what is wrong with the set-ups of a teardown: they come before it, in its own graph.

    :param groups: the group that each task is in.
    """
    for at, setup in enumerate(task.spec.teardown if isinstance(task.spec.teardown, tuple) else ()):
        here = f"{task.pointer}/teardown/{at}"
        if setup not in names:
            yield Problem(here, f"There is no task {setup!r} in this pipeline.{did_you_mean(setup, names)}")
        elif setup in groups and (groups[setup] != task.container or not flow.is_above(setup, task.spec.name)):
            message = f"{setup!r} does not come before {task.spec.name!r} in the same graph, so it sets up nothing"
            yield Problem(here, f"{message} for it; add it to upstream_tasks, or something that comes after it.")


def _teardown_problems(task: TaskSpec, here: str, waits_for_none: bool) -> Iterator[Problem]:
    if waits_for_none:
        message = "A teardown runs when its upstreams are done, and this one has none; add upstream_tasks."
        yield Problem(f"{here}/teardown", message)
    for name in ("tasks", "pipeline", "approval", "event", "map", "repeat"):
        if getattr(task, name) not in (None, ()):
            message = f"A teardown runs even while its run is cancelled, so it is one plain task without {name!r}."
            yield Problem(f"{here}/{name}", message)
    if task.trigger_rule not in ("all_success", "all_done"):
        message = "A teardown runs when its upstreams are done, however they ended; leave the rule out."
        yield Problem(f"{here}/trigger_rule", message)
    if task.cache:
        yield Problem(f"{here}/cache", "A teardown has to act, so nothing can stand for it; leave 'cache' out.")


def _resource_problems(placed: Placed, here: str, site: Site) -> Iterator[Problem]:
    task = placed.spec
    if task.queue is not None:
        yield from _queue_problems(task.queue, f"{here}/queue", site)
    if task.queue == "cpu" and task.gpu:
        message = "The queue 'cpu' is for tasks without a GPU and this one asks for one; leave the queue out."
        yield Problem(f"{here}/queue", message)
    if task.gpu_memory_gb and not task.gpu and "gpu" not in placed.faulty:
        yield Problem(f"{here}/gpu_memory_gb", 'GPU memory is asked for and no GPU; add "gpu": 1.')


def _queue_problems(queue: str, pointer: str, site: Site) -> Iterator[Problem]:
    if queue not in site.queues:
        message = f"There is no queue {queue!r} on this site.{did_you_mean(queue, site.queues)}"
        yield Problem(pointer, f"{message} There are {', '.join(site.queues)}; more come from QUEUES.")


def _retry_problems(task: TaskSpec, here: str, site: Site) -> Iterator[Problem]:
    delay, most = task.retry_delay_seconds, task.retry_max_delay_seconds
    if delay is not None and most is not None and most < delay:
        message = f"The longest delay ({most:g} s) is below the first ({delay:g} s); raise it."
        yield Problem(f"{here}/retry_max_delay_seconds", message)
    for at, rule in enumerate((task.retry or {}).get("on", ())):
        more = rule.get("resources")
        if not more or not ("queue" in more or "max_memory_gb" in more):
            continue
        place = f"{here}/retry/on/{at}/resources"
        if "queue" in more:
            yield from _queue_problems(more["queue"], f"{place}/queue", site)
            if more["queue"] == "cpu" and task.gpu:
                yield Problem(f"{place}/queue", "The queue 'cpu' is for tasks without a GPU and this one asks for one.")
        cap, memory = more.get("max_memory_gb"), task.memory_gb
        if cap is not None and isinstance(memory, float) and cap <= memory:
            message = f"The task asks for {memory:g} GiB to begin with, so a limit of {cap:g} GiB lets nothing grow."
            yield Problem(f"{place}/max_memory_gb", f"{message} Raise it.")


def _contradictions(task: TaskSpec, here: str) -> Iterator[Problem]:
    if task.on_worker_loss == "adopt":
        message = (
            "An exclusive task stops itself when it is cut off, and an adopted one outlives its worker: the two "
            'contradict each other. Leave out "exclusive" or "on_worker_loss".'
        )
        yield Problem(f"{here}/on_worker_loss", message)
    if task.cache:
        message = "An exclusive task acts on something outside, which no cached result does; leave one of the two out."
        yield Problem(f"{here}/cache", message)


def never_asked(placed: Placed) -> Iterator[Problem]:
    """Yield a condition that asks under ``all_success`` whether an upstream failed: the rule settles it before.

    :param placed: its condition is in order otherwise: a state that there is not is never met under any rule.
    """
    task = placed.spec
    if not task.when or task.trigger_rule != "all_success" or task.teardown:
        return
    if not placed.faulty.isdisjoint({"trigger_rule", "upstream_tasks", "teardown"}):
        return
    try:
        expression = compile_expression(task.when)
        upstreams = {name: {"state": "success"} for name in task.upstream_tasks}
        known = {("tasks", name, "state") for name in upstreams}
        if not expression.references or expression.references - known or expression.evaluate({"tasks": upstreams}):
            return
    except ExpressionError:
        return  # told elsewhere
    message = "Under the rule 'all_success' this is asked only when all upstreams have succeeded, so it is never met"
    yield Problem(f"{placed.pointer}/when", f'{message}; add "trigger_rule": "all_done".')
