"""Paths and URLs in a definition that no attempt would be allowed to use, told at the save already.

The worker decides when it runs: it resolves names and follows links. What stands plainly in the document (``..``, an
address of the site's own network) is refused before anything is stored. Parameters are
recognised by the convention that all operators follow: their names end in ``_path`` or ``_url``.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from orchestrator.documents import escaped
from orchestrator.errors import ForbiddenAddress, Problem, Unreachable
from orchestrator.outbound.address import checked_addresses, parse_target

_UPWARD = re.compile(r"(?:^|[/\\:])(?:\.|%2e){2}(?:$|[/\\:])", re.IGNORECASE)


def address_problems(document: Mapping[str, Any], allowed_private_hosts: Collection[str]) -> Iterator[Problem]:
    """Yield what is wrong with the paths and URLs of all tasks; shapes that are no definition are left alone."""
    tasks = document.get("tasks")
    for position, task in enumerate(tasks if isinstance(tasks, list) else []):
        parameters = task.get("parameters") if isinstance(task, Mapping) else None
        for name, value in parameters.items() if isinstance(parameters, Mapping) else ():
            if isinstance(value, str) and name.endswith(("_path", "_url")):
                fault = _fault(value, allowed_private_hosts)
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


def _literal(host: str, port: int) -> Sequence[str]:
    """Resolve what needs no resolver: addresses in every spelling that a resolver takes, and ``localhost``."""
    del port
    if host == "localhost" or host.endswith(".localhost"):
        return ["127.0.0.1"]
    if ":" in host:
        return [host]
    # Also `127.1`, `0x7f000001` and `2130706433`.
    return [socket.inet_ntoa(socket.inet_aton(host))]
