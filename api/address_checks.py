"""Paths and URLs in a definition that no attempt would be allowed to use, told at the save already.

The worker decides when it runs: it resolves names and follows links. What stands plainly in the document (``..``, an
address of the site's own network, a URL that a connection's credentials are not for) is refused before anything is
stored. Parameters are recognised by the convention that all operators follow: their names end in ``_path`` or ``_url``,
and what ``source_path`` names is read through the connection in ``source``. ``wait_for`` has names of its own.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.config import Settings
from orchestrator.documents import escaped
from orchestrator.errors import ForbiddenAddress, Problem, Unreachable
from orchestrator.expressions.templates import holds_template
from orchestrator.outbound.address import checked_addresses, parse_target
from orchestrator.reach import is_below

WAIT_FOR = "wait_for"
_TEMPLATE = re.compile(r"\{\{[^{}]*\}\}")
"""Looks at each character once, whatever the text: megabytes of opening brackets come here too."""
_HOST_ENDS = re.compile(r"[/?#\\]")
_UPWARD = re.compile(r"(?:^|[/\\:])(?:\.|%2e){2}(?:$|[/\\:])", re.IGNORECASE)


def address_problems(document: Mapping[str, Any], settings: Settings) -> Iterator[Problem]:
    """Yield what is wrong with the paths and URLs of all tasks, those in groups too; shapes that are no definition are
    left alone."""
    for here, task in _all_tasks(document):
        parameters = task.get("parameters")
        if not isinstance(parameters, (dict, Mapping)):
            continue
        for pointer, value, connection in _addresses(task.get("operator"), parameters):
            if isinstance(value, str):
                if holds_template(value):
                    fault = _fault(_without_templates(value), settings.allowed_private_hosts)
                else:
                    fault = _fault(value, settings.allowed_private_hosts) or _stray(value, connection, settings)
                if fault:
                    yield Problem(f"{here}/parameters{pointer}", fault)


def _all_tasks(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each task with its pointer, those of a group after those beside the group."""
    groups: list[tuple[str, Mapping[str, Any]]] = [("", document)]
    for above, group in groups:  # which grows meanwhile
        tasks = group.get("tasks")
        for position, task in enumerate(tasks if isinstance(tasks, list) else []):
            if isinstance(task, (dict, Mapping)):
                here = f"{above}/tasks/{position}"
                yield here, task
                if "tasks" in task:
                    groups.append((here, task))


def _addresses(operator: Any, parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each path or URL: its pointer below ``parameters``, its value, and the connection it must lie below."""
    for name, value in parameters.items():
        if name.endswith(("_path", "_url")):
            yield f"/{escaped(name)}", value, parameters.get(name.removesuffix("_path"))
    if operator == WAIT_FOR:
        http = parameters.get("http")
        yield "/file", parameters.get("file"), None
        yield "/http/url", http.get("url") if isinstance(http, Mapping) else None, parameters.get("connection")


def _without_templates(value: str) -> str:
    """Return what is known of a path or URL before its templates are filled in: no host that holds one."""
    scheme, there, rest = value.partition("://")
    is_known = there and not holds_template(_HOST_ENDS.split(_TEMPLATE.sub("{{}}", rest), maxsplit=1)[0])
    return _TEMPLATE.sub("x", value if is_known else rest or scheme)


def _fault(value: str, allowed_private_hosts: Collection[str]) -> str | None:
    scheme = value.partition("://")[0].lower()
    if _UPWARD.search(value.partition("?")[0]):
        return "A path must not hold '..'; write it without."
    if scheme not in {"http", "https"}:
        return None
    try:
        checked_addresses(parse_target(value), _literal, allowed_private_hosts)
    except ForbiddenAddress as error:
        return str(error)
    except Unreachable:
        return None
    return None


def _stray(value: str, connection: Any, settings: Settings) -> str | None:
    """Say that an absolute URL does not lie below that of its connection, whose credentials go nowhere else."""
    if not isinstance(connection, str) or value.partition("://")[0].lower() not in {"http", "https", "s3"}:
        return None
    top = settings.connections.get(connection, {}).get("url")
    if not isinstance(top, str):
        return None  # the worker's connections may be others; it decides
    try:
        if is_below(value, top):
            return None
    except ForbiddenAddress as error:
        return str(error)
    return f"This does not lie below the URL of connection {connection!r}; give a path relative to it."


def _literal(host: str, port: int) -> Sequence[str]:
    """Resolve what needs no resolver: addresses in every spelling that a resolver takes, and ``localhost``."""
    del port
    if host == "localhost" or host.endswith(".localhost"):
        return ["127.0.0.1"]
    if ":" in host:
        return [host]
    # Also `127.1`, `0x7f000001` and `2130706433`.
    return [socket.inet_ntoa(socket.inet_aton(host))]
