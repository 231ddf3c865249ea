"""A run whose plan this release can't read is left alone by a leader that goes on with all others."""

from __future__ import annotations

from orchestrator.effects import Count, Release, SendAnswer, SendDenial, SendGrant
from orchestrator.events import ClaimReceived, HeartbeatSeen, OutcomeReceived, ReconcileDue, Tick
from orchestrator.kernel import Kernel, KernelSettings, Snapshot, decide
from orchestrator.records import Capacity, Heartbeat, HostRecord, Reservation, Resources, WorkerRecord
from orchestrator.states import WorkerState
from tests.unit.kernel_driver import GIB, SUCCESS

CAPACITY = Capacity(2000, 4 * GIB)


def leader() -> Kernel:
    """A new leader that finds attempt x of such a run at w1."""
    kernel = Kernel(KernelSettings(new_id=lambda: "new", max_runs=2), 50.0)
    worker = WorkerRecord("w1", "a", "boot", WorkerState.ONLINE, frozenset({"cpu"}), 2, {}, "shared", 50.0, 7)
    kernel.load(
        Snapshot(
            unreadable={"r9": "It has format 99."},
            left_alone=frozenset({"x"}),
            reservations=(Reservation("x", "a", "w1", Resources(1000, GIB)),),
            hosts=(HostRecord("a", "boot", CAPACITY),),
            workers=(worker,),
        ),
        50.0,
    )
    return kernel


def beat(kernel: Kernel, seq: int, now: float) -> None:
    seen = Heartbeat("w1", "a", "boot", "a", "w1", seq, ("cpu",), 2, CAPACITY, running={"x": "token"})
    decide(kernel, HeartbeatSeen(seen), now)


def test_it_leads_says_so_and_keeps_what_the_run_holds() -> None:
    kernel = leader()
    effects = decide(kernel, ReconcileDue(), 50.0)
    assert [(e.what, e.detail) for e in effects if isinstance(e, Count)] == [
        ("unreadable_plan", "run r9: It has format 99.")
    ]
    assert not [e for e in effects if isinstance(e, Release)]
    assert kernel.ledger.hosts["a"].cpu_free == 1000
    assert kernel.ledger.slots_used("w1") == 1


def test_its_tree_is_not_fenced() -> None:
    kernel = leader()
    beat(kernel, 8, 51.0)
    assert kernel.desired("w1").fence == ()


def test_its_outcome_is_answered_by_nobody_so_that_it_is_reported_again() -> None:
    kernel = leader()
    effects = decide(kernel, OutcomeReceived("w1", "x", "token", SUCCESS), 51.0)
    assert not [e for e in effects if isinstance(e, SendAnswer | Release)]
    assert kernel.holds_attempt("x"), "its row need not be read for an answer"


def test_a_claim_of_it_is_refused() -> None:
    effects = decide(leader(), ClaimReceived("w1", "x", 1, "n"), 51.0)
    assert [e for e in effects if isinstance(e, SendDenial)]
    assert not [e for e in effects if isinstance(e, SendGrant)]


def test_it_keeps_its_place_among_the_runs() -> None:
    assert leader().run_slots_free() == 1


def test_the_loss_of_its_worker_is_left_to_whoever_can_read_it() -> None:
    kernel = leader()
    effects = decide(kernel, Tick(), 90.0)
    effects += decide(kernel, ReconcileDue(), 121.0)
    assert kernel.workers["w1"].state is WorkerState.LOST
    assert not [e for e in effects if isinstance(e, Release)]
