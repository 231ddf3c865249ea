"""How many task runs a definition comes to, as far as that is known before anything has run: too many are refused."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.compile_graph import Placed
from orchestrator.errors import Problem
from orchestrator.sweep import MAX_EXPANDED, MAX_TASK_RUNS, known_size


def width_problems(tasks: Sequence[Placed]) -> list[Problem]:
    """Return the maps that can only fail because they, with the maps inside of them, make too many task runs.

    Each is looked at for itself: of two maps perhaps only one runs. So is a map inside that has a condition.

    :param tasks: each group before what is inside of it.
    """
    found: list[Problem] = []
    inside: dict[str, int] = {}
    """By group: the task runs of one index of it, or one round."""
    for task in reversed(tasks):
        spec, own = task.spec, 1
        if spec.map is not None:
            size = known_size(spec.map.get("over")) or 0
            body = len(task.body) or 1
            own += size * inside.get(spec.name, 1)
            here = f"{task.pointer}/map/over"
            if size * body > MAX_EXPANDED:
                found.append(Problem(here, _says(size, body, size * body, MAX_EXPANDED)))
            elif own > MAX_TASK_RUNS:
                said = (
                    f"The map with all that is inside of it makes {own} task runs; a run has at most {MAX_TASK_RUNS}."
                )
                found.append(Problem(here, f"{said} Go over fewer, or let a run of its own do a part (pipeline)."))
        elif spec.repeat is not None:
            own += inside.get(spec.name, 1)
        inside[task.container] = inside.get(task.container, 0) + (1 if spec.when else own)
    return found


def _says(size: int, body: int, made: int, most: int) -> str:
    return (
        f"The map has {size} items for {body} tasks each, which makes {made} task runs; at most {most} are allowed. "
        "Go over fewer, or take fewer tasks into the group."
    )
