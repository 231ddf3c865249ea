"""What the kernel tells the audit besides transitions: moves of charges, releases of zombies, sizes of hosts."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.effects import Release, Reserve, SaveWorker
from orchestrator.events import ClaimReceived, HeartbeatSeen, WorkerLeft
from tests.unit.kernel_driver import GIB, Driver, task


def moves(driver: Driver) -> list[tuple[str, str | None]]:
    """Return the workers that attempts were moved to, with their tasks."""
    return [
        (effect.reservation.worker_id, effect.task) for effect in driver.all_of(Reserve) if effect.moved is not None
    ]


def test_a_claim_by_another_worker_is_a_move_and_one_by_the_planned_worker_is_none() -> None:
    driver = Driver()
    driver.worker("w1")
    driver.run(task("a"))
    driver.worker("w2", host="b")
    attempt = driver.attempt("a")
    driver.claim("a", "w2")
    assert moves(driver) == [("w2", "a")]
    [told] = [effect for effect in driver.of(Reserve) if effect.moved is not None]
    assert told.moved is not None
    assert (told.moved.id, told.moved.token) == (attempt.id, attempt.token)
    driver.run(task("b"), task("c"), run_id="r2")
    for name in ("b", "c"):
        node = driver.kernel.tasks[f"r2.{name}"]
        attempt = driver.kernel.attempts[node.attempt_id or ""]
        driver.feed(ClaimReceived(attempt.worker_id, attempt.id, 1, "n1"))
    assert moves(driver) == [("w2", "a")]


def test_only_the_release_of_a_zombie_is_told() -> None:
    driver = Driver()
    driver.worker("w1")
    driver.run(task("a"))
    driver.start("a")
    lost = driver.attempt("a")
    driver.tick(after=31)
    [zombie] = [effect.reservation for effect in driver.all_of(Reserve) if effect.reservation.zombie]
    assert zombie.attempt_id == lost.id
    driver.worker("w2", dead=(lost.id,))
    [told] = driver.of(Release)
    assert told == Release(lost.id, zombie)


def sizes_told(driver: Driver) -> list[tuple[int, int]]:
    """Return the sizes (GiB, cores) of which the audit was told."""
    saved = [one for one in driver.all_of(SaveWorker) if one.joined or one.resized]
    return [(one.heartbeat.capacity.memory // GIB, one.heartbeat.capacity.cpu // 1000) for one in saved]


def test_a_host_is_resized_when_its_heartbeats_say_another_size() -> None:
    driver = Driver()
    driver.worker("w1", memory=8 * GIB, gpus=1)
    driver.worker("w2", memory=8 * GIB, gpus=1)
    for worker in ("w2", "w1"):
        driver.beat(worker, capacity=replace(driver.beats[worker].capacity, memory=4 * GIB))
    driver.beat("w2")
    assert [(one.joined, one.resized) for one in driver.all_of(SaveWorker)] == [
        (True, True),
        (True, False),
        (False, False),
        (False, True),
        (False, False),
    ]


def test_a_host_offers_the_most_that_one_of_its_workers_says_and_the_audit_is_told_once_of_each_change() -> None:
    driver = Driver()
    driver.worker("w1", cpu=2000, memory=16 * GIB)
    driver.worker("w2", cpu=6000, memory=8 * GIB)
    assert sizes_told(driver) == [(16, 2), (16, 6)]
    driver.tick()
    for _ in range(10):
        driver.now += 2.5
        for worker in ("w1", "w2"):
            driver.beat(worker)
            assert not driver.kernel.waiting_lines.stirred, "nothing is freed, so that nobody need be placed anew"
    assert sizes_told(driver) == [(16, 2), (16, 6)]
    driver.feed(WorkerLeft("w2"))
    for _ in range(3):
        driver.now += 2.5
        driver.beat("w1")
    assert sizes_told(driver) == [(16, 2), (16, 6), (16, 2)]
    assert driver.kernel.ledger.hosts["a"].capacity == driver.beats["w1"].capacity


def test_a_worker_that_is_given_up_says_no_more_what_its_host_has() -> None:
    driver = Driver()
    driver.worker("w1", cpu=2000)
    driver.worker("w2", cpu=6000)
    for _ in range(7):
        driver.now += 5
        driver.beat("w1")
        driver.tick()
    driver.beat("w1")
    assert [cpu for _, cpu in sizes_told(driver)] == [2, 6, 2]


def test_a_new_leader_lets_a_host_shrink_only_when_it_has_heard_what_each_of_its_workers_says() -> None:
    """The rows tell the host's size alone."""
    driver = Driver()
    driver.worker("w1", cpu=2000)
    driver.worker("w2", cpu=6000)
    for id_, worker in driver.kernel.workers.items():
        driver.kernel.workers[id_] = replace(worker, devices=None, cpu=0, memory=0)
    driver.beat("w1")
    driver.feed(HeartbeatSeen(driver.beats["w2"]))
    driver.beat("w1")
    assert driver.kernel.ledger.hosts["a"].capacity.cpu == 6000
    driver.beat("w2", capacity=replace(driver.beats["w2"].capacity, cpu=4000))
    driver.beat("w1")
    assert [cpu for _, cpu in sizes_told(driver)] == [2, 6, 4]
