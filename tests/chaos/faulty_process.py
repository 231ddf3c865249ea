"""Starts a process of the product with message faults patched in at its ports.

Run as ``python -m tests.chaos.faulty_process celery …``, in place of ``python -m celery …``. ``CHAOS_FAULTS`` holds the
faults as a JSON object; every probability is drawn from its ``seed``:

- of a scheduler: ``hints`` (each is sent so many times, in any order), ``hints_dropped`` (probability), ``replies`` and
  ``replies_dropped`` (grants, denials and answers likewise), ``events_per_second`` (no more reports are taken in);
- of a worker: ``events`` (claims, outcomes, goodbyes: each is sent so many times), ``events_shuffled`` (each copy up to
  so many seconds later, so that they overtake each other), ``events_dropped`` (probability, of each copy),
  ``no_cgroups`` (as where none can be made: supervisors watch over the ceilings themselves);
- of an API: ``dies_after_commit`` (every so many runs it is killed between the commit and its answer; 2 or more).
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import os
import random
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

VARIABLE = "CHAOS_FAULTS"
NEVER_SENT = "0-1"
"""An entry id that no stream still holds: whoever asks learns that the report is gone, and sends it again."""


def main(arguments: list[str]) -> None:
    """Run the module that the first argument names as if it had been started by ``python -m``."""
    faults = json.loads(os.environ[VARIABLE])
    module = arguments[0]
    patch(module, faults, random.Random(str(faults.get("seed"))))
    sys.argv = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def patch(module: str, faults: Mapping[str, Any], dice: random.Random) -> None:
    """Patch this process."""
    match module:
        case "scheduler":
            _patch_hints(int(faults.get("hints", 1)), float(faults.get("hints_dropped", 0.0)), dice)
            _patch_replies(int(faults.get("replies", 1)), float(faults.get("replies_dropped", 0.0)), dice)
            if faults.get("events_per_second"):
                _patch_ingest(float(faults["events_per_second"]))
        case "celery":
            shuffled, dropped = float(faults.get("events_shuffled", 0.0)), float(faults.get("events_dropped", 0.0))
            _patch_reports(int(faults.get("events", 1)), shuffled, dropped, dice)
            if faults.get("no_cgroups"):
                _patch_cgroups()
        case "gunicorn":
            if faults.get("dies_after_commit"):
                _patch_commit(int(faults["dies_after_commit"]), dice)
        case _:
            raise SystemExit(f"No faults are known for {module}.")


def _copies(items: Iterable[Any], times: int, dropped: float, dice: random.Random) -> list[Any]:
    """Return every item so many times in any order, some left out."""
    copies = [item for item in items for _ in range(times) if dice.random() >= dropped]
    if times > 1:
        dice.shuffle(copies)
    return copies


def _patch_hints(times: int, dropped: float, dice: random.Random) -> None:
    from orchestrator.effects import SendHint
    from orchestrator.wire.hints import HintPublisher

    publish = HintPublisher.publish

    def faulty(self: HintPublisher, hints: Iterable[SendHint]) -> None:
        publish(self, _copies(hints, times, dropped, dice))

    HintPublisher.publish = faulty  # type: ignore[method-assign]


def _patch_replies(times: int, dropped: float, dice: random.Random) -> None:
    from orchestrator.wire.mailbox import ReplySender

    send = ReplySender.send

    def faulty(self: ReplySender, replies: Iterable[Any]) -> None:
        send(self, _copies(replies, times, dropped, dice))

    ReplySender.send = faulty  # type: ignore[method-assign]


def _patch_ingest(per_second: float) -> None:
    """Let the leader take in so many reports a second; it goes on to renew its lease, dispatch and hear heartbeats."""
    from scheduler.inbox import Gathered, Inbox

    read = Inbox._read_stream
    budget, filled = 1.0, time.monotonic()

    def faulty(self: Inbox, found: Gathered, block: float, batch: int) -> None:
        nonlocal budget, filled
        now = time.monotonic()
        budget, filled = min(max(1.0, per_second / 4), budget + (now - filled) * per_second), now
        if budget >= 1.0:
            before = len(found.entries)
            read(self, found, block, min(batch, int(budget)))
            budget -= len(found.entries) - before
        else:
            time.sleep(min(block, (1.0 - budget) / per_second))
        found.claims_waiting = self._stream.oldest_unread_age() > self._redispatch

    Inbox._read_stream = faulty  # type: ignore[method-assign]


def _patch_reports(times: int, shuffled: float, dropped: float, dice: random.Random) -> None:
    from orchestrator.errors import StoreUnavailable
    from orchestrator.wire.stream import Reporter

    send = Reporter._send
    late = _Late()

    def faulty(self: Reporter, kind: str, body: bytes) -> str:
        entry = NEVER_SENT
        for _ in range(times):
            if dice.random() < dropped:
                continue
            if shuffled:
                late.do(dice.uniform(0.0, shuffled), lambda: send(self, kind, body), StoreUnavailable)
            else:
                entry = send(self, kind, body)
        if kind == "goodbye":  # whoever says it ends
            late.finish(shuffled + 1.0)
        return entry

    Reporter._send = faulty  # type: ignore[method-assign]


def _patch_cgroups() -> None:
    """Have fork servers told that no cgroups can be made."""
    from workers import host
    from workers.orders import Site

    vars(host)["Site"] = functools.partial(Site, use_cgroups=False)


class _Late:
    """Does things later, in a thread; what fails then is lost, as a message is."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object], type[Exception]]] = []
        self._number = itertools.count()
        self._is_busy = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def do(self, seconds: float, deed: Callable[[], object], may_fail: type[Exception]) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._number), deed, may_fail))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="late-messages", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def finish(self, seconds: float) -> None:
        """Wait until all is done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._due and not self._is_busy, seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                _, _, deed, may_fail = heapq.heappop(self._due)
                self._is_busy = True
            with suppress(may_fail):
                deed()
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()


def _patch_commit(every: int, dice: random.Random) -> None:
    """Kill the process that answers, in the middle of every so many-th start of a run, after its commit.

    Waking the leader is the first thing after the commit, and it comes before the answer.
    """
    from flask import request

    from api.live import LiveWire

    wake = LiveWire.wake
    left = dice.randint(2, max(2, every))
    lock = threading.Lock()

    def faulty(self: LiveWire) -> None:
        nonlocal left
        if request.method == "POST" and request.path == "/api/v1/runs":
            with lock:
                left -= 1
                if left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        wake(self)

    LiveWire.wake = faulty  # type: ignore[method-assign]


if __name__ == "__main__":
    main(sys.argv[1:])
