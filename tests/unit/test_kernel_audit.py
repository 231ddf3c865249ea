"""What the kernel tells the audit besides transitions: moves of charges, releases of zombies, sizes of hosts."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.effects import Release, Reserve, SaveWorker
from orchestrator.events import ClaimReceived
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


def test_a_host_is_resized_when_its_heartbeat_says_another_size() -> None:
    driver = Driver()
    driver.worker("w1", memory=8 * GIB, gpus=1)
    driver.worker("w2", memory=8 * GIB, gpus=1)
    driver.beat("w2", capacity=replace(driver.beats["w2"].capacity, memory=4 * GIB))
    driver.beat("w2")
    assert [(one.joined, one.resized) for one in driver.all_of(SaveWorker)] == [
        (True, True),
        (True, False),
        (False, True),
        (False, False),
    ]
