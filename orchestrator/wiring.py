"""Wires inputs: which ancestor's output each parameter takes, and which the run itself has to give (DESIGN §5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.compile_graph import Flow, Placed
from orchestrator.errors import Problem
from orchestrator.expressions import path_text
from orchestrator.graph import nearest_ancestors
from orchestrator.lasting import maker_of
from orchestrator.operator import Input
from orchestrator.operator_checks import Declaration
from orchestrator.records import InputLink, RunInput

_SHOWN = 10
MAX_LOOKED = 1000
"""Problems after which no more are looked for."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where one task's inputs come from."""

    links: tuple[InputLink, ...] = ()
    run_inputs: tuple[RunInput, ...] = ()


_wiring = maker_of(Wiring)


def wire_inputs(
    tasks: Sequence[Placed], declared: Mapping[str, Declaration], flow: Flow
) -> tuple[dict[str, Wiring], list[Problem]]:
    """Return each task's wiring, and a problem for each input that no single ancestor serves.

    An input is left to the task's own value if it has one. Else it takes the output of the nearest ancestor that makes
    its kind; of several equally near, one that comes after all the others. With no such ancestor it is the run's. What
    a map or a repeat leaves is taken by nobody unless a template names it: there may be many of them.

    :param declared: what its operator says of each task that has one, by the task's name.
    """
    produced, many = _makers(tasks, declared)
    nearest: dict[str, Callable[[str], tuple[int, frozenset[str]]]] = {}
    latest: dict[frozenset[str], frozenset[str]] = {}
    wirings: dict[str, Wiring] = {}
    problems: list[Problem] = []
    for task in tasks:
        if len(problems) > MAX_LOOKED:
            break
        spec = task.spec
        links: list[InputLink] = []
        run_inputs: list[RunInput] = []
        for wanted in declared[spec.name].inputs if spec.name in declared else ():
            if wanted.parameter in spec.parameters:
                continue
            if wanted.kind not in nearest:
                makers_of_kind = produced.get(wanted.kind, set())
                nearest[wanted.kind] = nearest_ancestors(flow.upstreams, flow.order, makers_of_kind)
            _, makers = nearest[wanted.kind](spec.name)
            if makers not in latest:
                latest[makers] = _latest(flow, makers)
            makers = latest[makers]
            if len(makers) > 1:
                problems.append(_ambiguous(task, wanted, makers))
            elif makers & many.keys() and wanted.required:
                problems.append(_many(task, wanted, many[next(iter(makers))]))
            elif makers and not makers & many.keys():
                links.append(InputLink(wanted.parameter, wanted.kind, *makers))
            else:
                run_inputs.append(RunInput(wanted.parameter, wanted.kind, wanted.required))
        wirings[spec.name] = _wiring(tuple(links), tuple(run_inputs))
    return wirings, problems


_Many = tuple[Placed, tuple[str | int, ...]]
"""A container, and where below its outputs the thing is."""


def _makers(
    tasks: Sequence[Placed], declared: Mapping[str, Declaration]
) -> tuple[dict[str, set[str]], dict[str, _Many]]:
    """Return who makes each kind, and of those that are containers where in their outputs it is."""
    produced: dict[str, set[str]] = {}
    many: dict[str, _Many] = {}
    groups = {task.spec.name: task for task in tasks if task.body}
    for task in tasks:
        name = task.spec.name
        if name not in declared or not declared[name].produces:
            continue
        makers = {name}
        below: tuple[str | int, ...] = _index(task)
        if task.spec.map is not None or task.spec.repeat is not None:
            many[name] = (task, below)
        inner, container = name, task.container
        while container:
            group = groups[container]
            below = (*_index(group), inner, *below)
            many.setdefault(container, (group, below))
            makers.add(container)
            inner, container = container, group.container
        for kind in declared[name].produces:
            produced.setdefault(kind, set()).update(makers)
    return produced, many


def _index(task: Placed) -> tuple[int, ...]:
    return (0,) if task.spec.map is not None else ()


def _latest(flow: Flow, makers: frozenset[str]) -> frozenset[str]:
    """Leave out makers upstream of another one: whoever waits for both means the later one."""
    if not 1 < len(makers) <= _SHOWN:
        return makers
    return frozenset(name for name in makers if not any(flow.is_above(name, other) for other in makers))


def _ambiguous(task: Placed, wanted: Input, makers: frozenset[str]) -> Problem:
    names = sorted(makers)
    shown = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    message = (
        f"The task {task.spec.name!r} takes a {wanted.kind} for {wanted.parameter!r}, and {shown} are equally near and "
        f"make one. Give {wanted.parameter!r} itself, or let the task depend on only one of them."
    )
    return Problem(f"{task.pointer}/parameters/{wanted.parameter}", message)


def _many(task: Placed, wanted: Input, maker: _Many) -> Problem:
    container, below = maker
    spec = container.spec
    example = path_text(("tasks", spec.name, "outputs", *below, wanted.kind, "uri"))
    each = "for each item" if spec.map is not None else "after its rounds"
    message = (
        f"The task {task.spec.name!r} takes a {wanted.kind} for {wanted.parameter!r}, and {spec.name!r} leaves one "
        f'{each}. Say which, as in "{wanted.parameter}": "{{{{ {example} }}}}", or choose with best_of.'
    )
    return Problem(f"{task.pointer}/parameters/{wanted.parameter}", message)
