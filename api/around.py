"""What surrounds every request: an id, a line in the log, a count, and headers that keep browsers careful."""

from __future__ import annotations

import re
import time
import uuid

from flask import Flask, Response, g, request

from api import queue_time
from api.hangs import ClientsBody
from api.services import services
from orchestrator.logs import get_logger, ids_in_scope
from orchestrator.store import patience

log = get_logger(__name__)

ALLOWANCE = 1.8
"""Seconds one request may wait for PostgreSQL, all its statements together; then it is 503. What it has waited before
it was worked on counts, so that it is answered within two seconds (I15)."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def request_id(given: str) -> str:
    """Return the id of a request: the caller's, if it is one that can be logged, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def known_method(method: str) -> str:
    """Return the method by which a request is counted; what callers make up would make counters without end."""
    return method if method in _METHODS else "OTHER"


def install(app: Flask) -> None:
    """Put this around every request; it must come before the guard, whose refusals are counted too."""
    app.before_request(_begin)
    app.after_request(_end)
    app.teardown_request(_note_end)


def _begin() -> None:
    g.request_id = request_id(request.headers.get("X-Request-Id", ""))
    g.began = time.perf_counter()
    hangs = services().hangs
    hangs.begun()
    g.is_under_way = True
    if (body := request.environ.get("wsgi.input")) is not None:
        request.environ["wsgi.input"] = ClientsBody(body, hangs)
    patience.allow(ALLOWANCE - min(queue_time.waited(), queue_time.LONGEST_QUEUE))


def _end(response: Response) -> Response:
    # What is still to come of a stream may take its time; each of its statements has its own limit.
    patience.allow(None)
    _note_end()
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers["X-Request-Id"] = g.get("request_id", "")
    took = time.perf_counter() - g.get("began", time.perf_counter())
    route = request.url_rule.rule if request.url_rule is not None else "unmatched"
    method = known_method(request.method)
    services().metrics.count(method, route, response.status_code, took)
    caller = g.get("caller")
    with ids_in_scope(request_id=g.get("request_id", "")):
        # What asks every few seconds would bury the rest.
        note = log.debug if route.startswith(("/healthz", "/monitoring")) and response.status_code < 400 else log.info
        note(
            "request",
            method=method,
            path=request.path[:500],
            status=response.status_code,
            milliseconds=round(took * 1000, 1),
            caller=caller.name if caller is not None else None,
        )
    return response


def _note_end(_: BaseException | None = None) -> None:
    """Note once that the request has its answer; an error in what comes after a view must not hide it."""
    if g.pop("is_under_way", False):
        services().hangs.ended()
