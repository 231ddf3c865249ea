"""A cancel raced with everything else that may happen to a task: it ends once, for one reason, and nothing follows."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import pytest

from orchestrator.client import ApiError
from tests.chaos.checker import Bounds
from tests.chaos.client import ChaosClient
from tests.chaos.conftest import Chaos
from tests.chaos.load import Task, assert_contract, pipeline, task, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import assert_no_attempt_ran_twice, refused, seconds_since

pytestmark = pytest.mark.chaos

PAIRS = 200
USERS = 8
STOP_SECONDS = 7.0
"""From a cancel to the death of the last process, beside the grace (I10)."""
CHEAP: dict[str, Any] = {"cpu": 0.25, "memory_gb": 0.12, "retry_delay_seconds": 0.3}

RACES: dict[str, list[Task]] = {
    "dispatch": [task("a", seconds=0.3, **CHEAP), task("b", "a", seconds=0.3, **CHEAP)],
    "finish": [task("a", seconds=0.05, **CHEAP)],
    "retry": [task("a", seconds=0.05, fail_times=2, **CHEAP)],
    "death": [task("a", seconds=0.8, beat_seconds=0.1, **CHEAP), task("b", "a", rule="all_done", seconds=0.1, **CHEAP)],
}
"""What a cancel is raced with, and the tasks of the runs in which that happens."""
LONGEST_DELAY = {"dispatch": 0.12, "finish": 0.8, "retry": 1.6, "death": 1.5}


@dataclass(frozen=True, slots=True)
class Pair:
    """A run and the cancel of it."""

    race: str
    run_id: str
    was_accepted: bool
    """Whether the run had not ended yet when its cancel came."""


@pytest.mark.chaos_quick
def test_two_hundred_cancels_raced_with_all_that_can_happen_end_every_run_once(chaos: Chaos) -> None:
    with chaos(slots=8) as site:
        for race, tasks in RACES.items():
            site.client.save_pipeline(pipeline(race, tasks))
        began = time.monotonic()
        with _Reaper(site) as reaper, ThreadPoolExecutor(USERS) as users:
            shares = [users.submit(_race, site, user, PAIRS // USERS) for user in range(USERS)]
            pairs = [pair for share in shares for pair in share.result()]
        print(f"{len(pairs)} pairs in {seconds_since(began):.1f} s; {reaper.killed} processes were killed meanwhile")
        wait_until_quiet(site)
        _assert_ended_by_right(site, pairs)
        _assert_raced(site, reaper)
        assert_no_attempt_ran_twice(site)
        assert_contract(site, bounds=Bounds(stop_seconds=STOP_SECONDS))


def _race(site: ChaosSite, user: int, pairs: int) -> list[Pair]:
    """Start runs one after the other and cancel each after a random moment."""
    dice, client = site.dice(f"cancels of user {user}"), site.new_client()
    found = []
    try:
        for number in range(pairs):
            race = list(RACES)[number % len(RACES)]
            run_id = str(client.start_run(race)["id"])
            time.sleep(dice.uniform(0.0, LONGEST_DELAY[race]))
            found.append(Pair(race, run_id, _cancel(client, run_id)))
    finally:
        client.close()
    return found


def _cancel(client: ChaosClient, run_id: str) -> bool:
    try:
        client.cancel(run_id)
    except ApiError as error:
        if error.status != 409:
            raise
        return False
    return True


class _Reaper:
    """Kills a supervisor or a task somewhere now and then, and a worker twice; usable as a context manager."""

    def __init__(self, site: ChaosSite) -> None:
        self.killed: Counter[str] = Counter()
        self._site = site
        self._dice = site.dice("deaths")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="reaper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(20.0)

    def _work(self) -> None:
        rounds = 0
        while not self._ended.wait(self._dice.uniform(0.2, 0.7)):
            rounds += 1
            worker = self._dice.choice([name for name in self._site.workers if name in self._site.processes.pids()])
            if rounds in (8, 24):
                self._site.processes.kill(worker)
                self.killed["worker"] += 1
            else:
                self._kill_a_part(worker, self._dice)

    def _kill_a_part(self, worker: str, dice: random.Random) -> None:
        parts = self._site.parts(worker)
        kind = dice.choice(("supervisor", "runner"))
        candidates = parts.supervisors if kind == "supervisor" else parts.runners
        if candidates and self._site.signal(dice.choice(candidates), signal.SIGKILL, f"{kind} of {worker}"):
            self.killed[kind] += 1


def _assert_ended_by_right(site: ChaosSite, pairs: list[Pair]) -> None:
    """Hold that each run was cancelled, or had ended by itself before its cancel was taken in."""
    states = dict(site.postgres.query("SELECT id::text, state FROM runs"))
    ends = Counter((pair.race, pair.was_accepted, states[pair.run_id]) for pair in pairs)
    print(f"ends (race, cancel accepted, state): {dict(ends)}")
    wrong = [
        (pair, states[pair.run_id])
        for pair in pairs
        if states[pair.run_id] not in (("cancelled", "success") if pair.was_accepted else ("success",))
    ]
    assert not wrong, wrong
    commands = site.postgres.query("SELECT count(*) FROM commands WHERE kind = 'cancel' AND applied_at IS NULL")
    assert commands == [(0,)], "a cancel was never applied"
    assert any(state == "cancelled" for _, _, state in ends)
    assert any(state == "success" for _, _, state in ends)


def _assert_raced(site: ChaosSite, reaper: _Reaper) -> None:
    """Hold that cancels have met tasks in every state, and that deaths have met cancels."""
    met = Counter(
        before
        for (before,) in site.postgres.query(
            "SELECT before FROM events WHERE entity = 'task_run' AND after IN ('cancelled', 'cancelling') "
            "AND cause = 'cancel'"
        )
    )
    ends = Counter(
        dict(
            site.postgres.query(
                "SELECT after, count(*) FROM events WHERE entity = 'attempt' AND before = 'running' AND EXISTS "
                "(SELECT 1 FROM events c WHERE c.run_id = events.run_id AND c.id < events.id "
                "AND c.after = 'cancelling') GROUP BY after"
            )
        )
    )
    print(f"cancels met tasks that were {dict(met)}; attempts under way then ended {dict(ends)}; {dict(refused(site))}")
    assert {"pending", "queued", "running", "retry_wait"} <= met.keys(), met
    assert ends["cancelled"], "no cancel has stopped anything"
    assert ends["succeeded"], "nothing has finished while it was being cancelled"
    assert ends["lost"], "nothing has died while it was being cancelled"
    assert reaper.killed["worker"], "no worker has died"
