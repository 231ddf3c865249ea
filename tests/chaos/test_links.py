"""Links that break without a word: half open, one way only, a host cut off; on each of them the others go on."""

from __future__ import annotations

import time
from functools import partial

import pytest

from tests.chaos.conftest import Chaos
from tests.chaos.load import assert_contract, run_load, start_run, wait_until_quiet
from tests.chaos.netns import HostNetwork, why_no_namespaces
from tests.chaos.proxy import Direction, Proxy
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    LONG,
    Asker,
    asking,
    assert_no_attempt_ran_twice,
    assert_untouched,
    dispatched_after,
    epoch,
    lines,
    list_runs,
    moment,
    refused,
    seconds_since,
    start_long,
    worker_of,
)

pytestmark = pytest.mark.chaos

LEASE = 3.0
"""Seconds of silence after which a worker is lost, and of a leader's lease, on this scaled site."""
ELSEWHERE_WITHIN = 15.0
"""Seconds from a broken link to the next dispatch, by whoever can (I9), and from the heal to a worker's return."""
DEAD_WITHIN = 15.0
"""Seconds from the heal until nothing lives that was fenced or cancelled meanwhile: the deaf connections' time-outs
(10 s at most), the next heartbeat's answer, and the grace."""


# --- half open: TCP is up, and nothing comes through ---


def test_a_half_open_link_of_a_worker_costs_its_attempts_and_no_run(chaos: Chaos) -> None:
    with chaos() as site:
        long = start_long(site, 14.0)
        run_load(site, runs=10)
        worker = worker_of(site, long)
        link = site.proxies[f"{worker}→redis"]
        _swallow(site, link)
        began = time.monotonic()
        site.wait_until(lambda: len(lines(site, "start", long)) > 1, "the task runs elsewhere", ELSEWHERE_WITHIN)
        print(f"it runs elsewhere {seconds_since(began):.1f} s after the cut")
        time.sleep(max(0.0, 2 * LEASE - seconds_since(began)))
        _heal(site, link)
        _assert_moved_and_fenced(site, long, worker)
        _assert_works_again(site, worker)
        wait_until_quiet(site)
        assert_no_attempt_ran_twice(site)
        assert not any(site.processes.restarts()[name] for name in site.workers), site.processes.restarts()
        assert_contract(site)


@pytest.mark.parametrize("store", ["redis", "postgres"])
def test_a_half_open_link_of_the_leader_lets_another_one_dispatch(chaos: Chaos, store: str) -> None:
    with chaos() as site:
        long = start_long(site, 25.0)
        run_load(site, runs=8)
        leader, before = site.wait_for_leader(), epoch(site)
        link = site.proxies[f"{leader}→{store}"]
        since = moment(site)
        _swallow(site, link)
        began = time.monotonic()
        start_run(site, "chain-0")
        site.wait_until(
            lambda: dispatched_after(site, since, epoch_above=before), "another leader dispatches", ELSEWHERE_WITHIN
        )
        print(f"{store}: another leader dispatched {dispatched_after(site, since, before):.1f} s after the cut")
        assert site.wait_for_leader() != leader
        time.sleep(max(0.0, 2 * LEASE - seconds_since(began)))
        _heal(site, link)
        # The old one is alive and may lead again: it stands by, or takes over from the one that we now end.
        other = site.wait_for_leader(other_than=leader)
        site.processes.stop(other)
        last = moment(site)
        site.wait_for_leader(other_than=other)
        start_run(site, "chain-0")
        site.wait_until(lambda: dispatched_after(site, last), "the healed one dispatches", 2 * ELSEWHERE_WITHIN)
        site.processes.start(other)
        wait_until_quiet(site)
        assert_untouched(site, long)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def test_a_half_open_link_of_an_api_to_postgresql_is_answered_in_time(chaos: Chaos) -> None:
    with chaos() as site:
        run_load(site, runs=8)
        link = site.proxies["api-1→postgres"]
        _swallow(site, link)
        with (
            asking(site, "api-1", list_runs) as reading,
            asking(site, "api-1", lambda api: api.start_run("chain-0")) as writing,
            asking(site, "api-2", lambda api: api.start_run("chain-0")) as beside,
        ):
            time.sleep(12.0)
            assert 503 in reading.statuses, f"the fault was not felt: {reading.statuses}"
            assert 503 in writing.statuses, f"the fault was not felt: {writing.statuses}"
            felt = [len(asker.replies) for asker in (reading, writing)]
            _heal(site, link)
            began = time.monotonic()
            for asker, length in zip((reading, writing), felt, strict=True):
                site.wait_until(partial(_has_succeeded_after, asker, length), "the API works again", ELSEWHERE_WITHIN)
            print(f"it works again {seconds_since(began):.1f} s after the heal")
        _print_slowest(reading, writing, beside)
        reading.assert_prompt()
        writing.assert_prompt()
        beside.assert_prompt()
        assert set(beside.statuses) == {201}, f"the other API suffered too: {beside.statuses}"
        wait_until_quiet(site, 60.0)
        assert_contract(site)


def test_a_half_open_link_of_an_api_to_redis_is_not_even_felt(chaos: Chaos) -> None:
    with chaos() as site:
        run_load(site, runs=8)
        link = site.proxies["api-1→redis"]
        _swallow(site, link)
        with asking(site, "api-1", list_runs) as reading:
            began = time.monotonic()
            with asking(site, "api-1", lambda api: api.start_run("chain-0")) as writing:
                time.sleep(4 * LEASE)
            run_id = str(site.client.start_run("chain-0")["id"])
            site.wait_for_task(run_id, "t0", "running", "success", seconds=ELSEWHERE_WITHIN)
            print(f"runs start without the API's word, {seconds_since(began):.1f} s into the fault")
        _heal(site, link)
        _print_slowest(reading, writing)
        reading.assert_prompt()
        writing.assert_prompt()
        assert set(reading.statuses) == {200}
        assert set(writing.statuses) == {201}
        wait_until_quiet(site, 60.0)
        assert_contract(site)


# --- one way only, and a partition that heals ---


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_worker_that_is_heard_or_hears_but_not_both_stops_what_was_cancelled_meanwhile(
    chaos: Chaos, way: Direction
) -> None:
    with chaos() as site:
        cancelled, kept = start_long(site, 60.0, beat_seconds=0.2), start_long(site, 12.0)
        run_load(site, runs=6)
        worker = worker_of(site, cancelled)
        link = site.proxies[f"{worker}→redis"]
        _swallow(site, link, way)
        time.sleep(0.5)
        site.client.cancel(cancelled)
        time.sleep(2.5 * LEASE)
        _heal(site, link)
        _assert_dead(site, cancelled)
        assert site.finish(cancelled)["state"] == "cancelled"
        assert len(lines(site, "start", cancelled)) == 1, "a cancelled task was started again"
        _assert_works_again(site, worker)
        site.succeed(kept)
        wait_until_quiet(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def test_a_partition_that_heals_brings_late_bytes_and_changes_nothing_twice(chaos: Chaos) -> None:
    with chaos() as site:
        moved = start_long(site, 12.0, "moved")
        worker = worker_of(site, moved)
        cancelled = _long_on(site, worker)
        run_load(site, runs=8)
        link = site.proxies[f"{worker}→redis"]
        site.note(f"{link.name} holds all bytes back")
        link.hold()
        time.sleep(0.5)
        site.client.cancel(cancelled)
        time.sleep(2 * LEASE)
        _heal(site, link)
        _assert_dead(site, cancelled)
        _assert_moved_and_fenced(site, moved, worker)
        assert site.finish(cancelled)["state"] == "cancelled"
        _assert_works_again(site, worker)
        wait_until_quiet(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


# --- a host cut off, by the kernel itself ---


@pytest.mark.skipif(bool(why_no_namespaces()), reason=why_no_namespaces())
def test_a_host_whose_cable_is_pulled_for_two_leases_is_fenced_when_it_is_back(chaos: Chaos) -> None:
    with HostNetwork("chaos") as network, chaos(workers=("a", "b", "c")) as site:
        network.take_in(site, "worker-c")
        moved = _long_on(site, "worker-c", 14.0)
        cancelled = _long_on(site, "worker-c")
        run_load(site, runs=8)
        site.note("the cable of worker-c is pulled")
        with network.cut():
            time.sleep(0.5)
            site.client.cancel(cancelled)
            time.sleep(2 * LEASE)
        site.note("the cable of worker-c is back")
        _assert_dead(site, cancelled)
        _assert_moved_and_fenced(site, moved, "worker-c")
        assert site.finish(cancelled)["state"] == "cancelled"
        _assert_works_again(site, "worker-c")
        wait_until_quiet(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


# --- deeds ---


def _swallow(site: ChaosSite, link: Proxy, way: Direction = "both") -> None:
    site.note(f"{link.name} swallows {way}")
    link.swallow(way)


def _heal(site: ChaosSite, link: Proxy) -> None:
    site.note(f"{link.name} heals; {link.swallowed} bytes were swallowed")
    assert link.swallowed or link.mode.kind != "swallow", f"nothing came over {link.name}: the fault was none"
    link.pass_on()


def _long_on(site: ChaosSite, worker: str, seconds: float = 60.0) -> str:
    """Start runs of a long task until one of them runs on this worker; return its id. The others are cancelled."""
    for _ in range(12):
        run_id = start_long(site, seconds, beat_seconds=0.2)
        if worker_of(site, run_id) == worker:
            return run_id
        site.client.cancel(run_id)
    raise AssertionError(f"no task was ever planned for {worker}")


# --- what must hold ---


def _assert_moved_and_fenced(site: ChaosSite, run_id: str, worker: str) -> None:
    """Hold that the long task ran to its end elsewhere, and that the first attempt's result counts for nothing."""
    site.succeed(run_id)
    first, *_, last = site.attempts(run_id, LONG)
    assert first["state"] == "lost", first
    assert last["state"] == "succeeded", last
    hosts = {line.attempt: line.host for line in lines(site, "start", run_id)}
    assert hosts[first["id"]] == worker.replace("worker", "host")
    assert hosts[last["id"]] != hosts[first["id"]], "it was started again on the host that nobody heard"
    fence = next(line.fence for line in lines(site, "end", run_id) if line.attempt == last["id"])
    outputs = site.client._request("GET", f"/api/v1/runs/{run_id}/tasks/{LONG}")["outputs"]
    assert outputs == {"fence": fence}, "the outputs are not those of the attempt that counts"
    site.wait_until(lambda: refused(site)["fenced"], "the first attempt reports, and is fenced", DEAD_WITHIN)


def _assert_dead(site: ChaosSite, run_id: str) -> None:
    """Hold that nothing of a run's tasks lives some seconds from now."""
    attempts = {line.attempt: line.pid for line in lines(site, "start", run_id)}
    began = time.monotonic()
    site.wait_until(
        lambda: not {process.pid for process in site.survivors()} & set(attempts.values()),
        f"the processes of run {run_id} are dead",
        DEAD_WITHIN,
    )
    print(f"what was cancelled is dead {seconds_since(began):.1f} s after the heal")


def _assert_works_again(site: ChaosSite, worker: str) -> None:
    """Hold that the worker, the same incarnation or another one, is online again and runs tasks."""
    began = time.monotonic()
    host = worker.replace("worker", "host")

    def is_online() -> bool:
        rows = site.postgres.query("SELECT state FROM workers WHERE host_id = %s ORDER BY seq DESC LIMIT 1", host)
        return bool(rows) and rows[0][0] == "online"

    site.wait_until(is_online, f"{worker} is online again", ELSEWHERE_WITHIN)
    known = len(lines(site, "start"))

    def runs_tasks() -> bool:
        start_run(site, "chain-0")
        return any(line.host == host for line in lines(site, "start")[known:])

    site.wait_until(runs_tasks, f"{worker} runs tasks again", ELSEWHERE_WITHIN)
    print(f"{worker} works again {seconds_since(began):.1f} s after the heal was seen")


def _has_succeeded_after(asker: Asker, replies: int) -> bool:
    return any(200 <= reply.status < 300 for reply in asker.replies[replies:])


def _print_slowest(*askers: Asker) -> None:
    for asker in askers:
        slowest = max(reply.seconds for reply in asker.replies)
        print(f"{asker.api}: {dict(asker.statuses)}, slowest {slowest:.2f} s")
