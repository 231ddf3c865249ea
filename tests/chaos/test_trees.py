"""Tasks that go wrong as processes: out of memory, killing what runs them, running away. None of it spreads."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import PIPE
from typing import Any

import pytest

from tests.chaos.checker import Bounds
from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, cancel, pipeline, run_load, start_run, task, wait_until_quiet
from tests.chaos.memory_group import MemoryGroup, why_no_memory_group
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    LONG,
    assert_no_attempt_ran_twice,
    assert_untouched,
    lines,
    seconds_since,
    start_long,
)
from workers.cgroups import host_oom_kills

pytestmark = pytest.mark.chaos

STOP_SECONDS = 7.0
"""From a cancel to the death of the last process, beside the grace (I10)."""
SEEN_WITHIN = 15.0


# --- out of memory ---


@pytest.mark.parametrize("kept_by", ["its supervisor", "its cgroup"])
def test_a_task_above_its_own_memory_fails_as_oom_and_its_host_goes_on(chaos: Chaos, kept_by: str) -> None:
    if kept_by == "its cgroup" and why_no_memory_group():
        pytest.skip(why_no_memory_group())
    faults = {"worker": {"no_cgroups": kept_by == "its supervisor"}}
    with chaos(workers=("a",), faults=faults) as site:
        beside = start_long(site, 10.0)
        run_load(site, runs=3, cancelled=0.0)
        greedy = site.start_run(pipeline("greedy", [task("eats", allocate_mb=600, seconds=20.0, retries=1)]))
        _assert_out_of_memory(site, greedy, tries=2)
        _assert_nobody_else_suffered(site, beside)


@pytest.mark.skipif(bool(why_no_memory_group()), reason=why_no_memory_group())
def test_a_task_that_the_kernel_kills_for_the_memory_of_its_host_is_told_so(chaos: Chaos) -> None:
    with MemoryGroup(1400 << 20) as group, chaos(workers=("a",)) as site, _hog(group, 950):
        parts = site.parts("worker-a")
        assert parts.fork_server is not None
        group.take_in(parts.main, parts.fork_server)
        beside, killed = start_long(site, 10.0, memory_gb=0.1), host_oom_kills() or 0
        # It takes less than it has asked for; but a stranger on the host has taken what was promised to it.
        eats = task("eats", allocate_mb=500, seconds=20.0, retries=1, memory_gb=0.8)
        greedy = site.start_run(pipeline("greedy", [eats]))
        _assert_out_of_memory(site, greedy, tries=2)
        assert (host_oom_kills() or 0) >= killed + 2, "it was not the kernel that killed it"
        run_load(site, runs=3, cancelled=0.0)
        _assert_nobody_else_suffered(site, beside)


@contextmanager
def _hog(group: MemoryGroup, mebibytes: int) -> Iterator[None]:
    """Hold memory in the group for the block."""
    code = f"import sys; sys.stdin.readline(); taken = b'x' * ({mebibytes} << 20); print('full', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        group.take_in(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "full\n"
        try:
            yield
        finally:
            process.kill()


def _assert_out_of_memory(site: ChaosSite, run_id: str, tries: int) -> None:
    """Hold that each try ended as ``oom``, charged to the user's retries, and none to the infrastructure's."""
    assert site.finish(run_id)["state"] == "failed"
    told = [(attempt["state"], attempt["reason"]) for attempt in site.attempts(run_id, "eats")]
    assert told == [("failed", "oom")] * tries
    assert site.task(run_id, "eats")["reason"] == "oom"
    assert _charged(site, run_id) == {"eats": (tries, 0)}


def _assert_nobody_else_suffered(site: ChaosSite, beside: str) -> None:
    """Hold that nothing else on the host was touched, its worker least of all."""
    wait_until_quiet(site)
    assert_untouched(site, beside)
    assert not any(site.processes.restarts().values()), site.processes.restarts()
    assert_no_attempt_ran_twice(site)
    assert_contract(site)


def _charged(site: ChaosSite, run_id: str) -> dict[str, tuple[int, int]]:
    """Return what each task of a run was charged: failures and losses."""
    rows = site.postgres.query("SELECT name, failures, losses FROM task_runs WHERE run_id = %s", run_id)
    return {name: (failures, losses) for name, failures, losses in rows}


# --- poison ---


@pytest.mark.chaos_quick
def test_a_task_that_kills_its_supervisor_is_tried_three_times_and_nobody_else_is_hurt(chaos: Chaos) -> None:
    with chaos() as site:
        beside = _one_on_each_host(site)
        run_load(site, runs=6, cancelled=0.0)
        poison = _poison(site, "supervisor")
        wait_until_quiet(site)
        for run_id in beside.values():
            assert_untouched(site, run_id)
        assert not any(site.processes.restarts().values()), site.processes.restarts()
        _assert_nobody_else_is_poison(site, poison)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


@pytest.mark.chaos_quick
@pytest.mark.parametrize("whom", ["fork_server", "worker"])
def test_a_task_that_kills_all_of_its_host_is_tried_three_times_and_others_go_on(chaos: Chaos, whom: str) -> None:
    with chaos() as site:
        beside = _one_on_each_host(site)
        poison = _poison(site, whom)
        restarts = site.processes.restarts()
        assert sum(restarts[worker] for worker in site.workers) == (3 if whom == "worker" else 0), restarts
        # Whoever was on a host with it was lost with it, and then kept apart from it.
        for run_id in beside.values():
            site.succeed(run_id)
        assert any(len(site.attempts(run_id, LONG)) > 1 for run_id in beside.values()), "nobody was hit"
        _assert_nobody_else_is_poison(site, poison)
        _assert_all_work(site)
        wait_until_quiet(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def _one_on_each_host(site: ChaosSite) -> dict[str, str]:
    """Start long tasks, so big that no two of them fit on one host; return their runs by host."""
    started = [start_long(site, 12.0, cpu=1.5, memory_gb=0.5) for _ in site.workers]
    found = {lines(site, "start", run_id)[0].host: run_id for run_id in started}
    assert len(found) == len(site.workers), found
    return found


def _poison(site: ChaosSite, whom: str) -> str:
    """Run a task that kills whoever it is; hold that it was tried three times, no more and no less."""
    run_id = site.start_run(pipeline("poison", [task("kills", kill=whom, kill_after=0.5, seconds=30.0)]))
    assert site.finish(run_id)["state"] == "failed"
    told = site.attempts(run_id, "kills")
    assert [attempt["state"] for attempt in told] == ["lost"] * 3, told
    assert len(lines(site, "start", run_id)) == 3
    assert site.task(run_id, "kills")["reason"] == "poison"
    assert _charged(site, run_id) == {"kills": (0, 3)}
    return run_id


def _assert_nobody_else_is_poison(site: ChaosSite, poison: str) -> None:
    found = site.postgres.query("SELECT run_id::text, name FROM task_runs WHERE reason = 'poison'")
    assert found == [(poison, "kills")], found


def _assert_all_work(site: ChaosSite) -> None:
    """Hold that every worker is online, and runs tasks."""
    site.wait_until_online(len(site.workers), SEEN_WITHIN)
    site.client.save_pipeline(pipeline("four", [task(f"t{number}") for number in range(4)]))
    known = len(lines(site, "start"))
    hosts = {worker.replace("worker", "host") for worker in site.workers}

    def all_have_started_something() -> bool:
        start_run(site, "four")
        return {line.host for line in lines(site, "start")[known:]} >= hosts

    site.wait_until(all_have_started_something, "every worker runs tasks", SEEN_WITHIN)


# --- runaways ---

WILD: dict[str, Any] = {"ignore_term": True, "double_fork": True, "fork_bomb": 200, "beat_seconds": 1.0, "seconds": 90}
"""It forks 200 processes and a daemon in a session of its own, and none of them heeds TERM."""


@pytest.mark.chaos_quick
def test_nothing_survives_of_a_task_that_runs_away_in_every_way(chaos: Chaos) -> None:
    with chaos(workers=("a",), MAX_MEMORY_GB="8") as site:
        beside = start_long(site, 12.0)
        wild = {**WILD, "memory_gb": 2, "grace_seconds": 1.0, "retries": 0}
        cancelled = start_long(site, name="cancelled", **wild)
        _wait_for_bomb(site, cancelled)
        assert cancel(site, cancelled)
        asked = time.monotonic()
        assert site.finish(cancelled)["state"] == "cancelled"
        print(f"{len(_pids(site, cancelled))} processes were dead {seconds_since(asked):.1f} s after the cancel")
        timed = start_long(site, name="timed", **wild, timeout_seconds=4.0)
        _wait_for_bomb(site, timed)
        assert site.finish(timed)["state"] == "failed"
        assert [attempt["state"] for attempt in site.attempts(timed, LONG)] == ["timed_out"]
        for run_id in (cancelled, timed):
            assert lines(site, "term", run_id), "nobody has asked it to end first"
        wait_until_quiet(site)
        assert_untouched(site, beside)
        assert not site.processes.restarts()["worker-a"]
        run_load(site, runs=3, cancelled=0.0)
        wait_until_quiet(site)
        # What ignores TERM lives for all of its grace; the bound is of what comes on top.
        assert_contract(site, bounds=Bounds(stop_seconds=STOP_SECONDS))


def test_a_task_with_more_processes_than_allowed_is_stopped(chaos: Chaos) -> None:
    with chaos(workers=("a",), MAX_MEMORY_GB="8", MAX_TASK_PROCESSES="50") as site:
        beside = start_long(site, 8.0)
        bomb = pipeline("bomb", [task(LONG, **WILD, memory_gb=2, retries=0)])
        run_id = site.start_run(bomb)
        assert site.finish(run_id)["state"] == "failed"
        assert len(_pids(site, run_id)) <= 60
        _assert_nobody_else_suffered_after_load(site, beside)


def _assert_nobody_else_suffered_after_load(site: ChaosSite, beside: str) -> None:
    run_load(site, runs=3, cancelled=0.0)
    _assert_nobody_else_suffered(site, beside)


def _wait_for_bomb(site: ChaosSite, run_id: str) -> None:
    site.wait_until(lambda: len(_pids(site, run_id)) >= 200, "the bomb has gone off", SEEN_WITHIN)


def _pids(site: ChaosSite, run_id: str) -> set[int]:
    return {line.pid for line in lines(site, "", run_id)}
