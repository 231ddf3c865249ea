"""``python -m tests.chaos.recovery``: how soon faults are seen and mended, with the product's own timings.

Every figure is measured on real processes from outside: the fault's moment is ours, the end is what the audit (rows
of the events table) or the tasks' ledger says. Ends with 1 when a figure is above its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.client import ApiError
from tests.chaos.ledger import Line, read_ledger
from tests.chaos.load import cancel, pipeline, start_run, task
from tests.chaos.parts import site_processes
from tests.chaos.servers import make_template
from tests.chaos.site import ChaosSite
from tests.chaos.witness import asking, dispatched_after, epoch, list_runs, moment

AS_SHIPPED: dict[str, Any] = {
    "HEARTBEAT_INTERVAL_SECONDS": "5",
    "WORKER_LEASE_SECONDS": "30",
    "LEADER_LEASE_SECONDS": "10",
    "REDISPATCH_SECONDS": "20",
    "RECONCILE_SECONDS": "30",
    "CANCEL_GRACE_SECONDS": "10",
}
"""The defaults, where the fault suite scales them down."""
HOSTS = ("a", "b", "c", "d", "e", "f", "g", "h")
BETWEEN_DEATHS = 11.0
"""Seconds between two dead hosts: never so many silent at once that the breaker holds them (I11)."""
LONG = 900.0


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured of one fault; seconds."""

    fault: str
    until: str
    bound: float
    median: float
    worst: float
    repeats: int

    @property
    def holds(self) -> bool:
        return self.worst <= self.bound


def figure(fault: str, until: str, bound: float, seconds: list[float]) -> Figure:
    """Return the figure of these measurements."""
    return Figure(fault, until, bound, round(statistics.median(seconds), 2), round(max(seconds), 2), len(seconds))


Measure = Callable[[ChaosSite, int], list[Figure]]


def dead_host(site: ChaosSite, repeats: int) -> list[Figure]:
    """All processes of a host are killed at once, as by a power cut, and it stays away until it was given up (I6)."""
    _save(site, "long", task("t", seconds=LONG))
    deaths: list[tuple[float, str, str]] = []
    away: list[tuple[float, str]] = []
    for _ in range(repeats):
        run = start_run(site, "long")
        line = _wait_for_start(site, run)
        name = line.host.removeprefix("host-")
        worker, incarnation = f"worker-{name}", site.attempts(run, "t")[-1]["worker_id"]
        site.processes.forget_restarts(worker)
        victims = [site.processes.pid(worker), *_pids_of_host(site, worker)]
        for deed in (signal.SIGSTOP, signal.SIGKILL):
            for pid in victims:
                site.signal(pid, deed, f"a part of {worker}")
        died = time.time()
        deaths.append((died, incarnation, run))
        away.append((time.monotonic(), worker))
        time.sleep(BETWEEN_DEATHS)
        away = [one for one in away if not _return(site, *one)]
    seen, elsewhere = [], []
    for died, incarnation, run in deaths:
        seen.append(_audit(site, "entity_id = %s AND after = 'lost'", incarnation) - died)
        elsewhere.append(_wait_for_start(site, run, after=died, seconds=90).wall - died)
        cancel(site, run)
    for _, worker in away:
        site.processes.start(worker)
    site.wait_until_quiet(120)
    return [
        figure("host dead", "seen as lost", 32.0, seen),
        figure("host dead", "its task runs elsewhere", 45.0, elsewhere),
    ]


def dead_child(site: ChaosSite, repeats: int) -> list[Figure]:
    """The process of a task is killed; its worker lives (I6)."""
    _save(site, "once", task("t", seconds=LONG, retries=0))
    ended = []
    for _ in range(repeats):
        run = start_run(site, "once")
        line = _wait_for_start(site, run)
        died = time.time()
        os.kill(line.pid, signal.SIGKILL)
        ended.append(_audit(site, "run_id = %s AND entity = 'attempt' AND after = 'failed'", run) - died)
    return [figure("task's process killed", "its outcome is committed", 2.0, ended)]


def dead_leader(site: ChaosSite, repeats: int) -> list[Figure]:
    """The leading scheduler is killed; a run is posted at that moment (I9)."""
    return _leader_gone(site, repeats, "leader killed", freeze=False)


def frozen_leader(site: ChaosSite, repeats: int) -> list[Figure]:
    """The leading scheduler is frozen in its tracks; it thaws when another one leads (I9)."""
    return _leader_gone(site, repeats, "leader frozen", freeze=True)


def _leader_gone(site: ChaosSite, repeats: int, fault: str, *, freeze: bool) -> list[Figure]:
    _save(site, "short", task("t", seconds=0.1))
    dispatched = []
    for _ in range(repeats):
        leader = site.wait_for_leader(seconds=30)
        gone = time.time()
        if freeze:
            site.processes.freeze(leader)
        else:
            site.processes.kill(leader)
        run = start_run(site, "short")
        dispatched.append(_audit(site, "run_id = %s AND after = 'dispatched'", run, seconds=60) - gone)
        if freeze:
            site.processes.thaw(leader)
        site.finish(run)
    return [figure(fault, "another one dispatches", 15.0, dispatched)]


def flushed_redis(site: ChaosSite, repeats: int) -> list[Figure]:
    """Redis is flushed while hints lie in it that nobody has taken; a long task runs all the while (I7)."""
    _save(site, "long", task("t", seconds=LONG))
    _save(site, "four", *(task(f"t{n}", seconds=0.1) for n in range(4)))
    long_run = start_run(site, "long")
    _wait_for_start(site, long_run)
    again = []
    for _ in range(repeats):
        with site.frozen(*site.workers):
            run = start_run(site, "four")
            site.wait_until(
                lambda run=run: len(site.postgres.query(DISPATCHED, run)) == 4,  # type: ignore[misc]
                "four unclaimed attempts",
            )
            flushed = time.time()
            site.redis.flush()
            site.wait_until(
                lambda run=run: len(site.postgres.query(f"{DISPATCHED} AND seq > 1", run)) == 4,  # type: ignore[misc]
                "four hints sent again",
            )
            again.append(time.time() - flushed)
        site.finish(run)
    (row,) = site.postgres.query("SELECT count(*) FROM attempts WHERE run_id = %s", long_run)
    assert row == (1,), f"the long task was disturbed: it has {row[0]} attempts"
    cancel(site, long_run)
    return [figure("Redis flushed", "unclaimed hints are sent again", 10.0, again)]


def restarted_postgres(site: ChaosSite, repeats: int) -> list[Figure]:
    """PostgreSQL is restarted, fast and immediate in turn, while a long task runs (I8)."""
    _save(site, "long", task("t", seconds=LONG))
    _save(site, "short", task("t", seconds=0.1))
    long_run = start_run(site, "long")
    _wait_for_start(site, long_run)
    dispatched = []
    for number in range(repeats):
        site.postgres.stop(immediate=number % 2 == 1)
        time.sleep(2.0)
        site.postgres.start()
        back = time.time()
        run = start_run(site, "short")
        dispatched.append(_audit(site, "run_id = %s AND after = 'dispatched'", run, seconds=60) - back)
        site.finish(run)
    (row,) = site.postgres.query("SELECT count(*) FROM attempts WHERE run_id = %s", long_run)
    assert row == (1,), f"the long task was disturbed: it has {row[0]} attempts"
    cancel(site, long_run)
    return [figure("PostgreSQL restarted", "first dispatch after its return", 15.0, dispatched)]


def away_postgres(site: ChaosSite, repeats: int) -> list[Figure]:
    """PostgreSQL is stopped; users ask (I8)."""
    impatient = site.new_client(patience=0.0, timeout=20.0)
    site.postgres.stop()
    answers = []
    for _ in range(repeats):
        with suppress(ApiError):
            impatient._request("GET", "/api/v1/runs")
        reply = site.memory.replies[-1]
        assert reply.status == 503, f"with PostgreSQL away the API said {reply.status}"
        answers.append(reply.seconds)
    site.postgres.start()
    impatient.close()
    return [figure("PostgreSQL away, refusing connections", "the API says 503", 3.0, answers)]


def half_open_api(site: ChaosSite, repeats: int) -> list[Figure]:
    """An API's link to PostgreSQL swallows all bytes while TCP stays up; a user asks until it says 503 at once (I8).

    Each fault is felt by connections that are in use and by new ones: the slowest answer of each counts.
    """
    link = site.proxies["api-1→postgres"]
    answers = []
    for _ in range(repeats):
        link.swallow()
        with asking(site, "api-1", list_runs, pause=0.05) as asker:
            site.wait_until(lambda asker=asker: len(asker.replies) >= 4, "four answers")  # type: ignore[misc]
        assert link.swallowed, "nothing of the API came this way"
        assert set(asker.statuses) == {503}, f"with its link half open the API said {asker.statuses}"
        answers.append(max(reply.seconds for reply in asker.replies))
        link.pass_on()
        with asking(site, "api-1", list_runs, pause=0.05) as asker:
            site.wait_until(lambda asker=asker: asker.statuses[200], "the API works again")  # type: ignore[misc]
    return [figure("API's link to PostgreSQL half open", "the API says 503", 3.0, answers)]


def half_open_leader(site: ChaosSite, repeats: int) -> list[Figure]:
    """The leader's link to a store swallows all bytes while TCP stays up; a run is posted at that moment (I8, I9)."""
    _save(site, "short", task("t", seconds=0.1))
    figures = []
    for store, name in (("postgres", "PostgreSQL"), ("redis", "Redis")):
        dispatched = []
        for _ in range(repeats):
            link = site.proxies[f"{site.wait_for_leader(seconds=30)}→{store}"]
            since, before = moment(site), epoch(site)
            link.swallow()
            run = start_run(site, "short")
            site.wait_until(
                lambda since=since, before=before: dispatched_after(site, since, before),  # type: ignore[misc]
                "another one dispatches",
                60,
            )
            dispatched.append(dispatched_after(site, since, before) or 0.0)
            assert link.swallowed, "nothing of the leader came this way"
            link.pass_on()
            site.finish(run)
        figures.append(figure(f"leader's link to {name} half open", "another one dispatches", 15.0, dispatched))
    return figures


def cancelled(site: ChaosSite, repeats: int) -> list[Figure]:
    """A run is cancelled; its task notes TERM, ignores it, and has a daemon (I10)."""
    _save(site, "stubborn", task("t", seconds=LONG, ignore_term=True, double_fork=True, grace_seconds=1.0))
    terms, dead = [], []
    for _ in range(repeats):
        run = start_run(site, "stubborn")
        _wait_for_start(site, run)
        asked = time.time()
        cancel(site, run)
        site.finish(run)
        lines = [line for line in _lines(site, run) if line.what == "term"]
        terms.append(min(line.wall for line in lines) - asked)
        dead.append(_audit(site, "run_id = %s AND entity = 'attempt' AND after = 'cancelled'", run) - asked)
        assert not site.survivors()
    return [
        figure("cancel", "TERM reaches the tree", 5.0, terms),
        figure("cancel, TERM ignored (grace 1 s)", "nothing of the tree lives", 8.0, dead),
    ]


MEASURES: dict[str, tuple[Measure, tuple[str, ...]]] = {
    "dead-host": (dead_host, HOSTS),
    "dead-child": (dead_child, HOSTS[:2]),
    "dead-leader": (dead_leader, HOSTS[:2]),
    "frozen-leader": (frozen_leader, HOSTS[:2]),
    "flushed-redis": (flushed_redis, HOSTS[:2]),
    "restarted-postgres": (restarted_postgres, HOSTS[:2]),
    "away-postgres": (away_postgres, HOSTS[:1]),
    "half-open-api": (half_open_api, HOSTS[:1]),
    "half-open-leader": (half_open_leader, HOSTS[:2]),
    "cancel": (cancelled, HOSTS[:2]),
}
"""Name → what measures it, and the hosts it needs."""

DISPATCHED = "SELECT id FROM attempts WHERE run_id = %s AND state = 'dispatched'"


def _save(site: ChaosSite, name: str, *tasks: dict[str, object]) -> None:
    site.client.save_pipeline(pipeline(name, tasks))


def _lines(site: ChaosSite, run: str) -> list[Line]:
    return [line for line in read_ledger(site.ledger_file) if line.run == run]


def _wait_for_start(site: ChaosSite, run: str, *, after: float = 0.0, seconds: float = 60.0) -> Line:
    """Return the first start of a task of the run after a moment (wall clock)."""

    def started() -> Line | None:
        return next((one for one in _lines(site, run) if one.what == "start" and one.wall > after), None)

    line: Line = site.wait_until(started, f"a start of run {run}", seconds)
    return line


def _audit(site: ChaosSite, where: str, *values: str, seconds: float = 60.0) -> float:
    """Return when (wall clock) the audit's first such row was written."""
    statement = f"SELECT extract(epoch FROM at)::float8 FROM events WHERE {where} ORDER BY id LIMIT 1"
    rows = site.wait_until(lambda: site.postgres.query(statement, *values), f"an event: {where} {values}", seconds)
    return float(rows[0][0])


def _pids_of_host(site: ChaosSite, worker: str) -> list[int]:
    """Return all that runs on a pretended host besides the worker itself: its folder is in their environment."""
    mark = f"HOST_ID=host-{worker.removeprefix('worker-')}".encode()
    parts = site.parts(worker)
    known = {parts.fork_server or 0, *parts.supervisors, *parts.runners} - {0}
    for process in site_processes(site.folder):
        if mark in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"):
            known.add(process.pid)
    return sorted(known - {parts.main})


def _return(site: ChaosSite, since: float, worker: str) -> bool:
    """Start a dead host again once it was given up; returns whether it was time."""
    if time.monotonic() - since < 45.0:
        return False
    site.processes.start(worker)
    return True


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.recovery", description=__doc__)
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=f"of {', '.join(MEASURES)}; none: all")
    parser.add_argument("--repeats", type=int, default=20, help="of each (default 20)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--json", action="store_true", help="one JSON line per figure")
    arguments = parser.parse_args()
    if unknown := set(arguments.measures) - set(MEASURES):
        parser.error(f"no measure is called {', '.join(sorted(unknown))}; there are {', '.join(MEASURES)}")
    folder = Path(tempfile.mkdtemp(prefix="recovery-"))
    folder.chmod(0o711)
    figures: list[Figure] = []
    try:
        template = folder / "template"
        template.mkdir(mode=0o711)
        made = make_template(template)
        for name in arguments.measures or MEASURES:
            measure, hosts = MEASURES[name]
            part = folder / name
            part.mkdir(mode=0o711)
            with ChaosSite(part, arguments.seed, made, workers=hosts, **AS_SHIPPED) as site:
                found = measure(site, arguments.repeats)
            figures += found
            for one in found:
                print(json.dumps(asdict(one)) if arguments.json else f"{name}: {one}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not arguments.json:
        _print_table(figures)
    return 0 if all(one.holds for one in figures) else 1


def _print_table(figures: list[Figure]) -> None:
    table = Table("fault", "until", "bound, s", "median, s", "worst, s", "repeats")
    for one in figures:
        worst = f"{one.worst:.2f}" + ("" if one.holds else " [red]above[/red]")
        table.add_row(one.fault, one.until, f"{one.bound:g}", f"{one.median:.2f}", worst, str(one.repeats))
    Console(width=120).print(table)


if __name__ == "__main__":
    sys.exit(main())
