"""The user of a site: asks its APIs in turn, repeats until answered, and remembers what was promised."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests

from orchestrator.client import Client
from tests.chaos.ledger import Accepted, CancelAsked


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of an API, or its absence; times are of the monotonic clock."""

    at: float
    seconds: float
    method: str
    path: str
    status: int
    """0: no answer."""


@dataclass(slots=True)
class Memory:
    """What users were told; shared by all clients of a site."""

    accepted: list[Accepted] = field(default_factory=list)
    cancels: list[CancelAsked] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Every Idempotency-Key that was sent, answered or not."""
    grace: float = 0.0
    """Seconds between TERM and KILL of a cancelled task."""


class ChaosClient(Client):
    """One user. One thread at a time; each thread takes its own.

    :param urls: the APIs, asked in turn, so that a repeat goes to another one.
    """

    def __init__(
        self, urls: Sequence[str], api_key: str, memory: Memory, *, patience: float = 60.0, timeout: float = 10.0
    ) -> None:
        super().__init__(urls[0], api_key, timeout=timeout, patience=patience)
        self._turn = itertools.cycle(urls)
        self._memory = memory

    def start_run(
        self,
        pipeline: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        version: int | None = None,
        priority: int | None = None,
    ) -> dict[str, Any]:
        """Start a run, repeated with one key until it is answered."""
        key = idempotency_key or uuid.uuid4().hex
        self._memory.asked.append(key)
        run = super().start_run(pipeline, parameters, idempotency_key=key, version=version, priority=priority)
        self._memory.accepted.append(Accepted(str(run["id"]), key, time.monotonic()))
        return run

    def cancel(
        self, run_id: str, *, mode: str = "graceful", grace_seconds: float | None = None, reason: str = ""
    ) -> dict[str, Any]:
        """Ask for a run to be cancelled."""
        run = super().cancel(run_id, mode=mode, grace_seconds=grace_seconds, reason=reason)
        grace = self._memory.grace if grace_seconds is None else grace_seconds
        is_repeat = run.get("command_id") is None
        self._memory.cancels.append(CancelAsked(run_id, time.monotonic(), grace, is_repeat))
        return run

    def _request(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        # All that tests ask for may be asked twice: a definition is the same by its content, a run by its key.
        return super()._request(method, path, **{**options, "repeatable": True})

    def _send(
        self, method: str, path: str, body: Any, query: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> requests.Response:
        self._url = next(self._turn)
        began, status = time.monotonic(), 0
        try:
            response = super()._send(method, path, body, query, headers)
            status = response.status_code
            return response
        finally:
            self._memory.replies.append(Reply(began, time.monotonic() - began, method, path, status))


def refusals(memory: Memory) -> list[Reply]:
    """Return the answers that were neither 2xx, nor 429 or 503, nor missing: the API owes an explanation for those."""
    return [
        reply
        for reply in memory.replies
        if reply.status and not (200 <= reply.status < 300 or reply.status in (429, 503))
    ]
