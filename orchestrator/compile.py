"""Compiles a pipeline definition into the plan that the scheduler follows, or says all that is wrong with it.

Pure: operators are asked for their schemas and for what they need and make, nothing is run or read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from orchestrator.documents import did_you_mean
from orchestrator.documents import parameter_problems as document_problems
from orchestrator.errors import InvalidDefinition, Problem
from orchestrator.graph import depth, find_cycle, topological_order
from orchestrator.operator import Operator
from orchestrator.operator_checks import Declaration, declaration, parameter_faults
from orchestrator.records import Plan, PlannedTask, Resources, RetryPolicy
from orchestrator.rules import ROOT_RULES
from orchestrator.spec import MAX_TASKS, PipelineSpec, Reading, TaskSpec, read_pipeline, to_document
from orchestrator.wiring import Wiring, wire_inputs

if TYPE_CHECKING:
    from orchestrator.config import Settings

MAX_EDGES = 5000
MAX_DEPTH = 200
MAX_PROBLEMS = 200
BACKOFF_FACTOR = 2.0
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Site:
    """What the site decides for tasks that don't say."""

    queues: tuple[str, ...] = ("cpu", "gpu", "highmem")
    highmem_threshold: float = 32.0
    """GiB; a task that asks for more goes to ``highmem``."""
    default_task_resources: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    retries: int = 3
    retry_delay: float = 60.0
    retry_max_delay: float = 600.0
    grace: float = 10.0
    connections: frozenset[str] = frozenset()
    """Names of the site's connections."""
    max_tasks: int = MAX_TASKS

    @classmethod
    def of(cls, settings: Settings) -> Site:
        return cls(
            queues=settings.queues,
            highmem_threshold=settings.highmem_threshold_gb,
            default_task_resources=settings.default_task_resources,
            retries=settings.default_retry_count,
            retry_delay=settings.default_retry_delay_seconds,
            retry_max_delay=settings.default_retry_max_delay_seconds,
            grace=settings.cancel_grace_seconds,
            connections=frozenset(settings.connections),
        )


@dataclass(frozen=True, slots=True)
class RunNeed:
    """Task ``task`` needs the run's parameter ``parameter``: a thing of this kind that no ancestor makes."""

    task: str
    parameter: str
    kind: str


@dataclass(frozen=True, slots=True)
class Compiled:
    plan: Plan
    definition: Mapping[str, Any]
    """Normalised; compiles to the same again."""
    content_hash: str
    """``sha256:<hex>`` of the normalised definition: the same save gives the same hash."""
    run_needs: tuple[RunNeed, ...]
    """What a run has to give, the pipeline's own defaults left out of account."""
    connections: tuple[str, ...]
    """Named connections that tasks use."""


def compile_pipeline(document: object, operators: Mapping[str, type[Operator]], site: Site) -> Compiled:
    """Compile a definition.

    :param document: as it came from JSON.
    :raises InvalidDefinition: with all problems found, at most 200.
    """
    reading = read_pipeline(document, site.max_tasks)
    problems = list(reading.problems)
    upstreams = {task.name: task.upstream_tasks for _, task in reading.tasks}
    for position, task in reading.tasks:
        problems += _task_problems(position, task, reading.names, operators, site)
    problems += _graph_problems(reading)
    if reading.spec is None or problems:
        _refuse(problems)
    assert reading.spec is not None
    order = topological_order(upstreams)
    declared, problems = _declarations(reading, operators)
    if not problems:
        wirings, problems = wire_inputs(reading.tasks, declared, upstreams, order)
    if problems:
        _refuse(problems)
    return _compiled(reading.spec, order, wirings, declared, site)


def run_problems(
    plan: Plan, parameters: object, site: Site, defaults: Mapping[str, Any] | None = None
) -> list[Problem]:
    """Return why a run of this plan with these parameters is refused at its creation.

    :param parameters: of the run, as they came from JSON; pointers lead into them.
    :param defaults: the definition's own ``parameters``, under those of the run.
    """
    if problems := document_problems(parameters):
        return [Problem(f"/parameters{problem.pointer}", problem.message) for problem in problems]
    given = {**(defaults or {}), **(parameters if isinstance(parameters, Mapping) else {})}
    found: list[Problem] = []
    for task in plan.tasks:
        for wanted in task.run_inputs:
            here = f"/parameters/{wanted.parameter}"
            value = given.get(wanted.parameter)
            if value is None and wanted.required:
                message = f"The task {task.name!r} needs a {wanted.kind} and nothing upstream makes one; give its path "
                found.append(Problem(here, f"{message}or URI as the run's parameter {wanted.parameter!r}."))
            elif value is not None and not (isinstance(value, str) and value):
                message = f"The task {task.name!r} takes it as a {wanted.kind}; give a path or URI as a text."
                found.append(Problem(here, message))
        found += [
            Problem(
                "",
                f"The task {task.name!r} uses the connection {name!r}, which this site does not define; "
                f"add it to CONNECTIONS.{did_you_mean(name, site.connections)}",
            )
            for name in task.connections
            if name not in site.connections
        ]
    return list(dict.fromkeys(found))


def _refuse(problems: Sequence[Problem]) -> None:
    """Raise what was found, in the order of the document."""
    unique = list(dict.fromkeys(problems))
    ordered = sorted(unique, key=lambda problem: _sort_key(problem.pointer))
    if len(ordered) > MAX_PROBLEMS:
        more = Problem("", f"{len(ordered) - MAX_PROBLEMS} more problems are not listed.")
        ordered = [*ordered[:MAX_PROBLEMS], more]
    raise InvalidDefinition(ordered)


def _sort_key(pointer: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in pointer.split("/")]


def _task_problems(
    position: int, task: TaskSpec, names: frozenset[str], operators: Mapping[str, type[Operator]], site: Site
) -> list[Problem]:
    here = f"/tasks/{position}"
    found: list[Problem] = []
    for at, upstream in enumerate(task.upstream_tasks):
        if upstream not in names:
            message = f"There is no task {upstream!r} in this pipeline.{did_you_mean(upstream, names)}"
            found.append(Problem(f"{here}/upstream_tasks/{at}", message))
    if not task.upstream_tasks and task.trigger_rule not in ROOT_RULES:
        message = f"A task without upstreams can't have the rule {task.trigger_rule!r}: nothing ever happens before it."
        found.append(Problem(f"{here}/trigger_rule", f"{message} Choose one of {', '.join(sorted(ROOT_RULES))}."))
    if task.operator in operators:
        found += parameter_faults(operators[task.operator], task.parameters, f"{here}/parameters")
    else:
        message = f"There is no operator {task.operator!r} on this site.{did_you_mean(task.operator, operators)}"
        found.append(Problem(f"{here}/operator", f"{message} There are {', '.join(operators) or 'none'}."))
    return found + _resource_problems(here, task, site)


def _declarations(
    reading: Reading, operators: Mapping[str, type[Operator]]
) -> tuple[dict[str, Declaration], list[Problem]]:
    declared: dict[str, Declaration] = {}
    problems: list[Problem] = []
    for position, task in reading.tasks:
        here = f"/tasks/{position}/parameters"
        declared[task.name], found = declaration(operators[task.operator], task.parameters, here)
        problems += found
    return declared, problems


def _resource_problems(here: str, task: TaskSpec, site: Site) -> list[Problem]:
    found: list[Problem] = []
    if task.queue is not None and task.queue not in site.queues:
        message = f"There is no queue {task.queue!r} on this site.{did_you_mean(task.queue, site.queues)}"
        found.append(Problem(f"{here}/queue", f"{message} There are {', '.join(site.queues)}; more come from QUEUES."))
    if task.queue == "cpu" and task.gpu:
        message = "The queue 'cpu' is for tasks without a GPU and this one asks for one; leave the queue out."
        found.append(Problem(f"{here}/queue", message))
    if task.exclusive and task.on_worker_loss == "adopt":
        message = (
            "An exclusive task stops itself when it is cut off, and an adopted one outlives its worker: the two "
            'contradict each other. Leave out "exclusive" or "on_worker_loss".'
        )
        found.append(Problem(f"{here}/on_worker_loss", message))
    if task.gpu_memory_gb and not task.gpu:
        found.append(Problem(f"{here}/gpu_memory_gb", 'GPU memory is asked for and no GPU; add "gpu": 1.'))
    delay, most = task.retry_delay_seconds, task.retry_max_delay_seconds
    if delay is not None and most is not None and most < delay:
        message = f"The longest delay ({most:g} s) is below the first ({delay:g} s); raise it."
        found.append(Problem(f"{here}/retry_max_delay_seconds", message))
    return found


def _graph_problems(reading: Reading) -> list[Problem]:
    known = {task.name for _, task in reading.tasks}
    # Unknown names are reported by their tasks; here they would only hide a cycle.
    upstreams = {task.name: [up for up in task.upstream_tasks if up in known] for _, task in reading.tasks}
    edges = sum(len(names) for names in upstreams.values())
    if edges > MAX_EDGES:
        return [Problem("/tasks", f"The tasks have {edges} edges; at most {MAX_EDGES} are allowed.")]
    if cycle := find_cycle(upstreams):
        at = next(position for position, task in reading.tasks if task.name == cycle[-1])
        path = " → ".join(cycle)
        return [Problem(f"/tasks/{at}/upstream_tasks", f"These tasks wait for each other in a circle: {path}.")]
    longest = depth(upstreams, topological_order(upstreams))
    if longest > MAX_DEPTH:
        return [Problem("/tasks", f"The longest path has {longest} tasks; at most {MAX_DEPTH} are allowed.")]
    return []


def _compiled(
    spec: PipelineSpec,
    order: Sequence[str],
    wirings: Mapping[str, Wiring],
    declared: Mapping[str, Declaration],
    site: Site,
) -> Compiled:
    tasks = {task.name: task for task in spec.tasks}
    planned = tuple(_planned(tasks[name], wirings[name], declared[name], site) for name in order)
    definition = to_document(spec)
    needs = tuple(
        RunNeed(task.name, wanted.parameter, wanted.kind)
        for task in planned
        for wanted in task.run_inputs
        if wanted.required
    )
    connections = tuple(sorted({name for task in planned for name in task.connections}))
    return Compiled(Plan(planned), definition, content_hash(definition), needs, connections)


def content_hash(definition: Mapping[str, Any]) -> str:
    """Return the fingerprint of a normalised definition; the order of fields does not matter."""
    canonical = json.dumps(definition, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def _planned(task: TaskSpec, wiring: Wiring, declared: Declaration, site: Site) -> PlannedTask:
    resources = _resources(task, site)
    return PlannedTask(
        name=task.name,
        operator=task.operator,
        upstream=task.upstream_tasks,
        trigger_rule=task.trigger_rule,
        queue=task.queue or _queue(resources, site),
        resources=resources,
        labels=tuple(sorted(task.labels.items())),
        retry=_retry(task, site),
        timeout=task.timeout_seconds,
        grace=site.grace if task.grace_seconds is None else task.grace_seconds,
        exclusive=task.exclusive,
        on_drain=task.on_drain,
        on_worker_loss=task.on_worker_loss,
        critical=task.critical,
        links=wiring.links,
        parameters=task.parameters,
        connections=declared.connections,
        run_inputs=wiring.run_inputs,
    )


def _resources(task: TaskSpec, site: Site) -> Resources:
    defaults = site.default_task_resources.get(task.operator, {})
    cpu = defaults.get("cpu", 0.5) if task.cpu is None else task.cpu
    memory = defaults.get("memory_gb", 0.5) if task.memory_gb is None else task.memory_gb
    # A GPU in the defaults is ignored: a site's guess must not take a device from who asks for one.
    return Resources(
        cpu=max(1, math.ceil(round(cpu * 1000, 6))),
        memory=max(1, round(memory * GIB)),
        gpus=task.gpu,
        gpu_memory=round(task.gpu_memory_gb * GIB),
    )


def _queue(resources: Resources, site: Site) -> str:
    if resources.gpus:
        return "gpu"
    return "highmem" if resources.memory > site.highmem_threshold * GIB else "cpu"


def _retry(task: TaskSpec, site: Site) -> RetryPolicy:
    delay = site.retry_delay if task.retry_delay_seconds is None else task.retry_delay_seconds
    # The site's cap is for its own delays; a task that asks for a longer one gets it.
    most = max(site.retry_max_delay, delay) if task.retry_max_delay_seconds is None else task.retry_max_delay_seconds
    return RetryPolicy(
        retries=site.retries if task.retries is None else task.retries,
        delay=delay,
        factor=BACKOFF_FACTOR if task.retry_backoff_factor is None else task.retry_backoff_factor,
        max_delay=most,
    )
