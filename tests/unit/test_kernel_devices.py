"""GPUs: each is held by one attempt, and goes only to a worker that offers it."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.effects import SaveWorker, SendDenial, SendGrant
from orchestrator.events import HeartbeatSeen
from orchestrator.placement import Wait, choose
from orchestrator.records import Capacity, GpuDevice
from tests.unit.kernel_driver import GIB, Driver, task


def check_books(driver: Driver) -> None:
    """Hold the devices that are marked as used against the reservations (I13)."""
    held = {
        (reservation.host_id, device): reservation.attempt_id
        for reservation in driver.kernel.reservations()
        for device in reservation.devices
    }
    used = {
        (host.id, device): attempt_id
        for host in driver.kernel.ledger.hosts.values()
        for device, attempt_id in host.devices_used.items()
    }
    assert used == held


def two_hosts() -> Driver:
    driver = Driver()
    driver.worker("w1", host="a", gpus=1, queues=("gpu",), slots=1)
    driver.worker("w2", host="b", gpus=1, queues=("gpu",), slots=1)
    driver.run(*(task(name, gpus=1, queue="gpu") for name in "xyz"))
    return driver


def masked(driver: Driver, worker_id: str, *devices: str) -> None:
    """Let a worker of host ``a`` see these devices only."""
    if worker_id not in driver.beats:
        driver.worker(worker_id, host="a", queues=("gpu",))
    gpus = tuple(GpuDevice(device, memory=16 * GIB) for device in devices)
    driver.beat(worker_id, capacity=Capacity(4000, 8 * GIB, gpus))


def test_two_gpus_whose_claims_are_swapped_stay_held() -> None:
    driver = two_hosts()
    other = driver.attempt("y").worker_id
    driver.claim("x", worker_id=other)
    assert driver.of(SendGrant)[0].attempt.worker_id == other
    assert {driver.attempt(name).devices for name in "xy"} == {("a-gpu0",), ("b-gpu0",)}
    check_books(driver)
    driver.tick()
    assert not driver.dispatched(), "no device is free"
    check_books(driver)


def test_workers_of_one_host_offer_the_devices_of_both_their_masks() -> None:
    driver = Driver()
    masked(driver, "w1", "gpu-0")
    masked(driver, "w2", "gpu-1")
    driver.run(*(task(name, gpus=1, queue="gpu") for name in "xy"))
    placed = {driver.attempt(name).worker_id: driver.attempt(name).devices for name in "xy"}
    assert placed == {"w1": ("gpu-0",), "w2": ("gpu-1",)}
    check_books(driver)


def test_no_worker_gets_a_device_that_only_its_neighbour_sees() -> None:
    driver = Driver()
    masked(driver, "w1", "gpu-0")
    masked(driver, "w2", "gpu-1")
    driver.run(task("both", gpus=2, queue="gpu"))
    assert driver.reason("both") == ("infeasible", "Asks 2 gpu; the largest worker on queue gpu, host a, has 1.")
    driver.tick(after=40)
    assert not driver.kernel.ledger.held, "no room is held for what fits no worker"


def test_the_row_of_a_host_names_the_devices_of_all_its_workers() -> None:
    driver = Driver()
    masked(driver, "w1", "gpu-0")
    masked(driver, "w2", "gpu-1")
    driver.beat("w1")
    [saved] = driver.of(SaveWorker)
    assert [device.uuid for device in saved.heartbeat.capacity.gpus] == ["gpu-0", "gpu-1"]


def test_a_device_that_no_worker_of_the_host_offers_any_more_is_gone() -> None:
    driver = Driver()
    masked(driver, "w1", "gpu-0")
    masked(driver, "w2", "gpu-1")
    driver.now += 31
    driver.beat("w1")
    driver.tick()
    driver.beat("w1")
    assert [device.uuid for device in driver.kernel.ledger.hosts["a"].capacity.gpus] == ["gpu-0"]


def test_a_claim_moves_to_devices_that_the_worker_still_offers() -> None:
    driver = Driver()
    masked(driver, "w1", "gpu-0", "gpu-1")
    driver.run(task("x", gpus=1, queue="gpu"))
    assert driver.attempt("x").devices == ("gpu-0",)
    masked(driver, "w1", "gpu-1")
    driver.claim("x")
    assert driver.of(SendGrant)[0].attempt.devices == ("gpu-1",)
    check_books(driver)


def test_a_claim_is_refused_when_the_worker_offers_no_device_for_it_any_more() -> None:
    driver = Driver()
    masked(driver, "w1", "gpu-0")
    driver.run(task("x", gpus=1, queue="gpu"))
    masked(driver, "w1")
    driver.claim("x")
    assert [denial.reason for denial in driver.of(SendDenial)] == ["no_room"]


def test_a_worker_whose_devices_a_new_leader_has_not_heard_gets_no_gpu_until_then() -> None:
    driver = two_hosts()
    worker = replace(driver.kernel.workers["w1"], devices=None)
    driver.end("x", worker_id=driver.attempt("x").worker_id, tick=False)
    driver.end("y", worker_id=driver.attempt("y").worker_id, tick=False)
    ask = driver.kernel.ask_of(driver.kernel.tasks["r1.z"])
    answer = choose(ask, [worker], driver.kernel.ledger)
    assert isinstance(answer, Wait)
    assert answer.message == "The worker on host a has not said yet which GPUs it may use."
    driver.kernel.admit(worker)
    driver.feed(HeartbeatSeen(driver.beats["w1"]))
    assert driver.kernel.workers["w1"].devices == frozenset({"a-gpu0"}), (
        "the heartbeat that the last leader had read tells it"
    )
    assert not driver.effects, "and nothing else"
