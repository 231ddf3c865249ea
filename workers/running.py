"""The attempts this incarnation holds, from their grant until the scheduler has answered their outcome."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.wire.messages import GrantSpec

DEAD_SECONDS = 600.0
"""How long a heartbeat repeats that an attempt is dead; a leader that missed them all for so long asks nothing more."""


class Server(Protocol):
    """The part of a fork server's client that ends trees."""

    def stop(self, attempt_id: str, why: str, grace: float | None) -> None: ...

    def refresh(self, until: float) -> None: ...


@dataclass(slots=True)
class Held:
    """One attempt that is ours."""

    spec: GrantSpec
    has_started: bool = False
    server: Server | None = None
    """The fork server that was told to start it."""
    ran_by: str = ""
    """The incarnation that started it, when it was another one and we have adopted it."""
    stop: str = ""
    """Why it must not start any more: a stop that came before the start."""
    ended: threading.Event = field(default_factory=threading.Event)


class Running:
    """Thread-safe: the slots, the fork client, the agent and the heartbeat all look here."""

    def __init__(self, changed: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}
        self._dead: dict[str, float] = {}

    def hold(self, spec: GrantSpec) -> Held:
        """Take an attempt that was just granted."""
        with self._lock:
            held = self._held.setdefault(spec.attempt_id, Held(spec))
        self._changed()
        return held

    def adopt(self, spec: GrantSpec, server: Server, ran_by: str) -> None:
        """Take an attempt whose tree has outlived the incarnation that started it."""
        with self._lock:
            self._held.setdefault(spec.attempt_id, Held(spec, has_started=True, server=server, ran_by=ran_by))
        self._changed()

    def get(self, attempt_id: str) -> Held | None:
        with self._lock:
            return self._held.get(attempt_id)

    def started(self, attempt_id: str) -> None:
        """Note that its supervisor runs."""
        if held := self.get(attempt_id):
            held.has_started = True
            self._changed()

    def ended(self, attempt_id: str) -> None:
        """Note that nothing of it lives and its outcome is on disk; it stays ours until that is answered."""
        if held := self.get(attempt_id):
            held.ended.set()
            self._changed()

    def release(self, attempt_id: str, *, dead: bool) -> None:
        """Let go of an attempt (of any incarnation) whose outcome was answered; say that it is ``dead`` for a while."""
        with self._lock:
            self._held.pop(attempt_id, None)
            if dead:
                self._dead[attempt_id] = self._clock() + DEAD_SECONDS
        self._changed()

    def confirm_dead(self, attempt_id: str) -> None:
        """Say for a while that an attempt of an ended incarnation is dead; the leader asked."""
        with self._lock:
            is_new = attempt_id not in self._dead
            self._dead[attempt_id] = self._clock() + DEAD_SECONDS
        if is_new:
            self._changed()

    def living(self) -> list[Held]:
        """Return those that have not ended."""
        with self._lock:
            return [held for held in self._held.values() if not held.ended.is_set()]

    def all(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def tokens(self) -> dict[str, str]:
        """Return attempt id → token of all that are ours."""
        return {held.spec.attempt_id: held.spec.token for held in self.all()}

    def started_ids(self) -> frozenset[str]:
        return frozenset(held.spec.attempt_id for held in self.all() if held.has_started)

    def dead_ids(self) -> tuple[str, ...]:
        """Return the attempts of this host that are known to be dead."""
        now = self._clock()
        with self._lock:
            self._dead = {attempt_id: until for attempt_id, until in self._dead.items() if until > now}
            return tuple(sorted(self._dead))
