"""Server-sent events: how they are written, how many are open at once, and how long one lasts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

from flask import Response, request
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import ServiceUnavailable
from werkzeug.http import parse_accept_header

MEDIA_TYPE = "text/event-stream"
EVENT_SCHEMA = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "id": {"type": "string", "description": "Send the last one in Last-Event-ID to go on after it."},
        "event": {"type": "string"},
        "data": {"type": "string", "description": "JSON on one line."},
    },
}
"""One event, as OpenAPI shows the items of a stream."""
LONGEST_SECONDS = 600.0
"""A stream then ends and the client comes back with ``Last-Event-ID`` and its key, which is checked again."""
QUIET_SECONDS = 10.0
"""Without news a comment is sent this often, so that proxies keep the connection and we see a client that left."""


class StreamSlots:
    """Each open stream holds a thread of the server, so only so many are let in."""

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)

    def respond(self, events: Iterator[str]) -> Response:
        """Return a streaming response, or refuse when all slots are taken.

        :raises ServiceUnavailable: too many streams are open.
        """
        if not self._free.acquire(blocking=False):
            raise ServiceUnavailable("Too many event streams are open; read the list instead, or try again later.")
        response = Response(events, mimetype=MEDIA_TYPE)
        response.headers["X-Accel-Buffering"] = "no"
        # The server calls this at the end, and when the client has gone; a generator alone could stay unstarted.
        response.call_on_close(self._free.release)
        return response


def wants_stream() -> bool:
    """Say whether the client asks for server-sent events, by ``Accept`` or by ``?follow=true``."""
    accepted = parse_accept_header(request.headers.get("Accept", ""), MIMEAccept)
    return any(media == MEDIA_TYPE and quality > 0 for media, quality in accepted)


def event(kind: str, content: Any, *, id: object = None) -> str:
    """Return one event; the content travels as one line of JSON."""
    mark = "" if id is None else f"id: {id}\n"
    return f"{mark}event: {kind}\ndata: {json.dumps(content, separators=(',', ':'))}\n\n"


class Pace:
    """Waits between looks at the store, keeps the connection warm and ends the stream in time."""

    def __init__(self, pause: float = 0.5) -> None:
        self._pause = pause
        self._end = time.monotonic() + LONGEST_SECONDS
        self._spoke = time.monotonic()

    def over(self) -> bool:
        """Say whether the stream has lasted long enough."""
        return time.monotonic() >= self._end

    def spoke(self) -> None:
        """Note that something was sent."""
        self._spoke = time.monotonic()

    def rest(self) -> Iterator[str]:
        """Wait for the next look; yields a comment when nothing was sent for a while."""
        if time.monotonic() - self._spoke >= QUIET_SECONDS:
            self._spoke = time.monotonic()
            yield ": still here\n\n"
        time.sleep(self._pause)
