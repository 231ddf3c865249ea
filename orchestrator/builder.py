"""Definitions written in Python: ``Pipeline`` and ``task`` give the same document as a JSON or YAML file.

Nothing here runs a task or knows the site: mistakes that Python can see are errors at once, the rest is checked by the
server when the definition is saved. Imported as ``from orchestrator import Pipeline, group, task``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextvars import ContextVar
from typing import Any, Protocol, Self, TypedDict, Unpack

from orchestrator.graph import find_cycle

KINDS = ("operator", "tasks", "pipeline", "approval", "event")
"""Fields of which a task has exactly one."""
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*|\[(\d+|'[^']*'|\"[^\"]*\")\])*|(\[(\d+|'[^']*'|\"[^\"]*\")\])+(\..+)?")


class Sender(Protocol):
    """What a pipeline is saved and started with; ``orchestrator.client.Client`` is one.

    Not imported from there, for this module is part of the package that the rules are in.
    """

    def save_pipeline(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """Create the pipeline, or save a new version of it."""

    def start_run(self, pipeline: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Start a run of the pipeline with this name."""


class PipelineFields(TypedDict, total=False):
    """What a pipeline may say beside its name and tasks."""

    description: str
    owner: str
    tags: Sequence[str]
    parameters: Mapping[str, Any]
    priority: int
    deadline_seconds: float
    max_active_runs: int
    concurrency: Sequence[Mapping[str, Any]]


class TaskFields(TypedDict, total=False):
    """What a task may say beside its name; see ``docs/dag/README.md`` for what each means."""

    description: str
    operator: str
    pipeline: Mapping[str, Any]
    approval: Mapping[str, Any]
    event: Mapping[str, Any]
    upstream: Task | str | Iterable[Task | str]
    when: str
    trigger_rule: str
    parameters: Mapping[str, Any]
    map: Mapping[str, Any]
    repeat: Mapping[str, Any]
    outputs: Mapping[str, Any]
    cache: bool | Mapping[str, Any]
    cpu: float
    memory_gb: float | str
    gpu: int
    gpu_memory_gb: float
    queue: str
    labels: Mapping[str, str]
    retries: int
    retry_delay_seconds: float
    retry_backoff_factor: float
    retry_max_delay_seconds: float
    retry: Mapping[str, Any]
    timeout_seconds: float
    progress_timeout_seconds: float
    max_queued_seconds: float
    deadline_seconds: float
    grace_seconds: float
    critical: bool
    teardown: bool | Sequence[Task | str]
    concurrency: Sequence[Mapping[str, Any]]
    rate_limit: Mapping[str, Any]
    exclusive: bool
    on_drain: str
    on_worker_loss: str


class Reference(str):
    """A template that stands for a value of the run, such as ``{{ params.rate }}``."""

    __slots__ = ()

    @property
    def expression(self) -> str:
        """The same for ``when`` and ``until``, which are expressions and no templates."""
        return self.removeprefix("{{ ").removesuffix(" }}")


class Task:
    """One task of a pipeline; made by :func:`task` or :meth:`Pipeline.task`."""

    def __init__(self, name: str, pipeline: Pipeline, fields: Mapping[str, Any]) -> None:
        self.name = name
        self.pipeline = pipeline
        self._fields = _plain_fields({name: fields[name] for name in fields if name != "upstream"}, f"task {name!r}")
        self.upstream: list[str] = []
        """Names of the tasks it waits for."""
        upstream = fields.get("upstream") or ()
        self.after(*((upstream,) if isinstance(upstream, (Task, str)) else upstream))

    def output(self, path: str = "") -> Reference:
        """Return a reference to an output of the task, such as ``dataset.uri``; without a path to all of them.

        :raises ValueError: this is no path.
        """
        if path and not _PATH.fullmatch(path):
            raise ValueError(f"{path!r} is no path; write it like 'dataset.uri' or \"artifacts['a-b'][0]\".")
        dot = "." if path and not path.startswith("[") else ""
        return Reference(f"{{{{ tasks['{self.name}'].outputs{dot}{path} }}}}")

    @property
    def state(self) -> str:
        """The task's state in an expression: ``when=f"{check.state} == 'failed'"``."""
        return f"tasks['{self.name}'].state"

    def after(self, *tasks: Task | str) -> Self:
        """Let the task wait for these.

        :raises ValueError: one is itself, or of another pipeline.
        """
        for upstream in tasks:
            if isinstance(upstream, Task) and upstream.pipeline is not self.pipeline:
                raise ValueError(f"{upstream.name!r} is a task of another pipeline; {self.name!r} can't wait for it.")
            name = upstream.name if isinstance(upstream, Task) else upstream
            if name == self.name:
                raise ValueError(f"{name!r} can't wait for itself.")
            if name not in self.upstream:
                self.upstream.append(name)
        return self

    def __rshift__(self, other: Task | Iterable[Task]) -> Task | Iterable[Task]:
        """``a >> b`` and ``a >> [b, c]``: what is on the right waits for ``a``; the right side is returned."""
        for waiting in (other,) if isinstance(other, Task) else other:
            waiting.after(self)
        return other

    def __rrshift__(self, others: Iterable[Task]) -> Task:
        """``[a, b] >> c``: ``c`` waits for both."""
        return self.after(*others)

    def to_dict(self) -> dict[str, Any]:
        """Return the task as it stands in a definition."""
        document: dict[str, Any] = {"name": str(self.name)}
        for field in TaskFields.__annotations__:
            if field == "upstream" and self.upstream:
                document["upstream_tasks"] = list(self.upstream)
            elif self._fields.get(field) is not None:
                document[field] = self._fields[field]
        return document

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"


class Group(Task):
    """Several tasks that are mapped or repeated together; tasks made in its ``with`` block belong to it."""

    def __init__(self, name: str, pipeline: Pipeline, fields: Mapping[str, Any]) -> None:
        super().__init__(name, pipeline, fields)
        self.tasks: list[Task] = []

    def __enter__(self) -> Self:
        _OPEN.set((*_OPEN.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _OPEN.set(_OPEN.get()[:-1])

    def to_dict(self) -> dict[str, Any]:
        """Return the group as it stands in a definition."""
        return {**super().to_dict(), "tasks": [task.to_dict() for task in self.tasks]}


class Pipeline:
    """A definition in the making.

    :raises TypeError: a keyword that no pipeline has, or a value of a type that JSON has not.
    :raises ValueError: a number that JSON has not.
    """

    def __init__(self, name: str, **fields: Unpack[PipelineFields]) -> None:
        _refuse_unknown(fields, PipelineFields, f"Pipeline {name!r}")
        self.name = name
        self._fields = _plain_fields(fields, f"pipeline {name!r}")
        self._tasks: list[Task] = []
        self._by_name: dict[str, Task] = {}

    def __enter__(self) -> Self:
        _OPEN.set((*_OPEN.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        _OPEN.set(_OPEN.get()[:-1])

    def task(self, name: str, **fields: Unpack[TaskFields]) -> Task:
        """Add a task, to the group of this pipeline that is open or to the pipeline itself.

        :raises TypeError: a keyword that no task has, or a value of a type that JSON has not.
        :raises ValueError: the name is taken, it is not one kind of task, or a number that JSON has not.
        """
        _refuse_unknown(fields, TaskFields, f"Task {name!r}")
        given = [kind for kind in KINDS if fields.get(kind) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "none is given"
            raise ValueError(f"Task {name!r} needs one of operator, pipeline, approval and event; {said}.")
        return self._add(Task(name, self, fields))

    def group(self, name: str, **fields: Unpack[TaskFields]) -> Group:
        """Add a group, whose tasks are those made in its ``with`` block; it needs ``map`` or ``repeat``.

        :raises TypeError: a keyword that no task has.
        :raises ValueError: the name is taken, it says that it is something else, or neither ``map`` nor ``repeat``.
        """
        _refuse_unknown(fields, TaskFields, f"Group {name!r}")
        if other := [kind for kind in KINDS if fields.get(kind) is not None]:
            raise ValueError(f"Group {name!r} has tasks; it can't have {other[0]} too.")
        if (fields.get("map") is None) == (fields.get("repeat") is None):
            raise ValueError(f"Group {name!r} needs either map or repeat.")
        group = Group(name, self, fields)
        self._add(group)
        return group

    def param(self, path: str, *, required: bool = False) -> Reference:
        """Return a reference to a parameter of the run.

        :param required: each run has to give it: the pipeline's ``parameters`` hold no default.
        :raises ValueError: this is no path, or the pipeline's ``parameters`` are others.
        """
        if not _PATH.fullmatch(path):
            raise ValueError(f"{path!r} is no path; write it like 'rate' or 'model.depth'.")
        declared = self._fields.get("parameters")
        name = next(part for part in re.split(r"[.\[\]'\"]", path) if part)
        if declared and name not in declared and not required:
            from orchestrator.documents import did_you_mean

            hint = did_you_mean(name, declared) or " Add it, or say required=True where each run has to give it."
            raise ValueError(f"Pipeline {self.name!r} has no parameter {name!r}.{hint}")
        return Reference(f"{{{{ params{'' if path.startswith('[') else '.'}{path} }}}}")

    def to_dict(self) -> dict[str, Any]:
        """Return the definition, the body of ``POST /api/v1/pipelines``.

        :raises ValueError: a task waits for one that is not there, or tasks wait for each other.
        """
        for task in self._by_name.values():
            for name in task.upstream:
                if name not in self._by_name:
                    raise ValueError(f"Task {task.name!r} waits for {name!r}, which pipeline {self.name!r} has not.")
        if circle := find_cycle({name: task.upstream for name, task in self._by_name.items()}):
            raise ValueError(f"These tasks wait for each other in a circle: {' → '.join(circle)}.")
        document: dict[str, Any] = {"name": self.name}
        for field in PipelineFields.__annotations__:
            if (value := self._fields.get(field)) is not None:
                document[field] = value
        return {**document, "tasks": [task.to_dict() for task in self._tasks]}

    def to_json(self) -> str:
        """Return the definition as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    def to_yaml(self) -> str:
        """Return the definition as YAML, for a file or for ``orchestrator apply -f -``."""
        from orchestrator.yaml_text import write_yaml

        return write_yaml(self.to_dict())

    def save(self, client: Sender) -> dict[str, Any]:
        """Create the pipeline on the server, or save a new version of it; returns it.

        :raises ApiError: the server refuses it; ``problems`` says why.
        """
        return client.save_pipeline(self.to_dict())

    def run(self, client: Sender, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Save the pipeline and start a run of it; returns the run."""
        self.save(client)
        return client.start_run(self.name, parameters)

    def _add(self, task: Task) -> Task:
        if task.name in self._by_name:
            raise ValueError(f"Pipeline {self.name!r} has a task named {task.name!r} already; names are unique.")
        place = _innermost(self)
        self._by_name[task.name] = task
        (place.tasks if place is not None else self._tasks).append(task)
        return task


_OPEN: ContextVar[tuple[Pipeline | Group, ...]] = ContextVar("open pipelines and groups", default=())


def _innermost(pipeline: Pipeline) -> Group | None:
    """Return the group of this pipeline whose ``with`` block is the innermost one."""
    groups = (place for place in reversed(_OPEN.get()) if isinstance(place, Group) and place.pipeline is pipeline)
    return next(groups, None)


def _current() -> Pipeline:
    places = _OPEN.get()
    if not places:
        raise ValueError(
            "There is no pipeline here; write this in a `with Pipeline(…):` block, or call a method of it."
        )
    place = places[-1]
    return place.pipeline if isinstance(place, Group) else place


def task(name: str, **fields: Unpack[TaskFields]) -> Task:
    """Add a task to the pipeline or group whose ``with`` block this is; as :meth:`Pipeline.task`."""
    return _current().task(name, **fields)


def group(name: str, **fields: Unpack[TaskFields]) -> Group:
    """Add a group to the pipeline or group whose ``with`` block this is; as :meth:`Pipeline.group`."""
    return _current().group(name, **fields)


def _refuse_unknown(fields: Mapping[str, Any], known: type, what: str) -> None:
    names = known.__annotations__
    if unknown := [name for name in fields if name not in names]:
        from orchestrator.documents import did_you_mean

        raise TypeError(f"{what} has no field {unknown[0]!r}.{did_you_mean(unknown[0], names)}")


def _plain_fields(fields: Mapping[str, Any], whose: str) -> dict[str, Any]:
    return {name: _plain(value, f"{name} of {whose}") for name, value in fields.items()}


def _plain(value: Any, where: str) -> Any:
    """Return a value in JSON's own types; a task stands for its name.

    :raises TypeError: JSON has nothing like it.
    :raises ValueError: it is no finite number.
    """
    if isinstance(value, Task):
        return value.name
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no JSON number; it is in {where}.")
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{key!r} is no text, and names of fields are; it is in {where}.")
        return {str(key): _plain(item, where) for key, item in value.items()}
    if isinstance(value, AbstractSet) and not isinstance(value, (KeysView, ItemsView)):
        raise TypeError(f"A {type(value).__name__} has no order, and JSON no sets; write a list. It is in {where}.")
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item, where) for item in value]
    raise TypeError(f"{type(value).__name__} is no JSON value; it is in {where}.")
