"""What lies behind a path, as far as schemas tell before anything has run: outputs of tasks, items of maps, parameters.

A path that such a schema rules out would fail every run, so it is told when the definition is saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.compile_graph import Placed
from orchestrator.documents import did_you_mean
from orchestrator.expressions.paths import Path, path_text
from orchestrator.expressions.templates import holds_template
from orchestrator.operator import Operator
from orchestrator.sweep import KINDS as SWEEPS

Schema = Mapping[str, Any]
ANYTHING: Schema = {}
TEXT: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}

_BRANCHING = frozenset({"$ref", "$dynamicRef", "anyOf", "oneOf", "if", "patternProperties", "unevaluatedProperties"})
"""Of a schema with these words nothing is said here."""
WORDS_OF_TYPES: Mapping[str, str] = {
    "object": "an object", "array": "a list", "string": "a text", "integer": "a number", "number": "a number",
    "boolean": "true or false",
}  # fmt: skip
_TYPES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), ((list, tuple), "array"),
    (Mapping, "object"),
)  # fmt: skip


def closed(properties: Mapping[str, Any]) -> Schema:
    """Return the schema of an object that has these fields and no others."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


_APPROVAL = {"approved": {"type": "boolean"}, "by": TEXT, "at": TEXT}
_EVENT = {"at": TEXT}
_CHILD = closed({"run_id": TEXT, "state": TEXT, "outputs": {"type": "object"}})


class Shapes:
    """The outputs of all tasks of a definition; each is put together when it is first asked for."""

    def __init__(self, tasks: Sequence[Placed], operators: Mapping[str, type[Operator]]) -> None:
        self._tasks = {task.spec.name: task for task in tasks}
        self._operators = operators
        self._outputs: dict[str, Schema] = {}
        self._left: dict[str, Schema] = {}
        self._items: dict[str, Schema] = {}

    def outputs(self, name: str) -> Schema:
        """Return what ``tasks.<name>.outputs`` is."""
        if name not in self._outputs:
            task = self._tasks.get(name)
            is_list = task is not None and task.spec.map is not None
            left = self.left(name)
            self._outputs[name] = {"type": "array", "items": left} if is_list else left
        return self._outputs[name]

    def left(self, name: str) -> Schema:
        """Return what one index or round of a container leaves; of any other task, what it leaves."""
        if name not in self._left:
            self._left[name] = self._leaves(name)
        return self._left[name]

    def _leaves(self, name: str) -> Schema:
        task = self._tasks.get(name)
        if task is None:
            return ANYTHING
        spec = task.spec
        if spec.tasks:
            # A task without a name of its own goes by its pointer: under which name it leaves something is not known.
            is_known = "tasks" not in task.faulty and not any(inner.name.startswith("/") for inner in spec.tasks)
            return closed({inner.name: self.outputs(inner.name) for inner in spec.tasks}) if is_known else ANYTHING
        if spec.approval is not None:
            return closed({**_APPROVAL, "input": spec.approval.get("input", ANYTHING)})
        if spec.event is not None:
            return closed({**_EVENT, "payload": spec.event.get("payload", ANYTHING)})
        if spec.pipeline is not None:
            return _CHILD
        said = [_outputs_schema(self._operators.get(spec.operator)), spec.outputs or ANYTHING]
        known = [schema for schema in said if schema]
        return {"allOf": known} if len(known) > 1 else known[0] if known else ANYTHING

    def round(self, name: str) -> Schema:
        """Return what ``outputs`` is in the ``until`` of this repeat."""
        task = self._tasks[name]
        return self.outputs(task.body[0].spec.name) if len(task.body) == 1 else self.left(name)

    def item(self, name: str) -> Schema:
        """Return what ``map.item`` is inside of this map."""
        if name not in self._items:
            task = self._tasks.get(name)
            map_ = None if task is None else task.spec.map
            self._items[name] = ANYTHING if map_ is None else _item(map_.get("over"))
        return self._items[name]


def _outputs_schema(operator: type[Operator] | None) -> Schema:
    """Return what an operator promises to leave; one that answers nonsense promises nothing."""
    try:
        schema = None if operator is None else operator.outputs_schema
    except Exception:  # noqa: BLE001 - a site's own operator may break its promises
        return ANYTHING
    return schema if isinstance(schema, Mapping) else ANYTHING


def _item(over: Any) -> Schema:
    if isinstance(over, list):
        if not over or any(holds_template(item) for item in over):
            return ANYTHING
        if all(isinstance(item, Mapping) for item in over):
            return closed({name: ANYTHING for item in over for name in item})
        types = sorted({of_value(item).get("type", "") for item in over})
        return {"type": types} if all(types) else ANYTHING
    if not isinstance(over, Mapping):
        return ANYTHING
    kind = next((kind for kind in SWEEPS if kind in over), "")
    if kind == "range":
        return INTEGER
    return closed(dict.fromkeys(over[kind], ANYTHING)) if isinstance(over.get(kind), Mapping) else ANYTHING


def of_value(value: Any) -> Schema:
    """Return the schema of all values of the same type; of null anything."""
    if (known := _BY_TYPE.get(type(value))) is not None:
        return known
    return next(({"type": word} for kind, word in _TYPES if isinstance(value, kind)), ANYTHING)


_BY_TYPE: Mapping[type, Schema] = {
    type(None): ANYTHING,
    **{kind: {"type": word} for kind, word in (
        (bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array"), (dict, "object"),
    )},
}  # fmt: skip


def kinds(schema: Any) -> frozenset[str]:
    """Return the JSON types that a value of the schema may have, null apart; none: not known."""
    if not isinstance(schema, (dict, Mapping)) or not _BRANCHING.isdisjoint(schema):
        return frozenset()
    if isinstance(schema.get("allOf"), list):
        return next((found for inner in schema["allOf"] if (found := kinds(inner))), frozenset())
    said = schema.get("type")
    if isinstance(said, str):
        said = [said]
    elif said is None and isinstance(schema.get("enum"), list):
        said = [of_value(item).get("type", "null") for item in schema["enum"]]
    if not isinstance(said, list) or not all(isinstance(word, str) for word in said):
        return frozenset()
    return frozenset(said) - {"null"}


def behind(schema: Schema, path: Path, at: int) -> tuple[Schema, str | None]:
    """Follow a path from its part ``at`` on; return what lies there, or a sentence that says where it ends."""
    for place in range(at, len(path)):
        schema, fault = _step(schema, path, place)
        if fault is not None:
            return ANYTHING, fault
    return schema, None


def _step(schema: Any, path: Path, at: int) -> tuple[Schema, str | None]:
    if not isinstance(schema, (dict, Mapping)) or not _BRANCHING.isdisjoint(schema):
        return ANYTHING, None
    if isinstance(schema.get("allOf"), list):
        # The operator's promise and the task's own schema both hold.
        steps = [_step(inner, path, at) for inner in schema["allOf"]]
        fault = next((fault for _, fault in steps if fault is not None), None)
        return ({"allOf": known} if (known := [found for found, _ in steps if found]) else ANYTHING), fault
    part, types = path[at], kinds(schema)
    if types and ("array" if isinstance(part, int) else "object") not in types:
        return ANYTHING, _unfit(path, at, types)
    if isinstance(part, int):
        items = ANYTHING if "prefixItems" in schema else schema.get("items", ANYTHING)
        return _or_anything(items), None
    return _field(schema, path, at)


def _field(schema: Schema, path: Path, at: int) -> tuple[Schema, str | None]:
    properties, more = schema.get("properties", {}), schema.get("additionalProperties", ANYTHING)
    if not isinstance(properties, Mapping):
        return ANYTHING, None
    name = str(path[at])
    if name not in properties and more is False:
        has = f"it has {', '.join(map(str, properties))}" if properties else "it has nothing"
        hint = did_you_mean(name, list(map(str, properties)))
        return ANYTHING, f"{path_text(path[:at])} never has {name!r}; {has}.{hint}"
    return _or_anything(properties.get(name, more)), None


def _or_anything(schema: Any) -> Schema:
    return schema if isinstance(schema, Mapping) else ANYTHING


def _unfit(path: Path, at: int, types: frozenset[str]) -> str:
    part, here = path[at], path_text(path[:at])
    kind = " or ".join(sorted({WORDS_OF_TYPES.get(word, word) for word in types}))
    if types == {"array"}:
        return f"{here} is a list, which has no {part!r}; write {path_text((*path[:at], 0, *path[at:]))}."
    return f"{here} is {kind}, which has no {f'[{part}]' if isinstance(part, int) else repr(part)}."
