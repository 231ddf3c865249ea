"""What a named connection adds to a request: its headers, and how it authorises us."""

from __future__ import annotations

import base64
from urllib.parse import unquote, urlsplit

from orchestrator.operator import Connection


def connection_headers(connection: Connection) -> dict[str, str]:
    """Return the headers of a request below the connection's URL."""
    options = connection.options
    headers = {str(name): str(value) for name, value in (options.get("headers") or {}).items()}
    parts = urlsplit(connection.url)
    if options.get("token"):
        headers["Authorization"] = f"Bearer {options['token']}"
    elif parts.username:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    return headers
