"""The ledger, the choice of a worker, and why there is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement import Ask, Choice, Ledger, Wait, choose
from orchestrator.records import Capacity, GpuDevice, HostRecord, Reservation, Resources, WorkerRecord
from orchestrator.states import WorkerState

GIB = 2**30


def worker(
    worker_id: str,
    host: str = "a",
    slots: int = 2,
    queues: tuple[str, ...] = ("cpu",),
    state: WorkerState = WorkerState.ONLINE,
    **labels: str,
) -> WorkerRecord:
    devices = frozenset(f"gpu{n}" for n in range(4))
    return WorkerRecord(
        worker_id, host, "boot", state, frozenset(queues), slots, labels, "shared", 0.0, 1, devices=devices
    )


def ledger(**hosts: Capacity) -> Ledger:
    made = Ledger()
    for name, capacity in hosts.items():
        made.register(HostRecord(name, "boot", capacity))
    return made


def gpus(*gigabytes: int) -> tuple[GpuDevice, ...]:
    return tuple(GpuDevice(f"gpu{n}", memory=size * GIB) for n, size in enumerate(gigabytes))


def ask(cpu: int = 1000, memory: int = GIB, gpus: int = 0, gpu_memory: int = 0, **fields: Any) -> Ask:
    return Ask(fields.pop("queue", "cpu"), Resources(cpu, memory, gpus, gpu_memory), **fields)


def chosen(answer: Choice | Wait) -> str:
    assert isinstance(answer, Choice), answer
    return answer.worker_id


def waits(answer: Choice | Wait) -> tuple[str, str]:
    assert isinstance(answer, Wait), answer
    return answer.reason, answer.message


def test_the_tightest_host_that_fits_is_chosen() -> None:
    books = ledger(a=Capacity(8000, 32 * GIB), b=Capacity(2000, 4 * GIB))
    assert chosen(choose(ask(), [worker("w1", "a"), worker("w2", "b")], books)) == "w2"


def test_a_task_without_a_gpu_leaves_the_gpu_host_alone() -> None:
    books = ledger(a=Capacity(2000, 4 * GIB, gpus(16)), b=Capacity(8000, 32 * GIB))
    assert chosen(choose(ask(), [worker("w1", "a"), worker("w2", "b")], books)) == "w2"


def test_the_host_with_the_runs_outputs_is_preferred_if_it_fits() -> None:
    books = ledger(a=Capacity(8000, 32 * GIB), b=Capacity(2000, 4 * GIB))
    both = [worker("w1", "a"), worker("w2", "b")]
    assert chosen(choose(ask(), both, books, prefer_host="a")) == "w1"
    assert chosen(choose(ask(), both, books, exclude={"w2"})) == "w1"


def test_the_smallest_device_that_is_large_enough_is_taken() -> None:
    books = ledger(a=Capacity(8000, 32 * GIB, gpus(80, 16, 24)))
    answer = choose(ask(gpus=1, gpu_memory=20 * GIB), [worker("w1")], books)
    assert isinstance(answer, Choice)
    assert answer.devices == ("gpu2",)


def test_a_device_with_a_foreign_process_is_not_offered() -> None:
    books = ledger(a=Capacity(8000, 32 * GIB, (GpuDevice("gpu0", memory=GIB, busy_with="pid 7"),)))
    assert waits(choose(ask(gpus=1), [worker("w1")], books))[0] == "waiting_for_gpu"


def test_labels_must_match() -> None:
    books = ledger(a=Capacity(8000, 32 * GIB), b=Capacity(8000, 32 * GIB))
    zoned = ask(labels=(("zone", "north"),))
    assert chosen(choose(zoned, [worker("w1", "a"), worker("w2", "b", zone="north")], books)) == "w2"
    assert waits(choose(zoned, [worker("w1", "a")], books)) == (
        "infeasible",
        "Asks a host labelled zone=north; no worker on queue cpu has that.",
    )


@pytest.mark.parametrize(
    ("asked", "reason", "sentence"),
    [
        (ask(cpu=4000), "infeasible", "Asks 4 cpu; the largest worker on queue cpu, host a, has 2."),
        (ask(memory=9 * GIB), "infeasible", "Asks 9 GiB memory; the largest worker on queue cpu, host a, has 8 GiB."),
        (
            ask(memory=90_000 * GIB),
            "infeasible",
            "Asks 90000 GiB memory; the largest worker on queue cpu, host a, has 8 GiB.",
        ),
        (ask(gpus=1), "infeasible", "Asks 1 gpu; the largest worker on queue cpu, host a, has 0."),
        (ask(cpu=1500), "waiting_for_cpu", "Asks 1.5 cpu; host a has 1 of 2 free."),
        (ask(memory=6 * GIB), "waiting_for_memory", "Asks 6 GiB; host a has 4 GiB of 8 GiB free."),
        (ask(queue="gpu"), "waiting_for_worker", "No live worker listens to queue gpu; start one for it."),
        (
            ask(hosts=("z",)),
            "waiting_for_host",
            (
                "Its inputs lie on host z only, and no live worker there listens to queue cpu; start one, or set "
                "ARTIFACT_URL to a store all hosts reach."
            ),
        ),
    ],
)
def test_every_wait_has_a_word_and_a_sentence_with_numbers(asked: Ask, reason: str, sentence: str) -> None:
    books = ledger(a=Capacity(2000, 8 * GIB))
    books.take(Reservation("x", "a", "w1", Resources(1000, 4 * GIB)))
    assert waits(choose(asked, [worker("w1")], books)) == (reason, sentence)


def test_a_full_worker_makes_the_task_wait_for_a_slot() -> None:
    books = ledger(a=Capacity(8000, 32 * GIB))
    books.take(Reservation("x", "a", "w1", Resources(1000, GIB)))
    assert waits(choose(ask(), [worker("w1", slots=1)], books)) == (
        "waiting_for_slot",
        "All 1 slots of the worker on host a are taken.",
    )


def test_inputs_on_two_hosts_that_share_nothing_are_infeasible() -> None:
    books = ledger(a=Capacity(8000, 32 * GIB))
    assert waits(choose(ask(hosts=("a", "b")), [worker("w1")], books))[0] == "infeasible"


def test_a_suspect_worker_gets_nothing_but_keeps_the_task_feasible() -> None:
    books = ledger(a=Capacity(8000, 32 * GIB))
    reason, message = waits(choose(ask(), [worker("w1", state=WorkerState.SUSPECT)], books))
    assert (reason, message) == ("waiting_for_slot", "The worker on host a is silent.")


def test_workers_of_one_host_share_its_capacity() -> None:
    books = ledger(a=Capacity(2000, 8 * GIB))
    books.take(Reservation("x", "a", "w1", Resources(2000, GIB)))
    assert waits(choose(ask(), [worker("w2")], books))[0] == "waiting_for_cpu"


def test_a_zombie_stays_charged_to_the_host_but_gives_its_slot_back() -> None:
    books = ledger(a=Capacity(2000, 8 * GIB))
    books.take(Reservation("x", "a", "w1", Resources(1000, GIB)))
    books.bury("x")
    assert books.slots_used("w1") == 0
    assert books.hosts["a"].cpu_free == 1000
    books.release("x")
    assert books.hosts["a"].cpu_free == 2000


def test_held_room_is_left_to_the_ask_it_is_held_for() -> None:
    books = ledger(a=Capacity(2000, 8 * GIB))
    big = ask(cpu=2000)
    books.hold("a", big)
    assert books.fit(worker("w1"), ask()) is None
    assert books.fit(worker("w1"), big) == ()
    books.drop_hold(big)
    assert books.fit(worker("w1"), ask()) == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "release", "bury"]),
            st.integers(0, 5),
            st.integers(0, 3000),
            st.integers(0, 2),
        ),
        max_size=40,
    )
)
def test_the_books_balance_after_any_sequence(steps: list[tuple[str, int, int, int]]) -> None:
    books = ledger(a=Capacity(4000, 8 * GIB, gpus(16, 16, 16)))
    for what, number, cpu, devices in steps:
        attempt_id, wanted = f"x{number}", ask(cpu=cpu, gpus=devices)
        if what == "release":
            books.release(attempt_id)
        elif what == "bury":
            books.bury(attempt_id)
        elif attempt_id not in books.reservations:
            free = books.fit(worker("w1"), wanted)
            if free is not None:
                books.take(Reservation(attempt_id, "a", "w1", wanted.resources, free))
        host = books.hosts["a"]
        held = books.reservations.values()
        assert host.cpu_used == sum(r.resources.cpu for r in held) <= 4000
        assert host.memory_used == sum(r.resources.memory for r in held) <= 8 * GIB
        assert len(host.devices_used) == sum(len(r.devices) for r in held) <= 3
        assert books.slots_used("w1") == sum(not r.zombie for r in held)
    for number in range(6):
        books.release(f"x{number}")
    assert (books.hosts["a"].cpu_used, books.hosts["a"].memory_used, books.hosts["a"].devices_used) == (0, 0, {})
