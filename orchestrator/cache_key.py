"""The key of the cache: what goes into an attempt, as digests, so that equal tasks meet and a miss can be told.

Pure. Where a value names an artifact its content counts, not its URI: each run leaves equal content under another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.records import CachePlan, PlannedTask

READ_THEIR_INPUTS_ALONE = frozenset({"data_ingestion", "data_validation", "model_training"})
"""Operators that look at nothing but their parameters and what these name. All others may read whatever the attempt is
given: the run's parameters, and all that its ancestors have left."""

_DIGESTS = ("fingerprint", "digest")


def may_read_all(task: PlannedTask) -> bool:
    """Say whether what the task does may hang on more than its parameters say."""
    return bool(task.operator) and task.operator not in READ_THEIR_INPUTS_ALONE


def components_of(
    task: PlannedTask,
    cache: CachePlan,
    parameters: Mapping[str, Any],
    *,
    key: Any = (),
    run_parameters: Mapping[str, Any],
    upstream: Mapping[str, Any],
    contents: Mapping[str, str],
    files: Mapping[str, str] | None = None,
    script: str = "",
) -> dict[str, str]:
    """Return the digests of what the key is made of, by name.

    :param parameters: the task's, resolved.
    :param key: what the definition's own key comes to; it then stands for all but the operator.
    :param upstream: outputs of the ancestors, by task.
    :param contents: digest of the content by URI.
    :param files: digests of the files that the task may read, by the name of their component.
    :param script: digest of the file that the task runs, if it runs one.
    """
    parts: dict[str, Any] = {"operator": task.operator, "operator_version": task.operator_version}
    if cache.key:
        parts["key"] = key
    else:
        parts |= {f"parameters.{name}": value for name, value in parameters.items()}
        parts |= files or {}
        if script:
            parts["script"] = script
        if may_read_all(task):
            parts |= {f"run_parameters.{name}": value for name, value in run_parameters.items()}
            parts |= {f"upstream.{name}": value for name, value in upstream.items()}
        if task.outputs_schema is not None:
            parts["outputs"] = task.outputs_schema
    return {name: digest_of(_by_content(value, contents)) for name, value in parts.items()}


def key_of(components: Mapping[str, str]) -> str:
    """Return the key that these components make."""
    return digest_of(components)


def digest_of(value: Any) -> str:
    """Return a digest of a JSON value; the order of fields does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def contents_in(value: Any) -> Iterator[tuple[str, str]]:
    """Yield URI and digest wherever a value tells both."""
    if isinstance(value, Mapping):
        uri, digest = value.get("uri"), next((value[name] for name in _DIGESTS if value.get(name)), None)
        if isinstance(uri, str) and isinstance(digest, str):
            yield uri, digest
        for item in value.values():
            yield from contents_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from contents_in(item)


def difference(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the names of the components that differ, sorted."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _by_content(value: Any, contents: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return f"content:{contents[value]}" if value in contents else value
    if isinstance(value, Mapping):
        return {name: _by_content(item, contents) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_by_content(item, contents) for item in value]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
