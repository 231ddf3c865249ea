"""Messages come thrice, in any order, late, never, or from an enemy: only grants start work, only tokens end it."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from tests.chaos.conftest import Chaos
from tests.chaos.hostile import Attacker, Eavesdropper
from tests.chaos.load import assert_contract, definitions_saved, pipeline, run_load, start_run, task, wait_until_quiet
from tests.chaos.site import ChaosSite
from tests.chaos.witness import (
    assert_no_attempt_ran_twice,
    assert_untouched,
    lines,
    refused,
    seconds_since,
    start_long,
    starts,
)

pytestmark = pytest.mark.chaos

EVENTS = "mlops_tasks:ev"
JUNK = 100_000
SLOW = 20.0
"""Reports a second that a slowed leader takes in."""


@pytest.mark.chaos_quick
def test_every_message_sent_three_times_and_shuffled_changes_nothing(chaos: Chaos) -> None:
    thrice = {"scheduler": {"hints": 3, "replies": 3}, "worker": {"events": 3, "events_shuffled": 0.5}}
    with chaos(faults=thrice) as site:
        long = start_long(site, 10.0)
        run_load(site, runs=16)
        wait_until_quiet(site, 60.0)
        attempts = _attempts(site)
        calls = _calls(site)
        assert calls["lpush"] > 2.5 * attempts, f"hints did not come three times: {calls} for {attempts} attempts"
        assert calls["xadd"] > 5 * attempts, f"reports did not come three times: {calls} for {attempts} attempts"
        assert refused(site)["denied"] > attempts / 2, f"no double hint was ever refused: {refused(site)}"
        print(f"{attempts} attempts, {calls['lpush']} hints, {calls['xadd']} reports; refused: {dict(refused(site))}")
        assert_untouched(site, long)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


@pytest.mark.timeout(150)
def test_a_fifth_of_all_messages_dropped_delays_and_loses_nothing(chaos: Chaos) -> None:
    lossy = {"scheduler": {"hints_dropped": 0.2, "replies_dropped": 0.2}, "worker": {"events_dropped": 0.2}}
    with chaos(faults=lossy) as site:
        long = start_long(site, 10.0)
        run_load(site, runs=14)
        wait_until_quiet(site, 90.0)
        attempts, found = _attempts(site), refused(site)
        print(f"{attempts} attempts; refused: {dict(found)}")
        assert found["redispatched"] > 0.05 * attempts, f"no lost hint was ever sent again: {found}"
        assert_untouched(site, long)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


@pytest.mark.timeout(150)
def test_reports_taken_in_slowly_make_no_worker_look_dead_and_fill_no_memory(chaos: Chaos) -> None:
    with chaos(faults={"scheduler": {"events_per_second": SLOW}}) as site:
        long = start_long(site, 25.0)
        definitions_saved(site, [pipeline("many", [task(f"t{n}", seconds=0.05) for n in range(40)])])
        before, began = _reports(site), time.monotonic()
        for _ in range(12):
            start_run(site, "many")
        longest, deepest = 0, 0
        while seconds_since(began) < 15.0:
            length = site.redis.do(lambda client: client.xlen(EVENTS))
            longest, deepest = max(longest, length), max(deepest, site.redis.used_memory())
            time.sleep(0.2)
        rate = (_reports(site) - before) / seconds_since(began)
        print(f"{rate:.1f} reports/s, at most {longest} on the stream and {deepest >> 20} MiB in Redis")
        assert rate < 1.3 * SLOW, "the leader was not slowed"
        assert 5 <= longest < 1000, f"the stream held {longest} reports"
        assert deepest < 64 << 20
        _speed_up(site)
        hurried, before = time.monotonic(), _reports(site)
        wait_until_quiet(site, 60.0)
        print(f"then {(_reports(site) - before) / seconds_since(hurried):.0f} reports/s")
        assert_untouched(site, long)
        _assert_nobody_was_lost(site)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def _speed_up(site: ChaosSite) -> None:
    """Have healthy schedulers take over."""
    site.faults.clear()
    for name in site.schedulers:
        site.processes.stop(name)
    for name in site.schedulers:
        site.processes.start(name)


@pytest.mark.timeout(240)
def test_an_enemy_in_redis_starts_nothing_ends_nothing_and_costs_only_time(chaos: Chaos) -> None:
    with chaos() as site, Eavesdropper(site.redis.url()) as enemy:
        run_load(site, runs=12)
        site.wait_until_quiet(60.0)
        first, second = start_long(site, 75.0), start_long(site, 90.0)
        running = {line.attempt for run in (first, second) for line in lines(site, "start", run)}
        site.wait_until(lambda: _is_settled(site), "all that was reported is taken in", 10.0)
        before = _all_states(site)
        heard = enemy.heard
        site.note(f"heard: {len(heard.reports)} reports, {len(heard.hints)} hints, {len(heard.replies)} replies")
        assert len(heard.hints) > 50, "the enemy has heard nothing"
        assert len(heard.sealed(b"outcome")) > 50, "the enemy has heard nothing"
        forged = _attack(site, Attacker(enemy, site.dice("enemy")), running)
        began = time.monotonic()
        site.wait_until(lambda: _is_settled(site), "what the enemy sent is dealt with", 60.0)
        print(
            f"{forged} forged entries were refused in {seconds_since(began):.1f} s more; refused: {dict(refused(site))}"
        )
        assert _all_states(site) == before, "the enemy has changed something"
        found = refused(site)
        assert found["forged_message"] >= JUNK * 0.9, f"not every forgery was counted: {found}"
        assert found["denied"] > 20, f"no replayed hint came to anything: {found}"
        more = run_load(site, runs=8, purpose="after")
        wait_until_quiet(site, 90.0)
        print(f"{len(more)} runs went on afterwards")
        assert_untouched(site, first)
        assert_untouched(site, second)
        assert_no_attempt_ran_twice(site)
        _assert_nobody_was_lost(site)
        assert not any(site.processes.restarts().values()), site.processes.restarts()
        fattest = max(site.use("scheduler").values(), key=lambda use: use.rss)
        assert fattest.rss < 512 << 20, f"a scheduler has grown to {fattest.rss >> 20} MiB"
        assert_contract(site)


@pytest.mark.timeout(150)
def test_an_enemy_in_redis_only_delays_work_that_goes_on_beside_it(chaos: Chaos) -> None:
    with chaos() as site, Eavesdropper(site.redis.url()) as enemy:
        long = start_long(site, 25.0)
        run_load(site, runs=12)
        attacker, began, rounds = Attacker(enemy, site.dice("enemy")), time.monotonic(), 0
        while seconds_since(began) < 12.0:
            _harass(attacker, starts(site))
            rounds += 1
            time.sleep(0.5)
        print(f"{rounds} rounds of attacks, {len(enemy.heard.reports)} reports heard; refused: {dict(refused(site))}")
        assert refused(site)["forged_message"] > 100
        wait_until_quiet(site, 60.0)
        assert_untouched(site, long)
        assert_no_attempt_ran_twice(site)
        assert_contract(site)


def _attack(site: ChaosSite, enemy: Attacker, running: set[str]) -> int:
    """Do everything that an enemy can; return how many entries he has forged."""
    site.note(f"replayed: {enemy.replay()}")
    site.note(f"sent to others: {enemy.misdirect()}")
    forged = enemy.swap_seals() + enemy.forge(running)
    site.note(f"forged: {forged}")
    forged += enemy.flood(JUNK)
    site.note(f"with junk: {forged}")
    return forged


def _harass(enemy: Attacker, started: Counter[str]) -> None:
    enemy.swap_seals()
    enemy.forge(list(started)[-4:])
    enemy.misdirect()


# --- questions ---


def _attempts(site: ChaosSite) -> int:
    return int(site.postgres.query("SELECT count(*) FROM attempts")[0][0])


def _reports(site: ChaosSite) -> int:
    """Return how many claims and outcomes were taken in."""
    return int(
        site.postgres.query("SELECT count(*) FROM events WHERE entity = 'attempt' AND cause IN ('claim', 'outcome')")[
            0
        ][0]
    )


def _calls(site: ChaosSite) -> Counter[str]:
    """Return how often Redis was given each command."""
    stats = site.redis.do(lambda client: client.info("commandstats"))
    return Counter({name.removeprefix("cmdstat_"): int(found["calls"]) for name, found in stats.items()})


def _is_settled(site: ChaosSite) -> bool:
    """Say whether no report and no hint waits."""
    lists = [f"mlops_tasks:{queue}" for queue in ("cpu", "highmem")]
    return not site.redis.do(lambda client: client.xlen(EVENTS) + sum(client.llen(name) for name in lists))


def _all_states(site: ChaosSite) -> dict[str, Any]:
    """Return all that an enemy must not change: the states of everything, how often they changed, what really ran."""
    return {
        "runs": site.postgres.query("SELECT id::text, state FROM runs ORDER BY 1"),
        "tasks": site.postgres.query("SELECT id::text, state, reason FROM task_runs ORDER BY 1"),
        "attempts": site.postgres.query("SELECT id::text, state, token, worker_id, seq FROM attempts ORDER BY 1"),
        "held": site.postgres.query("SELECT attempt_id::text, worker_id, zombie FROM reservations ORDER BY 1"),
        "workers": site.postgres.query("SELECT id, state, draining FROM workers ORDER BY 1"),
        "commands": site.postgres.query("SELECT count(*) FROM commands"),
        "audit": site.postgres.query("SELECT entity, count(*), max(id) FROM events GROUP BY 1 ORDER BY 1"),
        "ran": [line for line in lines(site) if line.what != "beat"],
    }


def _assert_nobody_was_lost(site: ChaosSite) -> None:
    """Hold that no worker and no attempt was given up."""
    lost = site.postgres.query(
        "SELECT entity, entity_id, reason, message FROM events WHERE after = 'lost' AND entity IN ('attempt', 'worker')"
    )
    assert not lost, lost
