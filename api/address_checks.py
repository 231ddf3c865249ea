"""Paths and URLs in a definition that no attempt would be allowed to use, told at the save already.

The worker decides when it runs: it resolves names and follows links. What stands plainly in the document (``..``, an
address of the site's own network, a URL that a connection's credentials are not for) is refused before anything is
stored. Parameters are recognised by the convention that all operators follow: their names end in ``_path`` or ``_url``,
and what ``source_path`` names is read through the connection in ``source``.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.config import Settings
from orchestrator.documents import escaped
from orchestrator.errors import ForbiddenAddress, Problem, Unreachable
from orchestrator.outbound.address import checked_addresses, parse_target
from orchestrator.reach import is_below

_UPWARD = re.compile(r"(?:^|[/\\:])(?:\.|%2e){2}(?:$|[/\\:])", re.IGNORECASE)


def address_problems(document: Mapping[str, Any], settings: Settings) -> Iterator[Problem]:
    """Yield what is wrong with the paths and URLs of all tasks; shapes that are no definition are left alone."""
    tasks = document.get("tasks")
    for position, task in enumerate(tasks if isinstance(tasks, list) else []):
        parameters = task.get("parameters") if isinstance(task, Mapping) else None
        if not isinstance(parameters, Mapping):
            continue
        for name, value in parameters.items():
            if isinstance(value, str) and name.endswith(("_path", "_url")):
                fault = _fault(value, settings.allowed_private_hosts) or _stray(name, value, parameters, settings)
                if fault:
                    yield Problem(f"/tasks/{position}/parameters/{escaped(name)}", fault)


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


def _stray(name: str, value: str, parameters: Mapping[str, Any], settings: Settings) -> str | None:
    """Say that an absolute URL does not lie below that of its connection, whose credentials go nowhere else."""
    connection = parameters.get(name.removesuffix("_path"))
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
