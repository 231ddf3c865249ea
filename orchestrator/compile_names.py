"""Checks what templates and expressions name, and where: unknown names, tasks that do not come before, a map's item
outside of the map, what a schema says that it is not there."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.compile_graph import Flow, Placed
from orchestrator.compile_shapes import ANYTHING, INTEGER, TEXT, WORDS_OF_TYPES, Schema, Shapes, behind, kinds, of_value
from orchestrator.documents import did_you_mean, escaped
from orchestrator.errors import ExpressionError, Problem
from orchestrator.expressions import Missing, Path, compile_expression, path_text, value_at
from orchestrator.expressions.kinds import Kind, kind_faults
from orchestrator.expressions.templates import holds_template, references, whole_path
from orchestrator.expressions.templates import problems as template_problems
from orchestrator.lasting import maker_of
from orchestrator.spec import TaskSpec
from orchestrator.states import TaskState

ROOTS = ("params", "tasks", "run", "map", "repeat")
_RUN = ("id", "pipeline")
_MAP = ("item", "index", "key")
_REPEAT = ("index", "previous")
_TASK = ("outputs", "state")
_OF_LIMITS = "a limit's key is known before any task has run."
_STATE: Schema = {"enum": [str(state) for state in TaskState]}


@dataclass(frozen=True, slots=True)
class View:
    """What one text of a task may name."""

    task: str
    """Whose ancestors it may name; empty: it may name no task."""
    mapped: str = ""
    """The nearest map around it, whose item it may name."""
    repeated: str = ""
    own: frozenset[str] = frozenset()
    """Tasks it may name though they are not above it: those of a round that has ended."""
    ended: str = ""
    """The repeat of which a round has ended, whose outputs are ``outputs``."""
    why_no_tasks: str = ""


@dataclass(frozen=True, slots=True)
class RunParameters:
    """What is known of the parameters of a pipeline's runs."""

    defaults: Mapping[str, Any]
    """Those that the definition declares."""
    brought: Callable[[], frozenset[str]]
    """Works out those that a run has to bring without being declared."""

    def undeclared(self, path: Path) -> str | None:
        """Say that an expression reads a parameter which no run of this pipeline takes: it would be null in each.

        A pipeline that declares none takes any.
        """
        if path[0] != "params" or len(path) < 2 or not self.defaults or path[1] in self.defaults:
            return None
        name = str(path[1])
        if name in (brought := self.brought()):
            return None
        hint = did_you_mean(name, [*self.defaults, *brought])
        hint = hint or " Declare it there, as null where runs may leave it out."
        return f"The pipeline's parameters have no {name!r}, so it would be null in every run.{hint}"


class Names:
    """All names of a definition."""

    def __init__(
        self,
        flow: Flow,
        names: frozenset[str],
        groups: Mapping[str, str],
        parameters: RunParameters,
        shapes: Shapes,
        complete: bool,
    ) -> None:
        """Take in what is known.

        :param groups: the group that each task is in; empty where it is in none.
        :param complete: whether who waits for whom could be read: else who comes before whom is not known.
        """
        self._flow = flow
        self._names = names
        self._groups = groups
        self._shapes = shapes
        self.parameters = parameters
        self.read: set[str] = set()
        """Parameters of the run that templates of the tasks read that were looked at: without them it fails."""
        self._is_complete = complete and not flow.cycle
        self._sorted = sorted(names)
        self._defaults: dict[Path, tuple[Schema, str | None]] = {}
        self._reached: dict[tuple[int, Path], Schema] = {}
        """What lies behind a schema, by its identity and the rest of a path in which there is no fault."""
        self._kinds: dict[int, Kind] = {}
        self._by_end = {name.rpartition("-")[2]: name for name in reversed(self._sorted) if "-" in name}

    def fault(self, path: Path, view: View) -> str | None:
        """Say what is wrong with a path that is read there, or nothing."""
        root = str(path[0])
        if root == "params" or (root == "outputs" and view.ended):
            return self._shape(path, view)[1]
        if root == "tasks":
            return self._task_fault(path, view)
        if root == "run":
            return _part_fault(path, _RUN, whole=True)
        if root == "map":
            return _map_fault(path, view) or self._shape(path, view)[1]
        if root == "repeat":
            return _repeat_fault(path, view) or self._shape(path, view)[1]
        hint = ""
        if root in self._names:
            hint = f" The outputs of the task are {path_text(('tasks', root, 'outputs'))}."
        elif root in self._by_end:
            hint = f" A name with '-' is written {path_text(('tasks', self._by_end[root]))}."
        elif root in self.parameters.defaults:
            hint = f" The run's parameter is params.{root}."
        return f"There is no {root!r} here; there are {', '.join(ROOTS)}.{hint or did_you_mean(root, ROOTS)}"

    def kind(self, path: Path, view: View) -> Kind:
        """Return what is known of the values that a path without faults leads to."""
        schema, _ = self._shape(path, view)
        # Most paths lead to few schemas, all of which outlive this.
        known = self._kinds.get(id(schema))
        if known is None:
            known = self._kinds[id(schema)] = _kind(schema)
        return known

    def _shape(self, path: Path, view: View) -> tuple[Schema, str | None]:
        """Return the schema of what lies at the path, and why nothing can lie there."""
        root, shapes = path[0], self._shapes
        start, at = ANYTHING, len(path)
        if root == "tasks":
            start, at = (shapes.outputs(str(path[1])), 3) if path[2:3] == ("outputs",) else (_STATE, 3)
        elif root == "outputs" and view.ended:
            start, at = shapes.round(view.ended), 1
        elif path[:2] == ("map", "item") and view.mapped:
            start, at = shapes.item(view.mapped), 2
        elif path[:3] == ("repeat", "previous", "outputs") and view.repeated:
            start, at = shapes.left(view.repeated), 3
        elif root == "params":
            return self._default(path)
        elif path[1:] == ("index",):
            start = INTEGER
        elif root == "run" or path[1:] == ("key",):
            start = TEXT
        return self._behind(start, path, at)

    def _behind(self, start: Schema, path: Path, at: int) -> tuple[Schema, str | None]:
        if at >= len(path) or not start:
            return start, None
        # Most tasks are of a few operators, whose outputs are one schema each, and all schemas here outlive this.
        rest = (id(start), path[at:])
        if (reached := self._reached.get(rest)) is not None:
            return reached, None
        schema, fault = behind(start, path, at)
        if fault is None:
            self._reached[rest] = schema
        return schema, fault

    def _default(self, path: Path) -> tuple[Schema, str | None]:
        """Follow a parameter's default. A run may bring more, so what is not there is no fault; another type is."""
        if path not in self._defaults:
            self._defaults[path] = self._followed(path)
        return self._defaults[path]

    def _followed(self, path: Path) -> tuple[Schema, str | None]:
        found: Any = self.parameters.defaults
        for at in range(1, len(path)):
            _, fault = behind(of_value(found), path[: at + 1], at)
            if fault is not None:
                return ANYTHING, fault
            try:
                found = value_at({"found": found}, ("found", path[at]))
            except Missing:
                return ANYTHING, None
        return of_value(found), None

    def _task_fault(self, path: Path, view: View) -> str | None:
        if not view.task:
            return f"{path_text(path)} can't be read here: {view.why_no_tasks}"
        if len(path) < 3 or not isinstance(path[1], str) or path[2] not in _TASK or (path[2] == "state" and path[3:]):
            example = path_text(("tasks", path[1], "outputs")) if len(path) > 1 else "tasks.load.outputs"
            hint = self._hyphened(str(path[1])) if len(path) > 1 and path[1] not in self._names else ""
            return f"{path_text(path)} is not what a task has; write {example} and what follows, or its state.{hint}"
        name = path[1]
        if name not in self._names:
            hint = self._hyphened(name) or did_you_mean(name, self._names)
            return f"There is no task {name!r} in this pipeline.{hint}"
        if name in view.own or not self._is_complete or self._flow.is_above(name, view.task):
            return self._shape(path, view)[1]
        return self._not_above(name, str(path[2]), view.task)

    def _not_above(self, name: str, part: str, task: str) -> str:
        if name == task:
            return f"A task can't read its own {part}; they are not there before it has ended."
        if (group := self._groups.get(name)) and group != self._groups.get(task):
            return f"{name!r} is inside of the group {group!r}; read {path_text(('tasks', group, 'outputs'))}."
        return f"{name!r} does not come before {task!r}, so it need not have ended; add it to upstream_tasks."

    def _hyphened(self, start: str) -> str:
        """Return a hint where a task's name goes on with a hyphen, which an expression takes for a minus, or a dot."""
        for sign in "-.":
            at = bisect(self._sorted, start + sign)
            if self._sorted[at : at + 1] and self._sorted[at].startswith(start + sign):
                return f" A name with {sign!r} is written {path_text(('tasks', self._sorted[at]))}."
        return ""


def _kind(schema: Schema) -> Kind:
    found, words = kinds(schema), schema.get("enum")
    only = isinstance(words, list) and all(isinstance(word, str) for word in words)
    return Kind(next(iter(found)) if len(found) == 1 else "", tuple(words) if only and words else ())


def _part_fault(path: Path, parts: tuple[str, ...], *, whole: bool = False) -> str | None:
    if len(path) < 2 or path[1] not in parts or (whole and len(path) > 2):
        hint = did_you_mean(str(path[1]), parts) if len(path) > 1 else ""
        return f"There is no {path_text(path)}; there are {', '.join(f'{path[0]}.{part}' for part in parts)}.{hint}"
    return None


def _map_fault(path: Path, view: View) -> str | None:
    if not view.mapped:
        return f"{path_text(path)} is known only inside of a task with 'map'."
    return _part_fault(path, _MAP) or (_part_fault(path, _MAP, whole=True) if path[1] != "item" else None)


def _repeat_fault(path: Path, view: View) -> str | None:
    if not view.repeated:
        return f"{path_text(path)} is known only inside of a task with 'repeat'."
    if path[1:2] == ("previous",) and path[2:3] not in ((), ("outputs",)):
        return f"There is no {path_text(path)}; the round before has left repeat.previous.outputs."
    return _part_fault(path, _REPEAT) or (_part_fault(path, _REPEAT, whole=True) if path[1] == "index" else None)


# ── the texts of a task ──────────────────────────────────────────────────────────────────────────────────────────────


def is_inner(task: TaskSpec) -> bool:
    """Say whether the task's ``when`` is asked of each item: it names the map's, and the task is mapped itself."""
    if not task.when or task.map is None or task.tasks:
        return False
    try:
        return any(path[0] == "map" for path in compile_expression(task.when).references)
    except ExpressionError:
        return False


_view = maker_of(View)


def name_problems(task: Placed, names: Names, verbatim: frozenset[str]) -> Iterator[Problem]:
    """Yield what is wrong with the templates and expressions of a task.

    :param verbatim: parameters in which ``{{`` means nothing.
    """
    spec, here = task.spec, task.pointer
    outer = inner = _view(spec.name, task.mapped, task.repeated)
    inside_map = replace(outer, mapped=spec.name) if spec.map is not None else outer
    in_round = replace(outer, repeated=spec.name) if spec.repeat is not None else outer
    if not spec.tasks:
        inner = inside_map if spec.map is not None else in_round
    if spec.when:
        yield from _expression_problems(spec.when, f"{here}/when", names, inner if is_inner(spec) else outer)
    # Of a task with faults, what has to be there may have been taken out.
    if spec.map is not None:
        over = spec.map.get("over")
        yield from _template_problems(over, f"{here}/map/over", names, outer)
        yield from _list_problems(over, f"{here}/map/over", names, outer)
        yield from _template_problems(spec.map.get("key", ""), f"{here}/map/key", names, inside_map)
        yield from _key_problems(spec.map, f"{here}/map/key")
    if spec.repeat is not None:
        body = frozenset(item.spec.name for item in task.body)
        after = replace(in_round, own=body, ended=spec.name if len(body) < 2 else "")
        if until := spec.repeat.get("until"):
            yield from _expression_problems(until, f"{here}/repeat/until", names, after)
    for name, value in spec.parameters.items():
        if name not in verbatim and holds_template(value):
            yield from _template_problems(value, f"{here}/parameters/{escaped(name)}", names, inner)
    yield from _policy_problems(spec, here, names, inner)


def _policy_problems(spec: TaskSpec, here: str, names: Names, view: View) -> Iterator[Problem]:
    if spec.pipeline is not None:
        given = spec.pipeline.get("parameters", {})
        yield from _template_problems(given, f"{here}/pipeline/parameters", names, view)
    if spec.approval is not None:
        yield from _template_problems(spec.approval.get("message"), f"{here}/approval/message", names, view)
    if spec.cache is not None and isinstance(spec.cache, Mapping):
        yield from _template_problems(spec.cache.get("key", ""), f"{here}/cache/key", names, view)
    if not (spec.concurrency or spec.rate_limit):
        return
    key = View("", view.mapped, view.repeated, why_no_tasks=_OF_LIMITS)
    for at, limit in enumerate(spec.concurrency):
        yield from _template_problems(limit.get("key"), f"{here}/concurrency/{at}/key", names, key)
    if spec.rate_limit is not None:
        yield from _template_problems(spec.rate_limit.get("key"), f"{here}/rate_limit/key", names, key)


def pipeline_problems(limits: tuple[Mapping[str, Any], ...], names: Names) -> Iterator[Problem]:
    """Yield what is wrong with the keys of a pipeline's own limits."""
    view = View("", why_no_tasks=_OF_LIMITS)
    for at, limit in enumerate(limits):
        yield from template_problems(limit.get("key"), f"/concurrency/{at}/key", lambda path: names.fault(path, view))


def parameters_read(spec: TaskSpec, verbatim: frozenset[str]) -> frozenset[str]:
    """Return the run's parameters that the task's templates read: without them it fails.

    What an expression reads is null without them.
    """
    texts: list[Any] = [value for name, value in spec.parameters.items() if name not in verbatim]
    texts += [limit.get("key") for limit in spec.concurrency]
    if spec.map is not None:
        texts += [spec.map.get("over"), spec.map.get("key")]
    if spec.pipeline is not None:
        texts.append(spec.pipeline.get("parameters"))
    if spec.approval is not None:
        texts.append(spec.approval.get("message"))
    if isinstance(spec.cache, Mapping):
        texts.append(spec.cache.get("key"))
    if spec.rate_limit is not None:
        texts.append(spec.rate_limit.get("key"))
    return frozenset(str(path[1]) for path in references(texts) if path[0] == "params" and len(path) > 1)


def _template_problems(value: Any, pointer: str, names: Names, view: View) -> list[Problem]:
    def fault(path: Path) -> str | None:
        if path[0] == "params" and len(path) > 1:
            names.read.add(str(path[1]))
        return names.fault(path, view)

    return template_problems(value, pointer, fault)


def _expression_problems(text: str, pointer: str, names: Names, view: View) -> list[Problem]:
    try:
        expression = compile_expression(text)
    except ExpressionError as error:
        return [Problem(pointer, str(error))]
    faults = {
        path: said
        for path in expression.references
        if (said := names.fault(path, view) or names.parameters.undeclared(path))
    }
    found = [faults[path] for path in sorted(faults, key=str)]
    # What a faulty path leads to has no kind.
    found = found or kind_faults(expression, lambda path: names.kind(path, view))
    return [Problem(pointer, fault) for fault in found]


def _key_problems(map_: Mapping[str, Any], pointer: str) -> Iterator[Problem]:
    """Yield a key that is the same for all items, which a map of several refuses."""
    key = map_.get("key", "")
    if key and all(path[0] != "map" for path in references(key)) and not template_problems(key):
        message = "Each item has the same key; name it by its item, as in {{ map.item.country }} or {{ map.index }}."
        yield Problem(pointer, message)


def _list_problems(over: Any, pointer: str, names: Names, view: View) -> Iterator[Problem]:
    """Yield where a list is wanted and a template names what is known to be something else."""
    wanted: list[tuple[str, Any]] = [(pointer, over)]
    for kind in ("grid", "zip"):
        if isinstance(over, Mapping) and isinstance(over.get(kind), Mapping):
            wanted += [(f"{pointer}/{kind}/{escaped(name)}", value) for name, value in over[kind].items()]
    for here, value in wanted:
        path = whole_path(value)
        if path is None or names.fault(path, view):
            continue
        known = names.kind(path, view).type
        if known and known != "array" and not (here == pointer and known == "object"):
            whose = " by the pipeline's parameters" if path[0] == "params" else ""
            message = f"{path_text(path)} is {WORDS_OF_TYPES[known]}{whose}, and a list is wanted."
            yield Problem(here, message)
