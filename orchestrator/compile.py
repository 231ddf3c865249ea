"""Compiles a pipeline definition into the plan that the scheduler follows, or says all that is wrong with it.

Pure: operators are asked for their schemas and for what they need and make, nothing is run or read.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn

from orchestrator.compile_graph import Flow, Placed, graph_problems, placed_tasks, upstream_problems
from orchestrator.compile_names import Names, RunParameters, name_problems, parameters_read, pipeline_problems
from orchestrator.compile_plan import Parts, make_plan
from orchestrator.compile_runs import declared_problems
from orchestrator.compile_shapes import Shapes
from orchestrator.compile_site import Site
from orchestrator.compile_tasks import never_asked, order_problems, task_problems
from orchestrator.compile_warnings import task_warnings
from orchestrator.compile_width import width_problems
from orchestrator.documents import canonical_json, did_you_mean, escaped
from orchestrator.documents import parameter_problems as document_problems
from orchestrator.errors import InvalidDefinition, Problem
from orchestrator.lasting import uncollected
from orchestrator.operator import Operator
from orchestrator.operator_checks import Declaration, declaration, inputs_named, verbatim_parameters
from orchestrator.records import Plan, PlannedTask
from orchestrator.spec import KINDS
from orchestrator.spec_document import to_document
from orchestrator.spec_reading import Reading, read_pipeline
from orchestrator.wiring import MAX_LOOKED, Wiring, wire_inputs

__all__ = ["Compiled", "RunNeed", "Site", "all_tasks", "compile_pipeline", "content_hash", "run_problems"]

MAX_PROBLEMS = 200


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
    warnings: tuple[Problem, ...] = ()
    """What is allowed and most likely meant otherwise, at most 200."""


def own_version(operator: type[Operator]) -> str:
    """Return what an operator says of its version; the registry knows a better answer."""
    return str(operator.version)


@uncollected()
def compile_pipeline(
    document: object,
    operators: Mapping[str, type[Operator]],
    site: Site,
    version_of: Callable[[type[Operator]], str] = own_version,
    *,
    is_storable: bool = False,
) -> Compiled:
    """Compile a definition.

    :param document: as it came from JSON.
    :param version_of: what of an operator's code goes into the keys of cached results.
    :param is_storable: whoever read it has seen that :func:`orchestrator.documents.unstorable` finds nothing in it.
    :raises InvalidDefinition: with all problems found, at most 200.
    """
    reading = read_pipeline(document, site.max_tasks, is_storable=is_storable)
    tasks = placed_tasks(reading)
    flow = Flow(tasks)
    verbatim = _verbatim(tasks, operators)
    faults, reads = _task_faults(reading, tasks, flow, operators, verbatim, site)
    problems = [*reading.problems, *faults]
    problems += [*graph_problems(tasks, flow), *width_problems(tasks)]
    declared: dict[str, Declaration] = {}
    wirings: dict[str, Wiring] = {}
    if tasks and not any(map(_hinders_wiring, problems)):
        declared, found = _declarations(tasks, operators)
        if not found:
            wirings, found = wire_inputs(tasks, declared, flow)
        problems += found
    if reading.spec is None or problems:
        _refuse(problems)
    plan = make_plan(reading.spec, tasks, Parts(flow, wirings, declared, verbatim, operators, site, version_of, reads))
    definition = to_document(reading.spec)
    everything = list(all_tasks(plan))
    needs = tuple(
        RunNeed(task.name, wanted.parameter, wanted.kind)
        for task in everything
        for wanted in task.run_inputs
        if wanted.required
    )
    connections = tuple(sorted({name for task in everything for name in task.connections}))
    warnings = tuple(islice(task_warnings(tasks, verbatim), MAX_PROBLEMS))
    return Compiled(plan, definition, content_hash(definition), needs, connections, warnings)


def all_tasks(plan: Plan) -> Iterator[PlannedTask]:
    """Yield the tasks of the plan, each container before its body."""
    for task in plan.tasks:
        yield task
        if task.body is not None:
            yield from all_tasks(task.body)


def run_problems(
    plan: Plan,
    parameters: object,
    site: Site,
    defaults: Mapping[str, Any] | None = None,
    named: Mapping[str, Any] | None = None,
) -> list[Problem]:
    """Return why a run of this plan with these parameters is refused at its creation.

    :param parameters: of the run, as they came from JSON; pointers lead into them.
    :param defaults: the definition's own ``parameters``, under those of the run.
    :param named: those of them that were named for this run alone, where others come with it from another run.
    """
    if problems := document_problems(parameters):
        return [Problem(f"/parameters{problem.pointer}", problem.message) for problem in problems]
    given = {**(defaults or {}), **(parameters if isinstance(parameters, Mapping) else {})}
    alone = named if named is not None else parameters
    found = list(declared_problems(plan, alone if isinstance(alone, Mapping) else {}, defaults or {}))
    for task in all_tasks(plan):
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
    found += [
        Problem(
            f"/parameters/{escaped(name)}",
            f"Templates of the pipeline read the run's parameter {name!r}, which has no default; give it.",
        )
        for name in plan.reads
        if name not in given
    ]
    return list(dict.fromkeys(found))


def _refuse(problems: Sequence[Problem]) -> NoReturn:
    """Raise what was found, in the order of the document."""
    unique = list(dict.fromkeys(problems))
    ordered = sorted(unique, key=lambda problem: _sort_key(problem.pointer))
    if len(ordered) > MAX_PROBLEMS:
        more = Problem("", f"{len(ordered) - MAX_PROBLEMS} more problems are not listed.")
        ordered = [*ordered[:MAX_PROBLEMS], more]
    raise InvalidDefinition(ordered)


def _sort_key(pointer: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in pointer.split("/")]


def _task_faults(
    reading: Reading,
    tasks: Sequence[Placed],
    flow: Flow,
    operators: Mapping[str, type[Operator]],
    verbatim: Mapping[str, frozenset[str]],
    site: Site,
) -> tuple[list[Problem], frozenset[str]]:
    """Return what is wrong with each task: by itself, with what it waits for, and with what it names; and the run's
    parameters that templates read."""
    groups = {task.spec.name: task.container for task in tasks}
    is_complete = reading.is_complete
    # Asked for by every expression that reads a parameter which is not declared, and looks at all tasks.
    brought = functools.cache(lambda: _brought(tasks, operators, verbatim))
    parameters = RunParameters(reading.defaults, brought)
    names = Names(flow, reading.names, groups, parameters, Shapes(tasks, operators), complete=is_complete)
    found: list[Problem] = []
    for task in tasks:
        found += upstream_problems(task, reading.names, groups)
        found += task_problems(task, operators, site)
        of_names = list(name_problems(task, names, verbatim.get(task.spec.name, frozenset())))
        found += of_names
        if all(problem.pointer != f"{task.pointer}/when" for problem in of_names):
            found += never_asked(task)
        if is_complete and not flow.cycle:
            found += order_problems(task, flow, reading.names, groups)
        if len(found) > MAX_LOOKED:
            break
    found += pipeline_problems(reading.concurrency, names)
    return found, frozenset(names.read)


def _verbatim(tasks: Sequence[Placed], operators: Mapping[str, type[Operator]]) -> dict[str, frozenset[str]]:
    """Return in which parameters of each task ``{{`` means nothing; under a mistyped operator, in those of any."""
    of_any = frozenset[str]().union(*map(verbatim_parameters, operators.values()))
    return {
        task.spec.name: verbatim_parameters(operators[task.spec.operator])
        if task.spec.operator in operators
        else of_any
        for task in tasks
        if task.spec.kind == "operator"
    }


def _brought(
    tasks: Sequence[Placed], operators: Mapping[str, type[Operator]], verbatim: Mapping[str, frozenset[str]]
) -> frozenset[str]:
    """Return the parameters that a run may have to bring: templates read them, or operators take them as an input."""
    read = (parameters_read(task.spec, verbatim.get(task.spec.name, frozenset())) for task in tasks)
    taken = (inputs_named(operators[task.spec.operator]) for task in tasks if task.spec.operator in operators)
    return frozenset[str]().union(*read, *taken)


def _hinders_wiring(problem: Problem) -> bool:
    """Say whether a problem leaves open who makes what, and for whom: what followed from a guess would be no fault."""
    parts = problem.pointer.split("/")
    if parts[-1] == "tasks" or parts[-2:-1] == ["tasks"] or (len(parts) > 2 and parts[-1] in ("name", *KINDS)):
        return True
    return not {"operator", "parameters", "upstream_tasks"}.isdisjoint(parts)


def _declarations(
    tasks: Sequence[Placed], operators: Mapping[str, type[Operator]]
) -> tuple[dict[str, Declaration], list[Problem]]:
    declared: dict[str, Declaration] = {}
    problems: list[Problem] = []
    for task in tasks:
        if task.spec.kind == "operator":
            here = f"{task.pointer}/parameters"
            operator = operators[task.spec.operator]
            declared[task.spec.name], found = declaration(operator, task.spec.parameters, here)
            problems += found
    return declared, problems


def content_hash(definition: Mapping[str, Any]) -> str:
    """Return the fingerprint of a normalised definition; the order of fields does not matter."""
    return f"sha256:{hashlib.sha256(canonical_json(definition)).hexdigest()}"
