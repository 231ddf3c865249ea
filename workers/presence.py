"""Tells Flower that this worker is there, by Celery's own events: with Celery's heartbeat off nothing else does.

For people only: no rule reads it, and Flower's list being wrong for a minute harms nobody.
"""

from __future__ import annotations

import threading

from celery import Celery
from celery.utils.sysinfo import load_average
from celery.worker.state import SOFTWARE_INFO, active_requests, all_total_count

from orchestrator.logs import get_logger

log = get_logger(__name__)

BEAT_SECONDS = 30.0
"""Flower takes a worker for gone after twice this time."""
LAST_WORD_SECONDS = 2.0


class Presence(threading.Thread):
    """Sends events on a connection of its own; never the consumer's, which a slow Redis must not hold up."""

    def __init__(self, app: Celery, nodename: str) -> None:
        super().__init__(name="presence", daemon=True)
        self._app = app
        self._nodename = nodename
        self._ended = threading.Event()

    def run(self) -> None:
        event = "worker-online"
        while not self._ended.is_set():
            try:
                self._speak(event)
            except Exception as error:  # noqa: BLE001 (Redis is away, or Celery's events have changed: a list stays old)
                log.debug("presence_not_told", error=repr(error))
                self._ended.wait(BEAT_SECONDS)
            event = "worker-heartbeat"

    def _speak(self, event: str) -> None:
        with self._app.connection_for_write() as connection:
            dispatcher = self._app.events.Dispatcher(connection, hostname=self._nodename, buffer_while_offline=False)
            with dispatcher:
                while not self._ended.is_set():
                    self._send(dispatcher, event)
                    event = "worker-heartbeat"
                    self._ended.wait(BEAT_SECONDS)
                self._send(dispatcher, "worker-offline")

    @staticmethod
    def _send(dispatcher: object, event: str) -> None:
        dispatcher.send(  # type: ignore[attr-defined]  # Celery has no annotations
            event,
            freq=BEAT_SECONDS,
            active=len(active_requests),
            processed=all_total_count[0],
            loadavg=load_average(),
            **SOFTWARE_INFO,
        )

    def stop(self) -> None:
        """Say that the worker goes, if that is quick."""
        self._ended.set()
        if self.is_alive():
            self.join(LAST_WORD_SECONDS)
