"""Wires inputs: which ancestor's output each parameter takes, and which the run itself has to give (DESIGN §5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import Problem
from orchestrator.graph import Upstreams, ancestors, nearest_ancestors
from orchestrator.operator import Input
from orchestrator.operator_checks import Declaration
from orchestrator.records import InputLink, RunInput
from orchestrator.spec import TaskSpec

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Wiring:
    """Where one task's inputs come from."""

    links: tuple[InputLink, ...] = ()
    run_inputs: tuple[RunInput, ...] = ()


def wire_inputs(
    tasks: Sequence[tuple[int, TaskSpec]],
    declared: Mapping[str, Declaration],
    upstreams: Upstreams,
    order: Sequence[str],
) -> tuple[dict[str, Wiring], list[Problem]]:
    """Return each task's wiring, and a problem for each input that several ancestors could serve.

    An input is left to the task's own value if it has one. Else it takes the output of the nearest ancestor that makes
    its kind; of several equally near, one that comes after all the others. With no such ancestor it is the run's.

    :param tasks: with their positions in the document.
    :param declared: what its operator says of each task, by the task's name.
    """
    produced: dict[str, set[str]] = {}
    for _, task in tasks:
        for kind in declared[task.name].produces:
            produced.setdefault(kind, set()).add(task.name)
    nearest: dict[str, dict[str, tuple[int, frozenset[str]]]] = {}
    wirings: dict[str, Wiring] = {}
    problems: list[Problem] = []
    for position, task in tasks:
        links: list[InputLink] = []
        run_inputs: list[RunInput] = []
        for wanted in declared[task.name].inputs:
            if wanted.parameter in task.parameters:
                continue
            if wanted.kind not in nearest:
                nearest[wanted.kind] = nearest_ancestors(upstreams, order, produced.get(wanted.kind, set()))
            _, makers = nearest[wanted.kind].get(task.name, (0, frozenset()))
            makers = _latest(upstreams, makers)
            if len(makers) == 1:
                links.append(InputLink(wanted.parameter, wanted.kind, *makers))
            elif makers:
                problems.append(_ambiguous(position, task, wanted, makers))
            else:
                run_inputs.append(RunInput(wanted.parameter, wanted.kind, wanted.required))
        wirings[task.name] = Wiring(tuple(links), tuple(run_inputs))
    return wirings, problems


def _latest(upstreams: Upstreams, makers: frozenset[str]) -> frozenset[str]:
    """Leave out makers upstream of another one: whoever waits for both means the later one."""
    if not 1 < len(makers) <= _SHOWN:
        return makers
    return makers - frozenset().union(*(ancestors(upstreams, name) for name in makers))


def _ambiguous(position: int, task: TaskSpec, wanted: Input, makers: frozenset[str]) -> Problem:
    names = sorted(makers)
    shown = ", ".join(map(repr, names[:_SHOWN])) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    message = (
        f"The task {task.name!r} takes a {wanted.kind} for {wanted.parameter!r}, and {shown} are equally near and make "
        f"one. Give {wanted.parameter!r} itself, or let the task depend on only one of them."
    )
    return Problem(f"/tasks/{position}/parameters/{wanted.parameter}", message)
