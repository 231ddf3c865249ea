"""What scenarios ask of a site beyond the contract: what was logged, what ran how often, how an API answers."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any

from orchestrator.client import ApiError
from tests.acceptance.system import ADMIN_KEY
from tests.chaos.client import ChaosClient, Reply
from tests.chaos.ledger import Line, read_ledger
from tests.chaos.load import pipeline, task
from tests.chaos.site import ChaosSite

LONG = "long"
"""Name of the one task of the runs that :func:`start_long` starts."""
FENCED_WITHIN = 15.0
"""Seconds from a worker's return until its report of an attempt that it had lost was answered, on a busy machine."""
PATIENCE = 3.0
"""Seconds in which an API answers, whatever is away (I8)."""


# --- long work ---


def start_long(site: ChaosSite, seconds: float, name: str = "", **parameters: Any) -> str:
    """Start a run of one task of this length, wait until it really runs, and return the run's id."""
    definition = pipeline(f"long-{name or f'{seconds:g}'}", [task(LONG, seconds=seconds, **parameters)])
    site.client.save_pipeline(definition)
    run_id = str(site.client.start_run(str(definition["name"]))["id"])
    site.wait_until(lambda: lines(site, "start", run_id), f"the long task of run {run_id} runs", 20.0)
    return run_id


def worker_of(site: ChaosSite, run_id: str) -> str:
    """Return the name of the worker that (last) started the long task of a run."""
    return "worker-" + lines(site, "start", run_id)[-1].host.removeprefix("host-")


def assert_untouched(site: ChaosSite, run_id: str, name: str = LONG) -> None:
    """Hold that a task ran once, from its start to its end, and that its only attempt succeeded."""
    told = [(attempt["number"], attempt["state"], attempt["reason"]) for attempt in site.attempts(run_id, name)]
    assert [state for _, state, _ in told] == ["succeeded"], f"task {name} of run {run_id}: {told}"
    what = [line.what for line in lines(site, "", run_id) if line.task == name and line.what != "beat"]
    assert what == ["start", "end"], f"task {name} of run {run_id} noted {what}"


def assert_fenced(site: ChaosSite, run_id: str, worker: str, name: str = LONG) -> None:
    """Hold that the long task ran to its end elsewhere, and that what its first attempt reported counts for nothing."""
    site.succeed(run_id)
    first, *_, last = site.attempts(run_id, name)
    assert first["state"] == "lost", first
    assert last["state"] == "succeeded", last
    hosts = {line.attempt: line.host for line in lines(site, "start", run_id)}
    assert hosts[first["id"]] == worker.replace("worker", "host")
    assert hosts[last["id"]] != hosts[first["id"]], "it was started again on the host that nobody heard"
    fence = next(line.fence for line in lines(site, "end", run_id) if line.attempt == last["id"])
    outputs = site.client._request("GET", f"/api/v1/runs/{run_id}/tasks/{name}")["outputs"]
    assert outputs == {"fence": fence}, "the outputs are not those of the attempt that counts"
    site.wait_until(lambda: refused(site)["fenced"], "the first attempt reports, and is fenced", FENCED_WITHIN)


# --- the ledger ---


def lines(site: ChaosSite, what: str = "", run_id: str = "") -> list[Line]:
    """Return the ledger's lines of this kind and this run (all, when not said)."""
    return [
        line
        for line in read_ledger(site.ledger_file)
        if (not what or line.what == what) and (not run_id or line.run == run_id)
    ]


def starts(site: ChaosSite) -> Counter[str]:
    """Return how often each attempt was really started."""
    return Counter(line.attempt for line in lines(site, "start"))


def assert_no_attempt_ran_twice(site: ChaosSite) -> None:
    """Hold that each attempt, which one worker alone may be granted, was started at most once."""
    twice = {attempt: times for attempt, times in starts(site).items() if times > 1}
    assert not twice, f"attempts that were started more than once: {twice}"


# --- rows and logs ---


def refused(site: ChaosSite) -> Counter[str]:
    """Return what was refused so far, by kind."""
    return Counter(dict(site.postgres.query("SELECT what, count FROM refusals")))


def moment(site: ChaosSite) -> datetime:
    """Return the time by which events are stamped."""
    now: datetime = site.postgres.query("SELECT clock_timestamp()")[0][0]
    return now


def dispatched_after(site: ChaosSite, since: datetime, epoch_above: int = 0) -> float | None:
    """Return how many seconds after ``since`` the first attempt was dispatched, by a leader above this epoch."""
    found = site.postgres.query(
        "SELECT extract(epoch FROM min(at) - %s) FROM events "
        "WHERE entity = 'attempt' AND after = 'dispatched' AND at > %s AND epoch > %s",
        *(since, since, epoch_above),
    )
    return None if found[0][0] is None else float(found[0][0])


def epoch(site: ChaosSite) -> int:
    """Return the epoch of the present lease."""
    return int(site.postgres.query("SELECT epoch FROM leases WHERE role = 'scheduler'")[0][0])


def logged(site: ChaosSite, prefix: str, action: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the log records with this action and these fields, of all processes whose names begin so."""
    found = []
    for name in site.processes.names(prefix):
        for line in site.processes.log(name).read_text(errors="replace").splitlines():
            if f'"{action}"' not in line:
                continue
            with suppress(ValueError):
                record = json.loads(line)
                if record.get("action") == action and fields.items() <= record.items():
                    found.append(record)
    return found


# --- an API under watch ---


class Asker:
    """Asks one API again and again while something is broken, without patience.

    :ivar replies: every answer, or its absence, with the seconds it took.
    """

    def __init__(self, site: ChaosSite, api: str, ask: Callable[[ChaosClient], object], pause: float) -> None:
        self.api = api
        self._pause = pause
        # What is promised counts for all; these answers are looked at here alone.
        memory = replace(site.memory, replies=[])
        self.replies: list[Reply] = memory.replies
        self._client = ChaosClient(
            [f"http://127.0.0.1:{site.apis[api]}"], ADMIN_KEY, memory, patience=0.0, timeout=15.0
        )
        self._ask = ask
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"asker-{api}", daemon=True)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(reply.status for reply in self.replies)

    def assert_prompt(self, *also: int) -> None:
        """Hold that every answer was 2xx, 429, 503 or one of ``also``, and came within three seconds."""
        assert self.replies, f"{self.api} was never asked"
        wrong = [
            (reply.status, round(reply.seconds, 2), reply.path)
            for reply in self.replies
            if reply.seconds > PATIENCE or not (200 <= reply.status < 300 or reply.status in (429, 503, *also))
        ]
        assert not wrong, f"{self.api} answered {wrong[:10]} among {self.statuses}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(20.0)
        self._client.close()

    def _work(self) -> None:
        while not self._ended.wait(self._pause):
            with suppress(ApiError):
                self._ask(self._client)


@contextmanager
def asking(site: ChaosSite, api: str, ask: Callable[[ChaosClient], object], *, pause: float = 0.2) -> Iterator[Asker]:
    """Ask an API again and again for the block, ``pause`` seconds after each answer."""
    asker = Asker(site, api, ask, pause)
    asker.start()
    try:
        yield asker
    finally:
        asker.stop()


def list_runs(client: ChaosClient) -> object:
    """Ask for the newest runs."""
    return client._request("GET", "/api/v1/runs", query={"limit": 5})


def seconds_since(began: float) -> float:
    """Return the seconds since a moment of the monotonic clock."""
    return time.monotonic() - began
