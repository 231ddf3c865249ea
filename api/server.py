"""The worker class for gunicorn: its threads, which also say how long each request has waited for one of them.

``gunicorn --worker-class api.server.Threads …``. gunicorn puts requests for which no thread is free into a queue that
it never bounds: with more callers than it serves in two seconds, every answer would come too late to be of use (I15).
"""

from __future__ import annotations

import time
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from api import queue_time


class Threads(ThreadWorker):  # type: ignore[misc]
    """gunicorn's own threads worker, with a clock on its queue."""

    def enqueue_req(self, conn: Any) -> None:
        conn.queued_at = time.monotonic()
        super().enqueue_req(conn)

    def handle(self, conn: Any) -> Any:
        queue_time.note(time.monotonic() - conn.queued_at)
        return super().handle(conn)
