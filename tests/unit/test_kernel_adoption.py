"""A task with ``on_worker_loss: adopt`` outlives its worker: orphaned, adopted on its host, or given up in time."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.effects import Annotate, Count, Reserve, SendGrant
from orchestrator.events import ClaimReceived, OutcomeReceived, ReconcileDue, RedisAway, RedisBack, Tick, WorkerLeft
from orchestrator.kernel import Kernel, KernelSettings, Snapshot, decide
from orchestrator.kernel.due import orphan_ends
from orchestrator.records import (
    AttemptRecord,
    Capacity,
    EndedAttempt,
    HostRecord,
    Outcome,
    Plan,
    Reservation,
    Resources,
    RunRecord,
    TaskRunRecord,
    WorkerRecord,
)
from orchestrator.states import WORKER_ENDED, AttemptState, RunState, TaskState, WorkerState
from tests.unit.kernel_driver import GIB, SUCCESS, Driver, task

PREEMPTED = Outcome(AttemptState.PREEMPTED, "preempted", infrastructure=True)


def training(**settings: Any) -> Driver:
    """One adoptable task that runs at w1 on host a; w9 on another host stays alive."""
    driver = Driver(**settings)
    driver.worker("w1", host="a", slots=1)
    driver.run(task("a", on_worker_loss="adopt"))
    driver.start("a")
    driver.worker("w9", host="z", queues=("other",))
    return driver


def speak(driver: Driver, silent: str = "") -> None:
    """Let every worker that has not ended beat, but one."""
    for worker in list(driver.kernel.workers.values()):
        if worker.id != silent and worker.state not in WORKER_ENDED:
            driver.beat(worker.id)
    driver.tick()


def die(driver: Driver, worker_id: str = "w1") -> AttemptRecord:
    """Let a lease pass in which every other worker speaks."""
    for _ in range(7):
        driver.now += 5
        speak(driver, silent=worker_id)
    assert driver.kernel.workers[worker_id].state is WorkerState.LOST
    return driver.attempt("a")


def orphaned(**settings: Any) -> tuple[Driver, AttemptRecord]:
    driver = training(**settings)
    return driver, die(driver)


def adopted() -> tuple[Driver, AttemptRecord]:
    """The attempt of w1, kept by w2 on the same host."""
    driver, attempt = orphaned()
    driver.worker("w2", host="a", slots=1, running={attempt.id: attempt.token})
    return driver, driver.attempt("a")


def live(driver: Driver, seconds: float) -> None:
    """Let time pass while the workers that have not ended speak."""
    until = driver.now + seconds
    while driver.now < until:
        driver.now += 5
        speak(driver)


def counted(driver: Driver, what: str) -> int:
    return sum(count.what == what for count in driver.all_of(Count))


def test_the_silence_of_its_worker_makes_it_an_orphan_and_charges_nothing_to_it() -> None:
    driver, attempt = orphaned()
    assert (attempt.state, attempt.orphaned_at) == (AttemptState.RUNNING, driver.now)
    assert driver.state("a") is TaskState.RUNNING
    assert driver.kernel.tasks["r1.a"].losses == 0
    assert driver.kernel.ledger.reservations[attempt.id].zombie is False
    assert driver.kernel.ledger.hosts["a"].cpu_used == 1000
    assert counted(driver, "orphaned") == 1


def test_the_task_says_how_long_it_waits_and_for_what() -> None:
    driver, _ = orphaned()
    reason, message = driver.reason("a")
    assert reason == "worker_lost"
    assert "another worker of its host has 600 s to take it over" in message


def test_a_task_without_the_word_is_lost_as_ever() -> None:
    driver = Driver()
    driver.worker("w1", host="a")
    driver.run(task("a"))
    driver.start("a")
    attempt = driver.attempt("a")
    driver.tick(after=31)
    assert driver.last(attempt.id).after is AttemptState.LOST


def test_the_next_worker_of_its_host_that_shows_it_keeps_it() -> None:
    driver, attempt = adopted()
    assert (attempt.keeper_id, attempt.worker_id, attempt.orphaned_at) == ("w2", "w1", None)
    reservation = driver.kernel.ledger.reservations[attempt.id]
    assert (reservation.worker_id, reservation.host_id) == ("w2", "a")
    assert driver.kernel.ledger.slots_used("w2") == 1
    assert driver.kernel.desired("w2").fence == ()
    assert driver.reason("a") == ("adopted", "Worker w2 of the same host has taken it over.")
    changes = {k: v for note in driver.all_of(Annotate) if note.id == attempt.id for k, v in note.changes.items()}
    assert changes == {"orphaned_at": None, "keeper_id": "w2"}


def test_its_keeper_reports_for_the_incarnation_that_ran_it() -> None:
    driver, attempt = adopted()
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, SUCCESS, reply_to="w2"), Tick())
    assert driver.verdicts() == ["committed"]
    assert driver.run_state() is RunState.SUCCESS
    assert not driver.held()
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, SUCCESS, reply_to="w2"))
    assert driver.verdicts() == ["committed"], "asked again, the same is answered"


def test_the_outcome_of_an_orphan_counts_whoever_reports_it() -> None:
    driver, attempt = orphaned()
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, SUCCESS, reply_to="w2"), Tick())
    assert driver.verdicts() == ["committed"]
    assert not driver.kernel.orphans


def test_another_token_adopts_nothing_and_is_fenced() -> None:
    driver, attempt = orphaned()
    driver.worker("w2", host="a", running={attempt.id: "stale"})
    assert driver.attempt("a").orphaned_at is not None
    assert driver.kernel.desired("w2").fence == (attempt.id,)


def test_a_worker_of_another_host_adopts_nothing_and_is_fenced() -> None:
    driver, attempt = orphaned()
    driver.beat("w9", running={attempt.id: attempt.token})
    assert driver.attempt("a").orphaned_at is not None
    assert driver.kernel.desired("w9").fence == (attempt.id,)


def test_a_task_that_dies_with_its_worker_is_never_adopted() -> None:
    driver = Driver()
    driver.worker("w1", host="a")
    driver.run(task("a"))
    driver.start("a")
    attempt = driver.attempt("a")
    driver.worker("w2", host="a", running={attempt.id: attempt.token})
    assert driver.attempt("a").keeper_id == ""
    assert driver.kernel.desired("w2").fence == (attempt.id,)


def test_an_exclusive_task_is_never_adopted() -> None:
    driver = Driver()
    driver.worker("w1", host="a")
    driver.run(task("a", on_worker_loss="adopt", exclusive=True))
    driver.start("a")
    attempt = driver.attempt("a")
    driver.tick(after=31)
    assert driver.last(attempt.id).after is AttemptState.LOST


def test_it_is_adopted_before_its_worker_was_missed_and_the_last_heartbeat_of_that_changes_nothing() -> None:
    driver = training()
    attempt = driver.attempt("a")
    driver.worker("w2", host="a", running={attempt.id: attempt.token})
    assert driver.attempt("a").keeper_id == "w2"
    driver.beat("w1")
    assert driver.attempt("a").keeper_id == "w2"
    assert driver.kernel.desired("w1").fence == (), "it is the same tree: a fence would kill it"
    die(driver)
    assert driver.attempt("a").orphaned_at is None


def test_an_incarnation_that_thaws_takes_its_own_orphan_back() -> None:
    driver, attempt = orphaned()
    driver.beat("w1")
    mine = driver.attempt("a")
    assert (mine.keeper_id, mine.orphaned_at) == ("", None)
    assert driver.reason("a") == ("", "")
    assert driver.kernel.desired("w1").fence == ()
    assert driver.kernel.ledger.reservations[attempt.id].worker_id == "w1"


def test_an_incarnation_that_thaws_without_it_loses_it() -> None:
    driver, attempt = orphaned()
    for _ in range(3):
        driver.beat("w1", running={})
    assert driver.last(attempt.id).reason == "never_started"


def test_what_nobody_adopts_in_time_is_lost_once_and_stays_charged_to_its_host() -> None:
    driver, attempt = orphaned(adopt_seconds=100.0)
    live(driver, 95)
    assert driver.state("a") is TaskState.RUNNING
    assert driver.kernel.next_due(driver.now) is not None
    live(driver, 10)
    assert driver.last(attempt.id).after is AttemptState.LOST
    assert (driver.state("a"), driver.kernel.tasks["r1.a"].losses) == (TaskState.READY, 1)
    assert driver.kernel.ledger.reservations[attempt.id].zombie


def test_the_end_of_the_wait_is_a_timer_the_leader_sleeps_until() -> None:
    driver, _ = orphaned(adopt_seconds=100.0, lease=30.0)
    driver.kernel.workers.pop("w9")
    due = driver.kernel.next_due(driver.now)
    assert due is not None
    assert due == pytest.approx(100.0)


def test_no_orphan_is_given_up_while_its_host_could_not_be_heard() -> None:
    driver, attempt = orphaned(adopt_seconds=100.0)
    driver.feed(RedisAway())
    driver.tick(after=500)
    driver.feed(RedisBack())
    driver.tick(after=29)
    assert driver.attempt("a").orphaned_at is not None
    driver.tick(after=2)
    assert driver.last(attempt.id).after is AttemptState.LOST


def test_a_keeper_that_comes_too_late_is_fenced_and_its_report_frees_what_was_held() -> None:
    driver, attempt = orphaned(adopt_seconds=60.0)
    live(driver, 65)
    driver.worker("w2", host="a", running={attempt.id: attempt.token})
    assert driver.kernel.desired("w2").fence == (attempt.id,)
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, SUCCESS, reply_to="w2"))
    assert driver.verdicts() == ["fenced"]
    assert attempt.id not in driver.held()


def test_its_host_is_asked_about_an_orphan_and_its_death_ends_the_wait() -> None:
    driver, attempt = orphaned()
    driver.worker("w2", host="a")
    assert driver.kernel.desired("w2").confirm == ((attempt.id, "w1"),)
    driver.beat("w2", dead=(attempt.id,))
    assert driver.last(attempt.id).reason == "worker_died"
    assert attempt.id not in driver.held()


def test_a_new_boot_of_its_host_ends_the_wait() -> None:
    driver, attempt = orphaned()
    driver.worker("w2", host="a", boot_id="second", running={attempt.id: attempt.token})
    assert driver.last(attempt.id).reason == "host_rebooted"
    assert attempt.id not in driver.held()
    assert driver.kernel.desired("w2").fence == (attempt.id,)


def test_a_new_boot_ends_what_a_keeper_of_the_old_one_had() -> None:
    driver, attempt = adopted()
    driver.tick(after=15.5)
    driver.worker("w3", host="a", boot_id="second")
    assert driver.last(attempt.id).reason == "host_rebooted"
    assert attempt.id not in driver.held()


def test_the_keepers_silence_orphans_it_again_and_a_third_one_adopts_it() -> None:
    driver, _ = adopted()
    again = die(driver, "w2")
    assert again.orphaned_at is not None
    driver.worker("w3", host="a")
    assert driver.kernel.desired("w3").confirm == ((again.id, "w1"),), "the processes are those of who ran it"
    driver.beat("w3", running={again.id: again.token})
    assert driver.attempt("a").keeper_id == "w3"
    driver.feed(OutcomeReceived("w1", again.id, again.token, SUCCESS, reply_to="w3"), Tick())
    assert driver.run_state() is RunState.SUCCESS


def test_what_its_keeper_no_longer_shows_is_lost_and_the_zombie_is_of_who_ran_it() -> None:
    driver, attempt = adopted()
    for _ in range(3):
        driver.now += 11
        driver.beat("w2", running={})
    assert driver.last(attempt.id).reason == "worker_lost"
    zombie = driver.kernel.ledger.reservations[attempt.id]
    assert (zombie.zombie, zombie.worker_id) == (True, "w1")
    assert driver.kernel.desired("w2").confirm == ((attempt.id, "w1"),)


def test_a_keeper_may_say_at_once_that_what_it_kept_is_dead() -> None:
    driver, attempt = adopted()
    driver.beat("w2", running={}, dead=(attempt.id,))
    assert driver.last(attempt.id).reason == "worker_died"
    assert attempt.id not in driver.held()


def test_a_keeper_that_says_goodbye_leaves_nothing_behind() -> None:
    driver, attempt = adopted()
    driver.feed(WorkerLeft("w2"))
    assert driver.last(attempt.id).reason == "worker_left"
    assert not driver.held()


def test_an_incarnation_that_says_goodbye_ends_its_own_orphan() -> None:
    driver, attempt = orphaned()
    driver.feed(WorkerLeft("w1"))
    assert driver.last(attempt.id).reason == "worker_left"
    assert not driver.held()


def test_a_goodbye_of_who_ran_it_says_nothing_of_what_another_keeps() -> None:
    driver, attempt = adopted()
    driver.feed(WorkerLeft("w1"))
    assert driver.attempt("a") == attempt


def test_a_cancel_reaches_the_keeper() -> None:
    driver, attempt = adopted()
    driver.command("cancel", run_id="r1")
    assert driver.kernel.desired("w2").cancel == ((attempt.id, 10.0),)
    assert driver.kernel.desired("w1").cancel == ()


def test_a_cancelled_orphan_waits_for_its_host_and_says_so() -> None:
    driver, attempt = orphaned()
    driver.command("cancel", run_id="r1")
    assert driver.state("a") is TaskState.CANCELLING
    assert "another worker of its host" in driver.reason("a")[1]
    assert driver.run_state() is RunState.CANCELLING
    driver.worker("w2", host="a", dead=(attempt.id,))
    driver.tick()
    assert (driver.state("a"), driver.run_state()) == (TaskState.CANCELLED, RunState.CANCELLED)


def test_a_cancelled_orphan_is_cancelled_when_its_time_is_over() -> None:
    driver, _ = orphaned(adopt_seconds=60.0)
    driver.command("cancel", run_id="r1")
    live(driver, 65)
    assert (driver.state("a"), driver.run_state()) == (TaskState.CANCELLED, RunState.CANCELLED)


def test_a_cancelled_orphan_that_is_adopted_is_stopped_by_its_keeper() -> None:
    driver, attempt = orphaned()
    driver.command("cancel", run_id="r1")
    driver.worker("w2", host="a", running={attempt.id: attempt.token})
    assert driver.kernel.desired("w2").cancel == ((attempt.id, 10.0),)
    stopped = Outcome(AttemptState.CANCELLED, "cancelled")
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, stopped, reply_to="w2"), Tick())
    assert driver.run_state() is RunState.CANCELLED


def test_a_claim_of_who_ran_it_gets_no_second_grant_while_another_keeps_it() -> None:
    driver, attempt = adopted()
    driver.feed(ClaimReceived("w1", attempt.id, 1, "n1"))
    assert not driver.of(SendGrant)


def test_its_keeper_has_more_than_its_slots_until_it_ends_and_is_given_nothing_more() -> None:
    driver, attempt = orphaned()
    driver.worker("w2", host="a", slots=1)
    driver.run(task("b"), run_id="r2")
    other = driver.attempt("b", "r2")
    driver.feed(ClaimReceived("w2", other.id, 1, "n2"))
    driver.beat("w2", running={other.id: other.token, attempt.id: attempt.token})
    assert driver.kernel.ledger.slots_used("w2") == 2
    driver.run(task("c"), run_id="r3")
    assert not driver.dispatched()


def test_reconcile_leaves_orphans_and_kept_attempts_alone() -> None:
    driver, _ = orphaned()
    driver.feed(ReconcileDue())
    assert driver.attempt("a").orphaned_at is not None
    driver, attempt = adopted()
    live(driver, 3100)
    assert "w1" not in driver.kernel.workers, "it is forgotten"
    driver.feed(ReconcileDue())
    assert driver.attempt("a").keeper_id == attempt.keeper_id
    assert counted(driver, "repaired") == 0


def test_an_orphan_holds_its_room_though_every_worker_of_its_host_is_forgotten() -> None:
    driver, attempt = orphaned(adopt_seconds=10_000.0)
    live(driver, 3100)
    driver.feed(ReconcileDue())
    assert "w1" not in driver.kernel.workers
    assert driver.kernel.ledger.hosts["a"].cpu_used == 1000
    driver.worker("w2", host="a", running={attempt.id: attempt.token})
    assert driver.attempt("a").keeper_id == "w2"


def test_the_breaker_counts_what_workers_keep() -> None:
    driver = Driver()
    for n in range(1, 4):
        driver.worker(f"w{n}", host=f"h{n}")
    driver.run(*(task(f"a{n}", cpu=3000, on_worker_loss="adopt") for n in range(1, 4)))
    for n in range(1, 4):
        driver.start(f"a{n}", worker_id=driver.attempt(f"a{n}").worker_id)
    driver.tick(after=31)
    assert "breaker" in [count.what for count in driver.of(Count)]
    assert not driver.kernel.orphans, "nobody is given up yet"
    driver.tick(after=31)
    assert len(driver.kernel.orphans) == 1


def test_a_preemption_by_the_keeper_drains_the_keeper() -> None:
    driver, attempt = adopted()
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, PREEMPTED, reply_to="w2"), Tick())
    assert driver.kernel.workers["w2"].state is WorkerState.DRAINING
    assert driver.kernel.workers["w1"].state is WorkerState.LOST


def test_a_grant_the_rows_have_lost_is_adopted_from_its_hosts_next_worker_with_what_it_reports() -> None:
    driver = Driver()
    driver.worker("w1", host="a")
    driver.run(task("a", on_worker_loss="adopt"))
    attempt = driver.attempt("a")
    driver.worker("w2", host="a", running={attempt.id: attempt.token})
    kept = driver.attempt("a")
    assert (kept.state, kept.worker_id, kept.keeper_id) == (AttemptState.RUNNING, "w1", "w2")
    driver.feed(OutcomeReceived("w1", attempt.id, attempt.token, SUCCESS, reply_to="w2"), Tick())
    assert driver.verdicts() == ["committed"]


def test_a_keeper_knows_who_ran_it_where_the_rows_have_lost_that_and_nobody_else_is_believed() -> None:
    driver, attempt = adopted()
    driver.feed(OutcomeReceived("w0", attempt.id, attempt.token, SUCCESS, reply_to="w9"))
    assert driver.verdicts() == ["fenced"]
    driver.feed(OutcomeReceived("w0", attempt.id, attempt.token, SUCCESS, reply_to="w2"))
    assert driver.verdicts() == ["committed"]


def rebuilt(**fields: Any) -> Kernel:
    """A new leader's memory of an attempt of w1, which is long forgotten."""
    kernel = Kernel(KernelSettings(new_id=lambda: "new", adopt_seconds=100.0), 50.0)
    attempt = AttemptRecord(
        "x", "r1", "r1.a", 1, "cpu", Resources(1000, GIB), "a", "w1", "token", AttemptState.RUNNING, **fields
    )
    kernel.load(
        Snapshot(
            runs=(RunRecord("r1", "tenant", RunState.RUNNING),),
            plans={"r1": Plan((task("a", on_worker_loss="adopt"),))},
            task_runs=(TaskRunRecord("r1.a", "r1", "a", TaskState.RUNNING, attempts=1, attempt_id="x"),),
            attempts=(attempt,),
            reservations=(Reservation("x", "a", "w2", attempt.resources),),
            hosts=(HostRecord("a", "boot", Capacity(2000, 4 * GIB)),),
            workers=(
                WorkerRecord("w2", "a", "boot", WorkerState.ONLINE, frozenset({"cpu"}), 2, {}, "shared", 50.0, 7),
            ),
        ),
        50.0,
    )
    decide(kernel, ReconcileDue(), 50.0)
    return kernel


def test_a_new_leader_knows_who_keeps_what() -> None:
    kernel = rebuilt(keeper_id="w2")
    decide(kernel, Tick(), 81.0)
    assert kernel.workers["w2"].state is WorkerState.LOST
    assert kernel.attempts["x"].orphaned_at == 81.0


def test_a_new_leader_waits_for_orphans_no_longer_than_the_old_one_would_have() -> None:
    kernel = rebuilt(orphaned_at=-30.0)
    assert orphan_ends(kernel) == 80.0, "but a whole lease, for it has heard nobody yet"
    kernel = rebuilt(orphaned_at=20.0)
    assert orphan_ends(kernel) == 120.0


def test_every_step_of_it_is_charged_once() -> None:
    driver, attempt = adopted()
    die(driver, "w2")
    driver.worker("w3", host="a", running={attempt.id: attempt.token})
    held = [effect.reservation for effect in driver.all_of(Reserve) if effect.reservation.attempt_id == attempt.id]
    assert [(r.worker_id, r.host_id, r.zombie) for r in held] == [
        ("w1", "a", False),
        ("w2", "a", False),
        ("w3", "a", False),
    ]
    assert driver.kernel.ledger.hosts["a"].cpu_used == 1000


@pytest.mark.parametrize("reporter", ["w2", "w3"])
@pytest.mark.parametrize("ran", ["w1", "w2"])
def test_of_a_lost_grant_the_report_of_the_planned_worker_counts_and_that_of_the_one_that_shows_it(
    ran: str, reporter: str
) -> None:
    driver = Driver()
    driver.worker("w1", host="a")
    driver.run(task("a", on_worker_loss="adopt"))
    attempt = driver.attempt("a")
    # Adopted from w1, or claimed by w2 itself: the rows have lost both.
    driver.worker("w2", host="a", running={attempt.id: attempt.token})
    if reporter == "w3":
        die(driver, "w2")
        driver.worker("w3", host="a")
    report = OutcomeReceived(ran, attempt.id, attempt.token, SUCCESS, reply_to=reporter)
    driver.feed(report, Tick())
    assert driver.verdicts() == ["committed"]
    driver.feed(report)
    assert driver.verdicts() == ["committed"], "asked again, the same is answered"


@pytest.mark.parametrize("keeper", ["w2", ""])
def test_a_new_leader_answers_a_keepers_report_from_the_row(keeper: str) -> None:
    driver = Driver()
    row = EndedAttempt("x", AttemptState.SUCCEEDED, "t", "w1", keeper_id=keeper)
    driver.feed(OutcomeReceived("w0", "x", "t", SUCCESS, reply_to="w2", ended=row))
    assert driver.verdicts() == ["committed" if keeper else "fenced"]
