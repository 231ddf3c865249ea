"""Compares what a run is given with the parameters that its pipeline declares: names, and types of their defaults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.documents import did_you_mean, escaped, kind_of
from orchestrator.errors import Problem
from orchestrator.records import Plan, PlannedTask

_SHOWN = 60


def declared_problems(plan: Plan, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the parameters that the pipeline does not declare, and those of another type than their default.

    A pipeline that declares none takes any; a default that is null takes any value.

    :param given: what was named for this run alone, not what it inherits from another one.
    """
    brought: frozenset[str] | None = None
    for name, value in given.items():
        here = f"/parameters/{escaped(name)}"
        if name in defaults:
            default = defaults[name]
            if default is not None and kind_of(value) != kind_of(default):
                yield Problem(here, _unlike(name, value, default))
            continue
        if not defaults:
            continue
        brought = _brought(plan) if brought is None else brought
        if name not in brought:
            hint = (
                did_you_mean(name, [*defaults, *brought]) or f" It has {', '.join(map(repr, defaults))}; add it there."
            )
            yield Problem(here, f"The pipeline's parameters have no {name[:100]!r}.{hint}")


def _unlike(name: str, value: Any, default: Any) -> str:
    said = f"{name!r} is {kind_of(default)} by its default in the pipeline, and this is {kind_of(value)}"
    if value is None:
        return f"{said}; leave it out, or make null its default there."
    if isinstance(default, str) and isinstance(value, (bool, int, float)):
        return f"{said}; put it in quotes, as in {json.dumps(json.dumps(value))}."
    shown = json.dumps(default, ensure_ascii=False)
    return f"{said}; give one like {shown if len(shown) <= _SHOWN else f'{shown[:_SHOWN]}…'}."


def _brought(plan: Plan) -> frozenset[str]:
    """Return the parameters that a run may bring without their being declared: templates and inputs take them."""
    return frozenset(plan.reads).union(*map(_taken, plan.tasks))


def _taken(task: PlannedTask) -> frozenset[str]:
    own = frozenset(wanted.parameter for wanted in task.run_inputs).union(link.parameter for link in task.links)
    return own if task.body is None else own.union(*map(_taken, task.body.tasks))
