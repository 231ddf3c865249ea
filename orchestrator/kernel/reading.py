"""What the rules themselves read of outputs: the paths in conditions, maps, repeats, sub-runs and keys of a plan."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.errors import ExpressionError
from orchestrator.expressions import Path, compile_expression
from orchestrator.expressions.named import plainly_named
from orchestrator.expressions.remembered import Remembered
from orchestrator.expressions.templates import references
from orchestrator.records import PlannedTask

_REMEMBERED = 6_000_000
"""Characters of expressions: those of the largest pipeline are each asked for several times."""
_ROOTS = ("tasks", "outputs", "repeat")
"""What the rules ask for; the rest of what an expression reads is there anyhow."""


def paths_of_task(task: PlannedTask) -> Iterator[Path]:
    """Yield the paths that the rules follow to start the task, as far as they tell what it reads: those in its
    operator's parameters are resolved when it is granted."""
    yield from _of_expression(task.when)
    if task.map is not None:
        yield from references(task.map.over)
        yield from references(task.map.key)
    if task.child is not None:
        yield from references(dict(task.child.parameters))
    if task.approval is not None:
        yield from references(task.approval.message)
    for limit in task.concurrency:
        yield from references(limit.key)
    if task.rate_limit is not None:
        yield from references(task.rate_limit.key)


def paths_of_body(task: PlannedTask) -> tuple[list[Path], bool]:
    """Return the paths into its body that a container's own expressions follow, and whether they may need all of it."""
    if task.repeat is None or task.body is None:
        return [], False
    names = [inner.name for inner in task.body.tasks]
    paths = list(_of_expression(task.repeat.until))
    # Of the one task that is repeated it names the outputs so.
    paths += [("tasks", name, *path) for path in paths if path[0] == "outputs" for name in names]
    return paths, any(path[:2] == ("repeat", "previous") for path in _below(task.body.tasks))


def outputs_read(paths: Iterable[Path]) -> set[str]:
    """Return the tasks whose outputs these paths lead into; a task as a whole counts."""
    return {str(path[1]) for path in paths if len(path) >= 2 and path[0] == "tasks" and path[2:3] != ("state",)}


def states_asked(task: PlannedTask) -> set[str]:
    """Return the tasks whose state its condition asks for."""
    paths = _of_expression(task.when)
    return {str(path[1]) for path in paths if path[0] == "tasks" and len(path) == 3 and path[2] == "state"}


def _below(tasks: Iterable[PlannedTask]) -> Iterator[Path]:
    for task in tasks:
        yield from paths_of_task(task)
        if task.body is not None:
            yield from _below(task.body.tasks)


def _of_expression(text: str) -> Iterable[Path]:
    if not text:
        return ()
    plain = plainly_named(text)
    return _read(text) if plain is None else plain


def _compiled(text: str) -> tuple[Path, ...]:
    try:
        return tuple(path for path in compile_expression(text).references if path[0] in _ROOTS)
    except ExpressionError:
        # It is refused when it is saved; an older release may have saved it. It fails when it is worked out.
        return ()


_read = Remembered(_compiled, _REMEMBERED)
