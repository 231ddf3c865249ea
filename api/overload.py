"""Refuses at once what would be answered late: the outermost layer, so that a refusal costs next to nothing.

The whole application around a refusal took longer than the refusal is worth: hundreds that wait have to be told within
a second, beside those that are worked on.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from werkzeug.http import HTTP_STATUS_CODES

from api import queue_time
from api.around import HEADERS, known_method, request_id
from api.gate import Gate
from api.hangs import ClientsBody
from api.http_metrics import HttpMetrics
from orchestrator.logs import get_logger

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = get_logger(__name__)

ROUTE = "refused"
"""The route by which refusals are counted: nobody has looked which one it is."""
_COME_BACK = (2, 6)
"""Between so many seconds later, and not all at once."""
_STATUS = 503
_MESSAGE = (
    "More requests have come than can be answered in time, so this one was not looked at. Try again after the seconds "
    "in Retry-After."
)


class InTime:
    """Lets a request through to the application if it has not waited too long, and there is a place for it in time."""

    def __init__(self, application: WSGIApplication, gate: Gate, metrics: HttpMetrics) -> None:
        self._application = application
        self._gate = gate
        self._metrics = metrics

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # Whether the process lives is asked by who would end it.
        if environ.get("PATH_INFO") == "/healthz":
            return self._application(environ, start_response)
        left = queue_time.LONGEST_QUEUE - queue_time.waited()
        place = self._gate.enter(left) if left > 0 else None
        if place is None:
            return self._refuse(environ, start_response)
        try:
            if (body := environ.get("wsgi.input")) is not None:
                environ["wsgi.input"] = ClientsBody(body, place)
            # What is still to come of a stream after this holds no place.
            return self._application(environ, start_response)
        finally:
            place.leave()

    def _refuse(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        began = time.perf_counter()
        method, name = environ.get("REQUEST_METHOD", ""), request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        document = {
            "code": _STATUS,
            "status": HTTP_STATUS_CODES[_STATUS],
            "message": _MESSAGE,
            "errors": [],
            "request_id": name,
        }
        body = json.dumps(document).encode()
        headers = {
            **HEADERS,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Retry-After": str(random.randint(*_COME_BACK)),
            "X-Request-Id": name,
        }
        start_response(f"{_STATUS} {HTTP_STATUS_CODES[_STATUS]}", list(headers.items()))
        self._metrics.count(known_method(method), ROUTE, _STATUS, time.perf_counter() - began)
        log.info(
            "request",
            method=known_method(method),
            path=str(environ.get("PATH_INFO", ""))[:500],
            status=_STATUS,
            milliseconds=round(queue_time.waited() * 1000, 1),
            caller=None,
            request_id=name,
        )
        return [] if method == "HEAD" else [body]
